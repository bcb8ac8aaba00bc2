"""Average precision of located objects, as COCO computes it (METHODS 3): equal to pycocotools to 1e-9.

Per class and threshold: results of all frames by falling score, greedy matching in each frame, precision made monotone
from the right, 101 recall points. Objects are compared by their boxes, or by masks where a frame brings their overlap.
A crowd absorbs results without penalty. A class without true objects has no AP
(NaN); a frame without any still gives false positives.
Differs  area ranges are half open [low, high) (METHODS 3); pycocotools includes both ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.boxes import box_areas
from cytopipe.metrics.mask_overlap import Overlap
from cytopipe.metrics.matching import F64, Bools, Pairs, match_by_score, overlapping_pairs

COCO_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())  # pycocotools 2.0, Params.setDetParams
AP10_70_THRESHOLDS: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)  # METHODS 3
RECALL_POINTS = np.linspace(0.0, 1.0, 101)
AREA_RANGES: dict[str, tuple[float, float]] = {  # METHODS 3; squared px of the evaluation image
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, float("inf")),
}
ANY_AREA = (0.0, float("inf"))


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One image, tile or slide: what was reported there, and what is true.

    boxes        (N, 4) float64 x0 y0 x1 y1, any unit of length
    labels       (N,) int, class 0..C-1
    scores       (N,) float
    true_boxes   (M, 4) float64, the same frame and unit
    true_labels  (M,) int, class 0..C-1
    crowd        (M,) bool: absorbs results, need not be found
    lenient      (N,) bool: without a partner this result is no false positive (it crosses the border of what the truth
                 covers); None: there are no such results
    overlap      of the masks of the N results and M true objects: IoU and areas are then theirs; None: the boxes'
    """

    boxes: F64
    labels: NDArray[np.integer]
    scores: NDArray[np.floating]
    true_boxes: F64
    true_labels: NDArray[np.integer]
    crowd: Bools
    lenient: Bools | None = None
    overlap: Overlap | None = None

    def __post_init__(self) -> None:
        n, m = len(self.boxes), len(self.true_boxes)
        expected = {
            "boxes": (n, 4),
            "labels": (n,),
            "scores": (n,),
            "true_boxes": (m, 4),
            "true_labels": (m,),
            "crowd": (m,),
        }
        if self.lenient is not None:
            expected["lenient"] = (n,)
        if self.overlap is not None and (len(self.overlap.areas), len(self.overlap.true_areas)) != (n, m):
            counts = f"{len(self.overlap.areas)} and {len(self.overlap.true_areas)}"
            raise ValueError(f"Frame.overlap: of {counts} masks, where {n} results and {m} true objects are")
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"Frame.{name}: expected {shape}, got {getattr(self, name).shape}")
        if not (
            np.isfinite(self.boxes).all() and np.isfinite(self.scores).all() and np.isfinite(self.true_boxes).all()
        ):
            raise ValueError("Frame: a box or a score is not finite")

    def pairs(self) -> Pairs:
        """Every pair of a result and a true object that overlap."""
        if self.overlap is not None:
            return self.overlap.pairs(self.crowd)
        return overlapping_pairs(self.boxes, self.true_boxes, self.crowd)

    def areas(self) -> tuple[F64, F64]:
        """Of the results (N,) and of the true objects (M,): px of their masks, or squared units of their boxes."""
        if self.overlap is not None:
            return self.overlap.areas, self.overlap.true_areas
        return box_areas(self.boxes), box_areas(self.true_boxes)


@dataclass(frozen=True, slots=True, eq=False)
class APResult:
    """Average precision of C classes at T thresholds.

    ap          (C, T) float64 in [0, 1]; NaN for a class without true objects
    recall      (C, T) float64: the share of true objects that any result reached; NaN likewise
    truths      (C,) int64: true objects that count (no crowds, inside the area range)
    thresholds  the T thresholds of IoU
    """

    ap: F64
    recall: F64
    truths: NDArray[np.int64]
    thresholds: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over thresholds and over the classes that have true objects (mAP); NaN if none has any."""
        return _mean(self.ap)

    @property
    def per_class(self) -> F64:
        """The mean over thresholds (C,); NaN for a class without true objects."""
        return np.asarray(self.ap.mean(axis=1), dtype=np.float64)

    def at(self, threshold: float) -> F64:
        """AP (C,) at one of the thresholds; ValueError if it is none of them."""
        near = np.flatnonzero(np.isclose(self.thresholds, threshold, rtol=0, atol=1e-9))
        if len(near) != 1:
            raise ValueError(f"no AP at IoU {threshold}: computed at {self.thresholds}")
        return self.ap[:, near[0]]

    def mean_at(self, threshold: float) -> float:
        """The mean of `at` over the classes that have true objects; NaN if none has any."""
        return _mean(self.at(threshold))


def average_precision(
    frames: Sequence[Frame],
    classes: int,
    thresholds: Sequence[float] = COCO_THRESHOLDS,
    *,
    max_detections: int | None = 100,
    area: tuple[float, float] = ANY_AREA,
) -> APResult:
    """AP of each class over all frames.

    classes         C; labels outside 0..C-1 are a ValueError.
    max_detections  results of each class that count in each frame, best first; None: all (whole slides).
    area            true objects outside [low, high), in squared units of the boxes or px of the masks, absorb results
                    but need not be found; results without a partner whose own area is outside are no false positives.
    Results of equal score keep the order of the frames and of the rows in them (stable sort).
    """
    for frame in frames:
        for labels in (frame.labels, frame.true_labels):
            if len(labels) and not (labels.min() >= 0 and labels.max() < classes):
                raise ValueError(f"a label outside 0..{classes - 1}")
    ap, recall = np.full((classes, len(thresholds)), np.nan), np.full((classes, len(thresholds)), np.nan)
    truths = np.zeros(classes, np.int64)
    all_pairs = [frame.pairs() for frame in frames]
    for c in range(classes):
        parts = [
            _of_class(frame, pairs, c, max_detections, area) for frame, pairs in zip(frames, all_pairs, strict=True)
        ]
        truths[c] = sum(int((~part.neutral).sum()) for part in parts)
        if truths[c] == 0:
            continue
        by_score = np.argsort(-np.concatenate([part.scores for part in parts]), kind="stable")
        for t, threshold in enumerate(thresholds):
            outcome = [part.outcome(threshold) for part in parts]
            hit = np.concatenate([matched for matched, _ in outcome])[by_score]
            counts = np.concatenate([counting for _, counting in outcome])[by_score]
            ap[c, t], recall[c, t] = _area_under(hit[counts], int(truths[c]))
    return APResult(ap, recall, truths, tuple(thresholds))


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """One class in one frame: results by falling score (N,), their pairs with true objects (M,)."""

    scores: NDArray[np.floating]
    pairs: Pairs
    neutral: Bools
    crowd: Bools
    forgiven: Bools  # (N,) results that are no false positives when they have no partner

    def outcome(self, threshold: float) -> tuple[Bools, Bools]:
        """(hit, counts), (N,) each: has a counting partner; is either a hit or a false positive."""
        matched, absorbed = match_by_score(self.pairs, np.arange(len(self.scores)), self.neutral, self.crowd, threshold)
        return matched, matched | ~(absorbed | self.forgiven)


def _of_class(frame: Frame, pairs: Pairs, label: int, max_detections: int | None, area: tuple[float, float]) -> _Part:
    mine = np.flatnonzero(frame.labels == label)
    mine = mine[np.argsort(-frame.scores[mine], kind="stable")][:max_detections]
    true = np.flatnonzero(frame.true_labels == label)
    row, column = np.full(len(frame.boxes), -1, np.intp), np.full(len(frame.true_boxes), -1, np.intp)
    row[mine], column[true] = np.arange(len(mine)), np.arange(len(true))
    result, truth = row[pairs.result], column[pairs.truth]
    keep = np.flatnonzero((result >= 0) & (truth >= 0))
    keep = keep[np.lexsort((truth[keep], result[keep]))]
    crowd = frame.crowd[true]
    areas, true_areas = frame.areas()
    forgiven = _outside(areas[mine], area)
    if frame.lenient is not None:
        forgiven = forgiven | frame.lenient[mine]
    neutral = crowd | _outside(true_areas[true], area)
    return _Part(frame.scores[mine], Pairs(result[keep], truth[keep], pairs.iou[keep]), neutral, crowd, forgiven)


def _outside(areas: F64, area: tuple[float, float]) -> Bools:
    return np.asarray((areas < area[0]) | (areas >= area[1]), dtype=np.bool_)


def _area_under(hit: Bools, truths: int) -> tuple[float, float]:
    """(AP, recall) of results in score order; `hit` (N,) says which of them are true."""
    true, reported = np.cumsum(hit), np.arange(1, len(hit) + 1)
    recall, precision = true / truths, true / reported
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, RECALL_POINTS, side="left")
    reached = at < len(precision)
    total = float(precision[at[reached]].sum())
    return total / len(RECALL_POINTS), float(recall[-1]) if len(recall) else 0.0


def _mean(values: F64) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")
