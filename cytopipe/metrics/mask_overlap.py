"""Masks of objects, cut to their own boxes, and by how much those of a result and of the truth overlap.

Enters: masks on one canvas, px.  Leaves: pairs with the px they share, and areas. Instances may overlap each other:
everything is per pair of masks, never on a label map (METHODS 3).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.metrics.matching import F64, Bools, Index, Pairs

I64 = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Masks:
    """N masks, each as the bits of a box: a tile of 300 cells is a few hundred small arrays, not 300 canvases.

    corners  (N, 2) int64, x y of the box's upper left, px of the canvas
    bits     N arrays (h, w) bool, the pixels of the box; none of either where a mask is empty
    """

    corners: I64
    bits: tuple[Bools, ...]

    def __post_init__(self) -> None:
        if self.corners.shape != (len(self.bits), 2):
            raise ValueError(f"Masks: {len(self.bits)} masks, corners {self.corners.shape}")

    def __len__(self) -> int:
        return len(self.bits)

    @property
    def areas(self) -> F64:
        """(N,) float64, px."""
        return np.array([np.count_nonzero(bits) for bits in self.bits], dtype=np.float64)

    @property
    def boxes(self) -> F64:
        """(N, 4) float64 x0 y0 x1 y1 of the arrays, px of the canvas, half open."""
        sizes = np.array([(bits.shape[1], bits.shape[0]) for bits in self.bits], dtype=np.int64).reshape(-1, 2)
        return np.concatenate([self.corners, self.corners + sizes], axis=1).astype(np.float64)

    def take(self, index: Index | Bools) -> Masks:
        """The masks of an index or of a mask (N,), in that order."""
        chosen = np.arange(len(self.bits))[index]
        return Masks(self.corners[chosen], tuple(self.bits[i] for i in chosen.tolist()))


def masks_of(canvases: Iterable[NDArray[np.generic]]) -> Masks:
    """Masks from whole canvases (h, w), each of zeros and others."""
    corners, bits = [], []
    for canvas in canvases:
        inside = np.asarray(canvas, dtype=np.bool_)
        rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
        if len(rows):
            corners.append((int(columns[0]), int(rows[0])))
            bits.append(inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].copy())
        else:
            corners.append((0, 0))
            bits.append(np.zeros((0, 0), dtype=np.bool_))
    return Masks(np.array(corners, dtype=np.int64).reshape(-1, 2), tuple(bits))


@dataclass(frozen=True, slots=True, eq=False)
class Overlap:
    """What the masks of results (N) and of true objects (M) share.

    result, truth  (K,) index pairs that share a pixel, sorted by result, then by truth
    shared         (K,) float64 px in both
    areas          (N,) float64 px;  true_areas (M,) likewise
    """

    result: Index
    truth: Index
    shared: F64
    areas: F64
    true_areas: F64

    @property
    def iou(self) -> F64:
        """(K,) intersection over union, in (0, 1]."""
        union = self.areas[self.result] + self.true_areas[self.truth] - self.shared
        return np.asarray(self.shared / union, dtype=np.float64)

    def pairs(self, crowd: Bools) -> Pairs:
        """The pairs as `average_precision` matches them; by a crowd (M,), over the area of the result (COCO)."""
        alone = self.shared / self.areas[self.result]
        return Pairs(self.result, self.truth, np.where(crowd[self.truth], alone, self.iou))


def overlap(masks: Masks, true_masks: Masks) -> Overlap:
    """All pairs of a result and a true object that share a pixel, found through a tree of their boxes."""
    areas, true_areas = masks.areas, true_masks.areas
    none = np.zeros(0, dtype=np.intp)
    if not len(masks) or not len(true_masks):
        return Overlap(none, none, np.zeros(0), areas, true_areas)
    tree = shapely.STRtree(shapely.box(*true_masks.boxes.T))
    result, truth = tree.query(shapely.box(*masks.boxes.T))
    shared = np.array([_shared(masks, r, true_masks, t) for r, t in zip(result, truth, strict=True)], dtype=np.float64)
    order = np.lexsort((truth, result))
    order = order[shared[order] > 0]
    return Overlap(result[order].astype(np.intp), truth[order].astype(np.intp), shared[order], areas, true_areas)


def _shared(a: Masks, i: int, b: Masks, j: int) -> int:
    (ax, ay), (bx, by) = a.corners[i].tolist(), b.corners[j].tolist()
    first, second = a.bits[i], b.bits[j]
    x0, y0 = max(ax, bx), max(ay, by)
    x1 = min(ax + first.shape[1], bx + second.shape[1])
    y1 = min(ay + first.shape[0], by + second.shape[0])
    if x1 <= x0 or y1 <= y0:
        return 0
    here = first[y0 - ay : y1 - ay, x0 - ax : x1 - ax]
    there = second[y0 - by : y1 - by, x0 - bx : x1 - bx]
    return int(np.count_nonzero(here & there))
