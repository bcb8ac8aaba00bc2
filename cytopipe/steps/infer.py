"""`infer`: slides and a model bundle in, a results folder a slide out (DESIGN 7)."""

from __future__ import annotations

import csv
import io
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from cytopipe._version import __version__
from cytopipe.core.classes import ObjectClass
from cytopipe.core.errors import CytopipeError, UserError
from cytopipe.core.files import FolderLock, disk_error, write_text
from cytopipe.core.journal import Journal, open_journal
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.formats.results import Results, write_results, write_run_json
from cytopipe.infer.predict import Detector, Findings
from cytopipe.nets import BundleSpec, load_bundle
from cytopipe.nets.bundle import DEFAULT_MODEL
from cytopipe.report.index_page import IndexRow, write_index
from cytopipe.report.infer_page import write_infer_report
from cytopipe.slides import MppView, Slide, SlideEntry, find_foreground, list_slides, open_slide, thumbnail

REPORT_NAME = "report.html"
INDEX_NAME, TABLE_NAME = "index.html", "slides.csv"  # of a run over several slides
THUMBNAIL_PX = 1600


@dataclass(frozen=True, slots=True)
class InferredSlide:
    """One slide of a run: status done, skipped (finished by an earlier run) or failed; objects by class; seconds of
    work; its folder.
    """

    slide_id: str
    status: Literal["done", "skipped", "failed"]
    objects: int = 0
    classes: dict[str, int] = field(default_factory=dict)
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
    reader: str = "auto",
    mpp_override: float | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
    say: Say = unsaid,
) -> InferResult:
    """Locate the objects of slides and write `out`/SLIDE_ID for each; run again, it goes on where it stopped.

    model            name of a shipped bundle or a folder; None: the shipped default
    score_threshold  for every kind, in place of the model's own
    foreground       skip windows of empty glass
    mpp_override     level-0 µm/px for slides that do not say it
    Raises UserError before anything is written: unknown model, no slide, a lone slide that cannot be opened or read at
    the model's resolution, an output
    folder of another run. One slide of several that fails becomes a row with its reason.
    """
    bundle = load_bundle(model if model is not None else DEFAULT_MODEL)
    entries = list_slides(slides, say)
    if len(entries) == 1:
        _check(entries[0], bundle.spec, reader, mpp_override)
    detector = Detector(bundle, device=device, score_threshold=score_threshold)
    say(
        f"model {bundle.spec.name} at {bundle.spec.mpp:g} µm/px on {detector.device}; {len(entries)} "
        f"slide{'s' * (len(entries) != 1)}"
    )
    out = Path(out)
    parameters = {
        "model": bundle.spec.weights_sha256,
        "thresholds": bundle.spec.thresholds.model_dump(mode="json"),
        "score_threshold": score_threshold,
        "foreground": foreground,
        "reader": reader,
        "mpp_override": mpp_override,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    with FolderLock(out):
        journal = open_journal(out, "infer", parameters, overwrite=overwrite)
        run = _Run(detector, out, journal, foreground, reader, mpp_override, on_progress, say)
        rows = [run.slide(entry, lone=len(entries) == 1) for entry in entries]
        if len(rows) > 1:
            _write_batch(out, rows, bundle.spec.net.classes, {"model": bundle.spec.name, **parameters})
    return InferResult(bundle.spec.name, str(out), rows)


@dataclass(frozen=True, slots=True)
class _Run:
    detector: Detector
    out: Path
    journal: Journal
    foreground: bool
    reader: str
    mpp_override: float | None
    on_progress: OnProgress
    say: Say

    def slide(self, entry: SlideEntry, *, lone: bool) -> InferredSlide:
        """One slide as one unit of the journal; what goes wrong becomes its row, unless it is the only one."""
        folder = self.out / entry.slide_id
        if self.journal.is_done(entry.slide_id):
            facts = self.journal.facts(entry.slide_id)
            return InferredSlide(
                entry.slide_id,
                "skipped",
                facts["objects"],
                facts["classes"],
                folder=str(folder),
                warnings=tuple(facts["warnings"]),
            )
        started = time.perf_counter()
        try:
            results, warnings = self._infer(entry, folder)
        except CytopipeError as error:
            if lone:
                raise
            return InferredSlide(entry.slide_id, "failed", error=str(error))
        counts = _counts(results)
        self.journal.finish(entry.slide_id, objects=len(results.objects), classes=counts, warnings=warnings)
        seconds = round(time.perf_counter() - started, 1)
        return InferredSlide(
            entry.slide_id, "done", len(results.objects), counts, seconds, str(folder), warnings=tuple(warnings)
        )

    def _infer(self, entry: SlideEntry, folder: Path) -> tuple[Results, list[str]]:
        spec = self.detector.bundle.spec
        clock = time.perf_counter()
        with open_slide(entry.path, reader=self.reader, mpp_override=entry.mpp or self.mpp_override) as slide:
            view = _view(slide, spec)
            warnings = _warnings(slide, view, spec.background)
            found_glass = find_foreground(slide) if self.foreground else None
            foreground_s = time.perf_counter() - clock
            findings = self.detector.locate(slide, view, foreground=found_glass, on_progress=self.on_progress)
            warnings += [f"a window could not be read and is not searched: {reason}" for reason in findings.unreadable]
            if len(findings.objects) == 0:
                warnings.append("no object was found on this slide")
            for line in warnings:
                self.say(f"{entry.slide_id}: {line}")
            clock = time.perf_counter()
            resolution = slide.resolution
            mpp = None if resolution is None else (resolution.mpp_x, resolution.mpp_y)
            results = write_results(
                folder, entry.slide_id, findings.objects, spec.net.classes, mpp=mpp, bounds_offset=slide.bounds_offset
            )
            seconds = {
                "foreground": round(foreground_s, 3),
                **findings.seconds,
                "write": round(time.perf_counter() - clock, 3),
            }
            facts = self._facts(entry, slide, view, findings, results, warnings, seconds)
            self._report(folder, slide, results, facts, warnings)
            write_run_json(folder, facts)
        return results, warnings

    def _facts(
        self,
        entry: SlideEntry,
        slide: Slide,
        view: MppView,
        findings: Findings,
        results: Results,
        warnings: list[str],
        seconds: dict[str, float],
    ) -> dict[str, Any]:
        bundle = self.detector.bundle
        return {
            "command": "infer",
            "cytopipe": __version__,
            "slide": {
                "slide_id": entry.slide_id,
                "file": slide.path.name,
                "reader": slide.reader,
                "vendor": slide.vendor,
                "size_px": list(slide.dimensions),
                "levels": len(slide.levels),
                "mpp": None if slide.resolution is None else [slide.resolution.mpp_x, slide.resolution.mpp_y],
                "mpp_evidence": None if slide.resolution is None else slide.resolution.source,
                "background": slide.background,
            },
            "model": {
                "name": bundle.spec.name,
                "weights_sha256": bundle.spec.weights_sha256,
                "mpp": bundle.spec.mpp,
                "mpp_read": view.mpp,
            },
            "thresholds": bundle.spec.thresholds.model_dump(mode="json"),
            "device": str(self.detector.device),
            "windows": {"grid": findings.windows, "run": findings.windows_run, "unreadable": len(findings.unreadable)},
            "counts": _counts(results),
            "objects": len(results.objects),
            "warnings": warnings,
            "seconds": seconds,
        }

    def _report(self, folder: Path, slide: Slide, results: Results, facts: dict[str, Any], warnings: list[str]) -> None:
        native = MppView(slide, None)  # pads what lies past the border

        def crop(box: tuple[float, float, float, float]) -> np.ndarray[Any, np.dtype[np.uint8]]:
            x0, y0, x1, y1 = (round(value) for value in box)
            return native.read(x0, y0, max(x1 - x0, 1), max(y1 - y0, 1))

        write_infer_report(
            folder / REPORT_NAME,
            results=results,
            thumbnail=thumbnail(slide, THUMBNAIL_PX),
            slide_size=slide.dimensions,
            crop=crop,
            slide_facts=facts["slide"],
            run_facts={key: facts[key] for key in ("model", "thresholds", "device", "windows", "seconds")},
            warnings=warnings,
        )


def _write_batch(out: Path, rows: list[InferredSlide], classes: Sequence[ObjectClass], facts: dict[str, Any]) -> None:
    """index.html and slides.csv of a run over several slides, in the order of the list."""
    pages = [
        IndexRow(
            row.slide_id,
            row.status,
            "" if row.status == "failed" else f"{row.slide_id}/{REPORT_NAME}",
            row.classes,
            len(row.warnings),
            row.error,
        )
        for row in rows
    ]
    write_index(out / INDEX_NAME, pages, title=out.resolve().name, facts=facts)
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    names = [c.name for c in classes]
    lines.writerow(("slide_id", "status", "objects", *names, "warnings", "error"))
    for row in rows:
        counts = [row.classes.get(name, 0) for name in names]
        lines.writerow((row.slide_id, row.status, row.objects, *counts, len(row.warnings), row.error))
    write_text(out / TABLE_NAME, text.getvalue())


def _check(entry: SlideEntry, spec: BundleSpec, reader: str, mpp_override: float | None) -> None:
    """Open a lone slide and plan its view, so that what is wrong with it is said before a folder is made."""
    with open_slide(entry.path, reader=reader, mpp_override=entry.mpp or mpp_override) as slide:
        _view(slide, spec)


def _view(slide: Slide, spec: BundleSpec) -> MppView:
    """The slide as the model sees it. Raises UserError where it has no resolution, or one that is too coarse."""
    try:
        return MppView(slide, spec.mpp)
    except UserError as error:
        if slide.resolution is None:
            raise
        fix = f"model {spec.name} needs slides of about {spec.mpp:g} µm/px or finer"
        raise UserError(error.what, where=error.where or str(slide.path), fix=fix) from error


def _warnings(slide: Slide, view: MppView, background: str) -> list[str]:
    lines = [*slide.notes, *([view.warning] if view.warning else [])]
    if slide.resolution is not None and slide.resolution.guessed:
        lines.append(f"the resolution is guessed: {slide.resolution.source}")
    if slide.background != background:
        lines.append(
            f"the slide has a {slide.background} background and the model was trained on {background} ones: expect "
            "nonsense"
        )
    return lines


def _counts(results: Results) -> dict[str, int]:
    seen = Counter(results.objects.class_index.tolist())
    return {c.name: seen.get(i, 0) for i, c in enumerate(results.classes)}
