"""QuPath's GeoJSON, in and out.

Enters: a .geojson file, in frame `bounds` unless told.  Leaves: annotations in frame `slide`; and the way back.

    frame slide    level-0 px of the whole file (all we store)
    frame bounds   the same, shifted by openslide.bounds-x/y: the slide as QuPath shows it.  slide = bounds + offset

What QuPath 0.2 to 0.6 writes is read: a FeatureCollection, a bare list, a single Feature; `classification` with `name`
or `names`; ids that are UUIDs or, until 0.3, the name of a Java class; `nucleusGeometry` inside a cell.
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
from shapely import MultiPolygon, Polygon

from cytopipe.core.errors import UserError
from cytopipe.core.files import atomic_path
from cytopipe.formats.annotations import Annotation
from cytopipe.formats.colours import Colour, colour_of

Frame = Literal["bounds", "slide"]
ObjectType = Literal["annotation", "detection"]

NUCLEUS = "nucleus"  # class of a cell's `nucleusGeometry`: QuPath gives it none of its own
CELL = "cell"  # class of an object of QuPath's type "cell" that nobody classified: its type says what it is

SCORE = "Score"  # the measurement that holds a detection's certainty, as we write it

MAX_BYTES = 2 << 30  # the parser needs about ten times the file; a slide of a million outlined cells is below 1 GB
MAX_COORDINATE_PX = 1e8  # no slide is wider; beyond lie numbers of another frame (nanometres) or of a broken export

_NAMESPACE = uuid.UUID("6f1b7c0e-3a55-5d5e-9a57-0c1f0a7d2c11")  # chosen once; changing it changes every id written
_JAVA_NAMES = ("PathAnnotationObject", "PathDetectionObject", "PathCellObject", "PathTileObject", "PathROIObject")
_OWN_PROPERTIES = ("objectType", "object_type", "classification", "color", "colorRGB", "isLocked", "measurements")
_NO_OBJECTS = ("PathRootObject", "TMACoreObject", "root", "tma_core")


def read_qupath(
    path: Path, *, frame: Frame = "bounds", bounds_offset: tuple[int, int] = (0, 0)
) -> tuple[list[Annotation], list[str]]:
    """The annotations of a file, frame slide, in the order of the file; and a line for each feature left out or mended.

    frame           the frame of the file
    bounds_offset   x, y of the bounds in level-0 px, `Slide.bounds_offset`; used for frame "bounds" only
    Left out: points and lines, features without a class, coordinates that are no finite numbers. Mended: rings that
    are not closed or cross themselves (the area they enclose is kept), ids used twice.
    Raises UserError if the file is missing, larger than `MAX_BYTES`, or no GeoJSON.
    """
    shift = np.array(bounds_offset if frame == "bounds" else (0, 0), dtype=np.float64)
    annotations: list[Annotation] = []
    lines: list[str] = []
    ids: set[str] = set()
    for number, feature in enumerate(_features(path), start=1):
        try:
            found, mended = _annotations_of(feature, number, shift)
        except _LeftOut as reason:
            lines.append(f"feature {number} left out: {reason}")
            continue
        lines += [f"feature {number} mended: {what}" for what in mended]
        for annotation in found:
            unique = _unique(annotation.object_id, ids)
            if unique != annotation.object_id:
                lines.append(f"feature {number} mended: id {annotation.object_id} is used twice, read as {unique}")
                annotation = Annotation(unique, annotation.class_name, annotation.geometry, annotation.attributes)
            annotations.append(annotation)
    return annotations, lines


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


class _LeftOut(Exception):
    """Why a feature cannot be read; never leaves this module."""


def _features(path: Path) -> Iterator[Any]:
    """The features of a file, unchecked. UserError when it is no GeoJSON."""
    where = str(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(
                f"is {size >> 20} MB, more than {MAX_BYTES >> 20} MB", where=where, fix="export it in parts"
            )
        document = json.loads(path.read_bytes().decode("utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError("no such file", where=where) from error
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=where) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON ({error})", where=where, fix="export it from QuPath as GeoJSON") from error
    if isinstance(document, list):
        yield from document
    elif isinstance(document, dict) and document.get("type") == "Feature":
        yield document
    elif isinstance(document, dict) and isinstance(document.get("features"), list):
        yield from document["features"]
    else:
        raise UserError("is JSON, but no GeoJSON features", where=where, fix="export it from QuPath as GeoJSON")


def _annotations_of(feature: Any, number: int, shift: Any) -> tuple[list[Annotation], list[str]]:
    """The object of a feature, or a cell and its nucleus; and what was mended. Raises _LeftOut."""
    if not isinstance(feature, dict) or not isinstance(feature.get("properties") or {}, dict):
        raise _LeftOut("is not a GeoJSON feature")
    properties = feature.get("properties") or {}
    raw_id = feature.get("id")
    kind = str(properties.get("objectType") or properties.get("object_type") or raw_id or "")
    if kind in _NO_OBJECTS:
        raise _LeftOut(f"is of QuPath's type {kind}, which is no object")
    name = _class_name(properties.get("classification"))
    is_cell = kind in ("cell", "PathCellObject")
    if not name:
        if not is_cell:
            raise _LeftOut("has no class")
        name = CELL
    attributes = _attributes(properties)
    object_id = attributes.pop("object_id", "") or _own_id(raw_id) or f"feature-{number}"
    geometry, mended = _geometry(feature.get("geometry"), shift)
    inner = feature.get("nucleusGeometry") or properties.get("nucleusGeometry")
    if inner is None:
        return [Annotation(object_id, name, geometry, attributes)], mended
    attributes = {"cell_id": object_id, **attributes}
    found = [Annotation(object_id, name, geometry, attributes)]
    try:
        nucleus, more = _geometry(inner, shift)
    except _LeftOut as reason:
        return found, [*mended, f"its nucleus left out: {reason}"]
    found.append(Annotation(f"{object_id}-nucleus", NUCLEUS, nucleus, attributes))
    return found, mended + [f"nucleus: {what}" for what in more]


def _class_name(classification: Any) -> str:
    """'HSIL' from the three ways in which QuPath spells a class, derived ones joined as it shows them; '' for none."""
    if isinstance(classification, dict):
        names = classification.get("names")
        classification = ": ".join(map(str, names)) if isinstance(names, list) else classification.get("name")
    return _text(classification).strip() if isinstance(classification, str) else ""


def _attributes(properties: Mapping[str, Any]) -> dict[str, str]:
    """Plain values of `metadata`, of properties that QuPath does not know, and the score of a detection, as text."""
    metadata = properties.get("metadata")
    extra = {key: value for key, value in properties.items() if key not in _OWN_PROPERTIES}
    merged = {**extra, **(metadata if isinstance(metadata, dict) else {}), **_score(properties.get("measurements"))}
    return {_text(key): _text(value) for key, value in merged.items() if isinstance(value, (str, int, float))}


def _score(measurements: Any) -> dict[str, float]:
    """The score of a detection, the one measurement that results need. Before QuPath 0.4 measurements are a list."""
    if isinstance(measurements, list):
        measurements = {m.get("name"): m.get("value") for m in measurements if isinstance(m, dict)}
    score = measurements.get(SCORE) if isinstance(measurements, dict) else None
    return {SCORE: score} if isinstance(score, (int, float)) and math.isfinite(score) else {}


def _own_id(raw: Any) -> str:
    """The id of a feature as text; '' where it is missing or only the name of a Java class, as before QuPath 0.4."""
    return _text(raw) if isinstance(raw, (str, int)) and raw not in _JAVA_NAMES else ""


def _text(value: object) -> str:
    """The value as text that can be written again: JSON may hold halves of surrogate pairs, UTF-8 may not."""
    return str(value).encode("utf-8", "replace").decode()


def _unique(object_id: str, taken: set[str]) -> str:
    """`object_id`, or with a counter where it is taken; notes it as taken."""
    unique, count = object_id, 1
    while unique in taken:
        count += 1
        unique = f"{object_id}-{count}"
    taken.add(unique)
    return unique


def _as_uuid(text: str) -> str | None:
    """The text if it is a UUID in the usual spelling."""
    try:
        return text if str(uuid.UUID(text)) == text else None
    except ValueError:
        return None


def _geometry(value: Any, shift: Any) -> tuple[Polygon | MultiPolygon, list[str]]:
    """A valid polygonal geometry, file frame + shift, and what was mended. Raises _LeftOut."""
    mended: list[str] = []
    polygons: list[Any] = []
    try:
        for rings in _polygons(value):
            closed = [_ring(ring, mended) + shift for ring in rings]
            polygons.append(Polygon(closed[0], closed[1:]))
    except RecursionError as error:
        raise _LeftOut("its geometry is nested too deeply") from error
    geometry: Any = polygons[0] if len(polygons) == 1 else MultiPolygon(polygons)
    if not geometry.is_valid:
        mended.append(shapely.is_valid_reason(geometry).lower().split("[")[0] + ", the enclosed area is kept")
        geometry = _polygonal(shapely.make_valid(geometry))
    if geometry.is_empty or geometry.area <= 0:
        raise _LeftOut("encloses no area")
    return geometry, mended


def _polygons(value: Any) -> Iterator[list[Any]]:
    """The rings of each polygon of a GeoJSON geometry, unchecked. Raises _LeftOut where there is no polygon."""
    if not isinstance(value, dict):
        raise _LeftOut("has no geometry")
    kind, coordinates = value.get("type"), value.get("coordinates")
    if kind == "GeometryCollection" and isinstance(value.get("geometries"), list) and value["geometries"]:
        for part in value["geometries"]:
            yield from _polygons(part)
        return
    if kind not in ("Polygon", "MultiPolygon"):
        raise _LeftOut(f"is a {kind}, only outlined objects are read")
    polygons = [coordinates] if kind == "Polygon" else coordinates
    if (
        not isinstance(polygons, list)
        or not polygons
        or not all(isinstance(rings, list) and rings for rings in polygons)
    ):
        raise _LeftOut("its geometry has no rings")
    yield from polygons


def _ring(points: Any, mended: list[str]) -> Any:
    """A closed ring (n, 2) float64, file frame; a third coordinate is dropped. Raises _LeftOut."""
    try:
        array = np.asarray(points)
    except ValueError as error:  # points of different length
        raise _LeftOut("its coordinates are not pairs of numbers") from error
    if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind not in "iuf":
        raise _LeftOut("its coordinates are not pairs of numbers")
    ring = array[:, :2].astype(np.float64)
    if not np.isfinite(ring).all():
        raise _LeftOut("a coordinate is not a finite number")
    if np.abs(ring).max() > MAX_COORDINATE_PX:
        raise _LeftOut(f"a coordinate of {np.abs(ring).max():.3g} px lies outside of any slide")
    if len(ring) >= 3 and not np.array_equal(ring[0], ring[-1]):
        mended.append("a ring is not closed")
        ring = np.concatenate([ring, ring[:1]])
    if len(ring) < 4:
        raise _LeftOut(f"a ring has {len(np.unique(ring, axis=0))} points")
    return ring


def _polygonal(geometry: Any) -> Any:
    """The polygons of a geometry, without the points and lines that mending leaves over."""
    parts = [part for part in shapely.get_parts(shapely.get_parts(geometry)) if isinstance(part, Polygon)]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _geojson(geometry: Any, shift: Any) -> dict[str, Any]:
    """The geometry minus shift, to 1/1000 px; unrounded where rounding would break an outline."""
    moved = shapely.transform(geometry, lambda points: points - shift)
    rounded = shapely.transform(moved, lambda points: np.round(points, 3) + 0.0)  # + 0.0: no "-0.0" in the file
    result: dict[str, Any] = shapely.geometry.mapping(rounded if rounded.is_valid else moved)
    return result
