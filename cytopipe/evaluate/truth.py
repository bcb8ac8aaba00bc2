"""The true side of an evaluation: what somebody annotated on one slide, and which part of the slide that covers.

Enters: an annotation file of any format that `formats/read.py` reads, a folder of such named after slides, one file
that names several slides, or a tile store.  Leaves: `Truth`, level-0 px, frame slide.
A file covers the whole slide, or the annotations of one class (`roi`). A store covers its labelled tiles: the
pieces of an object on several tiles are joined; one that the border of all tiles cuts is unknown beyond, and becomes a
crowd.
Differs  a piece that `tile --min-visible` dropped is missing from its object: the GeoJSON itself is the better truth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from cytopipe.core.classes import ObjectClass, class_named
from cytopipe.core.errors import UserError, nearest_fix
from cytopipe.evaluate.area import INSIDE, ON_BORDER, closed_union, cut_by, placed
from cytopipe.formats.annotations import Annotation
from cytopipe.formats.qupath import Frame
from cytopipe.formats.read import images_in, read_annotations
from cytopipe.tiles.store import STORE_JSON, TileStore

SUFFIXES = (".geojson", ".json", ".xml")  # in a folder; a CSV there may be a slide list, and is read by its name only
NO_OBJECT = "*"  # QuPath ends the names of classes that are regions, not objects, in a star: Region*, Ignore*, Tissue*


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """M true objects of one slide.

    classes  class name -> what it means
    names    (M,) class names
    boxes    (M, 4) float64 x0 y0 x1 y1 level-0 px
    crowd    (M,) bool: need not be found
    area     what is covered, level-0 px; None: the whole slide
    covers   the same in words
    lines    a sentence for each thing that was left out
    """

    classes: Mapping[str, ObjectClass]
    names: NDArray[np.object_]
    boxes: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    area: BaseGeometry | None
    covers: str
    lines: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.boxes)


@dataclass(frozen=True, slots=True)
class TruthFiles:
    """Annotations as files: slide_id -> path. `only` is a single file given by name: it belongs to the one slide there
    is."""

    paths: Mapping[str, Path]
    only: Path | None
    frame: Frame
    roi: str | None

    def slides(self) -> set[str]:
        """The slides that have a truth; empty for a single file, which fits any one slide."""
        return set(self.paths)

    def read(self, slide_id: str, bounds_offset: tuple[int, int]) -> Truth:
        """The truth of one slide. KeyError if there is none; UserError for a damaged file."""
        path = self.only or self.paths[slide_id]
        found = read_annotations(path, frame=self.frame, bounds_offset=bounds_offset, image=slide_id)
        return _from_annotations(found.objects, self.roi, found.lines, str(path))


@dataclass(frozen=True, slots=True, eq=False)
class TruthStore:
    """A labelled tile store; `split` names the part that counts, None all."""

    store: TileStore
    split: str | None

    def slides(self) -> set[str]:
        """The slides with labelled tiles in the part."""
        return set(self._slide_ids()[self._rows()].tolist())

    def read(self, slide_id: str, bounds_offset: tuple[int, int]) -> Truth:
        """The truth of one slide, already in frame slide. KeyError if no tile of it is labelled."""
        rows = self._rows()
        rows = rows[self._slide_ids()[rows] == slide_id]
        if not len(rows):
            raise KeyError(slide_id)
        area = closed_union(np.array([self.store.tile_box(i) for i in rows]))
        pieces: dict[tuple[str, str], list[tuple[BaseGeometry, bool, bool]]] = {}
        for i in rows:
            for piece in self.store.objects_of(i):
                facts = (piece.geometry, piece.truncated, piece.crowd)
                pieces.setdefault((piece.object_id, piece.class_name), []).append(facts)
        shapes = np.array([shapely.union_all([g for g, _, _ in parts]) for parts in pieces.values()], dtype=object)
        in_part = np.array([all(truncated for _, truncated, _ in parts) for parts in pieces.values()], dtype=bool)
        crowd = np.array([any(is_crowd for _, _, is_crowd in parts) for parts in pieces.values()], dtype=bool)
        return Truth(
            {c.name: c for c in self.store.info.classes},
            np.array([name for _, name in pieces], dtype=object),
            shapely.bounds(shapes).reshape(-1, 4),
            crowd | (in_part & cut_by(area, shapes)),
            area,
            f"{len(rows)} labelled tiles" + (f" of the part {self.split}" if self.split else ""),
        )

    def _rows(self) -> NDArray[np.intp]:
        return self.store.rows(split=self.split, labelled=True)

    def _slide_ids(self) -> NDArray[np.object_]:
        return np.array(self.store.tiles["slide_id"].to_pylist(), dtype=object)


def open_truth(
    path: Path, *, frame: Frame = "bounds", roi: str | None = None, split: str | None = None
) -> TruthFiles | TruthStore:
    """What stands at `path`.

    frame  of GeoJSON files
    roi    the class whose annotations say what is covered (GeoJSON only)
    split  the part of a store that counts; None: its test part where it has one, else all of it
    Raises UserError when nothing is there, or an option does not fit.
    """
    if (path / STORE_JSON).is_file():
        if roi is not None:
            raise UserError("a tile store covers its tiles", where="--roi", fix="leave it out")
        return _open_store(TileStore(path), split)
    if split is not None:
        raise UserError("belongs to a tile store, and this truth is none", where="--split", fix="leave it out")
    if path.is_file():
        names = images_in(path)
        if len(names) > 1:
            return TruthFiles({PurePosixPath(name).stem: path for name in names}, None, frame, roi)
        return TruthFiles({}, path, frame, roi)
    if not path.is_dir():
        raise UserError(
            "no such file or folder",
            where=str(path),
            fix="give a GeoJSON or another annotation file, a folder of them, or a tile store",
        )
    paths: dict[str, Path] = {}
    for file in sorted(path.iterdir()):
        if file.suffix.lower() in SUFFIXES and file.is_file():
            if file.stem in paths:
                raise UserError(
                    f"has two files for slide {file.stem}", where=str(path), fix=f"keep {file.stem}.geojson"
                )
            paths[file.stem] = file
    if not paths:
        raise UserError(
            "holds no annotation file and is no tile store", where=str(path), fix="name each file SLIDE_ID.geojson"
        )
    return TruthFiles(paths, None, frame, roi)


def _open_store(store: TileStore, split: str | None) -> TruthStore:
    where = str(store.folder)
    labelled = store.rows(labelled=True)
    if not len(labelled):
        raise UserError("has no labelled tile", where=where, fix="cut it again with annotations (`cytopipe tile`)")
    parts = sorted(set(np.array(store.tiles["split"].to_pylist(), dtype=object)[labelled].tolist()))
    if split is not None and split not in parts:
        raise UserError(
            f"has no labelled tile in a part {split!r}", where=where, fix=nearest_fix(split, parts, "its parts")
        )
    return TruthStore(store, split or ("test" if "test" in parts else None))


def _from_annotations(annotations: list[Annotation], roi: str | None, lines: list[str], where: str) -> Truth:
    area, covers = None, "the whole slide"
    if roi is not None:
        regions = [a.geometry for a in annotations if a.class_name == roi]
        if not regions:
            known = {a.class_name for a in annotations}
            raise UserError(
                f"has no annotation of class {roi!r}", where=where, fix=nearest_fix(roi, known, "its classes")
            )
        area = shapely.union_all(regions)
        covers = f"{len(regions)} annotations of class {roi}"
    starred = Counter(a.class_name for a in annotations if a.class_name.endswith(NO_OBJECT) and a.class_name != roi)
    lines = lines + [
        f"{n} annotations of class {name} left out: QuPath's star marks regions" for name, n in sorted(starred.items())
    ]
    objects = [a for a in annotations if a.class_name != roi and not a.class_name.endswith(NO_OBJECT)]
    shapes = np.array([a.geometry for a in objects], dtype=object)
    place = placed(shapes, area)
    seen = place >= ON_BORDER
    names = np.array([a.class_name for a in objects], dtype=object)[seen]
    crowd = np.array([a.is_crowd for a in objects], dtype=bool)
    return Truth(
        {name: class_named(name) for name in names},
        names,
        shapely.bounds(shapes[seen]).reshape(-1, 4),
        (crowd | (place != INSIDE))[seen],
        area,
        covers,
        tuple(lines),
    )
