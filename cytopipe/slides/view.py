"""A slide at a target resolution, whichever levels its file has: `MppView`.

Frame `view`: px at the view's mpp; its origin is the slide's corner, and view px (i, j) shows slide px [i·s, (i+1)·s)
x [j·s, (j+1)·s) with s = `slide_px_per_px`. The grid is fixed to the slide, never to the window, and each view px is
always computed by the same call from the same level px. So the same place read through two windows has the same
pixels, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import UserError
from cytopipe.slides.focus import sharpness
from cytopipe.slides.open import require_resolution
from cytopipe.slides.slide import BACKGROUND_VALUE, U8, Slide

AS_IT_IS_FRACTION = 0.02
"""A level whose mpp differs from the target by no more is read as it is (DESIGN 3)."""
WARN_UPSAMPLING = 1.25
REFUSE_UPSAMPLING = 2.0
"""Upsampling above the first is warned about, above the second refused unless forced (DESIGN 3)."""

MAX_DENOMINATOR = 64
"""The ratio of level px to view px is taken as a fraction with at most this denominator [D]. It shifts the mpp by less
than 1 part in 4000, far below the calibration of a scanner, and makes the grid periodic: every `denominator` view px
begin on a whole level px again."""
BLOCK_PX = 64
"""Least side of the blocks in which a view is computed, view px [D]: small, since blocks that hang over a window are
computed for nothing."""
UPSAMPLED_BLOCK_PX = 256
"""The same where a view is finer than the level [D]: larger, since each block computes a halo of up to a period too."""
MAX_BAND_PX = 64_000_000
"""Level px that are held at once while means are taken [D]: 192 MB."""


class MppView:
    """A slide read at `mpp` µm/px, or at level 0 as it is for None.

    mpp              the true µm/px, which may differ from the asked one (within 2% where a level is read as it is);
                     None for level 0 of a slide without resolution
    slide_px_per_px  level-0 px per view px on x and y
    width, height    the slide's size in view px; the last px may hang over the border and shows the last data repeated
    level            the level that is read
    warning          a sentence if the slide is upsampled by more than a quarter

    On a slide opened with z="best" each window shows its sharpest plane, so the law above holds for each plane, and
    two windows may show their common area by different planes.

    Raises UserError: no resolution in the slide; a target that is no positive number; finest level coarser than the
    target by over 2x, unless `force`.
    """

    def __init__(self, slide: Slide, mpp: float | None, *, force: bool = False) -> None:
        self._slide = slide
        self._planes = [slide.at_z(z) for z in range(slide.z_count)] if slide.z == "best" else []
        self.warning: str | None = None
        if mpp is None:
            self.level, ratios = 0, (Fraction(1), Fraction(1))
        else:
            self.level, ratios, self.warning = _plan(slide, mpp, force)
        size = slide.levels[self.level]
        self._x = _Axis.over(size.width, ratios[0])
        self._y = _Axis.over(size.height, ratios[1])
        self.width, self.height = self._x.view_px, self._y.view_px
        self.slide_px_per_px = (float(ratios[0]) * size.downsample, float(ratios[1]) * size.downsample)
        self.mpp: float | None = None
        if slide.resolution is not None:
            scale_x, scale_y = self.slide_px_per_px
            self.mpp = (slide.resolution.mpp_x * scale_x + slide.resolution.mpp_y * scale_y) / 2

    def read(self, x: int, y: int, w: int, h: int) -> U8:
        """Pixels (h, w, 3) RGB of a window in view px; what lies outside the slide is background. Raises ValueError
        for a size below 1; RunError as `Slide.read`."""
        return self.read_with_z(x, y, w, h)[0]

    def read_with_z(self, x: int, y: int, w: int, h: int) -> tuple[U8, int | None]:
        """As `read`, with the plane that is shown; None where the slide is no stack.

        For z="best" it is the plane whose window is sharpest (`sharpness`), the lowest of equals.
        """
        if not self._planes:
            z = self._slide.z
            return self._read(self._slide, x, y, w, h), z if isinstance(z, int) and self._slide.z_count > 1 else None
        best, best_sharpness, best_z = None, -1.0, 0
        for z, plane in enumerate(self._planes):
            rgb = self._read(plane, x, y, w, h)
            found = sharpness(rgb)
            if best is None or found > best_sharpness:
                best, best_sharpness, best_z = rgb, found, z
        if best is None:
            raise ValueError("read_with_z: a stack without planes")
        return best, best_z

    def _read(self, slide: Slide, x: int, y: int, w: int, h: int) -> U8:
        if w <= 0 or h <= 0:
            raise ValueError(f"read: window of {w} x {h} px")
        x0, x1, y0, y1 = max(x, 0), min(x + w, self.width), max(y, 0), min(y + h, self.height)
        if (x0, y0, x1, y1) == (x, y, x + w, y + h):
            return self._read_inside(slide, x0, y0, x1, y1)
        out = np.full((h, w, 3), BACKGROUND_VALUE[self._slide.background], dtype=np.uint8)
        if x0 < x1 and y0 < y1:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._read_inside(slide, x0, y0, x1, y1)
        return out

    def announce(self, origins_px: Sequence[tuple[int, int]], w: int, h: int) -> None:
        """Say which windows of one size are going to be read, each once and in about this order, by their corners in
        view px: see `Slide.announce`."""
        x0, y0 = np.asarray(origins_px, dtype=np.int64).reshape(-1, 2).T
        sides = [self._x.needs(x0, x0 + w), self._y.needs(y0, y0 + h)]
        windows = np.stack([sides[0][0], sides[1][0], sides[0][1], sides[1][1]], axis=1)
        has_area = (windows[:, 2] > windows[:, 0]) & (windows[:, 3] > windows[:, 1])
        self._slide.announce(self.level, windows[has_area])

    def copied_tile(self, x: int, y: int, w: int, h: int) -> bytes | None:
        """The slide's own compressed tile that is this window, see `Slide.copied_tile`; None where the window is
        resampled, or padded."""
        is_inside = x >= 0 and y >= 0 and x + w <= self.width and y + h <= self.height
        if self._x.ratio != 1 or self._y.ratio != 1 or not is_inside:
            return None
        return self._slide.copied_tile(self.level, x, y, w, h)

    def _read_inside(self, slide: Slide, x0: int, y0: int, x1: int, y1: int) -> U8:
        if self._x.ratio == 1 and self._y.ratio == 1:
            return slide.read(self.level, x0, y0, x1 - x0, y1 - y0)
        if self._x.ratio.denominator == 1 and self._y.ratio.denominator == 1:
            return self._read_means(slide, x0, y0, x1, y1)
        return self._read_blocks(slide, x0, y0, x1, y1)

    def _read_means(self, slide: Slide, x0: int, y0: int, x1: int, y1: int) -> U8:
        """Whole ratios: each view px is the mean of its own level px, wherever the window begins. Goes by bands of
        bounded size."""
        rx, ry = self._x.ratio.numerator, self._y.ratio.numerator
        out = np.empty((y1 - y0, x1 - x0, 3), dtype=np.uint8)
        rows = max(1, MAX_BAND_PX // ((x1 - x0) * rx * ry))
        for top in range(y0, y1, rows):
            bottom = min(top + rows, y1)
            source = self._level_px(slide, x0 * rx, x1 * rx, top * ry, bottom * ry)
            out[top - y0 : bottom - y0] = cv2.resize(source, (x1 - x0, bottom - top), interpolation=cv2.INTER_AREA)
        return out

    def _read_blocks(self, slide: Slide, x0: int, y0: int, x1: int, y1: int) -> U8:
        """Other ratios: by the fixed blocks that the window meets, as many rows of them at a time as memory allows."""
        axis_x, axis_y = self._x, self._y
        columns, rows = axis_x.blocks(x0, x1), axis_y.blocks(y0, y1)
        out = np.empty((len(rows) * axis_y.block_px, len(columns) * axis_x.block_px, 3), dtype=np.uint8)
        span = axis_x.source(columns)
        at_once = max(1, MAX_BAND_PX // ((span[1] - span[0]) * axis_y.source_px))
        for first in range(0, len(rows), at_once):
            band = rows[first : first + at_once]
            source = self._level_px(slide, *span, *axis_y.source(band))
            for row, column in product(range(len(band)), range(len(columns))):
                part = source[row * axis_y.step_px :, column * axis_x.step_px :]
                target = out[(first + row) * axis_y.block_px :, column * axis_x.block_px :]
                block = self._resample(part[: axis_y.source_px, : axis_x.source_px])
                target[: axis_y.block_px, : axis_x.block_px] = block
        left, top = columns.start * axis_x.block_px, rows.start * axis_y.block_px
        return np.ascontiguousarray(out[y0 - top : y1 - top, x0 - left : x1 - left])

    def _level_px(self, slide: Slide, x0: int, x1: int, y0: int, y1: int) -> U8:
        """Level px [x0, x1) x [y0, y1); past the level's border its last row and column repeated."""
        size = slide.levels[self.level]
        ix0, ix1, iy0, iy1 = max(x0, 0), min(x1, size.width), max(y0, 0), min(y1, size.height)
        inside = slide.read(self.level, ix0, iy0, ix1 - ix0, iy1 - iy0)
        if (ix0, ix1, iy0, iy1) == (x0, x1, y0, y1):
            return inside
        padded = cv2.copyMakeBorder(inside, iy0 - y0, y1 - iy1, ix0 - x0, x1 - ix1, cv2.BORDER_REPLICATE)
        return np.asarray(padded, dtype=np.uint8)

    def _resample(self, block: U8) -> U8:
        """One block with its halo -> its view px. Always the same call on the same size, whatever the window."""
        is_smaller = self._x.ratio >= 1 and self._y.ratio >= 1
        method = cv2.INTER_AREA if is_smaller else cv2.INTER_LINEAR
        size = (self._x.block_px + 2 * self._x.halo_px, self._y.block_px + 2 * self._y.halo_px)
        view = cv2.resize(block, size, interpolation=method)
        halo_x, halo_y = self._x.halo_px, self._y.halo_px
        return np.asarray(view[halo_y : size[1] - halo_y, halo_x : size[0] - halo_x], dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class _Axis:
    """The fixed blocks along one axis; all lengths are whole numbers of px, since `ratio` (level px per view px) is a
    fraction.

    level_px   the level's length
    view_px    the same in view px
    block_px   view px of a block: a multiple of the ratio's period, so that every block begins on a whole level px
    step_px    level px from one block to the next
    halo_px    view px computed around a block and cut off again; halo_level_px the same in level px
    """

    ratio: Fraction
    level_px: int
    view_px: int
    block_px: int
    step_px: int
    halo_px: int
    halo_level_px: int

    @classmethod
    def over(cls, level_px: int, ratio: Fraction) -> _Axis:
        """The blocks over a level of `level_px`."""
        period = ratio.denominator
        block_px = period * math.ceil((BLOCK_PX if ratio >= 1 else UPSAMPLED_BLOCK_PX) / period)
        halo_px = period if ratio < 1 else 0  # linear interpolation looks at neighbours, a mean over an area does not
        step_px, halo_level_px = int(block_px * ratio), int(halo_px * ratio)
        return cls(ratio, level_px, math.ceil(level_px / ratio), block_px, step_px, halo_px, halo_level_px)

    @property
    def source_px(self) -> int:
        """Level px that a block needs with its halo."""
        return self.step_px + 2 * self.halo_level_px

    def needs(self, start: NDArray[np.int64], stop: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Level px [first, last) that view px [start, stop) are made from, cut to the level."""
        start, stop = start.clip(0, self.view_px), stop.clip(0, self.view_px)
        if self.ratio.denominator == 1:
            whole = self.ratio.numerator
            return start * whole, np.minimum(stop * whole, self.level_px)
        first, last = start // self.block_px, (stop - 1) // self.block_px + 1
        low = (first * self.step_px - self.halo_level_px).clip(0, self.level_px)
        return low, (last * self.step_px + self.halo_level_px).clip(0, self.level_px)

    def blocks(self, start: int, stop: int) -> range:
        """The blocks that meet view px [start, stop)."""
        return range(start // self.block_px, (stop - 1) // self.block_px + 1)

    def source(self, blocks: range) -> tuple[int, int]:
        """Level px [start, stop) that the blocks need with their halo; may reach past the level."""
        return blocks.start * self.step_px - self.halo_level_px, blocks.stop * self.step_px + self.halo_level_px


def _plan(slide: Slide, mpp: float, force: bool) -> tuple[int, tuple[Fraction, Fraction], str | None]:
    """The level to read, level px per view px on x and y, and a warning or None."""
    if not (math.isfinite(mpp) and mpp > 0):
        raise UserError(
            f"target resolution {mpp:g} µm/px", where=slide.path.name, fix="give a positive number, such as 0.5"
        )
    resolution = require_resolution(slide)
    sides = (resolution.mpp_x, resolution.mpp_y)
    off = [max(abs(side * level.downsample / mpp - 1) for side in sides) for level in slide.levels]
    nearest = min(range(len(off)), key=off.__getitem__)
    if off[nearest] <= AS_IT_IS_FRACTION:
        return nearest, (Fraction(1), Fraction(1)), None
    finer = [index for index, level in enumerate(slide.levels) if max(sides) * level.downsample <= mpp]
    index = max(finer, key=lambda i: slide.levels[i].downsample, default=0)
    ratio_x, ratio_y = (
        Fraction(mpp / (side * slide.levels[index].downsample)).limit_denominator(MAX_DENOMINATOR) for side in sides
    )
    return index, (ratio_x, ratio_y), _judge_upsampling(slide, resolution.mpp, mpp, force)


def _judge_upsampling(slide: Slide, finest: float, mpp: float, force: bool) -> str | None:
    factor = finest / mpp
    if factor > REFUSE_UPSAMPLING and not force:
        raise UserError(
            f"its finest level is {finest:.4g} µm/px, coarser than the {mpp:g} asked by over {REFUSE_UPSAMPLING:g}x",
            where=slide.path.name,
            fix="ask for a coarser --mpp, or --force",
        )
    if factor > WARN_UPSAMPLING:
        change = f"upsampled {factor:.2f}x, from {finest:.4g} to {mpp:g} µm/px"
        return f"{slide.path.name}: {change}; detail is missing that a model may expect"
    return None
