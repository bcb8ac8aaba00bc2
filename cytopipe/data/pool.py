"""What batches are cut from: images by index, with their objects or their class map, decoded once and kept.

`ImagePool` is what training, validation and reports know of images, wherever they lie; `CachedPool` is what all pools
share; `TilePool` reads a tile store, `FilePool` (file_pool.py) files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.boxes import window_from_slide
from cytopipe.core.classes import ObjectClass
from cytopipe.data.raster import class_map_of
from cytopipe.semi import IGNORE
from cytopipe.tiles import TileStore

CACHE_BYTES = 2 * 1024**3  # decoded images kept; a set of the small recipes fits whole, larger ones are decoded again
GLASS = (255, 255, 255)  # what lies beyond a tile: a slide goes on as glass

U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class TileObjects:
    """labels (n,) int64 1..C; geometry (n,) object array of shapely polygons, px of the image; whole (n,) bool: not cut
    by the image's border.
    """

    labels: NDArray[np.int64]
    geometry: NDArray[np.object_]
    whole: NDArray[np.bool_]


class ImagePool(Protocol):
    """Images by position 0..len-1, with what is annotated in them. Safe to read from several threads.

    classes  to learn, in order; class i has label i + 1
    mpp      µm/px; None where nobody knows
    """

    classes: tuple[ObjectClass, ...]
    mpp: float | None

    def __len__(self) -> int: ...

    def image(self, index: int) -> U8:
        """(H, W, 3) uint8 RGB; not to be written into. Sizes may differ from image to image."""
        ...

    def objects(self, index: int) -> TileObjects:
        """The annotated objects whose class is learned, px of the image; groups (crowd) are left out."""
        ...

    def class_map(self, index: int) -> U8:
        """(H, W) uint8: 0 background, 1..C, 255 where nothing is to be learned; not to be written into."""
        ...

    def beyond(self, index: int) -> tuple[int, int, int]:
        """The colour that is shown past the image's border."""
        ...

    def name(self, index: int) -> str:
        """What the image is called: in captions, lists and logs."""
        ...

    def longer_sides_px(self) -> NDArray[np.float64]:
        """The longer side of every whole object, px: from it comes `max_object_px` of a bundle."""
        ...


class CachedPool(ABC):
    """A pool that reads each thing once while it fits into CACHE_BYTES; what is dropped is read again."""

    def __init__(self, length: int, classes: tuple[ObjectClass, ...], mpp: float | None) -> None:
        self.classes, self.mpp, self._length = classes, mpp, length
        self._pixels: OrderedDict[tuple[str, int], U8] = OrderedDict()
        self._objects: dict[int, TileObjects] = {}
        self._held, self._lock = 0, Lock()

    def __len__(self) -> int:
        return self._length

    def image(self, index: int) -> U8:
        """As `ImagePool` has it."""
        return self._kept("image", index, self._read_image)

    def class_map(self, index: int) -> U8:
        """As `ImagePool` has it."""
        return self._kept("class map", index, self._read_class_map)

    def objects(self, index: int) -> TileObjects:
        """As `ImagePool` has it."""
        with self._lock:
            if index in self._objects:
                return self._objects[index]
        objects = self._read_objects(index)
        with self._lock:
            return self._objects.setdefault(index, objects)

    def beyond(self, index: int) -> tuple[int, int, int]:
        """As `ImagePool` has it."""
        return GLASS

    def longer_sides_px(self) -> NDArray[np.float64]:
        """As `ImagePool` has it."""
        sides = []
        for i in range(len(self)):
            objects = self.objects(i)
            bounds = shapely.bounds(objects.geometry[objects.whole]).reshape(-1, 4)
            sides.append((bounds[:, 2:] - bounds[:, :2]).max(axis=1, initial=0.0))
        return np.concatenate([np.zeros(0), *sides])

    @abstractmethod
    def name(self, index: int) -> str:
        """As `ImagePool` has it."""

    @abstractmethod
    def _read_image(self, index: int) -> U8: ...

    @abstractmethod
    def _read_objects(self, index: int) -> TileObjects: ...

    def _read_class_map(self, index: int) -> U8:
        objects, (height, width) = self.objects(index), self.image(index).shape[:2]
        return class_map_of(objects.labels, objects.geometry, height, width)

    def _kept(self, kind: str, index: int, read: Callable[[int], U8]) -> U8:
        key = (kind, index)
        with self._lock:
            if key in self._pixels:
                self._pixels.move_to_end(key)
                return self._pixels[key]
        pixels = read(index)
        with self._lock:
            if key not in self._pixels:
                self._pixels[key] = pixels
                self._held += pixels.nbytes
                while self._held > CACHE_BYTES and len(self._pixels) > 1:
                    self._held -= self._pixels.popitem(last=False)[1].nbytes
        return pixels


class TilePool(CachedPool):
    """Rows of a tile store."""

    def __init__(self, store: TileStore, rows: NDArray[np.intp], classes: tuple[ObjectClass, ...]) -> None:
        super().__init__(len(rows), classes, store.info.mpp)
        self.store, self.rows = store, np.asarray(rows)
        self._label = {item.name: i + 1 for i, item in enumerate(classes)}

    def name(self, index: int) -> str:
        """The tile's id."""
        return str(self.store.column("tile_id")[int(self.rows[index])].as_py())

    def _read_image(self, index: int) -> U8:
        return self.store.read_image(int(self.rows[index]))

    def _read_objects(self, index: int) -> TileObjects:
        row = int(self.rows[index])
        found = [item for item in self.store.objects_of(row) if item.class_name in self._label and not item.crowd]
        geometry = np.empty(len(found), object)
        geometry[:] = [self._in_tile_px(row, item.geometry) for item in found]
        return TileObjects(
            np.array([self._label[item.class_name] for item in found], np.int64),
            geometry,
            np.array([not item.truncated for item in found], bool),
        )

    def _read_class_map(self, index: int) -> U8:
        """What lies on a group, whose single objects nobody outlined, is not learned."""
        row = int(self.rows[index])
        found = super()._read_class_map(index)
        for item in self.store.objects_of(row):
            if item.crowd and item.class_name in self._label:
                shape = np.array([self._in_tile_px(row, item.geometry)], object)
                found[class_map_of(np.ones(1, np.int64), shape, *found.shape) == 1] = IGNORE
        return found

    def _in_tile_px(self, row: int, geometry: Any) -> Any:
        x0, y0, x1, y1 = self.store.tile_box(row)
        tile_px = self.store.info.tile_px
        scale = ((x1 - x0) / tile_px, (y1 - y0) / tile_px)
        return shapely.transform(geometry, lambda xy: window_from_slide(xy, (x0, y0), scale))
