"""The tile store on disk: tiles of many slides with the objects on them. `TileStore` reads it, `writer.py` writes it.

    STORE/store.json       StoreInfo; written last: a folder without it is an unfinished store
    STORE/tiles.parquet, objects.parquet, slides.parquet   their columns: the docstring of `tables.py`
    STORE/problems.csv     slide_id, object_id, what, done: annotated objects that were mended or refused; absent where
                           there are none
    STORE/images/SLIDE/Y/X.jpg|png   or   STORE/images.zarr (`zarr_images.py`)
    STORE/overviews/SLIDE.jpg   for people: the slide's thumbnail with the tiles that were kept
    STORE/run.jsonl        the journal (core/journal.py); a unit is a slide
    STORE/.parts/          rows of finished slides, from which the tables are merged: the slide list may grow; splits of
                           patients

No folder has more than 10,000 entries: `places.py` says what large stores look like. `path` in tiles.parquet is where
an image is.

Killed at any moment, the same command goes on; the tables end with the bytes of an unbroken run.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from shapely.geometry.base import BaseGeometry

from cytopipe.core.classes import ObjectClass
from cytopipe.core.errors import UserError
from cytopipe.core.journal import JOURNAL_NAME
from cytopipe.tiles.config import Codec, Edge
from cytopipe.tiles.images import DAMAGED_FIX, read_image
from cytopipe.tiles.places import SlideFolders
from cytopipe.tiles.tables import NEW_IN_2, OBJECTS, SLIDES, TILES, LazyTable, count_objects
from cytopipe.tiles.zarr_images import ZarrReader

SCHEMA_VERSION: Literal[2] = 2  # what is written; both are read
STORE_JSON = "store.json"
PARTS, PATIENTS_JSON = ".parts", "patients.json"
OVERVIEWS = "overviews"


class MadeBy(BaseModel):
    """What made a store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    command: str = Field(description="tile or mine-unlabeled")
    version: str = Field(description="version of cytopipe")
    recipe_hash: str | None = Field(None, description="SHA-256 of the resolved recipe, where there was one")


class StoreInfo(BaseModel):
    """store.json: what is the same for every tile of a store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1, 2] = Field(SCHEMA_VERSION, description="of the whole store")
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


@dataclass(frozen=True, slots=True, eq=False)
class TileObject:
    """What a tile sees of an object: geometry in level-0 px of the slide, clipped to the tile."""

    object_id: str
    class_name: str
    geometry: BaseGeometry
    truncated: bool
    crowd: bool


def assigned_parts(folder: Path) -> dict[str, str]:
    """patient -> split, as earlier runs in this folder assigned them; empty where there was none."""
    path = folder / PARTS / PATIENTS_JSON
    return dict(json.loads(path.read_text())) if path.exists() else {}


class TileStore:
    """A finished store, read only. Safe to share between threads and to send to workers.

    Opening reads what the tables say of themselves; rows are read when they are asked for, and no more than needed, so
    that a store of a million tiles opens at once.
    Raises UserError when the folder holds no finished store, or one of another schema version; the same, later, when a
    table turns out to be damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.info = _read_info(self.folder)
        filled_in = NEW_IN_2 if self.info.schema_version == 1 else None
        self._tiles = LazyTable(self.folder / "tiles.parquet", TILES, filled_in)
        self._objects = LazyTable(self.folder / "objects.parquet", OBJECTS)
        self._slides = LazyTable(self.folder / "slides.parquet", SLIDES, filled_in)
        self._zarr = ZarrReader(self.folder)

    def __reduce__(self) -> tuple[type[TileStore], tuple[Path]]:
        return TileStore, (self.folder,)

    def __len__(self) -> int:
        return len(self._tiles)

    @property
    def tiles(self) -> pa.Table:
        """tiles.parquet as a whole; of a large store rather ask for a `column`."""
        return self._tiles.whole()

    @property
    def objects(self) -> pa.Table:
        """objects.parquet as a whole, which may be large."""
        return self._objects.whole()

    @property
    def slides(self) -> pa.Table:
        """slides.parquet as a whole."""
        return self._slides.whole()

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of tiles.parquet."""
        return self._tiles.column(name)

    def object_column(self, name: str) -> pa.ChunkedArray:
        """One column of objects.parquet."""
        return self._objects.column(name)

    def object_counts(self) -> NDArray[np.int64]:
        """(tiles,) objects on each tile."""
        return np.diff(self._object_starts)

    def rows(self, *, split: str | None = None, labelled: bool | None = None) -> NDArray[np.intp]:
        """Indices of the tiles of a split and of a kind, ascending; None takes all."""
        wanted = np.ones(len(self), dtype=bool)
        if split is not None:
            wanted &= pc.equal(self.column("split"), split).to_numpy()
        if labelled is not None:
            wanted &= self.column("labelled").to_numpy() == labelled
        return np.flatnonzero(wanted)

    def read_image(self, i: int) -> NDArray[np.uint8]:
        """The image of tile `i`, uint8 (tile_px, tile_px, 3) RGB. Raises RunError when it is missing or damaged."""
        place = self.column("path")[i].as_py()
        return self._zarr.read(place) if self.info.codec == "zarr" else read_image(self.folder / place)

    def tile_box(self, i: int) -> tuple[float, float, float, float]:
        """x0 y0 x1 y1 of tile `i`, level-0 px."""
        x0, y0, x1, y1 = self._boxes[i].tolist()
        return x0, y0, x1, y1

    def objects_of(self, i: int) -> list[TileObject]:
        """The objects on tile `i`, in the order of their ids."""
        start, stop = self._object_starts[i : i + 2].tolist()
        if start == stop:  # nothing to read, as in a whole store that nobody annotated
            return []
        rows = self._objects.rows(start, stop).to_pydict()
        columns = (rows[name] for name in ("object_id", "class", "geometry", "truncated", "crowd"))
        return [
            TileObject(object_id, class_name, shapely.from_wkb(wkb), truncated, crowd)
            for object_id, class_name, wkb, truncated, crowd in zip(*columns, strict=True)
        ]

    def overview_path(self, slide_id: str) -> Path | None:
        """The overview of a slide; None where there is none."""
        places = SlideFolders(self.folder, in_buckets=False).both(OVERVIEWS, slide_id, ".jpg")
        return next((path for path in places if path.is_file()), None)

    @cached_property
    def _boxes(self) -> NDArray[np.float64]:
        return np.column_stack([self.column(name).to_numpy() for name in ("x0", "y0", "x1", "y1")])

    @cached_property
    def _object_starts(self) -> NDArray[np.int64]:
        """(tiles + 1,) rows of objects.parquet where the objects of each tile begin; the last is their number."""
        if self.info.schema_version == 1:
            counts = count_objects(self.column("tile_id"), self._objects.column("tile_id"))
        else:
            counts = self.column("objects").to_numpy()
        starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        if starts[-1] != len(self._objects):
            what = f"has {len(self._objects)} rows, and the tiles count {starts[-1]} objects"
            raise UserError(what, where=str(self.folder / "objects.parquet"), fix=DAMAGED_FIX)
        return starts


def _read_info(folder: Path) -> StoreInfo:
    path = folder / STORE_JSON
    if not path.is_file():
        if (folder / JOURNAL_NAME).is_file():
            raise UserError("is an unfinished tile store", where=str(folder), fix="run its command again; it resumes")
        fix = "`cytopipe tile SLIDES --out STORE` makes one"
        raise UserError("is no tile store: no store.json in it", where=str(folder), fix=fix)
    try:
        document = json.loads(path.read_text())
        if isinstance(document, dict) and document.get("schema_version") not in (1, SCHEMA_VERSION):
            raise UserError(
                f"has schema version {document.get('schema_version')}, this cytopipe reads 1 and {SCHEMA_VERSION}",
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
