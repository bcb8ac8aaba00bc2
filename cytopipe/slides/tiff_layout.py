"""Which pages of a TIFF are the levels of a slide, how their segments are decoded, and what the file says about itself.

Enters: a path.  Leaves: a `Layout` of one 8-bit picture, or a `StackLayout` of planes, channels and other samples; or
NotThisReader with the reason (OpenSlide may know better), or UserError for what no reader shows rightly. Only structure
is read here, through tifffile, and its file is closed again.

Levels. Aperio: the tiled pages; strips hold thumbnail, label and macro, which are never read. OME: the first image's
pages and their SubIFDs. Others: the first page, and its SubIFDs or the later pages marked as reduced (NewSubfileType
1).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from cytopipe.core.errors import UserError
from cytopipe.slides.codec_headers import check_size
from cytopipe.slides.jpeg_segment import colours_of, jpeg_decoder, standalone_jpeg
from cytopipe.slides.ome_xml import read_ome
from cytopipe.slides.opened import MAX_SEGMENT_BYTES, NotThisReader
from cytopipe.slides.resolution import Evidence
from cytopipe.slides.slide import U8
from cytopipe.slides.stack import Stack
from cytopipe.slides.tiff_chain import check_chain
from cytopipe.slides.tiff_evidence import COMPRESSIONS, evidence_of, properties_of
from cytopipe.slides.tiff_planes import PARSE_ERRORS, Planes, find_planes, level_pages, places_of, source_of
from cytopipe.slides.tiff_stack import Places

logging.getLogger("tifffile").addHandler(
    logging.NullHandler()
)  # its remarks on odd tags would reach stderr as Python's last resort

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MIN_IS_WHITE, MIN_IS_BLACK, RGB, YCBCR = 0, 1, 2, 6
JPEG = 7
BAND_BYTES = 1024 * 1024
"""An uncompressed image in one strip is read by bands of about this size."""


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
    samples: int
    decode: Callable[[bytes, int, U8], U8]
    """decode(data, index, buffer) -> samples (h, w, samples) uint8, in `buffer` (a full segment) where the codec can;
    at the border h and w may be those of the level's rest."""
    is_tiled: bool
    is_inverted: bool
    copy: Callable[[bytes], bytes] | None = None
    """copy(data) -> the segment as a JPEG file of its own that shows the same RGB; None for other codecs and grey."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The levels, finest first, and the file's words about itself (allow-listed)."""

    vendor: str
    planes: tuple[Plane, ...]
    evidence: Evidence
    properties: Mapping[str, str]
    icc: bytes | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StackLayout:
    """Planes and channels, and where they lie in the file."""

    stack: Stack
    places: Places


def read_layout(path: Path) -> Layout | StackLayout:
    """The layout of a TIFF. Raises NotThisReader or UserError, each naming the file."""
    with path.open("rb") as file:
        if file.read(4) not in SIGNATURES:
            raise NotThisReader("not a TIFF", where=path.name)
    try:
        with tifffile.TiffFile(path) as tiff:
            return _layout(tiff, path)
    except PARSE_ERRORS as error:
        raise NotThisReader(
            f"its structure cannot be read ({error or type(error).__name__})", where=path.name
        ) from error


def _layout(tiff: Any, path: Path) -> Layout | StackLayout:
    name = path.name
    for kind, words in (
        ("is_ndpi", "Hamamatsu NDPI"),
        ("is_scn", "Leica SCN"),
        ("is_bif", "Ventana BIF"),
        ("is_philips", "Philips TIFF"),
    ):
        if getattr(tiff, kind):
            raise NotThisReader(f"{words} is left to OpenSlide", where=name)
    check_chain(path)
    base = tiff.pages[0]
    description = base.description or ""
    ome = read_ome(description, base.samplesperpixel, name) if tiff.is_ome else None
    vendor = "aperio" if tiff.is_svs else "ome-tiff" if ome else "imagej" if tiff.is_imagej else "generic-tiff"
    if ome is not None and ome.ifd_of.get((0, 0), 0) < len(tiff.pages):
        base = tiff.pages[ome.ifd_of.get((0, 0), 0)]
    _refuse_what_has_no_samples(base, name)
    planes = find_planes(tiff, base, ome, name)
    orientation = base.tags.valueof(274, 1)
    notes = (f"orientation tag {orientation} is not applied",) if orientation != 1 else ()
    evidence = evidence_of(tiff, base, vendor, description, ome)
    icc = base.tags.valueof(34675, None)
    if len(planes.bases) * len(planes.bases[0]) > 1 or not _is_8_bit_picture(base):
        return _stack_layout(tiff, planes, vendor, evidence, icc, notes, name)
    pages = level_pages(tiff, base, vendor)
    for page in pages:
        _refuse_what_is_not_decoded(page, name)
    properties = properties_of(base, vendor, description)
    return Layout(vendor, tuple(_plane(page, name) for page in pages), evidence, properties, icc, notes)


def _stack_layout(
    tiff: Any, planes: Planes, vendor: str, evidence: Evidence, icc: bytes | None, notes: tuple[str, ...], name: str
) -> StackLayout:
    source = source_of(planes, name)
    places, levels = places_of(tiff, planes, vendor, name)
    for page in levels:
        _refuse_what_has_no_samples(page, name)
        if page.dtype != levels[0].dtype or page.samplesperpixel != levels[0].samplesperpixel:
            raise NotThisReader("levels of different samples", where=name)
    bases = [level[0][0].page for level in places]
    properties = properties_of(levels[0], vendor, "") | {"tiff.samples": f"{levels[0].dtype}"}
    stack = Stack(
        vendor, tuple(page.size for page in bases), tuple(page.segment for page in bases), bases[0].is_tiled,
        len(planes.bases), source, evidence, properties, icc, notes,
    )  # fmt: skip
    return StackLayout(stack, places)


def _is_8_bit_picture(page: Any) -> bool:
    """Whether a page is one picture for `Plane`, or for OpenSlide, which gets grey with alpha."""
    is_grey = page.photometric in (MIN_IS_WHITE, MIN_IS_BLACK) and page.samplesperpixel > 2
    return bool(page.dtype == np.uint8 and page.planarconfig == 1 and not is_grey)


def _refuse_what_has_no_samples(page: Any, name: str) -> None:
    if page.imagewidth <= 0 or page.imagelength <= 0:
        raise NotThisReader(f"a page of {page.imagewidth} x {page.imagelength} px", where=name)
    if page.dtype is None or page.dtype.kind == "b" or page.bitspersample < 8 or page.imagedepth != 1:
        raise NotThisReader(f"samples of {page.bitspersample} bits", where=name)
    if page.compression not in COMPRESSIONS:
        raise NotThisReader(f"compression {int(page.compression)} is not decoded", where=name)


def _refuse_what_is_not_decoded(page: Any, name: str) -> None:
    _refuse_what_has_no_samples(page, name)
    if page.dtype != np.uint8 or page.bitspersample != 8:
        raise NotThisReader(f"samples of type {page.dtype} on a lower level", where=name)
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
    if not all(isinstance(side, int) for side in (width, height, segment_width, segment_height)):
        raise NotThisReader("sizes that are no whole numbers", where=name)
    if segment_width <= 0 or segment_height <= 0:
        raise NotThisReader(f"tiles of {segment_width} x {segment_height} px", where=name)
    if segment_width * segment_height * max(samples, 3) > MAX_SEGMENT_BYTES:  # grey is shown as RGB too
        what = f"a tile or strip of {segment_width} x {segment_height} px is too large to be decoded"
        raise UserError(what, where=name, fix="save it as a TIFF with smaller tiles")
    columns, rows = math.ceil(width / segment_width), math.ceil(height / segment_height)
    if len(offsets) < columns * rows or len(byte_counts) < columns * rows:
        # final: OpenSlide would show the others as if they had never been scanned
        raise UserError(
            f"{min(len(offsets), len(byte_counts))} tiles or strips of {columns * rows} are listed", where=name
        )
    decode, copy = _codec(page, (segment_width, segment_height))
    return Plane(
        width, height, segment_width, segment_height, columns, offsets, byte_counts, samples, decode,
        is_tiled=bool(page.is_tiled), is_inverted=page.photometric == MIN_IS_WHITE, copy=copy,
    )  # fmt: skip


def _codec(
    page: Any, segment_px: tuple[int, int]
) -> tuple[Callable[[bytes, int, U8], U8], Callable[[bytes], bytes] | None]:
    """How a page's segments are decoded, and copied where that can be: `Plane.decode`, `Plane.copy`."""
    samples = page.samplesperpixel
    if page.compression == JPEG and samples in (1, 3):
        colours = colours_of(int(page.photometric), samples, page.is_jfif)
        decode_jpeg = jpeg_decoder(page.jpegtables, colours, segment_px, samples)
        copy = partial(standalone_jpeg, tables=page.jpegtables, colours=colours) if samples == 3 else None
        return lambda data, index, buffer: decode_jpeg(data, buffer), copy
    decode_segment = page.decode
    options = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if page.compression == JPEG else {}

    def decode(data: bytes, index: int, buffer: U8) -> U8:
        check_size(data, int(page.compression), segment_px, samples)
        samples_of_segment = decode_segment(data, index, **options)[0]
        return np.asarray(samples_of_segment[0], dtype=np.uint8)

    return decode, None


def _raw_plane(page: Any, name: str) -> Plane:
    """One uncompressed strip as bands of rows, so that a large one need not be read whole."""
    width, height, samples = page.imagewidth, page.imagelength, page.samplesperpixel
    row_bytes = width * samples
    band = max(1, min(height, BAND_BYTES // row_bytes))
    tops = range(0, height, band)
    if page.databytecounts[0] < row_bytes * height:
        raise NotThisReader(f"{page.databytecounts[0]} bytes for {width} x {height} px", where=name)

    def decode(data: bytes, index: int, buffer: U8) -> U8:
        return np.frombuffer(data, dtype=np.uint8).reshape(-1, width, samples)

    return Plane(
        width, height, width, band, 1, tuple(page.dataoffsets[0] + top * row_bytes for top in tops),
        tuple(min(band, height - top) * row_bytes for top in tops), samples, decode,
        is_tiled=False, is_inverted=page.photometric == MIN_IS_WHITE,
    )  # fmt: skip
