"""Polygons to masks at pixel accuracy, each in the small frame of its own box.

A pixel is set where at least half of it is covered. cv2.fillPoly also paints the outline, which makes a nucleus of 14
px a seventh larger; hence the
polygon is drawn SUPERSAMPLE times larger and averaged, which leaves an eighth of a pixel.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon

SUPERSAMPLE = 4


def rasterise(geometry: Polygon | MultiPolygon, height: int, width: int) -> NDArray[np.uint8]:
    """Mask (height, width) uint8 of 0 and 1; geometry in px of that frame, pixel edges at integers; what lies outside
    is cut.
    """
    mask = np.zeros((height, width), np.uint8)
    x0, y0, x1, y1 = geometry.bounds if not geometry.is_empty else (0, 0, 0, 0)
    left, top = max(int(np.floor(x0)), 0), max(int(np.floor(y0)), 0)
    right, bottom = min(int(np.ceil(x1)), width), min(int(np.ceil(y1)), height)
    if right <= left or bottom <= top:
        return mask
    canvas = np.zeros(((bottom - top) * SUPERSAMPLE, (right - left) * SUPERSAMPLE), np.uint8)
    for part in getattr(geometry, "geoms", [geometry]):
        for ring, value in ((part.exterior, 1), *((hole, 0) for hole in part.interiors)):
            # cv2 puts pixel centres at integers, we put pixel edges there
            points = (np.asarray(ring.coords) - (left, top)) * SUPERSAMPLE - 0.5
            cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], value)
    covered = cv2.resize(canvas * np.uint8(255), (right - left, bottom - top), interpolation=cv2.INTER_AREA)
    mask[top:bottom, left:right] = covered >= 128
    return mask
