"""Which pages of a TIFF are the levels of a slide, how their segments are decoded, and what the file says about itself.

Enters: a path.  Leaves: a `Layout`, or NotThisReader with the reason (OpenSlide may know better), or UserError for
what no reader shows rightly: stacks of planes and samples of other than 8 bits. Only structure is read here, through
tifffile, and its file is closed again.

Levels. Aperio: the tiled pages; strips hold thumbnail, label and macro, which are never read. OME: the first image's
page and its SubIFDs. Others: the first page, and its SubIFDs or the later pages marked as reduced (NewSubfileType 1).
"""

from __future__ import annotations

import logging
import math
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from cytopipe.core.errors import UserError
from cytopipe.slides.opened import NotThisReader
from cytopipe.slides.resolution import Evidence, mpp_from_tags, number_or_none
from cytopipe.slides.slide import U8

logging.getLogger("tifffile").addHandler(
    logging.NullHandler()
)  # its remarks on odd tags would reach stderr as Python's last resort

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
COMPRESSIONS = {
    1: "none", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "packbits", 32946: "deflate", 33005: "JPEG 2000",
    34712: "JPEG 2000", 50000: "Zstandard", 50001: "WebP",
}  # fmt: skip
"""TIFF compression numbers that are decoded here. 33003 (Aperio JPEG 2000 in YCbCr) is left to OpenSlide, which knows
its colours."""
MIN_IS_WHITE, MIN_IS_BLACK, RGB, YCBCR = 0, 1, 2, 6
JPEG = 7

ASPECT_PX = 2.0
"""A page belongs to the pyramid if scaling level 0 to its width gives its height within so many px [D]; writers round
each level by up to one."""
MAX_SEGMENT_BYTES = 512 * 1024 * 1024
"""A tile or strip above is refused [D]: it would have to be decoded whole for each window."""
BAND_BYTES = 1024 * 1024
"""An uncompressed image in one strip is read by bands of about this size."""

APERIO_KEYS = (
    "AppMag",
    "MPP",
    "StripeWidth",
    "Left",
    "Top",
    "Filtered",
    "OriginalWidth",
    "OriginalHeight",
    "Gamma",
    "DisplayColor",
)
"""The only keys of an Aperio description that are kept: others name users, dates, files and barcodes."""

PARSE_ERRORS = (
    tifffile.TiffFileError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    struct.error,
    OverflowError,
    RuntimeError,
    OSError,
)
"""What tifffile raises while it reads the structure of a damaged file."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One level: its size, its segments (tiles or strips, row by row) and how to decode them. All lengths in px of the
    level."""

    width: int
    height: int
    segment_width: int
    segment_height: int
    columns: int
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]
    decode: Callable[[bytes, int], U8]
    """decode(data, index) -> samples (h, w, samples) uint8; at the border h and w may be those of the level's rest."""
    is_tiled: bool
    is_jpeg: bool
    is_inverted: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """The levels, finest first, and the file's words about itself (allow-listed)."""

    vendor: str
    planes: tuple[Plane, ...]
    evidence: Evidence
    properties: Mapping[str, str]
    icc: bytes | None
    notes: tuple[str, ...]


def read_layout(path: Path) -> Layout:
    """The layout of a TIFF. Raises NotThisReader or UserError, each naming the file."""
    with path.open("rb") as file:
        if file.read(4) not in SIGNATURES:
            raise NotThisReader("not a TIFF", where=path.name)
    try:
        with tifffile.TiffFile(path) as tiff:
            return _layout(tiff, path.name)
    except PARSE_ERRORS as error:
        raise NotThisReader(
            f"its structure cannot be read ({error or type(error).__name__})", where=path.name
        ) from error


def _layout(tiff: Any, name: str) -> Layout:
    for kind, words in (
        ("is_ndpi", "Hamamatsu NDPI"),
        ("is_scn", "Leica SCN"),
        ("is_bif", "Ventana BIF"),
        ("is_philips", "Philips TIFF"),
    ):
        if getattr(tiff, kind):
            raise NotThisReader(f"{words} is left to OpenSlide", where=name)
    base = tiff.pages[0]
    vendor = "aperio" if tiff.is_svs else "ome-tiff" if tiff.is_ome else "generic-tiff"
    _refuse_stacks(tiff, base, name)
    pages = _level_pages(tiff, base, vendor)
    for page in pages:
        _refuse_what_is_not_decoded(page, name)
    description = base.description or ""
    orientation = base.tags.valueof(274, 1)
    return Layout(
        vendor=vendor,
        planes=tuple(_plane(page, name) for page in pages),
        evidence=_evidence(base, vendor, description),
        properties=_properties(base, vendor, description),
        icc=base.tags.valueof(34675, None),
        notes=(f"orientation tag {orientation} is not applied",) if orientation != 1 else (),
    )


def _refuse_stacks(tiff: Any, base: Any, name: str) -> None:
    """UserError for several planes of one size: OpenSlide would show the first and say nothing."""
    planes = ""
    if tiff.is_ome:
        sizes = {axis: int(_ome_attribute(base.description, f"Size{axis}") or 1) for axis in "TZC"}
        sizes["C"] = math.ceil(sizes["C"] / max(1, base.samplesperpixel))
        if math.prod(sizes.values()) > 1:
            planes = " x ".join(f"{count} {axis}" for axis, count in sizes.items()) + " planes"
    elif tiff.is_imagej and (tiff.imagej_metadata or {}).get("images", 1) > 1:
        planes = f"{tiff.imagej_metadata['images']} planes"
    elif not tiff.is_svs:
        twins = sum(1 for page in tiff.pages[1:] if page.shape == base.shape and not page.subfiletype & 1)
        planes = f"{twins + 1} pages of one size" if twins else ""
    if planes:
        raise UserError(
            f"a stack of {planes} of {base.dtype}; only a single 8-bit RGB or grey plane is read", where=name
        )


def _level_pages(tiff: Any, base: Any, vendor: str) -> list[Any]:
    if vendor == "aperio":
        if not base.is_tiled:
            raise NotThisReader("an Aperio file whose first page is not tiled", where=tiff.filename)
        others = [page for page in tiff.pages[1:] if page.is_tiled]
    elif base.subifds:
        others = list(base.pages)
    elif vendor == "ome-tiff":
        others = []
    else:
        others = [page for page in tiff.pages[1:] if page.subfiletype & 1]
    levels = [base]
    for page in others:
        is_smaller = 0 < page.imagewidth < levels[-1].imagewidth and 0 < page.imagelength <= levels[-1].imagelength
        if is_smaller and abs(page.imagewidth * base.imagelength / base.imagewidth - page.imagelength) <= ASPECT_PX:
            levels.append(page)
    return levels


def _refuse_what_is_not_decoded(page: Any, name: str) -> None:
    if page.imagewidth <= 0 or page.imagelength <= 0:
        raise NotThisReader(f"a page of {page.imagewidth} x {page.imagelength} px", where=name)
    if page.dtype is None or page.dtype.kind not in "bu" or page.dtype.itemsize != 1:
        raise UserError(f"samples of type {page.dtype}; only 8-bit RGB or grey is read", where=name)
    if page.dtype.kind == "b" or page.bitspersample != 8:
        raise NotThisReader(f"samples of {page.bitspersample} bits", where=name)
    if page.compression not in COMPRESSIONS:
        raise NotThisReader(f"compression {int(page.compression)} is not decoded", where=name)
    if page.samplesperpixel > 1 and page.planarconfig != 1:
        raise NotThisReader("colours in separate planes", where=name)
    is_grey = page.photometric in (MIN_IS_WHITE, MIN_IS_BLACK) and page.samplesperpixel == 1
    is_colour = page.photometric == RGB and page.samplesperpixel in (3, 4)
    is_jpeg_ycbcr = page.photometric == YCBCR and page.samplesperpixel == 3 and page.compression == JPEG
    if not (is_grey or is_colour or is_jpeg_ycbcr) or page.imagedepth != 1:
        raise NotThisReader(f"{page.samplesperpixel} samples a pixel, photometric {int(page.photometric)}", where=name)


def _plane(page: Any, name: str) -> Plane:
    width, height, samples = page.imagewidth, page.imagelength, page.samplesperpixel
    offsets, byte_counts = tuple(page.dataoffsets), tuple(page.databytecounts)
    is_one_raw_strip = not page.is_tiled and page.compression == 1 and page.predictor == 1 and len(offsets) == 1
    if is_one_raw_strip:
        return _raw_plane(page, name)
    segment_width, segment_height = (
        (page.tilewidth, page.tilelength) if page.is_tiled else (width, min(page.rowsperstrip, height))
    )
    if segment_width <= 0 or segment_height <= 0:
        raise NotThisReader(f"tiles of {segment_width} x {segment_height} px", where=name)
    if segment_width * segment_height * samples > MAX_SEGMENT_BYTES:
        what = f"a tile or strip of {segment_width} x {segment_height} px is too large to be decoded"
        raise UserError(what, where=name, fix="save it as a TIFF with smaller tiles")
    columns, rows = math.ceil(width / segment_width), math.ceil(height / segment_height)
    if len(offsets) < columns * rows or len(byte_counts) < columns * rows:
        raise NotThisReader(
            f"{min(len(offsets), len(byte_counts))} tiles or strips of {columns * rows} are listed", where=name
        )
    decode_segment, options = page.decode, {}
    if page.compression == JPEG:
        options = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}

    def decode(data: bytes, index: int) -> U8:
        samples_of_segment = decode_segment(data, index, **options)[0]
        return np.asarray(samples_of_segment[0], dtype=np.uint8)

    return Plane(
        width, height, segment_width, segment_height, columns, offsets, byte_counts, decode,
        is_tiled=bool(page.is_tiled), is_jpeg=page.compression == JPEG, is_inverted=page.photometric == MIN_IS_WHITE,
    )  # fmt: skip


def _raw_plane(page: Any, name: str) -> Plane:
    """One uncompressed strip as bands of rows, so that a large one need not be read whole."""
    width, height, samples = page.imagewidth, page.imagelength, page.samplesperpixel
    row_bytes = width * samples
    band = max(1, min(height, BAND_BYTES // row_bytes))
    tops = range(0, height, band)
    if page.databytecounts[0] < row_bytes * height:
        raise NotThisReader(f"{page.databytecounts[0]} bytes for {width} x {height} px", where=name)

    def decode(data: bytes, index: int) -> U8:
        return np.frombuffer(data, dtype=np.uint8).reshape(-1, width, samples)

    return Plane(
        width, height, width, band, 1, tuple(page.dataoffsets[0] + top * row_bytes for top in tops),
        tuple(min(band, height - top) * row_bytes for top in tops), decode,
        is_tiled=False, is_jpeg=False, is_inverted=page.photometric == MIN_IS_WHITE,
    )  # fmt: skip


def _evidence(base: Any, vendor: str, description: str) -> Evidence:
    tags = _tag_mpp(base)
    if vendor == "aperio":
        said = _aperio_fields(description)
        mpp = number_or_none(said.get("MPP"))
        return Evidence((mpp, mpp) if mpp is not None else None, "aperio.MPP", tags, number_or_none(said.get("AppMag")))
    if vendor == "ome-tiff":
        return Evidence(
            _ome_mpp(description),
            "OME PhysicalSize",
            tags,
            number_or_none(_ome_attribute(description, "NominalMagnification")),
        )
    return Evidence(tags=tags)


def _tag_mpp(base: Any) -> tuple[float, float] | None:
    values = [base.tags.valueof(tag, None) for tag in (282, 283)]
    if any(not isinstance(value, tuple) or len(value) != 2 or not value[1] for value in values):
        return None
    return mpp_from_tags(values[0][0] / values[0][1], values[1][0] / values[1][1], int(base.tags.valueof(296, 2)))


def _properties(base: Any, vendor: str, description: str) -> dict[str, str]:
    said = {"tiff.compression": COMPRESSIONS[base.compression], "tiff.photometric": base.photometric.name}
    if vendor == "aperio":
        fields = _aperio_fields(description)
        said |= {f"aperio.{key}": fields[key] for key in APERIO_KEYS if key in fields}
    return said


def _aperio_fields(description: str) -> dict[str, str]:
    """'… |AppMag = 20|MPP = 0.4990' -> a dict; the text before the first bar is free and left out."""
    pairs = (part.partition("=") for part in description.split("|")[1:])
    return {key.strip(): value.strip() for key, sign, value in pairs if sign}


UM_PER_OME_UNIT = {"": 1.0, "µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
"""OME schema: PhysicalSizeXUnit is µm unless said otherwise; others (pixel, reference frame) are no lengths."""


def _ome_mpp(description: str) -> tuple[float, float] | None:
    sides: list[float] = []
    for axis in "XY":
        size = number_or_none(_ome_attribute(description, f"PhysicalSize{axis}"))
        unit = (
            (_ome_attribute(description, f"PhysicalSize{axis}Unit") or "")
            .replace("\u03bc", "\u00b5")
            .replace("&#181;", "\u00b5")
        )
        if size is None or unit not in UM_PER_OME_UNIT:
            return None
        sides.append(size * UM_PER_OME_UNIT[unit])
    return sides[0], sides[1]


def _ome_attribute(xml: str, name: str) -> str | None:
    """The first attribute of that name. A search and no XML parser: text from outside is not worth an entity
    expansion."""
    match = re.search(rf'\s{name}="([^"]*)"', xml)
    return match.group(1) if match else None
