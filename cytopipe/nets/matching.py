"""Which anchors and RoIs learn which truth, and which of them are drawn: the rules of Faster R-CNN (Ren et al., NeurIPS 2015, section 3.1.2).

Boxes are (n, 4) float32, x0 y0 x1 y1, px of the network's input. Sampling is keyed by image, so that a batch split over machines draws the same.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou

IGNORED = -2
NEGATIVE = -1


def match(candidates: Tensor, truth: Tensor, low: float, high: float, *, best_too: bool) -> Tensor:
    """For each candidate (n,) the index of its truth, NEGATIVE below IoU `low`, IGNORED between `low` and `high`.

    best_too   each truth also takes the candidates of its highest IoU, however low (ties included), as torchvision's Matcher does.
    """
    if len(truth) == 0:
        return torch.full((len(candidates),), NEGATIVE, dtype=torch.int64, device=candidates.device)
    iou = box_iou(truth, candidates)
    best, index = iou.max(dim=0)
    chosen = torch.where(best >= high, index, torch.where(best < low, NEGATIVE, IGNORED))
    if best_too:
        _, at = torch.where(iou == iou.max(dim=1, keepdim=True).values.clamp(min=1e-6))
        chosen[at] = index[at]
    return chosen


def sample(matched: Tensor, count: int, positive_fraction: float, key: int) -> tuple[Tensor, Tensor]:
    """Indices of up to `count` candidates, positives first: (positive, negative). The draw depends on `key` and `matched` only."""
    generator = torch.Generator().manual_seed(key)
    positive = torch.where(matched >= 0)[0]
    negative = torch.where(matched == NEGATIVE)[0]
    n_positive = min(len(positive), int(count * positive_fraction))
    n_negative = min(len(negative), count - n_positive)
    take_p = torch.randperm(len(positive), generator=generator)[:n_positive].to(positive.device)
    take_n = torch.randperm(len(negative), generator=generator)[:n_negative].to(negative.device)
    return positive[take_p], negative[take_n]
