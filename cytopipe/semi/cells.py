"""From pixels to the cells of a coarser grid: class probabilities, labels, what was seen, and square patches of cells.

A cell of stride s is s x s px of the view. Losses that a paper computes at its logits' stride 4 are computed there for
every network: where the logits are finer (the light unet's are at stride 1), the probabilities of a cell are the mean
of the softmax over its pixels [D: the mean is what an average pooling of a probability map is; pooling logits would let
one certain pixel outvote fifteen].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from cytopipe.nets.losses import full_precision
from cytopipe.semi.views import View


def log_probabilities(logits: Tensor, factor: int) -> Tensor:
    """log p (B, C, H/f, W/f) of logits (B, C, H, W), p the mean softmax over f x f px; never the log of a rounded 0.

    Computed as the log-sum-exp of log-softmaxes, so that it is exact for probabilities that float32 cannot hold.
    """
    log_p = full_precision(logits).log_softmax(dim=1)
    if factor == 1:
        return log_p
    blocks = log_p.unflatten(3, (-1, factor)).unflatten(2, (-1, factor))  # (B, C, h, f, w, f)
    return blocks.logsumexp(dim=(3, 5)) - 2 * math.log(factor)


def cells_within(seen: Tensor, factor: int) -> Tensor:
    """Whether all of a cell was seen: (B, H, W) bool -> (B, H/f, W/f) bool."""
    if factor == 1:
        return seen
    return F.max_pool2d((~seen).float()[:, None], factor)[:, 0] == 0


def cells_shown(view: View, stride: int) -> Tensor:
    """Whether a view shows its source image on the whole of a cell: (B, H/s, W/s) bool."""
    if view.valid is None:
        images, _, height, width = view.image.shape
        return torch.ones((images, height // stride, width // stride), dtype=torch.bool, device=view.image.device)
    return cells_within(view.valid, stride)


def label_of_cells(labels: Tensor, factor: int) -> Tensor:
    """The label of the pixel next to a cell's centre: (B, H, W) -> (B, H/f, W/f), any dtype."""
    return labels[:, factor // 2 :: factor, factor // 2 :: factor]


def to_pixels(cells: Tensor, factor: int) -> Tensor:
    """Every pixel with the value of its cell: (B, h, w) -> (B, h·f, w·f), any dtype."""
    return cells.repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)


def patches_of(cells: Tensor, height: int, width: int) -> Tensor:
    """Patches of height x width cells: (B, h, w, ...) -> (B, n, height · width, ...), row by row.

    Cells beyond the last whole patch are left out; n is 0 where the grid is smaller than a patch.
    """
    batch, rows, columns = len(cells), cells.shape[1] // height, cells.shape[2] // width
    whole = cells[:, : rows * height, : columns * width]
    blocks = whole.reshape(batch, rows, height, columns, width, *cells.shape[3:]).transpose(2, 3)
    return blocks.reshape(batch, rows * columns, height * width, *cells.shape[3:])
