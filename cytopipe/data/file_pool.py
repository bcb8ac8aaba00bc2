"""Images in files as a pool: each with its annotation file, whatever its format.

Enters: examples (an image file, and what annotates it), the classes to learn.  Leaves: images, objects and class maps
in px of the image, or of the square that all images are resized to.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.classes import ObjectClass
from cytopipe.core.errors import UserError
from cytopipe.data.files import read_class_map, read_rgb, size_of
from cytopipe.data.pool import U8, CachedPool, TileObjects
from cytopipe.data.raster import class_map_of
from cytopipe.formats.annotations import Annotation
from cytopipe.formats.drawn import Drawn, Page, Wish, annotations_from
from cytopipe.formats.pixel_outlines import PixelOutlines
from cytopipe.formats.read import read_annotations
from cytopipe.semi import IGNORE

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Example:
    """One image and what annotates it.

    name        what the image is called, unique in its dataset
    image       its file
    annotation  the file that annotates it; None: nobody did
    kind        mask: a class map; objects: anything that `formats.read` knows, label maps among them
    inside      its name in an annotation file of several images
    """

    name: str
    image: Path
    annotation: Path | None = None
    kind: Literal["mask", "objects"] = "objects"
    inside: str | None = None


class FilePool(CachedPool):
    """Examples as images.

    classes      to learn
    label_names  classes of the dataset's masks in the order of their numbers; the first is that of label maps
    resize_px    every image becomes a square of this side, whatever its own shape (as `cdcl` does [P]); None: as it is
    """

    def __init__(
        self,
        examples: list[Example],
        classes: tuple[ObjectClass, ...],
        label_names: tuple[str, ...] = (),
        resize_px: int | None = None,
    ) -> None:
        super().__init__(len(examples), classes, None)
        self.examples, self.label_names, self.resize_px = examples, label_names, resize_px
        self._label = {item.name: i + 1 for i, item in enumerate(classes)}

    def name(self, index: int) -> str:
        """The image's name in its dataset."""
        return self.examples[index].name

    def beyond(self, index: int) -> tuple[int, int, int]:
        """The median colour of the image's border: an image on black does not go on as glass."""
        image = self.image(index)
        border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
        red, green, blue = np.median(border, axis=0).astype(int).tolist()
        return red, green, blue

    def _read_image(self, index: int) -> U8:
        image = read_rgb(self.examples[index].image)
        if self.resize_px is None or image.shape[:2] == (self.resize_px, self.resize_px):
            return image
        how = cv2.INTER_AREA if max(image.shape[:2]) > self.resize_px else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(image, (self.resize_px, self.resize_px), interpolation=how), np.uint8)

    def _read_objects(self, index: int) -> TileObjects:
        height, width = self._native_size(index)
        found = [item for item in self._annotated(index) if item.class_name in self._label and not item.is_crowd]
        geometry = np.empty(len(found), object)
        geometry[:] = [item.geometry for item in found]
        x0, y0, x1, y1 = shapely.bounds(geometry).reshape(-1, 4).T
        whole = (x0 > 0) & (y0 > 0) & (x1 < width) & (y1 < height)
        labels = np.array([self._label[item.class_name] for item in found], np.int64)
        return TileObjects(labels, self._resized(geometry, height, width), whole)

    def _read_class_map(self, index: int) -> U8:
        example = self.examples[index]
        if example.kind == "mask" and example.annotation is not None:
            found = self._learned(self._mask(index))
            if self.resize_px is None:
                return found
            side = (self.resize_px, self.resize_px)
            return np.asarray(cv2.resize(found, side, interpolation=cv2.INTER_NEAREST_EXACT), np.uint8)
        found = super()._read_class_map(index)
        for item in self._annotated(index):
            if item.is_crowd and item.class_name in self._label:
                shape = self._resized(np.array([item.geometry], object), *self._native_size(index))
                found[class_map_of(np.ones(1, np.int64), shape, *found.shape) == 1] = IGNORE
        return found

    def _annotated(self, index: int) -> list[Annotation]:
        """The objects of one image, px of its file. Those that were mended or refused are named in the log."""
        example, (height, width) = self.examples[index], self._native_size(index)
        if example.annotation is None:
            return []
        if example.kind == "mask":
            found = annotations_from(_page_of(self._mask(index), self.label_names), Wish((width, height)))
        else:
            label = self.label_names[0] if self.label_names else None
            found = read_annotations(
                example.annotation,
                frame="slide",
                slide_size=(width, height),
                image=example.inside,
                label_class=label,
            )
        for line in found.lines:
            _log.info("%s: %s", example.annotation, line)
        return found.objects

    def _mask(self, index: int) -> U8:
        """Class map of a mask in the numbers of `label_names`, px of its file."""
        example, size = self.examples[index], self._native_size(index)
        if example.annotation is None:
            return np.zeros(size, np.uint8)
        mask = read_class_map(example.annotation, len(self.label_names))
        if mask.shape != size:
            what = f"is {mask.shape[1]} x {mask.shape[0]} px, and its image {size[1]} x {size[0]}"
            raise UserError(what, where=str(example.annotation), fix=f"{example.image} is what it should fit")
        return mask

    def _learned(self, mask: U8) -> U8:
        """The mask in the numbers of `classes`: what is not learned is background."""
        table = np.zeros(256, np.uint8)
        table[IGNORE] = IGNORE
        for number, name in enumerate(self.label_names, start=1):
            table[number] = self._label.get(name, 0)
        return np.asarray(table[mask], np.uint8)

    def _native_size(self, index: int) -> tuple[int, int]:
        if self.resize_px is None:
            height, width = self.image(index).shape[:2]
            return height, width
        return size_of(self.examples[index].image)

    def _resized(self, geometry: NDArray[np.object_], height: int, width: int) -> NDArray[np.object_]:
        if self.resize_px is None or len(geometry) == 0:
            return geometry
        scale = np.array([self.resize_px / width, self.resize_px / height])
        return np.asarray(shapely.transform(geometry, lambda xy: xy * scale))


def _page_of(mask: U8, names: tuple[str, ...]) -> Page:
    """Each connected piece (8 neighbours) of each class of a mask as an object; what touches is one."""
    drawn = []
    for number, name in enumerate(names, start=1):
        count, pieces = cv2.connectedComponents((mask == number).astype(np.uint8), connectivity=8)
        if count > 1:
            outlines = PixelOutlines(mask.shape[1])
            outlines.add(pieces)
            found = outlines.polygons().items()
            drawn += [Drawn(f"{name}-{piece}", name, polygons) for piece, polygons in found]
    return Page(drawn)
