"""Losses over the pixels of a class map, pseudo-labels of pixels, and the noise of a teacher's input.

Logits are (B, C, H, W) with background as class 0; a class map is (B, H, W) int64 with 255 where nothing is known. All
means are over the pixels of the global batch (`nets.ranks`), in float32 or finer also under autocast.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cytopipe.nets.losses import full_precision
from cytopipe.nets.ranks import mean_count, sum_over_ranks
from cytopipe.semi.views import IGNORE

DICE_EPSILON = 1e-5  # [C: SSL4MIS]


def pixel_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p_y, mean over the pixels whose label is known; 0 and attached where there is none."""
    total = F.cross_entropy(full_precision(logits), labels, ignore_index=IGNORE, reduction="sum")
    return total / mean_count((labels != IGNORE).sum()).clamp(min=1).to(total)


def soft_dice(logits: Tensor, labels: Tensor) -> Tensor:
    """1 − (2 Σ p s + ε) / (Σ p² + Σ s² + ε), ε = 1e-5: sums over batch and known pixels, mean over the classes.

    p is the softmax of the logits, s the one-hot label; background counts as a class.
    Source: the DiceLoss of SSL4MIS (METHODS 6.1).
    """
    known = (labels != IGNORE)[:, None]
    p = full_precision(logits).softmax(dim=1) * known
    s = F.one_hot(labels.masked_fill(labels == IGNORE, 0), logits.shape[1]).movedim(-1, 1).to(p) * known
    both = torch.stack([(p * s).sum(dim=(0, 2, 3)), p.square().sum(dim=(0, 2, 3)), s.sum(dim=(0, 2, 3))])
    overlap, predicted, true = sum_over_ranks(both)
    return (1 - (2 * overlap + DICE_EPSILON) / (predicted + true + DICE_EPSILON)).mean()


def pixel_pseudo_labels(logits: Tensor, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """Class (B, H, W) int64, its probability (B, H, W) float32 and where that reaches the threshold; detached."""
    confidence, label = full_precision(logits.detach()).softmax(dim=1).max(dim=1)
    return label, confidence, confidence >= threshold


def clipped_noise(image: Tensor, keys: Tensor, std: float, limit: float) -> Tensor:
    """clip(std · N(0, 1), ±limit) of the shape of image (B, 3, H, W); each image's from its own key (B,) alone."""
    noise = torch.empty_like(image)
    for row, key in zip(noise, keys.tolist(), strict=True):
        row.normal_(generator=torch.Generator(device=image.device).manual_seed(key))
    return (std * noise).clamp(-limit, limit)
