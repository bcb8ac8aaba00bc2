"""The results folder of one slide: what `infer` found on it. The one module that reads and writes it.

Enters: `Objects` in frame slide, level-0 px.  Leaves: the folder below, its bytes independent of their order.

    objects.parquet    GeoParquet 1.1, a row an object, by (y0, x0, class); always there, also without any object
    objects.geojson    QuPath: a detection an object, frame bounds unless told
    run.json           what ran, versions, counts, errors, times; clock times stand here and nowhere else

    column                   type        unit          meaning
    object_id                string                    UUID of slide, geometry to 1/64 px, class, ordinal among equals
    class                    string                    name of the class
    score                    float32     0 to 1        certainty that an object of this kind is there
    score_CLASS              float32     0 to 1        certainty of each class: a column a class, in their order
    suspicion                float32                   see `suspicion`
    x0 y0 x1 y1              float64     level-0 px    box
    area_px                  float64     level-0 px²   area of the geometry
    area_um2                 float64     µm²           null where the slide has no resolution
    equivalent_diameter_um   float64     µm            of the circle of that area; null likewise
    centroid_x centroid_y    float64     level-0 px    of the geometry
    geometry                 WKB         level-0 px    Polygon or MultiPolygon; the box where `outlined` is false
    outlined                 bool                      whether the geometry is an outline, or only the box
    flags                    string                    "", "joined", "truncated", or "joined truncated" (DESIGN 6)
    window                   int32                     number of the window that reported it, -1 for none

Schema metadata: `geo` (GeoParquet; crs null, since the coordinates are pixels) and `cytopipe` (JSON: schema_version,
slide_id, classes, mpp as [x, y] or null, bounds_offset).
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cytopipe.core.classes import ObjectClass
from cytopipe.core.errors import UserError
from cytopipe.core.files import atomic_path, write_json
from cytopipe.core.objects import FLAG_NAMES, Objects
from cytopipe.formats.annotations import Annotation
from cytopipe.formats.colours import class_colours
from cytopipe.formats.qupath import SCORE, Frame, QuPathWriter

SCHEMA_VERSION = 1
TABLE_NAME = "objects.parquet"
GEOJSON_NAME = "objects.geojson"
RUN_NAME = "run.json"

ID_GRID_PX = 1 / 64  # DESIGN 6: ids survive differences in the last bits of a coordinate


class ResultsInfo(BaseModel):
    """What a results table says about itself, in its schema metadata."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = Field(ge=1, le=SCHEMA_VERSION, description="version of the table's layout")
    slide_id: str = Field(min_length=1, description="the slide on which the objects lie")
    classes: tuple[ObjectClass, ...] = Field(description="the model's classes, in the order of the score columns")
    mpp: tuple[float, float] | None = Field(
        description="level-0 µm/px along x and y; none where the slide says nothing"
    )
    bounds_offset: tuple[int, int] = Field(description="x, y of frame bounds in frame slide, level-0 px")


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """The objects of one slide, as they stand in its results folder.

    info         slide, classes, resolution
    objects      N objects, level-0 px, by (y0, x0, class)
    object_ids   N UUIDs as text
    """

    info: ResultsInfo
    objects: Objects
    object_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.object_ids) != len(self.objects):
            raise ValueError(f"Results: {len(self.object_ids)} ids for {len(self.objects)} objects")

    @property
    def slide_id(self) -> str:
        """The slide on which the objects lie."""
        return self.info.slide_id

    @property
    def classes(self) -> tuple[ObjectClass, ...]:
        """The class list to which `objects.class_index` points."""
        return self.info.classes

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Level-0 µm/px along x and y, None where the slide has no resolution."""
        return self.info.mpp

    @property
    def suspicion(self) -> NDArray[np.float32]:
        """(N,) float32, see `suspicion`."""
        return suspicion(self.objects.class_scores, self.info.classes, self.objects.score)


def suspicion(
    class_scores: NDArray[np.float32], classes: Sequence[ObjectClass], score: NDArray[np.float32]
) -> NDArray[np.float32]:
    """How suspicious each object is (N,): the sum of its scores over suspicious classes; without any, its score.

    class_scores (N, C) float32, score (N,) float32. The one place for this rule (DESIGN 5).
    """
    columns = [k for k, c in enumerate(classes) if c.suspicious]
    if not columns:
        return score.astype(np.float32)
    return np.asarray(class_scores[:, columns].sum(axis=1, dtype=np.float64), dtype=np.float32)


def shapes_of(objects: Objects) -> NDArray[np.object_]:
    """The geometry of each object (N,), the rectangle of its box where it has none; level-0 px."""
    missing = np.array([g is None for g in objects.geometry], dtype=bool)
    shapes = objects.geometry.copy()
    if missing.any():
        shapes[missing] = shapely.box(*objects.xyxy[missing].T)
    return shapes


def write_results(
    folder: Path,
    slide_id: str,
    objects: Objects,
    classes: Sequence[ObjectClass],
    *,
    mpp: tuple[float, float] | None,
    bounds_offset: tuple[int, int] = (0, 0),
    geojson: bool = True,
    frame: Frame = "bounds",
) -> Results:
    """Write objects.parquet, and objects.geojson unless told not to; the folder is made. Returns what was written.

    mpp     level-0 µm/px along x and y, None where unknown: areas in µm² are then null
    frame   of the GeoJSON file only; the table is always in frame slide
    The bytes depend on the set of objects, not on their order. Raises ValueError for scores or boxes that are not
    finite or a class index outside of the list, RunError when the disk is full.
    """
    info = ResultsInfo(
        schema_version=SCHEMA_VERSION,
        slide_id=slide_id,
        classes=tuple(classes),
        mpp=mpp,
        bounds_offset=bounds_offset,
    )
    _check(objects, info)
    objects, keys = _in_order(objects)
    results = Results(info, objects, _object_ids(slide_id, objects, keys, info))
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder / TABLE_NAME, results)
    if geojson:
        write_geojson(folder / GEOJSON_NAME, results, frame=frame)
    return results


def write_geojson(path: Path, results: Results, *, frame: Frame = "bounds") -> None:
    """Write the objects as QuPath detections: class with its colour, scores and sizes as measurements."""
    info, objects = results.info, results.objects
    names = [c.name for c in info.classes]
    colours = class_colours(names)
    shapes = shapes_of(objects)
    area_px, area_um2, diameter_um = _sizes(shapes, info.mpp)
    suspicions = results.suspicion
    with QuPathWriter(path, frame=frame, bounds_offset=info.bounds_offset) as out:
        for i, object_id in enumerate(results.object_ids):
            name = names[objects.class_index[i]]
            numbers = {SCORE: objects.score[i], "Suspicion": suspicions[i]}
            numbers |= {f"Score: {c}": s for c, s in zip(names, objects.class_scores[i], strict=True)}
            measurements = {key: round(float(value), 6) for key, value in numbers.items()}
            measurements["Area px^2"] = round(float(area_px[i]), 3)
            if area_um2 is not None and diameter_um is not None:
                measurements["Area µm^2"] = round(float(area_um2[i]), 4)
                measurements["Equivalent diameter µm"] = round(float(diameter_um[i]), 4)
            attributes = {"flags": _flag_text(int(objects.flags[i]))} if objects.flags[i] else {}
            found = Annotation(object_id, name, shapes[i], attributes)
            out.add(found, object_type="detection", measurements=measurements, colour=colours[name])


def find_results(root: Path) -> list[Path]:
    """The results folders at or directly below `root`, by name. Raises UserError if there is none."""
    if (root / TABLE_NAME).is_file():
        return [root]
    found = sorted(path.parent for path in root.glob(f"*/{TABLE_NAME}"))
    if not found:
        raise UserError(
            f"holds no {TABLE_NAME}, nor does a folder in it", where=str(root), fix="give the --out of infer"
        )
    return found


def read_results(folder: Path) -> Results:
    """Read a results folder back: the objects in the order and with the ids under which they were written.

    Raises UserError if there is no table, or it is damaged, of another program, or of a newer cytopipe.
    """
    path = folder / TABLE_NAME
    where = str(path)
    try:
        table = pq.read_table(path, use_threads=False)
    except FileNotFoundError as error:
        raise UserError("no such file", where=where, fix="give a results folder of `cytopipe infer`") from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"is not a Parquet file ({error})", where=where) from error
    info = _info_of(table, where)
    missing = [name for name in _columns_read(info) if name not in table.column_names]
    if missing:
        raise UserError(f"has no column {', '.join(missing)}", where=where)
    try:
        return _results_of(table, info)
    except (ValueError, TypeError, shapely.errors.ShapelyError) as error:
        raise UserError(f"is damaged ({error})", where=where) from error


def write_run_json(folder: Path, facts: dict[str, Any]) -> None:
    """Write run.json; the folder is made. Raises ValueError for NaN."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN_NAME, facts)


def read_run_json(folder: Path) -> dict[str, Any]:
    """The facts of run.json. Raises UserError if it is missing or no JSON object."""
    path = folder / RUN_NAME
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("no such file", where=str(path), fix="give a results folder of `cytopipe infer`") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON ({error})", where=str(path)) from error
    if not isinstance(facts, dict):
        raise UserError("is not a JSON object", where=str(path))
    return facts


def _check(objects: Objects, info: ResultsInfo) -> None:
    classes = len({c.name for c in info.classes})
    if classes < len(info.classes):
        raise ValueError("write_results: two classes of one name")
    if objects.class_scores.shape != (len(objects), classes):
        raise ValueError(f"write_results: class_scores {objects.class_scores.shape} for {classes} classes")
    if len(objects) and not 0 <= objects.class_index.min() <= objects.class_index.max() < classes:
        raise ValueError(f"write_results: a class index outside of the list of {classes}")
    for name in ("xyxy", "score", "class_scores"):
        if not np.isfinite(getattr(objects, name)).all():
            raise ValueError(f"write_results: {name} is not finite")


def _in_order(objects: Objects) -> tuple[Objects, list[bytes]]:
    """The objects by (y0, x0, class, the rest), so that equal sets give equal tables; and what makes their ids."""
    on_grid = shapely.transform(shapes_of(objects), lambda points: np.round(points / ID_GRID_PX) + 0.0)
    keys = shapely.to_wkb(shapely.normalize(on_grid), byte_order=1) if len(objects) else []
    exact = shapely.to_wkb(objects.geometry, byte_order=1) if len(objects) else []

    def place(i: int) -> tuple[Any, ...]:
        x0, y0, x1, y1 = objects.xyxy[i]
        rest = (-objects.score[i], exact[i] or b"", tuple(objects.class_scores[i]), objects.flags[i], objects.window[i])
        return (y0, x0, objects.class_index[i], y1, x1, keys[i], *rest)

    order = np.array(sorted(range(len(objects)), key=place), dtype=np.intp)
    return objects.take(order), [keys[i] for i in order]


def _object_ids(slide_id: str, objects: Objects, keys: list[bytes], info: ResultsInfo) -> tuple[str, ...]:
    """A UUID an object: 128 bits of BLAKE2b, so that an id means the same object in every file and run."""
    seen: dict[tuple[str, bytes], int] = {}
    ids: list[str] = []
    for class_index, key in zip(objects.class_index, keys, strict=True):
        name = info.classes[class_index].name
        ordinal = seen[name, key] = seen.get((name, key), -1) + 1
        digest = hashlib.blake2b(key, digest_size=16, salt=b"cytopipe")
        digest.update(f"\x1f{slide_id}\x1f{name}\x1f{ordinal}".encode())
        ids.append(str(uuid.UUID(bytes=digest.digest(), version=5)))
    return tuple(ids)


def _sizes(
    shapes: NDArray[np.object_], mpp: tuple[float, float] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Areas in level-0 px² and µm², diameters in µm of circles of those areas; each (N,), None without mpp."""
    area_px = np.asarray(shapely.area(shapes), dtype=np.float64)
    if mpp is None:
        return area_px, None, None
    area_um2 = area_px * (mpp[0] * mpp[1])
    return area_px, area_um2, np.sqrt(area_um2 / np.pi) * 2


def _flag_text(flags: int) -> str:
    return " ".join(name for bit, name in FLAG_NAMES.items() if flags & bit)


def _flag_bits(text: str) -> int:
    bits = {name: bit for bit, name in FLAG_NAMES.items()}
    return sum(bits[word] for word in text.split())


def _write_table(path: Path, results: Results) -> None:
    info, objects = results.info, results.objects
    names = [c.name for c in info.classes]
    shapes = shapes_of(objects)
    area_px, area_um2, diameter_um = _sizes(shapes, info.mpp)
    centres = shapely.get_coordinates(shapely.centroid(shapes)).reshape(-1, 2)
    f64, f32, n = pa.float64(), pa.float32(), len(objects)
    columns: dict[str, Any] = {
        "object_id": pa.array(results.object_ids, pa.string()),
        "class": pa.array([names[k] for k in objects.class_index], pa.string()),
        "score": pa.array(objects.score, f32),
        **{f"score_{name}": pa.array(objects.class_scores[:, k], f32) for k, name in enumerate(names)},
        "suspicion": pa.array(results.suspicion, f32),
        **{name: pa.array(objects.xyxy[:, k], f64) for k, name in enumerate(("x0", "y0", "x1", "y1"))},
        "area_px": pa.array(area_px, f64),
        "area_um2": pa.nulls(n, f64) if area_um2 is None else pa.array(area_um2, f64),
        "equivalent_diameter_um": pa.nulls(n, f64) if diameter_um is None else pa.array(diameter_um, f64),
        "centroid_x": pa.array(centres[:, 0], f64),
        "centroid_y": pa.array(centres[:, 1], f64),
        "geometry": pa.array(list(shapely.to_wkb(shapes, byte_order=1)) if n else [], pa.binary()),
        "outlined": pa.array([g is not None for g in objects.geometry], pa.bool_()),
        "flags": pa.array([_flag_text(int(f)) for f in objects.flags], pa.string()),
        "window": pa.array(objects.window, pa.int32()),
    }
    column: dict[str, Any] = {
        "encoding": "WKB",
        "geometry_types": sorted({shape.geom_type for shape in shapes}),
        "crs": None,
    }
    if n:
        column["bbox"] = [float(v) for v in shapely.total_bounds(shapes)]
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    metadata = {"geo": json.dumps(geo), "cytopipe": info.model_dump_json()}
    table = pa.table(columns).replace_schema_metadata(metadata)
    with atomic_path(path) as partial:
        pq.write_table(table, partial, compression="zstd", row_group_size=1 << 16)


def _info_of(table: Any, where: str) -> ResultsInfo:
    raw = (table.schema.metadata or {}).get(b"cytopipe")
    if raw is None:
        raise UserError("was not written by cytopipe", where=where, fix="give a results folder of `cytopipe infer`")
    try:
        return ResultsInfo.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("schema_version",):
            what = f"has schema version {first['input']}, this cytopipe reads up to {SCHEMA_VERSION}"
            raise UserError(what, where=where, fix="update cytopipe") from error
        what = f"its facts are damaged ({'.'.join(map(str, first['loc']))}: {first['msg']})"
        raise UserError(what, where=where) from error


def _columns_read(info: ResultsInfo) -> list[str]:
    """The columns from which objects are made; the others follow from them."""
    scores = [f"score_{c.name}" for c in info.classes]
    return ["object_id", "class", "score", *scores, "x0", "y0", "x1", "y1", "geometry", "outlined", "flags", "window"]


def _results_of(table: Any, info: ResultsInfo) -> Results:
    """The table as objects. ValueError, TypeError or ShapelyError for bad values."""
    names = [c.name for c in info.classes]
    n = table.num_rows

    def column(name: str, dtype: Any) -> NDArray[Any]:
        values = table[name]
        if values.null_count:
            raise ValueError(f"column {name} has empty values")
        array: NDArray[Any] = values.to_numpy().astype(dtype)
        return array

    geometry = np.empty(n, dtype=object)
    outlined = column("outlined", bool)
    geometry[outlined] = shapely.from_wkb(column("geometry", object)[outlined])
    scores = [column(f"score_{name}", np.float32) for name in names]
    class_names = column("class", object).tolist()
    unknown = sorted(set(class_names) - set(names))
    if unknown:
        raise ValueError(f"class {unknown[0]!r} is not in its list")
    try:
        flags = [_flag_bits(text) for text in column("flags", object)]
    except KeyError as error:
        raise ValueError(f"unknown flag {error}") from error
    objects = Objects(
        np.stack([column(k, np.float64) for k in ("x0", "y0", "x1", "y1")], axis=1),
        np.array([names.index(name) for name in class_names], dtype=np.int32),
        column("score", np.float32),
        np.stack(scores, axis=1) if scores else np.zeros((n, 0), np.float32),
        geometry,
        np.array(flags, dtype=np.uint8),
        column("window", np.int32),
    )
    return Results(info, objects, tuple(column("object_id", object).tolist()))
