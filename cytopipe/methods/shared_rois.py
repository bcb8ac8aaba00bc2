"""RoIs that teacher and student look at together, each in its own view of the image (METHODS 1.6)."""

from __future__ import annotations

import torch
from torch import Tensor

from cytopipe.semi import View
from cytopipe.semi.mapping import map_boxes


def in_both_views(boxes: list[Tensor], a: View, b: View) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes (n_i, 4) of view a, without those that view b does not show, in both views: row for row the same object."""
    in_a, in_b = [], []
    for image, one in enumerate(boxes):
        if torch.equal(a.affine[image], b.affine[image]):
            in_a.append(one)
            in_b.append(one)
            continue
        mapped, kept = map_boxes(one, a.affine[image], b.affine[image], b.sizes[image])
        in_a.append(one[kept])
        in_b.append(mapped)
    return in_a, in_b


def refuse_other_geometry(a: View, b: View) -> None:
    """Raises ValueError unless the views differ in colour only: what a RoI shows is compared cell by cell."""
    if not torch.equal(a.affine, b.affine):
        raise ValueError("masks of RoIs are compared, and the two views of an image have different geometry")
