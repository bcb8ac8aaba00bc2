"""IR-Net's two modules, by which instances of one image see each other (METHODS 5.2, "IR-Net base"; experimental).

Paper    Zhou, Chen, Xu, Dou, Heng: IRNet: Instance Relation Network for Overlapping Cervical Cell Segmentation.
         MICCAI 2019. Object relation after Hu, Gu, Zhang, Dai, Wei: Relation Networks for Object Detection. CVPR 2018.
Idea     overlapping cells look alike where they overlap: a mask is better judged beside the masks of the others, and of
         two answers for one cell the better one can be told without a threshold on their overlap.
Differs  from bibliographic knowledge; constants are our reading ([A] in METHODS). The candidates that meet are those of
         one kind of class, not of one class: within a kind detections suppress each other (`nets.answer`), and a cell
         with two lesion classes is still one cell.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_iou

from cytopipe.nets.losses import full_precision
from cytopipe.nets.ranks import mean_count

MOST_CANDIDATES = 200  # of a kind in an image
KEPT_IOU = 0.5  # a candidate may stand for a truth from here on
SPARSITY = 0.01  # factor of the mean of s1 in the loss
NEAR = 1e-3  # distance, in sides, that counts as none
HIGH, GEOMETRY_SCALE = 1e3, 100.0  # longest wavelength / 2π, and the factor of log distances [C: Hu et al.]


class InstanceRelation(nn.Module):
    """Before the mask head: output = X + conv1x1(Σ_j A_ij X_j), A = softmax(q kᵀ / √64), q and k from pooled X.

    The convolution starts at zero, and the module as the identity.
    """

    DIM = 64

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(channels, self.DIM), nn.Linear(channels, self.DIM)
        self.mix = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor, counts: list[int]) -> Tensor:
        """RoI features (n, c, 14, 14) of several images, `counts` instances in each -> the same shape. Images do not
        see each other.
        """
        v = x.mean(dim=(2, 3))
        parts = zip(x.split(counts), self.query(v).split(counts), self.key(v).split(counts), strict=True)
        seen = []
        for own, q, k in parts:
            association = (full_precision(q) @ full_precision(k).T / math.sqrt(self.DIM)).softmax(dim=1)
            seen.append(torch.einsum("ij,jchw->ichw", association.to(own.dtype), own))
        return x + self.mix(torch.cat(seen)).to(x.dtype)


class DuplicateRemoval(nn.Module):
    """After the box head, in place of suppression: a probability s1 that a candidate is the one to keep of its object.

    Candidates of a kind, best first: feature = W_f H + W_r (embedding of the rank), one object-relation layer, s1 =
    sigmoid. The answer's score is s0 · s1. Until it has seen a labelled batch it is off, and the network answers by
    suppression, as without it.
    """

    DIM = 128
    HEADS = 16
    GEOMETRY_DIM = 64

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.appearance = nn.Linear(head_dim, self.DIM)
        self.rank = nn.Linear(self.DIM, self.DIM)
        self.query, self.key = nn.Linear(self.DIM, self.DIM), nn.Linear(self.DIM, self.DIM)
        self.value = nn.Linear(self.DIM, self.DIM)
        self.geometry = nn.Linear(self.GEOMETRY_DIM, self.HEADS)
        self.keep = nn.Linear(self.DIM, 1)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))  # labelled batches seen

    @property
    def is_on(self) -> bool:
        """Whether it has learnt anything."""
        return bool(self.steps > 0)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Logits (n,) of s1 for candidates of one kind of one image, best first: H (n, D), boxes (n, 4) px."""
        n = len(features)
        ranks = sinusoidal(torch.arange(n, device=features.device, dtype=torch.float32), self.DIM)
        x = self.appearance(features) + self.rank(ranks)
        return full_precision(self.keep((x + self._related(x, boxes)).relu()))[:, 0]

    def _related(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Object relation: Σ_n w_mn W_V x_n per head, w_mn = w_G exp(w_A) / Σ_k w_G exp(w_A) (Hu et al., equations 2 to
        5), w_G = relu of the embedded relative geometry.
        """
        n = len(x)
        heads = (n, self.HEADS, self.DIM // self.HEADS)
        q, k, v = (layer(x).view(heads).transpose(0, 1) for layer in (self.query, self.key, self.value))
        appearance = full_precision(q) @ full_precision(k).transpose(1, 2) / math.sqrt(q.shape[2])
        embedded = sinusoidal(GEOMETRY_SCALE * relative_geometry(boxes), self.GEOMETRY_DIM // 4).flatten(2)
        geometry = full_precision(self.geometry(embedded)).relu().permute(2, 0, 1)
        weight = (geometry.clamp(min=1e-6).log() + appearance).softmax(dim=2)
        return (weight.to(v.dtype) @ v).transpose(0, 1).reshape(n, self.DIM)


def relative_geometry(boxes: Tensor) -> Tensor:
    """(n, 4) -> (n, n, 4) float32: log of |Δx| / w, |Δy| / h, w' / w and h' / h (Hu et al., section 3.1)."""
    boxes = full_precision(boxes)
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-3)
    distance = (centre[None] - centre[:, None]).abs() / size[:, None]
    return torch.cat([distance.clamp(min=NEAR).log(), (size[None] / size[:, None]).log()], dim=2)


def sinusoidal(values: Tensor, dim: int) -> Tensor:
    """(...) -> (..., dim): sines and cosines of wavelengths from 2π to 2π · 1000 (Vaswani et al., NeurIPS 2017)."""
    steps = torch.arange(dim // 2, device=values.device, dtype=torch.float32)
    angles = values[..., None] / HIGH ** (2 * steps / dim)
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def keep_goals(boxes: Tensor, scores: Tensor, truth: Tensor) -> Tensor:
    """(n,) of 0 and 1: for each truth (t, 4) the highest-scored of boxes (n, 4) whose IoU with it is at least 0.5."""
    goals = torch.zeros(len(boxes), device=boxes.device)
    for iou in box_iou(truth.to(boxes), boxes):
        near = torch.where(iou >= KEPT_IOU)[0]
        if len(near):
            goals[near[scores[near].argmax()]] = 1.0
    return goals


def duplicate_loss(logits: Tensor, goals: Tensor) -> Tensor:
    """Binary cross-entropy of logits (n,) with goals (n,), mean over candidates, plus 0.01 · mean of s1 (sparsity)."""
    each = F.binary_cross_entropy_with_logits(logits, goals, reduction="sum") + SPARSITY * logits.sigmoid().sum()
    return each / mean_count(len(goals)).clamp(min=1)
