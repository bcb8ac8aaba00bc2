"""The `tiff` reader: Aperio SVS, generic and OME pyramids of 8-bit RGB or grey, tiled or in strips, decoded tile by
tile without OpenSlide.

Enters: a path.  Leaves: a `TiffSlide`. Its structure is read once by tifffile (`tiff_layout`); afterwards a read is:
find the segments that a window meets, decode those that are not cached, copy. What the layout does not understand is
refused with a reason, and OpenSlide is asked next.

Limits: raw, LZW, packbits, Zstandard and WebP tiles carry no checksum, and a flipped bit in JPEG data mostly leaves
valid JPEG data: such a tile has other pixels and nobody can tell. A tile that ends early, has another size, or is
damaged so that it shows (`jpeg_damage`) is an error. A tile of no bytes was never scanned and shows the background, as
in OpenSlide; such tiles are counted in the slide's notes.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import RunError, UserError
from cytopipe.slides.opened import NotThisReader, OpenedSlide, compose, in_place
from cytopipe.slides.segment_cache import SegmentCache
from cytopipe.slides.showing import AS_STORED, Showing
from cytopipe.slides.slide import U8
from cytopipe.slides.tiff_layout import Layout, Plane, read_layout

DECODE_ERRORS = (RuntimeError, ValueError, IndexError, KeyError, TypeError, OSError, struct.error)
"""What imagecodecs and tifffile raise on damaged data: each codec has its own RuntimeError; ValueError and the like
come from shapes and headers."""


class TiffSlide(OpenedSlide):
    """A TIFF opened by its own tiles. Raises NotThisReader or UserError where it cannot."""

    reader = "tiff"

    def __init__(
        self,
        path: Path,
        mpp_override: float | None = None,
        showing: Showing = AS_STORED,
        layout: Layout | None = None,
    ) -> None:
        found = layout or read_layout(path)
        if not isinstance(found, Layout):
            raise NotThisReader("no single picture of 8 bits", where=path.name)
        layout = found
        gaps = _gaps_of(layout.planes, path.name)
        super().__init__(
            path,
            vendor=layout.vendor,
            sizes=[(plane.width, plane.height) for plane in layout.planes],
            evidence=layout.evidence,
            mpp_override=mpp_override,
            properties=layout.properties,
            icc=layout.icc,
            notes=(*layout.notes, *gaps),
            showing=showing,
        )
        self._planes = layout.planes
        self._cache = SegmentCache()
        self._file = path.open("rb")
        self._file_bytes = path.stat().st_size

    def native_tiles(self, level: int) -> tuple[int, int] | None:
        """See `Slide.native_tiles`."""
        plane = self._planes[level]
        return (plane.segment_width, plane.segment_height) if plane.is_tiled else None

    def announce(self, level: int, windows: NDArray[np.int64]) -> None:
        """See `Slide.announce`."""
        plane = self._planes[level]
        rows = -(-plane.height // plane.segment_height)
        reads = np.zeros((rows + 1, plane.columns + 1), np.int32)
        sides = (plane.segment_width, plane.segment_height) * 2
        x0, y0, x1, y1 = ((windows - (0, 0, 1, 1)) // sides).T  # of the first and the last segment that each meets
        for xs, ys, sign in ((x0, y0, 1), (x1 + 1, y0, -1), (x0, y1 + 1, -1), (x1 + 1, y1 + 1, 1)):
            np.add.at(reads, (ys, xs), sign)
        self._cache.announce(level, reads.cumsum(0).cumsum(1)[:rows, : plane.columns].astype(np.int32).ravel())

    def copied_tile(self, level: int, x: int, y: int, w: int, h: int) -> bytes | None:
        """See `Slide.copied_tile`."""
        if self._to_srgb is not None:
            return None
        plane = self._planes[level]
        is_whole = (w, h) == (plane.segment_width, plane.segment_height) and x + w <= plane.width
        if plane.copy is None or not plane.is_tiled or not is_whole or y + h > plane.height or x % w or y % h:
            return None
        index = y // h * plane.columns + x // w
        if plane.byte_counts[index] == 0:
            return None
        try:
            return plane.copy(self._data(plane, index))
        except ValueError:
            return None  # whoever decodes it instead says what is wrong with it

    def _pixels(self, level: int, x: int, y: int, w: int, h: int) -> U8:
        plane = self._planes[level]
        out = np.empty((h, w, 3), dtype=np.uint8)
        gaps: list[tuple[slice, slice]] = []
        for row in range(y // plane.segment_height, (y + h - 1) // plane.segment_height + 1):
            for column in range(x // plane.segment_width, (x + w - 1) // plane.segment_width + 1):
                left, top = column * plane.segment_width, row * plane.segment_height
                x0, x1 = max(x, left), min(x + w, left + plane.segment_width)
                y0, y1 = max(y, top), min(y + h, top + plane.segment_height)
                target = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
                index = row * plane.columns + column
                if plane.byte_counts[index] == 0:
                    gaps.append(target)
                    continue
                segment = self._hold(level, index)
                out[target] = segment[y0 - top : y1 - top, x0 - left : x1 - left]
                self._cache.release((level, index))
        return _with_gaps(out, gaps) if gaps else out

    def _hold(self, level: int, index: int) -> U8:
        """One tile or strip as RGB, at least as large as its part of the level; to be released."""
        plane = self._planes[level]

        def decode(buffer: U8) -> U8:
            try:
                return _rgb_of(self._decoded(plane, index, buffer), plane)
            except DECODE_ERRORS as error:
                top, left = index // plane.columns * plane.segment_height, index % plane.columns * plane.segment_width
                what = f"{'tile' if plane.is_tiled else 'strip'} cannot be decoded ({error})"
                raise RunError(what, where=in_place(self.path, level, left, top)) from error

        shape = (plane.segment_height, plane.segment_width, plane.samples)
        return self._cache.hold((level, index), decode, shape)

    def _decoded(self, plane: Plane, index: int, buffer: U8) -> U8:
        """Samples (h, w, samples) uint8. Raises one of DECODE_ERRORS."""
        samples = plane.decode(self._data(plane, index), index, buffer)
        rows = min(plane.segment_height, plane.height - index // plane.columns * plane.segment_height)
        columns = min(plane.segment_width, plane.width - index % plane.columns * plane.segment_width)
        if samples.shape[0] < rows or samples.shape[1] < columns:
            raise ValueError(f"{samples.shape[1]} x {samples.shape[0]} px instead of {columns} x {rows}")
        return samples

    def _data(self, plane: Plane, index: int) -> bytes:
        """The compressed segment. Raises ValueError where the file is too short for it."""
        missing = plane.offsets[index] + plane.byte_counts[index] - self._file_bytes
        if missing > 0:
            raise ValueError(f"the file ends {missing} bytes early")
        return os.pread(self._file.fileno(), plane.byte_counts[index], plane.offsets[index])

    def _close(self) -> None:
        self._file.close()
        self._cache.clear()


def _gaps_of(planes: tuple[Plane, ...], name: str) -> tuple[str, ...]:
    """A note for each level on the tiles that were never scanned. Raises UserError where no tile of a level was:
    nothing but background would be shown."""
    notes: list[str] = []
    for level, plane in enumerate(planes):
        count = plane.columns * -(-plane.height // plane.segment_height)
        gaps = plane.byte_counts[:count].count(0)
        word = f"{'tiles' if plane.is_tiled else 'strips'}{f' of level {level}' if level else ''}"
        if gaps == count:
            raise UserError(f"none of its {count} {word} holds data", where=name, fix="the file is damaged or empty")
        if gaps:
            notes.append(f"{gaps} of {count} {word} hold no data; they are shown as background")
    return tuple(notes)


def _rgb_of(samples: U8, plane: Plane) -> U8:
    if plane.is_inverted:
        samples = 255 - samples
    if samples.shape[2] == 1:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(samples), cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    if samples.shape[2] == 4:  # alpha inside a TIFF is a viewer's matter: transmitted light stands behind it
        return compose(samples, 255)
    return samples


def _with_gaps(rgb: U8, gaps: list[tuple[slice, slice]]) -> U8:
    """RGBA that is see-through in the gaps."""
    rgba = np.full((*rgb.shape[:2], 4), 255, dtype=np.uint8)
    rgba[..., :3] = rgb
    for rows, columns in gaps:
        rgba[rows, columns] = 0
    return rgba
