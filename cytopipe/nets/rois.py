"""The RoIs on which the second stage learns: proposals and truth, matched, and a keyed draw of them.

Source: Ren et al., NeurIPS 2015, section 3.1.2, and He et al., ICCV 2017, section 3.1 (masks); the constants of METHODS
1.7. Boxes are x0 y0 x1 y1, px of the network's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import roi_align

from cytopipe.nets.matching import match, sample

ROI_IOU = 0.5  # from here on a RoI is foreground
ROI_POSITIVE_FRACTION = 0.25
MASKS_AT_ONCE = 8  # truth masks that are float at a time: a dense tile's together would take a gigabyte


class Truth(Protocol):
    """What a labelled image must bring; `semi.Targets` does."""

    boxes: Tensor  # (n, 4) float32, px of the view
    labels: Tensor  # (n,) int64, 1..C
    masks: Tensor | None  # (n, H, W) uint8


@dataclass(frozen=True, slots=True, eq=False)
class RoISample:
    """The RoIs drawn from a batch. In each image the foreground stands first.

    rois    one (n_i, 4) an image
    labels  (n,) int64 over all images in order, 0 = background
    goals   (f, 4) box deltas of the foreground RoIs, over all images in order
    owners  one (f_i,) an image: the index of the truth of each foreground RoI
    """

    rois: list[Tensor]
    labels: Tensor
    goals: Tensor
    owners: list[Tensor]

    @property
    def foreground(self) -> list[Tensor]:
        """The foreground RoIs of each image, (f_i, 4)."""
        return [rois[: len(owner)] for rois, owner in zip(self.rois, self.owners, strict=True)]


def sample_rois(
    proposals: list[Tensor], targets: Sequence[Truth], keys: Sequence[int], count: int, coder: BoxCoder
) -> RoISample:
    """Up to `count` RoIs an image, a quarter of them foreground; the truth joins the candidates. The draw of an image
    depends on its key and its candidates only.
    """
    rois, labels, goals, owners = [], [], [], []
    for boxes, target, key in zip(proposals, targets, keys, strict=True):
        truth = target.boxes.to(boxes)
        candidates = torch.cat([boxes, truth])
        matched = match(candidates, truth, ROI_IOU, ROI_IOU, best_too=False)
        positive, negative = sample(matched, count, ROI_POSITIVE_FRACTION, int(key) + 1)
        owner = matched[positive]
        rois.append(candidates[torch.cat([positive, negative])])
        labels.append(torch.cat([target.labels[owner], torch.zeros_like(negative)]))
        goals.append(coder.encode_single(truth[owner], candidates[positive]) if len(positive) else boxes[:0])
        owners.append(owner)
    return RoISample(rois, torch.cat(labels), torch.cat(goals), owners)


def cut_masks(masks: Tensor, owner: Tensor, boxes: Tensor, side: int) -> Tensor:
    """The truth (n, H, W) uint8 seen by each RoI, (f, side, side) float32 in [0, 1]: the part of its owner's mask
    inside the box, resampled as torchvision's Mask R-CNN does.
    """
    cut = boxes.new_zeros((len(boxes), side, side))
    used, place = owner.unique(return_inverse=True)
    for start in range(0, len(used), MASKS_AT_ONCE):
        several = used[start : start + MASKS_AT_ONCE]
        index = torch.where((place >= start) & (place < start + MASKS_AT_ONCE))[0]
        rois = torch.cat([(place[index] - start)[:, None].to(boxes), boxes[index]], dim=1)
        part = roi_align(masks[several][:, None].to(boxes.dtype), rois, side, 1.0, aligned=False)[:, 0]
        cut[index] = part.clamp(0, 1)
    return cut
