"""Outlines as COCO's run lengths: the pixels of `rasterise.py`, down the columns of the whole image.

Enters: polygons (N,), px of the image.  Leaves: for each the text of its counts and the number of its pixels. Work and
memory follow the outlines' boxes, not the image.

Source   maskApi.c of the COCO API: counts of background and object in turn; five bits a character, lowest first, each
         count from the fourth on as difference to the last but one.
Differs  MAX_PIXELS: the COCO API counts pixels in 32 bits, and reads counts of larger images wrongly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.formats.rasterise import Spans, spans

I64 = NDArray[np.int64]

MAX_PIXELS = 2**32 - 1  # of an image
BATCH_PX = 1 << 22  # [D] pixels of the boxes that are looked at together: some 100 MB of positions


@dataclass(frozen=True, slots=True)
class RunLengths:
    """One object: COCO's text of its counts, and its pixels."""

    counts: str
    pixels: int


def run_lengths(geometry: NDArray[np.object_], size: tuple[int, int]) -> Iterator[RunLengths]:
    """The run lengths of each polygon in an image of width, height px; what lies outside is cut off.

    Raises ValueError for an image of more than MAX_PIXELS.
    """
    width, height = size
    if width * height > MAX_PIXELS:
        raise ValueError(f"run_lengths: an image of {width} x {height} px")
    bounds = shapely.bounds(geometry)
    boxes = np.clip(
        np.concatenate([np.floor(bounds[:, :2]), np.ceil(bounds[:, 2:])], axis=1), 0, [width, height, width, height]
    ).astype(np.int64)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1] + 1)
    batch_of = np.cumsum(area) // BATCH_PX
    starts = np.flatnonzero(np.diff(batch_of, prepend=-1))
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(geometry)], strict=True):
        rows = slice(start, stop)
        yield from _encoded(_Runs.of(spans(geometry[rows], (0, 0, width, height)), boxes[rows], size), size)


@dataclass(frozen=True, slots=True, eq=False)
class _Runs:
    """Runs of pixels [start, stop) down the columns, each (R,), of object `owner`; `n` objects."""

    owner: I64
    start: I64
    stop: I64
    n: int

    @classmethod
    def of(cls, found: Spans, boxes: I64, size: tuple[int, int]) -> _Runs:
        """Spans of rows as runs of columns: the pixels of each object's box are laid out column by column, a column
        with one pixel of background before it.
        """
        x0, y0, x1, y1 = boxes.T
        tall = y1 - y0 + 1
        base = np.concatenate([[0], np.cumsum((x1 - x0) * tall)])
        inside = np.zeros(base[-1] + 1, np.int8)
        length = found.last - found.first
        whole = np.cumsum(length)
        for begin in range(0, int(whole[-1]) if len(whole) else 0, BATCH_PX):
            some = slice(*np.searchsorted(whole, [begin, begin + BATCH_PX], side="right").tolist())
            n, owner = length[some], found.owner[some]
            step = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
            first = base[owner] + (found.first[some] - x0[owner]) * tall[owner] + found.row[some] - y0[owner] + 1
            inside[np.repeat(first, n) + step * np.repeat(tall[owner], n)] = 1
        change = np.diff(inside, prepend=np.int8(0))
        starts, stops = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
        owner = np.searchsorted(base, starts, side="right") - 1
        column, row = np.divmod(starts - base[owner], np.maximum(tall[owner], 1))
        place = (column + x0[owner]) * size[1] + row - 1 + y0[owner]
        run = stops - starts
        follows = (place[1:] == place[:-1] + run[:-1]) & (owner[1:] == owner[:-1])  # over the end of a column
        keep_start, keep_stop = np.append(True, ~follows)[: len(place)], np.append(~follows, True)[: len(place)]
        return cls(owner[keep_start], place[keep_start], (place + run)[keep_stop], len(boxes))


def _encoded(runs: _Runs, size: tuple[int, int]) -> Iterator[RunLengths]:
    """The counts of each object as text."""
    counts, first = _counts(runs, size)
    delta = counts.copy()
    place = np.arange(len(counts)) - np.repeat(first[:-1], np.diff(first))
    late = np.flatnonzero(place > 2)
    delta[late] -= counts[late - 2]
    characters = np.zeros((len(delta), 8), np.uint8)  # 40 bits hold any difference of 33
    more = np.ones(len(delta), dtype=bool)
    for k in range(8):
        rest = delta >> 5
        low = delta & 31
        done = np.where(low & 16, rest == -1, rest == 0)
        characters[:, k] = np.where(more, low + np.where(done, 0, 32) + 48, 0)
        more &= ~done
        delta = rest
    text = memoryview(characters).cast("B")
    pixels = np.bincount(runs.owner, runs.stop - runs.start, minlength=runs.n).astype(np.int64).tolist()
    ends = (first * 8).tolist()
    for i in range(runs.n):
        yield RunLengths(bytes(text[ends[i] : ends[i + 1]]).translate(None, b"\0").decode("ascii"), pixels[i])


def _counts(runs: _Runs, size: tuple[int, int]) -> tuple[I64, I64]:
    """Background and object in turn to the end of the image, of all objects (K,); where each one's begin (N + 1,)."""
    total = size[0] * size[1]
    number = np.bincount(runs.owner, minlength=runs.n)
    last = np.cumsum(number)
    ends_full = np.zeros(runs.n, dtype=bool)
    some = number > 0
    ends_full[some] = runs.stop[last[some] - 1] == total
    first = np.concatenate([[0], np.cumsum(2 * number + ~ends_full)])
    counts = np.zeros(first[-1], np.int64)
    within = np.arange(len(runs.owner)) - np.repeat(last - number, number)
    place = np.repeat(first[:-1], number) + 2 * within
    before = np.zeros(len(runs.owner), np.int64)
    before[1:] = np.where(within[1:] > 0, runs.stop[:-1], 0)
    counts[place] = runs.start - before
    counts[place + 1] = runs.stop - runs.start
    left = np.full(runs.n, total)
    left[some] -= runs.stop[last[some] - 1]
    counts[(first[1:] - 1)[~ends_full]] = left[~ends_full]
    return counts, first
