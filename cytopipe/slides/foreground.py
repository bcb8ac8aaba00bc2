"""Where on a slide there is something to look at: cytology, not histology, so scattered cells, and cytoplasm hardly
darker than glass.

A px of the mask is about 4 µm. It is foreground if it differs from the empty glass around it in any channel by more
than a floor (optical density in transmitted light, grey levels in fluorescence), or differs less but touches such a
px, or if it lies in a cell of 2 x 2 px with more texture than glass has: pale cytoplasm shows by its folds and
granules before it shows by its colour. When in doubt it keeps: a missed cell is lost for good, kept glass costs some
seconds. Glass is measured on each slide, block by block (`glass.py`); ink, edges and lines are taken out again
(`marks.py`).

Frame of the mask: `slide_px_per_px` level-0 px per mask px, its origin the slide's corner.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import RunError
from cytopipe.core.resources import cores
from cytopipe.slides.bands import in_bands
from cytopipe.slides.glass import FIELD_CELLS, TEXTURE_FLOOR, glass_field, glass_level, texture_limit
from cytopipe.slides.marks import find_marks, flat_areas
from cytopipe.slides.slide import U8, Background, Slide
from cytopipe.slides.thumbnail import block_windows, cell_means, fill_cells, read_block

F32 = NDArray[np.float32]

MASK_UM = 4.0
"""Side of a mask px [D]: half a nucleus."""
MASK_PX = 8
"""Side of a mask px in level-0 px where the resolution is unknown [D]."""
MAX_MASK_PX = 8192
"""Longest side of the mask [D]: coarser px on a slide longer than 33 mm."""
CELL = 2
"""Side of a cell, in mask px: what texture is measured in."""
BLOCK_PX = 1024
"""Side of the blocks that are read side by side, level px [D]: what one of them needs stays in a core's cache."""

LEAST_TOGETHER = 3
"""So many coloured px within 3 x 3 are a body, which grows by one px [D]."""
RIPPLES = np.ones((5, 5), np.uint8)
"""How far, in cells to each side, texture beside a body may come from it [D]: 16 µm, half a JPEG block at 4 µm/px."""
LEAST_DARKER_GREY = 3
"""On a light slide brightness must fall by so many grey levels as well [D]: JPEG halves the resolution of colour, so
that at 4 µm/px a cell's hue reaches 8 µm beyond it. All stains absorb where the eye sees."""
BAND_PX = 128
"""Rows of the mask that are compared with glass at a time [D], for the same reason."""
JOIN_PX, REACH_PX = 256, 16
"""Rows of the mask that are joined at a time, and how far beyond them what decides about them may lie [D]: two cells
for `RIPPLES`, two for the texture that closes, a px for what grows, and some to spare. Whole cells."""
LEVEL_CELLS = 250_000
"""The glass of a slide is judged from about so many cells [D]."""

OD_FLOOR = (0.015, 0.04)
"""Least and largest optical density that counts as darker than glass [D]; between them `NOISE_TIMES` the spread of
glass itself. Pale cytoplasm of superficial cells is 0.04 to 0.10 in its own colour."""
GREY_FLOOR = (3.0, 12.0)
"""The same for dark slides, in grey levels above empty space [D]."""
NOISE_TIMES = 4.0
FRINGE = 0.4
"""Beside a px over the floor, this part of the floor is enough [D]: the border of a cell fills a part of a px."""
LEAST_FRINGE_GREY = 2
"""... but at least so many grey levels [D]."""


@dataclass(frozen=True, slots=True)
class Foreground:
    """What is worth reading, and what empty slide looks like there.

    mask                 (h, w) bool, origin at the slide's corner
    slide_px_per_px      level-0 px per mask px on x and y
    background           as judged or given
    glass                grey level of empty slide per channel
    unreadable_fraction  share of the mask whose data cannot be decoded; it counts as foreground, so that whoever cuts
                         meets it
    """

    mask: NDArray[np.bool_]
    slide_px_per_px: tuple[float, float]
    background: Background
    glass: tuple[float, float, float] = (255.0, 255.0, 255.0)
    unreadable_fraction: float = 0.0

    @property
    def kept_fraction(self) -> float:
        """The share of the slide that is foreground; the rest is glass saved."""
        return float(self.mask.mean())

    def fraction(self, x0: float, y0: float, x1: float, y1: float) -> float:
        """The share of a rectangle (level-0 px) that is foreground, by area. What lies outside the slide is none.
        Raises ValueError without an area."""
        if not (x1 > x0 and y1 > y0):
            raise ValueError(f"fraction: rectangle {x0} {y0} {x1} {y1}")
        rows, weights_y = _overlaps(y0 / self.slide_px_per_px[1], y1 / self.slide_px_per_px[1], self.mask.shape[0])
        columns, weights_x = _overlaps(x0 / self.slide_px_per_px[0], x1 / self.slide_px_per_px[0], self.mask.shape[1])
        covered = weights_y @ self.mask[rows, columns].astype(np.float64) @ weights_x
        area = (x1 - x0) * (y1 - y0) / (self.slide_px_per_px[0] * self.slide_px_per_px[1])
        return min(1.0, float(covered) / area)

    def fractions(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """`fraction` of many rectangles (N, 4), x0 y0 x1 y1 in level-0 px, at once: (N,), the same to float64.

        The mask is summed once for all of them (4 bytes a mask px while it runs). Raises ValueError where a rectangle
        has no area.
        """
        corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        x0, y0, x1, y1 = corners.T
        has_area = (x1 > x0) & (y1 > y0)
        if not has_area.all():
            raise ValueError("fraction: rectangle {} {} {} {}".format(*corners[int(np.argmin(has_area))]))
        scale_x, scale_y = self.slide_px_per_px
        sums = cv2.integral(self.mask.view(np.uint8), sdepth=cv2.CV_32S)
        covered = np.zeros(len(corners))
        for top, bottom, height in _pieces(y0 / scale_y, y1 / scale_y, self.mask.shape[0]):
            for left, right, width in _pieces(x0 / scale_x, x1 / scale_x, self.mask.shape[1]):
                inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
                covered += inside * (height * width)
        area = (x1 - x0) * (y1 - y0) / (scale_x * scale_y)
        return np.asarray(np.minimum(covered / area, 1.0))


def find_foreground(slide: Slide, background: Literal["auto", "light", "dark"] = "auto") -> Foreground:
    """The foreground of a whole slide; `auto` takes the slide's own background. An empty mask is a result: callers
    decide what it means.

    Reads one level, at about 4 µm/px where there is one, in blocks; memory is that of the mask and a block. Data that
    cannot be decoded count as foreground and are reported; RunError if that is all there is.
    """
    kind: Background = slide.background if background == "auto" else background
    level, factor = _mask_px_of(slide)
    scale = factor * slide.levels[level].downsample
    seen = _measure(slide, level, factor)
    empty = _glass_level(seen, kind)
    flat = flat_areas(seen.cells, seen.texture, seen.is_read, empty)
    is_smooth = seen.is_read & (seen.texture <= 2 * TEXTURE_FLOOR)
    if flat.any():
        is_smooth &= cv2.dilate(flat.view(np.uint8), np.ones((5, 5), np.uint8)) == 0
    field = glass_field(seen.cells, is_smooth, empty, kind)
    strong, weak = _differs(seen, field, empty, kind)
    limit = texture_limit(seen.texture[seen.is_read & ~_any_in_cell(strong)])
    textured = seen.texture > limit
    is_clear = np.ones_like(textured)
    if kind == "light":
        glass = _field_at(field, slice(0, len(seen.cells)), seen.cells.shape[1], FIELD_CELLS)
        cell_um = None if slide.resolution is None else CELL * scale * slide.resolution.mpp
        is_clear = ~find_marks(seen.cells, seen.texture, seen.is_read, flat, glass, limit, cell_um=cell_um)
    mask = _mask(strong, weak, textured, is_clear, seen.is_read)
    height, width = (-(-side // factor) for side in (slide.levels[level].height, slide.levels[level].width))
    unreadable = float(np.mean(~seen.is_read))
    grey = (float(empty[0]), float(empty[1]), float(empty[2]))
    return Foreground(np.ascontiguousarray(mask[:height, :width]), (scale, scale), kind, grey, unreadable)


@dataclass(frozen=True, slots=True)
class _Seen:
    """A slide as foreground sees it, filled up to whole cells.

    px        (2 h, 2 w, 3) mean colour of each mask px
    cells     (h, w, 3) mean colour of each cell of 2 x 2 of them
    texture   (h, w) standard deviation of grey in each cell
    is_read   (h, w) whether it could be decoded
    """

    px: U8
    cells: U8
    texture: F32
    is_read: NDArray[np.bool_]


def _mask_px_of(slide: Slide) -> tuple[int, int]:
    """The level to read, and the side of a mask px in its px: the coarsest level that is not coarser than the mask."""
    mask_px = MASK_UM / slide.resolution.mpp if slide.resolution is not None else float(MASK_PX)
    mask_px = max(1.0, mask_px, max(slide.dimensions) / MAX_MASK_PX)
    # A level that is coarser by a hair (4.02 µm/px) is that level, not the one four times as large.
    level = max((i for i, size in enumerate(slide.levels) if size.downsample <= 1.1 * mask_px), default=0)
    return level, max(1, round(mask_px / slide.levels[level].downsample))


def _measure(slide: Slide, level: int, factor: int) -> _Seen:
    """Raises RunError where nothing can be read."""
    size, side = slide.levels[level], CELL * factor
    h, w = -(-size.height // side), -(-size.width // side)
    px, cells = np.zeros((CELL * h, CELL * w, 3), np.uint8), np.zeros((h, w, 3), np.uint8)
    texture, is_read = np.zeros((h, w), np.float32), np.zeros((h, w), np.bool_)
    failures: list[RunError] = []

    def take(window: tuple[int, int, int, int]) -> None:
        for block in read_block(slide, level, side, window):
            if block.pixels is None:
                if block.failure is not None:
                    failures.append(block.failure)
                continue
            place = (block.rows, block.columns)
            full = fill_cells(block.pixels, side)
            rows, columns = (slice(CELL * part.start, CELL * part.stop) for part in place)
            means = cell_means(full, factor)
            px[rows, columns], cells[place] = means, cell_means(means, CELL)
            texture[place], is_read[place] = _texture(full, side), True

    with ThreadPoolExecutor(cores()) as pool:  # each writes into a place of its own
        for _ in pool.map(take, block_windows(slide, level, side, BLOCK_PX)):
            pass
    if failures and not is_read.any():
        raise failures[0]
    return _Seen(px, cells, texture, is_read)


def _texture(pixels: U8, side: int) -> F32:
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    cells = (grey.shape[1] // side, grey.shape[0] // side)
    mean, of_squares = (cv2.resize(values, cells, interpolation=cv2.INTER_AREA) for values in (grey, grey * grey))
    return np.asarray(np.sqrt(np.maximum(of_squares - mean * mean, 0)), dtype=np.float32)


def _glass_level(seen: _Seen, kind: Background) -> NDArray[np.float64]:
    """`glass_level` of what was read; of one cell in four and more where there are many."""
    thin = 1 + int((seen.texture.size / LEVEL_CELLS) ** 0.5)
    some = slice(None, None, thin)
    if not seen.is_read[some, some].any():
        some = slice(None)
    is_read = seen.is_read[some, some]
    return glass_level(seen.cells[some, some][is_read], seen.texture[some, some][is_read], kind)


def _differs(
    seen: _Seen, field: U8, empty: NDArray[np.float64], kind: Background
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Mask px whose colour is not that of empty slide, in any channel: beyond the floor, and beyond the fringe's."""
    per_block = CELL * FIELD_CELLS
    thin = 4  # noise is measured on one px in sixteen
    few = np.ascontiguousarray(seen.px[::thin, ::thin])
    glass = _field_at(field, slice(0, len(few)), few.shape[1], per_block // thin)
    steps = _steps(few.reshape(-1, 3), glass.reshape(-1, 3), empty, kind)
    shape = seen.px.shape[:2]
    strong, weak = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)

    def compare(rows: slice) -> None:
        there = _field_at(field, rows, shape[1], per_block)
        beyond = cv2.subtract(there, seen.px[rows]) if kind == "light" else cv2.subtract(seen.px[rows], there)
        red, green, blue = cv2.split(cv2.LUT(beyond, steps))
        highest = cv2.max(cv2.max(red, green), blue)
        if kind == "light":
            highest[_darker(there, seen.px[rows]) < LEAST_DARKER_GREY] = 0
        strong[rows], weak[rows] = highest == 2, highest >= 1

    in_bands(shape[0], BAND_PX, compare)
    return strong, weak


def _darker(glass: U8, px: U8) -> U8:
    """How much less bright px are than glass, in grey levels."""
    bright, seen = cv2.cvtColor(glass, cv2.COLOR_RGB2GRAY), cv2.cvtColor(px, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.subtract(bright, seen), dtype=np.uint8)


def _steps(few: U8, glass: U8, empty: NDArray[np.float64], kind: Background) -> U8:
    """What a difference of so many grey levels (1, 256, 3) means: 0 glass, 1 the fringe of something, 2 something.

    few, glass   (n, 3) some px and their glass. On the side of glass where no cell can be, two thirds of them are
                 nearer than one standard deviation: `NOISE_TIMES` that is the floor
    """
    steps = np.zeros((256, 3), np.uint8)
    for channel in range(3):
        away = few[:, channel].astype(np.int16) - glass[:, channel]
        away = away[away >= 0] if kind == "light" else -away[away <= 0]
        counts = np.cumsum(np.bincount(away, minlength=256))
        spread = float(np.searchsorted(counts, 0.68 * counts[-1])) if counts[-1] else 0.0
        if kind == "light":
            level = float(empty[channel]) + 1
            low, high = (level * (1 - 10.0**-density) for density in OD_FLOOR)
        else:
            low, high = GREY_FLOOR
        floor = min(max(NOISE_TIMES * spread, low), high)
        steps[int(np.ceil(max(LEAST_FRINGE_GREY, FRINGE * floor))) :, channel] = 1
        steps[int(np.ceil(floor)) :, channel] = 2
    return steps[None]


def _field_at(field: U8, rows: slice, width: int, per_block: int) -> U8:
    """Rows of the glass field in px of which `per_block` make a block, bilinear between the middles of blocks."""
    first, last = rows.start // per_block, -(-rows.stop // per_block)
    ringed = cv2.copyMakeBorder(field, 1, 1, 1, 1, cv2.BORDER_REPLICATE)[first : last + 2]
    size = (ringed.shape[1] * per_block, ringed.shape[0] * per_block)
    fine = cv2.resize(ringed, size, interpolation=cv2.INTER_LINEAR)
    top = per_block + rows.start - first * per_block
    return np.ascontiguousarray(fine[top : top + rows.stop - rows.start, per_block : per_block + width])


def _mask(
    strong: NDArray[np.bool_],
    weak: NDArray[np.bool_],
    textured: NDArray[np.bool_],
    is_clear: NDArray[np.bool_],
    is_read: NDArray[np.bool_],
) -> NDArray[np.bool_]:
    """The mask from px (strong, weak) and cells: without what is marked, and with what could not be read."""
    mask = np.empty_like(strong)
    height = len(strong)

    def join(rows: slice) -> None:
        around = slice(max(0, rows.start - REACH_PX), min(height, rows.stop + REACH_PX))
        cells = slice(around.start // CELL, around.stop // CELL)
        clear = _spread(is_clear[cells])
        joined = _joined(strong[around] & clear, weak[around] & clear, textured[cells] & is_clear[cells])
        joined |= _spread(~is_read[cells])
        mask[rows] = joined[rows.start - around.start : rows.stop - around.start]

    in_bands(height, JOIN_PX, join)
    return mask


def _joined(strong: NDArray[np.bool_], weak: NDArray[np.bool_], textured: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The mask, from px by colour and cells by texture.

    One px to each side of a coloured body is kept unseen: a border that fills an eighth of a px shows in none; single
    px are granules, or the ripples that JPEG leaves around a body, and do not grow. Texture counts by itself, holes
    included, but not so near to a body that it may be those ripples.
    """
    beside, around = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), np.ones((3, 3), np.uint8)
    bodies = cv2.morphologyEx(strong.view(np.uint8), cv2.MORPH_OPEN, np.ones((CELL, CELL), np.uint8))
    neighbours = cv2.boxFilter(strong.view(np.uint8), -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    growing = (strong & (neighbours >= LEAST_TOGETHER)).view(np.uint8)
    near = cv2.dilate(growing, around).view(np.bool_)
    by_colour = cv2.dilate(_any_in_cell(bodies.view(np.bool_)).view(np.uint8), RIPPLES).view(np.bool_)
    alone = cv2.morphologyEx((textured & ~by_colour).view(np.uint8), cv2.MORPH_CLOSE, around).view(np.bool_)
    return np.asarray(strong | cv2.dilate(growing, beside).view(np.bool_) | (weak & near) | _spread(alone))


def _any_in_cell(px: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(px[::2, ::2] | px[1::2, ::2] | px[::2, 1::2] | px[1::2, 1::2])


def _spread(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells as mask px."""
    return np.asarray(cells.repeat(CELL, axis=0).repeat(CELL, axis=1))


def _overlaps(start: float, stop: float, count: int) -> tuple[slice, NDArray[np.float64]]:
    """Mask px that [start, stop) meets, and how much of each."""
    first, last = min(max(int(np.floor(start)), 0), count), min(max(int(np.ceil(stop)), 0), count)
    edges = np.arange(first, last + 1, dtype=np.float64)
    return slice(first, last), np.clip(np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start), 0, None)


def _pieces(
    start: NDArray[np.float64], stop: NDArray[np.float64], count: int
) -> list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]]:
    """[start, stop) as a first mask px, whole ones and a last one: from, up to, and how much of each counts.

    Whole numbers of foreground px times weights: what holds none comes out as 0, not as a rounding error."""
    start, stop = np.clip(start, 0, count), np.clip(stop, 0, count)
    first, last = np.floor(start).astype(np.intp), np.floor(stop).astype(np.intp)
    after = np.minimum(first + 1, count)
    is_apart = last > first
    one = np.ones_like(start)
    return [
        (first, after, np.where(is_apart, after - start, stop - start)),
        (after, np.maximum(last, after), one),
        (last, np.minimum(last + 1, count), np.where(is_apart, stop - last, 0.0)),
    ]
