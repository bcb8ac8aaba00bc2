"""The terms of Faster and Mask R-CNN, with torchvision's reductions (METHODS 6.1), and the focal form of roi_cls.

Every mean is a sum divided by `mean_count`: on several ranks the averaged gradient is that of the mean over all of
them. Logits are read in float32 at least, whatever the precision of the forward. Over nothing a term is 0 and still
attached to what it would have read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cytopipe.nets.ranks import mean_count

SMOOTH_L1_BETA = 1 / 9
LEAST_MISSING = 1e-12  # of 1 − p_y: where float32 has p_y = 1, a power γ < 1 of 0 has no finite slope


def classification_loss(logits: Tensor, labels: Tensor, focal_gamma: float | None = None) -> Tensor:
    """Cross-entropy of logits (n, C + 1) with labels (n,) int64, mean over the RoIs.

    focal_gamma  γ of FL = (1 − p_y)^γ (−log p_y), background included as class 0 (METHODS 5.5)
    """
    each = F.cross_entropy(full_precision(logits), labels, reduction="none")
    if focal_gamma is not None:
        missing = (-torch.expm1(-each)).clamp(min=LEAST_MISSING)  # 1 − p_y, exact where p_y is near 1
        each = missing**focal_gamma * each
    return each.sum() / mean_count(len(labels)).clamp(min=1)


def objectness_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """rpn_cls: binary cross-entropy of logits (n,) with truth (n,) of 0 and 1, mean over the sampled anchors."""
    each = F.binary_cross_entropy_with_logits(full_precision(logits), full_precision(truth), reduction="sum")
    return each / mean_count(len(truth)).clamp(min=1)


def regression_loss(deltas: Tensor, goals: Tensor, sampled: int) -> Tensor:
    """rpn_reg, roi_reg: smooth L1 (β = 1/9) of deltas (p, 4), summed over the positives and divided by all `sampled`
    ones.
    """
    each = F.smooth_l1_loss(full_precision(deltas), full_precision(goals), beta=SMOOTH_L1_BETA, reduction="sum")
    return each / mean_count(sampled).clamp(min=1)


def mask_loss(logits: Tensor, goals: Tensor) -> Tensor:
    """mask: binary cross-entropy of logits (p, 28, 28) with goals (p, 28, 28) in [0, 1], mean over positive RoIs."""
    each = F.binary_cross_entropy_with_logits(full_precision(logits), full_precision(goals), reduction="sum")
    cells = logits.shape[1] * logits.shape[2]
    return each / (mean_count(len(logits)).clamp(min=1) * cells)


def full_precision(x: Tensor) -> Tensor:
    """x in float32, or as it is in float64: boxes of a large window do not fit into the 8 bits of
    bfloat16, and logarithms, norms and exponentials are not computed in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
