"""One view of a tile, drawn from a preset: geometry first, then colours. numpy and OpenCV, for the data room.

Enters: (h, w, 3) uint8 RGB.  Leaves: the same dtype, the affine map source -> view px, and the list of what was done.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.semi.geometry import Geometry, draw_geometry
from cytopipe.semi.presets import Erasing, ViewPreset

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]

GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as OpenCV and torchvision have it
ERASING_ATTEMPTS = 10  # drawn rectangles that do not fit before an erasing is given up [C: torchvision's RandomErasing]


class DrawnView(NamedTuple):
    """A view of one tile: image (h, w, 3) uint8, affine (2, 3) float64 source -> view px, colour operations done."""

    image: U8
    affine: F64
    photometric: tuple[str, ...]


def apply_preset(
    image: U8, preset: ViewPreset, rng: np.random.Generator, geometry: Geometry | None = None
) -> DrawnView:
    """One view of `image` (h, w, 3) uint8 RGB.

    geometry  that of the image's other view: then nothing geometric is drawn
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"apply_preset: expected (h, w, 3) uint8, got {image.shape} {image.dtype}")
    geometry = draw_geometry(preset, rng) if geometry is None else geometry
    affine = geometry.affine(*image.shape[:2])
    view, done = _recoloured(geometry.apply(image), preset, rng)
    return DrawnView(view, affine, done)


def _recoloured(image: U8, preset: ViewPreset, rng: np.random.Generator) -> tuple[U8, tuple[str, ...]]:
    pixels, done = image.astype(np.float32), []
    if rng.random() < preset.jitter_p:
        for name in rng.permutation(["brightness", "contrast", "saturation", "hue"]):
            amount = float(rng.uniform(-1.0, 1.0)) * getattr(preset, name)
            pixels = np.clip(_ADJUST[name](pixels, amount), 0.0, 255.0)
            done.append(f"{name} {amount:+.4f}")
    if rng.random() < preset.grey_p:
        pixels = np.repeat((pixels @ GREY)[..., None], 3, axis=2)
        done.append("grey")
    if rng.random() < preset.blur_p:
        sigma_px = float(rng.uniform(*preset.blur_sigma_px))
        pixels = cv2.GaussianBlur(pixels, (0, 0), sigma_px)
        done.append(f"blur {sigma_px:.4f} px")
    view = np.rint(pixels).astype(np.uint8)
    erased = [_erase(view, erasing, rng) for erasing in preset.erasings if rng.random() < erasing.p]
    return view, (*done, *erased)


def _brightness(pixels: F32, amount: float) -> F32:
    return pixels * np.float32(1.0 + amount)


def _contrast(pixels: F32, amount: float) -> F32:
    mean = np.float32((pixels @ GREY).mean())
    return mean + (pixels - mean) * np.float32(1.0 + amount)


def _saturation(pixels: F32, amount: float) -> F32:
    grey = (pixels @ GREY)[..., None]
    return grey + (pixels - grey) * np.float32(1.0 + amount)


def _hue(pixels: F32, amount: float) -> F32:
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)  # float32: hue in degrees
    hsv[..., 0] = (hsv[..., 0] + np.float32(360.0 * amount)) % np.float32(360.0)
    return np.asarray(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), dtype=np.float32)


_ADJUST = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation, "hue": _hue}


def _erase(view: U8, erasing: Erasing, rng: np.random.Generator) -> str:
    """Fill one rectangle of `view` with uniform noise, in place: nothing else holds this array yet."""
    height, width = view.shape[:2]
    for _ in range(ERASING_ATTEMPTS):
        area = float(rng.uniform(*erasing.area_fraction)) * height * width
        aspect = math.exp(float(rng.uniform(math.log(erasing.aspect[0]), math.log(erasing.aspect[1]))))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h <= height and 0 < w <= width:
            y0, x0 = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            view[y0 : y0 + h, x0 : x0 + w] = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
            return f"erase {x0} {y0} {x0 + w} {y0 + h}"
    return "erase nothing"
