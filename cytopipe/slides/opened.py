"""What all readers share: window checks, gaps composed on the background, the background judged once, the colour
profile applied on request, and the refusal that lets the next reader try.

A reader hands over pixels as RGB, or as RGBA where it knows that some were never scanned (alpha 0) or are see-through.
"""

from __future__ import annotations

import copy
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import RunError, UserError
from cytopipe.slides.resolution import Evidence, settle_resolution
from cytopipe.slides.showing import ANY_CHANNELS, AS_STORED, Showing, Z
from cytopipe.slides.slide import BACKGROUND_VALUE, U8, Background, Level, check_window, make_levels

if TYPE_CHECKING:
    from cytopipe.slides.icc import ToSrgb

DARK_BELOW = 80
"""A slide is dark when the median over its pixels of the brightest channel is below this grey level [D]: glass in
transmitted light is near 230 and a field full of stained cells above 120, while unstained space in fluorescence is
below 40."""

SAMPLE_WHOLE_PX = 4_000_000
"""A coarsest level of at most so many pixels is sampled whole; a larger one by a grid of `SAMPLE_GRID` x `SAMPLE_GRID`
windows of `SAMPLE_PX` px."""
SAMPLE_GRID = 7
SAMPLE_PX = 64

MAX_SEGMENT_BYTES = 128 * 1024 * 1024
"""A tile, strip or chunk above is refused [D], 6688 px square in RGB: it would have to be decoded whole for each
window, and two threads hold it in several forms at once."""
MAX_SIDE_PX = 1_000_000
"""A level 0 of a longer side is refused [D]: a glass slide is 75 mm long, 750,000 px at 0.1 µm. Damaged sizes would
keep every search of the slide busy for hours."""
MAX_AREA_PX = 100_000_000_000
"""The same for its area [D]: 25 x 40 mm at 0.1 µm/px."""


class NotThisReader(UserError):
    """This reader does not read such a file; another one may. Any other UserError of a reader is final."""


class OpenedSlide(ABC):
    """A slide with its facts settled at opening. A reader adds `_pixels`, `native_tiles` and `_close`."""

    reader: ClassVar[str]
    takes_channels: ClassVar[bool] = False
    """Whether its samples are mixed into RGB by `Showing.channels`."""

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
        showing: Showing = AS_STORED,
        z_count: int = 1,
    ) -> None:
        _refuse_absurd_size(sizes[0], path.name)
        self.path = path
        self.vendor = vendor
        self.levels: tuple[Level, ...] = make_levels(sizes)
        self.dimensions: tuple[int, int] = sizes[0]
        self.resolution, resolution_notes = settle_resolution(evidence, mpp_override)
        self.resolution_notes = resolution_notes
        self.notes: tuple[str, ...] = (*resolution_notes, *notes)
        self.properties: Mapping[str, str] = MappingProxyType(dict(properties))
        self.bounds_offset = bounds_offset
        self.objective = evidence.objective if evidence.objective and evidence.objective > 0 else None
        self.icc = icc
        self.showing = showing
        self.z_count = z_count
        self.z: Z = choose_z(showing.z, z_count, path.name)
        self.channels: tuple[str, ...] = ()
        self._lender: OpenedSlide | None = None  # set in what `at_z` gives: whose file it is
        self._to_srgb: ToSrgb | None = None
        if showing.channels not in (None, ANY_CHANNELS) and not self.takes_channels:
            raise UserError(
                "it is one picture in RGB or grey, without channels to choose",
                where=path.name,
                fix="leave --channels out",
            )
        self._background: Background | None = None
        self._background_lock = threading.Lock()
        self._settle_profile()

    @property
    def background(self) -> Background:
        """Light or dark; see `DARK_BELOW`. Windows that cannot be decoded are left out; RunError when none can."""
        if self._lender is not None:
            return self._lender.background
        with self._background_lock:
            if self._background is None:
                self._background = self._judge_background()
            return self._background

    def read(self, level: int, x: int, y: int, w: int, h: int) -> U8:
        """See `Slide.read`."""
        check_window(self.levels, level, x, y, w, h)
        pixels = self._pixels(level, x, y, w, h)
        if self._to_srgb is not None:
            pixels = np.dstack([self._to_srgb.apply(pixels[..., :3]), pixels[..., 3:]])
        if pixels.shape[2] == 3:
            return pixels
        if cv2.extractChannel(pixels, 3).min() == 255:
            return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB), dtype=np.uint8)
        return compose(pixels, BACKGROUND_VALUE[self.background])

    def announce(self, level: int, windows: NDArray[np.int64]) -> None:
        """See `Slide.announce`: nothing to do, unless a reader decodes tiles by itself."""
        return

    def copied_tile(self, level: int, x: int, y: int, w: int, h: int) -> bytes | None:
        """See `Slide.copied_tile`: None, unless a reader knows its compressed tiles."""
        return None

    @abstractmethod
    def native_tiles(self, level: int) -> tuple[int, int] | None:
        """See `Slide.native_tiles`."""

    @abstractmethod
    def _pixels(self, level: int, x: int, y: int, w: int, h: int) -> U8:
        """A checked window as (h, w, 3) RGB or (h, w, 4) RGBA with straight alpha. Raises RunError with the place."""

    @abstractmethod
    def _close(self) -> None:
        """Give back what the reader holds; may be called twice."""

    def at_z(self, z: int) -> Self:
        """See `Slide.at_z`."""
        if not 0 <= z < self.z_count:
            raise ValueError(f"at_z: plane {z} of {self.z_count}")
        plane = copy.copy(self)
        plane.z, plane._lender = z, self  # the lender holds the file, and judges the background for all planes
        return plane

    @property
    def plane(self) -> int:
        """The plane that `read` shows: `z`, or the middle one for "best"."""
        return self.z if isinstance(self.z, int) else self.z_count // 2

    def close(self) -> None:
        """See `Slide.close`."""
        if self._lender is None:
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _settle_profile(self) -> None:
        """Build the colour transform that was asked for, and note what happens to the profile. Raises UserError as
        `ToSrgb`."""
        if self.showing.icc == "off":
            if self.icc is not None:
                self.notes += ("its ICC profile is not applied; --icc srgb applies it",)
        elif self.icc is None:
            self.notes += ("it has no ICC profile; its colours are shown as stored",)
        else:
            from cytopipe.slides.icc import ToSrgb  # Pillow's colour management is loaded for who asks for it

            self._to_srgb = ToSrgb(self.icc, self.path.name)

    def _judge_background(self) -> Background:
        level = len(self.levels) - 1
        width, height = self.levels[level].width, self.levels[level].height
        w, h = min(SAMPLE_PX, width), min(SAMPLE_PX, height)
        steps = np.linspace(0, 1, SAMPLE_GRID)
        windows = [(round(fx * (width - w)), round(fy * (height - h)), w, h) for fy in steps for fx in steps]
        failure: RunError | None = None
        brightest: list[U8] = []
        if width * height <= SAMPLE_WHOLE_PX:
            try:
                brightest.append(self._brightest(level, 0, 0, width, height))
                windows = []
            except RunError as error:  # a bad tile in it: the samples tell where others are sound
                failure = error
        for window in windows:
            try:
                brightest.append(self._brightest(level, *window))
            except RunError as error:
                failure = failure or error
        if not brightest and failure is not None:
            raise failure
        values = np.concatenate(brightest)
        return "dark" if values.size and float(np.median(values)) < DARK_BELOW else "light"

    def _brightest(self, level: int, x: int, y: int, w: int, h: int) -> U8:
        """The brightest channel of each px of a window that was scanned (n,)."""
        pixels = self._pixels(level, x, y, w, h)
        known: U8 = np.maximum(np.maximum(pixels[..., 0], pixels[..., 1]), pixels[..., 2])
        return known[pixels[..., 3] > 0] if pixels.shape[2] == 4 else known.ravel()


def compose(rgba: U8, background_value: int) -> U8:
    """RGBA (h, w, 4) with straight alpha over a grey background -> RGB (h, w, 3), rounded."""
    alpha = rgba[..., 3:].astype(np.uint16)
    mixed = (rgba[..., :3] * alpha + np.uint16(background_value) * (255 - alpha) + 127) // 255
    return mixed.astype(np.uint8)


def _refuse_absurd_size(size: tuple[int, int], name: str) -> None:
    if min(size) < 1 or max(size) > MAX_SIDE_PX or size[0] * size[1] > MAX_AREA_PX:
        what = f"its size says {size[0]} x {size[1]} px, which no slide has"
        raise UserError(what, where=name, fix="the file is damaged")


def choose_z(z: Z | None, z_count: int, name: str) -> Z:
    """The plane to show of `z_count`; the single plane of most slides is the best one too.

    Raises UserError for a stack without a choice, and for a plane that is not there.
    """
    choices = f"--z 0 to {z_count - 1}, or --z best for the sharpest of each window"
    if z is None and z_count > 1:
        raise UserError(f"a stack of {z_count} planes", where=name, fix=f"choose one: {choices}")
    if z == "best":
        return "best" if z_count > 1 else 0
    if z is not None and z >= z_count:
        what = f"plane {z} of a stack of {z_count}" if z_count > 1 else f"plane {z} of a slide of one plane"
        raise UserError(what, where=name, fix=choices if z_count > 1 else "leave --z out")
    return z or 0


def in_place(path: Path, level: int, x: int, y: int) -> str:
    """The `where` of an error about pixels: file, level, and the corner of the tile or window in that level's px."""
    return f"{path.name}, level {level}, at x {x} y {y}"
