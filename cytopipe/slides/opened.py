"""What all readers share: window checks, gaps composed on the background, the background judged once, and the refusal
that lets the next reader try.

A reader hands over pixels as RGB, or as RGBA where it knows that some were never scanned (alpha 0) or are see-through.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import ClassVar, Self

import numpy as np

from cytopipe.core.errors import RunError, UserError
from cytopipe.slides.resolution import Evidence, settle_resolution
from cytopipe.slides.slide import BACKGROUND_VALUE, U8, Background, Level, check_window, make_levels

DARK_BELOW = 80
"""A slide is dark when the median over its pixels of the brightest channel is below this grey level [D]: glass in
transmitted light is near 230 and a field full of stained cells above 120, while unstained space in fluorescence is
below 40."""

SAMPLE_WHOLE_PX = 4_000_000
"""A coarsest level of at most so many pixels is sampled whole; a larger one by a grid of `SAMPLE_GRID` x `SAMPLE_GRID`
windows of `SAMPLE_PX` px."""
SAMPLE_GRID = 7
SAMPLE_PX = 64


class NotThisReader(UserError):
    """This reader does not read such a file; another one may. Any other UserError of a reader is final."""


class OpenedSlide(ABC):
    """A slide with its facts settled at opening. A reader adds `_pixels`, `native_tiles` and `_close`."""

    reader: ClassVar[str]

    def __init__(
        self,
        path: Path,
        *,
        vendor: str,
        sizes: list[tuple[int, int]],
        evidence: Evidence,
        mpp_override: float | None,
        properties: Mapping[str, str],
        bounds_offset: tuple[int, int] = (0, 0),
        icc: bytes | None = None,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.vendor = vendor
        self.levels: tuple[Level, ...] = make_levels(sizes)
        self.dimensions: tuple[int, int] = sizes[0]
        self.resolution, resolution_notes = settle_resolution(evidence, mpp_override)
        self.notes: tuple[str, ...] = (*resolution_notes, *notes)
        self.properties: Mapping[str, str] = MappingProxyType(dict(properties))
        self.bounds_offset = bounds_offset
        self.icc = icc
        self._background: Background | None = None
        self._background_lock = threading.Lock()

    @property
    def background(self) -> Background:
        """Light or dark; see `DARK_BELOW`. Windows that cannot be decoded are left out; RunError when none can."""
        with self._background_lock:
            if self._background is None:
                self._background = self._judge_background()
            return self._background

    def read(self, level: int, x: int, y: int, w: int, h: int) -> U8:
        """See `Slide.read`."""
        check_window(self.levels, level, x, y, w, h)
        pixels = self._pixels(level, x, y, w, h)
        if pixels.shape[2] == 3:
            return pixels
        if pixels[..., 3].min() == 255:
            return np.ascontiguousarray(pixels[..., :3])
        return compose(pixels, BACKGROUND_VALUE[self.background])

    @abstractmethod
    def native_tiles(self, level: int) -> tuple[int, int] | None:
        """See `Slide.native_tiles`."""

    @abstractmethod
    def _pixels(self, level: int, x: int, y: int, w: int, h: int) -> U8:
        """A checked window as (h, w, 3) RGB or (h, w, 4) RGBA with straight alpha. Raises RunError with the place."""

    @abstractmethod
    def _close(self) -> None:
        """Give back what the reader holds; may be called twice."""

    def close(self) -> None:
        """See `Slide.close`."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _judge_background(self) -> Background:
        level = len(self.levels) - 1
        width, height = self.levels[level].width, self.levels[level].height
        if width * height <= SAMPLE_WHOLE_PX:
            windows = [(0, 0, width, height)]
        else:
            w, h = min(SAMPLE_PX, width), min(SAMPLE_PX, height)
            steps = np.linspace(0, 1, SAMPLE_GRID)
            windows = [(round(fx * (width - w)), round(fy * (height - h)), w, h) for fy in steps for fx in steps]
        brightest: list[U8] = []
        failure: RunError | None = None
        for window in windows:
            try:
                pixels = self._pixels(level, *window)
            except RunError as error:
                failure = error
                continue
            known = pixels[..., :3].max(axis=2)
            brightest.append(known[pixels[..., 3] > 0] if pixels.shape[2] == 4 else known.ravel())
        if not brightest and failure is not None:
            raise failure
        values = np.concatenate(brightest)
        return "dark" if values.size and float(np.median(values)) < DARK_BELOW else "light"


def compose(rgba: U8, background_value: int) -> U8:
    """RGBA (h, w, 4) with straight alpha over a grey background -> RGB (h, w, 3), rounded."""
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = (rgba[..., :3] * alpha + np.uint16(background_value) * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8)


def in_place(path: Path, level: int, x: int, y: int) -> str:
    """The `where` of an error about pixels: file, level, and the corner of the tile or window in that level's px."""
    return f"{path.name}, level {level}, at x {x} y {y}"
