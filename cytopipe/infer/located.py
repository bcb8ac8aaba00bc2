"""What a predictor says of one window, and the views that the stitcher is given of it. Nothing of networks.

A predictor is any function of pixels: windows of one size in, what each of them holds out. The network is one
(`predict.py`), the same network asked in several orientations another (`augment.py`), a stub of a test a third.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.boxes import F64
from cytopipe.core.classes import ObjectClass
from cytopipe.infer.masks import polygons_from_roi_masks
from cytopipe.infer.measure import measure
from cytopipe.infer.stitching import Views
from cytopipe.infer.windows import Windows

U8 = NDArray[np.uint8]
Glass = tuple[float, float, float]  # grey level of empty glass per channel

LEAST_SIDE_PX = 1.0  # [D] of a box: what is smaller cannot be outlined


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """What one image holds, best first: boxes (n, 4) float64 px, scores (n,), labels (n,) 1..C, class_scores (n, C),
    masks (n, 28, 28) or None.
    """

    boxes: F64
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_scores: NDArray[np.float32]
    masks: NDArray[np.float32] | None

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Located:
        """The rows named by an index or a mask, in that order."""
        masks = None if self.masks is None else self.masks[rows]
        return Located(self.boxes[rows], self.scores[rows], self.labels[rows], self.class_scores[rows], masks)

    def first(self, count: int) -> Located:
        """The best `count`."""
        return self.take(np.arange(min(count, len(self))))


Predictor = Callable[[Sequence[U8]], list[Located]]
"""predictor(images, each (H, W, 3) uint8 and of one size) -> what each holds, boxes in px of the image."""


@dataclass(frozen=True, slots=True, eq=False)
class Viewer:
    """How what a predictor says of a window becomes views.

    least_score  (C,) least score of an object of each class
    glass        grey level of empty glass, for what is measured; None on a dark background
    """

    classes: tuple[ObjectClass, ...]
    least_score: F64
    glass: Glass | None

    def views(self, found: Located, image: U8, windows: Windows, index: int) -> Views:
        """The views of one window, px of the slide at the model's mpp, measured on the window's pixels."""
        x0, y0 = float(windows.x0[index]), float(windows.y0[index])
        shown = np.minimum(windows.window_px, [windows.width - x0, windows.height - y0])
        views = views_of(found, np.array([x0, y0, x0, y0]), np.array([0.0, 0.0, *shown]), self.least_score)
        return replace(views, measures=measure(views, image, (x0, y0), self.glass, self.classes))


def views_of(found: Located, origin: F64, frame: F64, least_score: F64) -> Views:
    """Views of a window whose corner lies at `origin` (x y x y), cut to `frame` (x0 y0 x1 y1 px of the window)."""
    class_index = (found.labels - 1).astype(np.int32)
    boxes = np.concatenate([np.maximum(found.boxes[:, :2], 0), np.minimum(found.boxes[:, 2:], frame[2:])], axis=1)
    large = ((boxes[:, 2:] - boxes[:, :2]) >= LEAST_SIDE_PX).all(axis=1)
    keep = (found.scores >= least_score[class_index]) & large
    geometry: Any = np.full(int(keep.sum()), None, object)
    moved = boxes[keep] + origin
    if found.masks is not None:
        geometry = polygons_from_roi_masks(found.masks[keep], found.boxes[keep] + origin)
        moved, geometry = _boxes_of(geometry, moved, frame + origin)
    return Views(moved, class_index[keep], found.scores[keep], found.class_scores[keep], geometry)


def _boxes_of(geometry: Any, boxes: F64, limits: F64) -> tuple[F64, Any]:
    """The box of an object is the box of what is drawn of it, cut to the window; where the mask is empty the network's
    box stands.
    """
    kept, result = geometry.copy(), boxes.copy()
    bounds = shapely.bounds(geometry)  # NaN where there is none
    for k in np.flatnonzero((bounds[:, :2] < limits[:2]).any(axis=1) | (bounds[:, 2:] > limits[2:]).any(axis=1)):
        clipped = shapely.clip_by_rect(geometry[k], *limits)
        kept[k] = _polygonal(clipped) if shapely.area(clipped) > 0 else None
    drawn = ~shapely.is_missing(kept)
    result[drawn] = shapely.bounds(kept[drawn])
    return result, kept


def _polygonal(geometry: Any) -> Any:
    if geometry.geom_type in ("Polygon", "MultiPolygon") and geometry.is_valid:
        return geometry
    fixed = shapely.make_valid(geometry)
    parts = [g for g in getattr(fixed, "geoms", [fixed]) if g.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(parts)
