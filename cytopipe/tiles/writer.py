"""Writing a tile store, slide by slide: a slide is whole or absent, after whatever break, and so is the store.

Enters: rows of slides, tiles and objects, with encoded images.  Leaves: the folder that `store.py` describes.
"""

from __future__ import annotations

import contextlib
import csv
import io
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from cytopipe.core.classes import class_named
from cytopipe.core.errors import RunError
from cytopipe.core.files import PARTIAL_SUFFIX, FolderLock, atomic_path, fsync_path, write_json, write_text
from cytopipe.core.journal import JOURNAL_NAME, Journal, open_journal
from cytopipe.formats.annotations import Problem
from cytopipe.tiles import zarr_images
from cytopipe.tiles.image_files import ImageFiles
from cytopipe.tiles.images import SUFFIX
from cytopipe.tiles.places import FLAT_SLIDES, SlideFolders, bucket_of, folder_name
from cytopipe.tiles.rows import BlurredTile, LostTile, ObjectRow, SlideRow, TileRow
from cytopipe.tiles.sinks import ImageSink, disk
from cytopipe.tiles.split import FileOfPatient
from cytopipe.tiles.store import (
    OVERVIEWS,
    PARTS,
    PATIENTS_JSON,
    SCHEMA_VERSION,
    STORE_JSON,
    StoreInfo,
    assigned_parts,
)
from cytopipe.tiles.tables import (
    OBJECTS,
    SLIDES,
    TILES,
    LazyTable,
    TileRows,
    objects_table,
    slide_row,
    slides_table,
    write_table,
)

PROBLEMS_CSV = "problems.csv"
PROBLEM_COLUMNS = ("slide_id", "object_id", "what", "done")
SLIDE_PART = ".slide.parquet"


@contextlib.contextmanager
def open_writer(
    folder: Path, info: StoreInfo, parameters: Mapping[str, Any], *, slides: int | None = None, overwrite: bool = False
) -> Iterator[StoreWriter]:
    """Make, resume or extend a store: `with open_writer(...) as writer: writer.add_slide(...); writer.finish()`.

    parameters  JSON values that decide the bytes; others than those of the store are refused (core/journal.py)
    slides      how many slides the list has: with many, their folders lie in buckets (places.py). None: not known, and
                the slides after the first `FLAT_SLIDES` do
    Raises UserError as `FolderLock` and `open_journal` do.
    """
    with disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with FolderLock(folder):
        journal = open_journal(folder, info.made_by.command, dict(parameters), overwrite=overwrite)
        writer = StoreWriter(folder, info, journal, slides)
        try:
            yield writer
        finally:
            writer.discard_if_empty()


class StoreWriter:
    """Writes a store slide by slide; made by `open_writer`.

    A slide is whole or absent: its images are renamed into place as one folder, then its rows, then it is noted.
    """

    def __init__(self, folder: Path, info: StoreInfo, journal: Journal, slides: int | None = None) -> None:
        self.folder = folder
        self.info = info.model_copy(update={"schema_version": SCHEMA_VERSION})
        self._journal = journal
        self._slides, self._slides_before = slides, journal.done_count
        self._parts = folder / PARTS
        self._parts.mkdir(exist_ok=True)
        self._failed: dict[str, SlideRow] = {}

    def keep_parts_of_patients(self, part_of: Mapping[str, str]) -> None:
        """Note assignments before the first tile is cut, so that a run that breaks off has made them for good."""
        write_json(self._parts / PATIENTS_JSON, dict(sorted({**assigned_parts(self.folder), **part_of}.items())))

    def is_done(self, slide_id: str, facts: Mapping[str, Any]) -> bool:
        """Whether the slide stands in the store, cut from the same facts (fingerprints, patient, split)."""
        noted = self._journal.is_done(slide_id) and self._journal.facts(slide_id) == dict(facts)
        return noted and self._part(slide_id, SLIDE_PART).is_file()  # an older version kept its rows elsewhere

    def finished_files(self) -> list[FileOfPatient]:
        """The slide files of the store with their patients and parts, as this and earlier runs cut them."""
        noted = [(slide_id, self._journal.facts(slide_id)) for slide_id in self._journal.units]
        return [
            FileOfPatient(slide_id, facts["patient"], facts["split"], facts["fingerprint"])
            for slide_id, facts in noted
            if {"patient", "split", "fingerprint"} <= facts.keys()
        ]

    def overview_path(self, slide_id: str) -> Path:
        """Where the overview of a slide is to be written, before `add_slide`; its folder is made."""
        path = self._folders().place(OVERVIEWS, slide_id, ".jpg")
        with disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def slide_row(self, slide_id: str) -> SlideRow:
        """The row of a finished slide."""
        return slide_row(self._part(slide_id, SLIDE_PART))

    def add_slide(
        self,
        slide: SlideRow,
        tiles: Iterable[TileRow | LostTile | BlurredTile],
        objects: Sequence[ObjectRow],
        facts: Mapping[str, Any],
        problems: Sequence[Problem] = (),
    ) -> SlideRow:
        """Store one slide as one unit; returns its row with what was kept and lost filled in.

        tiles     read one by one, in the order of the store
        objects   on those tiles; one whose tile is not stored is left out
        facts     JSON values; see `is_done`
        problems  of its annotations, for problems.csv, in their order
        Raises RunError when none of the tiles can be decoded or is sharp enough, and when the disk fails; the slide is
        then absent.
        """
        rows = TileRows()
        objects_on = Counter((o.x, o.y) for o in objects)
        order: dict[tuple[int, int], int] = {}  # of the tiles that have objects
        lost: list[LostTile] = []
        blurred = copied = 0
        with self._images_of(slide.slide_id) as (images, at):
            for tile in tiles:
                if isinstance(tile, LostTile):
                    lost.append(tile)
                elif isinstance(tile, BlurredTile):
                    blurred += 1
                else:
                    place = f"{at}/{images.add(tile.x, tile.y, tile.image)}"
                    rows.add(slide, tile, objects_on[tile.x, tile.y], place)
                    if (tile.x, tile.y) in objects_on:
                        order[tile.x, tile.y] = len(order)
                    copied += tile.copied
            if lost and not len(rows):
                raise RunError(f"none of {len(lost)} tiles can be decoded: {lost[0].reason}", where=slide.path)
            if blurred and not len(rows):
                raise RunError(f"none of {blurred} tiles is as sharp as asked for", where=slide.path)

        table = objects_table(slide.slide_id, objects, order)
        seen = set(table["object_id"].to_pylist())
        row = replace(
            slide,
            tiles_kept=len(rows),
            tiles_copied=copied,
            tiles_blurred=blurred,
            tiles_unreadable=len(lost),
            objects_unseen=slide.objects_unseen + len({o.object_id for o in objects}) - len(seen),
            pieces_kept=len(table),
        )
        if lost:
            what = f"{len(lost)} of {len(lost) + len(rows)} tiles cannot be decoded, the first: {lost[0].reason}"
            row = replace(row, error=what)
        self._write_parts(row, rows.tables(), table, problems)
        self._journal.finish(slide.slide_id, **facts)
        return row

    def fail_slide(self, slide: SlideRow) -> None:
        """A slide that gave no tiles: its row, with `error`, stands in slides.parquet until a later run does better."""
        self._failed[slide.slide_id] = slide

    def finish(self) -> StoreInfo:
        """Merge the rows of all finished and failed slides, by slide id, and write store.json."""
        rows = dict(self._failed)
        for path in self._parts.glob(f"*/*{SLIDE_PART}"):
            row = slide_row(path)
            if self._journal.is_done(row.slide_id):
                rows.setdefault(row.slide_id, row)
        slides = [rows[slide_id] for slide_id in sorted(rows)]
        done = [row for row in slides if row.slide_id not in self._failed]

        for kind, schema in (("objects", OBJECTS), ("tiles", TILES)):
            parts = (LazyTable(self._part(row.slide_id, f".{kind}.parquet"), schema).whole() for row in done)
            write_table(self.folder / f"{kind}.parquet", parts, schema)
        write_table(self.folder / "slides.parquet", [slides_table(slides)], SLIDES)
        self._merge_problems([row.slide_id for row in done])
        names = sorted({name for row in done for name in row.classes})
        info = self.info.model_copy(update={"classes": [class_named(name) for name in names]})
        write_json(self.folder / STORE_JSON, info.model_dump(mode="json"))
        return info

    def discard_if_empty(self) -> None:
        """Remove what a run left that finished nothing, so that the next one may have other parameters."""
        made = (PARTS, "images", zarr_images.ROOT, OVERVIEWS)
        own = {JOURNAL_NAME, FolderLock(self.folder).path.name, *made}
        has_more = any(path.name not in own for path in self.folder.iterdir())
        if not has_more and not any(self._parts.glob(f"*/*{SLIDE_PART}")):
            for name in made:
                shutil.rmtree(self.folder / name, ignore_errors=True)
            (self.folder / JOURNAL_NAME).unlink(missing_ok=True)

    def _folders(self) -> SlideFolders:
        """Decided by numbers that do not change with the order of the work, where the caller gives the first."""
        slides = self._journal.done_count if self._slides is None else self._slides
        return SlideFolders(self.folder, in_buckets=max(slides, self._slides_before) > FLAT_SLIDES)

    def _part(self, slide_id: str, suffix: str) -> Path:
        return self._parts / bucket_of(slide_id) / f"{folder_name(slide_id)}{suffix}"

    @contextlib.contextmanager
    def _images_of(self, slide_id: str) -> Iterator[tuple[ImageSink, str]]:
        """What takes the slide's images, and the folder, relative to the store, where they are to be found. They are
        renamed into place when the block ends well, removed otherwise.
        """
        root = zarr_images.ROOT if self.info.codec == "zarr" else "images"
        final = self._folders().place(root, slide_id)
        partial = final.with_name(f".{final.name}{PARTIAL_SUFFIX}")
        with disk(final):
            partial.mkdir(parents=True)
        images: ImageSink
        if self.info.codec == "zarr":
            images = zarr_images.ZarrImages(partial, self.info.tile_px)
        else:
            images = ImageFiles(partial, SUFFIX[self.info.codec])
        try:
            with contextlib.closing(images):
                yield images, final.relative_to(self.folder).as_posix()
                images.finish()
            with disk(final):
                above = [path for path in final.parents if path.is_relative_to(self.folder / root)]
                if self.info.codec == "zarr":
                    for group in above:
                        zarr_images.make_group(group)
                # the slide or its annotations changed: until this slide is noted, the journal's facts ask for it again
                for earlier in self._folders().both(root, slide_id):
                    if earlier.exists():
                        shutil.rmtree(earlier)
                partial.replace(final)
                for folder in (*above, self.folder):
                    fsync_path(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _write_parts(
        self, row: SlideRow, tiles: Sequence[pa.Table], objects: pa.Table, problems: Sequence[Problem]
    ) -> None:
        """The rows of one slide, from which `finish` merges the tables."""
        part = self._part(row.slide_id, SLIDE_PART)
        if not part.parent.exists():
            with disk(part):
                part.parent.mkdir()
                fsync_path(self._parts)
        write_table(self._part(row.slide_id, ".tiles.parquet"), tiles, TILES)
        write_table(self._part(row.slide_id, ".objects.parquet"), [objects], OBJECTS)
        listed = self._part(row.slide_id, ".problems.csv")
        if problems:
            write_text(listed, _csv((row.slide_id, p.object_id, p.what, p.done) for p in problems))
        else:
            listed.unlink(missing_ok=True)
        write_table(part, [slides_table([row])], SLIDES)

    def _merge_problems(self, slide_ids: Sequence[str]) -> None:
        parts = [part for slide_id in slide_ids if (part := self._part(slide_id, ".problems.csv")).is_file()]
        path = self.folder / PROBLEMS_CSV
        if not parts:
            path.unlink(missing_ok=True)
            return
        with atomic_path(path) as partial, partial.open("wb") as file:
            file.write(_csv([PROBLEM_COLUMNS]).encode())
            for part in parts:
                file.write(part.read_bytes())


def _csv(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
