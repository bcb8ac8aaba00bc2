"""The mask head's answers as polygons: 28 × 28 probabilities on a box become their outline at one half.

Cell (row, column) of a mask covers that share of its box; between cell centres probabilities are bilinear, beyond the
outer ones they fall to 0, as when torchvision pastes the mask into the image. The outline is found on the mask, never
on an image: its cost does not depend on the object's size, and an object needs no array of the slide's.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.affinity import translate

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Geometry = NDArray[np.object_]

LEVEL = 0.5  # a pixel belongs to an object from this probability on
SIMPLIFY_PX = 0.15  # [D] leaves a quarter of the vertices; mean IoU with the pasted mask 0.996 instead of 0.9997
LEAST_PART_PX2 = 1.0  # [D] smaller parts and holes are noise of the mask head; the largest part always stays

_REFINE = 2  # steps a cell: a bilinear patch is bent, and one straight cut through it misses up to a quarter of a cell
_MARGIN = 1e-6  # of a step: a vertex keeps this far from the grid's nodes, so that rings do not touch each other
_BATCH = 256  # masks at a time, which bounds memory: about 4 MB of nodes

_UP, _RIGHT, _DOWN, _LEFT = range(4)  # sides of a square of the grid
_SADDLE = 16  # added to codes 5 and 10 where the two inside corners are one piece
_TURNS = {  # inside corners (1 upper left, 2 upper right, 4 lower right, 8 lower left) -> sides led from and to
    1: [(_LEFT, _UP)],
    2: [(_UP, _RIGHT)],
    3: [(_LEFT, _RIGHT)],
    4: [(_RIGHT, _DOWN)],
    5: [(_LEFT, _UP), (_RIGHT, _DOWN)],
    6: [(_UP, _DOWN)],
    7: [(_LEFT, _DOWN)],
    8: [(_DOWN, _LEFT)],
    9: [(_DOWN, _UP)],
    10: [(_UP, _RIGHT), (_DOWN, _LEFT)],
    11: [(_DOWN, _RIGHT)],
    12: [(_RIGHT, _LEFT)],
    13: [(_RIGHT, _UP)],
    14: [(_UP, _LEFT)],
    5 + _SADDLE: [(_LEFT, _DOWN), (_RIGHT, _UP)],
    10 + _SADDLE: [(_UP, _LEFT), (_DOWN, _RIGHT)],
}


def polygons_from_roi_masks(
    masks: NDArray[np.float32], boxes: F64, *, level: float = LEVEL, simplify_px: float = SIMPLIFY_PX
) -> Geometry:
    """Valid Polygon or MultiPolygon for each object, (N,) object array; None where the mask nowhere reaches `level`.

    masks        (N, M, M) float32, probabilities of the object's own class
    boxes        (N, 4) float64, x0 y0 x1 y1; polygons are in the same frame and lie within their box
    simplify_px  no vertex that is left out lies further than this from the outline; 0 keeps all

    Holes are kept. Parts and holes under LEAST_PART_PX2 are left out, but never the largest part.
    """
    n = len(boxes)
    if masks.ndim != 3 or masks.shape[0] != n or boxes.shape != (n, 4):
        raise ValueError(f"polygons_from_roi_masks: masks {masks.shape}, boxes {boxes.shape}")
    polygons = np.full(n, None, object)
    for first in range(0, n, _BATCH):
        batch = slice(first, first + _BATCH)
        polygons[batch] = _polygons(masks[batch], np.asarray(boxes[batch], np.float64), level, simplify_px)
    return polygons


def _polygons(masks: NDArray[np.float32], boxes: F64, level: float, simplify_px: float) -> Geometry:
    xy, ring, owner = _rings(_refined(masks) - level)
    # step k of the refined mask lies k / _REFINE - 1/2 cells from the box's edge
    cell = (boxes[:, 2:] - boxes[:, :2]) / [masks.shape[2], masks.shape[1]]
    xy = (xy / _REFINE - 0.5) * cell[owner[ring]]  # px from the box's corner, where float64 is finest
    polygons = _assembled(xy, ring, owner, len(masks))
    known = np.flatnonzero(~shapely.is_missing(polygons))
    if simplify_px > 0:
        polygons[known] = _simplified(polygons[known], simplify_px)
    for k in known:
        polygons[k] = translate(polygons[k], *boxes[k, :2])
    # rounding far from the origin can make rings of a box far below a pixel meet
    broken = known[~shapely.is_valid(polygons[known])]
    polygons[broken] = shapely.buffer(polygons[broken], 0)
    polygons[known[shapely.area(polygons[known]) <= 0]] = None
    return polygons


def _refined(masks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Masks (N, M, M) with a margin of zeros, sampled bilinearly at `_REFINE` steps a cell: (N, K, K)."""
    padded = np.pad(masks, ((0, 0), (1, 1), (1, 1)))
    for axis in (1, 2):
        at = np.arange((padded.shape[axis] - 1) * _REFINE + 1)
        low, share = at // _REFINE, ((at % _REFINE) / _REFINE).astype(np.float32)
        high = np.minimum(low + 1, padded.shape[axis] - 1)
        share = share[:, None] if axis == 1 else share
        padded = np.take(padded, low, axis) * (1 - share) + np.take(padded, high, axis) * share
    return padded


def _rings(field: NDArray[np.float32]) -> tuple[F64, I64, I64]:
    """Marching squares: the zero lines of all fields (N, K, K), which are negative outside and along the border.

    Vertices (V, 2) float64 x y in steps, the ring of each vertex (V,), ascending, and the field of each ring (R,).
    A ring has the inside on its left, so that outlines and holes differ in the sign of their area.
    """
    start, end = _segments(field)
    order = np.argsort(start)
    start, end = start[order], end[order]
    following = np.searchsorted(start, end).tolist()  # each crossed edge starts one segment and ends one
    walk: list[int] = []
    ring: list[int] = []
    seen = [False] * len(following)
    for first in range(len(following)):
        if seen[first]:
            continue
        number, at = (ring[-1] + 1 if ring else 0), first
        while not seen[at]:
            seen[at] = True
            walk.append(at)
            ring.append(number)
            at = following[at]
    crossed = start[np.array(walk, dtype=np.int64)]
    rings = np.array(ring, dtype=np.int64)
    first_of_ring = np.flatnonzero(np.diff(rings, prepend=-1))
    n, axis, y, x = np.unravel_index(crossed, _edges(field))
    along_x = axis == 0
    here, there = field[n, y, x].astype(np.float64), field[n, y + ~along_x, x + along_x].astype(np.float64)
    share = np.clip(here / (here - there), _MARGIN, 1 - _MARGIN)
    xy = np.stack([x + share * along_x, y + share * ~along_x], axis=1)
    return xy, rings, n[first_of_ring].astype(np.int64)


def _edges(field: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """The shape that numbers edges between nodes: field, direction (0: to the right, 1: down), row and column."""
    n, rows, columns = field.shape
    return n, 2, rows, columns


def _segments(field: NDArray[np.float32]) -> tuple[I64, I64]:
    """The crossed edges that each piece of a zero line leads from and to, as edge numbers: (S,), (S,)."""
    inside = field >= 0
    a, b, c, d = inside[:, :-1, :-1], inside[:, :-1, 1:], inside[:, 1:, 1:], inside[:, 1:, :-1]
    code = a + 2 * b + 4 * c + np.int8(8) * d  # corners clockwise from the upper left
    n, y, x = np.nonzero((code > 0) & (code < 15))
    code = code[n, y, x]
    saddle = (code == 5) | (code == 10)
    fa, fb, fc, fd = field[n, y, x], field[n, y, x + 1], field[n, y + 1, x + 1], field[n, y + 1, x]
    one_piece = np.where(code == 5, fa * fc > fb * fd, fb * fd > fa * fc)  # inside at the bilinear saddle point
    code[saddle & one_piece] += _SADDLE
    edges = _edges(field)
    side = {
        _UP: np.ravel_multi_index((n, np.zeros_like(n), y, x), edges),
        _RIGHT: np.ravel_multi_index((n, np.ones_like(n), y, x + 1), edges),
        _DOWN: np.ravel_multi_index((n, np.zeros_like(n), y + 1, x), edges),
        _LEFT: np.ravel_multi_index((n, np.ones_like(n), y, x), edges),
    }
    turns = [(code == case, *turn) for case, of_case in _TURNS.items() for turn in of_case]
    starts = np.concatenate([side[leave][here] for here, leave, _ in turns])
    return starts, np.concatenate([side[reach][here] for here, _, reach in turns])


def _assembled(xy: F64, ring: I64, owner: I64, n: int) -> Geometry:
    """Rings (R,) as polygons with holes of their owners, (N,); those too small to mean anything are left out."""
    polygons = np.full(n, None, object)
    if not len(owner):
        return polygons
    rings = shapely.linearrings(xy, indices=ring)
    area = _signed_areas(xy, ring)
    largest = np.zeros(n)
    np.maximum.at(largest, owner, area)
    outline = (area > 0) & ((area >= LEAST_PART_PX2) | (area == largest[owner]))
    hole = area <= -LEAST_PART_PX2
    parts = shapely.polygons(rings)
    for k in np.unique(owner[hole]):
        around, inside = np.flatnonzero(outline & (owner == k)), np.flatnonzero(hole & (owner == k))
        hole_of, part_of = shapely.STRtree(parts[around]).query(parts[inside], predicate="within")
        outer = np.full(len(inside), -1)
        for i in np.argsort(-area[around[part_of]]):  # of parts within holes of parts, the smallest is written last
            outer[hole_of[i]] = around[part_of[i]]
        for part in np.unique(outer[outer >= 0]):
            parts[part] = shapely.polygons(rings[part], rings[inside[outer == part]])
    for k in np.unique(owner[outline]):
        of_owner = np.flatnonzero(outline & (owner == k))
        polygons[k] = parts[of_owner[0]] if len(of_owner) == 1 else shapely.multipolygons(parts[of_owner])
    return polygons


def _simplified(polygons: Geometry, tolerance_px: float) -> Geometry:
    """Polygons (N,) with fewer vertices, none of those left out further than `tolerance_px` from the new outline.

    Each ring is cut at its first and its middle vertex, which stay. GEOS may also leave out a ring's first vertex, but
    measures the others against lines through it: together they stray up to twice as far.
    """
    parts, part_of = shapely.get_parts(polygons, return_index=True)
    rings, ring_of = shapely.get_rings(parts, return_index=True)
    xy, at = shapely.get_coordinates(rings, return_index=True)
    size = np.bincount(at, minlength=len(rings))
    place = np.arange(len(xy)) - (np.cumsum(size) - size)[at]
    middle = (size // 2)[at]
    twice = np.sort(np.concatenate([np.arange(len(xy)), np.flatnonzero(place == middle)]))  # it ends and begins a half
    again = np.concatenate([[False], twice[1:] == twice[:-1]])
    half = 2 * at[twice] + ((place[twice] > middle[twice]) | again)
    lines = shapely.simplify(shapely.linestrings(xy[twice], indices=half), tolerance_px, preserve_topology=False)
    new_xy, line = shapely.get_coordinates(lines, return_index=True)
    keep = np.concatenate([[True], (line[1:] == line[:-1]) | (line[1:] % 2 == 0)])  # the middle vertex once
    new_xy, ring = new_xy[keep], line[keep] // 2
    thin = np.bincount(ring, minlength=len(rings)) < 4  # closed, and of less than three vertices
    from_new, from_old = ~thin[ring], thin[at]
    ring, new_xy = np.concatenate([ring[from_new], at[from_old]]), np.concatenate([new_xy[from_new], xy[from_old]])
    order = np.argsort(ring, kind="stable")
    new_parts = shapely.polygons(shapely.linearrings(new_xy[order], indices=ring[order]), indices=ring_of)
    several = np.bincount(part_of, minlength=len(polygons)) > 1
    simplified: Geometry = np.full(len(polygons), None, object)
    in_one = ~several[part_of]
    simplified[part_of[in_one]] = new_parts[in_one]
    if several.any():
        number = np.cumsum(several) - 1
        simplified[several] = shapely.multipolygons(new_parts[~in_one], indices=number[part_of[~in_one]])
    crossed = np.flatnonzero(~shapely.is_valid(simplified))  # lines that were moved through each other
    simplified[crossed] = shapely.simplify(polygons[crossed], tolerance_px / 2, preserve_topology=True)
    return simplified


def _signed_areas(xy: F64, ring: I64) -> F64:
    """Shoelace areas (R,) of closed rings: positive for outlines, negative for holes, as `_TURNS` walks them."""
    last = np.flatnonzero(np.diff(ring, append=-1))
    first = np.concatenate([[0], last[:-1] + 1])
    following = np.arange(1, len(xy) + 1)
    following[last] = first
    x, y = xy.T
    return -0.5 * np.add.reduceat(x * y[following] - x[following] * y, first)
