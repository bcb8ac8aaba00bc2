"""From a scene to pixels, band by band, in threads: memory depends on the width of the slide, not on its height.

Enters: a `Scene`.  Leaves: bands of uint8 RGB rows from top to bottom, and each block of the scene once, for its truth.
A window's pixels depend on the scene and the grid of windows only, which is fixed: the number of threads does not
change a byte.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.core.seeds import rng_from
from cytopipe.synth.camera import Camera, defocus_in
from cytopipe.synth.cells import Cell
from cytopipe.synth.matter import Frame, Matter
from cytopipe.synth.paint import Canvas, box_of, paint
from cytopipe.synth.scene import REACH_UM, Block, Scene
from cytopipe.synth.serum import Serum
from cytopipe.synth.texture import Textures

# What one thread draws at a time: a compromise of memory (a band of a slide 100,000 px wide takes 293 MiB) and of cells
# drawn more than once, since they lie on a border (1.4 times on average; 1.7 with bands half as high).
WINDOW_PX, BAND_PX = 1024, 1024


class Renderer:
    """Draws a scene; `bands()` may be called once more and gives the same again."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._textures = Textures(rng_from(scene.seed, "textures"), scene.mpp)
        self._camera = Camera(scene.stain, self._textures, scene.seed, scene.mpp)
        self._laid: dict[tuple[int, int], _Laid] = {}
        self._marks = _laid(Block((), (*scene.pen, *scene.lines)), scene.mpp)
        self._serum = Serum(scene.stain.film, scene.seed, scene.mpp)
        self._reach = REACH_UM / scene.mpp + self._camera.widest_px  # px around a window whose blocks it needs

    def bands(self, workers: int) -> Iterator[tuple[NDArray[np.uint8], list[Block]]]:
        """Bands of rows (h, width, 3), and with each the blocks whose first row lies in it.

        The memory of a band is used again for the next one: copy what you keep.
        """
        scene = self.scene
        columns = range(0, scene.width, WINDOW_PX)
        memory = np.empty((min(BAND_PX, scene.height), scene.width, 3), np.uint8)
        told = 0
        with _threads_of_our_own(), ThreadPoolExecutor(workers) as pool:
            for y in range(0, scene.height, BAND_PX):
                height = min(BAND_PX, scene.height - y)
                self._prepare(y, height, pool)
                band = memory[:height]
                windows = pool.map(self._window, columns, repeat(y), repeat(height))
                for x, pixels in zip(columns, windows, strict=True):
                    band[:, x : x + pixels.shape[1]] = pixels
                last = min(scene.rows, math.ceil((y + height) / scene.block_px))
                fresh = [self._laid[row, column].block for row in range(told, last) for column in range(scene.columns)]
                told = max(told, last)
                yield band, fresh

    def _prepare(self, y: int, height: int, pool: ThreadPoolExecutor) -> None:
        """Have the blocks that reach into the band, and no others."""
        low, high = self._rows(y, height)
        self._laid = {place: laid for place, laid in self._laid.items() if place[0] >= low}
        places = ((row, column) for row in range(low, high) for column in range(self.scene.columns))
        missing = [place for place in places if place not in self._laid]
        self._laid.update(zip(missing, pool.map(self._lay, missing), strict=True))

    def _lay(self, place: tuple[int, int]) -> _Laid:
        return _laid(self.scene.block(*place), self.scene.mpp)

    def _rows(self, y: int, height: int) -> tuple[int, int]:
        """The rows of blocks, from and up to, that reach into a band."""
        side = self.scene.block_px
        low, high = math.floor((y - self._reach) / side), math.ceil((y + height + self._reach) / side)
        return max(0, low), min(self.scene.rows, high)

    def _window(self, x: int, y: int, height: int) -> NDArray[np.uint8]:
        scene = self.scene
        width = min(WINDOW_PX, scene.width - x)
        defocus = defocus_in(scene.focus_discs(x, y, x + width, y + height), x, y, width, height)
        margin = self._camera.margin_px(defocus)
        canvas = Canvas(x - margin, y - margin, width + 2 * margin, height + 2 * margin)
        first = max(0, math.floor((x - self._reach) / scene.block_px))
        last = min(scene.columns, math.ceil((x + width + self._reach) / scene.block_px))
        for row in range(*self._rows(y, height)):
            for column in range(first, last):
                self._paint(canvas, self._laid[row, column])
        self._paint(canvas, self._marks)
        self._serum.pour(canvas, self._textures)
        picture = self._camera.expose(canvas.planes, x, y, defocus)
        return _framed(picture, scene.frame, x, y)

    def _paint(self, canvas: Canvas, laid: _Laid) -> None:
        for index in np.flatnonzero(canvas.meets(laid.boxes)):
            paint(canvas, laid.things[index], self._textures, self.scene.stain, self.scene.mpp)


def _framed(picture: NDArray[np.uint8], frame: Frame, x: int, y: int) -> NDArray[np.uint8]:
    """The window at x, y with what was never scanned put in, in place."""
    left, top = max(0, frame.x0 - x), max(0, frame.y0 - y)
    picture[:top], picture[max(0, frame.y1 - y) :] = frame.grey, frame.grey
    picture[:, :left], picture[:, max(0, frame.x1 - x) :] = frame.grey, frame.grey
    return picture


@contextlib.contextmanager
def _threads_of_our_own() -> Iterator[None]:
    """Windows are drawn side by side: further threads inside OpenCV would only contend for the same cores."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class _Laid(NamedTuple):
    """A block with the boxes (n, 4) of its things, so that a window finds at once what it has to draw."""

    block: Block
    things: list[Cell | Matter]
    boxes: NDArray[np.float64]


def _laid(block: Block, mpp: float) -> _Laid:
    things: list[Cell | Matter] = [*block.cells, *block.matter]
    return _Laid(block, things, np.array([box_of(thing, mpp) for thing in things], dtype=np.float64).reshape(-1, 4))
