"""The windows of one slide, and which of their edges are inner. Nothing of networks, views or files.

`WindowSet` is what the stitcher asks of windows; `Windows` is the full grid, `placed.py` holds any others.

Enters: the slide's size, window, overlap and the network's stride, all px at the model's mpp.
Leaves: a full grid of windows in the same px, in scan order.
An edge is *inner* unless it lies on or beyond the slide's border. So is an edge towards windows that are skipped: no
pixel beyond it was seen.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import UserError
from cytopipe.tiles.grid import plan_axis

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

Mask = NDArray[np.bool_]

GUARD_PX = 8  # [D] the band along inner edges in which a report is not trusted to be whole (DESIGN 6)


class WindowSet(Protocol):
    """N windows, numbered by rows: y0 never falls from one number to the next."""

    def __len__(self) -> int: ...

    @property
    def y0(self) -> NDArray[np.integer] | F64:
        """Upper edges (N,), cut at the slide's border, ascending."""

    @property
    def boxes(self) -> F64:
        """What each window shows of the slide: (N, 4) float64 x0 y0 x1 y1, cut at the slide's border."""

    def row_of(self, window: NDArray[np.integer]) -> I64:
        """The row of each window named, (n,): windows of one y0 are a row, and rows are numbered downwards."""

    def inner_distance(self, xyxy: F64, window: NDArray[np.integer]) -> F64:
        """d(v, K) of DESIGN 6, (n,): least distance from box i to an inner edge of window[i]."""

    def count_at_distance(self, xyxy: F64, distance_px: float, among: Mask) -> I64:
        """How many of the windows `among` (N,) hold each box at d >= distance_px > 0, (n,)."""


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Window number row * columns + column covers [x0, x0 + window_px) × [y0, y0 + window_px).

    What hangs over the slide's right and lower border is padded by whoever reads it.

    width, height   the slide, px at the model's mpp
    starts_x        (columns,) int64, ascending multiples of the network's stride
    starts_y        (rows,) int64, likewise
    """

    width: int
    height: int
    window_px: int
    starts_x: I64
    starts_y: I64

    def __len__(self) -> int:
        return self.rows * self.columns

    @property
    def rows(self) -> int:
        return len(self.starts_y)

    @property
    def columns(self) -> int:
        return len(self.starts_x)

    @property
    def x0(self) -> I64:
        """Left edges (N,) int64, in scan order."""
        return np.tile(self.starts_x, self.rows)

    @property
    def y0(self) -> I64:
        """Upper edges (N,) int64, in scan order."""
        return np.repeat(self.starts_y, self.columns)

    @property
    def boxes(self) -> F64:
        """What each window shows of the slide: (N, 4) float64 x0 y0 x1 y1, cut at the slide's border."""
        x0, y0 = self.x0, self.y0
        x1, y1 = np.minimum(x0 + self.window_px, self.width), np.minimum(y0 + self.window_px, self.height)
        return np.stack([x0, y0, x1, y1], axis=1).astype(np.float64)

    @property
    def inner(self) -> NDArray[np.bool_]:
        """(N, 4) bool: whether the left, upper, right and lower edge lies inside the slide."""
        x0, y0 = self.x0, self.y0
        x1, y1 = x0 + self.window_px, y0 + self.window_px
        return np.stack([x0 > 0, y0 > 0, x1 < self.width, y1 < self.height], axis=1)

    def of_row(self, row: int) -> range:
        """The numbers of the windows of one row, left to right."""
        return range(row * self.columns, (row + 1) * self.columns)

    def inner_distance(self, xyxy: F64, window: NDArray[np.integer]) -> F64:
        """d(v, K) of DESIGN 6, (N,) float64: least distance from box i to an inner edge of window[i].

        Negative where the box sticks out, inf where the window has no inner edge.
        """
        x0, y0 = self.x0[window], self.y0[window]
        left, upper = xyxy[:, 0] - x0, xyxy[:, 1] - y0
        right, lower = x0 + self.window_px - xyxy[:, 2], y0 + self.window_px - xyxy[:, 3]
        gaps = np.stack([left, upper, right, lower], axis=1)
        return np.asarray(np.where(self.inner[window], gaps, np.inf).min(axis=1, initial=np.inf), dtype=np.float64)

    def row_of(self, window: NDArray[np.integer]) -> I64:
        """The row of the grid in which each window stands, (n,) int64."""
        return np.asarray(window // self.columns, dtype=np.int64)

    def count_at_distance(self, xyxy: F64, distance_px: float, among: Mask) -> I64:
        """How many of the windows `among` (N,) bool hold each box at d >= distance_px, (n,) int64."""
        summed = np.zeros((self.rows + 1, self.columns + 1), dtype=np.int64)
        np.cumsum(among.reshape(self.rows, self.columns), axis=0, out=summed[1:, 1:])
        np.cumsum(summed[1:, 1:], axis=1, out=summed[1:, 1:])
        column0, row0, column1, row1 = self.span_at_distance(xyxy, distance_px).T
        count = summed[row1, column1] - summed[row0, column1] - summed[row1, column0] + summed[row0, column0]
        return np.where((column1 > column0) & (row1 > row0), count, 0)

    def span_at_distance(self, xyxy: F64, distance_px: float) -> I64:
        """The windows K with d(box, K) >= distance_px, a rectangle of the grid: (N, 4) int64 column0 row0 column1 row1.

        Half open; column1 <= column0 or row1 <= row0 where there is no such window.
        """
        column0, column1 = _span(self.starts_x, self.window_px, self.width, xyxy[:, 0], xyxy[:, 2], distance_px)
        row0, row1 = _span(self.starts_y, self.window_px, self.height, xyxy[:, 1], xyxy[:, 3], distance_px)
        return np.stack([column0, row0, column1, row1], axis=1)


def plan_windows(width: int, height: int, window_px: int, overlap_px: int, stride_px: int = 1) -> Windows:
    """The full grid over a slide: neighbours overlap by at least `overlap_px`, starts are multiples of `stride_px`.

    The last window is shifted inwards to the next such start at or beyond extent - window: three can overlap there.
    Raises UserError where the overlap leaves no step; ValueError if a size is not positive or a window has no stride.
    """
    if min(width, height, window_px, stride_px) <= 0 or window_px < stride_px:
        raise ValueError(f"plan_windows: slide {width} × {height} px, window {window_px} px, stride {stride_px} px")
    if not 0 <= overlap_px <= window_px - stride_px:
        raise UserError(
            f"windows of {window_px} px that overlap by {overlap_px} px leave no step of the network's {stride_px} px",
            fix=f"give an overlap from 0 to {window_px - stride_px} px, or larger windows",
        )
    starts_x, starts_y = (_starts(extent_px, window_px, overlap_px, stride_px) for extent_px in (width, height))
    return Windows(width, height, window_px, starts_x, starts_y)


def default_overlap_px(max_object_px: float, guard_px: int = GUARD_PX) -> int:
    """The overlap at which some window sees an object of `max_object_px` whole: max_object_px + 2 g, rounded up."""
    return math.ceil(max_object_px) + 2 * guard_px


def _starts(extent_px: int, window_px: int, overlap_px: int, stride_px: int) -> I64:
    """The tile grid's starts, extent and overlap enlarged so that all of them are multiples of the stride."""
    step_px = (window_px - overlap_px) // stride_px * stride_px
    last = math.ceil(max(extent_px - window_px, 0) / stride_px) * stride_px
    return np.array(plan_axis(window_px + last, window_px, window_px - step_px), dtype=np.int64)


def _span(starts: I64, window_px: int, extent_px: int, low: F64, high: F64, distance_px: float) -> tuple[I64, I64]:
    """First and last + 1 of the windows along one axis that hold [low, high] at `distance_px` from their inner ends."""
    first_allowed = np.where(starts > 0, starts + distance_px, -np.inf)
    last_allowed = np.where(starts + window_px < extent_px, starts + window_px - distance_px, np.inf)
    return np.searchsorted(last_allowed, high, side="left"), np.searchsorted(first_allowed, low, side="right")
