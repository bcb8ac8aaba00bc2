"""From scored boxes to what a window holds: thresholds, box decoding and suppression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image, nms

Judge = Callable[[Tensor, Tensor], Tensor]
"""H (n, D) and boxes (n, 4) of candidates, best first -> probability (n,) that each is the one of its object."""

MIN_SIDE_PX = 1.0  # a box that has less left inside the window is no object


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What one window holds, best first.

    boxes         (n, 4) float32, px of the input
    scores        (n,) float32: the probability that an object of this kind is there (sum over the classes of the kind)
    labels        (n,) int64, 1..C: the most probable class of the kind
    class_scores  (n, C) float32: probabilities of the classes of the kind, 0 elsewhere
    masks         (n, 28, 28) float32 probabilities in the box, or None
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    class_scores: Tensor
    masks: Tensor | None


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """The boxes of one image that may be an object of a group, best first: as `Detections`, and which box each is.

    rows  (n,) int64, rows of the proposals
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    class_scores: Tensor
    rows: Tensor


def answer(
    probabilities: Tensor,
    deltas: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    groups: Sequence[Sequence[int]],
    coder: BoxCoder,
    *,
    threshold: float,
    nms_iou: float,
    most: int,
    features: Tensor,
    judge: Judge | None = None,
) -> Detections:
    """The detections of one image, without masks.

    probabilities  (n, C + 1) float32, softmax with background first
    deltas         (n, 4 (C + 1)) float32 of boxes (n, 4), px
    groups         class indices from 0; within a group detections suppress each other, and a box is found once
    features       H (n, D), for the judge
    judge          in place of suppression: scores are multiplied by what it says, and no overlap is too large
    """
    found = []
    for group in groups:
        one = candidates(probabilities, deltas, boxes, size, group, coder, threshold)
        if judge is None:
            kept = nms(one.boxes, one.scores, nms_iou)
            found.append((one.boxes[kept], one.scores[kept], one.labels[kept], one.class_scores[kept]))
        else:
            s1 = judge(features[one.rows], one.boxes)
            kept = torch.where(one.scores * s1 > threshold)[0]
            s1, scores = s1[kept, None], (one.scores * s1)[kept]
            found.append((one.boxes[kept], scores, one.labels[kept], one.class_scores[kept] * s1))
    all_boxes, all_scores, all_labels, all_spread = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = all_scores.argsort(descending=True, stable=True)[:most]
    return Detections(all_boxes[order], all_scores[order], all_labels[order], all_spread[order], None)


def candidates(
    probabilities: Tensor,
    deltas: Tensor,
    boxes: Tensor,
    size: tuple[int, int],
    group: Sequence[int],
    coder: BoxCoder,
    threshold: float,
) -> Candidates:
    """Every box that is an object of the group with more than `threshold`, decoded for its most probable class and
    clipped to the image. Arguments as in `answer`.
    """
    classes = probabilities.shape[1] - 1
    columns = torch.tensor(group, device=boxes.device) + 1
    of_group = probabilities[:, columns]
    scores = of_group.sum(dim=1)
    rows = torch.where(scores > threshold)[0]
    rows = rows[scores[rows].argsort(descending=True, stable=True)]
    labels = columns[of_group[rows].argmax(dim=1)]
    own = deltas.view(len(deltas), classes + 1, 4)[rows, labels]
    decoded = clip_boxes_to_image(coder.decode_single(own, boxes[rows]), size)
    large = ((decoded[:, 2:] - decoded[:, :2]) >= MIN_SIDE_PX).all(dim=1)
    rows = rows[large]
    spread = torch.zeros((len(rows), classes), dtype=probabilities.dtype, device=boxes.device)
    spread[:, columns - 1] = of_group[rows]
    return Candidates(decoded[large], scores[rows], labels[large], spread, rows)
