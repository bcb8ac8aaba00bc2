"""How much two views overlap: candidate pairs without a quadratic search, and IoU by masks where there are masks.

Boxes are (N, 4) float64 and geometry (N,) shapely polygons or None, in any one frame; a polygon lies within its box.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.boxes import box_areas

F64 = NDArray[np.float64]
Index = NDArray[np.intp]
Geometry = NDArray[np.object_]

SAME_IOU = 0.5  # DESIGN 6, steps 2 and 5: from here on two views may be one object
_SLACK = 1 + 1e-6  # boxes and polygons round their areas differently, and a candidate too few would cost an object


def touching_pairs(xyxy: F64, window: NDArray[np.integer]) -> tuple[Index, Index]:
    """All pairs (i, j), i < j, of boxes of different windows that meet, as two (P,) indices."""
    boxes = shapely.box(*xyxy.T)
    i, j = shapely.STRtree(boxes).query(boxes)
    keep = (i < j) & (window[i] != window[j])
    return i[keep], j[keep]


def paired_iou(
    boxes_a: F64, geometry_a: Geometry, boxes_b: F64, geometry_b: Geometry, least_iou: float = SAME_IOU
) -> F64:
    """IoU (P,) of a[k] and b[k], by masks where both have one, else by boxes; 0 where masks cannot reach least_iou."""
    both = box_areas(common_boxes(boxes_a, boxes_b))
    union = box_areas(boxes_a) + box_areas(boxes_b) - both
    iou = np.divide(both, union, out=np.zeros_like(both), where=union > 0)
    masks = ~(shapely.is_missing(geometry_a) | shapely.is_missing(geometry_b))
    iou[masks] = 0.0
    area_a, area_b = shapely.area(geometry_a), shapely.area(geometry_b)  # NaN where there is none
    # |a ∩ b| is at most the boxes' common area, and IoU >= t says (1 + 1/t) |a ∩ b| >= |a| + |b|: most pairs end here
    most = (1 + 1 / least_iou) * np.minimum.reduce([both, area_a, area_b])
    near = masks & (most * _SLACK >= area_a + area_b)
    cut = shapely.area(shapely.intersection(geometry_a[near], geometry_b[near]))
    whole = area_a[near] + area_b[near] - cut
    iou[near] = np.divide(cut, whole, out=np.zeros_like(cut), where=whole > 0)
    return iou


def clipped(boxes: F64, geometry: Geometry, frames: F64) -> tuple[F64, Geometry]:
    """Boxes and geometry cut, row by row, to `frames` (P, 4)."""
    cut = common_boxes(boxes, frames)
    cut[:, 2:] = np.maximum(cut[:, :2], cut[:, 2:])
    return cut, shapely.intersection(geometry, shapely.box(*frames.T))


def common_boxes(a: F64, b: F64) -> F64:
    """What boxes a[k] and b[k] share, (P, 4); sides of 0 or less where they share nothing: see `box_areas`."""
    return np.concatenate([np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])], axis=1)
