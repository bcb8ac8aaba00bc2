"""TIFF files of more than one 8-bit picture: z-stacks, several channels, samples of 16 bits and floats.

Enters: what `tiff_layout` found: which page shows which plane and channel at which level.  Leaves: a `TiffStackSlide`.
Pages are decoded by their own tiles or strips, as in `tiff_reader`, but through tifffile, which knows all sample types.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cytopipe.core.errors import UserError
from cytopipe.slides.codec_headers import check_size
from cytopipe.slides.jpeg_segment import EOI, colours_of, jpeg_decoder, jpeg_frame
from cytopipe.slides.mixing import Samples
from cytopipe.slides.opened import MAX_SEGMENT_BYTES, NotThisReader
from cytopipe.slides.showing import AS_STORED, Showing
from cytopipe.slides.stack import Stack, StackSlide

JPEG = 7
DECODE_ERRORS = (RuntimeError, ValueError, IndexError, KeyError, TypeError, OSError, struct.error)
"""What imagecodecs and tifffile raise on damaged data, as in `tiff_reader`."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of the file: where its segments lie, row by row (for separate planes: one picture after the other), and
    how they are decoded.

    size, segment  width and height, px
    decode         decode(data, index) -> samples (h, w, samples)
    """

    size: tuple[int, int]
    segment: tuple[int, int]
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]
    is_tiled: bool
    decode: Callable[[bytes, int], Samples]

    @property
    def segments_of_a_picture(self) -> int:
        """Segments that cover the page once."""
        return math.ceil(self.size[0] / self.segment[0]) * math.ceil(self.size[1] / self.segment[1])


@dataclass(frozen=True, slots=True)
class Place:
    """Where a channel lies in a page: among its interleaved samples, or as its n-th separate picture."""

    page: Page
    sample: int
    picture: int


Places = tuple[tuple[tuple[Place, ...], ...], ...]
"""[level][z][channel]"""


class TiffStackSlide(StackSlide):
    """A TIFF of planes and channels."""

    reader = "tiff"
    decode_errors = DECODE_ERRORS

    def __init__(
        self,
        path: Path,
        stack: Stack,
        places: Places,
        mpp_override: float | None = None,
        showing: Showing = AS_STORED,
    ) -> None:
        super().__init__(path, stack, mpp_override, showing)
        self._places = places
        self._file = path.open("rb")
        self._file_bytes = path.stat().st_size

    def _is_gap(self, level: int, column: int, row: int) -> bool:
        """No data in any of the channels that are shown; where some of them have data the others are zero."""
        places = self._places[level][self.plane]
        return all(
            place.page.byte_counts[_index(place, column, row)] == 0
            for place in (places[channel] for channel in self._mix.channels)
        )

    def _samples(self, level: int, channels: tuple[int, ...], column: int, row: int) -> Mapping[int, Samples]:
        places = self._places[level][self.plane]
        decoded: dict[tuple[int, int], Samples] = {}
        found: dict[int, Samples] = {}
        for channel in channels:
            place = places[channel]
            index = _index(place, column, row)
            key = (place.page.offsets[index], index)
            if key not in decoded:
                decoded[key] = self._decoded_segment(place.page, index)
            found[channel] = decoded[key][..., place.sample]
        return found

    def _decoded_segment(self, page: Page, index: int) -> Samples:
        offset, size = page.offsets[index], page.byte_counts[index]
        if size == 0:
            raise ValueError("one of its channels has no data")
        missing = offset + size - self._file_bytes
        if missing > 0:
            raise ValueError(f"the file ends {missing} bytes early")
        return page.decode(os.pread(self._file.fileno(), size, offset), index)

    def _close(self) -> None:
        self._file.close()
        self._cache.clear()


def page_of(page: Any, name: str) -> Page:
    """A tifffile page as a `Page`. Raises UserError for tables that do not cover it and for segments that are too
    large."""
    width, height = page.imagewidth, page.imagelength
    segment = (page.tilewidth, page.tilelength) if page.is_tiled else (width, min(page.rowsperstrip, height))
    if segment[0] <= 0 or segment[1] <= 0:
        raise NotThisReader(f"tiles of {segment[0]} x {segment[1]} px", where=name)
    interleaved = page.samplesperpixel if page.planarconfig == 1 else 1
    if segment[0] * segment[1] * interleaved * page.dtype.itemsize > MAX_SEGMENT_BYTES:
        what = f"a tile or strip of {segment[0]} x {segment[1]} px is too large to be decoded"
        raise UserError(what, where=name, fix="save it as a TIFF with smaller tiles")
    offsets, byte_counts = tuple(page.dataoffsets), tuple(page.databytecounts)
    decode = _decoder(page, segment, interleaved)
    found = Page((width, height), segment, offsets, byte_counts, bool(page.is_tiled), decode)
    needed = found.segments_of_a_picture * (page.samplesperpixel // interleaved)
    listed = min(len(offsets), len(byte_counts))
    if listed < needed:
        raise UserError(f"{listed} tiles or strips of {needed} are listed", where=name)
    return found


def raw_page(page: Any, number: int, name: str) -> Page:
    """The `number`-th picture of an ImageJ file whose pictures lie one behind the other after a single page.

    Raises NotThisReader unless the page is one uncompressed strip.
    """
    first = page_of(page, name)
    size = page.imagewidth * page.imagelength * page.samplesperpixel * page.dtype.itemsize
    if page.compression != 1 or page.predictor != 1 or len(first.offsets) != 1 or page.is_tiled:
        raise NotThisReader("an ImageJ stack of one page that is not one uncompressed strip", where=name)
    return Page(first.size, first.segment, (first.offsets[0] + number * size,), (size,), False, first.decode)


def _index(place: Place, column: int, row: int) -> int:
    page = place.page
    return place.picture * page.segments_of_a_picture + row * math.ceil(page.size[0] / page.segment[0]) + column


def _decoder(page: Any, segment: tuple[int, int], samples: int) -> Callable[[bytes, int], Samples]:
    """How the segments of a page, at most `segment` px (w, h) of `samples` each, are decoded."""
    decode, is_jpeg, is_inverted = page.decode, page.compression == JPEG, page.photometric == 0
    top = (1 << page.bitspersample) - 1
    options = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader} if is_jpeg else {}
    decode_jpeg = None
    if is_jpeg and page.dtype == np.uint8 and samples in (1, 3):
        colours = colours_of(int(page.photometric), samples, page.is_jfif)
        decode_jpeg = jpeg_decoder(page.jpegtables, colours, segment, samples)

    def decode_segment(data: bytes, index: int) -> Samples:
        found: Samples
        if decode_jpeg is not None:
            found = decode_jpeg(data, np.empty((segment[1], segment[0], samples), np.uint8))
        else:
            if is_jpeg:
                _check_jpeg(data, segment)
            check_size(data, int(page.compression), segment, samples)
            found = np.asarray(decode(data, index, **options)[0])[0]
        if is_inverted and found.dtype.kind == "u":
            found = (top - found.astype(np.int64)).astype(found.dtype)
        return found

    return decode_segment


def _check_jpeg(data: bytes, segment: tuple[int, int]) -> None:
    """JPEG of other than 8 bits: raise ValueError where it ends early or is larger than its place."""
    frame = jpeg_frame(data)
    if frame.width > segment[0] or frame.height > segment[1]:
        raise ValueError(f"JPEG data of {frame.width} x {frame.height} px in a place of {segment[0]} x {segment[1]} px")
    if data.rfind(EOI) < 0:
        raise ValueError("JPEG data end early")
