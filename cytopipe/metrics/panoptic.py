"""Panoptic quality of one class: how well objects are found, times how well they are outlined.

Pairs are those of IoU above 0.5. Where instances of one side overlap each other, several pairs may compete: the
one-to-one assignment of largest total IoU is taken.

Source   Kirillov et al., CVPR 2019, section 4: PQ = Σ IoU / (TP + FP/2 + FN/2) = SQ · RQ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from cytopipe.metrics.mask_overlap import Overlap

LEAST_IOU = 0.5  # a pair lies above it


@dataclass(frozen=True, slots=True)
class Panoptic:
    """Counts of one class in one image, or summed over images by `+`.

    iou    sum over the pairs
    true   pairs;  false, missed: results and true objects without one
    """

    iou: float = 0.0
    true: int = 0
    false: int = 0
    missed: int = 0

    def __add__(self, other: Panoptic) -> Panoptic:
        return Panoptic(
            self.iou + other.iou, self.true + other.true, self.false + other.false, self.missed + other.missed
        )

    @property
    def quality(self) -> float:
        """PQ in [0, 1]; NaN without any object on either side."""
        weight = self.true + (self.false + self.missed) / 2
        return self.iou / weight if weight else math.nan

    @property
    def segmentation(self) -> float:
        """SQ: mean IoU of the pairs; NaN without any."""
        return self.iou / self.true if self.true else math.nan

    @property
    def recognition(self) -> float:
        """RQ: the F1 of finding; NaN without any object on either side."""
        weight = self.true + (self.false + self.missed) / 2
        return self.true / weight if weight else math.nan


def count_panoptic(found: Overlap) -> Panoptic:
    """Pairs and what is left over, of one class in one image."""
    iou = found.iou
    near = iou > LEAST_IOU
    rows, row = np.unique(found.result[near], return_inverse=True)
    columns, column = np.unique(found.truth[near], return_inverse=True)
    gain = np.zeros((len(rows), len(columns)))
    gain[row, column] = iou[near]
    chosen = gain[linear_sum_assignment(gain, maximize=True)]
    pairs = int(np.count_nonzero(chosen))
    return Panoptic(float(chosen.sum()), pairs, len(found.areas) - pairs, len(found.true_areas) - pairs)


def pooled(parts: Iterable[Panoptic]) -> Panoptic:
    """The counts of a whole set: its `quality` is `pq`; the mean of the images' own is `pq_img`."""
    return sum(parts, start=Panoptic())
