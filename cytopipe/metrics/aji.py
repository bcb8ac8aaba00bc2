"""Aggregated Jaccard index of one image and class, in the two forms of METHODS 3.

`aji`    Kumar et al., TMI 2017, algorithm 1: each true object takes the result of highest IoU.
`aji50`  what MMT-PSM's code computes [C]: each takes the free result of highest IoU, if that is at least 0.5.

Enters: the overlap of results and truth.  Leaves: a number in [0, 1]; NaN where neither holds an object, 0 where only
one does. Instances may overlap: intersections and unions are per pair of masks.
"""

from __future__ import annotations

import math

import numpy as np

from cytopipe.metrics.mask_overlap import Overlap

LEAST_IOU = 0.5  # of aji50 [C]
LEAST_SCORE = 0.5  # of a result that counts [A]; METHODS 3
MOST_RESULTS = 200  # an image or tile, best first [C]; whole slides have no cap


def aji_of(found: Overlap) -> float:
    """Kumar's index: any IoU above 0 makes a pair, and one result may be used by several true objects.

    The area of results that no true object took is added to the union. At equal IoU the first result is taken.
    """
    return _index(found, 0.0, once=False)


def aji50_of(found: Overlap) -> float:
    """The index with a threshold of 0.5, each result used once; true objects choose in their order.

    Areas of all unmatched objects, true or reported, are added to the union.
    """
    return _index(found, LEAST_IOU, once=True)


def _index(found: Overlap, least_iou: float, *, once: bool) -> float:
    results, truths = len(found.areas), len(found.true_areas)
    if results == 0 and truths == 0:
        return math.nan
    used = np.zeros(results, dtype=np.bool_)
    shared = union = 0.0
    iou = found.iou
    by_truth = np.lexsort((found.result, found.truth))
    starts = np.searchsorted(found.truth[by_truth], np.arange(truths + 1))
    for t in range(truths):
        candidates = by_truth[starts[t] : starts[t + 1]]
        if once:
            candidates = candidates[~used[found.result[candidates]]]
        best = int(candidates[iou[candidates].argmax()]) if len(candidates) else -1
        if best < 0 or iou[best] < least_iou:
            union += float(found.true_areas[t])
            continue
        used[found.result[best]] = True
        shared += float(found.shared[best])
        union += float(found.areas[found.result[best]] + found.true_areas[t] - found.shared[best])
    union += float(found.areas[~used].sum())
    return shared / union if union > 0 else math.nan
