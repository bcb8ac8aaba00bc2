"""Windows of a slide into encoded images, in threads: each is read, measured and encoded by one of them, while the
slide's own tiles are decoded once for all.

Enters: a view of a slide and window corners, px of that view.  Leaves: an encoded tile a window, by rows, or a
`LostTile` where pixels cannot be decoded. Memory holds the windows at work, a bounded queue, and the native tiles that
two rows of windows share, however large the slide.

A window that is exactly one compressed tile of the file, at its own resolution and in the codec of the store, is copied
as it is. It is decoded all the same, for what is measured and to see whether it is sound; unless nothing is to be
measured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import RunError
from cytopipe.slides import Foreground, MppView, sharpness, sharpness_and_glass
from cytopipe.tiles.config import Codec, TileConfig
from cytopipe.tiles.images import encode_image
from cytopipe.tiles.plan import TilePlan
from cytopipe.tiles.rows import LostTile, TileRow

QUEUE_PER_WORKER = 4  # [D] keeps all threads busy while one window takes longer; each place is one tile of memory

U8 = NDArray[np.uint8]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False)
class CutTile:
    """One window as it is stored, and what was measured on its pixels.

    x, y       corner, px of the view
    image      as `encode_image` gives it
    sharpness  None where nothing was to be measured
    glass      fraction of empty glass; None likewise, and where its level is unknown
    z          the plane shown; None where the slide is no stack
    is_copied  the slide's own compressed tile, not encoded anew
    """

    x: int
    y: int
    image: bytes
    sharpness: float | None
    glass: float | None
    z: int | None
    is_copied: bool


def cut_windows(
    view: MppView,
    origins_px: Iterable[tuple[int, int]],
    tile_px: int,
    *,
    codec: Codec,
    quality: int,
    workers: int,
    glass: Sequence[float] | None = None,
    measure: bool = True,
) -> Iterator[CutTile | LostTile]:
    """Cut square windows at (x, y), px of the view; what hangs over the slide is background. By rows, left to right.

    glass    the slide's grey level of empty glass per channel (`Foreground.glass`); None where it is unknown
    measure  whether sharpness and glass are measured
    A window that cannot be decoded costs itself alone.
    """
    origins = sorted(origins_px, key=lambda origin: (origin[1], origin[0]))
    view.announce(origins, tile_px, tile_px)

    def cut(origin: tuple[int, int]) -> CutTile | LostTile:
        x, y = origin
        copied = view.copied_tile(x, y, tile_px, tile_px) if codec == "jpeg" else None
        if copied is not None and not measure:
            return CutTile(x, y, copied, None, None, None, True)
        try:
            rgb, z = view.read_with_z(x, y, tile_px, tile_px)  # also of a copied tile: the reader sees what is broken
        except RunError as error:
            return LostTile(x, y, str(error))
        sharp, empty = _measured(rgb, glass) if measure else (None, None)
        image = copied if copied is not None else encode_image(rgb, codec, quality)
        return CutTile(x, y, image, sharp, empty, z, copied is not None)

    with _one_thread_a_call():
        yield from map_in_order(cut, origins, workers)


def cut_plan(
    plan: TilePlan, view: MppView, foreground: Foreground | None, config: TileConfig, *, workers: int
) -> Iterator[TileRow | LostTile]:
    """The chosen tiles of a plan as rows of the store, by rows."""
    row_of = {plan.origins[i]: i for i in np.flatnonzero(plan.kept).tolist()}
    cuts = cut_windows(
        view,
        row_of,
        config.tile_px,
        codec=config.codec,
        quality=config.quality,
        workers=workers,
        glass=None if foreground is None else foreground.glass,
        measure=config.measure,
    )
    for cut in cuts:
        if isinstance(cut, LostTile):
            yield cut
            continue
        i = row_of[cut.x, cut.y]
        x0, y0, x1, y1 = plan.boxes[i].tolist()
        yield TileRow(
            cut.x,
            cut.y,
            x0,
            y0,
            x1,
            y1,
            mpp=view.mpp,
            foreground=None if plan.foreground is None else float(plan.foreground[i]),
            sharpness=cut.sharpness,
            glass=cut.glass,
            labelled=bool(plan.labelled[i]),
            origin=plan.origin[i],
            image=cut.image,
            z=cut.z,
            copied=cut.is_copied,
        )


def map_in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """work(item) of every item, in order, in threads; at most `QUEUE_PER_WORKER` items a thread are in memory."""
    with ThreadPoolExecutor(workers, thread_name_prefix="cut") as pool:
        pending: deque[Future[R]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= workers * QUEUE_PER_WORKER:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _measured(rgb: U8, glass: Sequence[float] | None) -> tuple[float, float | None]:
    return (sharpness(rgb), None) if glass is None else sharpness_and_glass(rgb, glass)


@contextmanager
def _one_thread_a_call() -> Iterator[None]:
    """OpenCV without threads of its own: windows are cut side by side already, and each call would wait for a pool."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
