"""The tile store on disk: tiles of many slides with the objects on them. This module alone reads and writes it.

    STORE/store.json       StoreInfo; written last: a folder without it is an unfinished store
    STORE/tiles.parquet    a row a tile, by slide_id, then rows of the grid; one row group a slide
        tile_id     string    slide_id/y/x, y and x in px of the tile's own resolution
        slide_id    string
        patient     string
        split       string    train, val or test
        x0 y0 x1 y1 float64   level-0 px of the slide; past its border where the tile is padded with background
        mpp         float64   true µm/px of the image; null where level 0 was cut as it is and its resolution is unknown
        foreground  float32   fraction of the tile in the slide's foreground mask; null where no mask was made
        sharpness   float32   slides.sharpness of the image
        glass       float32   fraction of empty glass in the image; null where the glass level is unknown
        labelled    bool      somebody annotated this place: no object here means that none is there
        origin      string    grid, random or mined
        score       float32   why a mined tile was chosen; else null
        model       string    SHA-256 of the model that scored it; else null
        path        string    image, relative to the store, / between folders
    STORE/objects.parquet  GeoParquet 1.1, a row an object and tile it meets, in the order of the tiles
        object_id   string
        tile_id     string
        class       string
        geometry    binary    WKB polygon or multipolygon, level-0 px, clipped to the tile
        truncated   bool      part of the object is outside the tile
        crowd       bool      stands for a group: neither a target nor a false alarm
    STORE/slides.parquet   a row a slide, also one that failed: the fields of SlideRow
    STORE/images/SLIDE/Y/X.jpg|png
    STORE/overviews/SLIDE.jpg   for people: the slide's thumbnail with the tiles that were kept
    STORE/run.jsonl        the journal (core/journal.py); a unit is a slide
    STORE/.parts/          rows of finished slides, from which the tables are merged: the slide list may grow; splits of
                           patients

Killed at any moment, the same command goes on; the tables end with the bytes of an unbroken run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from shapely.geometry.base import BaseGeometry

from cytopipe.core.classes import ObjectClass, class_named
from cytopipe.core.errors import RunError, UserError
from cytopipe.core.files import PARTIAL_SUFFIX, FolderLock, atomic_path, disk_error, fsync_path, write_json
from cytopipe.core.journal import JOURNAL_NAME, Journal, open_journal
from cytopipe.tiles.config import Codec, Edge
from cytopipe.tiles.images import SUFFIX, read_image
from cytopipe.tiles.rows import LostTile, ObjectRow, SlideRow, TileRow

SCHEMA_VERSION = 1
STORE_JSON = "store.json"
PARTS, PATIENTS_JSON = ".parts", "patients.json"

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
        pa.field("foreground", pa.float32()),
        pa.field("sharpness", pa.float32()),
        pa.field("glass", pa.float32()),
        pa.field("labelled", pa.bool_(), nullable=False),
        pa.field("origin", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
        pa.field("model", pa.string()),
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


class MadeBy(BaseModel):
    """What made a store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str = Field(description="tile or mine-unlabeled")
    version: str = Field(description="version of cytopipe")
    recipe_hash: str | None = Field(None, description="SHA-256 of the resolved recipe, where there was one")


class StoreInfo(BaseModel):
    """store.json: what is the same for every tile of a store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(1, description="of the whole store")
    tile_px: int = Field(gt=0, description="side of a tile image, px")
    mpp: float | None = Field(
        gt=0, description="µm/px asked for; null: level 0 as it is. The true one stands with each tile"
    )
    overlap_px: int = Field(ge=0, description="least overlap of neighbouring tiles, px")
    edge: Edge = Field(description="last row and column shifted inwards, or padded")
    codec: Codec = Field(description="of the images")
    quality: int = Field(ge=1, le=100, description="JPEG quality; no meaning for PNG")
    classes: list[ObjectClass] = Field(default_factory=list, description="of the annotations read, by name")
    made_by: MadeBy = Field(description="what made the store")


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


@dataclass(frozen=True, slots=True, eq=False)
class TileObject:
    """What a tile sees of an object: geometry in level-0 px of the slide, clipped to the tile."""

    object_id: str
    class_name: str
    geometry: BaseGeometry
    truncated: bool
    crowd: bool


def tile_id_of(slide_id: str, x: int, y: int) -> str:
    """The name of a tile: depends on its slide and its place, on no order."""
    return f"{slide_id}/{y}/{x}"


def folder_name(slide_id: str) -> str:
    """A slide id as one component of a path: no separator, no leading dot, different ids stay different."""
    name = quote(slide_id, safe=" ()[]+,;=@!&~'")
    return "%2E" + name[1:] if name.startswith(".") else name


def assigned_parts(folder: Path) -> dict[str, str]:
    """patient -> split, as earlier runs in this folder assigned them; empty where there was none."""
    path = folder / PARTS / PATIENTS_JSON
    return dict(json.loads(path.read_text())) if path.exists() else {}


class TileStore:
    """A finished store, read only. Safe to share between threads and to send to workers.

    Raises UserError when the folder holds no finished store, or one of another schema version.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.info = _read_info(self.folder)
        self.tiles = _read_table(self.folder / "tiles.parquet", TILES)
        self.objects = _read_table(self.folder / "objects.parquet", OBJECTS)
        self.slides = _read_table(self.folder / "slides.parquet", SLIDES)
        self._boxes = np.column_stack([self.tiles[name].to_numpy() for name in ("x0", "y0", "x1", "y1")])
        self._paths = self.tiles["path"].to_pylist()
        self._object_range = _ranges(self.tiles["tile_id"].to_pylist(), self.objects["tile_id"].to_pylist())

    def __len__(self) -> int:
        return len(self._paths)

    def rows(self, *, split: str | None = None, labelled: bool | None = None) -> NDArray[np.intp]:
        """Indices of the tiles of a split and of a kind, ascending; None takes all."""
        wanted = np.ones(len(self), dtype=bool)
        if split is not None:
            wanted &= np.array(self.tiles["split"].to_pylist(), dtype=object) == split
        if labelled is not None:
            wanted &= self.tiles["labelled"].to_numpy() == labelled
        return np.flatnonzero(wanted)

    def read_image(self, i: int) -> NDArray[np.uint8]:
        """The image of tile `i`, uint8 (tile_px, tile_px, 3) RGB. Raises RunError when it is missing or damaged."""
        return read_image(self.folder / self._paths[i])

    def tile_box(self, i: int) -> tuple[float, float, float, float]:
        """x0 y0 x1 y1 of tile `i`, level-0 px."""
        x0, y0, x1, y1 = self._boxes[i].tolist()
        return x0, y0, x1, y1

    def objects_of(self, i: int) -> list[TileObject]:
        """The objects on tile `i`, in the order of their ids."""
        start, stop = self._object_range[i]
        rows = self.objects.slice(start, stop - start).to_pydict()
        columns = (rows[name] for name in ("object_id", "class", "geometry", "truncated", "crowd"))
        return [
            TileObject(object_id, class_name, shapely.from_wkb(wkb), truncated, crowd)
            for object_id, class_name, wkb, truncated, crowd in zip(*columns, strict=True)
        ]


@contextlib.contextmanager
def open_writer(
    folder: Path, info: StoreInfo, parameters: Mapping[str, Any], *, overwrite: bool = False
) -> Iterator[StoreWriter]:
    """Make, resume or extend a store: `with open_writer(...) as writer: writer.add_slide(...); writer.finish()`.

    parameters  JSON values that decide the bytes; others than those of the store are refused (core/journal.py)
    Raises UserError as `FolderLock` and `open_journal` do.
    """
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder):
        journal = open_journal(folder, info.made_by.command, dict(parameters), overwrite=overwrite)
        writer = StoreWriter(folder, info, journal)
        try:
            yield writer
        finally:
            writer.discard_if_empty()


class StoreWriter:
    """Writes a store slide by slide; made by `open_writer`.

    A slide is whole or absent: its images are renamed into place as one folder, then its rows, then it is noted.
    """

    def __init__(self, folder: Path, info: StoreInfo, journal: Journal) -> None:
        self.folder, self.info = folder, info
        self._journal = journal
        self._parts = folder / PARTS
        self._parts.mkdir(exist_ok=True)
        self._failed: dict[str, SlideRow] = {}

    def keep_parts_of_patients(self, part_of: Mapping[str, str]) -> None:
        """Note assignments before the first tile is cut, so that a run that breaks off has made them for good."""
        write_json(self._parts / PATIENTS_JSON, dict(sorted({**assigned_parts(self.folder), **part_of}.items())))

    def is_done(self, slide_id: str, facts: Mapping[str, Any]) -> bool:
        """Whether the slide stands in the store, cut from the same facts (fingerprints, patient, split)."""
        return self._journal.is_done(slide_id) and self._journal.facts(slide_id) == dict(facts)

    def overview_path(self, slide_id: str) -> Path:
        """Where the overview of a slide belongs; whoever writes it makes its folder, before `add_slide`."""
        return self.folder / "overviews" / f"{folder_name(slide_id)}.jpg"

    def slide_row(self, slide_id: str) -> SlideRow:
        """The row of a finished slide."""
        return _slide_row(self._part(slide_id, "slide"))

    def add_slide(
        self,
        slide: SlideRow,
        tiles: Iterable[TileRow | LostTile],
        objects: Sequence[ObjectRow],
        facts: Mapping[str, Any],
    ) -> SlideRow:
        """Store one slide as one unit; returns its row with what was kept and lost filled in.

        tiles    read one by one, in the order of the store
        objects  on those tiles; one whose tile is lost is left out
        facts    JSON values; see `is_done`
        Raises RunError when no tile of a slide can be decoded, and when the disk fails; the slide is then absent.
        """
        rows: list[dict[str, Any]] = []
        lost: list[LostTile] = []
        with self._images_of(slide.slide_id) as images:
            for tile in tiles:
                if isinstance(tile, LostTile):
                    lost.append(tile)
                else:
                    rows.append(self._write_tile(images, slide, tile))
            if lost and not rows:
                raise RunError(f"none of {len(lost)} tiles can be decoded: {lost[0].reason}", where=slide.path)

        table = _objects_table(slide.slide_id, objects, {row["tile_id"]: i for i, row in enumerate(rows)})
        row = replace(slide, tiles_kept=len(rows), tiles_unreadable=len(lost), pieces_kept=len(table))
        if lost:
            what = f"{len(lost)} of {len(lost) + len(rows)} tiles cannot be decoded, the first: {lost[0].reason}"
            row = replace(row, error=what)
        _write_table(self._part(slide.slide_id, "tiles"), [pa.Table.from_pylist(rows, schema=TILES)], TILES)
        _write_table(self._part(slide.slide_id, "objects"), [table], OBJECTS)
        _write_table(self._part(slide.slide_id, "slide"), [_slides_table([row])], SLIDES)
        self._journal.finish(slide.slide_id, **facts)
        return row

    def fail_slide(self, slide: SlideRow) -> None:
        """A slide that gave no tiles: its row, with `error`, stands in slides.parquet until a later run does better."""
        self._failed[slide.slide_id] = slide

    def finish(self) -> StoreInfo:
        """Merge the rows of all finished and failed slides, by slide id, and write store.json."""
        rows = dict(self._failed)
        for path in self._parts.glob("*.slide.parquet"):
            row = _slide_row(path)
            if self._journal.is_done(row.slide_id):
                rows.setdefault(row.slide_id, row)
        slides = [rows[slide_id] for slide_id in sorted(rows)]
        done = [row for row in slides if row.slide_id not in self._failed]

        for kind, schema in (("objects", OBJECTS), ("tiles", TILES)):
            parts = (_read_table(self._part(row.slide_id, kind), schema) for row in done)
            _write_table(self.folder / f"{kind}.parquet", parts, schema)
        _write_table(self.folder / "slides.parquet", [_slides_table(slides)], SLIDES)
        names = sorted({name for row in done for name in row.classes})
        info = self.info.model_copy(update={"classes": [class_named(name) for name in names]})
        write_json(self.folder / STORE_JSON, info.model_dump(mode="json"))
        return info

    def discard_if_empty(self) -> None:
        """Remove what a run left that finished nothing, so that the next one may have other parameters."""
        own = {JOURNAL_NAME, FolderLock(self.folder).path.name, PARTS, "images", "overviews"}
        has_more = any(path.name not in own for path in self.folder.iterdir())
        if not has_more and not any(self._parts.glob("*.slide.parquet")):
            for name in (PARTS, "images", "overviews"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / JOURNAL_NAME).unlink(missing_ok=True)

    def _part(self, slide_id: str, kind: str) -> Path:
        return self._parts / f"{folder_name(slide_id)}.{kind}.parquet"

    @contextlib.contextmanager
    def _images_of(self, slide_id: str) -> Iterator[Path]:
        """A folder to fill with the slide's images; renamed into place when the block ends well, removed otherwise."""
        final = self.folder / "images" / folder_name(slide_id)
        partial = final.with_name(f".{final.name}{PARTIAL_SUFFIX}")
        try:
            with _disk(final):
                partial.mkdir(parents=True)
            yield partial
            with _disk(final):
                for path in [*partial.rglob("*"), partial]:
                    fsync_path(path)
                # the slide or its annotations changed: until this slide is noted, the journal's facts ask for it again
                if final.exists():
                    shutil.rmtree(final)
                partial.replace(final)
                fsync_path(final.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write_tile(self, images: Path, slide: SlideRow, tile: TileRow) -> dict[str, Any]:
        """Write one image; returns the tile's row."""
        name = Path(str(tile.y), f"{tile.x}{SUFFIX[self.info.codec]}")
        path = images / name
        with _disk(path):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(tile.image)
        return {
            **{column: getattr(tile, column) for column in TILES.names if hasattr(tile, column)},
            "tile_id": tile_id_of(slide.slide_id, tile.x, tile.y),
            "slide_id": slide.slide_id,
            "patient": slide.patient,
            "split": slide.split,
            "path": f"images/{folder_name(slide.slide_id)}/{name.as_posix()}",
        }


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """What fails inside is the output disk's fault, and said so; reading slides stays outside."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


def _read_info(folder: Path) -> StoreInfo:
    path = folder / STORE_JSON
    if not path.is_file():
        if (folder / JOURNAL_NAME).is_file():
            raise UserError("is an unfinished tile store", where=str(folder), fix="run its command again; it resumes")
        fix = "`cytopipe tile SLIDES --out STORE` makes one"
        raise UserError("is no tile store: no store.json in it", where=str(folder), fix=fix)
    try:
        document = json.loads(path.read_text())
        if isinstance(document, dict) and document.get("schema_version") != SCHEMA_VERSION:
            raise UserError(
                f"has schema version {document.get('schema_version')}, this cytopipe reads {SCHEMA_VERSION}",
                where=str(path),
                fix="tile again",
            )
        return StoreInfo.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{key}: {first['msg']}", where=str(path), fix="tile again") from error
    except ValueError as error:
        raise UserError("is damaged: no JSON", where=str(path), fix="tile again") from error


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    """A table with exactly the columns of `schema`. Raises UserError when it is missing, damaged or lacks a column."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise UserError("is missing or damaged", where=str(path), fix="cut the store again with --overwrite") from error
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise UserError(f"lacks the column {missing[0]!r}", where=str(path), fix="cut the store again with --overwrite")
    return table.select(schema.names).cast(schema)


def _write_table(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Tables below each other in one file, a row group each: what is merged never stands in memory as a whole."""
    with atomic_path(path) as partial, pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for table in tables:
            if len(table):
                writer.write_table(table, row_group_size=len(table))


def _slide_row(path: Path) -> SlideRow:
    (values,) = _read_table(path, SLIDES).to_pylist()
    return SlideRow(**{**values, "classes": tuple(values["classes"])})


def _slides_table(rows: Sequence[SlideRow]) -> pa.Table:
    return pa.Table.from_pylist([{name: getattr(row, name) for name in SLIDES.names} for row in rows], schema=SLIDES)


def _objects_table(slide_id: str, objects: Sequence[ObjectRow], tile_order: Mapping[str, int]) -> pa.Table:
    """Rows of the objects whose tile is stored, by tile in the order of the tiles, then by object id."""
    named = [(tile_id_of(slide_id, o.x, o.y), o) for o in objects]
    kept = sorted(
        ((t, o) for t, o in named if t in tile_order), key=lambda pair: (tile_order[pair[0]], pair[1].object_id)
    )
    geometry = np.array([o.geometry for _, o in kept], dtype=object)
    columns = {
        "object_id": [o.object_id for _, o in kept],
        "tile_id": [t for t, _ in kept],
        "class": [o.class_name for _, o in kept],
        "geometry": list(shapely.to_wkb(geometry, flavor="iso", byte_order=1, output_dimension=2)),
        "truncated": [o.truncated for _, o in kept],
        "crowd": [o.crowd for _, o in kept],
    }
    return pa.table(columns, schema=OBJECTS)


def _ranges(tile_ids: list[str], tile_of_object: list[str]) -> list[tuple[int, int]]:
    """[start, stop) of each tile's objects in a table that lists them tile by tile."""
    start_of: dict[str, int] = {}
    count = Counter(tile_of_object)
    for i, tile_id in enumerate(tile_of_object):
        start_of.setdefault(tile_id, i)
    return [(start_of.get(t, 0), start_of.get(t, 0) + count[t]) for t in tile_ids]
