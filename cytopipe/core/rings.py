"""The rings of many polygons as one array of vertices: what is needed to write, turn or check them all at once.

Enters: Polygon and MultiPolygon.  Leaves: their vertices in order, px of the same frame, and where each ring begins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Rings:
    """The rings of N shapes, each closed: its last vertex is its first.

    xy         (M, 2) float64, the vertices of all rings
    first      (R + 1,) where each ring begins in `xy`, and M
    is_shell   (R,) bool: outline of a part, or a hole
    owner      (R,) the shape to which a ring belongs, ascending
    """

    xy: NDArray[np.float64]
    first: NDArray[np.intp]
    is_shell: NDArray[np.bool_]
    owner: NDArray[np.intp]


def rings_of(shapes: NDArray[np.object_]) -> Rings:
    """The rings of shapes (N,), none of them empty or None: of each part its outline, then its holes."""
    n = len(shapes)
    if are_lone_rings(shapes):
        xy = shapely.get_coordinates(shapes)  # one ring each: no ring need be made
        first = np.concatenate([[0], np.cumsum(shapely.get_num_coordinates(shapes))]).astype(np.intp)
        return Rings(xy, first, np.ones(n, dtype=bool), np.arange(n))
    parts, part_of = shapely.get_parts(shapes, return_index=True)
    rings, ring_of = shapely.get_rings(parts, return_index=True)
    xy, at = shapely.get_coordinates(rings, return_index=True)
    first = np.searchsorted(at, np.arange(len(rings) + 1))
    is_shell = np.diff(ring_of, prepend=-1) != 0
    return Rings(xy, first, is_shell, part_of[ring_of])


def are_lone_rings(shapes: NDArray[np.object_]) -> bool:
    """Whether each of the shapes is a Polygon without holes."""
    is_polygon = shapely.get_type_id(shapes) == shapely.GeometryType.POLYGON
    return bool(is_polygon.all() and (shapely.get_num_interior_rings(shapes) == 0).all())


def turns_of(vertices: NDArray[np.float64], first: NDArray[np.intp]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Of each ring (R,): its area, positive against the clock, and whether it is star-shaped about its middle.

    Star-shaped: each side turns the same way about the middle, and all of them once around it. Such a ring is simple.
    Exact for whole numbers below 2^26 from the middle.
    """
    counts = np.diff(first)
    centre = np.rint(np.add.reduceat(vertices, first[:-1]) / counts[:, None])
    x, y = (vertices - np.repeat(centre, counts, axis=0)).T
    ends = first[1:] - 1
    cross = np.empty(len(x))
    cross[:-1] = x[:-1] * y[1:] - x[1:] * y[:-1]
    cross[ends] = 0
    area = np.add.reduceat(cross, first[:-1]) / 2
    is_below = y < 0
    rises = np.empty(len(y), dtype=bool)
    rises[:-1] = is_below[:-1] & ~is_below[1:]
    rises[ends] = False
    cross[ends] = area  # for the vertex that closes the ring: a side of its own, which turns as the ring does
    one_way = (np.minimum.reduceat(cross, first[:-1]) > 0) | (np.maximum.reduceat(cross, first[:-1]) < 0)
    return area, one_way & (np.add.reduceat(rises, first[:-1], dtype=np.intp) == 1)
