"""Windows of a slide into encoded images: read by bands in order, measured and encoded in threads.

Enters: a view of a slide and window corners, px of that view.  Leaves: an encoded tile a window, by rows, or a
`LostTile` where pixels cannot be decoded. Memory holds one stretch of a band and a bounded queue, however large the
slide.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import RunError
from cytopipe.slides import Foreground, MppView, glass_fraction, sharpness
from cytopipe.tiles.config import Codec, TileConfig
from cytopipe.tiles.grid import rows_of
from cytopipe.tiles.images import encode_image
from cytopipe.tiles.plan import TilePlan
from cytopipe.tiles.rows import LostTile, TileRow

# [D] longest stretch of a band read at once: 59 MB with tiles of 1200 px; tiles within it share their native tiles
STRETCH_PX = 16_384
QUEUE_PER_WORKER = 3  # [D] keeps encoders busy while a stretch is decoded; each place is one tile of memory

U8 = NDArray[np.uint8]
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, eq=False)
class CutTile:
    """One window as a file, and what was measured on its pixels.

    x, y   corner, px of the view
    image  bytes of a JPEG or PNG file
    glass  fraction of empty glass; None where its level is unknown
    """

    x: int
    y: int
    image: bytes
    sharpness: float
    glass: float | None


def cut_windows(
    view: MppView,
    origins_px: Iterable[tuple[int, int]],
    tile_px: int,
    *,
    codec: Codec,
    quality: int,
    workers: int,
    glass_of: Callable[[U8], float] | None = None,
) -> Iterator[CutTile | LostTile]:
    """Cut square windows at (x, y), px of the view; what hangs over the slide is background. By rows, left to right.

    glass_of   the share of empty glass in an image (h, w, 3); None where the slide's glass is unknown
    A window that cannot be decoded costs itself alone: its stretch is read again window by window.
    """

    def finish(window: tuple[int, int, U8] | LostTile) -> CutTile | LostTile:
        if isinstance(window, LostTile):
            return window
        x, y, rgb = window
        glass = None if glass_of is None else glass_of(rgb)
        return CutTile(x, y, encode_image(rgb, codec, quality), sharpness(rgb), glass)

    return map_in_order(finish, _windows(view, list(origins_px), tile_px), workers)


def cut_plan(
    plan: TilePlan, view: MppView, foreground: Foreground | None, config: TileConfig, *, labelled: bool, workers: int
) -> Iterator[TileRow | LostTile]:
    """The chosen tiles of a plan as rows of the store, in its order. `labelled`: somebody annotated the slide."""
    row_of = {plan.origins[i]: i for i in np.flatnonzero(plan.kept).tolist()}
    glass_of = None if foreground is None else partial(glass_fraction, glass=foreground.glass)
    cuts = cut_windows(
        view,
        row_of,
        config.tile_px,
        codec=config.codec,
        quality=config.quality,
        workers=workers,
        glass_of=glass_of,
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
            labelled=labelled,
            origin="grid",
            image=cut.image,
        )


def map_in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """work(item) of every item, in order, in threads; at most `QUEUE_PER_WORKER` items a thread are in memory."""
    with ThreadPoolExecutor(workers, thread_name_prefix="encode") as pool:
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


def stretches(xs: Sequence[int], tile_px: int) -> Iterator[list[int]]:
    """Ascending window starts of one row in groups to read at once: no gap inside, no longer than STRETCH_PX."""
    group: list[int] = []
    for x in xs:
        if group and (x > group[-1] + tile_px or x + tile_px - group[0] > STRETCH_PX):
            yield group
            group = []
        group.append(x)
    if group:
        yield group


def _windows(
    view: MppView, origins_px: list[tuple[int, int]], tile_px: int
) -> Iterator[tuple[int, int, U8] | LostTile]:
    for y, row in rows_of(origins_px):
        for xs in stretches(row, tile_px):
            try:
                band = view.read(xs[0], y, xs[-1] + tile_px - xs[0], tile_px)
            except RunError:
                yield from _one_by_one(view, xs, y, tile_px)
                continue
            for x in xs:
                # a copy: a slice would keep the whole stretch alive while it waits in the queue
                yield x, y, np.ascontiguousarray(band[:, x - xs[0] : x - xs[0] + tile_px])


def _one_by_one(view: MppView, xs: Sequence[int], y: int, tile_px: int) -> Iterator[tuple[int, int, U8] | LostTile]:
    for x in xs:
        try:
            yield x, y, view.read(x, y, tile_px, tile_px)
        except RunError as error:
            yield LostTile(x, y, str(error))
