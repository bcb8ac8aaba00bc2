"""Where on a slide there is something to look at: cytology, not histology, so scattered cells, and cytoplasm hardly
darker than glass.

The slide is divided into cells of about 8 µm. One is foreground if it differs from empty glass in any channel by more
than a floor (optical density in transmitted light, grey levels in fluorescence), or if the picture inside it has more
texture than glass has: pale cytoplasm shows by its folds and granules before it shows by its colour. A cell's
neighbours are kept as well. When in doubt it keeps: a missed cell is lost for good, kept glass costs some seconds.
Glass is measured on each slide: lamps and cameras differ by more than pale cytoplasm does.

Frame of the mask: `slide_px_per_px` level-0 px per mask px, its origin the slide's corner.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import RunError
from cytopipe.slides.slide import U8, Background, Slide
from cytopipe.slides.thumbnail import blocks, cell_means, fill_cells

F32 = NDArray[np.float32]

CELL_UM = 8.0
"""Side of a mask px [D]: about a nucleus. A lone nucleus at a corner of four still darkens each of them by a quarter
of its density, over the floor."""
CELL_PX = 16
"""Side of a mask px in level-0 px where the resolution is unknown [D]."""
MAX_MASK_PX = 8192
"""Longest side of the mask [D]: coarser cells on a slide longer than 65 mm."""

OD_FLOOR = (0.015, 0.04)
"""Least and largest optical density that counts as darker than glass [D]; between them `NOISE_TIMES` the spread of
glass itself. Pale cytoplasm of superficial cells is 0.04 to 0.10 in its own colour."""
GREY_FLOOR = (3.0, 12.0)
"""The same for dark slides, in grey levels above empty space [D]."""
NOISE_TIMES = 4.0
TEXTURE_FLOOR = 1.5
"""Least standard deviation inside a cell that counts as texture, grey levels [D]; JPEG and camera give empty glass 0.3
to 1.2."""
TEXTURE_TIMES = 2.5
"""... and at least so many times the lower quartile of the texture of what has the colour of glass [D]."""

PEAK_FRACTION = 0.05
"""A peak of the histogram counts as glass if it is at least this part of the highest one [D]: a field crowded with
cells still shows some glass."""
PEAK_SIGMA = 1.5
"""Grey levels by which the histogram is smoothed before peaks are looked for [D]: JPEG leaves gaps and spikes in it."""
PEAK_SPREAD = 6
"""Grey levels around a peak that belong to it [D]."""
OWN_GLASS_FRACTION = 0.2
"""Flat white is left out where at least this share of the rest is smooth glass of another level [D]. Either mistake
keeps more, not less."""
DIMMEST_GLASS = 140
"""A brightest peak below is no glass [D]: the field is covered by cells, and all of it is foreground."""


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


def find_foreground(slide: Slide, background: Literal["auto", "light", "dark"] = "auto") -> Foreground:
    """The foreground of a whole slide; `auto` takes the slide's own background. An empty mask is a result: callers
    decide what it means.

    Reads one level, at about 4 µm/px where there is one, in blocks; memory is that of the mask and a block. Data that
    cannot be decoded count as foreground and are reported; RunError if that is all there is.
    """
    kind: Background = slide.background if background == "auto" else background
    level, factor = _cells_of(slide)
    means, texture, is_read = _measure(slide, level, factor)
    empty = _empty_level(means[is_read], texture[is_read], kind)
    mask = _differs(means, empty, kind, is_read)
    mask |= texture > _texture_limit(texture[is_read & ~mask])
    mask |= ~is_read
    mask = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(np.bool_)
    scale = factor * slide.levels[level].downsample
    glass = (float(empty[0]), float(empty[1]), float(empty[2]))
    return Foreground(mask, (scale, scale), kind, glass, float(np.mean(~is_read)))


def _cells_of(slide: Slide) -> tuple[int, int]:
    """The level to read and the side of a cell in its px: at least 2 where the slide has the resolution, so that
    texture can be seen."""
    cell_px = CELL_UM / slide.resolution.mpp if slide.resolution is not None else float(CELL_PX)
    cell_px = max(1.0, cell_px, max(slide.dimensions) / MAX_MASK_PX)
    level = max((i for i, size in enumerate(slide.levels) if size.downsample * 2 <= cell_px), default=0)
    return level, max(1, round(cell_px / slide.levels[level].downsample))


def _measure(slide: Slide, level: int, factor: int) -> tuple[U8, F32, NDArray[np.bool_]]:
    """Mean colour (h, w, 3) of each cell; the standard deviation (h, w) of grey in it, or between neighbours where it
    is one px; whether it was read.

    Raises RunError where nothing can be read.
    """
    size = slide.levels[level]
    shape = (-(-size.height // factor), -(-size.width // factor))
    means, texture, is_read = np.zeros((*shape, 3), np.uint8), np.zeros(shape, np.float32), np.zeros(shape, np.bool_)
    failure: RunError | None = None
    for block in blocks(slide, level, factor):
        if block.pixels is None:
            failure = block.failure
            continue
        place = (block.rows, block.columns)
        means[place], is_read[place] = cell_means(block.pixels, factor), True
        grey = cv2.cvtColor(fill_cells(block.pixels, factor), cv2.COLOR_RGB2GRAY).astype(np.float32)
        texture[place] = _texture(grey, factor)
    if failure is not None and not is_read.any():
        raise failure
    return means, texture, is_read


def _texture(grey: NDArray[np.float32], factor: int) -> F32:
    if factor == 1:
        mean, of_squares = (cv2.blur(values, (3, 3)) for values in (grey, grey * grey))
    else:
        cells = (grey.shape[1] // factor, grey.shape[0] // factor)
        mean, of_squares = (cv2.resize(values, cells, interpolation=cv2.INTER_AREA) for values in (grey, grey * grey))
    return np.asarray(np.sqrt(np.maximum(of_squares - mean * mean, 0)), dtype=np.float32)


def _empty_level(means: U8, texture: F32, kind: Background) -> NDArray[np.float64]:
    """The grey level of empty slide per channel (3,), from the cells (n, 3), (n,) that were read.

    It is the brightest peak of their histogram that is high enough on a light slide, the darkest on a dark one. Flat
    white (black) is space that was never scanned, and left out, if the rest of the slide shows glass of its own;
    otherwise it is glass that saturates the camera.
    """
    grey = cv2.cvtColor(means[None], cv2.COLOR_RGB2GRAY)[0]
    is_scanned = (grey != (255 if kind == "light" else 0)) | (texture > 0)
    if is_scanned.any():
        peak = _outer_peak(grey[is_scanned], kind)
        is_glass = is_scanned & (np.abs(grey.astype(np.int16) - peak) <= PEAK_SPREAD) & (texture <= TEXTURE_FLOOR)
        if is_glass.sum() >= OWN_GLASS_FRACTION * is_scanned.sum():
            means, grey = means[is_scanned], grey[is_scanned]
    peak = _outer_peak(grey, kind)
    if kind == "light" and peak < DIMMEST_GLASS:
        return np.full(3, 255.0)
    around = np.abs(grey.astype(np.int16) - peak) <= PEAK_SPREAD
    return np.asarray(np.median(means[around], axis=0), dtype=np.float64)


def _outer_peak(grey: U8, kind: Background) -> int:
    """The brightest (light slide) or darkest (dark slide) grey level that is a peak of the histogram."""
    counts = np.bincount(grey, minlength=256).astype(np.float32)
    smooth = cv2.GaussianBlur(counts[None], (0, 0), PEAK_SIGMA, borderType=cv2.BORDER_CONSTANT)[0]
    ringed = np.concatenate([[-1.0], smooth, [-1.0]])
    is_peak = (smooth >= ringed[:-2]) & (smooth >= ringed[2:]) & (smooth >= PEAK_FRACTION * smooth.max())
    peaks = np.flatnonzero(is_peak)
    return int(peaks.max() if kind == "light" else peaks.min())


def _differs(means: U8, empty: NDArray[np.float64], kind: Background, is_read: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Cells whose colour is not that of empty slide, in any channel."""
    values, level = means.astype(np.float32), empty.astype(np.float32)
    beyond = values - level if kind == "dark" else np.log10((level + 1) / (values + 1))
    bounds = GREY_FLOOR if kind == "dark" else OD_FLOOR
    floors = np.array([_floor(beyond[is_read, c], bounds) for c in range(3)], dtype=np.float32)
    return np.asarray((beyond > floors).any(axis=2))


def _floor(beyond: F32, bounds: tuple[float, float]) -> float:
    """`NOISE_TIMES` the spread of empty slide, from the side where no cell is (`beyond` <= 0), within bounds."""
    emptier = beyond[(beyond <= 0) & (beyond > -2 * bounds[1])]
    spread = float(np.sqrt(np.mean(emptier * emptier))) if emptier.size else 0.0
    return min(max(NOISE_TIMES * spread, bounds[0]), bounds[1])


def _texture_limit(texture_of_glass: F32) -> float:
    if not texture_of_glass.size:
        return TEXTURE_FLOOR
    return max(TEXTURE_FLOOR, TEXTURE_TIMES * float(np.quantile(texture_of_glass, 0.25)))


def _overlaps(start: float, stop: float, count: int) -> tuple[slice, NDArray[np.float64]]:
    """Mask px that [start, stop) meets, and how much of each."""
    first, last = min(max(int(np.floor(start)), 0), count), min(max(int(np.ceil(stop)), 0), count)
    edges = np.arange(first, last + 1, dtype=np.float64)
    return slice(first, last), np.clip(np.minimum(edges[1:], stop) - np.maximum(edges[:-1], start), 0, None)
