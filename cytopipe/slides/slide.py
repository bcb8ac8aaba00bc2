"""What a slide is to the rest of cytopipe: levels of pixels, a resolution with its evidence, a background. No file
format is known here.

Frame of every coordinate in this room: `level` px of the level that is named, x right, y down, pixel edges at
integers; `slide` = level-0 px.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cytopipe.slides.showing import Showing, Z

U8 = NDArray[np.uint8]
Background = Literal["light", "dark"]

BACKGROUND_VALUE: dict[Background, int] = {"light": 255, "dark": 0}
"""The grey level that stands where a slide has no data: past its border, or in a tile that was never scanned."""


ASPECT_PX = 2.0
"""A page or array belongs to a pyramid if scaling level 0 to its width gives its height within so many px [D]; writers
round each level by up to one."""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the pyramid: its size in its own px, and level-0 px per level px (1.0 for level 0)."""

    width: int
    height: int
    downsample: float


@dataclass(frozen=True, slots=True)
class Resolution:
    """Level-0 µm/px on each axis, the evidence for it in words, and whether it was guessed from the objective power."""

    mpp_x: float
    mpp_y: float
    source: str
    guessed: bool

    @property
    def mpp(self) -> float:
        """The mean of both axes, µm/px."""
        return (self.mpp_x + self.mpp_y) / 2


class Slide(Protocol):
    """One opened slide. Reads may come from several threads at once; `close` only after the last one has returned."""

    @property
    def path(self) -> Path:
        """The file that was opened."""

    @property
    def reader(self) -> str:
        """Which reader opened it: tiff, openslide, zarr or image."""

    @property
    def vendor(self) -> str:
        """Who wrote the file, in OpenSlide's words where it has one (aperio, hamamatsu, generic-tiff, ome-tiff, imagej,
        ome-zarr, png, jpeg)."""

    @property
    def dimensions(self) -> tuple[int, int]:
        """Width and height of level 0, px."""

    @property
    def levels(self) -> tuple[Level, ...]:
        """Finest first; never empty."""

    @property
    def resolution(self) -> Resolution | None:
        """Level-0 µm/px with its evidence; None where the file says nothing that can be believed."""

    @property
    def resolution_notes(self) -> tuple[str, ...]:
        """Those of `notes` that are about the resolution: tags not believed, anisotropic pixels."""

    @property
    def objective(self) -> float | None:
        """The objective's nominal magnification as the file states it; None where it does not."""

    @property
    def background(self) -> Background:
        """Light (transmitted light) or dark (fluorescence), judged from the pixels once, at first use. Raises RunError
        where none can be read."""

    @property
    def bounds_offset(self) -> tuple[int, int]:
        """The `bounds` frame's origin in slide px (openslide.bounds-x/y); (0, 0) where the file has none."""

    @property
    def properties(self) -> Mapping[str, str]:
        """Technical facts from an allow-list: never a patient, label, user, date or file name."""

    @property
    def icc(self) -> bytes | None:
        """The embedded ICC profile; it is applied where `showing.icc` says so."""

    @property
    def showing(self) -> Showing:
        """How it was asked to be shown; `AS_STORED` where nothing was asked."""

    @property
    def z_count(self) -> int:
        """Planes of focus, 1 for most slides."""

    @property
    def z(self) -> Z:
        """The plane that `read` shows, from 0. "best": the user wants the sharpest plane of each window, which
        `MppView` finds; `read` then shows the middle plane."""

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels where there are several to choose from; empty for RGB and grey."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Oddities met while opening, a sentence each: resolution tags not believed, anisotropic pixels, an ignored
        orientation."""

    def read(self, level: int, x: int, y: int, w: int, h: int) -> U8:
        """Pixels (h, w, 3) RGB of a window in px of `level`, wholly inside it.

        Where the file has no data the background stands. Raises ValueError for a window that is not inside the level,
        RunError with file, level and place for data that cannot be decoded.
        """

    def announce(self, level: int, windows: NDArray[np.int64]) -> None:
        """Say which windows of `level` are going to be read, each once and in about this order: then a reader that
        decodes tiles keeps each of them until the last window that shows it, and decodes it once.

        windows  (N, 4) int64 x0 y0 x1 y1, px of `level`, each wholly inside it
        It changes no pixel; other windows may still be read.
        """

    def copied_tile(self, level: int, x: int, y: int, w: int, h: int) -> bytes | None:
        """The file's own compressed tile that covers exactly this window, as a JPEG file that shows the pixels of
        `read`; None where there is none."""

    def native_tiles(self, level: int) -> tuple[int, int] | None:
        """Width and height of the file's own tiles at `level`, px; None where it is not tiled or does not say."""

    def at_z(self, z: int) -> Slide:
        """The same slide at plane `z`. It shares the file, so closing it does nothing. Raises ValueError for a plane
        that is not there."""

    def close(self) -> None:
        """Give the file back; a second call does nothing."""

    def __enter__(self) -> Slide: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def check_window(levels: tuple[Level, ...], level: int, x: int, y: int, w: int, h: int) -> None:
    """Raise ValueError unless the window has an area and lies wholly inside the level."""
    if not 0 <= level < len(levels):
        raise ValueError(f"read: level {level} of {len(levels)}")
    size = levels[level]
    if w <= 0 or h <= 0 or x < 0 or y < 0 or x + w > size.width or y + h > size.height:
        raise ValueError(f"read: window x {x}, y {y}, {w} x {h} px in level {level} of {size.width} x {size.height} px")


def make_levels(sizes: list[tuple[int, int]]) -> tuple[Level, ...]:
    """Levels from their sizes (w, h), finest first, with downsamples that undo rounding.

    A level of 312 px below 5000 was made by 16, not by 16.026: writers drop the last, broken pixel. Where a whole
    factor explains both sides to less than a pixel it is taken, so that levels lie on the level-0 grid; otherwise the
    mean of both ratios.
    """
    return tuple(Level(w, h, _downsample(sizes[0], (w, h))) for w, h in sizes)


def _downsample(base: tuple[int, int], size: tuple[int, int]) -> float:
    whole = max(1, round(sum(base) / sum(size)))
    if all(abs(long / whole - short) < 1 for long, short in zip(base, size, strict=True)):
        return float(whole)
    return (base[0] / size[0] + base[1] / size[1]) / 2
