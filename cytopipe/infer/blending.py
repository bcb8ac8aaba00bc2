"""One map out of many windows: logits blended so that no window counts where it does not see enough (DESIGN 6).

Enters: the grid of windows, the network's receptive radius r, and the logits of one window after the other, in scan
order.  Leaves: finished blocks of the slide, px of the grid, each px once, in scan order of the windows.

The weight of a window grows from 0 at r px inside each of its inner edges, linearly; the weights of the windows that
cover a px are divided by their sum. What hangs over the slide is cut off. A px that only windows left out would have
seen well has no weight and is said to be unseen: a guess from a window's margin would not be what the whole slide says.

Memory does not depend on the slide's height: the rows that two rows of windows share, and one window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytopipe.infer.windows import Windows

F32 = NDArray[np.float32]

SEAM_STEP_PX = 4  # [D] every 4th px on x and y tells how well windows agree: all px would cost as much as blending


def default_blend_overlap_px(radius_px: int, window_px: int) -> int:
    """The overlap at which tiled equals untiled, 2 r + 2, or half a window where that is less (DESIGN 6)."""
    return min(2 * radius_px + 2, window_px // 2)


def usable_radius_px(windows: Windows, radius_px: int) -> int:
    """r, or the largest radius below it that leaves no px without weight: least overlap / 2 - 1, at least 0."""
    steps = [int(np.diff(starts).max()) for starts in (windows.starts_x, windows.starts_y) if len(starts) > 1]
    if not steps:
        return radius_px
    return max(0, min(radius_px, (windows.window_px - max(steps) - 2) // 2))


def used_from(starts: NDArray[np.int64], window_px: int) -> NDArray[np.int64]:
    """Where each window along an axis begins to be used: neighbours share the least overlap of the grid, no more.

    The last window is shifted inwards and may overlap its neighbours by far more; what it would add there is known
    already, and would have to be held for the whole width of the slide.
    """
    used = starts.copy()
    if len(starts) > 1:
        overlap_px = window_px - int(np.diff(starts).max())
        used[1:] = starts[:-1] + window_px - overlap_px
    return used


def axis_weights(starts: NDArray[np.int64], window_px: int, extent_px: int, radius_px: int) -> F32:
    """Weights of the windows along one axis (windows, window_px), zero beyond the border, before a window's use and
    within `radius_px` of an inner end of it; they sum to one over the windows that cover a px.
    """
    at = np.arange(window_px) + 0.5
    weights = np.empty((len(starts), window_px), dtype=np.float64)
    total = np.zeros(max(extent_px, int(starts[-1]) + window_px), dtype=np.float64)
    for k, (start, used) in enumerate(zip(starts.tolist(), used_from(starts, window_px).tolist(), strict=True)):
        left = at - (used - start) if start > 0 else np.full(window_px, np.inf)
        right = window_px - at if start + window_px < extent_px else np.full(window_px, np.inf)
        weights[k] = np.clip(np.minimum(left, right) - radius_px, 0, window_px)
        weights[k, max(extent_px - start, 0) :] = 0
        total[start : start + window_px] += weights[k]
    for k, start in enumerate(starts.tolist()):
        here = total[start : start + window_px]
        np.divide(weights[k], here, out=weights[k], where=here > 0)
    return weights.astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A finished piece of the map.

    x0, y0   its corner, px of the grid
    logits   (C, h, w) float32, 0 where unseen
    seen     (h, w) bool: some window that ran sees the px well
    """

    x0: int
    y0: int
    logits: F32
    seen: NDArray[np.bool_]


@dataclass(slots=True)
class Seams:
    """How well windows agree where two of them count, over a sample of px. 0 and 0 for a network that sees r px far.

    largest        largest difference of a class's probability between a window and those before it
    other_class    px to which they give different classes
    px             px compared
    """

    largest: float = 0.0
    other_class: int = 0
    px: int = 0

    @property
    def other_class_fraction(self) -> float:
        return self.other_class / self.px if self.px else 0.0


class Blender:
    """Blends one slide's windows; give each of them once, in scan order, by `add`."""

    def __init__(self, windows: Windows, radius_px: int, class_count: int) -> None:
        """class_count: C of the logits, background included."""
        self.windows, self.radius_px = windows, usable_radius_px(windows, radius_px)
        self.seams = Seams()
        size = windows.window_px
        self._weights_x = axis_weights(windows.starts_x, size, windows.width, self.radius_px)
        self._weights_y = axis_weights(windows.starts_y, size, windows.height, self.radius_px)
        self._x0, self._y0 = used_from(windows.starts_x, size), used_from(windows.starts_y, size)
        self._shared_x, self._shared_y = (
            size - int(np.diff(starts).max()) if len(starts) > 1 else 0
            for starts in (windows.starts_x, windows.starts_y)
        )
        # Sums of weight times logits, and of weights as channel C: of the rows shared with the row of windows above,
        # over the slide's width, and of the window at hand from where it is used.
        self._carry = np.zeros((class_count + 1, self._shared_y, windows.width), dtype=np.float32)
        self._slab = np.zeros((class_count + 1, size, size), dtype=np.float32)
        self._next = 0

    def add(self, index: int, logits: F32 | None) -> Block:
        """Take window `index`, logits (C, h, w) that begin at its corner and cover at least what lies on the slide;
        None for a window that was left out. Gives the block that no later window can change.

        Raises ValueError out of scan order.
        """
        if index != self._next:
            raise ValueError(f"add: window {index} where {self._next} is next")
        self._next += 1
        row, column = divmod(index, self.windows.columns)
        self._fetch(row, column)
        if logits is not None:
            self._blend(row, column, logits)
        return self._emit(row, column)

    def _fetch(self, row: int, column: int) -> None:
        """Bring the slab to this window: what the window to the left has in common with it, and the rows from above."""
        x0, kept = int(self._x0[column]), 0
        x1 = min(int(self.windows.starts_x[column]) + self.windows.window_px, self.windows.width)
        if column:
            kept = self._shared_x
            begins = x0 - int(self._x0[column - 1])
            self._slab[:, :, :kept] = self._slab[:, :, begins : begins + kept].copy()
        self._slab[:, :, kept:] = 0
        if row:
            self._slab[:, : self._shared_y, kept : x1 - x0] = self._carry[:, :, x0 + kept : x1]

    def _blend(self, row: int, column: int, logits: F32) -> None:
        windows, size = self.windows, self.windows.window_px
        x0, y0 = int(windows.starts_x[column]), int(windows.starts_y[row])
        rows = slice(int(self._y0[row]) - y0, min(size, windows.height - y0))
        columns = slice(int(self._x0[column]) - x0, min(size, windows.width - x0))
        weights = self._weights_y[row, rows, None] * self._weights_x[column, None, columns]
        logits = logits[:, rows, columns]
        slab = self._slab[:, : weights.shape[0], : weights.shape[1]]
        self._compare(slab, weights, logits)
        slab[:-1] += weights * logits
        slab[-1] += weights

    def _compare(self, slab: F32, weights: F32, logits: F32) -> None:
        some = np.s_[::SEAM_STEP_PX, ::SEAM_STEP_PX]
        both = (slab[-1][some] > 0) & (weights[some] > 0)
        if not both.any():
            return
        before = np.stack([channel[some][both] for channel in slab])
        first, second = softmax(before[:-1] / before[-1]), softmax(np.stack([c[some][both] for c in logits]))
        self.seams.largest = max(self.seams.largest, float(np.abs(first - second).max()))
        self.seams.other_class += int((first.argmax(axis=0) != second.argmax(axis=0)).sum())
        self.seams.px += int(both.sum())

    def _emit(self, row: int, column: int) -> Block:
        """Columns before the next window's are finished for this row of windows: above the next row's first line they
        are done, from there on they are carried down.
        """
        windows = self.windows
        x0, y0 = int(self._x0[column]), int(self._y0[row])
        x1 = int(self._x0[column + 1]) if column + 1 < windows.columns else windows.width
        y1 = int(self._y0[row + 1]) if row + 1 < windows.rows else windows.height
        if row + 1 < windows.rows:
            self._carry[:, :, x0:x1] = self._slab[:, y1 - y0 : y1 - y0 + self._shared_y, : x1 - x0]
        done = self._slab[:, : y1 - y0, : x1 - x0]
        seen = done[-1] > 0
        logits = np.zeros((len(done) - 1, *seen.shape), dtype=np.float32)
        np.divide(done[:-1], done[-1], out=logits, where=seen)
        return Block(x0, y0, logits, seen)


def softmax(logits: F32) -> F32:
    """Probabilities over axis 0, float32."""
    grown = np.exp(logits - logits.max(axis=0))
    return np.asarray(grown / grown.sum(axis=0), dtype=np.float32)
