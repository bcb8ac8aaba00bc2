"""The tile grid: starts along one axis, and their product over two.

Enters: extent, tile and overlap, all in px of one view.  Leaves: starts, same px, ascending; tiles by rows.
Used by tile and mine; infer rounds the starts to the network's stride (DESIGN 6).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal


def plan_axis(extent_px: int, window_px: int, overlap_px: int) -> list[int]:
    """Starts of the windows that cover [0, extent_px); the last window is shifted inwards, never past the end.

    Neighbours overlap by at least `overlap_px`. A window larger than the extent gives [0]: the caller pads.
    Raises ValueError if not 0 <= overlap_px < window_px, or if an extent or window is not positive.
    """
    if extent_px <= 0 or window_px <= 0 or not 0 <= overlap_px < window_px:
        raise ValueError(f"plan_axis: extent {extent_px} px, window {window_px} px, overlap {overlap_px} px")
    if window_px >= extent_px:
        return [0]
    stride_px = window_px - overlap_px
    last = extent_px - window_px
    return [*range(0, last, stride_px), last]


def plan_padded_axis(extent_px: int, window_px: int, overlap_px: int) -> list[int]:
    """As `plan_axis`, but the last window hangs over the end: neighbours overlap by exactly `overlap_px`."""
    steps = len(plan_axis(extent_px, window_px, overlap_px))  # shifting the last window inwards changes no count
    return [i * (window_px - overlap_px) for i in range(steps)]


@dataclass(frozen=True, slots=True)
class Grid:
    """Square tiles of `tile_px` at every (x, y) of `xs` × `ys`, px of the view they are cut from."""

    xs: tuple[int, ...]
    ys: tuple[int, ...]
    tile_px: int

    def __len__(self) -> int:
        return len(self.xs) * len(self.ys)

    def origins(self) -> Iterator[tuple[int, int]]:
        """(x, y) of every tile, by rows."""
        return ((x, y) for y in self.ys for x in self.xs)


def plan_grid(width_px: int, height_px: int, tile_px: int, overlap_px: int, edge: Literal["shift", "pad"]) -> Grid:
    """The grid that covers a view of the given size. Raises ValueError as `plan_axis` does."""
    plan = plan_axis if edge == "shift" else plan_padded_axis
    return Grid(tuple(plan(width_px, tile_px, overlap_px)), tuple(plan(height_px, tile_px, overlap_px)), tile_px)


def rows_of(origins: list[tuple[int, int]]) -> Iterator[tuple[int, list[int]]]:
    """(y, ascending xs) of each row of the given (x, y), top to bottom. Doubles are kept."""
    for y, row in groupby(sorted(origins, key=lambda origin: (origin[1], origin[0])), key=lambda origin: origin[1]):
        yield y, [x for x, _ in row]
