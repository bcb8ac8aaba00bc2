"""Views: objects as one window reports them, in px at the model's mpp with the origin at the slide's corner."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.objects import UNMEASURED, unmeasured


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """N objects as windows report them. `class` in the stitching rule is `class_index`.

    xyxy          (N, 4) float64, x0 y0 x1 y1
    class_index   (N,) int32
    score         (N,) float32
    class_scores  (N, C) float32
    geometry      (N,) object array of valid shapely Polygon or MultiPolygon within its box; None: only the box is known
    measures      (N, M) float32, see core/objects.MEASURES; NaN, the default, where unknown
    """

    xyxy: NDArray[np.float64]
    class_index: NDArray[np.int32]
    score: NDArray[np.float32]
    class_scores: NDArray[np.float32]
    geometry: NDArray[np.object_]
    measures: NDArray[np.float32] = field(default_factory=lambda: UNMEASURED)

    def __post_init__(self) -> None:
        n = len(self.xyxy)
        if self.measures is UNMEASURED:
            object.__setattr__(self, "measures", unmeasured(n))
        if self.xyxy.shape != (n, 4) or self.xyxy.dtype != np.float64:
            raise ValueError(f"Views.xyxy: expected (N, 4) float64, got {self.xyxy.shape} {self.xyxy.dtype}")
        if not (np.isfinite(self.xyxy).all() and (self.xyxy[:, 2:] >= self.xyxy[:, :2]).all()):
            raise ValueError("Views.xyxy: a box with x1 < x0, y1 < y0 or a number that is not finite")
        for name in ("class_index", "score", "class_scores", "geometry", "measures"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"Views.{name}: expected {n} rows, got {len(getattr(self, name))}")
        if not (shapely.is_missing(self.geometry) | shapely.is_valid(self.geometry)).all():
            raise ValueError("Views.geometry: a polygon that is not valid")

    def __len__(self) -> int:
        return len(self.xyxy)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Views:
        """The rows named by an index or a mask, in that order."""
        return Views(*(getattr(self, name)[index] for name in Views.__slots__))


def no_views(classes: int) -> Views:
    """What a window that sees nothing reports, for a list of `classes` classes."""
    return Views(
        np.zeros((0, 4)),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
        np.zeros((0, classes), np.float32),
        np.zeros(0, object),
    )
