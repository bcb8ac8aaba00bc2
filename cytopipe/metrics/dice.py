"""Overlap of a class map with the truth, pixel by pixel, for one image and one foreground class (METHODS 3).

Means are over images, never over pooled counts: in the tables of CDCL and of MSPA JC exceeds DC/(2 − DC), which only
means over images can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytopipe.metrics.matching import Bools

IGNORED = 255  # pixels of a class map that nobody annotated


@dataclass(frozen=True, slots=True)
class PixelScores:
    """Scores of one class in one image, [0, 1]; NaN where undefined.

    dice     2TP / (2TP + FP + FN);  jaccard  TP / (TP + FP + FN)
    acc      (TP + TN) / all;  sp  TN / (TN + FP), NaN without negatives
    se       TP / (TP + FN), NaN where only the truth is empty

    Truth and result empty: dice, jaccard and se are 1. One of them empty: dice and jaccard are 0.
    """

    dice: float
    jaccard: float
    acc: float
    sp: float
    se: float


def pixel_scores(found: Bools, true: Bools, seen: Bools | None = None) -> PixelScores:
    """Scores of two masks (H, W) of one class; `seen` leaves out what nobody annotated.

    Raises ValueError for masks of different shapes.
    """
    if found.shape != true.shape:
        raise ValueError(f"pixel_scores: found {found.shape}, true {true.shape}")
    if seen is not None:
        found, true = found[seen], true[seen]
    tp = int(np.count_nonzero(found & true))
    fp, fn = int(np.count_nonzero(found)) - tp, int(np.count_nonzero(true)) - tp
    tn = found.size - tp - fp - fn
    nothing = tp + fp + fn == 0
    return PixelScores(
        dice=1.0 if nothing else 2 * tp / (2 * tp + fp + fn),
        jaccard=1.0 if nothing else tp / (tp + fp + fn),
        acc=_ratio(tp + tn, found.size),
        sp=_ratio(tn, tn + fp),
        se=1.0 if nothing else _ratio(tp, tp + fn),
    )


def class_scores(
    found: NDArray[np.integer], true: NDArray[np.integer], classes: int, ignored: int = IGNORED
) -> list[PixelScores]:
    """Scores of each foreground class 1..C of one image; class maps (H, W), 0 is background.

    Raises ValueError for a label of the truth that is neither 0..C nor `ignored`.
    """
    seen = true != ignored
    if true[seen].size and not 0 <= int(true[seen].min()) <= int(true[seen].max()) <= classes:
        raise ValueError(f"class_scores: a true label outside 0..{classes}")
    return [pixel_scores(found == label, true == label, seen) for label in range(1, classes + 1)]


def mean_scores(images: Sequence[PixelScores]) -> Mapping[str, float]:
    """The mean of each score over images, those left out where it is undefined; NaN where it is so in all."""
    return {name: _mean([getattr(scores, name) for scores in images]) for name in PixelScores.__slots__}


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
