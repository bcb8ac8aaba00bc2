"""One view of an image, drawn from a preset: geometry first, then colours. numpy and OpenCV, for the data room.

Enters: (h, w, 3) uint8 RGB.  Leaves: the same dtype, the affine map source -> view px, and the list of what was done.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.semi.geometry import F64, U8, Geometry, draw_geometry
from cytopipe.semi.presets import Erasing, ViewPreset

F32 = NDArray[np.float32]

GREY = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601, as OpenCV and torchvision have it
ERASING_ATTEMPTS = 10  # drawn rectangles that do not fit before an erasing is given up [C: torchvision's RandomErasing]


class DrawnView(NamedTuple):
    """A view of one image: image (h, w, 3) uint8, not to be written into (it may be part of the source), affine (2, 3)
    float64 source -> view px, the colour operations done, and its geometry.
    """

    image: U8
    affine: F64
    photometric: tuple[str, ...]
    geometry: Geometry


def apply_preset(
    image: U8,
    preset: ViewPreset,
    rng: np.random.Generator,
    geometry: Geometry | None = None,
    *,
    size: tuple[int, int] | None = None,
    beyond: tuple[int, int, int] = (255, 255, 255),
) -> DrawnView:
    """One view of `image` (h, w, 3) uint8 RGB.

    geometry  that of the image's other views: then only the view's own flip is drawn
    size      (height, width) of the view, centre on centre; None: that of the image, turned with it
    beyond    colour of what lies past the border of the image
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"apply_preset: expected (h, w, 3) uint8, got {image.shape} {image.dtype}")
    geometry = draw_geometry(preset, rng) if geometry is None else geometry
    if preset.own_hflip_p > 0 and rng.random() < preset.own_hflip_p:
        geometry = replace(geometry, own_hflip=not geometry.own_hflip)
    affine = geometry.affine(*image.shape[:2], size)
    view = geometry.warp(image, size or geometry.turned(*image.shape[:2]), beyond)
    view, done = _recoloured(view, preset, rng)
    return DrawnView(view, affine, done, geometry)


def _recoloured(image: U8, preset: ViewPreset, rng: np.random.Generator) -> tuple[U8, tuple[str, ...]]:
    """`image` in other colours; itself where the preset draws none, and never written into."""
    pixels: F32 | None = None  # made when the first operation asks for it: most of a weak view's time otherwise
    done = []
    if rng.random() < preset.jitter_p:
        for name in rng.permutation(["brightness", "contrast", "saturation", "hue"]):
            amount = float(rng.uniform(-1.0, 1.0)) * getattr(preset, name)
            if amount == 0.0:
                continue
            pixels = np.clip(_ADJUST[name](_floats(image, pixels), amount), 0.0, 255.0)
            done.append(f"{name} {amount:+.4f}")
    if rng.random() < preset.grey_p:
        pixels = np.repeat((_floats(image, pixels) @ GREY)[..., None], 3, axis=2)
        done.append("grey")
    if rng.random() < preset.blur_p:
        sigma_px = float(rng.uniform(*preset.blur_sigma_px))
        pixels = np.asarray(cv2.GaussianBlur(_floats(image, pixels), (0, 0), sigma_px), np.float32)
        done.append(f"blur {sigma_px:.4f} px")
    if pixels is not None:
        image = np.rint(pixels).astype(np.uint8)
    elif preset.erasings:
        image = image.copy()
    return image, (*done, *_erased(image, preset, rng))


def _floats(image: U8, pixels: F32 | None) -> F32:
    return image.astype(np.float32) if pixels is None else pixels


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


def _erased(view: U8, preset: ViewPreset, rng: np.random.Generator) -> list[str]:
    """Do the preset's erasings on `view`, in place: nothing else holds this array yet."""
    done: list[str] = []
    for erasing in preset.erasings:
        low, high = erasing.attempts
        attempts = low if low == high else int(rng.integers(low, high + 1))
        done.extend(_erase(view, erasing, preset, rng) for _ in range(attempts) if rng.random() < erasing.p)
    return done


def _erase(view: U8, erasing: Erasing, preset: ViewPreset, rng: np.random.Generator) -> str:
    height, width = view.shape[:2]
    for _ in range(ERASING_ATTEMPTS):
        area = float(rng.uniform(*erasing.area_fraction)) * height * width
        if erasing.aspect_scale == "linear":
            aspect = float(rng.uniform(*erasing.aspect))
        else:
            aspect = math.exp(float(rng.uniform(math.log(erasing.aspect[0]), math.log(erasing.aspect[1]))))
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < h <= height and 0 < w <= width:
            y0, x0 = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
            if preset.erase_fill == "mean":
                view[y0 : y0 + h, x0 : x0 + w] = np.rint(view.mean(axis=(0, 1)))
            else:
                view[y0 : y0 + h, x0 : x0 + w] = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
            return f"erase {x0} {y0} {x0 + w} {y0 + h}"
    return "erase nothing"
