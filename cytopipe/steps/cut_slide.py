"""One slide of a `tile` run: looked at before anything is written, and cut when its turn comes.

Enters: a slide of the list, and how the run cuts (`How`).  Leaves: a `Job`; later the slide's tiles, objects, problems
and overview in the store, and its row.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import CytopipeError, DiskError, RunError
from cytopipe.core.progress import OnProgress, Say
from cytopipe.core.seeds import rng_from
from cytopipe.formats.annotations import AnnotationFile
from cytopipe.report.overview import write_overview
from cytopipe.slides import Foreground, MppView, Showing, Slide, SlideEntry, find_foreground, open_slide, thumbnail
from cytopipe.steps.annotation_files import AnnotationReader
from cytopipe.steps.first_look import facts_of, seen_or_noted
from cytopipe.tiles import (
    BlurredTile,
    LostTile,
    SlideRow,
    StoreWriter,
    TileConfig,
    TilePlan,
    TileRow,
    cut_plan,
    grid_of,
    plan_tiles,
    region_of_interest,
)

log = logging.getLogger(__name__)

# [D] longer side of the overview: tiles of 1200 px on a 100,000 px slide are still 12 to 19 px wide. A level of the
# slide that lies between is taken as it is, since shrinking the next larger one costs as much as cutting 16 tiles
LEAST_OVERVIEW_PX, OVERVIEW_PX = 1000, 1600


@dataclass(frozen=True, slots=True)
class How:
    """What is the same for every slide of the run.

    sha256  of a file; asked once for one that serves many slides
    """

    config: TileConfig
    annotations: AnnotationReader
    mpp_override: float | None
    reader: str
    showing: Showing
    force: bool
    workers: int
    seed: int
    sha256: Callable[[Path], str]
    say: Say

    def open(self, entry: SlideEntry) -> Slide:
        """The slide of an entry. Raises as `open_slide`."""
        mpp = entry.mpp or self.mpp_override
        return open_slide(entry.path, reader=self.reader, mpp_override=mpp, showing=self.showing)


@dataclass(frozen=True, slots=True)
class Job:
    """One slide of the list.

    tiles  how many there are to choose from at most; 0 where only its annotations tell
    facts  what its store rows depend on beside the run's parameters: when any of it changes, the slide is cut again
    notes  what is unusual about the slide
    error  why it cannot be cut; then without tiles and facts
    """

    entry: SlideEntry
    annotations: Path | None
    tiles: int
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    error: str | None = None

    @property
    def patient(self) -> str:
        """The patient; of a slide whose list names none, the slide itself."""
        return self.entry.patient or self.entry.slide_id

    def facts_in(self, part: str) -> dict[str, Any]:
        """The facts, with the split that the patient is in."""
        return {**self.facts, "patient": self.patient, "split": part}


class Progress:
    """Tiles of one slide as part of all tiles of the run; `total` 0: nobody knows how many."""

    def __init__(self, on_progress: OnProgress, done: int, total: int) -> None:
        self._on_progress, self.done, self._total = on_progress, done, total

    def advance(self, tiles: int) -> None:
        """So many more tiles are cut, or need not be."""
        self.done += tiles
        self._on_progress(self.done, self._total, "tiles")


def look_at(entry: SlideEntry, annotations: Path | None, how: How, *, alone: bool) -> Job:
    """Look at a slide before anything is written; the error of one of several is noted, not raised."""

    def look() -> Job:
        with how.open(entry) as slide:
            view = MppView(slide, how.config.mpp, force=how.force)
            if alone:  # of a thousand slides each file is read when its turn comes, once
                found = how.annotations.read(annotations, entry, slide) if annotations else None
                region_of_interest(found.objects if found else (), how.config.roi)
            warning = view.warning.removeprefix(f"{entry.path.name}: ") if view.warning else ""
            notes = (*slide.notes, *([warning] if warning else []))
            facts = facts_of(entry, annotations, how.sha256)
            return Job(entry, annotations, _most_tiles(view, how.config), facts, notes)

    return seen_or_noted(entry, look, lambda why: Job(entry, annotations, 0, {}, error=why), alone=alone)


def cut_or_fail(job: Job, part: str, writer: StoreWriter, how: How, progress: Progress, *, alone: bool) -> SlideRow:
    """Cut one slide into the store; what goes wrong with one of several becomes its row."""
    entry = job.entry
    row = SlideRow(entry.slide_id, job.patient, part, str(entry.path), stratum=entry.stratum, diagnosis=entry.diagnosis)
    try:
        if job.error is not None:
            raise RunError(job.error)
        return _cut(job, row, writer, how, progress)
    except DiskError:  # no other slide would fare better
        raise
    except Exception as error:  # whatever befalls one slide must not cost the night's other slides
        if alone:
            raise
        log.exception("slide %s", entry.slide_id)
        row = replace(row, error=str(error) if isinstance(error, CytopipeError) else f"{type(error).__name__}: {error}")
    how.say(f"{entry.slide_id} failed: {row.error}")
    writer.fail_slide(row)
    return row


def _most_tiles(view: MppView, config: TileConfig) -> int:
    if config.is_grid:
        return len(grid_of(view, config))
    return 0 if config.around_objects else config.random or 0


def _cut(job: Job, row: SlideRow, writer: StoreWriter, how: How, progress: Progress) -> SlideRow:
    config, entry = how.config, job.entry
    with how.open(entry) as slide:
        view = MppView(slide, config.mpp, force=how.force)
        found = how.annotations.read(job.annotations, entry, slide) if job.annotations else None
        if job.annotations and found:
            how.annotations.say_problems(job.annotations, found)
        foreground = _foreground(slide, config)
        draw = rng_from(how.seed, "random windows", entry.slide_id)
        plan = plan_tiles(view, slide.dimensions, found.objects if found else None, foreground, config, draw)
        for note in plan.notes:
            how.say(f"{entry.slide_id}: {note}")
        row = row.of_slide(slide, foreground, job.facts["fingerprint"])
        row = _with_annotations(_with_plan(row, plan), found, job.facts["annotations"])
        progress.advance(int((~plan.kept).sum()) if config.is_grid else 0)
        tiles = cut_plan(plan, view, foreground, config, workers=how.workers)
        stream = _to_store(tiles, plan, config, progress, lambda stored: _overview(writer, row, slide, plan, stored))
        problems = found.problems if found else ()
        return writer.add_slide(row, stream, plan.objects, job.facts_in(row.split), problems)


def _foreground(slide: Slide, config: TileConfig) -> Foreground | None:
    """The foreground, also where every tile is taken: the share of foreground and of glass is recorded with each. A
    slide on which it cannot be found is cut all the same if it decides nothing; where nothing is to be measured either,
    it is not looked for."""
    if not config.foreground and not config.measure and config.random is None:
        return None
    try:
        return find_foreground(slide, config.background)
    except RunError as error:
        if config.foreground:
            raise
        log.info("%s: no foreground: %s", slide.path.name, error)
        return None


def _with_plan(row: SlideRow, plan: TilePlan) -> SlideRow:
    return replace(
        row,
        classes=tuple(sorted(plan.annotated)),
        tiles_glass=int((~plan.kept & ~plan.outside).sum()),
        tiles_outside_roi=int(plan.outside.sum()),
        tiles_kept_for_objects=int(plan.for_objects.sum()),
        objects_annotated=sum(plan.annotated.values()),
        objects_unseen=plan.unseen,
        pieces_dropped=plan.dropped,
    )


def _with_annotations(row: SlideRow, found: AnnotationFile | None, sha256: str | None) -> SlideRow:
    if found is None:
        return row
    return replace(
        row,
        annotations_sha256=sha256,
        objects_mended=found.mended,
        objects_refused=found.refused,
        objects_ignored=sum(found.ignored.values()),
    )


def _to_store(
    tiles: Iterator[TileRow | LostTile],
    plan: TilePlan,
    config: TileConfig,
    progress: Progress,
    at_the_end: Callable[[NDArray[np.bool_]], None],
) -> Iterator[TileRow | LostTile | BlurredTile]:
    """The same tiles, those below --min-sharpness as blurred ones; each that is taken counts as done.

    at_the_end  is told which tiles of the plan are stored (T,), once that is known and before the slide is finished
    """
    row_of = {origin: i for i, origin in enumerate(plan.origins)}
    stored = plan.kept.copy()
    for tile in tiles:
        if isinstance(tile, LostTile):
            stored[row_of[tile.x, tile.y]] = False
            yield tile
        elif config.min_sharpness is not None and (tile.sharpness or 0.0) < config.min_sharpness:
            stored[row_of[tile.x, tile.y]] = False
            yield BlurredTile(tile.x, tile.y, tile.sharpness or 0.0)
        else:
            yield tile
        progress.advance(1)
    at_the_end(stored)


def _overview(writer: StoreWriter, row: SlideRow, slide: Slide, plan: TilePlan, stored: NDArray[np.bool_]) -> None:
    sides = [max(level.width, level.height) for level in slide.levels]
    picture = thumbnail(slide, next((side for side in sides if LEAST_OVERVIEW_PX <= side <= OVERVIEW_PX), OVERVIEW_PX))
    (height, width), (slide_width, slide_height) = picture.shape[:2], slide.dimensions
    scale = slide_width / width, slide_height / height
    mpp = slide.resolution.mpp if slide.resolution else None
    write_overview(writer.overview_path(row.slide_id), picture, plan.boxes[stored], plan.boxes[~stored], scale, mpp)
