"""From one view of an image to another (METHODS 1.6): boxes, masks, features, and what both views show.

Enters: things in px (or feature cells) of view a, the affines of views a and b (source px -> view px, pixel edges at
integers).  Leaves: the same things in view b.
Flips and quarter turns that carry the one view onto the other move values by exact index reversal; every other map
samples at cell centres, bilinearly for features and the nearest for masks (align_corners False).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from cytopipe.semi.views import View

TOLERANCE_PX = 1e-4  # of an affine's entries: flips of a tile of 2000 px keep 1e-10, a rotation by 0.01 degrees is 1e-4


def map_boxes(
    boxes: Tensor, a: Tensor, b: Tensor, size: tuple[int, int], min_side_px: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) of view a in view b: those around the mapped corners, clipped to view b of size (height, width).

    a, b  (2, 3), affines of the two views
    Returns the boxes (m, 4) with both sides >= min_side_px, and their indices (m,) among those given.
    """
    matrix = between(a, b).to(boxes.device)
    x0, y0, x1, y1 = boxes.double().unbind(dim=1)
    corners = torch.stack([torch.stack([x0, x1, x1, x0]), torch.stack([y0, y0, y1, y1])])  # (2, 4, n)
    mapped = torch.einsum("ij,jkn->ikn", matrix[:, :2], corners) + matrix[:, 2, None, None]
    height, width = size
    limits = torch.tensor([width, height], dtype=torch.float64, device=boxes.device)[:, None]
    low = mapped.amin(dim=1).clamp(min=0).minimum(limits)  # (2, n)
    high = mapped.amax(dim=1).clamp(min=0).minimum(limits)
    kept = torch.where(((high - low) >= min_side_px).all(dim=0))[0]
    return torch.cat([low, high])[:, kept].T.to(boxes), kept


def map_masks(masks: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Masks (n, H, W) of view a, of any type, in view b of the same size (turned with it); 0 where a shows nothing."""
    if len(masks) == 0:
        return masks
    matrix = between(a, b)
    move = _exact_move(matrix, *masks.shape[-2:])
    if move is not None:
        return _moved(masks, move)
    return _sampled(masks[None].float(), matrix, 1, "nearest")[0].to(masks.dtype)


def map_features(features: Tensor, from_affine: Tensor, to_affine: Tensor, stride: int) -> Tensor:
    """Features (B, c, h, w) of views at `from_affine` as they lie in views at `to_affine`, 0 where there are none.

    from_affine, to_affine  (B, 2, 3), affines of the two views of each image
    stride                  px of a view a feature cell
    Gradients pass. Raises ValueError where quarter turns would give maps of different shapes within the batch.
    """
    height, width = (size * stride for size in features.shape[-2:])
    found = []
    for one, a, b in zip(features, from_affine, to_affine, strict=True):
        matrix = between(a, b)
        move = _exact_move(matrix, height, width)
        found.append(_sampled(one[None], matrix, stride, "bilinear")[0] if move is None else _moved(one, move))
    if len({tuple(one.shape) for one in found}) > 1:
        raise ValueError(f"map_features: {height} x {width} px turned in some images of the batch and not in others")
    return torch.stack(found) if found else features


def valid_both(view_a: View, view_b: View, stride: int) -> Tensor:
    """Feature cells (B, h, w) bool of view b that lie whole in what both views show of the image.

    h, w = H // stride, W // stride; on the device of the images.
    """
    images, (height, width) = len(view_b.image), view_b.image.shape[-2:]
    shown = view_b.image.new_ones((images, height, width), dtype=torch.bool) if view_b.valid is None else view_b.valid
    if view_a.valid is not None or not torch.equal(view_a.affine, view_b.affine):
        size_a = view_a.image.shape[-2:]
        seen = view_a.image.new_ones((images, *size_a)) if view_a.valid is None else view_a.valid.float()
        there = map_features(seen[:, None], view_a.affine, view_b.affine, 1)[:, 0]
        shown = shown & (there > 1 - TOLERANCE_PX)  # a sample that touches the border is not whole
    return -F.max_pool2d(-shown[:, None].float(), stride)[:, 0] > 0


def between(a: Tensor, b: Tensor) -> Tensor:
    """The map (2, 3) float64, on the CPU, from px of view a to px of view b, given their affines (2, 3)."""
    last = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    square_a, square_b = (torch.cat([m.detach().cpu().double(), last]) for m in (a, b))
    return (square_b @ torch.linalg.inv(square_a))[:2]


class _Move(NamedTuple):
    """Axes swapped first, then each reversed."""

    swap: bool
    reverse_rows: bool
    reverse_columns: bool


def _exact_move(matrix: Tensor, height: int, width: int) -> _Move | None:
    """How the map moves whole pixels of a view of that size onto another view; None where it does not."""
    (m00, m01, dx), (m10, m11, dy) = matrix.tolist()
    swap = abs(m00) < 0.5
    if swap:
        diagonal, off, height, width = (m01, m10), (m00, m11), width, height
    else:
        diagonal, off = (m00, m11), (m01, m10)
    reverse_columns, reverse_rows = diagonal[0] < 0, diagonal[1] < 0
    ends = (dx - (width if reverse_columns else 0), dy - (height if reverse_rows else 0))
    errors = (abs(diagonal[0]) - 1, abs(diagonal[1]) - 1, *off)
    # an error of the linear part counts at the far side of the view
    worst = max(*(abs(e) for e in ends), *(abs(e) * max(height, width) for e in errors))
    return _Move(swap, reverse_rows, reverse_columns) if worst < TOLERANCE_PX else None


def _moved(values: Tensor, move: _Move) -> Tensor:
    """Values (..., h, w) moved."""
    if move.swap:
        values = values.transpose(-1, -2)
    axes = [axis for axis, reverse in ((-2, move.reverse_rows), (-1, move.reverse_columns)) if reverse]
    return values.flip(axes) if axes else values


def _sampled(values: Tensor, matrix: Tensor, stride: int, mode: str) -> Tensor:
    """Values (1, c, h, w) of view a, at the cell centres of a view b of the same size."""
    height, width = values.shape[-2:]
    last = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    back = torch.linalg.inv(torch.cat([matrix, last]))[:2]
    y, x = torch.meshgrid(
        (torch.arange(height, dtype=torch.float64) + 0.5) * stride,
        (torch.arange(width, dtype=torch.float64) + 0.5) * stride,
        indexing="ij",
    )
    places = torch.stack([x, y], dim=-1) @ back[:, :2].T + back[:, 2]  # (h, w, 2), px of view a
    extent = torch.tensor([width * stride, height * stride], dtype=torch.float64)
    grid = (2 * places / extent - 1).to(values)
    return F.grid_sample(values, grid[None], mode=mode, padding_mode="zeros", align_corners=False)
