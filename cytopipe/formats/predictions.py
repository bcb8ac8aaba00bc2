"""What another program's detector reports, window by window.

Enters, by its content: COCO results (a list of detections; or a data set, of which the annotations count), or Parquet.
Leaves: `Predictions`, px of each window, in the order of the file.

    COCO       image_id (the window), bbox x y w h, category_id, score, segmentation (optional: polygons or run lengths)
    Parquet    window_id, class (name or number), score, x0 y0 x1 y1, geometry (optional: WKB)

An outline replaces its box. Outlines are mended as those of annotations are (`mending.py`); one without area, as masks
that came out empty, leaves the box. Refused is what cannot be meant: numbers that are not finite, negative sides,
scores outside of 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.errors import UserError
from cytopipe.formats.coco import polygons_of
from cytopipe.formats.drawn import is_number, text_of
from cytopipe.formats.json_file import load_json
from cytopipe.formats.mending import NO_AREA, Refused, outline_of
from cytopipe.formats.user_table import PARQUET_MAGIC, UserTable

_EDGES = ("x0", "y0", "x1", "y1")
_COCO_FIX = "give a list of detections with image_id, bbox, category_id and score"


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """N detections, px of their windows.

    windows     (N,) str, window ids
    classes     (N,) str, names; or numbers of categories as text
    numbered    whether classes are numbers
    score       (N,) float32, 0 to 1
    boxes       (N, 4) float64 x0 y0 x1 y1; of the outline, where there is one
    geometry    (N,) valid Polygon or MultiPolygon; None: only the box is known
    image_size  (N, 2) int64, width and height of the image on which a run-length mask lies; 0 where there is none
    names       what the file itself calls its categories, number as text -> name
    mended      outlines that were mended
    empty       outlines without area, whose box is taken
    """

    windows: NDArray[np.object_]
    classes: NDArray[np.object_]
    numbered: bool
    score: NDArray[np.float32]
    boxes: NDArray[np.float64]
    geometry: NDArray[np.object_]
    image_size: NDArray[np.int64]
    names: Mapping[str, str]
    mended: int
    empty: int

    def __len__(self) -> int:
        return len(self.windows)


def read_predictions(path: Path) -> Predictions:
    """Read a file of detections. Raises UserError, with the number of the detection, for what cannot be meant."""
    try:
        with path.open("rb") as file:
            is_parquet = file.read(4) == PARQUET_MAGIC
    except OSError as error:
        what = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise UserError(what, where=str(path)) from error
    return _from_parquet(path) if is_parquet else _from_coco(load_json(path), str(path))


def category_names(document: Any, where: str) -> dict[str, str] | list[str]:
    """Names of categories from a JSON document: number as text -> name; of a bare list its names, in order.

    Taken are a COCO data set, its list of categories, an object {"1": "LSIL", ...}, or a list of names.
    """
    if isinstance(document, dict) and isinstance(document.get("categories"), list):
        document = document["categories"]
    if isinstance(document, dict) and document and all(isinstance(v, str) and v.strip() for v in document.values()):
        return {str(key).strip(): text_of(value).strip() for key, value in document.items()}
    if isinstance(document, list) and document:
        if all(isinstance(v, str) and v.strip() for v in document):
            return [text_of(v).strip() for v in document]
        if all(isinstance(v, dict) and type(v.get("id")) is int and v.get("name") for v in document):
            return {str(v["id"]): text_of(v["name"]).strip() for v in document}
    raise UserError(
        "names no classes",
        where=where,
        fix='give {"1": "LSIL", "2": "HSIL"}, a list of names, or a COCO file with categories',
    )


def _from_coco(document: Any, where: str) -> Predictions:
    names: dict[str, str] = {}
    if isinstance(document, dict) and isinstance(document.get("annotations"), list):
        if document.get("categories"):
            found = category_names(document, where)
            names = found if isinstance(found, dict) else {}
        document = document["annotations"]
    if not isinstance(document, list):
        raise UserError("is neither a list of COCO detections nor a COCO data set", where=where, fix=_COCO_FIX)
    rows = _Rows(where, len(document))
    for k, entry in enumerate(document):
        rows.add(k, entry)
    return rows.finished(names)


class _Rows:
    """Detections of a COCO document, checked one by one."""

    def __init__(self, where: str, n: int) -> None:
        self._where = where
        self._windows, self._classes, self._geometry = (np.empty(n, object) for _ in range(3))
        self._score, self._boxes = np.zeros(n, np.float32), np.zeros((n, 4))
        self._image_size = np.zeros((n, 2), np.int64)
        self._mended = self._empty = 0

    def add(self, k: int, entry: Any) -> None:
        if not isinstance(entry, dict):
            raise self._fault(k, "is no COCO detection")
        for name in ("image_id", "category_id"):
            value = entry.get(name)
            if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
                raise self._fault(k, f"has no {name}")
        self._windows[k], self._classes[k] = text_of(entry["image_id"]).strip(), text_of(entry["category_id"]).strip()
        self._score[k] = self._checked_score(k, entry.get("score"))
        segmentation = entry.get("segmentation")
        self._boxes[k] = self._box(k, entry.get("bbox"), needed=not segmentation)
        if segmentation:
            self._outline(k, entry)

    def finished(self, names: Mapping[str, str]) -> Predictions:
        facts = (self._score, self._boxes, self._geometry, self._image_size, names, self._mended, self._empty)
        return Predictions(self._windows, self._classes, True, *facts)

    def _checked_score(self, k: int, score: Any) -> float:
        if not is_number(score) or not 0 <= score <= 1:  # NaN is neither
            raise self._fault(k, f"score {text_of(score)[:20]} is no number from 0 to 1")
        return float(score)

    def _box(self, k: int, bbox: Any, *, needed: bool) -> Sequence[float]:
        if not needed and bbox in (None, []):
            return (0.0, 0.0, 0.0, 0.0)
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(is_number(v) and math.isfinite(v) for v in bbox):
            raise self._fault(k, "its bbox is no x, y, width and height in finite numbers")
        x, y, w, h = map(float, bbox)
        if w < 0 or h < 0:
            raise self._fault(k, f"its bbox has a negative side: {w:g} x {h:g} px")
        return (x, y, x + w, y + h)

    def _outline(self, k: int, entry: Mapping[str, Any]) -> None:
        try:
            outline, mended = outline_of(polygons_of(entry))
        except Refused as reason:
            if not _has_no_area(reason):
                raise self._fault(k, str(reason)) from None
            self._empty += 1
            return
        self._mended += bool(mended)
        self._geometry[k], self._boxes[k] = outline, outline.bounds
        if isinstance(entry["segmentation"], dict):
            self._image_size[k] = entry["segmentation"]["size"][::-1]

    def _fault(self, k: int, what: str) -> UserError:
        return UserError(f"detection {k + 1}: {what}", where=self._where, fix=_COCO_FIX)


def _from_parquet(path: Path) -> Predictions:
    columns = ("window_id", "class", "score", *_EDGES)
    table = UserTable(path, text=("window_id", "class", "geometry"), numbers=("score", *_EDGES), required=columns)
    boxes, score = table.numbers(_EDGES), table.numbers(["score"])[:, 0]
    for row in np.flatnonzero(~((score >= 0) & (score <= 1))):
        raise table.fault("score", int(row), f"{score[row]:g} is not from 0 to 1")
    for row in np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1)):
        x0, y0, x1, y1 = boxes[row]
        raise table.fault("box", int(row), f"has a negative side: {x0:g}, {y0:g} to {x1:g}, {y1:g}")
    geometry, mended, empty = _outlines(table, len(boxes))
    known = ~shapely.is_missing(geometry)
    boxes[known] = shapely.bounds(geometry[known])
    return Predictions(
        table.text("window_id"),
        table.text("class"),
        table.is_numeric("class"),
        score.astype(np.float32),
        boxes,
        geometry,
        np.zeros((len(boxes), 2), np.int64),
        {},
        mended,
        empty,
    )


def _outlines(table: UserTable, n: int) -> tuple[NDArray[np.object_], int, int]:
    """The outlines (n,) of a table, and how many were mended and how many have no area."""
    geometry: NDArray[np.object_] = np.full(n, None, object)
    if "geometry" not in table:
        return geometry, 0, 0
    wkb = table.binary("geometry")
    try:
        geometry[:] = shapely.from_wkb(wkb)
    except shapely.errors.ShapelyError as error:
        raise UserError(f"column geometry holds what is no WKB ({error})", where=table.where) from error
    missing = shapely.is_missing(geometry)
    kinds = shapely.get_type_id(geometry)
    for row in np.flatnonzero(~missing & ~np.isin(kinds, (3, 6))):  # shapely's numbers of Polygon and MultiPolygon
        raise table.fault("geometry", int(row), f"is a {geometry[row].geom_type}, and only outlines are read")
    mended = empty = 0
    finite = np.isfinite(shapely.bounds(geometry)).all(axis=1)
    usable = finite & shapely.is_valid(geometry) & (shapely.area(geometry) > 0)
    for row in np.flatnonzero(~missing & ~usable):
        parts = shapely.get_parts(geometry[row])
        rings = [
            [shapely.get_coordinates(ring) for ring in (p.exterior, *p.interiors)] for p in parts if not p.is_empty
        ]
        try:
            geometry[row], _ = outline_of(rings)
        except Refused as reason:
            if not _has_no_area(reason):
                raise table.fault("geometry", int(row), str(reason)) from None
            geometry[row] = None
            empty += 1
            continue
        mended += 1
    return geometry, mended, empty


def _has_no_area(reason: Refused) -> bool:
    """Whether an outline is empty, as of a mask that came out so, and not wrong."""
    text = str(reason)
    return text.startswith(NO_AREA) or text.endswith("points") or text == "its geometry has no rings"
