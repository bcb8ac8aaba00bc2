"""What a method tells the collapse detector about a batch (METHODS 1.9), under the names that it knows.

    pseudo_labels_per_image               mean over unlabelled images; semantic: pixels
    images_without_pseudo_label_fraction  share of unlabelled images
    max_confidence                        mean over proposals or pixels of the largest probability
    pseudo_labels[CLASS]                  count of each class in the batch; semantic: pixels, "background" too
    labelled[CLASS]                       the same of what is annotated; the engine adds it for every method
    embedding_std                         `spread` of the embeddings that a method aligns
    adapter_norm, disagreement            mean norm of an adapter's output; share on which teacher and student differ

The numbers stay on the device, (name -> scalar tensor), until they are logged: reading one each step would stall it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cytopipe.semi.views import View

BACKGROUND = "background"


@torch.no_grad()
def pseudo_label_signals(
    pseudo: Tensor, confidence: Tensor, kept: Tensor, counts: list[int], classes: Sequence[str]
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
def pixel_signals(pseudo: Tensor, confidence: Tensor, kept: Tensor, classes: Sequence[str]) -> dict[str, Tensor]:
    """Counts and confidence of the pixels that became pseudo-labels; the count of an image is in px.

    pseudo, confidence, kept  (B, h, w) class with 0 = background, largest probability, whether it is used
    classes                   foreground classes, 1..C
    """
    per_image = kept.flatten(1).sum(dim=1).float()
    seen = {
        "pseudo_labels_per_image": per_image.mean(),
        "images_without_pseudo_label_fraction": (per_image == 0).float().mean(),
        "max_confidence": confidence.float().mean(),
    }
    return seen | {
        f"pseudo_labels[{name}]": ((pseudo == label) & kept).sum() for label, name in enumerate((BACKGROUND, *classes))
    }


@torch.no_grad()
def labelled_signals(view: View, classes: Sequence[str]) -> dict[str, Tensor]:
    """How often each class is annotated in a labelled view: objects, or pixels where it has a class map."""
    if view.labels is not None:
        # not bincount, which waits for the device
        return {f"labelled[{name}]": (view.labels == k).sum() for k, name in enumerate((BACKGROUND, *classes))}
    if not view.targets:
        return {}
    labels = torch.cat([target.labels for target in view.targets])
    return {f"labelled[{name}]": (labels == k).sum() for k, name in enumerate(classes, start=1)}


@torch.no_grad()
def disagreement(student: Tensor, teacher: Tensor) -> Tensor:
    """Share of RoIs or pixels on which logits (n, C) or (B, C, H, W) of the two name different classes; 0 for none."""
    differ = student.argmax(dim=1) != teacher.argmax(dim=1)
    return differ.sum() / max(differ.numel(), 1)


@torch.no_grad()
def spread(embeddings: Tensor) -> Tensor:
    """Standard deviation of embeddings (n, d) over n, mean over d; 0 for fewer than two. Near 0 is collapse."""
    return embeddings.std(dim=0).mean() if len(embeddings) > 1 else embeddings.new_zeros(())
