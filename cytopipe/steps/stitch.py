"""`stitch`: what another program's detector reports on overlapping windows, as one results folder a slide.

Enters: windows and predictions, checked as a whole before anything is written.  Leaves: the folders of `infer`
(DESIGN 7), each object once (DESIGN 6).
Lengths are level-0 px unless their name says window px.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from cytopipe._version import __version__
from cytopipe.core.classes import ObjectClass, class_named
from cytopipe.core.errors import UserError, nearest_fix
from cytopipe.core.files import FolderLock, disk_error, sha256_of
from cytopipe.core.journal import Journal, open_journal
from cytopipe.core.objects import JOINED, TRUNCATED, Objects, concatenate
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.formats.json_file import load_json
from cytopipe.formats.predictions import Predictions, category_names, read_predictions
from cytopipe.formats.results import write_results, write_run_json
from cytopipe.infer import GUARD_PX, PlacedWindows, Stitcher
from cytopipe.infer.reported import Reported, place_reported
from cytopipe.infer.stitching import SAME_IOU
from cytopipe.report.index_page import IndexRow, write_index, write_slides_csv
from cytopipe.report.infer_page import write_infer_report
from cytopipe.report.summary import summarise
from cytopipe.steps.window_sources import SlideWindows, WindowSource, open_windows

REPORT_NAME = "report.html"
INDEX_NAME, TABLE_NAME = "index.html", "slides.csv"  # of a run over several slides
_STITCH_EVERY = 64  # windows between two looks at what is final
_BRIEFLY = 5  # names in a line


@dataclass(frozen=True, slots=True)
class StitchedSlide:
    """One slide of a run: status done, or skipped (finished by an earlier run).

    detections        that lie on the slide
    clipped, outside  of them stuck out of their window; lay outside of it and were left out
    objects, classes  what they are, in all and by class
    joined, truncated objects made of pieces; pieces that found no other
    suspicion         of the slide, and how many of its objects are suspicious (`SlideSummary`)
    """

    slide_id: str
    status: Literal["done", "skipped"]
    windows: int
    detections: int
    objects: int
    classes: dict[str, int] = field(default_factory=dict)
    clipped: int = 0
    outside: int = 0
    joined: int = 0
    truncated: int = 0
    suspicion: float = 0.0
    suspicious: int = 0
    folder: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StitchResult:
    """The slides of a run, by name."""

    out: str
    rows: list[StitchedSlide]


def stitch(
    predictions: Path | str,
    windows: Path | str,
    out: Path | str = "results",
    *,
    slide_size: tuple[int, int] | None = None,
    tile_px: float | None = None,
    classes: Path | None = None,
    slides: Sequence[str | Path] = (),
    guard_px: float = GUARD_PX,
    iou: float = SAME_IOU,
    mpp_override: float | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
    say: Say = unsaid,
) -> StitchResult:
    """Stitch what a detector reported, and write `out`/SLIDE_ID for each slide (`out`/slide where none is named).

    predictions   COCO results, or Parquet, in px of the windows (`formats/predictions.py`)
    windows       a tile store; or a CSV or Parquet of windows in level-0 px (`formats/window_table.py`)
    slide_size    width and height in level-0 px; of a store, and of `slides`, it is known
    tile_px       side of a window in window px. None: the store's; else window px are level-0 px
    classes       JSON with the names of the categories; None: those of the predictions, of the store, or numbers
    slides        the slides themselves, where they are at hand: for the pictures of the report, size and resolution
    guard_px      band along inner edges in which a report is not trusted to be whole, window px
    iou           overlap from which two reports of different windows may be one object
    mpp_override  level-0 µm/px, for areas in µm²
    Raises UserError, before anything is written, for whatever cannot be meant.
    """
    if not 0 < iou <= 1 or not guard_px > 0 or (tile_px is not None and not tile_px > 0):
        raise ValueError(f"stitch: iou {iou}, guard_px {guard_px}, tile_px {tile_px}")
    predictions, windows, out = Path(predictions), Path(windows), Path(out)
    source = open_windows(windows, slide_size=slide_size, tile_px=tile_px, slides=slides, mpp_override=mpp_override)
    found = read_predictions(predictions)
    given = category_names(load_json(classes), str(classes)) if classes is not None else None
    known, class_index = _classes(found, given, source, predictions, say)
    at = _windows_of(found, source, predictions)
    if found.mended or found.empty:
        say(f"{found.mended} outlines were mended; {found.empty} enclose no area, and their box is taken")
    parts = [_Part(part, *_on_slide(part, found, class_index, at, predictions)) for part in source.slides]
    if len(found) and not any(len(part.reported.window) for part in parts):
        what = f"none of {len(found)} detections lies in its window"
        raise UserError(what, where=str(predictions), fix="say how large the windows are in their px with --tile-px")
    parameters = {
        "predictions": sha256_of(predictions),
        "windows": sha256_of(windows / "tiles.parquet" if windows.is_dir() else windows),
        "classes": [c.name for c in known],
        "slides": {part.of.slide_id: [*part.of.size, *(part.of.mpp or ())] for part in parts},
        "tile_px": source.tile_px,
        "guard_px": guard_px,
        "iou": iou,
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    with FolderLock(out):
        journal = open_journal(out, "stitch", parameters, overwrite=overwrite)
        facts = {"predictions": predictions.name, "windows": windows.name, "tile_px": source.tile_px}
        run = _Run(out, journal, known, guard_px, iou, facts, on_progress, say)
        rows = [run.slide(part) for part in parts]
        if len(rows) > 1:
            _write_batch(out, rows, known, {**facts, "guard_px": guard_px, "iou": iou})
    return StitchResult(str(out), rows)


@dataclass(frozen=True, slots=True)
class _Part:
    """One slide's windows, in the stitcher's order, and what was reported on them."""

    of: SlideWindows
    windows: PlacedWindows
    reported: Reported


@dataclass(frozen=True, slots=True)
class _Run:
    out: Path
    journal: Journal
    classes: tuple[ObjectClass, ...]
    guard_px: float
    iou: float
    facts: Mapping[str, Any]
    on_progress: OnProgress
    say: Say

    def slide(self, part: _Part) -> StitchedSlide:
        """One slide as one unit of the journal."""
        slide_id, folder = part.of.slide_id, self.out / part.of.slide_id
        detections = len(part.reported.window) + part.reported.outside
        if self.journal.is_done(slide_id):
            noted = {**self.journal.facts(slide_id)}
            noted["warnings"] = tuple(noted["warnings"])
            return StitchedSlide(slide_id, "skipped", len(part.windows), detections, folder=str(folder), **noted)
        clock = time.perf_counter()
        objects = self._stitched(part)
        warnings = self._warnings(part, objects)
        for line in warnings:
            self.say(f"{slide_id}: {line}")
        stitch_s = time.perf_counter() - clock
        clock = time.perf_counter()
        of = part.of
        results = write_results(
            folder, slide_id, objects, self.classes, mpp=of.mpp, bounds_offset=of.bounds_offset, size=of.size
        )
        summary = summarise(results, of.size)
        seen = Counter(results.objects.class_index.tolist())
        row: dict[str, Any] = {
            "objects": len(objects),
            "classes": {c.name: seen.get(k, 0) for k, c in enumerate(self.classes)},
            "clipped": part.reported.clipped,
            "outside": part.reported.outside,
            "joined": int((objects.flags == JOINED).sum()),
            "truncated": int((objects.flags == TRUNCATED).sum()),
            "suspicion": round(summary.suspicion, 6),
            "suspicious": summary.suspicious,
        }
        facts = {
            "command": "stitch",
            "cytopipe": __version__,
            "slide": {"slide_id": slide_id, "size_px": list(of.size), "mpp": None if of.mpp is None else list(of.mpp)},
            "input": dict(self.facts),
            "windows": len(part.windows),
            "detections": detections,
            "guard_px": self.guard_px,
            "iou": self.iou,
            **row,
            "warnings": warnings,
        }
        with of.pictures() as (picture, crop):
            write_infer_report(
                folder / REPORT_NAME,
                slide_id=slide_id,
                summary=summary,
                thumbnail=picture,
                crop=crop,
                slide_facts=facts["slide"],
                run_facts={key: facts[key] for key in ("input", "windows", "detections", "guard_px", "iou")},
                warnings=warnings,
                bounds_offset=of.bounds_offset,
            )
        seconds = {"stitch": round(stitch_s, 3), "write": round(time.perf_counter() - clock, 3)}
        write_run_json(folder, {**facts, "seconds": seconds})
        self.journal.finish(slide_id, **row, warnings=warnings)
        done = {**row, "warnings": tuple(warnings)}
        return StitchedSlide(slide_id, "done", len(part.windows), detections, folder=str(folder), **done)

    def _stitched(self, part: _Part) -> Objects:
        classes, total = len(self.classes), len(part.windows)
        stitcher = Stitcher(part.windows, self._guard(part), same_iou=self.iou)
        tables = []
        for k, views in part.reported.by_window(total, classes):
            stitcher.add(k, views)
            if (k + 1) % _STITCH_EVERY == 0:
                tables.append(stitcher.completed())
                self.on_progress(k + 1, total, "windows")
        tables.append(stitcher.finish())
        self.on_progress(total, total, "windows")
        return concatenate(tables, classes)

    def _guard(self, part: _Part) -> float:
        """The guard band in level-0 px: of windows of several scales, the coarsest decides."""
        return self.guard_px * float(part.of.scale.max())

    def _warnings(self, part: _Part, objects: Objects) -> list[str]:
        lines = list(part.of.notes)
        reported = part.reported
        if reported.clipped or reported.outside:
            lines.append(
                f"{reported.clipped} detections stuck out of their window and were cut; {reported.outside} lay outside "
                "of it or had no area, and are left out"
            )
        joined, truncated = (int((objects.flags == flag).sum()) for flag in (JOINED, TRUNCATED))
        largest = float((objects.xyxy[:, 2:] - objects.xyxy[:, :2]).max(initial=0.0))
        overlaps, guard = part.windows.overlaps_px(), self._guard(part)
        if len(overlaps) and len(objects) and overlaps.min() < largest + 2 * guard:
            lines.append(
                f"windows overlap by {overlaps.min():g} px, less than the largest object with a guard band on both "
                f"sides ({largest:.0f} + 2 x {guard:g} px): {joined} objects were joined from pieces, {truncated} are "
                "truncated"
            )
        elif joined or truncated:
            lines.append(f"{joined} objects were joined from pieces, {truncated} are truncated where no window was run")
        if not len(objects):
            lines.append("no object on this slide")
        return lines


def _write_batch(
    out: Path, rows: Sequence[StitchedSlide], classes: Sequence[ObjectClass], facts: Mapping[str, Any]
) -> None:
    """index.html and slides.csv of a run over several slides."""
    pages = [
        IndexRow(
            row.slide_id,
            "done",
            f"{row.slide_id}/{REPORT_NAME}",
            row.classes,
            row.suspicion,
            row.suspicious,
            warnings=len(row.warnings),
        )
        for row in rows
    ]
    names = [c.name for c in classes]
    write_index(out / INDEX_NAME, pages, names, title=out.resolve().name, facts=facts)
    write_slides_csv(out / TABLE_NAME, pages, names)


def _classes(
    found: Predictions, given: dict[str, str] | list[str] | None, source: WindowSource, path: Path, say: Say
) -> tuple[tuple[ObjectClass, ...], NDArray[np.int32]]:
    """The class list, and the class of each detection (N,)."""
    met = sorted(set(found.classes), key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))
    names: dict[str, str] | list[str] | None = given or dict(found.names) or [c.name for c in source.classes] or None
    if names is None:
        names = {name: name for name in met} or {"object": "object"}
    elif isinstance(names, list) and found.numbered:
        first = 0 if "0" in met else 1
        names = {str(number): name for number, name in enumerate(names, start=first)}
        say(f"categories are numbered from {first}: " + ", ".join(f"{k} is {v}" for k, v in names.items()))
    elif not found.numbered:
        listed = names if isinstance(names, list) else list(names.values())
        names = {name: name for name in (listed if given else dict.fromkeys([*listed, *met]))}
    unknown = [name for name in met if name not in names]
    if unknown:
        kind = "category" if found.numbered else "class"
        fix = nearest_fix(unknown[0], names, "known are") + "; --classes names them"
        raise UserError(f"{kind} {unknown[0]!r} has no name", where=str(path), fix=fix)
    order = list(dict.fromkeys(names.values()))
    index = {number: order.index(name) for number, name in names.items()}
    known = {c.name: c for c in source.classes}
    listed_classes = tuple(known.get(name) or class_named(name) for name in order)
    return listed_classes, np.array([index[name] for name in found.classes], dtype=np.int32)


def _windows_of(found: Predictions, source: WindowSource, path: Path) -> NDArray[np.intp]:
    """(N,) the row of WINDOWS that each detection is of."""
    at = np.array([source.row_of.get(name, -1) for name in found.windows], dtype=np.intp)
    unknown = np.flatnonzero(at < 0)
    if len(unknown):
        names = list(dict.fromkeys(found.windows[unknown]))
        shown = ", ".join(map(repr, names[:_BRIEFLY])) + (", ..." if len(names) > _BRIEFLY else "")
        what = f"{len(unknown)} detections are of windows that {source.where} does not hold: {shown}"
        raise UserError(what, where=str(path), fix=source.ids_are)
    return at


def _on_slide(
    part: SlideWindows, found: Predictions, class_index: NDArray[np.int32], at: NDArray[np.intp], path: Path
) -> tuple[PlacedWindows, Reported]:
    """The windows of a slide in the stitcher's order, and its detections placed on them."""
    width, height = part.size
    windows = PlacedWindows(part.boxes, width, height, border_px=float(part.scale.max()))
    place = np.full(int(part.rows.max()) + 1, -1, dtype=np.intp)
    place[part.rows[windows.order]] = np.arange(len(windows))
    here = np.flatnonzero(at < len(place))
    here = here[place[at[here]] >= 0]
    number = place[at[here]]
    scale, boxes = part.scale[windows.order], part.boxes[windows.order]
    sizes = found.image_size[here]
    expected = ((boxes[:, 2:] - boxes[:, :2]) / scale)[number]
    wrong = np.flatnonzero((sizes > 0).all(axis=1) & (np.abs(sizes - expected) >= 1).any(axis=1))
    if len(wrong):
        k = wrong[0]
        what = f"detection {here[k] + 1}: its mask is of {sizes[k, 0]} x {sizes[k, 1]} px, and its window has "
        what += f"{expected[k, 0]:g} x {expected[k, 1]:g}"
        raise UserError(what, where=str(path), fix="say how large the windows are in their px with --tile-px")
    reported = place_reported(
        number,
        class_index[here],
        found.score[here],
        found.boxes[here],
        found.geometry[here],
        corner=boxes[:, :2],
        scale=scale,
        shown=windows.boxes,
    )
    return windows, reported
