"""What a method tells the collapse detector about its unlabelled batch (METHODS 1.9).

The numbers stay on the device, (name -> scalar tensor), until they are logged: reading one each step would stall it.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def pseudo_label_signals(
    pseudo: Tensor, confidence: Tensor, kept: Tensor, counts: list[int], classes: list[str]
) -> dict[str, Tensor]:
    """Counts and confidence of the pseudo-labels of one batch.

    pseudo, confidence, kept  (n,) class from 0, probability, whether it became a pseudo-label; images in order
    counts                    how many of the n belong to each image
    """
    per_image = torch.stack([part.sum() for part in kept.split(counts)]).float()
    seen = {
        "pseudo_labels_per_image": per_image.mean(),
        "images_without_pseudo_label_fraction": (per_image == 0).float().mean(),
        "max_confidence": confidence.sum() / max(len(confidence), 1),
    }
    for index, name in enumerate(classes):
        seen[f"pseudo_labels[{name}]"] = ((pseudo == index) & kept).sum()
    return seen


@torch.no_grad()
def spread(embeddings: Tensor) -> Tensor:
    """Standard deviation of embeddings (n, d) over n, mean over d; 0 for fewer than two. Near 0 is collapse."""
    return embeddings.std(dim=0).mean() if len(embeddings) > 1 else embeddings.new_zeros(())
