"""Test-time augmentation: the same window looked at flipped and turned, and the answers brought into one.

Enters: a predictor, and which orientations it is asked in.  Leaves: a predictor of the same form.
An orientation is one of the eight symmetries of the square, which move pixels and never resample them. Boxes and masks
are turned back by the same symmetry, so that nothing but the network's own asymmetry is left.

Rule  Detections of one kind from different orientations are one object if their boxes overlap by IoU >= `same_iou`,
      taken greedily from the best score on, one of each orientation at most (the nearest by IoU). The object has the
      mean box and the mean mask of those that saw it, and the mean class scores over all orientations: one that did
      not see it counts 0, which is what doubts are for. Then the network's suppression is applied once more.
      Where all orientations agree, this is what one of them says, to the bit: their number is 1, 4 or 8, and the mean
      of so many equal numbers is exact.
Source  [D]; merging in the manner of weighted boxes fusion (Solovyev et al. 2021), one to one as in DESIGN 6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cytopipe.core.boxes import F64, box_iou
from cytopipe.infer.located import U8, Located, Predictor

Tta = Literal["off", "flips", "turns", "all"]

FLOOR_SHARE = 0.5  # [D] of the least score: below it the views are asked, since a mean may lift what one of them doubts


@dataclass(frozen=True, slots=True)
class Orientation:
    """So many quarter turns to the left, after a flip of left and right where `mirrored`."""

    quarter_turns: int
    mirrored: bool

    def turned(self, image: U8) -> U8:
        """A square image (S, S, ...) in this orientation."""
        seen = image[:, ::-1] if self.mirrored else image
        return np.ascontiguousarray(np.rot90(seen, self.quarter_turns))

    def turned_back(self, found: Located, side_px: float) -> Located:
        """What was found in the turned image, in px of the image itself; both are `side_px` wide and high."""
        x0, y0, x1, y1 = found.boxes.T
        for _ in range(self.quarter_turns % 4):  # a turn to the right moves (x, y) to (side - y, x)
            x0, y0, x1, y1 = side_px - y1, x0, side_px - y0, x1
        masks = found.masks
        if masks is not None:
            masks = np.rot90(masks, -self.quarter_turns, axes=(1, 2))
        if self.mirrored:
            x0, x1 = side_px - x1, side_px - x0
            masks = None if masks is None else masks[:, :, ::-1]
        boxes = np.stack([x0, y0, x1, y1], axis=1)
        masks = None if masks is None else np.ascontiguousarray(masks)
        return Located(boxes, found.scores, found.labels, found.class_scores, masks)


ORIENTATIONS: dict[Tta, tuple[Orientation, ...]] = {
    "off": (Orientation(0, False),),
    "flips": tuple(Orientation(turns, mirrored) for mirrored in (False, True) for turns in (0, 2)),
    "turns": tuple(Orientation(turns, False) for turns in range(4)),
    "all": tuple(Orientation(turns, mirrored) for mirrored in (False, True) for turns in range(4)),
}
"""Flips: left and right, up and down, both. Turns: by 0, 90, 180 and 270 degrees. All: every symmetry of the square."""


@dataclass(frozen=True, slots=True)
class Augmented:
    """A predictor asked in several orientations.

    kinds        class indices by kind, as in `NetSpec.kinds`
    same_iou     box IoU from which on two detections are one object, and above which they suppress each other
    least_score  what the mean must reach
    most         most detections a window
    """

    predictor: Predictor
    orientations: tuple[Orientation, ...]
    kinds: tuple[tuple[int, ...], ...]
    same_iou: float
    least_score: float
    most: int

    def __call__(self, images: Sequence[U8]) -> list[Located]:
        """What each square image holds, all orientations considered. Raises ValueError for one that is not square."""
        height, width = images[0].shape[:2]
        if height != width:
            raise ValueError(f"Augmented: windows of {width} x {height} px cannot be turned")
        answers = [
            [o.turned_back(found, width) for found in self.predictor([o.turned(image) for image in images])]
            for o in self.orientations
        ]
        return [
            merged(of_image, self.kinds, self.same_iou, self.least_score).first(self.most)
            for of_image in zip(*answers, strict=True)
        ]


def merged(answers: Sequence[Located], kinds: Sequence[Sequence[int]], same_iou: float, least_score: float) -> Located:
    """What several answers about one image say together, best first: see the rule above."""
    from_view = np.concatenate([np.full(len(found), k) for k, found in enumerate(answers)])
    pooled = _concatenated(answers)
    kept = [_of_kind(pooled, from_view, kind, len(answers), same_iou) for kind in kinds]
    everything = _concatenated(kept)
    everything = everything.take(everything.scores >= least_score)
    return everything.take(np.argsort(-everything.scores, kind="stable"))


def _of_kind(pooled: Located, from_view: np.ndarray, kind: Sequence[int], views: int, same_iou: float) -> Located:
    """The objects of one kind of class, suppressed by box IoU, best first."""
    rows = np.flatnonzero(np.isin(pooled.labels - 1, list(kind)))
    rows = rows[np.lexsort((from_view[rows], -pooled.scores[rows]))]
    iou = box_iou(pooled.boxes[rows], pooled.boxes[rows])
    free = np.ones(len(rows), bool)
    clusters: list[np.ndarray] = []
    for i in range(len(rows)):
        if not free[i]:
            continue
        members = [i]
        free[i] = False
        near = np.flatnonzero(free & (iou[i] >= same_iou))
        for j in near[np.argsort(-iou[i, near], kind="stable")]:
            if all(from_view[rows[j]] != from_view[rows[m]] for m in members):
                members.append(j)
                free[j] = False
        clusters.append(rows[members])
    found = _concatenated([pooled.take(np.zeros(0, np.intp)), *(_mean(pooled, c, kind, views) for c in clusters)])
    found = found.take(np.argsort(-found.scores, kind="stable"))
    return found.take(_not_suppressed(found.boxes, same_iou))


def _mean(pooled: Located, rows: np.ndarray, kind: Sequence[int], views: int) -> Located:
    """The object of one cluster."""
    of_classes = pooled.class_scores[rows].sum(axis=0, dtype=np.float64) / views
    score = pooled.scores[rows].sum(dtype=np.float64) / views
    label = kind[int(of_classes[list(kind)].argmax())] + 1
    masks = None
    if pooled.masks is not None:
        masks = pooled.masks[rows].mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
    return Located(
        pooled.boxes[rows].mean(axis=0, keepdims=True),
        np.array([score], np.float32),
        np.array([label], np.int64),
        of_classes[None].astype(np.float32),
        masks,
    )


def _not_suppressed(boxes: F64, most_iou: float) -> np.ndarray:
    """Rows of boxes, best first, that no better one overlaps by more than `most_iou`."""
    iou = box_iou(boxes, boxes)
    kept: list[int] = []
    for i in range(len(boxes)):
        if not kept or iou[i, kept].max() <= most_iou:
            kept.append(i)
    return np.array(kept, dtype=np.intp)


def _concatenated(parts: Sequence[Located]) -> Located:
    masks = [part.masks for part in parts if part.masks is not None]
    return Located(
        np.concatenate([part.boxes for part in parts]),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.class_scores for part in parts]),
        np.concatenate(masks) if masks else None,
    )
