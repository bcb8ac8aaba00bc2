"""Outlines of objects, as paths of an SVG over an image and as lines in its pixels.

Enters: shapely geometries in the frame of the image, px.  Leaves: SVG markup, or arrays of points for OpenCV.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray


def svg_path(geometry: Any, tolerance_px: float = 0.25) -> str:
    """The `d` of an SVG path: all rings, simplified by `tolerance_px`, to a tenth of a px."""
    parts = []
    for ring in rings_of(shapely.simplify(geometry, tolerance_px)):
        points = [f"{x:.1f} {y:.1f}".replace(".0", "") for x, y in ring[:-1]]
        parts.append("M" + "L".join(points) + "Z")
    return "".join(parts)


def rings_of(geometry: Any) -> list[NDArray[np.float64]]:
    """All rings of a Polygon or MultiPolygon, outer ones and holes: closed, (n, 2) float64, frame of the geometry."""
    return [
        shapely.get_coordinates(ring)
        for polygon in shapely.get_parts(geometry)
        for ring in shapely.get_rings(polygon)
        if not ring.is_empty
    ]
