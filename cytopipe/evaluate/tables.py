"""The tables of an evaluation: each class and each kind of object, over all slides; and each slide.

Enters: what was located and what is true, slide by slide.  Leaves: numbers only, ready for JSON.
An object of a class counts as found when a result of that class reaches it; by kind (nucleus, cell, other) the lesion
class plays no part. Average precision ranks a class by the certainty of the class, a kind by the certainty that an
object is there. It sees only what the results hold: those below the score threshold of `infer` are missing from its
curve.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.classes import Kind, ObjectClass
from cytopipe.evaluate.area import INSIDE, OUTSIDE, placed
from cytopipe.evaluate.located import Located
from cytopipe.evaluate.truth import Truth
from cytopipe.metrics import (
    AP10_70_THRESHOLDS,
    COCO_THRESHOLDS,
    NOTHING_FOUND,
    APResult,
    Found,
    Frame,
    average_precision,
    count_found,
)


@dataclass(frozen=True, slots=True)
class Row:
    """One class or kind. Shares are in [0, 1]; NaN where undefined (no true object, no result, results without scores).

    name         of the class or kind
    truths       true objects that had to be found
    results      results that count
    ap50, ap, ap10_70          average precision at IoU 0.5, over 0.50:0.05:0.95, over 0.1 to 0.7
    found, missed, doubled, false, sensitivity, precision      as metrics/found.py, at the IoU and score threshold
    asked for
    """

    name: str
    truths: int
    results: int
    ap50: float
    ap: float
    ap10_70: float
    found: int
    missed: int
    doubled: int
    false: int
    sensitivity: float
    precision: float


@dataclass(frozen=True, slots=True)
class SlideCounts:
    """One slide, all kinds together: what it covers, true objects and results that count, and what became of them."""

    slide_id: str
    covers: str
    truths: int
    results: int
    found: int
    missed: int
    doubled: int
    false: int


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All tables.

    classes, kinds        a row a class of the model, a row a kind of it
    map50, map, map10_70  means over the classes that have true objects; NaN where none has
    slides                a row a slide
    unknown               class of the truth that the model does not know -> objects; they count by kind only
    other_kinds           class of the truth of a kind that the model does not locate -> objects; they do not count
    """

    classes: tuple[Row, ...]
    kinds: tuple[Row, ...]
    map50: float
    map: float
    map10_70: float
    slides: tuple[SlideCounts, ...]
    unknown: dict[str, int]
    other_kinds: dict[str, int]


def evaluate_slides(
    pairs: Sequence[tuple[Located, Truth]], classes: Sequence[ObjectClass], *, iou: float, score_threshold: float
) -> Evaluation:
    """Compare the results of each slide with its truth.

    classes          of the model, the same for all results
    iou              box IoU at which a result reaches a true object, for found, missed, doubled, false
    score_threshold  results of a lower score (of their kind) do not count there; the average precision takes all
    """
    names = [c.name for c in classes]
    kinds: list[str] = [kind for kind in get_args(Kind) if any(c.kind == kind for c in classes)]
    kind_of_class = np.array([kinds.index(c.kind) for c in classes], dtype=np.intp)
    sides = [_Side.of(located, truth, names, kinds, kind_of_class) for located, truth in pairs]
    has_scores = all(located.has_scores for located, _ in pairs)

    class_rows, class_ap = _rows(names, sides, "class", has_scores, iou, score_threshold)
    kind_rows, _ = _rows(kinds, sides, "kind", has_scores, iou, score_threshold)
    unknown: Counter[str] = Counter()
    other: Counter[str] = Counter()
    for _, truth in pairs:
        for name, count in Counter(truth.names.tolist()).items():
            if truth.classes[name].kind not in kinds:
                other[name] += count
            elif name not in names:
                unknown[name] += count
    slides = tuple(
        _slide_counts(located, truth, side, len(kinds), iou, score_threshold)
        for (located, truth), side in zip(pairs, sides, strict=True)
    )
    coco, low = class_ap
    means = (coco.mean_at(0.5), coco.mean, low.mean) if has_scores else (float("nan"),) * 3
    return Evaluation(class_rows, kind_rows, *means, slides, dict(sorted(unknown.items())), dict(sorted(other.items())))


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    """One slide, both sides, only what counts. Labels of a true object are -1 where the model has no such class or
    kind."""

    boxes: NDArray[np.float64]
    class_label: NDArray[np.intp]
    kind_label: NDArray[np.intp]
    class_score: NDArray[np.float64]
    score: NDArray[np.float64]
    lenient: NDArray[np.bool_]
    true_boxes: NDArray[np.float64]
    true_class: NDArray[np.intp]
    true_kind: NDArray[np.intp]
    crowd: NDArray[np.bool_]

    @classmethod
    def of(
        cls, located: Located, truth: Truth, names: list[str], kinds: list[str], kind_of_class: NDArray[np.intp]
    ) -> _Side:
        place = placed(located.shapes, truth.area)
        counted = located.take(place != OUTSIDE)
        class_at = {name: i for i, name in enumerate(names)}
        kind_at = {kind: i for i, kind in enumerate(kinds)}
        return cls(
            counted.boxes,
            counted.class_index,
            kind_of_class[counted.class_index],
            counted.class_score,
            counted.score,
            place[place != OUTSIDE] != INSIDE,
            truth.boxes,
            np.array([class_at.get(name, -1) for name in truth.names], dtype=np.intp),
            np.array([kind_at.get(truth.classes[name].kind, -1) for name in truth.names], dtype=np.intp),
            truth.crowd,
        )

    def frame(self, by: str) -> Frame:
        """The slide as `average_precision` takes it, by class or by kind."""
        true_label = self.true_class if by == "class" else self.true_kind
        known = true_label >= 0
        return Frame(
            self.boxes,
            self.class_label if by == "class" else self.kind_label,
            self.class_score if by == "class" else self.score,
            self.true_boxes[known],
            true_label[known],
            self.crowd[known],
            self.lenient,
        )

    def found(self, by: str, label: int, iou: float, score_threshold: float) -> tuple[Found, int]:
        """What became of the true objects of one label, and how many results count for it."""
        frame = self.frame(by)
        mine = (frame.labels == label) & (self.score >= score_threshold)
        true = frame.true_labels == label
        lenient = self.lenient[mine]
        counts = count_found(frame.true_boxes[true], frame.boxes[mine], iou, crowd=frame.crowd[true], lenient=lenient)
        return counts, counts.found + counts.doubled + counts.false


def _rows(
    names: Sequence[str], sides: Sequence[_Side], by: str, has_scores: bool, iou: float, score_threshold: float
) -> tuple[tuple[Row, ...], tuple[APResult, APResult]]:
    frames = [side.frame(by) for side in sides]
    coco, low = (
        average_precision(frames, len(names), thresholds, max_detections=None)
        for thresholds in (COCO_THRESHOLDS, AP10_70_THRESHOLDS)
    )
    rows = []
    for label, name in enumerate(names):
        counts, results = NOTHING_FOUND, 0
        for side in sides:
            more, counted = side.found(by, label, iou, score_threshold)
            counts, results = counts + more, results + counted
        ap = (coco.at(0.5), coco.per_class, low.per_class)
        ap50, mean, mean_low = (float(values[label]) if has_scores else float("nan") for values in ap)
        rows.append(
            Row(
                name,
                counts.found + counts.missed,
                results,
                ap50,
                mean,
                mean_low,
                counts.found,
                counts.missed,
                counts.doubled,
                counts.false,
                counts.sensitivity,
                counts.precision,
            )
        )
    return tuple(rows), (coco, low)


def _slide_counts(
    located: Located, truth: Truth, side: _Side, kinds: int, iou: float, score_threshold: float
) -> SlideCounts:
    counts, results = NOTHING_FOUND, 0
    for label in range(kinds):
        more, counted = side.found("kind", label, iou, score_threshold)
        counts, results = counts + more, results + counted
    truths = counts.found + counts.missed
    return SlideCounts(
        located.slide_id, truth.covers, truths, results, counts.found, counts.missed, counts.doubled, counts.false
    )
