"""Image and mask files, decoded: what a file dataset reads and a tile store has no need of.

Pixels are taken as they are stored: no EXIF orientation is applied, because annotation tools draw on stored pixels.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import UserError
from cytopipe.semi import IGNORE

cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # a broken file is named in our own words
U8 = NDArray[np.uint8]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
HALF = 127  # masks that were stored with loss have every value: above is foreground

_FIX = "give an 8-bit PNG, JPEG or TIFF"
_MASK_FIX = "give one channel: 0 background, n class n, 255 not to be learned"


def read_rgb(path: Path) -> U8:
    """(H, W, 3) uint8 RGB; grey is repeated, alpha dropped. Raises UserError for a file that is no 8-bit image."""
    pixels = _decoded(path)
    if pixels.dtype != np.uint8:
        raise UserError(f"holds {pixels.dtype} pixels, not bytes", where=str(path), fix=_FIX)
    if pixels.ndim == 2:
        return np.repeat(pixels[..., None], 3, axis=2)
    return np.ascontiguousarray(pixels[..., 2::-1])  # OpenCV has BGR and BGRA


def size_of(path: Path) -> tuple[int, int]:
    """(height, width) px as the header states it. Raises UserError for a file that is no image."""
    from PIL import Image  # 40 ms

    try:
        with Image.open(path) as image:
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"is no image that can be read ({error})", where=str(path), fix=_FIX) from error
    return height, width


def is_label_map(path: Path) -> bool:
    """Whether an annotation image has more than 8 bits a pixel: then it numbers objects, and is no mask of classes."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.mode.startswith("I")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"is no image that can be read ({error})", where=str(path), fix=_FIX) from error


def read_class_map(path: Path, classes: int) -> U8:
    """A mask as a class map (H, W) uint8: 0 background, 1..classes, 255 = not to be learned.

    Values up to `classes`, and 255 beside them, are taken as they are. With one class any other mask is foreground
    where it is not 0, or above 127 where it goes higher: masks are often stored as 0 and 255, or with loss [D].
    Raises UserError for a mask that is none, and for numbers of classes that nobody named.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            mode, pixels = image.mode, np.asarray(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"is no mask that can be read ({error})", where=str(path), fix=_MASK_FIX) from error
    if pixels.ndim == 3 and mode in ("RGB", "RGBA", "LA"):
        colours = pixels[..., : 1 if mode == "LA" else 3]
        if (colours != colours[..., :1]).any():
            raise UserError(f"is a colour picture ({mode}), no mask", where=str(path), fix=_MASK_FIX)
        pixels = colours[..., 0]
    if pixels.ndim != 2 or pixels.dtype.kind not in "bui":
        raise UserError(f"is no mask ({mode})", where=str(path), fix=_MASK_FIX)
    values = np.unique(pixels)
    named = values[(values > 0) & (values <= classes)]
    if len(values) and values[0] >= 0 and (((values <= classes) | (values == IGNORE)).all() and len(named)):
        return pixels.astype(np.uint8)
    if classes > 1 and values.any():
        raise UserError(
            f"holds the value {int(values[values > classes][0])}, and {classes} classes are named",
            where=str(path),
            fix=_MASK_FIX,
        )
    return (pixels > (HALF if pixels.max(initial=0) > HALF else 0)).astype(np.uint8)


def _decoded(path: Path) -> NDArray[np.generic]:
    try:
        data = np.frombuffer(path.read_bytes(), np.uint8)
        pixels = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if len(data) else None
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=str(path)) from error
    except cv2.error as error:
        raise UserError("is no image that can be decoded", where=str(path), fix=_FIX) from error
    if pixels is None:
        raise UserError("is no image that can be decoded", where=str(path), fix=_FIX)
    return pixels
