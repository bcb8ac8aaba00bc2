"""Windows that are placed one by one instead of in a grid: at random over the foreground, and around objects.

Enters: the size of a view, what lies on the slide, a random stream.  Leaves: corners (N, 2) int64, x y in px of the
view, each of them once; every window lies inside the view where the view is as large as a window.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]

BATCH = 4096  # draws at once; it decides no window, since the stream is read in order
IDLE_DRAWS, IDLE_DRAWS_PER_WINDOW = 100_000, 200
"""After so many draws without a new window, the foreground has no more places [D]: of n places that are equally likely
the last one is missed with a probability of e^-200, or e^-20 where nine of ten draws are refused; a place that is drawn
once in 10,000 times, inside a picture hardly larger than a window, with e^-10."""
CENTRED_FRACTION = 0.05
"""An object nearer to the centre of a window than this share of its side, on x and on y, has that window [D]: 30 µm at
1200 px and 0.5 µm/px, so that a nucleus and its cell have one window, and two neighbours have two."""


@dataclass(frozen=True, slots=True)
class Place:
    """The view that windows are placed on.

    width, height    of the view, px
    slide_size       width and height of the slide, level-0 px
    slide_px_per_px  level-0 px per view px, on x and y
    tile_px          side of a window, view px
    """

    width: int
    height: int
    slide_size: tuple[int, int]
    slide_px_per_px: tuple[float, float]
    tile_px: int

    def around(self, points: F64) -> I64:
        """Corners (N, 2) of windows centred on points (N, 2), level-0 px; shifted inwards at the slide's border."""
        return centred_corners(points / np.array(self.slide_px_per_px), self.tile_px, self.width, self.height)

    def boxes(self, corners: I64) -> F64:
        """Boxes (N, 4) x0 y0 x1 y1 of windows in level-0 px."""
        scale = np.array(self.slide_px_per_px)
        return np.concatenate([corners * scale, (corners + self.tile_px) * scale], axis=1)


def centred_corners(centres: F64, tile_px: int, width_px: int, height_px: int) -> I64:
    """Corners (K, 2) of windows centred on points (K, 2), moved inwards at the border of a view of the given size; all
    in its px.

    A view smaller than a window gives corner 0: the reader pads.
    """
    last = np.maximum(np.array([width_px, height_px]) - tile_px, 0)
    return np.clip(np.floor(centres - tile_px / 2 + 0.5), 0, last).astype(np.int64)


def random_windows(
    place: Place,
    mask: NDArray[np.bool_],
    slide_px_per_mask_px: tuple[float, float],
    count: int,
    rng: np.random.Generator,
    accept: Callable[[F64, I64], NDArray[np.bool_]],
) -> I64:
    """`count` different windows whose centres are uniform over the area of a mask; by rows.

    mask     (h, w) bool over the slide, `slide_px_per_mask_px` level-0 px a mask px; what of it lies beyond the slide
             counts for nothing
    accept   which of the drawn windows are taken: their centres (N, 2) in level-0 px, their corners (N, 2)
    A window at the slide's border is shifted inwards after it was drawn. More windows of the same stream hold the fewer
    ones. Fewer than `count` are left where the mask has no more places.
    """
    cells = np.flatnonzero(mask)
    found: dict[tuple[int, int], None] = {}
    idle = 0
    while cells.size and idle < IDLE_DRAWS + IDLE_DRAWS_PER_WINDOW * len(found):
        which, along, down = rng.random((BATCH, 3)).T
        row, column = np.divmod(cells[(which * cells.size).astype(np.intp).clip(max=cells.size - 1)], mask.shape[1])
        centres = np.stack([column + along, row + down], axis=1) * np.array(slide_px_per_mask_px)
        centres = centres[(centres < np.array(place.slide_size)).all(axis=1)]
        corners = place.around(centres)
        before = len(found)
        for x, y in corners[accept(centres, corners)].tolist():
            found.setdefault((x, y))
            if len(found) == count:
                return _by_rows(found)
        idle = idle + BATCH if len(found) == before else 0
    return _by_rows(found)


def windows_around(place: Place, centres: F64) -> I64:
    """A window around each point (N, 2) of the slide, level-0 px; by rows.

    A point that lies near the centre of another's window (`CENTRED_FRACTION`) has no window of its own. At the slide's
    border windows are shifted inwards. The order of the points changes nothing.
    """
    within = CENTRED_FRACTION * place.tile_px
    wanted = np.unique(place.around(centres)[:, ::-1], axis=0)[:, ::-1]  # by rows
    taken: dict[tuple[int, int], list[tuple[int, int]]] = {}  # square of side `within` -> the corners in it
    found: dict[tuple[int, int], None] = {}
    for x, y in wanted.tolist():
        column, row = int(x // within), int(y // within)
        near = (taken.get((column + i, row + j), ()) for i in (-1, 0, 1) for j in (-1, 0, 1))
        if any(abs(x - a) <= within and abs(y - b) <= within for corners in near for a, b in corners):
            continue
        taken.setdefault((column, row), []).append((x, y))
        found[x, y] = None
    return _by_rows(found)


def _by_rows(corners: dict[tuple[int, int], None]) -> I64:
    return np.array(sorted(corners, key=lambda c: (c[1], c[0])), dtype=np.int64).reshape(-1, 2)
