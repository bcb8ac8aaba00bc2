"""Located objects in memory: one frozen table from the stitcher to the writers, the pages and the metrics."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

JOINED = 1  # flag: pieces of several windows were united (DESIGN 6, step 5)
TRUNCATED = 2  # flag: a single piece of an object that no window saw whole

FLAG_NAMES = {JOINED: "joined", TRUNCATED: "truncated"}

MEASURES = ("mean_optical_density", "nucleus_cytoplasm_ratio")
"""What is measured on the pixels or the neighbours that one window shows, so that it must travel with the object:
columns of `Objects.measures`. Areas and shapes follow from the geometry."""


UNMEASURED = np.zeros((0, len(MEASURES)), np.float32)
"""Stands for "nothing was measured" where a table is made."""


def unmeasured(n: int) -> NDArray[np.float32]:
    """The measures of `n` objects of which none was measured, (n, M)."""
    return np.full((n, len(MEASURES)), np.nan, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Objects:
    """N located objects of one slide, in level-0 px of the slide, pixel edges at integers.

    xyxy          (N, 4) float64, x0 y0 x1 y1
    class_index   (N,) int32, index into the class list that travels with the table
    score         (N,) float32 in [0, 1]: the certainty that an object of this kind is there
    class_scores  (N, C) float32: the certainty of each class of the list (0 for classes of another kind)
    geometry      (N,) object array of shapely Polygon or MultiPolygon; None where only a box is known
    flags         (N,) uint8, JOINED | TRUNCATED
    window        (N,) int32, the window that reported it (-1 where there was none)
    measures      (N, M) float32, see MEASURES; NaN where unknown, which is the default
    """

    xyxy: NDArray[np.float64]
    class_index: NDArray[np.int32]
    score: NDArray[np.float32]
    class_scores: NDArray[np.float32]
    geometry: NDArray[np.object_]
    flags: NDArray[np.uint8]
    window: NDArray[np.int32]
    measures: NDArray[np.float32] = field(default_factory=lambda: UNMEASURED)

    def __post_init__(self) -> None:
        n = len(self.xyxy)
        if self.measures is UNMEASURED:
            object.__setattr__(self, "measures", unmeasured(n))
        if self.xyxy.shape != (n, 4) or self.xyxy.dtype != np.float64:
            raise ValueError(f"Objects.xyxy: expected (N, 4) float64, got {self.xyxy.shape} {self.xyxy.dtype}")
        if not (self.xyxy[:, 2:] >= self.xyxy[:, :2]).all():  # also false for NaN
            raise ValueError("Objects.xyxy: a box with x1 < x0, y1 < y0 or NaN")
        for name in ("class_index", "score", "class_scores", "geometry", "flags", "window", "measures"):
            if len(getattr(self, name)) != n:
                raise ValueError(f"Objects.{name}: expected {n} rows, got {len(getattr(self, name))}")

    def __len__(self) -> int:
        return len(self.xyxy)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Objects:
        """The rows named by an index or a mask, in that order."""
        return Objects(
            self.xyxy[index],
            self.class_index[index],
            self.score[index],
            self.class_scores[index],
            self.geometry[index],
            self.flags[index],
            self.window[index],
            self.measures[index],
        )


def no_objects(classes: int) -> Objects:
    """An empty table for a list of `classes` classes."""
    return Objects(
        np.zeros((0, 4)),
        np.zeros(0, np.int32),
        np.zeros(0, np.float32),
        np.zeros((0, classes), np.float32),
        np.zeros(0, object),
        np.zeros(0, np.uint8),
        np.zeros(0, np.int32),
    )


def concatenate(tables: list[Objects], classes: int) -> Objects:
    """Tables below each other, in the given order."""
    tables = [no_objects(classes), *tables]
    return Objects(*(np.concatenate([getattr(t, name) for t in tables]) for name in Objects.__slots__))
