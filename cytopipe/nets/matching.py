"""Which anchors and RoIs learn which truth, and which of them are drawn: the rules of Faster R-CNN (Ren et al., NeurIPS
2015, section 3.1.2).

Boxes are (n, 4) float32, x0 y0 x1 y1, px of the network's input. Sampling is keyed by image, so that a batch split over
machines draws the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -2
NEGATIVE = -1
TRUTHS_AT_ONCE = (
    8  # rows of the IoU table at a time: it stays in the cache, and a dense tile's table would take a gigabyte
)


def match(candidates: Tensor, truth: Tensor, low: float, high: float, *, best_too: bool) -> Tensor:
    """For each candidate (n,) the index of its truth, NEGATIVE below IoU `low`, IGNORED between `low` and `high`.

    best_too   each truth also takes the candidates of its highest IoU, however low (ties included), as torchvision's
               Matcher does.
    """
    best = torch.zeros(len(candidates), device=candidates.device)
    index = torch.zeros(len(candidates), dtype=torch.int64, device=candidates.device)
    forced: list[Tensor] = []
    for start in range(0, len(truth), TRUTHS_AT_ONCE):
        iou = _iou(truth[start : start + TRUTHS_AT_ONCE], candidates)
        part, at = iou.max(dim=0)
        better = part > best  # strict: of equal truths the first, as a maximum over all of them would say
        best = torch.where(better, part, best)
        index = torch.where(better, at + start, index)
        if best_too:
            forced.append(torch.where(iou == iou.amax(dim=1, keepdim=True).clamp(min=1e-6))[1])
    chosen = torch.where(best >= high, index, torch.where(best < low, NEGATIVE, IGNORED))
    if forced:
        at = torch.cat(forced)
        chosen[at] = index[at]
    return chosen


def sample(matched: Tensor, count: int, positive_fraction: float, key: int) -> tuple[Tensor, Tensor]:
    """Indices of up to `count` candidates, positives first: (positive, negative). The draw depends on `key` and
    `matched` only.
    """
    generator = torch.Generator().manual_seed(key)
    positive = torch.where(matched >= 0)[0]
    negative = torch.where(matched == NEGATIVE)[0]
    n_positive = min(len(positive), int(count * positive_fraction))
    n_negative = min(len(negative), count - n_positive)
    take_p = torch.randperm(len(positive), generator=generator)[:n_positive].to(positive.device)
    take_n = torch.randperm(len(negative), generator=generator)[:n_negative].to(negative.device)
    return positive[take_p], negative[take_n]


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union (n, m) of boxes (n, 4) and (m, 4)."""
    width = torch.minimum(a[:, None, 2], b[None, :, 2]).sub_(torch.maximum(a[:, None, 0], b[None, :, 0])).clamp_(min=0)
    height = torch.minimum(a[:, None, 3], b[None, :, 3]).sub_(torch.maximum(a[:, None, 1], b[None, :, 1])).clamp_(min=0)
    both = width.mul_(height)
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    return both / (area_a[:, None] + area_b[None, :] - both).clamp_(min=1e-12)
