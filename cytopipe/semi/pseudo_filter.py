"""Which of a teacher's detections become pseudo-labels (METHODS 1.9).

detections -> suppression within each class -> score >= τ -> the best 100 of an image -> sides of at least 2 px
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from cytopipe.semi.views import Targets

REMOVED_BY = ("suppression", "score", "count", "side")


class Detected(Protocol):
    """What a network found in one image, in any order; `nets.Detections` does."""

    @property
    def boxes(self) -> Tensor: ...  # (n, 4) x0 y0 x1 y1, px of the view
    @property
    def scores(self) -> Tensor: ...  # (n,) in [0, 1]
    @property
    def labels(self) -> Tensor: ...  # (n,) int64, 1..C


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The pseudo-labels of one image.

    index    (m,) int64: which of the detections they are, best first
    boxes, scores, labels   those of the detections, detached
    removed  how many detections each rule took away, by the names of REMOVED_BY
    """

    index: Tensor
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    removed: dict[str, int] = field(default_factory=dict)

    @property
    def targets(self) -> Targets:
        """The pseudo-labels as the truth of an image."""
        return Targets(self.boxes, self.labels)


@dataclass(frozen=True, slots=True)
class PseudoFilter:
    """The rule, with its thresholds.

    threshold    τ, least score; or one for each class 1..C
    nms_iou      IoU above which the worse of two boxes of one class goes
    most         pseudo-labels an image
    min_side_px  least width and height, px of the view
    """

    threshold: float | tuple[float, ...]
    nms_iou: float = 0.5
    most: int = 100
    min_side_px: float = 2.0

    @torch.no_grad()
    def __call__(self, detections: Sequence[Detected]) -> list[Kept]:
        """The pseudo-labels of each image. Raises ValueError for a label without a threshold."""
        return [self._of_image(found) for found in detections]

    def _of_image(self, found: Detected) -> Kept:
        boxes, scores, labels = found.boxes.detach(), found.scores.detach(), found.labels
        index = batched_nms(boxes, scores, labels, self.nms_iou)  # best first
        counts = [len(scores), len(index)]
        index = index[scores[index] >= self._thresholds(scores, labels)[index]]
        counts.append(len(index))
        index = index[: self.most]
        counts.append(len(index))
        sides = boxes[index, 2:] - boxes[index, :2]
        index = index[(sides >= self.min_side_px).all(dim=1)]
        counts.append(len(index))
        removed = {name: a - b for name, (a, b) in zip(REMOVED_BY, pairwise(counts), strict=True)}
        return Kept(index, boxes[index], scores[index], labels[index], removed)

    def _thresholds(self, scores: Tensor, labels: Tensor) -> Tensor:
        """τ of each detection (n,)."""
        if isinstance(self.threshold, float | int):
            return torch.full_like(scores, self.threshold)
        if len(labels) and int(labels.max()) > len(self.threshold):
            raise ValueError(f"PseudoFilter: class {int(labels.max())}, and {len(self.threshold)} thresholds")
        return scores.new_tensor(self.threshold)[labels - 1]
