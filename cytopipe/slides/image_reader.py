"""The `image` reader: a PNG or JPEG file as a slide of one level. Decoded whole at the first read, so only for images
that fit into memory.

The size is read from the header at opening and limited before anything is decoded; orientation tags are not applied.
"""

from __future__ import annotations

import io
import struct
import threading
from pathlib import Path

import numpy as np
from PIL import Image, JpegImagePlugin, PngImagePlugin

from cytopipe.core.errors import RunError, UserError
from cytopipe.slides.jpeg_damage import check_end, check_scan
from cytopipe.slides.opened import NotThisReader, OpenedSlide, in_place
from cytopipe.slides.resolution import Evidence, mpp_from_tags
from cytopipe.slides.showing import AS_STORED, Showing
from cytopipe.slides.slide import U8

MAX_DECODED_BYTES = 640 * 1024 * 1024
"""12,950 x 12,950 px [D]: what is held while the slide is open, so that reading it stays under 1 GiB; larger pictures
belong into a pyramid. Also the guard against decompression bombs."""
HELD_BYTES = 4
"""Pillow holds a px of any colour mode in so many bytes."""
PROGRESSIVE_BYTES = 6
"""More for a px of a progressive JPEG: libjpeg keeps all coefficients, two bytes each, until the last scan."""

LAST_ROWS_PX = 16
"""Two rows of blocks: with halved chroma, one row of units."""

SIGNATURES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}
READ_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
DECODE_ERRORS = (OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, struct.error, EOFError)
"""What Pillow's PNG and JPEG plugins raise on damaged files; SyntaxError is their word for a broken structure."""


class ImageSlide(OpenedSlide):
    """A PNG or JPEG. Raises NotThisReader for other files, UserError for one that is too large or not of 8 bits."""

    reader = "image"

    def __init__(self, path: Path, mpp_override: float | None = None, showing: Showing = AS_STORED) -> None:
        kind = _kind_of(path)
        with _header(path, kind) as image:
            width, height = image.size
            mode = image.mode
            dpi = image.info.get("dpi")
            icc = image.info.get("icc_profile")
            is_progressive = "progressive" in image.info
        px_bytes = HELD_BYTES + (PROGRESSIVE_BYTES if is_progressive else 0)
        if width * height * px_bytes > MAX_DECODED_BYTES:
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
            showing=showing,
        )
        self._decoded: Image.Image | None = None
        self._decode_lock = threading.Lock()

    def native_tiles(self, level: int) -> tuple[int, int] | None:
        """None: an image has no tiles."""
        return None

    def _pixels(self, level: int, x: int, y: int, w: int, h: int) -> U8:
        with self._decode_lock:  # Pillow's own memory is cut from: a whole copy of it as an array would be as large
            if self._decoded is None:
                self._decoded = self._decode()
            window = self._decoded.crop((x, y, x + w, y + h))
        has_alpha = "A" in window.mode or "transparency" in window.info
        return np.asarray(window.convert("RGBA" if has_alpha else "RGB"))

    def _decode(self) -> Image.Image:
        try:
            if self.vendor == "jpeg" and self.path.stat().st_size <= MAX_DECODED_BYTES // 4:
                return _whole_jpeg(self.path)
            with _header(self.path, self.vendor) as image:
                image.load()
        except (*DECODE_ERRORS, NotThisReader) as error:
            raise RunError(f"image cannot be decoded ({error})", where=in_place(self.path, 0, 0, 0)) from error
        return image

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


def _whole_jpeg(path: Path) -> Image.Image:
    """A JPEG file decoded, with the damage seen that Pillow passes over (`jpeg_damage`). Raises DECODE_ERRORS."""
    data = path.read_bytes()
    scan = check_scan(data)
    whole = _loaded(data)
    rows = _last_rows(whole)
    image: Image.Image | None = whole
    del whole

    def last_rows_of(changed: bytes) -> U8:
        nonlocal image
        image = None  # two of them would be too much memory
        return _last_rows(_loaded(changed))

    if scan is not None:
        check_end(scan, data, rows, last_rows_of)
    return _loaded(data) if image is None else image


def _loaded(data: bytes) -> Image.Image:
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    image.load()
    return image


def _last_rows(image: Image.Image) -> U8:
    """The rows of the last blocks (h, w, channels): where a picture whose data end early is made up in any case."""
    rows = np.asarray(image.crop((0, max(0, image.height - LAST_ROWS_PX), image.width, image.height)))
    return rows if rows.ndim == 3 else rows[..., None]
