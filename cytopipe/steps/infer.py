"""`infer`: slides and a model bundle in, a results folder a slide out (DESIGN 7)."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cytopipe._version import __version__
from cytopipe.core.errors import CytopipeError, DiskError, RunError, UserError, nearest_fix
from cytopipe.core.files import FolderLock, disk_error, sha256_of
from cytopipe.core.journal import Journal, open_journal
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.core.resources import cores
from cytopipe.formats.results import DEFAULT_PARTS, PARTS, Part, WriteOptions
from cytopipe.infer.augment import Tta
from cytopipe.infer.predict import Detector
from cytopipe.infer.probe import seconds_per_window
from cytopipe.infer.segment import Segmenter
from cytopipe.infer.stain import recolouring
from cytopipe.nets import Bundle, load_bundle
from cytopipe.nets.bundle import DEFAULT_MODEL
from cytopipe.report.index_page import IndexRow, write_index, write_slides_csv
from cytopipe.report.semantic_index import AreaRow, write_area_csv, write_area_index
from cytopipe.slides import AS_STORED, Showing, find_foreground, list_slides
from cytopipe.steps.annotation_files import AnnotationReader
from cytopipe.steps.infer_jobs import How, Job, Progress, jobs_of, parameters_of
from cytopipe.steps.locate_slide import REPORT_NAME, locate_slide
from cytopipe.steps.segment_slide import segment_slide
from cytopipe.steps.stopwatch import Stopwatch
from cytopipe.tiles import TileConfig

log = logging.getLogger(__name__)

Write = Part | Literal["prob"]
WRITES: tuple[Write, ...] = (*PARTS, "prob")

INDEX_NAME, TABLE_NAME = "index.html", "slides.csv"  # of a run over several slides


@dataclass(frozen=True, slots=True)
class InferredSlide:
    """One slide of a run: status done, skipped (finished by an earlier run) or failed; objects by class; suspicion of
    the slide and how many of its objects are suspicious (`SlideSummary`; None where it failed, or has no objects);
    mm² of each class of a semantic model; seconds of work; folder.
    """

    slide_id: str
    status: Literal["done", "skipped", "failed"]
    objects: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    suspicion: float | None = None
    suspicious: int | None = None
    areas_mm2: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    folder: str = ""
    error: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class InferResult:
    """The slides of a run, in the order of the list."""

    model: str
    out: str
    rows: list[InferredSlide]


def infer(
    slides: Sequence[str | Path],
    out: Path | str = "results",
    *,
    model: str | Path | None = None,
    device: str = "auto",
    score_threshold: float | None = None,
    foreground: bool = True,
    roi: str | None = None,
    annotations: str | Path | None = None,
    write: Collection[Write] = DEFAULT_PARTS,
    options: WriteOptions | None = None,
    batch_size: int | None = None,
    tta: Tta = "off",
    stain: Literal["off", "normalise"] = "off",
    workers: int | None = None,
    reader: str = "auto",
    mpp_override: float | None = None,
    showing: Showing = AS_STORED,
    background: Literal["auto", "light", "dark"] = "auto",
    overwrite: bool = False,
    on_progress: OnProgress = silent,
    say: Say = unsaid,
) -> InferResult:
    """Locate the objects of slides and write `out`/SLIDE_ID for each; run again, it goes on where it stopped.

    model            name of a shipped bundle or a folder; None: the shipped default
    score_threshold  for every kind, in place of the model's own
    foreground       skip windows of empty glass
    roi              only objects with their centroid in a region outlined as this class in the slide's annotations
    annotations      a folder of files named after slides, or one file; the list's column goes before
    write            files beside report.html and run.json; the table of objects is always written
    options          how those files are written; its frame is that of GeoJSON annotations, too
    batch_size       windows a forward pass; None: what suits the device
    tta              orientations in which each window is looked at
    stain            normalise: bring each slide's colours to those that the model was trained on
    workers          threads that decode and outline; None: the machine's cores. They change no byte
    mpp_override     level-0 µm/px for slides that do not say it
    showing          how their samples become RGB: colour profile, plane of a stack, channels
    background       what stands behind the cells; "auto": judged from each slide's pixels
    Raises UserError before anything is written: unknown model, no slide, a lone slide that cannot be opened or read at
    the model's resolution, an output folder of another run, an option that the model's task does not know. One slide of
    several that fails becomes a row with its reason.
    """
    options = options or WriteOptions()
    bundle = load_bundle(model if model is not None else DEFAULT_MODEL)
    is_semantic = bundle.spec.task == "semantic"
    if is_semantic:
        _refuse_for_semantic(bundle, tta=tta, roi=roi, score_threshold=score_threshold)
    entries = list_slides(slides, say)
    threads = workers or cores()
    how = How(
        model=_segmenter(bundle, device, batch_size)
        if is_semantic
        else Detector(
            bundle,
            device=device,
            score_threshold=score_threshold,
            batch_windows=batch_size,
            threads=threads,
            tta=tta,
            say=say,
        ),
        foreground=foreground,
        roi=roi,
        annotations=AnnotationReader(TileConfig.model_validate({"roi": roi}), options.frame, say),
        mpp_override=mpp_override,
        reader=reader,
        showing=showing,
        background=background,
        write=frozenset(part for part in write if part != "prob") | {"parquet"},
        options=options,
        probabilities="prob" in write,
        stain=stain == "normalise",
        threads=threads,
        sha256=functools.cache(sha256_of),
        say=say,
    )
    if how.probabilities and not is_semantic:
        raise UserError(
            f"model {bundle.spec.name} locates objects", where="--write prob", fix="it is for semantic ones"
        )
    jobs = jobs_of(entries, annotations, how)
    parameters = parameters_of(how, score_threshold=score_threshold, batch_size=batch_size, tta=tta, stain=stain)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    with FolderLock(out):
        journal = open_journal(out, "infer", parameters, overwrite=overwrite)
        run = _Run(how, out, journal)
        due = [job for job in jobs if not job.error and not run.is_done(job)]
        windows = sum(job.windows for job in due)
        _say_plan(how, len(jobs), len(due), windows)
        progress = Progress(on_progress, windows)
        rows = [run.slide(job, progress, lone=len(jobs) == 1) for job in jobs]
        if len(rows) > 1:
            _write_batch(out, rows, how, parameters)
    return InferResult(bundle.spec.name, str(out), rows)


def parse_write(text: str) -> frozenset[Write]:
    """`--write`: names with commas between. Raises UserError for one that is unknown."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in WRITES:
            raise UserError(f"unknown file {name!r}", where="--write", fix=nearest_fix(name, WRITES, "known ones"))
    return frozenset(name for name in WRITES if name in names)


@dataclass(frozen=True, slots=True)
class _Run:
    how: How
    out: Path
    journal: Journal

    def is_done(self, job: Job) -> bool:
        """Whether an earlier run finished the slide as it is now."""
        slide_id = job.entry.slide_id
        return self.journal.is_done(slide_id) and self.journal.facts(slide_id)["made_from"] == dict(job.facts)

    def slide(self, job: Job, progress: Progress, *, lone: bool) -> InferredSlide:
        """One slide as one unit of the journal; what goes wrong becomes its row, unless it is the only one."""
        slide_id = job.entry.slide_id
        folder = self.out / slide_id
        if not job.error and self.is_done(job):
            return _row(slide_id, "skipped", folder, self.journal.facts(slide_id)["row"])
        started = time.perf_counter()
        on_progress = progress.of_slide(job.windows)
        try:
            if job.error:
                raise RunError(job.error)
            row = self._infer(job, folder, on_progress)
        except DiskError:  # no other slide would fare better
            raise
        except Exception as error:  # whatever befalls one slide must not cost the night's other slides
            if lone:
                raise
            log.exception("slide %s", slide_id)
            progress.skip(job.windows)
            known = isinstance(error, CytopipeError)
            return InferredSlide(slide_id, "failed", error=str(error) if known else f"{type(error).__name__}: {error}")
        self.journal.finish(slide_id, made_from=dict(job.facts), row=row)
        return _row(slide_id, "done", folder, row, seconds=round(time.perf_counter() - started, 1))

    def _infer(self, job: Job, folder: Path, on_progress: OnProgress) -> dict[str, Any]:
        """Write the slide's folder; what its row says of it."""
        how, entry, clock = self.how, job.entry, Stopwatch()
        with how.open(entry) as slide:
            view = how.view(slide)
            region = how.region(job.annotations, entry, slide)
            background = slide.background if how.background == "auto" else how.background
            warnings = how.warnings(slide, view, background)
            for line in warnings:
                how.say(f"{entry.slide_id}: {line}")
            said = len(warnings)
            with clock("foreground"):
                foreground = find_foreground(slide, background) if how.foreground else None
            recolour = recolouring(how.spec, slide, view, foreground) if how.stain else None
            facts = {
                "command": "infer",
                "cytopipe": __version__,
                **how.facts(slide, view, entry.slide_id, background),
                "seconds": clock.seconds,
            }
            if isinstance(how.model, Segmenter):
                found = segment_slide(
                    how.model,
                    slide,
                    view,
                    folder,
                    facts=facts,
                    warnings=warnings,
                    foreground=foreground,
                    probabilities=how.probabilities,
                    recolour=recolour,
                    threads=how.threads,
                    on_progress=on_progress,
                )
                row: dict[str, Any] = {"areas_mm2": {area.name: area.mm2 for area in found.areas}}
            else:
                summary = locate_slide(
                    how.model,
                    slide,
                    view,
                    folder,
                    facts=facts,
                    warnings=warnings,
                    foreground=foreground,
                    region=region,
                    write=how.write,
                    options=how.options,
                    recolour=recolour,
                    on_progress=on_progress,
                )
                row = {
                    "objects": summary.total,
                    "classes": {c.name: int(n) for c, n in zip(summary.classes, summary.counts, strict=True)},
                    "suspicion": round(summary.suspicion, 6),
                    "suspicious": summary.suspicious,
                }
        for line in warnings[said:]:
            how.say(f"{entry.slide_id}: {line}")
        return {**row, "warnings": warnings}


def _row(
    slide_id: str, status: Literal["done", "skipped"], folder: Path, row: dict[str, Any], seconds: float = 0.0
) -> InferredSlide:
    figures = {**row, "warnings": tuple(row["warnings"])}
    return InferredSlide(slide_id, status, folder=str(folder), seconds=seconds, **figures)


def _segmenter(bundle: Bundle, device: str, batch_size: int | None) -> Segmenter:
    if batch_size is None:
        return Segmenter(bundle, device=device)
    return Segmenter(bundle, device=device, batch_windows=batch_size)


def _refuse_for_semantic(bundle: Bundle, **given: Any) -> None:
    """Raise UserError for an option that means nothing to a model which gives each pixel a class."""
    for name, value in given.items():
        if value not in (None, "off"):
            raise UserError(
                f"model {bundle.spec.name} is a semantic one, which knows no --{name.replace('_', '-')}",
                fix="leave it out, or choose a model that locates objects",
            )


def _say_plan(how: How, slides: int, due: int, windows: int) -> None:
    """What is going to be done and about how long it takes, before it is."""
    spec, device = how.spec, how.model.device
    where = f"{device}, since torch finds no GPU here" if device.type == "cpu" else str(device)
    of_them = "" if due == slides else f", {due} of them to do"
    how.say(f"model {spec.name} at {spec.mpp:g} µm/px on {where}; {slides} slide{'s' * (slides != 1)}{of_them}")
    if windows:
        look = how.model.logits_of if isinstance(how.model, Segmenter) else how.model.predict
        stride_px, warm_up = spec.net.stride_px, device.type != "cpu"
        each = seconds_per_window(look, spec.tile_px, stride_px, how.model.batch_windows, warm_up=warm_up)
        how.say(f"at most {windows} windows of {spec.tile_px} px, about {_about(windows * each)}; glass is skipped")


def _about(seconds: float) -> str:
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _write_batch(out: Path, rows: Sequence[InferredSlide], how: How, parameters: dict[str, Any]) -> None:
    """index.html and slides.csv of a run over several slides, the most suspicious first; areas of a semantic model in
    the order of the list.
    """
    names = [c.name for c in how.spec.net.classes]
    facts = {"model": how.spec.name, **{key: value for key, value in parameters.items() if key != "model"}}
    if isinstance(how.model, Segmenter):
        areas = [
            AreaRow(
                row.slide_id,
                "failed" if row.status == "failed" else "done",
                "" if row.status == "failed" else f"{row.slide_id}/{REPORT_NAME}",
                row.areas_mm2,
                len(row.warnings),
                row.error,
            )
            for row in rows
        ]
        write_area_index(out / INDEX_NAME, areas, names, title=out.resolve().name, facts=facts)
        write_area_csv(out / TABLE_NAME, areas, names)
        return
    pages = [
        IndexRow(
            row.slide_id,
            "failed" if row.status == "failed" else "done",
            "" if row.status == "failed" else f"{row.slide_id}/{REPORT_NAME}",
            row.classes,
            row.suspicion,
            row.suspicious,
            len(row.warnings),
            row.error,
        )
        for row in rows
    ]
    write_index(out / INDEX_NAME, pages, names, title=out.resolve().name, facts=facts)
    write_slides_csv(out / TABLE_NAME, pages, names)
