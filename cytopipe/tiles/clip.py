"""Annotated objects onto tiles: which tile meets which object, and what of it lies inside.

Enters: geometries and tile boxes, both level-0 px of the slide.  Leaves: pieces, same frame, ordered by (tile, object).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

# Areas in float64 at slide scale (1e5 px) carry about 1e-11 of relative rounding: a piece that lacks less than this
# share of its object is whole.
WHOLE_TOLERANCE_FRACTION = 1e-9

TILES_AT_ONCE = 65_536  # [D] whose outlines stand in memory together, about 20 MB


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """What tiles see of objects.

    tile       (N,) intp, row of the tile boxes
    object     (N,) intp, row of the objects
    geometry   (N,) object array of Polygon or MultiPolygon, level-0 px, clipped to the tile
    truncated  (N,) bool, part of the object is outside the tile
    dropped    pieces left out because less than `min_visible` of their object was inside
    unseen     (K,) intp, objects without any piece: outside of every tile, or dropped everywhere
    """

    tile: NDArray[np.intp]
    object: NDArray[np.intp]
    geometry: NDArray[np.object_]
    truncated: NDArray[np.bool_]
    dropped: int
    unseen: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.tile)


def clip_to_tiles(geometries: Sequence[BaseGeometry], tile_boxes: NDArray[np.float64], min_visible: float) -> Pieces:
    """Cut each object to each tile that it meets.

    geometries   polygons with an area, valid
    tile_boxes   (T, 4) float64, x0 y0 x1 y1
    min_visible  fraction of an object's area; a piece with less is dropped and counted
    An object that only touches a tile's border has no piece there.
    """
    objects = np.array(geometries, dtype=object)
    tile, which = _near(tile_boxes, objects)

    whole_area = shapely.area(objects)[which]
    bounds, box = shapely.bounds(objects).reshape(-1, 4)[which], tile_boxes[tile]
    inside = (bounds[:, :2] > box[:, :2]).all(axis=1) & (bounds[:, 2:] < box[:, 2:]).all(axis=1)
    geometry = objects[which].copy()
    cut = ~inside
    geometry[cut] = _polygons_only(shapely.intersection(objects[which[cut]], shapely.box(*box[cut].T)))
    area = shapely.area(geometry)

    met = area > 0
    truncated = area < whole_area * (1 - WHOLE_TOLERANCE_FRACTION)
    geometry[met & ~truncated] = objects[
        which[met & ~truncated]
    ]  # touching the border from inside: the annotator's vertices, not a re-cut copy
    kept = met & (area >= whole_area * min_visible)
    unseen = np.setdiff1d(np.arange(len(objects), dtype=np.intp), which[kept])
    return Pieces(tile[kept], which[kept], geometry[kept], truncated[kept], int((met & ~kept).sum()), unseen)


def _near(tile_boxes: NDArray[np.float64], objects: NDArray[np.object_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows of tiles and of objects whose bounding boxes meet, ordered by (tile, object)."""
    tree = shapely.STRtree(objects)
    tiles, others = [np.empty(0, dtype=np.intp)], [np.empty(0, dtype=np.intp)]
    for start in range(0, len(tile_boxes) if len(objects) else 0, TILES_AT_ONCE):
        found = tree.query(shapely.box(*tile_boxes[start : start + TILES_AT_ONCE].T))
        found = found[:, np.lexsort((found[1], found[0]))]
        tiles.append(found[0].astype(np.intp) + start)
        others.append(found[1].astype(np.intp))
    return np.concatenate(tiles), np.concatenate(others)


def _polygons_only(geometries: NDArray[np.object_]) -> NDArray[np.object_]:
    """Intersections without the points and lines that remain where a polygon runs along a tile's border."""
    out = geometries.copy()
    for i, geometry in enumerate(geometries):
        if geometry.geom_type == "GeometryCollection":
            out[i] = shapely.union_all(
                [part for part in geometry.geoms if part.geom_type in ("Polygon", "MultiPolygon")]
            )
    return out
