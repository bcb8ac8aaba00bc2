"""Damage inside JPEG data that libjpeg repairs without a word (it warns, and imagecodecs and Pillow drop the warning).

JPEG has no checksum, and its codes are self-synchronising: of single flipped bits about one in five leaves a stream
that even a strict parser (libjxl's transcoder) accepts, and such a parser takes ten times as long as the decoder. What
can be seen at little cost is seen here: markers where none may stand, restart markers that are missing, stretches of
zeros as lost disk blocks leave them, and data that end before the picture does, whose rest would be a flat area. Only
sequential Huffman streams of one scan are looked at, which all slides' tiles are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from cytopipe.slides.slide import U8

EOI = b"\xff\xd9"
MARKER = re.compile(rb"\xff[^\x00]")
"""In entropy-coded data a byte 0xff is followed by 0, or it begins a marker."""
SEQUENTIAL_FRAMES = (0xC0, 0xC1)
HUFFMAN_TABLES, QUANTISATION, RESTART_INTERVAL, START_OF_SCAN = 0xC4, 0xDB, 0xDD, 0xDA
MOST_HEADERS = 8
"""Headers remembered as sound [D]: the tiles of a level share one, or have tables of their own each."""
TABLES_MARKER = b"\xff\xc4"
SCAN_MARKER, MAX_SCANS = b"\xff\xda", 100
"""[D] Progressive files have about ten scans; ten thousand empty ones would keep a decoder busy for minutes."""
HOLE = bytes(64)
"""[D] So many zeros in a row are no picture in Huffman tables whose shortest code is not "end of block": each three
bits would be a coefficient of -1."""
FLAT_MARGIN_PX = 2
"""Of the last coded unit, so many px on the left and above are not asked to be flat: smoothed chroma reaches them."""
SAME_GREY = 3
"""Grey levels by which two ways to a grey picture differ at most: the decoder's own, and from its RGB."""
TAIL = bytes((0x5A, 0xC3, 0x96)) * 24
"""What is put behind the data to see whether a decoder reads it: any bits that are no flat block, and no 0xff."""


Decode = Callable[[bytes], U8]
"""decode(data) -> a picture in new memory."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The entropy-coded data of a stream: bytes [start, stop), whether there is a hole of zeros in them, and the
    shorter side of a coded unit (8 px, or 16 where colours are stored at half the size)."""

    start: int
    stop: int
    has_hole: bool
    unit_px: int


Headers = dict[bytes, tuple[int, int, int]]
"""Headers found sound, with what `_start_of_scan` says of them: the tiles of a level share one."""


def check_scan(data: bytes, tables: bytes | None = None, sound: Headers | None = None) -> Scan | None:
    """The scan of a sequential stream, for `check_end`; None for other kinds.

    tables  JPEGTables of the TIFF
    sound   headers found sound before, which are not looked at again; extended here
    Raises ValueError for damage that shows in the tables or in the structure of the scan.
    """
    known = next((found for header, found in (sound or {}).items() if data.startswith(header)), None)
    start, restarts, unit_px = known or _start_of_scan(data)
    if known is None:
        check_tables(data[:start] if start else data)
        check_tables(tables or b"")
        if sound is not None and start and len(sound) < MOST_HEADERS:
            sound[data[:start]] = (start, restarts, unit_px)
    if not start:
        _check_scans(data)
        return None
    stop, markers = _end_of_scan(data, start, restarts)
    if stop < 0:
        raise ValueError("JPEG data end early")
    if markers != restarts or data[stop : stop + 2] != EOI:
        raise ValueError(f"JPEG data are damaged: {markers} markers instead of {restarts} inside the scan")
    has_hole = data.find(HOLE, start, stop) >= 0
    if has_hole and not (_takes_zeros(data) and _takes_zeros(tables or b"")):
        raise ValueError(f"JPEG data are damaged: a hole of {len(HOLE)} or more zero bytes")
    return Scan(start, stop, has_hole, unit_px)


def check_tables(stream: bytes) -> None:
    """Raise ValueError for quantisation and Huffman tables that no encoder writes; looks up to the first scan."""
    for marker, content in _segments(stream):
        at = 0
        while marker == QUANTISATION and at < len(content):
            size = 128 if content[at] >> 4 else 64
            values = content[at + 1 : at + 1 + size]
            is_sound = all(values) if size == 64 else any(values)
            if len(values) < size or not is_sound:
                raise ValueError("JPEG data are damaged: a quantisation table with zeros")
            at += 1 + size
        while marker == HUFFMAN_TABLES and at < len(content):
            lengths = content[at + 1 : at + 17]
            values = content[at + 17 : at + 17 + sum(lengths)]
            codes = sum(count << (16 - bits) for bits, count in enumerate(lengths, 1))
            if len(values) < sum(lengths) or len(set(values)) < len(values) or codes > 1 << 16:
                raise ValueError("JPEG data are damaged: a Huffman table that is none")
            at += 17 + len(values)


def check_end(scan: Scan, data: bytes, decoded: U8, decode: Decode, decode_grey: Decode | None = None) -> None:
    """Raise ValueError where the data end before the picture does, so that its rest was made up, or after it.

    The first is suspected of a picture whose last px are flat: it is decoded again with other bits behind its data, at
    which a decoder that had enough does not look. The second is suspected where there is a hole: other bits at the end
    of the data must change the picture. `decode_grey` gives the same in grey (h, w), for a look at a third of the time.
    """
    last = decoded[-1, -1]
    flat_px = scan.unit_px - FLAT_MARGIN_PX
    is_last_row_flat = decoded[-1, -flat_px:].tobytes() == last.tobytes() * min(flat_px, decoded.shape[1])
    ends_flat = is_last_row_flat and bool((decoded[-flat_px:, -flat_px:] == last).all())
    if not ends_flat and not scan.has_hole:
        return
    blocks = decoded.shape[0] * decoded.shape[1] // 64
    if scan.stop - scan.start <= blocks and _is_flat(decoded):
        return  # a flat picture in no more than a byte a block is as it should be
    longer = data[: scan.stop] + TAIL + EOI
    looks_same = ends_flat and decode_grey is not None and _is_alike(decoded, decode_grey(longer))
    if ends_flat and not looks_same and not np.array_equal(decode(longer), decoded):
        raise ValueError("JPEG data are damaged: they end before the picture does")
    if not scan.has_hole or scan.stop - scan.start <= len(TAIL) or _is_flat(decoded):
        return  # what is flat all over may have tables in which other bits are nothing
    if np.array_equal(decode(data[: scan.stop - len(TAIL)] + TAIL + EOI), decoded):
        raise ValueError("JPEG data are damaged: they go on after the end of the picture")


def _is_flat(decoded: U8) -> bool:
    return bool((decoded == decoded[-1, -1]).all())


def _is_alike(rgb: U8, grey: U8) -> bool:
    return bool(cv2.absdiff(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), grey).max() <= SAME_GREY)


def _check_scans(data: bytes) -> None:
    """Progressive data end with their marker, and come in a bounded number of scans: a decoder goes over the whole
    picture for each, be it empty."""
    if data.rfind(EOI) < 0:
        raise ValueError("JPEG data end early")
    at = data.find(TABLES_MARKER)
    while at >= 0:  # also between the scans; inside them the marker cannot stand
        check_tables(data[:2] + data[at : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")])
        at = data.find(TABLES_MARKER, at + 2)
    scans = data.count(SCAN_MARKER)
    if scans > MAX_SCANS:
        raise ValueError(f"JPEG data of {scans} scans; more than {MAX_SCANS} are not decoded")


def _start_of_scan(data: bytes) -> tuple[int, int, int]:
    """Where the entropy-coded data begin, how many restart markers must be in them, and the shorter side of a coded
    unit, px; (0, 0, 8) for anything but a sequential stream of one scan."""
    frame, interval, at, size = 0, 0, 2, len(data)
    while at + 4 <= size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:
            at += 1
            continue
        if marker in SEQUENTIAL_FRAMES:
            frame = at
        elif marker == RESTART_INTERVAL and at + 6 <= size:
            interval = data[at + 4] << 8 | data[at + 5]
        following = at + 2 + (data[at + 2] << 8 | data[at + 3])
        if marker == START_OF_SCAN:
            if not frame or following >= size or data[at + 4] != data[frame + 9]:
                break  # another kind of frame, or a scan of some of the components
            content = data[frame + 4 : at]
            across, down = _unit(content)
            return following, _restarts(content, interval, across, down) if interval else 0, min(across, down) or 8
        at = following
    return 0, 0, 8


def _end_of_scan(data: bytes, start: int, restarts: int) -> tuple[int, int]:
    """Where the marker after the entropy-coded data is (-1: there is none), and how many stand inside them."""
    if not restarts:
        marker = MARKER.search(data, start)
        stop = -1 if marker is None else marker.start()
        return stop, int(stop >= 0 and data[stop : stop + 2] != EOI)
    stop = data.find(EOI, start)
    return stop, data.count(b"\xff", start, stop) - data.count(b"\xff\x00", start, stop)


def _unit(frame: bytes) -> tuple[int, int]:
    """Width and height of a coded unit, px; (0, 0) where the frame's content is too short or senseless."""
    components = frame[5] if len(frame) > 5 else 0
    if not components or len(frame) < 6 + 3 * components:
        return 0, 0
    factors = [frame[7 + 3 * i] for i in range(components)]
    if components == 1:
        return 8, 8
    return 8 * max(f >> 4 for f in factors), 8 * max(f & 15 for f in factors)


def _restarts(frame: bytes, interval: int, across: int, down: int) -> int:
    """Restart markers inside a scan of all components: one after each interval but the last. `frame`: SOF's content."""
    if not across or not down:
        return 0
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    units = -(-width // across) * -(-height // down)
    return max(0, -(-units // interval) - 1)


def _takes_zeros(stream: bytes) -> bool:
    """Whether zero bits can be a picture in the Huffman tables of a stream: flat blocks, where the shortest code of
    every AC table is "end of block". No tables take everything."""
    for marker, content in _segments(stream):
        at = 0
        while marker == HUFFMAN_TABLES and at + 18 <= len(content):
            if content[at] >> 4 and content[at + 17]:
                return False
            at += 17 + sum(content[at + 1 : at + 17])
    return True


def _segments(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of the segments up to the first scan."""
    at = 2
    while at + 4 <= len(stream) and stream[at] == 0xFF and stream[at + 1] != START_OF_SCAN:
        length = max(2, stream[at + 2] << 8 | stream[at + 3])
        yield stream[at + 1], stream[at + 4 : at + 2 + length]
        at += 2 + length
