"""Boxes as arrays, and the affine map between a window and its slide. Nothing else knows this arithmetic.

Boxes are (N, 4) float64, x0 y0 x1 y1, pixel edges at integers, half open, no +1 in areas. Frames: `slide` = level-0 px,
`window` = px at the model's mpp.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def box_areas(boxes: F64) -> F64:
    """Areas (N,) of boxes (N, 4), in squared px of their frame; 0 where a side is not positive."""
    sides = np.clip(boxes[:, 2:] - boxes[:, :2], 0, None)
    return np.asarray(sides[:, 0] * sides[:, 1], dtype=np.float64)


def clip_boxes(boxes: F64, frame: F64) -> F64:
    """Boxes (N, 4) cut to `frame` (4,); a box outside gets sides of 0 or less: see `box_areas`."""
    low = np.maximum(boxes[:, :2], frame[:2])
    high = np.minimum(boxes[:, 2:], frame[2:])
    return np.concatenate([low, np.maximum(high, low)], axis=1)


def box_iou(a: F64, b: F64) -> F64:
    """Intersection over union (N, M) of boxes (N, 4) and (M, 4); 0 where the union is empty."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.clip(high - low, 0, None)
    both = sides[..., 0] * sides[..., 1]
    union = box_areas(a)[:, None] + box_areas(b)[None, :] - both
    return np.asarray(np.divide(both, union, out=np.zeros_like(both), where=union > 0))


def slide_from_window(xyxy: F64, origin: tuple[float, float], slide_px_per_window_px: tuple[float, float]) -> F64:
    """Boxes (N, 4) or points (N, 2), window px -> slide px. `origin` is the window's corner in slide px. Exact up to
    float64 rounding; no clipping.
    """
    repeat = xyxy.shape[-1] // 2
    scale = np.array(slide_px_per_window_px * repeat, dtype=np.float64)
    return np.asarray(xyxy, dtype=np.float64) * scale + np.array(origin * repeat, dtype=np.float64)


def window_from_slide(xyxy: F64, origin: tuple[float, float], slide_px_per_window_px: tuple[float, float]) -> F64:
    """The inverse of `slide_from_window`."""
    repeat = xyxy.shape[-1] // 2
    scale = np.array(slide_px_per_window_px * repeat, dtype=np.float64)
    return (np.asarray(xyxy, dtype=np.float64) - np.array(origin * repeat, dtype=np.float64)) / scale
