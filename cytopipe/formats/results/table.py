"""objects.parquet: GeoParquet 1.1, a row an object, by (y0, x0, class). The one module that writes and reads it.

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
    eccentricity             float64     0 to 1        of the ellipse of equal moments; null without an outline
    solidity                 float64     0 to 1        area over that of the convex hull; null likewise
    mean_optical_density     float32                   over the object's pixels; null where not measured
    nucleus_cytoplasm_ratio  float32                   null where not measured, or not both are there
    centroid_x centroid_y    float64     level-0 px    of the geometry
    geometry                 WKB         level-0 px    Polygon or MultiPolygon; the box where `outlined` is false
    outlined                 bool                      whether the geometry is an outline, or only the box
    flags                    string                    "", "joined", "truncated", or "joined truncated" (DESIGN 6)
    window                   int32                     number of the window that reported it, -1 for none

Metadata of the file: `geo` (GeoParquet; crs null, since the coordinates are pixels) and `cytopipe` (JSON:
schema_version, slide_id, classes, mpp as [x, y] or null, bounds_offset, size as [width, height] or null).
Version 1 has neither the columns from eccentricity to nucleus_cytoplasm_ratio nor the size.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pydantic import ValidationError

from cytopipe.core.errors import UserError
from cytopipe.core.files import atomic_path
from cytopipe.core.objects import MEASURES, Objects, concatenate, unmeasured
from cytopipe.core.shapes import SHAPE_MEASURES
from cytopipe.formats.results.schema import FLAG_TEXTS, SCHEMA_VERSION, TABLE_NAME, Group, Results, ResultsInfo

_FLAG_BITS = {text: bits for bits, text in reversed(list(enumerate(FLAG_TEXTS)))}
_FIX = "give a results folder of `cytopipe infer`"


class TableWriter:
    """Streams groups of objects to a file: a group of rows each. The file appears when the block ends without error."""

    def __init__(self, path: Path, info: ResultsInfo) -> None:
        self._path, self._info = path, info
        self._stack = ExitStack()
        self._file: Any = None
        self._types: set[str] = set()
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])

    def __enter__(self) -> TableWriter:
        partial = self._stack.enter_context(atomic_path(self._path))
        # what stands in `geo` is known at the end only; a schema stored now would hide it from pyarrow's readers
        file = pq.ParquetWriter(partial, schema_of(self._info), compression="zstd", store_schema=False)
        self._file = self._stack.enter_context(file)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._file.add_key_value_metadata(self._metadata())
        self._stack.__exit__(kind, value, trace)

    def add(self, group: Group) -> None:
        """Write one group."""
        bounds = shapely.total_bounds(group.shapes)
        self._bounds = np.concatenate(
            [np.minimum(self._bounds[:2], bounds[:2]), np.maximum(self._bounds[2:], bounds[2:])]
        )
        types = np.unique(shapely.get_type_id(group.shapes))
        self._types |= {shapely.GeometryType(k).name.title().replace("Multip", "MultiP") for k in types.tolist()}
        self._file.write_batch(record_batch(group))

    def _metadata(self) -> dict[str, str]:
        column: dict[str, Any] = {"encoding": "WKB", "geometry_types": sorted(self._types), "crs": None}
        if self._types:
            column["bbox"] = self._bounds.tolist()
        geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
        return {"geo": json.dumps(geo), "cytopipe": self._info.model_dump_json()}


def schema_of(info: ResultsInfo) -> Any:
    """The pyarrow schema of a table."""
    f64, f32 = pa.float64(), pa.float32()
    return pa.schema(
        [
            ("object_id", pa.string()),
            ("class", pa.string()),
            ("score", f32),
            *((f"score_{name}", f32) for name in info.names),
            ("suspicion", f32),
            *((name, f64) for name in ("x0", "y0", "x1", "y1")),
            *((name, f64) for name in ("area_px", "area_um2", "equivalent_diameter_um", *SHAPE_MEASURES)),
            *((name, f32) for name in MEASURES),
            ("centroid_x", f64),
            ("centroid_y", f64),
            ("geometry", pa.binary()),
            ("outlined", pa.bool_()),
            ("flags", pa.string()),
            ("window", pa.int32()),
        ]
    )


def record_batch(group: Group) -> Any:
    """The rows of a group as pyarrow columns."""
    objects, shapes, n = group.objects, group.shapes, len(group)
    none = pa.nulls(n, pa.float64())
    area_um2, diameter_um = group.area_um2, group.diameter_um
    offsets = pa.py_buffer(np.arange(0, 36 * n + 1, 36, dtype=np.int32))
    columns = [
        pa.StringArray.from_buffers(n, offsets, pa.py_buffer(np.ascontiguousarray(group.ids))),
        pa.array(group.info.names, pa.string()).take(pa.array(objects.class_index)),
        pa.array(objects.score),
        *(pa.array(column) for column in objects.class_scores.T),
        pa.array(group.suspicion),
        *(pa.array(column) for column in objects.xyxy.T),
        pa.array(group.area_px),
        none if area_um2 is None else pa.array(area_um2),
        none if diameter_um is None else pa.array(diameter_um),
        *(pa.array(column, from_pandas=True) for column in group.form.T),  # NaN is null
        *(pa.array(column, from_pandas=True) for column in objects.measures.T),
        *(pa.array(column) for column in group.centroids.T),
        pa.array(shapely.to_wkb(shapes, byte_order=1), pa.binary()),
        pa.array(~shapely.is_missing(objects.geometry)),
        pa.array(FLAG_TEXTS, pa.string()).take(pa.array(objects.flags)),
        pa.array(objects.window),
    ]
    return pa.record_batch(columns, schema=schema_of(group.info))


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
    info = read_info(folder)
    groups = list(iter_results(folder))
    objects = concatenate([group.objects for group in groups], len(info.classes))
    return Results(info, objects, tuple(object_id for group in groups for object_id in group.object_ids))


def read_info(folder: Path) -> ResultsInfo:
    """What the table of a results folder says about itself. Raises UserError as `read_results` does."""
    path = folder / TABLE_NAME
    with _opened(path) as file:
        return _info_of(file, str(path))


def iter_results(folder: Path) -> Iterator[Results]:
    """The objects of a results folder in the order of the table, some thousands at a time, so that any number fits.

    Raises UserError as `read_results` does.
    """
    path = folder / TABLE_NAME
    where = str(path)
    with _opened(path) as file:
        info = _info_of(file, where)
        names = file.schema_arrow.names
        wanted = _columns_read(info)
        missing = [name for name in wanted if name not in names]
        if missing:
            raise UserError(f"has no column {', '.join(missing)}", where=where)
        wanted += [name for name in MEASURES if name in names]
        for number in range(file.num_row_groups):
            try:
                table = file.read_row_group(number, columns=wanted, use_threads=False)
                group = _results_of(table, info)
            except (ValueError, TypeError, pa.ArrowException, OSError, shapely.errors.ShapelyError) as error:
                raise UserError(f"is damaged ({error})", where=where) from error
            yield group


def _opened(path: Path) -> Any:
    where = str(path)
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise UserError("no such file", where=where, fix=_FIX) from error
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"is not a Parquet file ({error})", where=where) from error


def _info_of(file: Any, where: str) -> ResultsInfo:
    raw = (file.schema_arrow.metadata or {}).get(b"cytopipe")
    if raw is None:
        raise UserError("was not written by cytopipe", where=where, fix=_FIX)
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
    scores = [f"score_{name}" for name in info.names]
    return ["object_id", "class", "score", *scores, "x0", "y0", "x1", "y1", "geometry", "outlined", "flags", "window"]


def _results_of(table: Any, info: ResultsInfo) -> Results:
    """The table as objects. ValueError, TypeError or ShapelyError for bad values."""
    names = info.names
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
    index_of = {name: k for k, name in enumerate(names)}
    try:
        flags = [_FLAG_BITS[text] for text in column("flags", object)]
    except KeyError as error:
        raise ValueError(f"unknown flag {error}") from error
    measures = unmeasured(n)
    for k, name in enumerate(MEASURES):
        if name in table.column_names:
            measures[:, k] = table[name].to_numpy().astype(np.float32)  # null: NaN
    objects = Objects(
        np.stack([column(k, np.float64) for k in ("x0", "y0", "x1", "y1")], axis=1),
        np.array([index_of[name] for name in class_names], dtype=np.int32),
        column("score", np.float32),
        np.stack(scores, axis=1) if scores else np.zeros((n, 0), np.float32),
        geometry,
        np.array(flags, dtype=np.uint8),
        column("window", np.int32),
        measures,
    )
    return Results(info, objects, tuple(column("object_id", object).tolist()))
