"""A slide made of planes: z x channels, samples of any type, which a `Mix` turns into RGB. What the file format is, the
readers below know.

A read goes by the file's own tiles, strips or chunks ("segments"): each is decoded, mixed and kept for the next window.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from cytopipe.core.errors import RunError, UserError
from cytopipe.slides.mixing import Samples, Source, choose_mix
from cytopipe.slides.opened import OpenedSlide, in_place
from cytopipe.slides.resolution import Evidence
from cytopipe.slides.segment_cache import SegmentCache
from cytopipe.slides.showing import HOW_CHANNELS, Showing
from cytopipe.slides.slide import U8


@dataclass(frozen=True, slots=True)
class Stack:
    """What a file holds: its levels, finest first, its planes of focus, its channels; and its words about itself.

    sizes     width and height of each level, px
    segments  width and height of the segments of each level, px
    """

    vendor: str
    sizes: tuple[tuple[int, int], ...]
    segments: tuple[tuple[int, int], ...]
    is_tiled: bool
    z_count: int
    source: Source
    evidence: Evidence
    properties: Mapping[str, str]
    icc: bytes | None
    notes: tuple[str, ...]


class StackSlide(OpenedSlide):
    """A slide of planes. A reader adds `_samples` and `_close`, and `_is_gap` where segments may be missing."""

    takes_channels: ClassVar[bool] = True
    decode_errors: ClassVar[tuple[type[Exception], ...]] = (ValueError,)
    """What `_samples` raises on damaged data; ValueError is always among them."""
    segment_word: ClassVar[str] = "tile"

    def __init__(self, path: Path, stack: Stack, mpp_override: float | None, showing: Showing) -> None:
        if stack.z_count > 1 and stack.source.is_a_choice and showing.z is None and showing.channels is None:
            what = f"a stack of {stack.z_count} planes and {len(stack.source.channels)} channels"
            fix = f"choose a plane by --z 0 to {stack.z_count - 1} or --z best, and {HOW_CHANNELS}"
            raise UserError(f"{what} ({stack.source.listed})", where=path.name, fix=fix)
        self._mix, notes = choose_mix(showing.channels, stack.source, path.name)
        super().__init__(
            path,
            vendor=stack.vendor,
            sizes=list(stack.sizes),
            evidence=stack.evidence,
            mpp_override=mpp_override,
            properties=stack.properties,
            icc=stack.icc,
            notes=(*stack.notes, *notes),
            showing=showing,
            z_count=stack.z_count,
        )
        channels = stack.source.channels
        self.channels = tuple(channel.name for channel in channels) if stack.source.is_a_choice else ()
        self._stack = stack
        self._cache = SegmentCache()

    def native_tiles(self, level: int) -> tuple[int, int] | None:
        """See `Slide.native_tiles`."""
        return self._stack.segments[level] if self._stack.is_tiled else None

    def _pixels(self, level: int, x: int, y: int, w: int, h: int) -> U8:
        width, height = self._stack.segments[level]
        out = np.zeros((h, w, 4), dtype=np.uint8)
        for row in range(y // height, (y + h - 1) // height + 1):
            for column in range(x // width, (x + w - 1) // width + 1):
                if self._is_gap(level, column, row):
                    continue
                left, top = column * width, row * height
                x0, x1, y0, y1 = max(x, left), min(x + w, left + width), max(y, top), min(y + h, top + height)
                key = self._key(level, column, row)
                segment = self._cache.hold(key, lambda _, c=column, r=row: self._decoded(level, c, r), (0,))  # type: ignore[misc]
                out[y0 - y : y1 - y, x0 - x : x1 - x, :3] = segment[y0 - top : y1 - top, x0 - left : x1 - left]
                out[y0 - y : y1 - y, x0 - x : x1 - x, 3] = 255
                self._cache.release(key)
        return out

    @abstractmethod
    def _samples(self, level: int, channels: tuple[int, ...], column: int, row: int) -> Mapping[int, Samples]:
        """The samples (h, w) of one segment of `self.plane` in each of the channels. At the right and lower border they
        may be cut to the level. Raises one of `decode_errors`."""

    def _is_gap(self, level: int, column: int, row: int) -> bool:
        """Whether the file has no data for a segment of `self.plane`; then the background stands there."""
        return False

    def _key(self, level: int, column: int, row: int) -> tuple[int, int]:
        """The segment's place in the cache: planes lie one after the other."""
        size, segment = self._stack.sizes[level], self._stack.segments[level]
        columns, rows = -(-size[0] // segment[0]), -(-size[1] // segment[1])
        return level, (self.plane * rows + row) * columns + column

    def _decoded(self, level: int, column: int, row: int) -> U8:
        width, height = self._stack.segments[level]
        left, top = column * width, row * height
        try:
            samples = self._samples(level, self._mix.channels, column, row)
            for plane in samples.values():
                needed = (min(height, self.levels[level].height - top), min(width, self.levels[level].width - left))
                if plane.shape[0] < needed[0] or plane.shape[1] < needed[1]:
                    raise ValueError(f"{plane.shape[1]} x {plane.shape[0]} px instead of {needed[1]} x {needed[0]}")
        except self.decode_errors as error:
            where = in_place(self.path, level, left, top) + (f", plane {self.plane}" if self.z_count > 1 else "")
            raise RunError(f"{self.segment_word} cannot be decoded ({error})", where=where) from error
        return self._mix.rgb(samples)
