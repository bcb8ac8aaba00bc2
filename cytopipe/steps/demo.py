"""`demo`: the main job on a made-up slide, and with `full` the whole loop. What is true of the slides is known, so that
every cell can be counted.

OUT/slides     synthetic slides and their truth           OUT/results   what `infer` found, a folder a slide
OUT/picture.png   a part of the slide with what was found
and with `full`:  OUT/labelled, OUT/mined (stores), OUT/supervised, OUT/semi (runs = bundles), OUT/test-… (results and
                  evaluations)
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from cytopipe.core.boxes import F64
from cytopipe.core.classes import class_named
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.formats.qupath import read_qupath
from cytopipe.formats.results import Results, read_results, shapes_of
from cytopipe.metrics import Found, count_found
from cytopipe.report.picture import write_picture
from cytopipe.slides import MppView, open_slide
from cytopipe.steps.evaluate import evaluate
from cytopipe.steps.infer import infer
from cytopipe.steps.mine import mine_unlabeled
from cytopipe.steps.synth import SynthSlide, synth
from cytopipe.steps.tile import tile
from cytopipe.steps.train import train
from cytopipe.tiles import TileConfig

SIZE_PX = (8192, 8192)  # 4.2 mm² at 0.25 µm/px: about 1,250 cells
FULL_SIZE_PX = (3072, 3072)
FULL_LESIONS = 0.2  # far more than in life: a short run must see some of each class
LABELLED, VALIDATION, UNLABELLED, TEST = (
    range(4),
    range(4, 6),
    range(6, 10),
    range(10, 12),
)  # slides of the full demo, by number
FULL_TRAINING = [
    "train.iterations=160",
    "train.val_every=80",
    "train.val_tiles=8",
]  # [D] minutes on two cores, not hours
PICTURE_PX = (1400, 900)
SEMI_METHOD = "dual-alignment"


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What the command prints: lines for people, one document for programs."""

    lines: list[str]
    document: dict[str, Any]


def demo(
    out: Path | str = "demo",
    *,
    full: bool = False,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    on_progress: OnProgress = silent,
    say: Say = unsaid,
) -> DemoResult:
    """Make slides, find their cells, count against the truth. Each stage resumes; raises what the stages raise."""
    out = Path(out)
    stage = _Stages(out, seed, device, overwrite, on_progress, say)
    return stage.full() if full else stage.quick()


@dataclass(frozen=True, slots=True)
class _Stages:
    out: Path
    seed: int
    device: str
    overwrite: bool
    on_progress: OnProgress
    say: Say

    def quick(self) -> DemoResult:
        """One slide through the shipped model."""
        self.say("1 of 3: a synthetic slide")
        made = synth(self.out / "slides", size=SIZE_PX, seed=self.seed, **self._shared)
        slide = made.slides[0]
        self.say(f"2 of 3: looking for its {sum(slide.cells.values())} cells")
        inferred = infer([slide.path], self.out / "results", device=self.device, **self._shared)
        folder = Path(inferred.rows[0].folder)
        self.say("3 of 3: counting against the truth")
        results, counts = read_results(folder), _counts(read_results(folder), slide)
        picture = _picture(self.out / "picture.png", slide, results)
        lines = [
            *_count_lines(counts),
            f"slide    {slide.path}",
            f"report   {folder / 'report.html'}",
            f"QuPath   {folder / 'objects.geojson'}",
            f"picture  {picture}",
            "next: open the report in a browser, then cytopipe infer YOUR_SLIDE.svs",
        ]
        document = {
            "counts": _document(counts),
            "report": str(folder / "report.html"),
            "objects": str(folder / "objects.geojson"),
            "picture": str(picture),
        }
        return DemoResult(lines, document)

    def full(self) -> DemoResult:
        """The whole loop on small slides: tile, train, mine, train semi-supervised, evaluate both, infer with the
        better one.
        """
        self.say("1 of 7: twelve synthetic slides, one a patient")
        made = synth(
            self.out / "slides",
            slides=12,
            size=FULL_SIZE_PX,
            lesion_fraction=FULL_LESIONS,
            seed=self.seed,
            **self._shared,
        )
        slides = made.slides
        labelled = _slide_list(
            self.out / "labelled.csv",
            [(slides[i], "train") for i in LABELLED] + [(slides[i], "val") for i in VALIDATION],
        )
        self.say("2 of 7: tiles of the annotated ones")
        store = self.out / "labelled"
        tile([labelled], store, config=TileConfig(tile_px=1024), **self._shared)
        self.say("3 of 7: training, supervised")
        train("supervised", store, out=self.out / "supervised", recipe="supervised-small", **self._training)
        self.say("4 of 7: mining the slides without annotations")
        mined = self.out / "mined"
        mine_unlabeled(
            [slides[i].path for i in UNLABELLED],
            mined,
            model=self.out / "supervised",
            exclude=store,
            device=self.device,
            seed=self.seed,
            **self._shared,
        )
        self.say(f"5 of 7: training, {SEMI_METHOD}")
        train(SEMI_METHOD, store, mined, self.out / "semi", recipe=f"{SEMI_METHOD}-small", **self._training)
        self.say("6 of 7: both models on slides that neither has seen")
        truth = _truth_folder(self.out / "truth", [slides[i] for i in TEST])
        scores = {name: self._test(name, [slides[i].path for i in TEST], truth) for name in ("supervised", "semi")}
        better = max(scores, key=lambda name: scores[name])
        self.say(f"7 of 7: the better one, {better}, on the last slide")
        last = slides[TEST[-1]]
        inferred = infer([last.path], self.out / "results", model=self.out / better, device=self.device, **self._shared)
        folder = Path(inferred.rows[0].folder)
        counts = _counts(read_results(folder), last)
        picture = _picture(self.out / "picture.png", last, read_results(folder))
        lines = [
            *(
                f"{name:<11} AP at box IoU 0.5, mean over classes, on {len(TEST)} unseen slides: {value:.3f}"
                for name, value in scores.items()
            ),
            "a few minutes of training from random weights: the figures show that the loop closes, not which method is "
            "better",
            *_count_lines(counts),
            *(
                f"report   {path}"
                for path in (self.out / "supervised/report.html", self.out / "semi/report.html", folder / "report.html")
            ),
            f"QuPath   {folder / 'objects.geojson'}",
            f"picture  {picture}",
        ]
        return DemoResult(
            lines,
            {"map_50": scores, "better": better, "counts": _document(counts), "report": str(folder / "report.html")},
        )

    def _test(self, name: str, slides: list[Path], truth: Path) -> float:
        """mAP at box IoU 0.5 of a run on the test slides. Every result counts, however low its score: thresholds belong
        to the curve.
        """
        results = self.out / f"test-{name}"
        infer(list(slides), results, model=self.out / name, device=self.device, score_threshold=0.05, **self._shared)
        return float(evaluate(results, truth, overwrite=True, say=self.say).evaluation.map50)

    @property
    def _shared(self) -> dict[str, Any]:
        return {"overwrite": self.overwrite, "on_progress": self.on_progress, "say": self.say}

    @property
    def _training(self) -> dict[str, Any]:
        return {"device": self.device, "seed": self.seed, "overrides": FULL_TRAINING, **self._shared}


def _counts(results: Results, slide: SynthSlide) -> dict[str, Found]:
    """By kind of object: found, missed, doubled, false; boxes matched one to one at IoU 0.5."""
    truth, _ = read_qupath(slide.annotations, frame="slide")
    kinds = np.array([class_named(a.class_name).kind for a in truth])
    boxes: F64 = np.asarray(shapely.bounds(np.array([a.geometry for a in truth], object)), np.float64).reshape(-1, 4)
    of_result = (
        np.array([c.kind for c in results.classes])[results.objects.class_index]
        if len(results.objects)
        else np.zeros(0, str)
    )
    return {
        kind: count_found(boxes[kinds == kind], results.objects.xyxy[of_result == kind]) for kind in ("nucleus", "cell")
    }


def _count_lines(counts: dict[str, Found]) -> Iterable[str]:
    names = {"nucleus": "nuclei", "cell": "cells"}
    for kind, c in counts.items():
        true = c.found + c.missed
        yield (
            f"{names[kind]:<8} {c.found} of {true} found ({c.sensitivity:.1%}), {c.missed} missed, {c.doubled} "
            f"doubled, {c.false} false"
        )


def _document(counts: dict[str, Found]) -> dict[str, Any]:
    return {
        kind: {"found": c.found, "missed": c.missed, "doubled": c.doubled, "false": c.false}
        for kind, c in counts.items()
    }


def _picture(path: Path, slide: SynthSlide, results: Results) -> Path:
    """A part of the slide, where most cells are, at level 0 with the outlines of what was found."""
    with open_slide(slide.path) as opened:
        width, height = (min(a, b) for a, b in zip(PICTURE_PX, opened.dimensions, strict=True))
        centres = (results.objects.xyxy[:, :2] + results.objects.xyxy[:, 2:]) / 2
        x0, y0 = _densest(centres, opened.dimensions, (width, height))
        image = MppView(opened, None).read(x0, y0, width, height)
        mpp = opened.resolution.mpp if opened.resolution else None
    shapes = shapes_of(results.objects)
    near = (
        np.flatnonzero(shapely.intersects(shapes, shapely.box(x0, y0, x0 + width, y0 + height))) if len(shapes) else []
    )
    moved = [shapely.transform(shapes[i], lambda xy: xy - (x0, y0)) for i in near]
    names = [results.classes[results.objects.class_index[i]].name for i in near]
    write_picture(path, image, moved, names, mpp=mpp)
    return path


def _densest(centres: F64, size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """Corner of the window, of a grid of them, that holds most centres."""
    corners = [
        (x, y)
        for y in range(0, max(size[1] - window[1], 0) + 1, window[1])
        for x in range(0, max(size[0] - window[0], 0) + 1, window[0])
    ]
    held = [int(((centres >= corner) & (centres < np.add(corner, window))).all(axis=1).sum()) for corner in corners]
    return corners[int(np.argmax(held))]


def _slide_list(path: Path, rows: list[tuple[SynthSlide, str]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "slide_id", "patient", "split", "annotations"))
        writer.writerows([(s.path.resolve(), s.slide_id, s.patient, part, s.annotations.resolve()) for s, part in rows])
    return path


def _truth_folder(folder: Path, slides: list[SynthSlide]) -> Path:
    """The truths of some slides, alone in a folder, as `evaluate` takes them."""
    folder.mkdir(exist_ok=True)
    for slide in slides:
        (folder / slide.annotations.name).write_bytes(slide.annotations.read_bytes())
    return folder
