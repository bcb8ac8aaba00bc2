"""The `image` reader: a PNG or JPEG file as a slide of one level. Decoded whole at the first read, so only for images
that fit into memory.

The size is read from the header at opening and limited before anything is decoded; orientation tags are not applied.
"""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin

from cytopipe.core.errors import RunError, UserError
from cytopipe.slides.opened import NotThisReader, OpenedSlide, in_place
from cytopipe.slides.resolution import Evidence, mpp_from_tags
from cytopipe.slides.slide import U8

MAX_PIXELS = 400_000_000
"""20,000 x 20,000 px, 1.2 GB decoded [D]; larger ones belong into a pyramid. Also the guard against decompression
bombs."""

SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}
READ_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
DECODE_ERRORS = (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, struct.error, EOFError)
"""What Pillow's PNG and JPEG plugins raise on damaged files; SyntaxError is their word for a broken structure."""


class ImageSlide(OpenedSlide):
    """A PNG or JPEG. Raises NotThisReader for other files, UserError for one that is too large or not of 8 bits."""

    reader = "image"

    def __init__(self, path: Path, mpp_override: float | None = None) -> None:
        kind = _kind_of(path)
        with _header(path, kind) as image:
            width, height = image.size
            mode = image.mode
            dpi = image.info.get("dpi")
            icc = image.info.get("icc_profile")
        if width * height > MAX_PIXELS:
            raise UserError(
                f"{width} x {height} px are too many for a {kind.upper()} file",
                where=path.name,
                fix="save it as a tiled pyramidal TIFF",
            )
        if mode not in READ_MODES:
            raise UserError(f"pixels of mode {mode}; only 8-bit colour or grey is read", where=path.name)
        tags = mpp_from_tags(float(dpi[0]), float(dpi[1]), 2) if isinstance(dpi, tuple) and len(dpi) == 2 else None
        super().__init__(
            path,
            vendor=kind,
            sizes=[(width, height)],
            evidence=Evidence(tags=tags),
            mpp_override=mpp_override,
            properties={"image.mode": mode},
            icc=icc if isinstance(icc, bytes) and icc else None,
        )
        self._decoded: U8 | None = None
        self._decode_lock = threading.Lock()

    def native_tiles(self, level: int) -> tuple[int, int] | None:
        """None: an image has no tiles."""
        return None

    def _pixels(self, level: int, x: int, y: int, w: int, h: int) -> U8:
        with self._decode_lock:
            if self._decoded is None:
                self._decoded = self._decode()
            decoded = self._decoded
        return decoded[y : y + h, x : x + w].copy()

    def _decode(self) -> U8:
        try:
            with _header(self.path, self.vendor) as image:
                has_alpha = "A" in image.mode or "transparency" in image.info
                return np.asarray(image.convert("RGBA" if has_alpha else "RGB"))
        except (*DECODE_ERRORS, NotThisReader) as error:
            raise RunError(f"image cannot be decoded ({error})", where=in_place(self.path, 0, 0, 0)) from error

    def _close(self) -> None:
        with self._decode_lock:
            self._decoded = None


def _kind_of(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(8)
    for signature, kind in SIGNATURES.items():
        if start.startswith(signature):
            return kind
    raise NotThisReader("neither PNG nor JPEG", where=path.name)


def _header(path: Path, kind: str) -> Image.Image:
    """The image with its header read. The plugin is called by name: `Image.open` would apply its own limit, as a
    warning first."""
    plugin = PngImagePlugin.PngImageFile if kind == "png" else JpegImagePlugin.JpegImageFile
    try:
        return plugin(path)
    except DECODE_ERRORS as error:
        raise NotThisReader(f"its header cannot be read ({error})", where=path.name) from error
