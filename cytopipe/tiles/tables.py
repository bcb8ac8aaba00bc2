"""The tables of a tile store: their columns, and the one place that reads and writes them.

    tiles.parquet      a row a tile, by slide_id, then in the order in which the slide was cut: by rows
        tile_id     string    slide_id/y/x, y and x in px of the tile's own resolution
        slide_id    string
        patient     string
        split       string    train, val or test
        x0 y0 x1 y1 float64   level-0 px of the slide; past its border where the tile is padded with background
        mpp         float64   true µm/px of the image; null where level 0 was cut as it is and its resolution is unknown
        z           int32     plane of a stack that the image shows, from 0; null: the slide has one plane
        foreground  float32   fraction of the tile in the slide's foreground mask; null where no mask was made
        sharpness   float32   slides.sharpness of the image
        glass       float32   fraction of empty glass in the image; null where the glass level is unknown
        labelled    bool      somebody annotated this place: no object here means that none is there
        origin      string    grid, random, object or mined
        score       float32   why a mined tile was chosen; else null
        model       string    SHA-256 of the model that scored it; else null
        objects     int32     how many rows of objects.parquet are of this tile
        path        string    image, relative to the store, / between folders; FOLDER#K is row K of a zarr array
    objects.parquet    GeoParquet 1.1, a row an object and tile it meets, in the order of the tiles
        object_id   string
        tile_id     string
        class       string
        geometry    binary    WKB polygon or multipolygon, level-0 px, clipped to the tile
        truncated   bool      part of the object is outside the tile
        crowd       bool      stands for a group: neither a target nor a false alarm
    slides.parquet     a row a slide, also one that failed: the fields of SlideRow

Version 1 had neither `z` nor `objects`, and fewer fields of SlideRow: they are filled in when it is read.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray

from cytopipe.core.errors import UserError
from cytopipe.core.files import atomic_path
from cytopipe.tiles.images import DAMAGED_FIX
from cytopipe.tiles.rows import ObjectRow, SlideRow, TileRow

T = TypeVar("T")

TILES = pa.schema(
    [
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("slide_id", pa.string(), nullable=False),
        pa.field("patient", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("x0", pa.float64(), nullable=False),
        pa.field("y0", pa.float64(), nullable=False),
        pa.field("x1", pa.float64(), nullable=False),
        pa.field("y1", pa.float64(), nullable=False),
        pa.field("mpp", pa.float64()),
        pa.field("z", pa.int32()),
        pa.field("foreground", pa.float32()),
        pa.field("sharpness", pa.float32()),
        pa.field("glass", pa.float32()),
        pa.field("labelled", pa.bool_(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("model", pa.string()),
        pa.field("objects", pa.int32(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
    ]
)

# crs null: pixels of a slide are no place on Earth, and a reader must not take them for longitude and latitude
_GEO = {
    "version": "1.1.0",
    "primary_column": "geometry",
    "columns": {
        "geometry": {"encoding": "WKB", "geometry_types": ["Polygon", "MultiPolygon"], "crs": None, "edges": "planar"}
    },
}
OBJECTS = pa.schema(
    [
        pa.field("object_id", pa.string(), nullable=False),
        pa.field("tile_id", pa.string(), nullable=False),
        pa.field("class", pa.string(), nullable=False),
        pa.field("geometry", pa.binary(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("crowd", pa.bool_(), nullable=False),
    ],
    metadata={"geo": json.dumps(_GEO)},
)

_ARROW = {
    "str": pa.string(),
    "int": pa.int64(),
    "float": pa.float64(),
    "bool": pa.bool_(),
    "tuple[str, ...]": pa.list_(pa.string()),
}
SLIDES = pa.schema(
    [
        pa.field(f.name, _ARROW[str(f.type).removesuffix(" | None")], nullable="None" in str(f.type))
        for f in fields(SlideRow)
    ]
)

# columns whose values repeat. The others as they are: then a file says how large its rows are in memory
REPEATING = ("slide_id", "patient", "split", "origin", "model", "class")

# what version 1 lacked, and what stands for it. `objects` of its tiles are counted by `TileStore`
NEW_IN_2: dict[str, Any] = {"z": None, "objects": 0} | {
    f.name: f.default for f in fields(SlideRow) if f.default is not MISSING
}

# Rows a row group, whatever slides they are of. [D] a million tiles are 16 groups, whose description is read in
# milliseconds; to have one object its group of about 1 MB is decoded, in 2 ms
GROUP_ROWS, GROUP_OBJECTS = 65_536, 1_024

ROWS_AS_DICTS = 4_096  # [D] of a slide that is being cut: 5 MB, where a table takes a tenth

WHOLE_BYTES = 256 << 20  # [D] a table no larger (decoded) is kept in memory once it is read; of others some row groups
KEPT_GROUPS = 128  # [D] about 130 MB of objects


class LazyTable:
    """A table of a store on disk, read when it is asked for and as far as it is asked for. Safe to share between
    threads. Damage is a UserError, found when the damaged part is read.
    """

    def __init__(self, path: Path, schema: pa.Schema, filled_in: Mapping[str, Any] | None = None) -> None:
        """Read what the file says of itself. `filled_in`: values of columns that an older version did not have."""
        self._path, self._schema = path, schema
        self._file_metadata = self._or_damaged(lambda: pq.read_metadata(path))
        present = set(self._or_damaged(lambda: self._file_metadata.schema.to_arrow_schema()).names)
        self._filled_in = {k: v for k, v in (filled_in or {}).items() if k in schema.names and k not in present}
        missing = [name for name in schema.names if name not in present and name not in self._filled_in]
        if missing:
            raise UserError(f"lacks the column {missing[0]!r}", where=str(path), fix=DAMAGED_FIX)
        groups = [self._file_metadata.row_group(i) for i in range(self._file_metadata.num_row_groups)]
        self._ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
        self._is_small = sum(group.total_byte_size for group in groups) <= WHOLE_BYTES
        self._columns: dict[str, pa.ChunkedArray] = {}
        self._groups: OrderedDict[int, pa.Table] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return int(self._file_metadata.num_rows)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column, kept in memory afterwards."""
        with self._lock:
            if name not in self._columns:
                self._columns[name] = self._read([name])[name]
            return self._columns[name]

    def whole(self) -> pa.Table:
        """All columns, kept in memory afterwards."""
        with self._lock:
            absent = [name for name in self._schema.names if name not in self._columns]
            if absent:
                table = self._read(absent)
                self._columns.update({name: table[name] for name in absent})
            columns = [self._columns[name] for name in self._schema.names]
            return pa.Table.from_arrays(columns, schema=self._schema)

    def rows(self, start: int, stop: int) -> pa.Table:
        """Rows of all columns; of a large table only the row groups that hold them are read, and some of them kept."""
        if self._is_small or start >= stop:
            return self.whole().slice(start, stop - start) if self._is_small else self._schema.empty_table()
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
        before = int(self._ends[first - 1]) if first else 0
        groups = pa.concat_tables([self._group(number) for number in range(first, last + 1)])
        return groups.slice(start - before, stop - start)

    def _group(self, number: int) -> pa.Table:
        with self._lock:
            if number in self._groups:
                self._groups.move_to_end(number)
            else:
                self._groups[number] = self._read(self._schema.names, [number])
                if len(self._groups) > KEPT_GROUPS:
                    self._groups.popitem(last=False)
            return self._groups[number]

    def _read(self, names: Sequence[str], groups: Sequence[int] | None = None) -> pa.Table:
        stored = [name for name in names if name not in self._filled_in]
        if not len(self):  # pyarrow 18 does not read what has no row group
            return pa.schema([self._schema.field(name) for name in names]).empty_table()
        table = self._or_damaged(lambda: self._read_stored(stored, groups))
        for name in set(names) - set(stored):
            field = self._schema.field(name)
            value = self._filled_in[name]
            filled = pa.array([list(value) if isinstance(value, tuple) else value] * len(table), field.type)
            table = table.append_column(field, filled)
        schema = pa.schema([self._schema.field(name) for name in names])
        return self._or_damaged(lambda: table.select(names).cast(schema))

    def _read_stored(self, names: Sequence[str], groups: Sequence[int] | None) -> pa.Table:
        # not pq.read_table: it takes a folder `a=b` on the way to the store for a column
        with pq.ParquetFile(self._path, metadata=self._file_metadata, memory_map=True) as file:
            if groups is not None:
                return file.read_row_groups(groups, names, use_threads=False)
            return file.read(names, use_threads=not self._is_small)  # for a slide's rows threads cost more than they do

    def _or_damaged(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except (OSError, pa.ArrowException) as error:
            raise UserError("is missing or damaged", where=str(self._path), fix=DAMAGED_FIX) from error


def write_table(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Tables below each other in one file, in row groups of one size: what is merged never stands in memory as a
    whole. Raises RunError when the disk fails.
    """
    rows = GROUP_OBJECTS if schema is OBJECTS else GROUP_ROWS
    repeating = [name for name in REPEATING if name in schema.names]
    with (
        atomic_path(path) as partial,
        pq.ParquetWriter(partial, schema, compression="zstd", use_dictionary=repeating) as writer,
    ):
        for table in _regrouped(tables, rows):
            writer.write_table(table, row_group_size=len(table))


def slide_row(path: Path) -> SlideRow:
    """The row of a file that holds one slide."""
    (values,) = LazyTable(path, SLIDES).whole().to_pylist()
    return SlideRow(**{**values, "classes": tuple(values["classes"])})


def slides_table(rows: Sequence[SlideRow]) -> pa.Table:
    """Rows of slides.parquet."""
    return pa.Table.from_pylist([{name: getattr(row, name) for name in SLIDES.names} for row in rows], schema=SLIDES)


def tile_id_of(slide_id: str, x: int, y: int) -> str:
    """The name of a tile: depends on its slide and its place, on no order."""
    return f"{slide_id}/{y}/{x}"


class TileRows:
    """Rows of tiles.parquet, gathered one by one, and held as compact as the tables that they become."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._waiting: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return sum(map(len, self._tables)) + len(self._waiting)

    def add(self, slide: SlideRow, tile: TileRow, objects: int, path: str) -> None:
        """The row of a tile with so many objects, its image at `path`."""
        values = {column: getattr(tile, column) for column in TILES.names if hasattr(tile, column)}
        named = {"tile_id": tile_id_of(slide.slide_id, tile.x, tile.y), "slide_id": slide.slide_id}
        of_slide = {"patient": slide.patient, "split": slide.split}
        self._waiting.append({**values, **named, **of_slide, "objects": objects, "path": path})
        if len(self._waiting) == ROWS_AS_DICTS:
            self._pack()

    def tables(self) -> list[pa.Table]:
        """All rows, in their order."""
        self._pack()
        return self._tables

    def _pack(self) -> None:
        self._tables.append(pa.Table.from_pylist(self._waiting, schema=TILES))
        self._waiting = []


def objects_table(slide_id: str, objects: Sequence[ObjectRow], tile_order: Mapping[tuple[int, int], int]) -> pa.Table:
    """Rows of the objects whose tile (x, y) is stored, by tile in the order of the tiles, then by object id."""
    kept = [o for o in objects if (o.x, o.y) in tile_order]
    kept.sort(key=lambda o: (tile_order[o.x, o.y], o.object_id))
    geometry = np.array([o.geometry for o in kept], dtype=object)
    columns = {
        "object_id": [o.object_id for o in kept],
        "tile_id": [tile_id_of(slide_id, o.x, o.y) for o in kept],
        "class": [o.class_name for o in kept],
        "geometry": list(shapely.to_wkb(geometry, flavor="iso", byte_order=1, output_dimension=2)),
        "truncated": [o.truncated for o in kept],
        "crowd": [o.crowd for o in kept],
    }
    return pa.table(columns, schema=OBJECTS)


def count_objects(tile_ids: pa.ChunkedArray, tile_of_object: pa.ChunkedArray) -> NDArray[np.int64]:
    """How many objects each tile has."""
    at = pc.index_in(tile_of_object, value_set=tile_ids.combine_chunks()).to_numpy()
    return np.bincount(at, minlength=len(tile_ids))


def _regrouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of `rows` rows; the last has what is left."""
    held: list[pa.Table] = []
    count = 0
    for table in tables:
        held.append(table)
        count += len(table)
        while count >= rows:
            joined = pa.concat_tables(held)
            yield joined.slice(0, rows).combine_chunks()
            held = [joined.slice(rows)]
            count -= rows
    if count:
        yield pa.concat_tables(held).combine_chunks()
