"""A slide made small, in bounded memory: by blocks of one level, never by a level as a whole.

Used for reports, the overview of `tile`, and by the foreground. Frame: px of the chosen level, divided by a whole
factor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from cytopipe.core.errors import RunError
from cytopipe.slides.slide import U8, Slide

BLOCK_PX = 4096
"""Longest side of a block that is read at once, level px [D]: 50 MB."""
LEAST_BLOCK_PX = 256
"""A block that cannot be decoded is read again by quarters down to about this side [D], so that one bad tile costs
little more than itself."""
LEAST_OF_SMALL_PX = 64
"""The same on a level that is one block [D]: there a few tiles are a large part of it."""
UNREADABLE_GREY = 128
"""What a thumbnail shows where data cannot be decoded: neither glass nor a cell looks so flat and grey."""


@dataclass(frozen=True, slots=True)
class Block:
    """The cells `rows` x `columns` of the shrunk picture, and the level px (h, w, 3) that give them; at the border the
    last cell may be incomplete.

    Where the data cannot be decoded `pixels` is None and `failure` says why.
    """

    rows: slice
    columns: slice
    pixels: U8 | None
    failure: RunError | None = None


def thumbnail(slide: Slide, max_px: int) -> U8:
    """The whole slide as RGB (h, w, 3), its longer side `max_px`, or level 0 as it is where that is smaller.

    Read from the coarsest level that is not smaller. What cannot be decoded is flat grey, see `UNREADABLE_GREY`.
    Raises ValueError for `max_px` below 1.
    """
    if max_px < 1:
        raise ValueError(f"thumbnail: max_px {max_px}")
    index = max((i for i, level in enumerate(slide.levels) if max(level.width, level.height) >= max_px), default=0)
    level = slide.levels[index]
    longest = max(level.width, level.height)
    factor = max(1, longest // max_px)
    small = np.full((-(-level.height // factor), -(-level.width // factor), 3), UNREADABLE_GREY, dtype=np.uint8)
    for block in blocks(slide, index, factor):
        if block.pixels is not None:
            small[block.rows, block.columns] = cell_means(block.pixels, factor)
    if longest <= max_px:
        return small
    size = (max(1, round(level.width * max_px / longest)), max(1, round(level.height * max_px / longest)))
    return np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def blocks(slide: Slide, level: int, factor: int) -> Iterator[Block]:
    """A level cut into blocks whose corners lie on multiples of `factor` level px, row by row."""
    for window in block_windows(slide, level, factor, BLOCK_PX):
        yield from read_block(slide, level, factor, window)


def block_windows(slide: Slide, level: int, factor: int, block_px: int) -> Iterator[tuple[int, int, int, int]]:
    """The windows x, y, w, h of `blocks`, level px, of about `block_px`; for who reads them side by side."""
    width, height = slide.levels[level].width, slide.levels[level].height
    step = max(1, block_px // factor) * factor
    for y in range(0, height, step):
        for x in range(0, width, step):
            yield x, y, min(step, width - x), min(step, height - y)


def read_block(slide: Slide, level: int, factor: int, window: tuple[int, int, int, int]) -> Iterator[Block]:
    """One window of `block_windows`; in parts where some of it cannot be decoded."""
    x, y, w, h = window
    cells = (slice(y // factor, -(-(y + h) // factor)), slice(x // factor, -(-(x + w) // factor)))
    try:
        pixels = slide.read(level, x, y, w, h)
    except RunError as failure:
        half = -(-max(w, h) // (2 * factor)) * factor
        size = slide.levels[level]
        least = LEAST_BLOCK_PX if max(size.width, size.height) > BLOCK_PX else LEAST_OF_SMALL_PX
        if half < max(least, factor) or half >= max(w, h):
            yield Block(*cells, None, failure)
            return
        for top in range(y, y + h, half):
            for left in range(x, x + w, half):
                part = (left, top, min(half, x + w - left), min(half, y + h - top))
                yield from read_block(slide, level, factor, part)
        return
    yield Block(*cells, pixels)


def cell_means(pixels: U8, factor: int) -> U8:
    """Means over cells of `factor` x `factor` px, rounded; an incomplete cell at the right or bottom is filled up with
    its last px repeated."""
    full = fill_cells(pixels, factor)
    if factor == 1:
        return full
    size = (full.shape[1] // factor, full.shape[0] // factor)
    return np.asarray(cv2.resize(full, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def fill_cells(pixels: U8, factor: int) -> U8:
    """`pixels` with its last row and column repeated up to whole cells."""
    h, w = pixels.shape[:2]
    below, right = -h % factor, -w % factor
    if not below and not right:
        return pixels
    return np.asarray(cv2.copyMakeBorder(pixels, 0, below, 0, right, cv2.BORDER_REPLICATE), dtype=np.uint8)
