"""A pyramidal, tiled JPEG TIFF laid out as Aperio's scanners write it, in memory that does not depend on its height.

Enters: bands of level-0 rows, uint8 RGB, top to bottom.  Leaves: one file, whole or absent, that OpenSlide opens as
vendor `aperio`.

Layout (as in Aperio's own files): directory 0 is level 0, directory 1 a thumbnail in one strip, the others are the
reduced levels; each level is the one before it, averaged over 4 x 4 px and rounded down in size. Tiles are whole
JPEG streams, YCbCr 4:2:0, and stand in the file in the order in which they were finished, levels mixed: TIFF allows
it, and so nothing has to be spooled. The bytes depend on the pixels and the arguments only, not on threads or clock.
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import cv2
import imagecodecs
import numpy as np
from numpy.typing import NDArray

from cytopipe._version import __version__
from cytopipe.core.files import atomic_path
from cytopipe.core.resources import cores

U8 = NDArray[np.uint8]

# between neighbouring levels, as in Aperio's files; divides the tile, so that tile rows reduce without a remainder
REDUCTION = 4
SMALLEST_LEVEL_PX = 1024  # a level whose longer side is at most this gets no smaller one
THUMBNAIL_PX = 1024  # at most, longer side
CLASSIC_LIMIT_BYTES = 2**32

_SHORT, _LONG, _RATIONAL, _ASCII, _LONG8 = 3, 4, 5, 2, 16  # TIFF 6.0 section 2; LONG8 from BigTIFF
_FORMAT = {_SHORT: "H", _LONG: "I", _LONG8: "Q"}

Field = tuple[int, int, bytes | Sequence[int]]  # tag, type, value


class PyramidWriter:
    """Write a slide band by band: `with PyramidWriter(...) as writer: writer.write_band(rgb)` until all rows are there.

    path           the file; it appears when the block ends without an error
    width, height  level-0 px
    mpp            µm/px of level 0, both axes
    objective      nominal magnification (Aperio's AppMag)
    quality        JPEG quality, 1 to 100
    tile_px        side of the square tiles, a multiple of 16 px
    facts          further `key = value` pairs for the description
    big            BigTIFF; None: where the file might pass 4 GiB
    workers        encoding threads; None: one a core. They do not change the bytes
    """

    def __init__(
        self,
        path: Path,
        width: int,
        height: int,
        *,
        mpp: float,
        objective: float,
        quality: int = 80,
        tile_px: int = 256,
        facts: dict[str, str] | None = None,
        big: bool | None = None,
        workers: int | None = None,
    ) -> None:
        if width <= 0 or height <= 0 or mpp <= 0 or tile_px <= 0 or tile_px % 16:
            raise ValueError(f"PyramidWriter: {width} x {height} px, mpp {mpp}, tile_px {tile_px}")
        self.path, self.width, self.height = path, width, height
        self._mpp, self._quality, self._tile_px = mpp, quality, tile_px
        # 4 bytes a px: the raw pixels and a third more for the levels; JPEG stays below that.
        self._big = width * height * 4 >= CLASSIC_LIMIT_BYTES if big is None else big
        # Aperio's keys stand between bars; readers split at "|" and "=".
        self._facts = {"AppMag": f"{objective:g}", "MPP": f"{mpp:.4f}", **(facts or {})}
        self._levels = [_Level(width, height, tile_px)]
        while max(self._levels[-1].width, self._levels[-1].height) > SMALLEST_LEVEL_PX:
            last = self._levels[-1]
            self._levels.append(_Level(max(1, last.width // REDUCTION), max(1, last.height // REDUCTION), tile_px))
        self._smallest: list[
            U8
        ] = []  # the last level, kept whole for the thumbnail: at most SMALLEST_LEVEL_PX on its longer side
        self._stack = contextlib.ExitStack()
        self._workers = workers or cores()
        self._received = 0

    def __enter__(self) -> PyramidWriter:
        partial = self._stack.enter_context(atomic_path(self.path))
        self._file = self._stack.enter_context(partial.open("wb"))
        self._pool = self._stack.enter_context(ThreadPoolExecutor(self._workers))
        self._file.write(
            struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if self._big else struct.pack("<2sHI", b"II", 42, 0)
        )
        return self

    def write_band(self, rgb: U8) -> None:
        """Append rows: uint8 (h, width, 3), any h that still fits.

        Raises ValueError on another shape or type, or on too many rows.
        """
        if rgb.ndim != 3 or rgb.shape[1:] != (self.width, 3) or rgb.dtype != np.uint8:
            raise ValueError(f"write_band: expected uint8 (h, {self.width}, 3), got {rgb.dtype} {rgb.shape}")
        if self._received + len(rgb) > self.height:
            raise ValueError(f"write_band: {self._received + len(rgb)} rows for a slide of {self.height}")
        self._received += len(rgb)
        self._append(0, rgb)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is not None:
                # Hand the exception to the stack below, so that the partial file is removed and nothing appears
                # under `path`.
                self._stack.__exit__(kind, value, trace)
                return
            if self._received != self.height:
                raise ValueError(f"PyramidWriter: {self._received} of {self.height} rows were written")
            for number in range(len(self._levels)):
                self._flush(number)
            self._write_directories()

    def _append(self, number: int, rows: U8) -> None:
        """Rows of a level into its pending tile row; each full tile row is encoded and handed down, reduced, to the
        next level.
        """
        level = self._levels[number]
        rows = rows[
            : level.height - level.taken
        ]  # sizes are rounded down: the last rows of the level above may have no place
        level.taken += len(rows)
        if number == len(self._levels) - 1:
            self._smallest.append(rows.copy())
        start = 0
        while start < len(rows):
            step = min(self._tile_px - level.filled, len(rows) - start)
            level.pending[level.filled : level.filled + step] = rows[start : start + step]
            level.filled, start = level.filled + step, start + step
            if level.filled == self._tile_px:
                self._flush(number)

    def _flush(self, number: int) -> None:
        """Encode the pending rows of a level as one row of tiles, the missing ones repeated from the last, and
        reduce them into the next level.
        """
        level = self._levels[number]
        if not level.filled:
            return
        band = level.pending[: level.filled]
        level.filled = 0
        if number + 1 < len(self._levels):
            below = self._levels[number + 1]
            rows, width = max(1, len(band) // REDUCTION), below.width
            whole = band[: rows * REDUCTION, : width * REDUCTION]
            self._append(
                number + 1, np.asarray(cv2.resize(whole, (width, rows), interpolation=cv2.INTER_AREA), dtype=np.uint8)
            )
        for data in self._pool.map(lambda column: self._encoded(band, column), range(level.across)):
            level.offsets.append(self._file.tell())
            level.sizes.append(len(data))
            self._file.write(data)

    def _encoded(self, band: U8, column: int) -> bytes:
        side = self._tile_px
        tile = band[:, column * side : (column + 1) * side]
        missing = (side - tile.shape[0], side - tile.shape[1])
        if any(missing):
            tile = np.pad(tile, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        return self._jpeg(tile)

    def _jpeg(self, rgb: U8) -> bytes:
        pixels = np.ascontiguousarray(rgb)
        return bytes(
            imagecodecs.jpeg8_encode(
                pixels, level=self._quality, colorspace="rgb", outcolorspace="ycbcr", subsampling="420"
            )
        )

    def _write_directories(self) -> None:
        """Thumbnail and directories at the end of the file, then their place into the header."""
        smallest = np.concatenate(self._smallest)
        scale = min(1.0, THUMBNAIL_PX / max(smallest.shape[:2]))
        size = (max(1, round(smallest.shape[1] * scale)), max(1, round(smallest.shape[0] * scale)))
        thumbnail = np.asarray(cv2.resize(smallest, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        strip = self._jpeg(thumbnail)
        strip_offset = self._file.tell()
        self._file.write(strip)

        fields = [self._level_fields(level) for level in self._levels]
        fields.insert(1, self._thumbnail_fields(thumbnail, strip_offset, len(strip)))
        first = self._aligned()
        for number, directory in enumerate(fields):
            self._write_directory(directory, is_last=number == len(fields) - 1)
        self._file.seek(8 if self._big else 4)
        self._file.write(struct.pack("<Q" if self._big else "<I", first))

    def _level_fields(self, level: _Level) -> list[Field]:
        number = _LONG8 if self._big else _LONG
        full = f"{self.width}x{self.height} [0,0 {self.width}x{self.height}] ({self._tile_px}x{self._tile_px})"
        change = "" if level is self._levels[0] else f" -> {level.width}x{level.height}"
        return [
            *self._common_fields(level.width, level.height, f"{full}{change} JPEG/RGB Q={self._quality}"),
            (322, _SHORT, [self._tile_px]),
            (323, _SHORT, [self._tile_px]),
            (324, number, level.offsets),
            (325, _LONG, level.sizes),
            *self._resolution_fields(self.width / level.width, self.height / level.height),
        ]

    def _thumbnail_fields(self, thumbnail: U8, offset: int, size: int) -> list[Field]:
        height, width = thumbnail.shape[:2]
        return [
            *self._common_fields(width, height, f"{self.width}x{self.height} -> {width}x{height} - "),
            (273, _LONG8 if self._big else _LONG, [offset]),
            (278, _LONG, [height]),
            (279, _LONG, [size]),
        ]

    def _common_fields(self, width: int, height: int, geometry: str) -> list[Field]:
        pairs = "|".join(f"{key} = {value}" for key, value in self._facts.items())
        description = f"Aperio Image Library (cytopipe {__version__})\r\n{geometry}|{pairs}"
        return [
            (254, _LONG, [0]),  # Aperio leaves 0 on reduced levels too, and readers of its files rely on it
            (256, _LONG, [width]),
            (257, _LONG, [height]),
            (258, _SHORT, [8, 8, 8]),
            (259, _SHORT, [7]),  # JPEG, each tile or strip a whole stream: no JPEGTables
            (262, _SHORT, [6]),  # YCbCr
            (270, _ASCII, description.encode("ascii", "replace") + b"\0"),
            (277, _SHORT, [3]),
            (284, _SHORT, [1]),
            (530, _SHORT, [2, 2]),
        ]

    def _resolution_fields(self, *downsamples: float) -> list[Field]:
        """Pixels a centimetre, in hundredths, from µm/px."""
        rationals = [(round(1e6 / (self._mpp * downsample)), 100) for downsample in downsamples]
        return [(282, _RATIONAL, rationals[0]), (283, _RATIONAL, rationals[1]), (296, _SHORT, [3])]

    def _write_directory(self, fields: list[Field], *, is_last: bool) -> None:
        """One directory where the file ends, its long values right behind it, then the next one (TIFF 6.0 section
        2; BigTIFF widens the fields).
        """
        count, entry, word = ("<Q", "<HHQ", "<Q") if self._big else ("<H", "<HHI", "<I")
        inline = struct.calcsize(word)
        start = self._aligned()
        head_bytes = struct.calcsize(count) + len(fields) * (struct.calcsize(entry) + inline) + inline
        head, tail = [struct.pack(count, len(fields))], b""
        for tag, kind, value in sorted(fields, key=lambda field: field[0]):
            length, data = _packed(kind, value)
            if len(data) > inline:
                place = struct.pack(word, start + head_bytes + len(tail))
                tail += data + b"\0" * (-len(data) % 8)
            else:
                place = data.ljust(inline, b"\0")
            head.append(struct.pack(entry, tag, kind, length) + place)
        padding = -(start + head_bytes + len(tail)) % 8
        head.append(struct.pack(word, 0 if is_last else start + head_bytes + len(tail) + padding))
        self._file.write(b"".join(head) + tail + b"\0" * padding)

    def _aligned(self) -> int:
        """The end of the file, moved up to a multiple of 8 bytes."""
        self._file.write(b"\0" * (-self._file.tell() % 8))
        return self._file.tell()


class _Level:
    """What a level has taken so far: rows, the pending row of tiles, places of the finished tiles."""

    def __init__(self, width: int, height: int, tile_px: int) -> None:
        self.width, self.height, self.across = width, height, math.ceil(width / tile_px)
        self.pending: U8 = np.empty((tile_px, width, 3), np.uint8)
        self.filled = self.taken = 0
        self.offsets: list[int] = []
        self.sizes: list[int] = []


def _packed(kind: int, value: bytes | Sequence[int]) -> tuple[int, bytes]:
    """Number of values and their bytes."""
    if isinstance(value, bytes):
        return len(value), value
    if kind == _RATIONAL:
        return 1, struct.pack("<II", *value)
    return len(value), struct.pack(f"<{len(value)}{_FORMAT[kind]}", *value)
