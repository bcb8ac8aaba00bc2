"""The tiles of one part of a store, decoded once and kept: images and objects in tile px.

Enters: a tile store, the rows to use, the classes to learn.  Leaves: image (H, W, 3) uint8 and objects with label 1..C,
tile px, by index.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.boxes import window_from_slide
from cytopipe.core.classes import ObjectClass
from cytopipe.tiles import TileStore

CACHE_BYTES = 2 * 1024**3  # decoded tiles kept; a set of the small recipes fits whole, larger ones are decoded again


@dataclass(frozen=True, slots=True, eq=False)
class TileObjects:
    """labels (n,) int64 1..C; geometry (n,) object array of shapely polygons, tile px; whole (n,) bool: not cut by the
    tile's border.
    """

    labels: NDArray[np.int64]
    geometry: NDArray[np.object_]
    whole: NDArray[np.bool_]


class TilePool:
    """Rows of a store, by position 0..len-1. Safe to read from several threads."""

    def __init__(self, store: TileStore, rows: NDArray[np.intp], classes: tuple[ObjectClass, ...]) -> None:
        self.store, self.rows, self.classes = store, np.asarray(rows), classes
        self._label = {item.name: i + 1 for i, item in enumerate(classes)}
        self._images: OrderedDict[int, NDArray[np.uint8]] = OrderedDict()
        self._objects: dict[int, TileObjects] = {}
        self._held, self._lock = 0, Lock()

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, index: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB; do not write into it."""
        with self._lock:
            if index in self._images:
                self._images.move_to_end(index)
                return self._images[index]
        image = self.store.read_image(int(self.rows[index]))
        with self._lock:
            if index not in self._images:
                self._images[index] = image
                self._held += image.nbytes
                while self._held > CACHE_BYTES and len(self._images) > 1:
                    self._held -= self._images.popitem(last=False)[1].nbytes
        return image

    def objects(self, index: int) -> TileObjects:
        """The annotated objects of the tile whose class is learned; others are left out."""
        with self._lock:
            if index in self._objects:
                return self._objects[index]
        row = int(self.rows[index])
        found = [item for item in self.store.objects_of(row) if item.class_name in self._label]
        geometry = np.empty(len(found), object)
        geometry[:] = [self._in_tile_px(row, item.geometry) for item in found]
        objects = TileObjects(
            np.array([self._label[item.class_name] for item in found], np.int64),
            geometry,
            np.array([not item.truncated for item in found], bool),
        )
        with self._lock:
            self._objects[index] = objects
        return objects

    def longer_sides_px(self) -> NDArray[np.float64]:
        """The longer side of every whole object of the pool, px of the store's mpp: from it comes `max_object_px` of a
        bundle.
        """
        sides = []
        for i in range(len(self)):
            objects = self.objects(i)
            bounds = shapely.bounds(objects.geometry[objects.whole]).reshape(-1, 4)
            sides.append((bounds[:, 2:] - bounds[:, :2]).max(axis=1, initial=0.0))
        return np.concatenate([np.zeros(0), *sides])

    def _in_tile_px(self, row: int, geometry: Any) -> Any:
        x0, y0, x1, y1 = self.store.tile_box(row)
        tile_px = self.store.info.tile_px
        scale = ((x1 - x0) / tile_px, (y1 - y0) / tile_px)
        return shapely.transform(geometry, lambda xy: window_from_slide(xy, (x0, y0), scale))
