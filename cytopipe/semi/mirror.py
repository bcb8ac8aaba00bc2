"""The mirror twin of a view: what a method makes itself where a loss needs a view and its mirror image."""

from __future__ import annotations

from dataclasses import replace

import torch

from cytopipe.semi.views import View


def mirrored(view: View) -> View:
    """The view turned left to right, and its affine with it. Raises ValueError for a view with annotations."""
    if view.targets or view.labels is not None:
        raise ValueError("mirrored: a view with annotations, which are not turned")
    mirror = torch.tensor([[-1.0, 0.0, view.image.shape[-1]], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    last = torch.tensor([[[0.0, 0.0, 1.0]]], dtype=torch.float64).expand(len(view.affine), 1, 3)
    affine = (mirror @ torch.cat([view.affine, last], dim=1))[:, :2]
    valid = None if view.valid is None else view.valid.flip(-1)
    return replace(view, image=view.image.flip(-1), affine=affine, valid=valid)
