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
FIELD_UM = 600.0  # side of the fields a scanner puts together: where a vignette repeats
STRIP_PX = 128  # rows developed at a time: they stay in a core's cache, which halves the time of a whole window
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

        density   (3, h + 2 m, w + 2 m) float32, m as of `margin_px`
        defocus   (h, w) float32 in [0, 1], or None where all is sharp
        """
        margin = self.margin_px(defocus)
        height, width = density.shape[1] - 2 * margin, density.shape[2] - 2 * margin
        sharp_px = self._reach(self._stain.softness_um)
        out = np.empty((height, width, 3), np.uint8)
        noises = [
            self._textures.cut(self._noise, seed_from(self._seed, "noise", channel, x, y), height, width)
            for channel in range(3)
        ]
        for top in range(0, height, STRIP_PX):
            rows = slice(top, min(top + STRIP_PX, height))
            blur = None if defocus is None or not defocus[rows].any() else defocus[rows]
            reach = sharp_px if blur is None else margin
            inset = margin - reach
            seen = density[:, rows.start + inset : rows.stop + 2 * margin - inset, inset : inset + width + 2 * reach]
            out[rows] = self._exposed(seen, x, y + top, reach, blur, [noise[rows] for noise in noises])
        return out

    def _exposed(
        self, density: F32, x: int, y: int, margin: int, defocus: F32 | None, noises: list[F32]
    ) -> NDArray[np.uint8]:
        """A strip of the picture, from the density of the strip and `margin` around it."""
        lamp = np.add.outer(self._lamp(y - margin, density.shape[1]), self._lamp(x - margin, density.shape[2]))
        shares = None if defocus is None else _shares(defocus, margin)
        inner = slice(margin, density.shape[1] - margin), slice(margin, density.shape[2] - margin)
        channels = []
        for plane, noise, white in zip(density, noises, self._stain.glass, strict=True):
            light = self._light(lamp, plane)
            picture = self._blurred(light, self._stain.softness_um)
            if shares is not None:
                picture = self._out_of_focus(picture, light, *shares)
            shown = cv2.add(picture[inner], noise)
            # Glass sets the white level. The absolute value is taken, but even ink stays far above the noise.
            channels.append(cv2.convertScaleAbs(shown, alpha=float(white), beta=self._stain.empty_grey or 0.0))
        return np.asarray(cv2.merge(channels), dtype=np.uint8)

    def _light(self, lamp: F32, plane: F32) -> F32:
        """What reaches the camera, in units of glass (of full brightness on a dark slide)."""
        if self._stain.empty_grey is None:
            return np.asarray(cv2.exp(cv2.subtract(lamp, plane)), dtype=np.float32)  # Beer and Lambert
        return np.asarray(cv2.exp(lamp) * -np.expm1(-plane), dtype=np.float32)

    def _lamp(self, start: int, length: int) -> F32:
        """Logarithm of the lamp's brightness along one axis, (length,) float32."""
        depth, *phases = self._stain.light
        turns = (start + np.arange(length)) * (2 * np.pi * self._mpp / LAMP_UM)
        wave = np.sin(turns + phases[0]) + 0.5 * np.sin(1.7 * turns + phases[1]) + 0.4 * np.sin(3.1 * turns + phases[2])
        fields = np.mod((start + np.arange(length)) * (self._mpp / FIELD_UM), 1) * 2 - 1
        return np.asarray(depth * wave - self._stain.vignette * fields**2, dtype=np.float32)

    def _blurred(self, light: F32, sigma_um: float) -> F32:
        side = 2 * self._reach(sigma_um) + 1
        return np.asarray(cv2.GaussianBlur(light, (side, side), sigma_um / self._mpp))

    def _out_of_focus(self, sharp: F32, light: F32, near: F32, far: F32) -> F32:
        """Between the sharp picture, half and full defocus. Light is blurred, not density: it is light that spreads."""
        half, full = (self._blurred(light, sigma) for sigma in BLUR_UM)
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
