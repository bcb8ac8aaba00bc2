"""Labelled pixels to outlines that run along pixel edges, band by band.

Enters: rows of labels, top to bottom.  Leaves: for each label its polygons, in px of the image, pixel edges at
integers: rasterised again (a pixel is inside where its centre is), they give the same pixels.

Only the edges between labels are kept, so that memory grows with the outlines and not with the image. Pixels that
touch at a corner only belong to different parts, so that every polygon is valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon

I64 = NDArray[np.int64]
Ring = NDArray[np.float64]

_ROWS_PX = 1 << 21  # looked at in one go: about 60 MB of masks
_TOP, _BOTTOM = 1, 0  # at one place a bottom edge goes before a top edge: what touches at a corner is then apart


class PixelOutlines:
    """Takes the rows of a label image in order: `add` each band, then `polygons` once. Label 0 is background."""

    def __init__(self, width: int) -> None:
        self._above = np.zeros((1, width), dtype=np.int64)
        self._y = 0
        self._runs: list[I64] = []
        self.edges = 0  # horizontal runs found so far: what memory follows

    def add(self, band: NDArray[Any]) -> None:
        """The next rows (h, width), integers."""
        step = max(1, _ROWS_PX // band.shape[1])
        for top in range(0, len(band), step):
            self._add(band[top : top + step])

    def polygons(self) -> dict[int, list[list[Ring]]]:
        """label -> its polygons, each an outline and its holes as open rings (n, 2) x y; labels ascending."""
        self.add(np.zeros_like(self._above))
        runs = np.concatenate([np.zeros((0, 5), np.int64), *self._runs])
        found: dict[int, tuple[list[Ring], list[Ring]]] = {}
        for label, ring in _rings(runs):
            for simple in _split(ring):
                found.setdefault(label, ([], []))[_signed_area(simple) < 0].append(simple)
        return {label: _assembled(*found[label]) for label in sorted(found)}

    def _add(self, band: NDArray[Any]) -> None:
        rows = np.concatenate([self._above, band.astype(np.int64)])
        up, here = rows[:-1], rows[1:]
        differs = up != here
        self._keep(here, differs & (here != 0), _TOP)
        self._keep(up, differs & (up != 0), _BOTTOM)
        self._above = rows[-1:].copy()
        self._y += len(band)

    def _keep(self, labels: I64, edge: NDArray[np.bool_], kind: int) -> None:
        """Runs of edge pixels of one label in a row: label, y, x0, x1, kind."""
        joins = edge[:, :-1] & edge[:, 1:] & (labels[:, :-1] == labels[:, 1:])
        first, last = edge.copy(), edge.copy()
        first[:, 1:] &= ~joins
        last[:, :-1] &= ~joins
        row, x0 = np.nonzero(first)
        _, x1 = np.nonzero(last)
        self.edges += len(row)
        self._runs.append(
            np.stack([labels[row, x0], self._y + row, x0, x1 + 1, np.full(len(row), kind)], axis=1).astype(np.int64)
        )


def _rings(runs: I64) -> list[tuple[int, Ring]]:
    """Closed rings of horizontal runs, inside on the right hand. Each end of a run is joined to the next one of the
    same label above or below it: on one vertical line they pair up from the top."""
    count = len(runs)
    label, y, x0, x1, kind = runs.T
    ends = np.concatenate(
        [np.stack([label, x, y, kind, np.arange(count)], axis=1) for x in (x0, x1)]
    )  # the k-th and the (count + k)-th end belong to run k
    order = np.lexsort((ends[:, 3], ends[:, 2], ends[:, 1], ends[:, 0]))
    pairs = order.reshape(-1, 2)
    is_head = (pairs < count) == (kind[pairs % count] == _TOP) if count else np.zeros(pairs.shape, bool)
    heads, tails = pairs[is_head] % max(count, 1), pairs[~is_head] % max(count, 1)
    following = np.empty(count, dtype=np.int64)
    following[tails] = heads

    starts_left = kind == _TOP
    corners = np.stack(
        [
            np.stack([np.where(starts_left, x0, x1), y], axis=1),
            np.stack([np.where(starts_left, x1, x0), y], axis=1),
        ],
        axis=1,
    ).astype(np.float64)
    rings: list[tuple[int, Ring]] = []
    after, seen = following.tolist(), bytearray(count)
    for start in range(count):
        cycle = []
        while not seen[start]:
            seen[start] = 1
            cycle.append(start)
            start = after[start]
        if cycle:
            rings.append((int(label[cycle[0]]), corners[cycle].reshape(-1, 2)))
    return rings


def _split(ring: Ring) -> list[Ring]:
    """A ring that passes a corner twice, as rings that pass each corner once."""
    points = list(map(tuple, ring.tolist()))
    if len(set(points)) == len(points):
        return [ring]
    simple: list[Ring] = []
    path: list[Any] = []
    place: dict[Any, int] = {}
    for point in points:
        if point in place:
            loop = path[place[point] :]
            for passed in loop:
                del place[passed]
            del path[len(path) - len(loop) :]
            simple.append(np.array(loop))
        place[point] = len(path)
        path.append(point)
    simple.append(np.array(path))
    return simple


def _signed_area(ring: Ring) -> float:
    """Twice the area of a ring, positive for an outline, negative for a hole."""
    x, y = ring.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1)))


def _assembled(shells: Sequence[Ring], holes: Sequence[Ring]) -> list[list[Ring]]:
    """Outlines of one label with their holes: a hole belongs to the smallest outline that is larger and around it."""
    polygons = [[shell] for shell in shells]
    if len(shells) == 1:
        polygons[0] += holes
    elif holes:
        outlines, gaps = np.array([Polygon(s) for s in shells]), np.array([Polygon(h) for h in holes])
        area = shapely.area(outlines)
        gap, outline = shapely.STRtree(outlines).query(shapely.point_on_surface(gaps), predicate="within")
        around = area[outline] > shapely.area(gaps)[gap]
        gap, outline = gap[around], outline[around]
        for k, hole in enumerate(holes):
            candidates = outline[gap == k]
            polygons[candidates[np.argmin(area[candidates])]].append(hole)
    return polygons
