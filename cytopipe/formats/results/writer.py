"""Writing a results folder while its objects come: any number of them, in memory that does not grow with it.

Enters: `Objects` in frame slide by y0, in batches of any size.  Leaves: the files that were asked for, whole or absent;
their bytes depend on the set of objects, not on the batches and not on the order of what starts at one y0.

A group of ROWS rows is written at a time. Rows that start where the last one came to stand wait, since others may still
come beside them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.classes import ObjectClass
from cytopipe.core.objects import Objects, concatenate, no_objects
from cytopipe.formats.qupath import Frame
from cytopipe.formats.results.coco import CocoResults
from cytopipe.formats.results.csv_table import CsvWriter
from cytopipe.formats.results.geojson import FeatureWriter
from cytopipe.formats.results.identity import IdMaker, canonical_order
from cytopipe.formats.results.labels import LabelWriter
from cytopipe.formats.results.schema import (
    COCO_NAME,
    CSV_NAME,
    GEOJSON_NAME,
    LABELS_NAME,
    OUTLINE_SLACK_PX,
    SCHEMA_VERSION,
    TABLE_NAME,
    Group,
    Results,
    ResultsInfo,
    shapes_of,
)
from cytopipe.formats.results.table import TableWriter

Part = Literal["parquet", "geojson", "coco", "zarr", "csv"]
PARTS: tuple[Part, ...] = ("parquet", "geojson", "coco", "zarr", "csv")
DEFAULT_PARTS: frozenset[Part] = frozenset({"parquet", "geojson"})  # DESIGN 7

ROWS = 1 << 14  # [D] of a group: some 50 MB of text and outlines of 32 points
GROUPS_IN_WORK = 2  # [D] ids, measures and files take their turns on them in threads of their own: none waits


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """How the files on request are written.

    frame        of GeoJSON; all else is in frame slide
    geojson_gz   GeoJSON as objects.geojson.gz
    split_mb     GeoJSON in files of at most so many MB (10^6 bytes, before gzip); None: one file
    zarr_version of OME-Zarr: "0.5" on zarr v3, "0.4" on zarr v2
    zarr_mpp     µm/px of the finest label image; None: level 0
    """

    frame: Frame = "bounds"
    geojson_gz: bool = False
    split_mb: float | None = None
    zarr_version: Literal["0.4", "0.5"] = "0.5"
    zarr_mpp: float | None = None


class GroupWriter(Protocol):
    """What writes one of the files."""

    def add(self, group: Group) -> None:
        """Write the rows that come next."""


class ResultsWriter:
    """Streams the objects of one slide to its folder: `with ResultsWriter(folder, ...) as out: out.add(objects)`.

    folder     made when the block begins; the files appear when it ends without an error
    mpp        level-0 µm/px along x and y, None where unknown: areas in µm² are then null
    size       width and height of level 0, px; None where unknown: not for "coco" and "zarr"
    on_group   called with each group of rows once it is final, in the order of the table
    """

    def __init__(
        self,
        folder: Path,
        slide_id: str,
        classes: Sequence[ObjectClass],
        mpp: tuple[float, float] | None,
        bounds_offset: tuple[int, int] = (0, 0),
        write: Collection[Part] = DEFAULT_PARTS,
        size: tuple[int, int] | None = None,
        *,
        options: WriteOptions | None = None,
        on_group: Callable[[Results], None] | None = None,
    ) -> None:
        if len({c.name for c in classes}) < len(classes):
            raise ValueError("write_results: two classes of one name")
        self.info = ResultsInfo(
            schema_version=SCHEMA_VERSION,
            slide_id=slide_id,
            classes=tuple(classes),
            mpp=mpp,
            bounds_offset=bounds_offset,
            size=size,
        )
        if size is None and {"coco", "zarr"} & set(write):
            raise ValueError("ResultsWriter: COCO and label images need the size of the slide")
        self._folder, self._write, self._on_group = folder, frozenset(write), on_group
        self._options = options or WriteOptions()
        self._ids = IdMaker(slide_id, self.info.names)
        self._made = self._of_parts()
        self._stack = ExitStack()
        self._threads: list[ThreadPoolExecutor] = []
        self._files: list[GroupWriter] = []
        self._in_work: deque[list[Future[None]]] = deque()
        self._waiting = no_objects(len(classes))
        self._later: list[Objects] = []
        self._ask_again = ROWS
        self._reached = -np.inf
        self.written = 0

    def __enter__(self) -> ResultsWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            self._files = [stack.enter_context(file) for file in self._made]
            self._threads = [stack.enter_context(ThreadPoolExecutor(1)) for _ in range(1 + len(self._files))]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._let_go(everything=True)
            self._wait_for(0, quietly=kind is not None)
        except BaseException as error:
            self._wait_for(0, quietly=True)
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        self._stack.__exit__(kind, value, trace)

    def add(self, objects: Objects) -> None:
        """Take objects whose y0 are not less than those before, of the same call as well.

        Raises ValueError for scores or boxes that are not finite, a class index outside of the list, objects out of
        order, an outline far from its box; RunError when the disk is full.
        """
        check_objects(objects, self.info)
        if not len(objects):
            return
        y0 = objects.xyxy[:, 1]
        if y0[0] < self._reached or (np.diff(y0) < 0).any():
            raise ValueError("ResultsWriter.add: objects that start above earlier ones")
        self._reached = float(y0[-1])
        self._later.append(objects)
        if sum(map(len, self._later)) + len(self._waiting) >= self._ask_again:
            self._let_go(everything=False)

    def _of_parts(self) -> list[AbstractContextManager[GroupWriter]]:
        info, options = self.info, self._options
        made: list[AbstractContextManager[GroupWriter]] = []
        if "parquet" in self._write:
            made.append(TableWriter(self._folder / TABLE_NAME, info))
        if "geojson" in self._write:
            path = self._folder / GEOJSON_NAME
            made.append(FeatureWriter(path, info, options.frame, gz=options.geojson_gz, split_mb=options.split_mb))
        if "csv" in self._write:
            made.append(CsvWriter(self._folder / CSV_NAME, info))
        if "coco" in self._write and info.size is not None:
            made.append(CocoResults(self._folder / COCO_NAME, info, info.size))
        if "zarr" in self._write and info.size is not None:
            made.append(
                LabelWriter(self._folder / LABELS_NAME, info, info.size, options.zarr_version, options.zarr_mpp)
            )
        return made

    def _let_go(self, *, everything: bool) -> None:
        """Write whole groups of what is final; of what is left too, at the end."""
        rows = concatenate([self._waiting, *self._later], len(self.info.classes))
        self._later = []
        rows = rows.take(canonical_order(rows))
        final = len(rows) if everything else int(np.searchsorted(rows.xyxy[:, 1], self._reached))
        start = 0
        while final - start >= ROWS or (everything and start < final):
            stop = min(start + ROWS, final)
            self._put(rows.take(np.arange(start, stop)))
            start = stop
        self._waiting = rows.take(np.arange(start, len(rows)))
        self._ask_again = len(self._waiting) + ROWS

    def _put(self, objects: Objects) -> None:
        group = Group(self.info, self.written, objects, self._ids.ids(objects, shapes_of(objects)))
        measure, *files = self._threads
        measured = measure.submit(group.for_thread().measure)
        work = [
            thread.submit(_added, file, group.for_thread(), measured)
            for thread, file in zip(files, self._files, strict=True)
        ]
        self._in_work.append(work)
        self._wait_for(GROUPS_IN_WORK)
        self.written += len(objects)
        if self._on_group is not None:
            self._on_group(Results(self.info, objects, group.object_ids))

    def _wait_for(self, most: int, *, quietly: bool = False) -> None:
        """Wait until at most `most` groups are in work. Raises what went wrong with them, unless `quietly`."""
        while len(self._in_work) > most:
            for work in self._in_work.popleft():
                error = work.exception()
                if error is not None and not quietly:
                    raise error


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
    size: tuple[int, int] | None = None,
) -> Results:
    """Write objects that are all there, in any order; see `ResultsWriter`. Returns what was written.

    geojson  whether objects.geojson is written beside the table
    Raises ValueError before anything is written where `ResultsWriter.add` does.
    """
    write: set[Part] = {"parquet", "geojson"} if geojson else {"parquet"}
    groups: list[Results] = []
    writer = ResultsWriter(
        folder,
        slide_id,
        classes,
        mpp,
        bounds_offset,
        write,
        size,
        options=WriteOptions(frame=frame),
        on_group=groups.append,
    )
    check_objects(objects, writer.info)
    with writer:
        writer.add(objects.take(np.argsort(objects.xyxy[:, 1], kind="stable")))
    ids = tuple(object_id for group in groups for object_id in group.object_ids)
    return Results(writer.info, concatenate([group.objects for group in groups], len(classes)), ids)


def check_objects(objects: Objects, info: ResultsInfo) -> None:
    """Raises ValueError for what would mean nothing in a file."""
    classes = len(info.classes)
    if objects.class_scores.shape != (len(objects), classes):
        raise ValueError(f"write_results: class_scores {objects.class_scores.shape} for {classes} classes")
    if len(objects) and not 0 <= objects.class_index.min() <= objects.class_index.max() < classes:
        raise ValueError(f"write_results: a class index outside of the list of {classes}")
    for name in ("xyxy", "score", "class_scores"):
        if not np.isfinite(getattr(objects, name)).all():
            raise ValueError(f"write_results: {name} is not finite")
    _, top, _, bottom = shapely.bounds(objects.geometry).T  # NaN without an outline: no comparison holds
    if (bottom < objects.xyxy[:, 1]).any() or (top < objects.xyxy[:, 1] - OUTLINE_SLACK_PX).any():
        raise ValueError("write_results: an outline that does not lie in its box")


def _added(file: GroupWriter, group: Group, measured: Future[dict[str, NDArray[Any]]]) -> None:
    group.know(measured.result())
    file.add(group)
