"""COCO, in and out.

Enters: a COCO document (object detection), of one or many images.  Leaves: the objects of one image, px of that image;
and the way back.

    segmentation   list of polygons    parts of one object: united where they overlap
                   counts and size     run lengths, as numbers or as COCO's text: the pixels, along their edges
                   none, empty         the box: bbox is x y w h
    iscrowd 1      attribute crowd     a group: neither a target nor a false alarm
    score          attribute Score     of detections
    attributes     kept as text, as other plain values of an annotation are
    object_id      our id where it is not COCO's number; other readers pass over it

A polygon of COCO has no holes. An outline with holes is written as one ring that runs on from its first point to each
hole, round it and back: the same area to every reader that fills rings (even-odd or by winding), and read back here as
outline and holes, vertex by vertex. Coordinates are written as they are: what is read again is equal.
Source   cocodataset.org/#format-data; run lengths after maskApi.c of the COCO API.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon

from cytopipe.core.errors import UserError
from cytopipe.core.files import atomic_path
from cytopipe.formats.annotations import Annotation
from cytopipe.formats.drawn import Drawn, Page, finite_number, is_number, text_of
from cytopipe.formats.images import chosen_image
from cytopipe.formats.mending import MAX_COORDINATE_PX, NO_AREA, Refused
from cytopipe.formats.pixel_outlines import PixelOutlines
from cytopipe.formats.qupath import SCORE
from cytopipe.formats.run_lengths import RunLengths

MAX_RUN_PX = 1 << 28  # of the columns that one object of run lengths spans: they are laid out to be traced
MAX_SIDE_PX = 1 << 31  # of an image; beyond stands no slide

_OWN = ("id", "image_id", "category_id", "segmentation", "area", "bbox", "iscrowd", "score", "object_id", "attributes")


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An image of a COCO file.

    file_name  relative to the file, / between folders
    extra      further members; other readers pass over them
    """

    id: int
    file_name: str
    width: int
    height: int
    extra: Mapping[str, Any] = field(default_factory=dict)


def is_coco(document: Any) -> bool:
    """Whether a JSON document is COCO: a data set, or a bare list of detections."""
    if isinstance(document, list):
        return bool(document) and isinstance(document[0], dict) and "category_id" in document[0]
    return isinstance(document, dict) and isinstance(document.get("annotations"), list) and "images" in document


class CocoFile:
    """A document, sorted by image: `page` gives the objects of one of them.

    names  of the images, in the order of the document
    Raises UserError for the kinds of COCO that outline nothing.
    """

    def __init__(self, document: Any, where: str) -> None:
        if isinstance(document, list):
            fix = "give the data set with its images and categories, its annotations replaced by these"
            raise UserError("is a bare list of COCO detections, without images and classes", where=where, fix=fix)
        annotations = document["annotations"]
        if any("segments_info" in annotation for annotation in _dicts(annotations[:1])):
            raise UserError("is COCO panoptic, which outlines nothing", where=where, fix="give its label images")
        categories = _dicts(document.get("categories"))
        self._categories = {str(c.get("id")): text_of(c.get("name", "")).strip() for c in categories}
        self._images = _dicts(document.get("images"))
        self.names = [_name_of(image) for image in self._images]
        self._of_image: dict[str, list[tuple[int, Any]]] = {}
        for number, annotation in enumerate(annotations, start=1):
            image_id = str(annotation.get("image_id")) if isinstance(annotation, dict) else ""
            self._of_image.setdefault(image_id, []).append((number, annotation))

    def page(self, image: str | None, where: str, *, only_named: bool = False) -> Page:
        """The objects of one image, unchecked; `image` as `images.chosen_image` takes it. UserError if none fits."""
        ids = [str(entry.get("id")) for entry in self._images]
        index = chosen_image(self.names, image, where, only_named=only_named, ids=ids)
        found = self._of_image.get(ids[index], []) + self._of_image.get("", [])
        objects = (_drawn(annotation, number, self._categories) for number, annotation in found)
        width, height = (_side(self._images[index].get(name)) for name in ("width", "height"))
        return Page(objects, self.names[index], (width, height) if width and height else None)


class CocoWriter:
    """Streams annotations to a COCO file: `with CocoWriter(path, images, classes) as out: out.add(...)`.

    images   written at once; their ids are what `add` refers to
    classes  the categories, 1 and up in this order
    The file appears when the block ends without an error; the same calls give the same bytes.
    """

    def __init__(self, path: Path, images: Iterable[CocoImage], classes: Sequence[str]) -> None:
        self._path, self._images = path, images
        self._category = {name: number for number, name in enumerate(classes, start=1)}
        self._sizes: dict[int, tuple[int, int]] = {}
        self._stack = ExitStack()
        self._file: IO[str] | None = None
        self._written = 0

    def __enter__(self) -> CocoWriter:
        partial = self._stack.enter_context(atomic_path(self._path))
        self._file = self._stack.enter_context(partial.open("w", encoding="utf-8", newline="\n"))
        self._file.write('{"info": {"description": "written by cytopipe"},\n"images": [')
        for number, image in enumerate(self._images):
            self._sizes[image.id] = (image.width, image.height)
            entry = {"id": image.id, "file_name": image.file_name, "width": image.width, "height": image.height}
            self._put({**entry, **image.extra}, number)
        self._file.write('\n],\n"categories": [')
        for number, (name, category) in enumerate(self._category.items()):
            self._put({"id": category, "name": name, "supercategory": ""}, number)
        self._file.write('\n],\n"annotations": [')
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._file is not None:
            self._file.write("\n]}\n")
        self._file = None
        self._stack.__exit__(kind, value, trace)

    def add(
        self, image_id: int, annotation: Annotation, *, coco_id: int | None = None, runs: RunLengths | None = None
    ) -> None:
        """Write one object, px of its image. `coco_id`: else the number of objects written so far, from 1. `runs`: its
        pixels, written in place of its outline.

        Raises KeyError for a class outside of the list, ValueError for a coordinate that is not finite, and outside of
        the `with` block.
        """
        if self._file is None:
            raise ValueError("CocoWriter.add: outside of its `with` block")
        number = self._written + 1 if coco_id is None else coco_id
        x0, y0, x1, y1 = annotation.geometry.bounds
        entry: dict[str, Any] = {
            "id": number,
            "image_id": image_id,
            "category_id": self._category[annotation.class_name],
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": annotation.geometry.area,
            "segmentation": [],
            "iscrowd": int(annotation.is_crowd),
        }
        if runs is None:
            entry["segmentation"] = [_one_ring(part) for part in shapely.get_parts(annotation.geometry)]
        else:
            width, height = self._sizes[image_id]
            entry |= {"area": runs.pixels, "segmentation": {"size": [height, width], "counts": runs.counts}}
        if annotation.object_id != str(number):
            entry["object_id"] = annotation.object_id
        score = finite_number(annotation.attributes.get(SCORE))
        if score is not None:
            entry["score"] = score
        if annotation.attributes:
            entry["attributes"] = dict(annotation.attributes)
        self._put(entry, self._written)
        self._written += 1

    def _put(self, entry: dict[str, Any], number: int) -> None:
        if self._file is None:
            raise ValueError("CocoWriter: outside of its `with` block")
        self._file.write((",\n" if number else "\n") + json.dumps(entry, ensure_ascii=False, allow_nan=False))


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _side(value: Any) -> int:
    """Width or height of an image, px; 0 where it is none."""
    return value if type(value) is int and 0 < value < MAX_SIDE_PX else 0


def _name_of(image: Mapping[str, Any]) -> str:
    return text_of(image.get("file_name") or image.get("id", ""))


def _drawn(annotation: Any, number: int, categories: Mapping[str, str]) -> Drawn:
    if not isinstance(annotation, dict):
        return Drawn(f"annotation-{number}", refused="is no COCO annotation")
    raw_id = annotation.get("object_id", annotation.get("id"))
    object_id = (text_of(raw_id) if isinstance(raw_id, (str, int)) else "") or f"annotation-{number}"
    category = str(annotation.get("category_id"))
    if category not in categories:
        return Drawn(object_id, refused=f"its category {category[:20]} is not in the file")
    try:
        polygons = polygons_of(annotation)
    except Refused as reason:
        return Drawn(object_id, refused=str(reason))
    return Drawn(object_id, categories[category], polygons, _attributes(annotation))


def _attributes(annotation: Mapping[str, Any]) -> dict[str, str]:
    own = annotation.get("attributes")
    found = {key: value for key, value in annotation.items() if key not in _OWN}
    found |= own if isinstance(own, dict) else {}
    attributes = {text_of(key): text_of(value) for key, value in found.items() if isinstance(value, (str, int, float))}
    if annotation.get("iscrowd") == 1:
        attributes.setdefault("crowd", "1")
    score = annotation.get("score")
    if is_number(score) and math.isfinite(score) and "score" not in attributes:
        attributes.setdefault(SCORE, str(score))
    return attributes


def polygons_of(annotation: Mapping[str, Any]) -> list[Any]:
    """The polygons of an annotation or detection, each an outline and its holes, unchecked. Raises Refused."""
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, dict):
        return _from_runs(segmentation)
    if isinstance(segmentation, list) and segmentation:
        return [_outline_and_holes(flat) for flat in segmentation]
    if segmentation not in (None, []):
        raise Refused("its segmentation is neither polygons nor run lengths")
    box = annotation.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise Refused("has neither segmentation nor box")
    x, y, w, h = box
    if w <= 0 or h <= 0:
        raise Refused(f"{NO_AREA}: its box is {w:g} x {h:g} px")
    return [[[(x, y), (x + w, y), (x + w, y + h), (x, y + h)]]]


def _outline_and_holes(flat: Any) -> list[Any]:
    """The rings of one flat list x y x y ...; see `_one_ring`. Raises Refused."""
    if not isinstance(flat, list) or len(flat) % 2 or not all(map(is_number, flat)):
        raise Refused("its segmentation is no list of x y pairs")
    points = list(zip(flat[::2], flat[1::2], strict=True))
    distinct = len(set(points))
    if distinct < 3 or distinct >= len(points) - (points[0] == points[-1]):
        return [points]  # no ring of its own passes a point twice
    closed = points if points[0] == points[-1] else [*points, points[0]]
    start = closed[0]
    end = closed.index(start, 1)
    rings, rest = [closed[: end + 1]], closed[end + 1 :]
    while rest:
        try:
            back = rest.index(rest[0], 1)
        except ValueError:
            return [points]
        if len(rest) <= back + 1 or rest[back + 1] != start:
            return [points]
        rings.append(rest[: back + 1])
        rest = rest[back + 2 :]
    simple = all(len(set(ring)) == len(ring) - 1 >= 3 for ring in rings) and max(map(abs, flat)) <= MAX_COORDINATE_PX
    return rings if simple and Polygon(rings[0], rings[1:]).is_valid else [points]


def _one_ring(polygon: Any) -> list[float]:
    """Outline and holes as one flat ring: the outline closed, then each hole closed and back to the first point."""
    shell = shapely.get_coordinates(polygon.exterior)
    if not polygon.interiors:
        flat: list[float] = shell[:-1].ravel().tolist()
        return flat
    rings = [shell]
    for interior in polygon.interiors:
        hole = shapely.get_coordinates(interior)
        against = hole[::-1] if interior.is_ccw == polygon.exterior.is_ccw else hole
        rings += [against, shell[:1]]
    joined: list[float] = np.concatenate(rings).ravel().tolist()
    return joined


def _from_runs(segmentation: Mapping[str, Any]) -> list[Any]:
    """Run lengths down the columns as polygons along the pixel edges. Raises Refused."""
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(type(v) is int and 0 < v < MAX_SIDE_PX for v in size):
        raise Refused("its run lengths have no size")
    height, width = size
    lengths = _lengths(counts)
    if not lengths.size or lengths.min() < 0 or lengths.max() > height * width or lengths.sum() != height * width:
        raise Refused(f"its run lengths do not fill {width} x {height} px")
    stops = np.cumsum(lengths)
    last = stops[1::2]  # background and object take turns
    first = stops[::2][: len(last)]
    filled = last > first
    first, last = first[filled], last[filled]
    if not len(first):
        raise Refused(NO_AREA)
    x0, x1 = int(first[0] // height), int((last[-1] - 1) // height) + 1
    if (x1 - x0) * height > MAX_RUN_PX:
        raise Refused(f"its run lengths span {x1 - x0} columns of {height} px")
    change = np.zeros((x1 - x0) * height + 1, dtype=np.int8)
    change[first - x0 * height] += 1
    change[last - x0 * height] -= 1
    pixels = np.cumsum(change[:-1], dtype=np.int8).reshape(x1 - x0, height).T
    rows = np.flatnonzero(pixels.any(axis=1))
    outlines = PixelOutlines(x1 - x0)
    outlines.add(pixels[rows[0] : rows[-1] + 1])
    corner = np.array([x0, rows[0]], dtype=np.float64)
    return [[ring + corner for ring in rings] for rings in outlines.polygons()[1]]


def _lengths(counts: Any) -> NDArray[np.int64]:
    """Run lengths, background first, from a list of numbers or from COCO's text. Raises Refused."""
    if isinstance(counts, list) and all(type(v) is int and 0 <= v < MAX_SIDE_PX**2 for v in counts):
        return np.array(counts, dtype=np.int64)
    if not isinstance(counts, str):
        raise Refused("its run lengths are neither numbers nor text")
    return np.array(list(_decoded(counts)), dtype=np.int64)


def _decoded(text: str) -> Iterator[int]:
    """COCO's text: five bits a character, lowest first, from the fourth on as difference to the last but one."""
    earlier = [0, 0]
    value, shift, count = 0, 0, 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code < 64 or shift > 60:
            raise Refused("its run lengths are no text of COCO")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        value += earlier[0] if count > 2 else 0
        if abs(value) >= MAX_SIDE_PX**2:
            raise Refused("its run lengths are no text of COCO")
        yield value
        earlier, value, shift, count = [earlier[1], value], 0, 0, count + 1
    if shift:
        raise Refused("its run lengths end in the middle")
