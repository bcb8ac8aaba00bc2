"""Found, missed, doubled, false: what became of each true object, and of each result, at one threshold of IoU.

Pairs are one to one and as many as possible (`match_one_to_one`), so that the four numbers depend neither on the order
of the boxes nor on ties, and scores play no part. found + missed are the true objects; found + doubled + false the
results.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cytopipe.metrics.matching import F64, Bools, match_one_to_one, overlapping_pairs


@dataclass(frozen=True, slots=True)
class Found:
    """Counts; add two to pool two slides.

    found    true objects with a result of their own
    missed   true objects without
    doubled  further results on a true object that has its own already
    false    results that reach no true object
    """

    found: int
    missed: int
    doubled: int
    false: int

    def __add__(self, other: Found) -> Found:
        return Found(
            self.found + other.found, self.missed + other.missed, self.doubled + other.doubled, self.false + other.false
        )

    @property
    def sensitivity(self) -> float:
        """found / true objects; NaN without any."""
        return _share(self.found, self.found + self.missed)

    @property
    def precision(self) -> float:
        """found / results; NaN without any."""
        return _share(self.found, self.found + self.doubled + self.false)


NOTHING_FOUND = Found(0, 0, 0, 0)


def count_found(
    true_boxes: F64, boxes: F64, iou: float = 0.5, *, crowd: Bools | None = None, lenient: Bools | None = None
) -> Found:
    """Match boxes (N, 4) with true_boxes (M, 4), float64, one frame, one class or kind, and count.

    iou      a pair needs at least this much, in (0, 1].
    crowd    (M,) true objects that need not be found: a result of which at least `iou` lies in one is neither doubled
             nor false.
    lenient  (N,) results that are neither doubled nor false when they stay without a partner.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou must lie in (0, 1], got {iou}")
    is_crowd = np.zeros(len(true_boxes), bool) if crowd is None else crowd
    pairs = overlapping_pairs(boxes, true_boxes, is_crowd)
    pairs = pairs.where(pairs.iou >= min(iou, 1 - 1e-10))
    in_crowd = is_crowd[pairs.truth]
    partners = pairs.where(~in_crowd)
    partner = match_one_to_one(partners, len(boxes), len(true_boxes))
    left = partner < 0
    left[pairs.result[in_crowd]] = False
    if lenient is not None:
        left &= ~lenient
    reaches = np.zeros(len(boxes), bool)
    reaches[partners.result] = True  # all its true objects are taken, or the matching would have one pair more
    found = int((partner >= 0).sum())
    return Found(found, int((~is_crowd).sum()) - found, int((left & reaches).sum()), int((left & ~reaches).sum()))


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
