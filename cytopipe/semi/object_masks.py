"""Where objects are: the mask head's answers as a mask of the image, and that as masks of a pyramid's levels.

Cell (row, column) of an answer covers that share of its box; between cell centres probabilities are bilinear, beyond
the outer ones they fall to 0. The box is not rounded to whole px, so that mirrored answers give the mirrored mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


@torch.no_grad()
def union_of_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], level: float = 0.5) -> Tensor:
    """(H, W) bool: pixels whose centre has a probability >= level in the mask of some object.

    masks  (n, S, S) float, probabilities in the box;  boxes (n, 4), x0 y0 x1 y1, px of the image;  size (H, W) px
    """
    height, width = size
    union = torch.zeros((height, width), dtype=torch.bool, device=masks.device)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.tolist(), strict=True):
        left, right = max(math.floor(x0), 0), min(math.ceil(x1), width)
        top, bottom = max(math.floor(y0), 0), min(math.ceil(y1), height)
        if left >= right or top >= bottom or x1 <= x0 or y1 <= y0:
            continue
        u = (torch.arange(left, right, device=masks.device, dtype=torch.float64) + 0.5 - x0) / (x1 - x0)
        v = (torch.arange(top, bottom, device=masks.device, dtype=torch.float64) + 0.5 - y0) / (y1 - y0)
        grid = torch.stack(torch.meshgrid(2 * u - 1, 2 * v - 1, indexing="xy"), dim=-1).to(mask.dtype)
        pasted = F.grid_sample(mask[None, None], grid[None], padding_mode="zeros", align_corners=False)[0, 0]
        union[top:bottom, left:right] |= pasted >= level
    return union


def level_mask(inside: Tensor, size: Sequence[int], share: float = 0.5) -> Tensor:
    """Masks (B, 1, H, W) of 0 and 1 at the size (h, w) of a level: (B, h, w), 1 where over `share` of a cell lies."""
    return (F.adaptive_avg_pool2d(inside, tuple(size))[:, 0] > share).to(inside.dtype)
