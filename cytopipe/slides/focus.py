"""How sharp a window is, and how much of it is empty glass: two numbers of its pixels, nothing of its slide.

Enters: RGB (h, w, 3) uint8.  Leaves: a float. Both are recorded with each tile; whoever drops blurred tiles sets the
limit.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cytopipe.slides.slide import U8

GLASS_OD = 0.03
"""A pixel is glass when no channel is darker than the glass level by more than this optical density [D]: 7% less
light."""
BAND_ROWS, EVERY_ROWS = 4, 32
"""Both numbers are taken on bands of 4 rows in every 32 [D]: means over 10^5 pixels are as good as over 10^6, at a
fifth of the time, and no cell (15 µm, 30 px at 0.5 µm/px) falls between two bands."""
WHOLE_BELOW_ROWS = 256
"""Lower pictures are measured whole [D]: there is little to save, and little to sample."""


def sharpness(rgb: U8) -> float:
    """Variance of the Laplacian of the grey picture, in squared grey levels; 0 for a constant one. It falls with blur
    and rises with contrast.

    Taken on bands of rows, see `BAND_ROWS`. Comparable between windows of one size, slide and mpp only. Source:
    Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000 (LAPV); 3 x 3 kernel 0 1 0, 1 -4 1,
    0 1 0.
    """
    return _sharpness(*_bands(rgb))


def glass_fraction(rgb: U8, glass: Sequence[float]) -> float:
    """The share of pixels that are as bright as glass in all channels; `glass` is the slide's level per channel
    (`Foreground.glass`). Taken on bands of rows, see `BAND_ROWS`."""
    return _glass_fraction(_bands(rgb)[0], glass)


def sharpness_and_glass(rgb: U8, glass: Sequence[float]) -> tuple[float, float]:
    """`sharpness` and `glass_fraction`, at less than the price of both."""
    rows, bands = _bands(rgb)
    return _sharpness(rows, bands), _glass_fraction(rows, glass)


def _bands(rgb: U8) -> tuple[U8, int]:
    """The bands below each other, each with a row more above and below, and how many; a low picture is one band."""
    height, width = rgb.shape[:2]
    if height < WHOLE_BELOW_ROWS:
        return rgb, 1
    bands = height // EVERY_ROWS  # what is left at the bottom is less than a gap
    first = (EVERY_ROWS - BAND_ROWS) // 2 - 1
    groups = rgb[: bands * EVERY_ROWS].reshape(bands, EVERY_ROWS, width, 3)
    return np.ascontiguousarray(groups[:, first : first + BAND_ROWS + 2]).reshape(-1, width, 3), bands


def _sharpness(rows: U8, bands: int) -> float:
    edges = cv2.Laplacian(cv2.cvtColor(rows, cv2.COLOR_RGB2GRAY), cv2.CV_16S)  # exact: at most 4 x 255 in size
    if bands > 1:  # the outer rows of a band saw the rows of another one
        edges = np.ascontiguousarray(edges.reshape(bands, -1, edges.shape[1])[:, 1:-1]).reshape(-1, edges.shape[1])
    mean = float(cv2.sumElems(edges)[0]) / edges.size
    return max(0.0, float(cv2.norm(edges, cv2.NORM_L2SQR)) / edges.size - mean * mean)


def _glass_fraction(rows: U8, glass: Sequence[float]) -> float:
    limits = tuple(int(np.ceil((level + 1.0) * 10.0**-GLASS_OD - 1.0)) for level in glass)
    is_glass = cv2.inRange(rows, limits, (255, 255, 255))
    return float(cv2.countNonZero(is_glass)) / is_glass.size
