"""What empty slide looks like: one level for the whole slide, and how it wanders over it.

Enters: mean colours of cells of about 8 µm, and how much texture each has.  Leaves: grey levels of glass (of empty
space on a dark slide), per channel: for the slide, and for each block of `FIELD_CELLS` cells. Lamps are uneven, fields
of view are darker at their border, cameras differ; all by more than pale cytoplasm differs from glass.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.slides.bands import in_bands
from cytopipe.slides.slide import U8, Background

F32 = NDArray[np.float32]

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
"""A brightest peak below is no glass [D] unless it is smooth: the field is covered by cells, and all is foreground."""
DIMMEST_SMOOTH_GLASS = 80
"""Glass in bad light [D]: a peak this bright where ..."""
SMOOTH_FRACTION = 0.6
"""... this share of its cells have no texture beyond `2 * TEXTURE_FLOOR` [D]; of a field of cells few have none."""

FIELD_CELLS = 16
"""Side of a block for which glass is measured by itself, cells [D]: 128 µm, more than a cell of the smear and a fifth
of a scanner's field of view."""
FIELD_OD = 0.2
"""Glass of a block is at most this much darker than the slide's [D]: the corner of a field may lose a third of its
light."""
FIELD_BRIGHTER_OD = 0.03
"""... and at most this much brighter [D]: flat white that was never scanned is 0.03 and more beyond most glass."""
FIELD_GREY = 12.0
"""The same for dark slides, grey levels above empty space [D]."""
FIELD_CAST_OD = 0.012
"""A lamp dims all channels alike, to about this much; what is darker in one of them is film or cytoplasm [D]."""
OD_STEP = 0.002
"""Optical density is looked up in whole steps of this size: half a grey level near white."""
BAND_BLOCKS = 8
"""Rows of blocks that are looked at together [D]: their cells stay in a core's cache."""
FIELD_LEAST = 8
"""So many smooth cells of a block must agree before they are believed [D], of 256."""


def glass_level(means: U8, texture: F32, kind: Background) -> NDArray[np.float64]:
    """The grey level of empty slide per channel (3,), from cells (n, 3), (n,); 255 where there is no glass at all.

    It is the brightest peak of their histogram that is high enough on a light slide, the darkest on a dark one. Flat
    white (black) is space that was never scanned, and left out, if the rest of the slide shows glass of its own;
    otherwise it is glass that saturates the camera.
    """
    grey = cv2.cvtColor(means[None], cv2.COLOR_RGB2GRAY)[0]
    is_scanned = (grey != (255 if kind == "light" else 0)) | (texture > 0)
    if is_scanned.any() and not is_scanned.all():
        peak = _outer_peak(grey[is_scanned], kind)
        is_glass = is_scanned & _around(grey, peak) & (texture <= TEXTURE_FLOOR)
        if is_glass.sum() >= OWN_GLASS_FRACTION * is_scanned.sum():
            means, grey, texture = means[is_scanned], grey[is_scanned], texture[is_scanned]
    peak = _outer_peak(grey, kind)
    around = _around(grey, peak)
    if kind == "light" and peak < DIMMEST_GLASS:
        smooth = float(np.mean(texture[around] <= 2 * TEXTURE_FLOOR))
        if peak < DIMMEST_SMOOTH_GLASS or smooth < SMOOTH_FRACTION:
            return np.full(3, 255.0)
    return np.array([_median(means[around, channel]) for channel in range(3)])


def texture_limit(texture_of_glass: F32) -> float:
    """The standard deviation above which a cell has texture, from that of cells that have the colour of glass."""
    if not texture_of_glass.size:
        return TEXTURE_FLOOR
    steps = np.bincount((texture_of_glass * 16).astype(np.int32))  # a quantile to 1/16 grey level, without sorting
    quartile = int(np.searchsorted(np.cumsum(steps), 0.25 * texture_of_glass.size)) / 16
    return max(TEXTURE_FLOOR, TEXTURE_TIMES * quartile)


def glass_field(means: U8, is_smooth: NDArray[np.bool_], level: NDArray[np.float64], kind: Background) -> U8:
    """The grey level of empty slide per block and channel (h / FIELD_CELLS, w / FIELD_CELLS, 3), rounded up.

    means      (h, w, 3) of cells
    is_smooth  (h, w), whether a cell was read and has no texture
    level      that of the whole slide, which stands where nothing of a block or its neighbours can be glass

    A block's glass is its brightest (darkest) smooth cells, if they differ from the slide's as light differs from
    light.
    """
    side = FIELD_CELLS
    below, right = -means.shape[0] % side, -means.shape[1] % side
    means = np.asarray(cv2.copyMakeBorder(means, 0, below, 0, right, cv2.BORDER_REPLICATE), dtype=np.uint8)
    can_be_glass = np.zeros(means.shape[:2], np.bool_)
    can_be_glass[: is_smooth.shape[0], : is_smooth.shape[1]] = is_smooth
    shape = (means.shape[0] // side, means.shape[1] // side)
    weight, sums = np.empty(shape, np.float32), np.empty((*shape, 3), np.float32)

    def sum_up(rows: slice) -> None:
        cells = slice(rows.start * side, rows.stop * side)
        weight[rows], sums[rows] = _brightest(means[cells], can_be_glass[cells], level, kind)

    in_bands(shape[0], BAND_BLOCKS, sum_up)
    is_known = weight * side * side >= FIELD_LEAST
    own = np.where(is_known[..., None], sums / np.maximum(weight, 1e-6)[..., None], 0).astype(np.float32)
    return _filled(own, is_known.astype(np.float32), level)


def _brightest(
    means: U8, can_be_glass: NDArray[np.bool_], level: NDArray[np.float64], kind: Background
) -> tuple[F32, F32]:
    """Of whole rows of blocks: the share of each that its brightest (darkest) glass takes (b, n), and the mean over the
    block of colours there, 0 elsewhere (b, n, 3)."""
    side = FIELD_CELLS
    grey = cv2.cvtColor(means, cv2.COLOR_RGB2GRAY)
    if kind == "dark":
        grey = 255 - grey
    grey = np.where(can_be_glass & _like_glass(means, level, kind), grey, 0).astype(np.uint8)
    shape = (grey.shape[0] // side, grey.shape[1] // side)
    blocks = grey.reshape(shape[0], side, shape[1], side).swapaxes(1, 2).reshape(*shape, -1)
    ranked = np.sort(blocks, axis=2)
    count = (ranked > 0).sum(axis=2)
    tenth = np.minimum(side * side - 1 - count // 10, side * side - 1)  # not the brightest itself: noise
    top = np.take_along_axis(ranked, tenth[..., None], axis=2)[..., 0].astype(np.int16)
    lowest = np.clip(top - PEAK_SPREAD, 1, 255).astype(np.uint8)
    chosen = (grey >= np.kron(lowest, np.ones((side, side), np.uint8))).astype(np.float32)
    size = shape[::-1]
    weight = cv2.resize(chosen, size, interpolation=cv2.INTER_AREA)
    glass_only = cv2.copyTo(means, chosen.astype(np.uint8), np.zeros_like(means))
    sums = cv2.resize(glass_only.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(weight, np.float32).reshape(shape), np.asarray(sums, np.float32).reshape(*shape, 3)


def _like_glass(means: U8, level: NDArray[np.float64], kind: Background) -> NDArray[np.bool_]:
    """Cells that differ from the slide's glass by no more than light does, and by the same in all channels."""
    if kind == "dark":
        low, high = np.clip(level - FIELD_GREY, 0, 255), np.clip(level + FIELD_GREY, 0, 255)
        return np.asarray(cv2.inRange(means, low, high) > 0)
    density = cv2.LUT(means, np.stack([_densities(value) for value in level.tolist()], axis=1)[None])
    red, green, blue = cv2.split(density)
    least, largest = cv2.min(cv2.min(red, green), blue), cv2.max(cv2.max(red, green), blue)
    cast = (2 * FIELD_CAST_OD + 0.1 * (np.arange(256) * OD_STEP - 0.1)) / OD_STEP  # of each largest density
    is_neutral = cv2.subtract(largest, least) <= cv2.LUT(largest, np.floor(cast).astype(np.uint8))
    brightest, darkest = (0.1 - FIELD_BRIGHTER_OD) / OD_STEP, (0.1 + FIELD_OD) / OD_STEP
    return np.asarray((largest <= darkest) & (least >= brightest) & is_neutral)


def _densities(level: float) -> U8:
    """Optical density of each grey level (256,), from that of glass, in steps of `OD_STEP` above -0.1."""
    density = np.log10((level + 1) / (np.arange(256) + 1.0))
    return np.asarray(np.clip(np.round((density + 0.1) / OD_STEP), 0, 255), dtype=np.uint8)


def _filled(own: F32, weight: F32, level: NDArray[np.float64]) -> U8:
    """Blocks smoothed over their neighbours; those without glass of their own take it from a wider and wider ring."""
    field = np.zeros_like(own)
    missing = np.ones(weight.shape, np.bool_)
    for sigma in (0.6, 2.0, 6.0):
        side = 2 * int(np.ceil(2 * sigma)) + 1
        near = cv2.GaussianBlur(weight, (side, side), sigma, borderType=cv2.BORDER_CONSTANT)
        blurred = cv2.GaussianBlur(own, (side, side), sigma, borderType=cv2.BORDER_CONSTANT).reshape(own.shape)
        fresh = missing & (near > 1e-3)
        field[fresh] = blurred[fresh] / near[fresh][:, None]
        missing &= ~fresh
    field[missing] = level
    return np.asarray(np.clip(np.round(field), 0, 255), dtype=np.uint8)


def _around(grey: U8, peak: int) -> NDArray[np.bool_]:
    return np.asarray((grey >= max(0, peak - PEAK_SPREAD)) & (grey <= min(255, peak + PEAK_SPREAD)))


def _median(values: U8) -> float:
    """Of grey levels, by counting: a slide has a million cells."""
    counts = np.cumsum(np.bincount(values, minlength=256))
    return float(np.searchsorted(counts, (counts[-1] + 1) // 2))


def _outer_peak(grey: U8, kind: Background) -> int:
    """The brightest (light slide) or darkest (dark slide) grey level that is a peak of the histogram."""
    counts = np.bincount(grey, minlength=256).astype(np.float32)
    smooth = cv2.GaussianBlur(counts[None], (0, 0), PEAK_SIGMA, borderType=cv2.BORDER_CONSTANT)[0]
    ringed = np.concatenate([[-1.0], smooth, [-1.0]])
    is_peak = (smooth >= ringed[:-2]) & (smooth >= ringed[2:]) & (smooth >= PEAK_FRACTION * smooth.max())
    peaks = np.flatnonzero(is_peak)
    return int(peaks.max() if kind == "light" else peaks.min())
