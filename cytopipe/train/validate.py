"""Validation: a network's answers on the tiles of the validation part, the metrics that choose a checkpoint, and the
thresholds of the bundle.

Tiles are read whole, as inference reads windows. Truth and results are compared by boxes, tile px.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.boxes import F64
from cytopipe.data import TilePool
from cytopipe.infer.predict import Located, locate_in
from cytopipe.metrics import (
    AP10_70_THRESHOLDS,
    COCO_THRESHOLDS,
    Frame,
    average_precision,
    match_by_score,
    overlapping_pairs,
)
from cytopipe.nets import DetNet

MAX_DETECTIONS = 300  # a dense tile holds more than COCO's 100 (METHODS 3)
SCORE_FLOOR = 0.05  # results below are not worth matching
BATCH_TILES = 2


@dataclass(frozen=True, slots=True)
class Validation:
    """metrics by name in [0, 1] (NaN left out); thresholds: the score of best F1 at box IoU 0.5, by kind."""

    metrics: dict[str, float]
    thresholds: dict[str, float]


def validate(net: DetNet, pool: TilePool, most: int) -> Validation:
    """Metrics on up to `most` tiles of the pool, evenly chosen and the same each time. The network is used in eval mode
    and given back as it was.
    """
    chosen = np.unique(np.linspace(0, len(pool) - 1, min(most, len(pool))).round().astype(int))
    was_training = net.training
    net.eval()
    frames = []
    for start in range(0, len(chosen), BATCH_TILES):
        part = [int(i) for i in chosen[start : start + BATCH_TILES]]
        answers = locate_in(net, [pool.image(i) for i in part], score_threshold=SCORE_FLOOR)
        frames += [_frame(pool, i, answer) for i, answer in zip(part, answers, strict=True)]
    net.train(was_training)
    return Validation(_metrics(frames, net), {kind: cut for kind, (cut, _) in _best_cuts(frames, net).items()})


def _frame(pool: TilePool, index: int, answer: Located) -> Frame:
    objects = pool.objects(index)
    truth = shapely.bounds(objects.geometry).reshape(-1, 4)
    return Frame(
        answer.boxes,
        answer.labels - 1,
        answer.scores,
        np.asarray(truth, np.float64),
        objects.labels - 1,
        np.zeros(len(truth), bool),
    )


def _metrics(frames: list[Frame], net: DetNet) -> dict[str, float]:
    names = [c.name for c in net.spec.classes]
    result: dict[str, float] = {}
    for key, thresholds in (("map_50", (0.5,)), ("map_10_70", AP10_70_THRESHOLDS), ("map_coco", COCO_THRESHOLDS)):
        ap = average_precision(frames, len(names), thresholds, max_detections=MAX_DETECTIONS)
        result[key] = ap.mean
        if key != "map_coco":
            result |= {
                f"{key.removeprefix('m')}/{name}": float(value) for name, value in zip(names, ap.per_class, strict=True)
            }
    result |= {f"f1_50/{kind}": f1 for kind, (_, f1) in _best_cuts(frames, net).items()}
    return {key: float(value) for key, value in result.items() if np.isfinite(value)}


def _best_cuts(frames: list[Frame], net: DetNet) -> dict[str, tuple[float, float]]:
    """kind -> (score of the best F1 at box IoU 0.5, that F1), whatever the class within the kind; 0.5 where the kind
    has no truth.
    """
    cuts = {}
    for group in net.spec.kinds:
        scores, hits, truths = [], [], 0
        for frame in frames:
            mine, true = np.isin(frame.labels, group), np.isin(frame.true_labels, group)
            hit = _hits(frame.boxes[mine], frame.scores[mine], frame.true_boxes[true])
            scores.append(frame.scores[mine])
            hits.append(hit)
            truths += int(true.sum())
        cuts[net.spec.classes[group[0]].kind] = _best_f1(np.concatenate(scores), np.concatenate(hits), truths)
    return cuts


def _hits(boxes: F64, scores: NDArray[np.floating], truth: F64) -> NDArray[np.bool_]:
    none = np.zeros(len(truth), bool)
    order = np.argsort(-scores, kind="stable")
    matched, _ = match_by_score(overlapping_pairs(boxes, truth, none), order, none, none, 0.5)
    return matched


def _best_f1(scores: NDArray[np.floating], hits: NDArray[np.bool_], truths: int) -> tuple[float, float]:
    if truths == 0 or len(scores) == 0:
        return 0.5, 0.0
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hits[order])
    f1 = 2 * found / (np.arange(1, len(order) + 1) + truths)
    best = int(f1.argmax())
    return round(float(scores[order][best]), 4), float(f1[best])
