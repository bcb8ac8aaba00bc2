"""Random fields that give cells their grain: drawn once per slide, then cut from. A cell costs a copy, not a filter.

Enters: a seed, sizes in µm and the slide's mpp.  Leaves: periodic float32 fields of mean 0 and standard deviation 1.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

# one period; a field stands repeated once on each axis, so that any start within the period can be cut without wrapping
SIDE_PX = 1024
FINE_UM, MIDDLE_UM, COARSE_UM = (
    0.3,
    1.0,
    5.0,
)  # standard deviations of the smoothing: granules, chromatin clumps, thickness of a cell


class Textures:
    """The fields of one slide.

    fine, middle, coarse   mean 0 and standard deviation 1, periodic
    cytoplasm, chromatin   mixtures of them, so that a cell is one cut: thickness around 0.88, and a ripple around 0
    noise                  the camera's, as the first three
    """

    def __init__(self, rng: np.random.Generator, mpp: float) -> None:
        fine, middle, coarse = (_field(rng, sigma_um / mpp) for sigma_um in (FINE_UM, MIDDLE_UM, COARSE_UM))
        self.fine, self.middle, self.coarse = _doubled(fine), _doubled(middle), _doubled(coarse)
        self.cytoplasm = _doubled(np.float32(0.88) + _mixture((0.16, coarse), (0.07, middle), (0.075, fine)))
        self.chromatin = _doubled(_mixture((0.8, middle), (0.45, fine)))
        self.noise = _doubled(_field(rng, 0.45))  # px, not µm: the camera's, already softened by its colour filter

    @staticmethod
    def cut(field: F32, seed: int, height: int, width: int) -> F32:
        """A window (height, width) of a field at the place that `seed` names; periodic beyond SIDE_PX."""
        y, x = (seed & 0xFFFFF) % SIDE_PX, (seed >> 20) % SIDE_PX
        if y + height <= len(field) and x + width <= len(field):
            return field[y : y + height, x : x + width]
        rows, columns = (y + np.arange(height)) % SIDE_PX, (x + np.arange(width)) % SIDE_PX
        return np.asarray(field[np.ix_(rows, columns)])


def _mixture(*parts: tuple[float, F32]) -> F32:
    """Weighted sum; each field is shifted by a third of the period, so that coarse and fine do not go together."""
    shifted = [np.float32(weight) * np.roll(field, k * SIDE_PX // 3, (0, 1)) for k, (weight, field) in enumerate(parts)]
    return np.asarray(sum(shifted[1:], shifted[0]), dtype=np.float32)


def _field(rng: np.random.Generator, sigma_px: float) -> F32:
    """One period (SIDE_PX, SIDE_PX) of smoothed noise."""
    noise = rng.standard_normal((SIDE_PX, SIDE_PX), dtype=np.float32)
    margin = min(SIDE_PX, int(4 * sigma_px) + 2)
    wrapped = cv2.copyMakeBorder(noise, margin, margin, margin, margin, cv2.BORDER_WRAP)
    smooth = cv2.GaussianBlur(wrapped, (0, 0), max(sigma_px, 0.3))[margin:-margin, margin:-margin]
    return np.asarray((smooth - smooth.mean()) / smooth.std(), dtype=np.float32)


def _doubled(field: F32) -> F32:
    return np.asarray(cv2.repeat(field, 2, 2), dtype=np.float32)
