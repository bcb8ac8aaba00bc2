"""The `tiff` reader: Aperio SVS, generic and OME pyramids of 8-bit RGB or grey, tiled or in strips, decoded tile by
tile without OpenSlide.

Enters: a path.  Leaves: a `TiffSlide`. Its structure is read once by tifffile (`tiff_layout`); afterwards a read is:
find the segments that a window meets, decode those that are not cached, copy. What the layout does not understand is
refused with a reason, and OpenSlide is asked next.

Limits: JPEG data damaged inside a tile so that libjpeg recovers is not noticed (it only warns, and imagecodecs does
not pass that on); a tile that ends early, has another size, or is no JPEG is an error. A tile of no bytes was never
scanned and shows the background, as in OpenSlide.
"""

from __future__ import annotations

import struct
import threading
from pathlib import Path

import cv2
import numpy as np

from cytopipe.core.errors import RunError
from cytopipe.slides.opened import OpenedSlide, compose, in_place
from cytopipe.slides.segment_cache import SegmentCache
from cytopipe.slides.slide import U8
from cytopipe.slides.tiff_layout import Plane, read_layout

DECODE_ERRORS = (RuntimeError, ValueError, IndexError, KeyError, TypeError, OSError, struct.error)
"""What imagecodecs and tifffile raise on damaged data: each codec has its own RuntimeError; ValueError and the like
come from shapes and headers."""


class TiffSlide(OpenedSlide):
    """A TIFF opened by its own tiles. Raises NotThisReader or UserError where it cannot."""

    reader = "tiff"

    def __init__(self, path: Path, mpp_override: float | None = None) -> None:
        layout = read_layout(path)
        super().__init__(
            path,
            vendor=layout.vendor,
            sizes=[(plane.width, plane.height) for plane in layout.planes],
            evidence=layout.evidence,
            mpp_override=mpp_override,
            properties=layout.properties,
            icc=layout.icc,
            notes=layout.notes,
        )
        self._planes = layout.planes
        self._cache = SegmentCache()
        self._file = path.open("rb")
        self._file_bytes = path.stat().st_size
        self._file_lock = threading.Lock()

    def native_tiles(self, level: int) -> tuple[int, int] | None:
        """See `Slide.native_tiles`."""
        plane = self._planes[level]
        return (plane.segment_width, plane.segment_height) if plane.is_tiled else None

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
                segment = self._segment(level, row * plane.columns + column)
                if segment is None:
                    gaps.append(target)
                else:
                    out[target] = segment[y0 - top : y1 - top, x0 - left : x1 - left]
        return _with_gaps(out, gaps) if gaps else out

    def _segment(self, level: int, index: int) -> U8 | None:
        """One tile or strip as RGB, at least as large as its part of the level; None where the file has no data for
        it."""
        plane = self._planes[level]
        if plane.byte_counts[index] == 0:
            return None
        cached = self._cache.get((level, index))
        if cached is not None:
            return cached
        top, left = index // plane.columns * plane.segment_height, index % plane.columns * plane.segment_width
        try:
            rgb = _rgb_of(self._decoded(plane, index), plane)
        except DECODE_ERRORS as error:
            where = in_place(self.path, level, left, top)
            raise RunError(
                f"{'tile' if plane.is_tiled else 'strip'} cannot be decoded ({error})", where=where
            ) from error
        self._cache.put((level, index), rgb)
        return rgb

    def _decoded(self, plane: Plane, index: int) -> U8:
        """Samples (h, w, samples) uint8. Raises one of DECODE_ERRORS."""
        missing = plane.offsets[index] + plane.byte_counts[index] - self._file_bytes
        if missing > 0:
            raise ValueError(f"the file ends {missing} bytes early")
        with self._file_lock:
            self._file.seek(plane.offsets[index])
            data = self._file.read(plane.byte_counts[index])
        if plane.is_jpeg and data.rfind(b"\xff\xd9") < 0:
            raise ValueError("JPEG data end early")
        samples = plane.decode(data, index)
        rows = min(plane.segment_height, plane.height - index // plane.columns * plane.segment_height)
        columns = min(plane.segment_width, plane.width - index % plane.columns * plane.segment_width)
        if samples.shape[0] < rows or samples.shape[1] < columns:
            raise ValueError(f"{samples.shape[1]} x {samples.shape[0]} px instead of {columns} x {rows}")
        return samples

    def _close(self) -> None:
        self._file.close()
        self._cache.clear()


def _rgb_of(samples: U8, plane: Plane) -> U8:
    if plane.is_inverted:
        samples = 255 - samples
    if samples.shape[2] == 1:
        return np.asarray(cv2.cvtColor(np.ascontiguousarray(samples), cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    if samples.shape[2] == 4:  # alpha inside a TIFF is a viewer's matter: transmitted light stands behind it
        return compose(samples, 255)
    return np.ascontiguousarray(samples)


def _with_gaps(rgb: U8, gaps: list[tuple[slice, slice]]) -> U8:
    """RGBA that is see-through in the gaps."""
    rgba = np.full((*rgb.shape[:2], 4), 255, dtype=np.uint8)
    rgba[..., :3] = rgb
    for rows, columns in gaps:
        rgba[rows, columns] = 0
    return rgba
