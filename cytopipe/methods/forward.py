"""The one rule of how labelled and unlabelled images go through the trunk together (METHODS 1.7)."""

from __future__ import annotations

import torch
from torch import Tensor

from cytopipe.nets import DetNet


def extract_both(student: DetNet, labelled: Tensor, unlabelled: Tensor) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """Features of labelled (B_l, 3, H, W) and of unlabelled images (B_u, 3, H, W), as `extract` gives them.

    One forward over both; where batch norm is trained two, and only the labelled one moves the running statistics.
    """
    if student.trains_batch_norm:
        feats_l = student.extract(labelled)
        with student.frozen_statistics():
            return feats_l, student.extract(unlabelled)
    n = len(labelled)
    feats = student.extract(torch.cat([labelled, unlabelled]))
    return {level: f[:n] for level, f in feats.items()}, {level: f[n:] for level, f in feats.items()}
