"""Tile images as bytes: encoding and decoding, deterministic, thread-safe (the codecs release the GIL)."""

from __future__ import annotations

from math import isqrt
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import RunError
from cytopipe.tiles.config import Codec

SUFFIX: dict[Codec, str] = {"jpeg": ".jpg", "png": ".png"}

# 4:4:4 from this quality on, 4:2:0 below, as libvips does ("auto"): who asks for fine quality keeps the colour of
# chromatin and keratin at full resolution, who asks for small files does not pay for it
FULL_CHROMA_QUALITY = 90
# [D] zlib level 3 with the SUB filter: within a few per cent of level 9 on stained smears at a fraction of its time
PNG_LEVEL, PNG_FILTER_SUB = 3, 16
# [D] on four stained images of about 1 Mpx: level 1 takes 0.47 to 0.71 byte a sample at 200 to 270 Mpx/s, level 3 the
# same size at half the speed; blosc (lz4, shuffled) twice the speed and 4% more; PNG a tenth less at 24 Mpx/s
ZSTD_LEVEL = 1

# means of six tiles of a stained slide at 0.5 µm/px: JPEG (quality 90) 0.20 to 0.50, PNG 0.76 to 1.79, zarr a tenth
# more than PNG. Estimates only
BYTES_PER_PX: dict[Codec, float] = {"jpeg": 0.35, "png": 1.3, "zarr": 1.5}

JPEG_END, JPEG_PADDING = b"\xff\xd9", 64  # no coded pixels hold this marker; [D] bytes that may follow

DAMAGED_FIX = "cut the store again with --overwrite"


def encode_image(rgb: NDArray[np.uint8], codec: Codec, quality: int) -> bytes:
    """uint8 (h, w, 3) RGB, square with codec zarr -> what the store keeps: a JPEG or PNG file, or a chunk of a zarr
    array (zstd). Same pixels give same bytes.
    """
    if codec == "jpeg":
        subsampling = "444" if quality >= FULL_CHROMA_QUALITY else "420"
        data = imagecodecs.jpeg8_encode(
            rgb, level=quality, colorspace="RGB", outcolorspace="YCBCR", subsampling=subsampling
        )
    elif codec == "png":
        data = imagecodecs.png_encode(rgb, level=PNG_LEVEL, filter=PNG_FILTER_SUB)
    else:
        samples = np.ascontiguousarray(rgb)
        data = imagecodecs.zstd_encode(samples, level=ZSTD_LEVEL)  # type: ignore[arg-type]  # it takes any buffer
    return bytes(data)


def decode_image(data: bytes, codec: Codec) -> NDArray[np.uint8]:
    """What `encode_image` gave, or a JPEG of a slide -> uint8 (h, w, 3) RGB. Raises RunError when it is damaged."""
    rgb: NDArray[np.uint8]
    try:
        if codec == "zarr":
            samples = np.frombuffer(imagecodecs.zstd_decode(data), np.uint8)
            side = isqrt(len(samples) // 3)
            # a copy: bytes are read only, and an image is the caller's own with every codec
            rgb = samples.reshape(side, side, 3).copy()
        elif codec == "png":
            rgb = imagecodecs.png_decode(data)
        else:
            # libjpeg paints what a truncated file lacks grey, and says nothing. Some slides pad their tiles
            if JPEG_END not in data[-JPEG_PADDING:]:
                raise ValueError("no end of the image")
            rgb = imagecodecs.jpeg8_decode(data)
    except (imagecodecs.PngError, imagecodecs.Jpeg8Error, imagecodecs.ZstdError, ValueError) as error:
        raise RunError("a tile image is damaged") from error
    return rgb


def read_image(path: Path) -> NDArray[np.uint8]:
    """A tile image in a file of its own, uint8 (h, w, 3) RGB. Raises RunError when it is missing or damaged."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RunError(f"a tile image cannot be read ({error.strerror})", where=str(path), fix=DAMAGED_FIX) from error
    try:
        return decode_image(data, "png" if path.suffix == SUFFIX["png"] else "jpeg")
    except RunError as error:
        raise RunError(error.what, where=str(path), fix=DAMAGED_FIX) from error
