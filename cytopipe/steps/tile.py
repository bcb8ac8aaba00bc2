"""`cytopipe tile`: slides into a tile store, with their annotations and by patients split.

Enters: slides, where to write, how to cut (`TileConfig`).  Leaves: a tile store (`cytopipe/tiles/store.py`) with its
page, and a `TileResult` that says what is in it.
"""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from cytopipe._version import __version__
from cytopipe.core.errors import UserError
from cytopipe.core.files import sha256_of
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.core.resources import cores
from cytopipe.formats.qupath import Frame
from cytopipe.report.store_page import write_store_page
from cytopipe.slides import AS_STORED, Showing, SlideEntry, list_slides
from cytopipe.steps.annotation_files import AnnotationReader, files_of
from cytopipe.steps.cut_slide import How, Job, Progress, cut_or_fail, look_at
from cytopipe.tiles import (
    MadeBy,
    SlideRow,
    StoreInfo,
    StoreWriter,
    TileConfig,
    TileStore,
    assigned_parts,
    open_writer,
    parse_ratio,
    split_patients,
)
from cytopipe.tiles.config import USUAL_TILE_PX
from cytopipe.tiles.images import BYTES_PER_PX
from cytopipe.tiles.split import FileOfPatient, Stratify, refuse_shared_files


@dataclass(frozen=True, slots=True)
class TileResult:
    """What stands in the store after the run.

    slides   a row a slide of the list, in its order; `error` tells what failed
    resumed  how many of them were finished by an earlier run
    page     the store's index.html
    """

    store: Path
    slides: tuple[SlideRow, ...]
    resumed: int
    classes: tuple[str, ...]
    page: Path

    @property
    def failed(self) -> list[tuple[str, str]]:
        """(slide_id, reason) of the slides that gave no tiles, or lost some."""
        return [(row.slide_id, row.error) for row in self.slides if row.error]

    @property
    def tiles_by_split(self) -> dict[str, int]:
        """How many tiles each split has."""
        count: Counter[str] = Counter()
        for row in self.slides:
            count[row.split] += row.tiles_kept
        return {part: count[part] for part in ("train", "val", "test") if count[part]}


def tile(
    slides: Sequence[str | Path],
    out: str | Path,
    *,
    config: TileConfig | None = None,
    annotations: str | Path | None = None,
    split: str | None = None,
    stratify: Stratify = "stratum",
    frame: Frame = "bounds",
    mpp_override: float | None = None,
    reader: str = "auto",
    showing: Showing = AS_STORED,
    force: bool = False,
    workers: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    recipe_hash: str | None = None,
    on_progress: OnProgress = silent,
    say: Say = unsaid,
) -> TileResult:
    """Cut slides into the tile store `out`; run again it resumes, and takes up slides that are new on the list.

    slides        files, folders, globs, or a CSV (cytopipe.slides.list_slides)
    annotations   a folder of files named after slides (SLIDE_ID.geojson, .xml, ...), the file of a lone slide, or one
                  COCO or CSV file that names its images; the list's column goes before
    split         a ratio of patients, e.g. "7:1:2"; the list's column goes before
    stratify      the column of the list whose strata are split alike
    frame         of GeoJSON annotations: `bounds` as QuPath shows slides, or `slide`
    showing       how the slides' samples become RGB: colour profile, plane of a stack, channels
    force         cut slides coarser than half of the resolution asked for
    seed          of the split, and of random windows
    One failing slide of several is a row in the result, and the run goes on.
    Raises UserError before anything is written when an argument, the list or a lone slide is at fault; RunError when a
    lone slide fails later.
    """
    out, config = Path(out), config or TileConfig.model_validate({})
    annotation_reader = AnnotationReader(config, frame, say)
    sha256 = functools.cache(sha256_of)
    how = How(config, annotation_reader, mpp_override, reader, showing, force, workers or cores(), seed, sha256, say)
    shares = parse_ratio(split) if split is not None else None
    entries = list_slides(slides, say=say)
    files = files_of(entries, annotations, with_label_images=config.label_class is not None)
    _refuse_without_annotations(config, files)
    jobs = [look_at(entry, file, how, alone=len(entries) == 1) for entry, file in zip(entries, files, strict=True)]
    _say_notes(jobs, say)
    patients = [(job.patient, _stratum(job.entry, stratify), job.entry.split) for job in jobs]
    earlier = {} if overwrite else assigned_parts(out)
    part_of = split_patients(patients, earlier, shares, seed)
    files = {
        job.entry.slide_id: FileOfPatient(
            job.entry.slide_id, job.patient, part_of[job.patient], job.facts["fingerprint"]
        )
        for job in jobs
        if job.error is None
    }
    refuse_shared_files(files.values())
    if shares is None and not any(job.entry.split for job in jobs):
        say("no split was asked for: all tiles are train")
    info = StoreInfo(
        tile_px=config.tile_px,
        mpp=config.mpp,
        overlap_px=config.overlap_px,
        edge=config.edge,
        codec=config.codec,
        quality=config.quality,
        made_by=MadeBy(command="tile", version=__version__, recipe_hash=recipe_hash),
    )
    parameters = {
        **config.model_dump(mode="json"),
        "frame": frame,
        "mpp_override": mpp_override,
        "reader": reader,
        "showing": asdict(showing),
        "split": split,
        "stratify": stratify,
        "seed": seed,
    }
    total = 0 if config.around_objects else sum(job.tiles for job in jobs)
    _say_plan(config, len(jobs), total, out, say)

    with open_writer(out, info, parameters, slides=len(entries), overwrite=overwrite) as writer:
        refuse_shared_files({**{file.slide_id: file for file in writer.finished_files()}, **files}.values())
        writer.keep_parts_of_patients(part_of)
        rows, resumed = _cut_all(jobs, part_of, writer, how, on_progress, total)
        classes = tuple(c.name for c in writer.finish().classes)
        page = write_store_page(TileStore(out))
    return TileResult(out, rows, resumed, classes, page)


def _cut_all(
    jobs: Sequence[Job],
    part_of: dict[str, str],
    writer: StoreWriter,
    how: How,
    on_progress: OnProgress,
    total: int,
) -> tuple[tuple[SlideRow, ...], int]:
    """A row a job, and how many were finished by an earlier run."""
    rows, resumed, done = [], 0, 0
    for job in jobs:
        part = part_of[job.patient]
        progress = Progress(on_progress, done, total)
        if writer.is_done(job.entry.slide_id, job.facts_in(part)):
            rows.append(writer.slide_row(job.entry.slide_id))
            resumed += 1
        else:
            rows.append(cut_or_fail(job, part, writer, how, progress, alone=len(jobs) == 1))
        done = done + job.tiles if total else progress.done  # also what a failed slide did not cut is behind us
        on_progress(done, total, "tiles")
    return tuple(rows), resumed


def _stratum(entry: SlideEntry, stratify: Stratify) -> str | None:
    return None if stratify == "none" else entry.diagnosis if stratify == "diagnosis" else entry.stratum


def _refuse_without_annotations(config: TileConfig, files: Sequence[Path | None]) -> None:
    """Raise UserError for a setting that makes no sense where no slide has annotations."""
    needing = {
        "roi": config.roi is not None,
        "annotated_area": config.annotated_area is not None,
        "around_objects": config.around_objects,
    }
    asked = [name for name, is_asked in needing.items() if is_asked]
    if asked and not any(files):
        raise UserError(
            f"{asked[0]} is asked for, and no slide has annotations",
            fix="give --annotations, or a column annotations in the slide list",
        )


def _say_notes(jobs: Sequence[Job], say: Say) -> None:
    """What is unusual about the slides: each sentence once, with the first slide that it is about and their number."""
    names: dict[str, list[str]] = {}
    for job in jobs:
        for note in job.notes:
            names.setdefault(note, []).append(job.entry.path.name)
    for note, about in names.items():
        more = f" (and {len(about) - 1} more slides)" if len(about) > 1 else ""
        say(f"warning: {about[0]}{more}: {note}")


def _say_plan(config: TileConfig, slides: int, tiles: int, out: Path, say: Say) -> None:
    """What is going to be done, before it is; the disk is asked for its space, and a short one only warned about.

    tiles  0: as many as there are objects, which nobody has counted yet
    """
    low, high = USUAL_TILE_PX
    if not low <= config.tile_px <= high:
        say(f"warning: tiles of {config.tile_px} px are unusual; {low} to {high} px are")
    resolution = "level 0" if config.mpp is None else f"{config.mpp:g} µm/px"
    size = f"of {config.tile_px} px at {resolution}"
    if not tiles:
        beside = f"and {config.random} random ones a slide, " if config.random else ""
        say(f"{slides} slides, a window {size} around each annotated object, {beside}into {out}")
        return
    size_gb = tiles * config.tile_px**2 * BYTES_PER_PX[config.codec] / 1e9
    say(f"{slides} slides, at most {tiles} tiles {size}, about {size_gb:.2g} GB, into {out}")
    disk = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free_gb = shutil.disk_usage(disk).free / 1e9
    if size_gb > free_gb:
        say(f"warning: {free_gb:.2g} GB are free there; glass is not stored, so that it may still be enough")
