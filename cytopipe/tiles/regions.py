"""Areas of a slide that somebody outlined: regions of interest, and what was annotated at all.

Enters: outlines and tile boxes, both level-0 px of the slide.  Leaves: which tiles meet the area, and which lie in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from cytopipe.core.errors import UserError, nearest_fix
from cytopipe.formats.annotations import Annotation

INSIDE_TOLERANCE_FRACTION = 1e-5
"""A tile lies in an area that lacks no more than this share of it [D]: files round coordinates to 1/1000 or 1/100 px,
and an outline drawn along a tile's border must not lose the tile by it; of a tile of 1000 px this is 10 px²."""


class Area:
    """The union of outlines of one class.

    outlines   valid polygons, level-0 px; at least one
    """

    def __init__(self, outlines: Sequence[BaseGeometry]) -> None:
        # parts of the union do not overlap: shares of a tile in each of them add up
        self._parts = shapely.get_parts(shapely.union_all(np.array(outlines, dtype=object)))
        shapely.prepare(self._parts)
        self._tree = shapely.STRtree(self._parts)

    def meets(self, boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which boxes (T, 4), x0 y0 x1 y1, share an area with it; touching borders is not enough."""
        return self._share(boxes) > 0

    def holds(self, boxes: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which boxes (T, 4) lie in it wholly; a box without an area lies nowhere."""
        return self._share(boxes) >= 1 - INSIDE_TOLERANCE_FRACTION

    def contains(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Which points (N, 2), x y, lie in it."""
        inside = np.zeros(len(points), dtype=np.bool_)
        inside[self._tree.query(shapely.points(points), predicate="intersects")[0]] = True
        return inside

    def mask(self, shape: tuple[int, int], slide_px_per_px: tuple[float, float]) -> NDArray[np.bool_]:
        """Every px of a mask (h, w) over the slide that the area meets, and some around it: where to look for points
        that `contains` takes."""
        drawn = np.zeros(shape, dtype=np.uint8)
        for part in self._parts:
            corners = shapely.get_coordinates(shapely.get_exterior_ring(part)) / np.array(slide_px_per_px)
            cv2.fillPoly(drawn, [np.floor(corners).astype(np.int32)], 1)
        return cv2.dilate(drawn, np.ones((3, 3), np.uint8)).astype(np.bool_)

    def _share(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """The share (T,) of each box's area that is inside."""
        shares = np.zeros(len(boxes), dtype=np.float64)
        near = _meeting(boxes, self._tree.geometries)
        tiles = shapely.box(*boxes[near].T)
        which, part = self._tree.query(tiles, predicate="intersects")
        within = shapely.contains(self._parts[part], tiles[which])
        area = shapely.area(tiles[which])
        area[~within] = shapely.area(shapely.intersection(self._parts[part[~within]], tiles[which[~within]]))
        whole = shapely.area(tiles)
        met = np.bincount(which, weights=area, minlength=len(tiles))
        shares[near] = np.divide(met, whole, out=np.zeros_like(met), where=whole > 0)
        return shares


def area_of(annotations: Sequence[Annotation], class_name: str) -> Area | None:
    """What is outlined as `class_name`, several outlines as one area; None without any."""
    outlines = [a.geometry for a in annotations if a.class_name == class_name]
    return Area(outlines) if outlines else None


def region_of_interest(annotations: Sequence[Annotation], class_name: str | None) -> Area | None:
    """The regions of interest of a slide; None where none are asked for.

    Raises UserError when the slide has none of that class: left out silently, it would be missed by nobody.
    """
    if class_name is None:
        return None
    area = area_of(annotations, class_name)
    if area is None:
        names = sorted({a.class_name for a in annotations})
        fix = nearest_fix(class_name, names, "its classes") if names else "it has no annotations"
        raise UserError(f"no region of interest {class_name!r} is outlined on the slide", fix=fix)
    return area


def _meeting(boxes: NDArray[np.float64], geometries: NDArray[np.object_]) -> NDArray[np.intp]:
    """Rows of boxes that meet the bounding box of all geometries: of a million tiles few lie near a region."""
    x0, y0, x1, y1 = shapely.total_bounds(geometries)
    near = (boxes[:, 0] <= x1) & (boxes[:, 2] >= x0) & (boxes[:, 1] <= y1) & (boxes[:, 3] >= y0)
    return np.flatnonzero(near)
