"""QuPath's GeoJSON, in and out.

Enters: a .geojson file, in frame `bounds` unless told.  Leaves: annotations in frame `slide`; and the way back.

    frame slide    level-0 px of the whole file (all we store)
    frame bounds   the same, shifted by openslide.bounds-x/y: the slide as QuPath shows it.  slide = bounds + offset

What QuPath 0.2 to 0.6 writes is read: a FeatureCollection, a bare list, a single Feature; `classification` with `name`
or `names`; ids that are UUIDs or, until 0.3, the name of a Java class; `nucleusGeometry` inside a cell. Points and
lines, features without a class and QuPath's own root objects are refused; outlines follow `mending.py`.
Source   QuPath's PathObjectTypeAdapters and GeometryTypeAdapters; RFC 7946 for the rest.
Differs  no real sample was at hand: the tests write such files themselves.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal

import numpy as np
import shapely

from cytopipe.core.errors import UserError
from cytopipe.core.files import atomic_path
from cytopipe.formats.annotations import Annotation
from cytopipe.formats.colours import Colour, colour_of
from cytopipe.formats.drawn import Drawn, Page, Wish, annotations_from, finite_number, is_number, text_of
from cytopipe.formats.json_file import load_json
from cytopipe.formats.mending import Refused

Frame = Literal["bounds", "slide"]
ObjectType = Literal["annotation", "detection"]

NUCLEUS = "nucleus"  # class of a cell's `nucleusGeometry`: QuPath gives it none of its own
CELL = "cell"  # class of an object of QuPath's type "cell" that nobody classified: its type says what it is

SCORE = "Score"  # the measurement that holds a detection's certainty, as we write it

_NAMESPACE = uuid.UUID("6f1b7c0e-3a55-5d5e-9a57-0c1f0a7d2c11")  # chosen once; changing it changes every id written
_JAVA_NAMES = ("PathAnnotationObject", "PathDetectionObject", "PathCellObject", "PathTileObject", "PathROIObject")
_OWN_PROPERTIES = ("objectType", "object_type", "classification", "color", "colorRGB", "isLocked", "measurements")
_NO_OBJECTS = ("PathRootObject", "TMACoreObject", "root", "tma_core")


def read_qupath(
    path: Path, *, frame: Frame = "bounds", bounds_offset: tuple[int, int] = (0, 0)
) -> tuple[list[Annotation], list[str]]:
    """The annotations of a file, frame slide, in the order of the file; and a line for each object refused or mended.

    frame           the frame of the file
    bounds_offset   x, y of the bounds in level-0 px, `Slide.bounds_offset`; used for frame "bounds" only
    Raises UserError if the file is missing, too large, or no GeoJSON.
    """
    page = qupath_page(load_json(path), str(path))
    found = annotations_from(page, Wish(), shift=bounds_offset if frame == "bounds" else (0, 0), where=str(path))
    return found.objects, found.lines


def is_qupath(document: Any) -> bool:
    """Whether a JSON document is GeoJSON features, in any of the three wrappings."""
    if isinstance(document, dict):
        return document.get("type") == "Feature" or isinstance(document.get("features"), list)
    return isinstance(document, list)


def qupath_page(document: Any, where: str) -> Page:
    """The objects of a GeoJSON document, unchecked, px of its own frame. Raises UserError when it is no GeoJSON."""
    if not is_qupath(document):
        raise UserError("is JSON, but no GeoJSON features", where=where, fix="export it from QuPath as GeoJSON")
    features = document if isinstance(document, list) else document.get("features")
    features = features if isinstance(features, list) else [document]
    return Page(_drawn(features))


class QuPathWriter:
    """Streams annotations in frame slide to a GeoJSON file that QuPath opens: `with QuPathWriter(path) as out: ...`.

    The file appears when the block ends without an error. Coordinates are written to 1/1000 px. The id of a feature is
    a UUID: the object's own id where that is one, else one made from it (same id, same UUID), with the id as metadata.
    """

    def __init__(self, path: Path, *, frame: Frame = "bounds", bounds_offset: tuple[int, int] = (0, 0)) -> None:
        self._path = path
        self._shift = np.array(bounds_offset if frame == "bounds" else (0, 0), dtype=np.float64)
        self._stack = ExitStack()
        self._file: IO[str] | None = None
        self._written = 0

    def __enter__(self) -> QuPathWriter:
        partial = self._stack.enter_context(atomic_path(self._path))
        self._file = self._stack.enter_context(partial.open("w", encoding="utf-8", newline="\n"))
        self._file.write('{"type": "FeatureCollection", "features": [')
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._file is not None:
            self._file.write("\n]}\n")
        self._file = None
        self._stack.__exit__(kind, value, trace)

    def add(
        self,
        annotation: Annotation,
        *,
        object_type: ObjectType = "annotation",
        measurements: Mapping[str, float] | None = None,
        colour: Colour | None = None,
    ) -> None:
        """Write one feature. Measurements that are NaN or infinite are left out: JSON has no word for them.

        Raises ValueError for a coordinate that is not finite, and outside of the `with` block.
        """
        if self._file is None:
            raise ValueError("QuPathWriter.add: outside of its `with` block")
        metadata = dict(annotation.attributes)
        feature_id = _as_uuid(annotation.object_id)
        if feature_id is None:
            feature_id = str(uuid.uuid5(_NAMESPACE, annotation.object_id))
            metadata["object_id"] = annotation.object_id
        name = annotation.class_name
        properties: dict[str, Any] = {
            "objectType": object_type,
            "classification": {"name": name, "color": list(colour or colour_of(name))},
        }
        numbers = {key: value for key, value in (measurements or {}).items() if math.isfinite(value)}
        if numbers:
            properties["measurements"] = numbers
        if metadata:
            properties["metadata"] = metadata
        geometry = _geojson(annotation.geometry, self._shift)
        feature = {"type": "Feature", "id": feature_id, "geometry": geometry, "properties": properties}
        self._file.write(",\n" if self._written else "\n")
        self._file.write(json.dumps(feature, ensure_ascii=False, allow_nan=False))
        self._written += 1


def _drawn(features: list[Any]) -> Iterator[Drawn]:
    for number, feature in enumerate(features, start=1):
        object_id = f"feature-{number}"
        try:
            yield from _of_feature(feature, object_id)
        except Refused as reason:
            own = _own_id(feature.get("id")) if isinstance(feature, dict) else ""
            yield Drawn(own or object_id, refused=str(reason))


def _of_feature(feature: Any, place: str) -> list[Drawn]:
    """The object of a feature, or a cell and its nucleus. Raises Refused."""
    if not isinstance(feature, dict) or not isinstance(feature.get("properties") or {}, dict):
        raise Refused("is not a GeoJSON feature")
    properties = feature.get("properties") or {}
    raw_id = feature.get("id")
    kind = str(properties.get("objectType") or properties.get("object_type") or raw_id or "")
    if kind in _NO_OBJECTS:
        raise Refused(f"is of QuPath's type {kind}, which is no object")
    name = _class_name(properties.get("classification"))
    if not name and kind in ("cell", "PathCellObject"):
        name = CELL
    attributes = _attributes(properties)
    object_id = attributes.pop("object_id", "") or _own_id(raw_id) or place
    outline = polygons_of(feature.get("geometry"))
    inner = feature.get("nucleusGeometry") or properties.get("nucleusGeometry")
    if inner is None:
        return [Drawn(object_id, name, outline, attributes, closes_rings=True)]
    attributes = {"cell_id": object_id, **attributes}
    cell = Drawn(object_id, name, outline, attributes, closes_rings=True)
    try:
        return [cell, Drawn(f"{object_id}-nucleus", NUCLEUS, polygons_of(inner), attributes, closes_rings=True)]
    except Refused as reason:
        return [cell, Drawn(f"{object_id}-nucleus", refused=str(reason))]


def _class_name(classification: Any) -> str:
    """'HSIL' from the three ways in which QuPath spells a class, derived ones joined as it shows them; '' for none."""
    if isinstance(classification, dict):
        names = classification.get("names")
        classification = ": ".join(map(str, names)) if isinstance(names, list) else classification.get("name")
    return text_of(classification).strip() if isinstance(classification, str) else ""


def _attributes(properties: Mapping[str, Any]) -> dict[str, str]:
    """Plain values of `metadata`, of properties that QuPath does not know, and the score of a detection, as text."""
    metadata = properties.get("metadata")
    extra = {key: value for key, value in properties.items() if key not in _OWN_PROPERTIES}
    merged = {**extra, **(metadata if isinstance(metadata, dict) else {})}
    found = {text_of(key): text_of(value) for key, value in merged.items() if isinstance(value, (str, int, float))}
    score = _score(properties.get("measurements"))
    if score is not None and finite_number(found.get(SCORE)) != score:  # equal: as it was spelled, "1" or "1.0"
        found[SCORE] = str(score)
    return found


def _score(measurements: Any) -> float | None:
    """The score of a detection, the one measurement that results need. Before QuPath 0.4 measurements are a list."""
    if isinstance(measurements, list):
        measurements = {m.get("name"): m.get("value") for m in measurements if isinstance(m, dict)}
    score = measurements.get(SCORE) if isinstance(measurements, dict) else None
    return float(score) if is_number(score) and math.isfinite(score) else None


def _own_id(raw: Any) -> str:
    """The id of a feature as text; '' where it is missing or only the name of a Java class, as before QuPath 0.4."""
    return text_of(raw) if isinstance(raw, (str, int)) and raw not in _JAVA_NAMES else ""


def _as_uuid(text: str) -> str | None:
    """The text if it is a UUID in the usual spelling."""
    try:
        return text if str(uuid.UUID(text)) == text else None
    except ValueError:
        return None


def polygons_of(value: Any) -> list[Any]:
    """The polygons of a GeoJSON geometry, each a list of rings, unchecked. Raises Refused where there is none."""
    polygons: list[Any] = []
    left = [value]
    while left:
        part = left.pop()
        if not isinstance(part, dict):
            raise Refused("has no geometry")
        kind, coordinates = part.get("type"), part.get("coordinates")
        if kind == "GeometryCollection" and isinstance(part.get("geometries"), list) and part["geometries"]:
            left += reversed(part["geometries"])
            continue
        if kind not in ("Polygon", "MultiPolygon"):
            raise Refused(f"is a {kind}, only outlined objects are read")
        found = [coordinates] if kind == "Polygon" else coordinates
        if not isinstance(found, list) or not found or not all(isinstance(rings, list) and rings for rings in found):
            raise Refused("its geometry has no rings")
        polygons += found
    return polygons


def _geojson(geometry: Any, shift: Any) -> dict[str, Any]:
    """The geometry minus shift, to 1/1000 px; unrounded where rounding would break an outline."""
    moved = shapely.transform(geometry, lambda points: points - shift)
    rounded = shapely.transform(moved, lambda points: np.round(points, 3) + 0.0)  # + 0.0: no "-0.0" in the file
    result: dict[str, Any] = shapely.geometry.mapping(rounded if rounded.is_valid else moved)
    return result
