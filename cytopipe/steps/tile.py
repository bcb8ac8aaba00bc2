"""`cytopipe tile`: slides into a tile store, with their annotations and by patients split.

Enters: slides, where to write, how to cut (`TileConfig`).  Leaves: a tile store (`cytopipe/tiles/store.py`),
and a `TileResult` that says what is in it.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cytopipe._version import __version__
from cytopipe.core.errors import CytopipeError, RunError, UserError
from cytopipe.core.files import sha256_of
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.core.resources import cores
from cytopipe.formats.annotations import Annotation
from cytopipe.formats.qupath import Frame, read_qupath
from cytopipe.report.overview import write_overview
from cytopipe.slides import (
    MppView,
    Slide,
    SlideEntry,
    find_foreground,
    list_slides,
    open_slide,
    thumbnail,
)
from cytopipe.tiles import (
    LostTile,
    MadeBy,
    SlideRow,
    StoreInfo,
    StoreWriter,
    TileConfig,
    TilePlan,
    TileRow,
    assigned_parts,
    cut_plan,
    fingerprint_of,
    grid_of,
    open_writer,
    parse_ratio,
    plan_tiles,
    split_patients,
)
from cytopipe.tiles.config import USUAL_TILE_PX
from cytopipe.tiles.images import BYTES_PER_PX

log = logging.getLogger(__name__)

MAX_LINES_SAID = 10  # of one annotation file: a file with ten thousand open rings must not bury the rest
OVERVIEW_PX = 1600  # longer side of overview.jpg: tiles of 1200 px on a 100,000 px slide are still 19 px wide


@dataclass(frozen=True, slots=True)
class TileResult:
    """What stands in the store after the run.

    slides   a row a slide of the list, in its order; `error` tells what failed
    resumed  how many of them were finished by an earlier run
    """

    store: Path
    slides: tuple[SlideRow, ...]
    resumed: int
    classes: tuple[str, ...]

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


@dataclass(frozen=True, slots=True)
class _How:
    """What is the same for every slide of the run."""

    config: TileConfig
    frame: Frame
    mpp_override: float | None
    reader: str
    force: bool
    workers: int
    say: Say


@dataclass(frozen=True, slots=True)
class _Job:
    """One slide of the list.

    tiles  how many its grid has
    facts  what its store rows depend on beside the run's parameters: when any of it changes, the slide is cut again
    error  why it cannot be cut; then without tiles and facts
    """

    entry: SlideEntry
    annotations: Path | None
    tiles: int
    facts: Mapping[str, Any]
    error: str | None = None

    @property
    def patient(self) -> str:
        return self.entry.patient or self.entry.slide_id

    def facts_in(self, part: str) -> dict[str, Any]:
        """The facts, with the split that the patient is in."""
        return {**self.facts, "patient": self.patient, "split": part}


def tile(
    slides: Sequence[str | Path],
    out: str | Path,
    *,
    config: TileConfig | None = None,
    annotations: str | Path | None = None,
    split: str | None = None,
    frame: Frame = "bounds",
    mpp_override: float | None = None,
    reader: str = "auto",
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
    annotations   a folder with SLIDE_ID.geojson files, or the file of a lone slide; the list's column goes before
    split         a ratio of patients, e.g. "7:1:2"; the list's column goes before
    frame         of the annotations: `bounds` as QuPath shows slides, or `slide`
    force         cut slides coarser than half of the resolution asked for
    seed          of the split
    One failing slide of several is a row in the result, and the run goes on.
    Raises UserError before anything is written when an argument, the list or a lone slide is at fault; RunError when a
    lone slide fails later.
    """
    out = Path(out)
    how = _How(config or TileConfig(), frame, mpp_override, reader, force, workers or cores(), say)
    shares = parse_ratio(split) if split is not None else None
    entries = list_slides(slides, say=say)
    jobs = [_plan(entry, path, how, alone=len(entries) == 1) for entry, path in _with_annotations(entries, annotations)]
    patients = [(job.patient, job.entry.stratum, job.entry.split) for job in jobs]
    earlier = {} if overwrite else assigned_parts(out)
    part_of = split_patients(patients, earlier, shares, seed)
    if shares is None and not any(job.entry.split for job in jobs):
        say("no split was asked for: all tiles are train")
    info = StoreInfo(
        tile_px=how.config.tile_px,
        mpp=how.config.mpp,
        overlap_px=how.config.overlap_px,
        edge=how.config.edge,
        codec=how.config.codec,
        quality=how.config.quality,
        made_by=MadeBy(command="tile", version=__version__, recipe_hash=recipe_hash),
    )
    parameters = {
        **how.config.model_dump(),
        "frame": frame,
        "mpp_override": mpp_override,
        "reader": reader,
        "split": split,
        "seed": seed,
    }
    total = sum(job.tiles for job in jobs)
    _say_plan(how, len(jobs), total, out)

    with open_writer(out, info, parameters, overwrite=overwrite) as writer:
        writer.keep_parts_of_patients(part_of)
        rows, resumed, done = [], 0, 0
        for job in jobs:
            part = part_of[job.patient]
            if writer.is_done(job.entry.slide_id, job.facts_in(part)):
                rows.append(writer.slide_row(job.entry.slide_id))
                resumed += 1
            else:
                progress = _Progress(on_progress, done, total)
                rows.append(_tile_or_fail(job, part, writer, how, progress, alone=len(jobs) == 1))
            done += job.tiles
            on_progress(done, total, "tiles")
        classes = tuple(c.name for c in writer.finish().classes)
    return TileResult(out, tuple(rows), resumed, classes)


def _say_plan(how: _How, slides: int, tiles: int, out: Path) -> None:
    """What is going to be done, before it is; the disk is asked for its space, and a short one only warned about."""
    config, (low, high) = how.config, USUAL_TILE_PX
    if not low <= config.tile_px <= high:
        how.say(f"warning: tiles of {config.tile_px} px are unusual; {low} to {high} px are")
    resolution = "level 0" if config.mpp is None else f"{config.mpp:g} µm/px"
    size_gb = tiles * config.tile_px**2 * BYTES_PER_PX[config.codec] / 1e9
    what = f"{slides} slides, at most {tiles} tiles of {config.tile_px} px at {resolution}"
    how.say(f"{what}, about {size_gb:.2g} GB, into {out}")
    disk = next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())
    free_gb = shutil.disk_usage(disk).free / 1e9
    if size_gb > free_gb:
        how.say(f"warning: {free_gb:.2g} GB are free there; glass is not stored, so that it may still be enough")


def _with_annotations(entries: Sequence[SlideEntry], given: str | Path | None) -> list[tuple[SlideEntry, Path | None]]:
    """Each slide with its annotation file, where it has one. Raises UserError when the given place fits no slide."""
    if given is None:
        return [(entry, entry.annotations) for entry in entries]
    place = Path(given)
    if not place.exists():
        raise UserError(
            "does not exist",
            where=str(place),
            fix="--annotations takes a folder of SLIDE_ID.geojson files, or the file of a lone slide",
        )
    if place.is_file():
        if len(entries) > 1:
            raise UserError(
                f"is one file for {len(entries)} slides",
                where=str(place),
                fix="give the folder, or a column annotations in the slide list",
            )
        return [(entries[0], entries[0].annotations or place)]
    found = [(entry, entry.annotations or _named_after(entry.slide_id, place)) for entry in entries]
    if all(path is None for _, path in found):
        raise UserError(
            "no file in it is named after a slide",
            where=str(place),
            fix=f"e.g. {entries[0].slide_id}.geojson is looked for",
        )
    return found


def _named_after(slide_id: str, folder: Path) -> Path | None:
    candidates = (folder / f"{slide_id}{suffix}" for suffix in (".geojson", ".json"))
    return next((path for path in candidates if path.is_file()), None)


def _open(entry: SlideEntry, how: _How) -> Slide:
    return open_slide(entry.path, reader=how.reader, mpp_override=entry.mpp or how.mpp_override)


def _plan(entry: SlideEntry, annotations: Path | None, how: _How, *, alone: bool) -> _Job:
    """Look at a slide before anything is written; the error of one of several is noted, not raised."""
    try:
        with _open(entry, how) as slide:
            view = MppView(slide, how.config.mpp, force=how.force)
            for note in slide.notes:
                how.say(f"warning: {entry.path.name}: {note}")
            if view.warning:
                how.say(f"warning: {view.warning}")
            if alone and annotations:  # of a thousand slides each file is read when its turn comes, once
                read_qupath(annotations)
            facts = {
                "fingerprint": fingerprint_of(entry.path),
                "annotations": sha256_of(annotations) if annotations else None,
                "mpp": entry.mpp,
            }
            return _Job(entry, annotations, len(grid_of(view, how.config)), facts)
    except CytopipeError as error:
        if alone:
            raise
        return _Job(entry, annotations, 0, {}, str(error))
    except OSError as error:
        unreadable = UserError(f"cannot be read ({error.strerror})", where=str(error.filename or entry.path))
        if alone:
            raise unreadable from error
        return _Job(entry, annotations, 0, {}, str(unreadable))


class _Progress:
    """Tiles of one slide as part of all tiles of the run."""

    def __init__(self, on_progress: OnProgress, before: int, total: int) -> None:
        self._on_progress, self._done, self._total = on_progress, before, total

    def advance(self, tiles: int) -> None:
        self._done += tiles
        self._on_progress(self._done, self._total, "tiles")

    def over(self, tiles: Iterator[TileRow | LostTile]) -> Iterator[TileRow | LostTile]:
        """The same tiles; each one that is taken counts as done."""
        for tile in tiles:
            yield tile
            self.advance(1)


def _tile_or_fail(
    job: _Job, part: str, writer: StoreWriter, how: _How, progress: _Progress, *, alone: bool
) -> SlideRow:
    """Cut one slide; what goes wrong with one of several becomes its row."""
    entry = job.entry
    row = SlideRow(entry.slide_id, job.patient, part, str(entry.path), stratum=entry.stratum, diagnosis=entry.diagnosis)
    try:
        if job.error is not None:
            raise RunError(job.error)
        return _tile_slide(job, row, writer, how, progress)
    except Exception as error:  # whatever befalls one slide must not cost the night's other slides
        if alone:
            raise
        log.exception("slide %s", entry.slide_id)
        row = replace(row, error=str(error) if isinstance(error, CytopipeError) else f"{type(error).__name__}: {error}")
    how.say(f"{entry.slide_id} failed: {row.error}")
    writer.fail_slide(row)
    return row


def _tile_slide(job: _Job, row: SlideRow, writer: StoreWriter, how: _How, progress: _Progress) -> SlideRow:
    """Cut one slide into the store; returns its row."""
    config = how.config
    with _open(job.entry, how) as slide:
        view = MppView(slide, config.mpp, force=how.force)
        annotations = _read_annotations(job, slide, how)
        foreground = find_foreground(slide) if config.foreground else None
        plan = plan_tiles(view, slide.dimensions, annotations, foreground, config)
        row = replace(
            row.of_slide(slide, foreground, job.facts["fingerprint"]),
            annotations_sha256=job.facts["annotations"],
            classes=tuple(sorted({a.class_name for a in annotations})),
            tiles_glass=int((~plan.kept).sum()),
            tiles_kept_for_objects=int(plan.for_objects.sum()),
            objects_annotated=len(annotations),
            objects_unseen=plan.unseen,
            pieces_dropped=plan.dropped,
        )
        progress.advance(row.tiles_glass)
        _write_overview(writer.overview_path(row.slide_id), slide, plan)
        cut = cut_plan(plan, view, foreground, config, labelled=job.annotations is not None, workers=how.workers)
        return writer.add_slide(row, progress.over(cut), plan.objects, job.facts_in(row.split))


def _read_annotations(job: _Job, slide: Slide, how: _How) -> list[Annotation]:
    if job.annotations is None:
        return []
    objects, lines = read_qupath(job.annotations, frame=how.frame, bounds_offset=slide.bounds_offset)
    for line in lines[:MAX_LINES_SAID]:
        how.say(f"{job.annotations.name}: {line}")
    if len(lines) > MAX_LINES_SAID:
        how.say(f"{job.annotations.name}: and {len(lines) - MAX_LINES_SAID} more features left out or mended")
    return objects


def _write_overview(path: Path, slide: Slide, plan: TilePlan) -> None:
    picture = thumbnail(slide, OVERVIEW_PX)
    (height, width), (slide_width, slide_height) = picture.shape[:2], slide.dimensions
    scale = slide_width / width, slide_height / height
    mpp = slide.resolution.mpp if slide.resolution else None
    path.parent.mkdir(exist_ok=True)
    write_overview(path, picture, plan.boxes[plan.kept], plan.boxes[~plan.kept], scale, mpp)
