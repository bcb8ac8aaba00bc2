"""Label images, in: each pixel holds the number of its object, 0 is background.

Enters: a PNG (1, 8, 16 bit, palettes by their index) or TIFF (8, 16, 32 bit) of one channel.  Leaves: an object a
label, its outline along the pixel edges, holes kept; rasterised again it gives the same pixels. An object of several
pieces is one multipolygon. Its id is its label.

A TIFF is read by its strips or tiles, so that memory follows the outlines; a PNG is decoded whole, up to MAX_PNG_PX.
Refused: colour, floats, negative labels, several pages of one size, more than MAX_LABELS labels (a mask of something
else).
"""

from __future__ import annotations

import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import UserError
from cytopipe.formats.drawn import Drawn, Page
from cytopipe.formats.pixel_outlines import PixelOutlines

MAX_PNG_PX = 1 << 28  # 16,384 px square, 1 GB as 32 bit; a larger label image is a TIFF, which is read in bands
MAX_LABELS = 5_000_000  # [D] no slide has more cells outlined; a height map or a noise image has
MAX_SEGMENT_PX = 1 << 28  # of one strip or tile of a TIFF: a header may claim anything

_BAND_ROWS = 256  # of a PNG that is traced at a time
_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N")
_FIX = "give one channel of whole numbers, 0 for background and n for object n"


def label_page(path: Path) -> Page:
    """The objects of a label image. Raises UserError for any other image."""
    with path.open("rb") as file:
        is_png = file.read(4) == b"\x89PNG"
    size, bands = _png(path) if is_png else _tiff(path)
    outlines = PixelOutlines(size[0])
    for band in bands:
        if band.dtype.kind == "i" and band.size and int(band.min()) < 0:
            raise UserError("holds negative labels", where=str(path), fix=_FIX)
        outlines.add(band)
        if outlines.edges > 4 * MAX_LABELS + band.size // 2:  # a label has at least a top and a bottom edge
            raise UserError("changes from pixel to pixel like a picture", where=str(path), fix=_FIX)
    found = outlines.polygons()
    return Page([Drawn(str(label), polygons=polygons) for label, polygons in found.items()], path.stem, size)


def _png(path: Path) -> tuple[tuple[int, int], Iterator[NDArray[Any]]]:
    from PIL import Image  # 40 ms, and only this format needs it

    where = str(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit stands below
            image = Image.open(path, formats=("PNG",))
        with image:
            width, height = image.size
            if width * height > MAX_PNG_PX:
                raise UserError(f"is a PNG of {width} x {height} px", where=where, fix="give it as a tiled TIFF")
            if image.mode not in _MODES:
                raise UserError(f"is a colour picture ({image.mode}), no label image", where=where, fix=_FIX)
            pixels = np.asarray(image).astype(np.int64 if image.mode == "I" else np.uint16, copy=False)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"cannot be decoded ({error})", where=where) from error
    return (width, height), (pixels[y : y + _BAND_ROWS] for y in range(0, height, _BAND_ROWS))


def _tiff(path: Path) -> tuple[tuple[int, int], Iterator[NDArray[Any]]]:
    import tifffile  # 150 ms, and only this format needs it

    where = str(path)
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            others = [p for p in file.pages[1:8] if p.shape == page.shape]
    except (tifffile.TiffFileError, *_DAMAGED) as error:
        raise UserError(f"its structure cannot be read ({error})", where=where) from error
    if others:
        raise UserError("is a TIFF of several pages", where=where, fix="give the page with the labels alone")
    if len(page.shape) != 2 or page.dtype is None or page.dtype.kind not in "iub":
        what = f"{page.dtype} of shape {page.shape}"
        raise UserError(f"is no label image ({what})", where=where, fix=_FIX)
    height, width = page.shape
    if not (type(width) is int and type(height) is int and width > 0 and height > 0):  # damaged tags are of any type
        raise UserError(f"claims {width} x {height} px", where=where, fix=_FIX)
    rows, columns = _segment(page)
    if not (rows > 0 and columns > 0 and rows * max(width, columns) <= MAX_SEGMENT_PX):
        raise UserError(f"stores {columns} x {rows} px in one piece", where=where, fix="give a tiled TIFF")
    needed = -(-height // rows) * -(-width // columns)
    if len(page.dataoffsets) != needed:
        what = f"claims {width} x {height} px in {needed} pieces and holds {len(page.dataoffsets)}"
        raise UserError(f"is damaged ({what})", where=where)
    return (width, height), _tiff_bands(path, height, width, rows)


def _segment(page: Any) -> tuple[int, int]:
    """Rows and columns of a page's tiles or strips, px; 0 where the file says nothing that could be."""
    if page.is_tiled:
        rows, columns = page.tilelength, page.tilewidth
    else:
        rows, columns = page.rowsperstrip, page.imagewidth
    if not (isinstance(rows, int) and isinstance(columns, int)):
        return 0, 0
    return (rows, columns) if page.is_tiled else (min(rows, page.imagelength), columns)


def _tiff_bands(path: Path, height: int, width: int, rows: int) -> Iterator[NDArray[Any]]:
    """Bands of one row of strips or tiles each."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            band, top = None, 0
            for segment, place, shape in page.segments(maxworkers=1):
                y, x = place[2], place[3]
                if y != top and band is not None:
                    yield band
                    band = None
                top = y
                if band is None:
                    band = np.zeros((min(rows, height - y), width), dtype=page.dtype)
                if segment is None:
                    continue  # a tile that the file leaves out is background
                h, w = min(shape[1], height - y), min(shape[2], width - x)
                band[:h, x : x + w] = segment[0, :h, :w, 0]
            if band is not None:
                yield band
    except (tifffile.TiffFileError, *_DAMAGED) as error:
        raise UserError(f"cannot be decoded ({error})", where=str(path)) from error


_DAMAGED = (
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    struct.error,
    OverflowError,
    RuntimeError,
    OSError,
)  # what tifffile and its codecs raise on damaged files
