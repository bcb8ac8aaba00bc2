"""What a truth covers, and who lies in it. Only there do results and true objects count.

Enters: shapes and an area, level-0 px of one slide.  Leaves: INSIDE, ON_BORDER or OUTSIDE for each shape.
An object on the border is seen in part by one side only: it neither helps nor hurts. A true one need not be found, a
result without a partner is not false; with a partner wholly inside it counts as any other.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

OUTSIDE, ON_BORDER, INSIDE = 0, 1, 2

# [D] Neighbouring tiles whose shared edge differs by rounding have no gap; nobody draws annotations finer than this.
SEAM_PX = 0.5


def placed(shapes: NDArray[np.object_], area: BaseGeometry | None) -> NDArray[np.uint8]:
    """Where each shape (N,) lies; INSIDE for all when `area` is None (the truth covers the whole slide)."""
    if area is None:
        return np.full(len(shapes), INSIDE, np.uint8)
    shapely.prepare(area)
    place = np.where(shapely.intersects(area, shapes), ON_BORDER, OUTSIDE)
    place[shapely.covers(area, shapes)] = INSIDE
    return place.astype(np.uint8)


def closed_union(boxes: NDArray[np.float64]) -> BaseGeometry:
    """The area of tiles (N, 4), level-0 px, without the hairline gaps that rounding leaves between neighbours."""
    grown = shapely.box(*(boxes + np.array([-SEAM_PX, -SEAM_PX, SEAM_PX, SEAM_PX])).T)
    return shapely.buffer(shapely.union_all(grown), -SEAM_PX, join_style="mitre")


def cut_by(area: BaseGeometry, shapes: NDArray[np.object_]) -> NDArray[np.bool_]:
    """Which of the shapes (N,), clipped to the area, touch its border: what lies beyond is unknown."""
    inner = shapely.buffer(area, -SEAM_PX, join_style="mitre")
    shapely.prepare(inner)
    return np.asarray(~shapely.covers(inner, shapes), dtype=np.bool_)
