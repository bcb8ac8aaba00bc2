"""A slide whose levels are arrays: the real base class of all readers, with memory instead of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cytopipe.core.errors import RunError
from cytopipe.slides.opened import OpenedSlide
from cytopipe.slides.resolution import Evidence
from cytopipe.slides.showing import AS_STORED, Showing
from cytopipe.slides.slide import U8


class ArraySlide(OpenedSlide):
    """Levels (h, w, 3 or 4) uint8, finest first. A read that meets one of `bad` (level, x, y) raises RunError, as an
    undecodable tile does."""

    reader = "array"

    def __init__(
        self,
        *levels: U8,
        mpp: float | tuple[float, float] | None = None,
        bad: tuple[tuple[int, int, int], ...] = (),
        icc: bytes | None = None,
        showing: Showing = AS_STORED,
    ) -> None:
        pair = (mpp, mpp) if isinstance(mpp, float) else mpp
        super().__init__(
            Path("array.svs"),
            vendor="array",
            sizes=[(level.shape[1], level.shape[0]) for level in levels],
            evidence=Evidence(vendor=pair, vendor_field="array.mpp"),
            mpp_override=None,
            properties={},
            icc=icc,
            showing=showing,
        )
        self._arrays = levels
        self._bad = bad
        self.px_read = 0

    def native_tiles(self, level: int) -> tuple[int, int] | None:
        return None

    def _pixels(self, level: int, x: int, y: int, w: int, h: int) -> U8:
        if any(level == at and x <= bad_x < x + w and y <= bad_y < y + h for at, bad_x, bad_y in self._bad):
            raise RunError("cannot be decoded", where=f"array.svs, level {level}")
        self.px_read += w * h
        return np.ascontiguousarray(self._arrays[level][y : y + h, x : x + w])

    def _close(self) -> None:
        self._arrays = ()
