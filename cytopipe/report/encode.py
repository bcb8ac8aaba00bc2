"""Values as they stand in a page: escaped text, numbers for people, images as data URIs.

Enters: Python values and uint8 RGB arrays.  Leaves: strings that are safe inside HTML.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

U8 = NDArray[np.uint8]


def escaped(value: object) -> str:
    """Text for HTML content and for quoted attributes alike."""
    return html.escape(str(value), quote=True)


def swatch(colour: str) -> str:
    """A small square of a CSS colour."""
    return f'<i style="background:{escaped(colour)}"></i>'


def number(value: float, digits: int = 3) -> str:
    """A number for people: thin spaces between thousands, `digits` significant ones below; '–' if it is not finite."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1000 or float(value).is_integer():
        return f"{value:,.0f}".replace(",", "\u2009")
    text = f"{value:.{digits}g}"
    return f"{float(text):f}".rstrip("0").rstrip(".") if "e" in text and abs(value) >= 1e-4 else text


def plain(value: object) -> str:
    """A fact as text, not yet escaped: numbers by `number`, lists with commas, mappings as 'key value'."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return number(float(value), 4)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(plain(item) for item in value)
    return str(value)


def jpeg_uri(image: U8, quality: int = 85) -> str:
    """An RGB image (h, w, 3) as a data URI; JPEG."""
    ok, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError(f"jpeg_uri: an image of shape {image.shape} cannot be encoded")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode()


def jpeg_within(image: U8, size_bytes: int) -> tuple[str, float]:
    """An RGB image (h, w, 3) as a data URI of a JPEG of at most `size_bytes`, and its scale: 1 unless it was shrunk.

    Quality goes first, pixels last: a shrunk picture is no longer what the slide shows.
    """
    scale = 1.0
    while True:
        for quality in (90, 80, 70, 60, 50, 40):
            uri = jpeg_uri(image, quality)
            if (len(uri) - uri.index(",") - 1) * 3 // 4 <= size_bytes or max(image.shape[:2]) <= 8:
                return uri, scale
        before = max(image.shape[:2])
        image = fit(image, before // 2)
        scale *= max(image.shape[:2]) / before


PNG_COMPRESSION = 4
"""[D] 0.03 s for a density layer of 512 x 512 px; 9 takes 0.66 s, and the page is 1% smaller."""


def png_uri(image: U8) -> str:
    """An RGBA image (h, w, 4) as a data URI; PNG."""
    bgra = cv2.cvtColor(image, cv2.COLOR_RGBA2BGRA)
    ok, data = cv2.imencode(".png", bgra, [cv2.IMWRITE_PNG_COMPRESSION, PNG_COMPRESSION])
    if not ok:
        raise ValueError(f"png_uri: an image of shape {image.shape} cannot be encoded")
    return "data:image/png;base64," + base64.b64encode(data.tobytes()).decode()


def fit(image: U8, max_px: int) -> U8:
    """The image, shrunk until its longer side is at most `max_px`; never enlarged."""
    h, w = image.shape[:2]
    scale = max_px / max(h, w)
    if scale >= 1:
        return image
    size = (max(1, round(w * scale)), max(1, round(h * scale)))
    while image.shape[1] % 2 == image.shape[0] % 2 == 0 and image.shape[1] >= 2 * size[0]:
        # a half is a tenth of the work of a broken factor, for the same mean
        image = np.asarray(cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
