"""Tile images as files: encoding and decoding, deterministic, thread-safe (the codecs release the GIL)."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import RunError
from cytopipe.tiles.config import Codec

SUFFIX: dict[Codec, str] = {"jpeg": ".jpg", "png": ".png"}

# [D] 4:4:4: chromatin and keratin differ in colour; halving the chroma of a JPEG slide a second time blurs just that
JPEG_SUBSAMPLING = "444"
# [D] zlib level 3 with the SUB filter: within a few per cent of level 9 on stained smears at a fraction of its time
PNG_LEVEL, PNG_FILTER_SUB = 3, 16

# means of six tiles of a stained slide at 0.5 µm/px: JPEG (quality 90) 0.20 to 0.50, PNG 0.76 to 1.79. Estimates only
BYTES_PER_PX: dict[Codec, float] = {"jpeg": 0.35, "png": 1.3}


def encode_image(rgb: NDArray[np.uint8], codec: Codec, quality: int) -> bytes:
    """uint8 (h, w, 3) RGB -> the bytes of a JPEG or PNG file. Same pixels give same bytes."""
    if codec == "jpeg":
        data = imagecodecs.jpeg8_encode(
            rgb, level=quality, colorspace="RGB", outcolorspace="YCBCR", subsampling=JPEG_SUBSAMPLING
        )
    else:
        data = imagecodecs.png_encode(rgb, level=PNG_LEVEL, filter=PNG_FILTER_SUB)
    return bytes(data)


def read_image(path: Path) -> NDArray[np.uint8]:
    """A tile image, uint8 (h, w, 3) RGB. Raises RunError when the file is missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"a tile image cannot be read ({error.strerror})",
            where=str(path),
            fix="cut the store again with --overwrite",
        ) from error
    decode = imagecodecs.png_decode if path.suffix == ".png" else imagecodecs.jpeg8_decode
    try:
        rgb: NDArray[np.uint8] = decode(data)
    except (imagecodecs.PngError, imagecodecs.Jpeg8Error, ValueError) as error:
        raise RunError(
            "a tile image is damaged", where=str(path), fix="cut the store again with --overwrite"
        ) from error
    return rgb
