"""JPEG tiles and strips of a TIFF: decoded into memory that is there already, or handed on as files of their own.

A TIFF keeps what its tiles have in common (quantisation and Huffman tables) once, in the tag JPEGTables; a tile is then
an abbreviated stream (TIFF Technical Note 2, ISO/IEC 10918-1 annex B). Colours: photometric RGB without a JFIF header
is stored as RGB, as Aperio does; else libjpeg decides by the stream's own markers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import imagecodecs
import numpy as np

from cytopipe.slides.jpeg_damage import Headers, check_end, check_scan
from cytopipe.slides.slide import U8

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
"""APP14 of Adobe (Technical Note 5116) with transform 0: the three components are RGB as they are."""

START_OF_SCAN, APP0, APP14 = 0xDA, 0xE0, 0xEE
STANDALONE_MARKERS = frozenset((0x01, *range(0xD0, 0xD8)))
"""TEM and RST0 to RST7 have no length (ISO/IEC 10918-1, table B.1)."""
FRAME_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""SOF0 to SOF15 without DHT, JPG and DAC."""


@dataclass(frozen=True, slots=True)
class JpegColours:
    """How the samples of a JPEG in a TIFF become RGB or grey: what libjpeg is told of the stream (None: it looks
    itself), and what it is asked for."""

    stored: str | None
    wanted: str


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """What the header of a JPEG stream says: size in px, components, bits a sample."""

    width: int
    height: int
    components: int
    bits: int


def colours_of(photometric: int, samples: int, has_jfif: bool) -> JpegColours:
    """The colours of a TIFF's JPEG segments: photometric 2 is RGB, 6 YCbCr, others grey (TIFF 6.0)."""
    if samples == 1:
        return JpegColours(None, "GRAYSCALE")
    return JpegColours("RGB" if photometric == 2 and not has_jfif else None, "RGB")


def jpeg_frame(data: bytes) -> JpegFrame:
    """The frame header (SOFn) of a stream. Raises ValueError where there is none: before anything is decoded, so that
    an absurd size costs no memory."""
    if data[:2] != SOI:
        raise ValueError("no JPEG data")
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:  # fill bytes may stand before a marker
            at += 1
            continue
        if marker in STANDALONE_MARKERS:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in FRAME_MARKERS and at + 10 <= len(data):
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            return JpegFrame(width, height, data[at + 9], data[at + 4])
        if marker == START_OF_SCAN or length < 2:
            break
        at += 2 + length
    raise ValueError("JPEG data without a frame header")


def jpeg_decoder(
    tables: bytes | None, colours: JpegColours, segment_px: tuple[int, int], samples: int
) -> Callable[[bytes, U8], U8]:
    """decode(data, buffer) of the segments of one level.

    segment_px  width and height that a segment may have at most; the last strip may be lower
    buffer      uint8 (h, w, samples) of a full segment, written where the stream has that size
    The decoder raises ValueError for a stream that is larger than its place or visibly damaged (`jpeg_damage`), and
    what imagecodecs raises.
    """
    width, height = segment_px
    sound: Headers = {}

    def decode_anew(data: bytes, out: U8 | None = None) -> U8:
        decoded = imagecodecs.jpeg8_decode(
            data, tables=tables, colorspace=colours.stored, outcolorspace=colours.wanted, out=out
        )
        return np.asarray(decoded, dtype=np.uint8)

    def decode_grey(data: bytes) -> U8:
        return np.asarray(imagecodecs.jpeg8_decode(data, tables=tables, outcolorspace="GRAYSCALE"), dtype=np.uint8)

    # samples that are RGB in the stream hold no grey of their own
    quick = decode_grey if samples == 3 and colours.stored is None else None

    def decode(data: bytes, buffer: U8) -> U8:
        frame = jpeg_frame(data)
        if frame.width > width or frame.height > height or frame.bits != 8 or frame.components != samples:
            said = f"{frame.width} x {frame.height} px of {frame.components} x {frame.bits} bits"
            raise ValueError(f"JPEG data of {said} in a place of {width} x {height} px of {samples} x 8 bits")
        scan = check_scan(data, tables, sound)
        fits = buffer.shape == (frame.height, frame.width, samples)
        out = None if not fits else buffer if samples > 1 else buffer[..., 0]
        decoded = decode_anew(data, out)
        if scan is not None:
            check_end(scan, data, decoded, decode_anew, quick)
        return buffer if fits else decoded.reshape(frame.height, frame.width, samples)

    return decode


def standalone_jpeg(data: bytes, tables: bytes | None, colours: JpegColours) -> bytes:
    """A segment as a JPEG file of its own, the compressed samples untouched: the common tables put back in, and a note
    where its colours would be guessed wrong.

    Any decoder shows the pixels of `jpeg_decoder`. Raises ValueError for what is no JPEG stream.
    """
    if data[:2] != SOI or data.rfind(EOI) < 0:
        raise ValueError("no whole JPEG stream")
    check_scan(data, tables)
    head = ADOBE_RGB if colours.stored == "RGB" else b""
    if tables:
        start, stop = tables.find(SOI), tables.rfind(EOI)
        if start != 0 or stop < 0:
            raise ValueError("JPEG tables that are no JPEG stream")
        head += tables[2:stop]
    body = data[2:]
    if colours.stored == "RGB":
        body = _without(body, APP14)
    return SOI + head + body


def _without(segments: bytes, unwanted: int) -> bytes:
    """Marker segments up to the scan, without those of one kind; the rest as it is."""
    kept: list[bytes] = []
    at = 0
    while at + 4 <= len(segments) and segments[at] == 0xFF and segments[at + 1] != START_OF_SCAN:
        length = 2 + int.from_bytes(segments[at + 2 : at + 4], "big")
        if segments[at + 1] != unwanted:
            kept.append(segments[at : at + length])
        at += length
    return b"".join((*kept, segments[at:]))
