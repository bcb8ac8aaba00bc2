"""From absorption to a photograph: lamp, glass, optics, defocus, sensor.

Enters: the optical density of a window with a margin around it.  Leaves: uint8 RGB of the window.
All of it depends on the place on the slide, not on the window, except for the sensor's noise.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.core.seeds import seed_from
from cytopipe.synth.stain import F32, Stain
from cytopipe.synth.texture import Textures

BLUR_UM = (0.6, 1.5)  # point spread at half and at full defocus, standard deviations
LAMP_UM = 6000.0  # period of the lamp's unevenness
TRUNCATION = 3.0  # a Gaussian is cut at this many standard deviations

Disc = tuple[float, float, float, float]  # x, y, radius (slide px), strength in (0, 1]


class Camera:
    """The microscope of one slide; `seed` is the slide's."""

    def __init__(self, stain: Stain, textures: Textures, seed: int, mpp: float) -> None:
        self._stain, self._seed, self._mpp = stain, seed, mpp
        self._textures = textures
        self._noise = textures.noise * np.float32(stain.noise_std / stain.glass.mean())
        self.widest_px = self._reach(BLUR_UM[1])

    def margin_px(self, defocus: F32 | None) -> int:
        """How many pixels around a window its picture needs."""
        return self._reach(self._stain.softness_um) if defocus is None else self.widest_px

    def expose(self, density: F32, x: int, y: int, defocus: F32 | None) -> NDArray[np.uint8]:
        """The picture (h, w, 3) of the window at x, y (slide px).

        density   (3, h + 2 m, w + 2 m) float32, m as of `margin_px`; overwritten
        defocus   (h, w) float32 in [0, 1], or None where all is sharp
        """
        margin = self.margin_px(defocus)
        height, width = density.shape[1] - 2 * margin, density.shape[2] - 2 * margin
        lamp = np.add.outer(self._lamp(y - margin, density.shape[1]), self._lamp(x - margin, density.shape[2]))
        shares = None if defocus is None else _shares(defocus, margin)
        channels = []
        for channel, plane in enumerate(density):
            cv2.subtract(lamp, plane, plane)  # Beer and Lambert, with the lamp in the exponent
            cv2.exp(plane, plane)
            picture = self._blurred(plane, self._stain.softness_um)
            if shares is not None:
                picture = self._out_of_focus(picture, plane, *shares)
            place = seed_from(self._seed, "noise", channel, x, y)
            noise = self._textures.cut(self._noise, place, height, width)
            shown = cv2.add(picture[margin : margin + height, margin : margin + width], noise)
            # Glass sets the white level. The absolute value is taken, but even ink stays far above the noise.
            channels.append(cv2.convertScaleAbs(shown, alpha=float(self._stain.glass[channel])))
        return np.asarray(cv2.merge(channels), dtype=np.uint8)

    def _lamp(self, start: int, length: int) -> F32:
        """Logarithm of the lamp's brightness along one axis, (length,) float32."""
        depth, *phases = self._stain.light
        turns = (start + np.arange(length)) * (2 * np.pi * self._mpp / LAMP_UM)
        wave = np.sin(turns + phases[0]) + 0.5 * np.sin(1.7 * turns + phases[1]) + 0.4 * np.sin(3.1 * turns + phases[2])
        return np.asarray(depth * wave, dtype=np.float32)

    def _blurred(self, plane: F32, sigma_um: float) -> F32:
        side = 2 * self._reach(sigma_um) + 1
        return np.asarray(cv2.GaussianBlur(plane, (side, side), sigma_um / self._mpp))

    def _out_of_focus(self, sharp: F32, plane: F32, near: F32, far: F32) -> F32:
        """Between the sharp picture, half and full defocus. Light is blurred, not density: it is light that spreads."""
        half, full = (self._blurred(plane, sigma) for sigma in BLUR_UM)
        half -= sharp
        half *= near
        half += sharp
        full -= half
        full *= far
        full += half
        return full

    def _reach(self, sigma_um: float) -> int:
        return math.ceil(TRUNCATION * sigma_um / self._mpp)


def defocus_in(discs: list[Disc], x: int, y: int, width: int, height: int) -> F32 | None:
    """How far out of focus each pixel of a window is, 0 to 1, float32 (h, w); None where no disc touches it."""
    amount: F32 | None = None
    columns, rows = x + 0.5 + np.arange(width), y + 0.5 + np.arange(height)
    for centre_x, centre_y, radius, strength in discs:
        beside = np.clip(centre_x, x, x + width) - centre_x, np.clip(centre_y, y, y + height) - centre_y
        if np.hypot(*beside) >= radius:
            continue
        scale = 2 * strength / radius**2
        along = (scale * (columns - centre_x) ** 2).astype(np.float32)
        down = (2 * strength - scale * (rows - centre_y) ** 2).astype(np.float32)
        disc = np.clip(down[:, None] - along, 0, np.float32(strength))  # full strength within 0.7 of the radius
        amount = disc if amount is None else np.maximum(amount, disc)
    return amount


def _shares(defocus: F32, margin: int) -> tuple[F32, F32]:
    """How much of half defocus is in a pixel, and then how much of full defocus; margin included."""
    amount = cv2.copyMakeBorder(defocus, margin, margin, margin, margin, cv2.BORDER_REPLICATE) * 2
    return np.minimum(amount, np.float32(1)), np.maximum(amount - 1, np.float32(0))
