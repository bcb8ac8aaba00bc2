"""What looks at one RoI: pooling from the pyramid, the box head and the mask head.

RoIAlign is `aligned=True`: with aligned=False every box is shifted by half a cell towards +x and +y, and pooling a
flipped map with a flipped box does not give the flipped result (METHODS 1.7). torchvision's MultiScaleRoIAlign passes
aligned=False, hence our own pooler.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from cytopipe.nets.losses import full_precision
from cytopipe.nets.spec import NetSpec

POOLED_LEVELS = (2, 3, 4, 5)  # P6 serves the RPN only
SAMPLING_RATIO = 2


def level_of(boxes: Tensor, canonical_px: float) -> Tensor:
    """The pyramid level (n,) int64 of boxes (n, 4): k = floor(4 + log2(sqrt(wh) / canonical)), clamped to 2..5 (Lin et
    al. 2017, equation 1).
    """
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    k = torch.floor(4 + torch.log2(sides.prod(dim=1).sqrt() / canonical_px) + 1e-6)
    return k.clamp(POOLED_LEVELS[0], POOLED_LEVELS[-1]).to(torch.int64)


def pool(
    feats: dict[int, Tensor], boxes: list[Tensor], size: int, canonical_px: float, level: int | None = None
) -> Tensor:
    """RoIAlign of boxes per image -> (n, channels, size, size), n over all images in order. `level` pools every box
    from that one.

    In float32 at least: coordinates of a large window do not fit into a half-precision number.
    """
    if level is not None and level not in POOLED_LEVELS:
        raise ValueError(f"pool: level {level}, one of {POOLED_LEVELS} is expected")
    image = torch.repeat_interleave(torch.arange(len(boxes)), torch.tensor([len(b) for b in boxes]))
    flat = torch.cat(boxes)
    rois = torch.cat([image.to(flat)[:, None], flat], dim=1)
    levels = level_of(flat, canonical_px) if level is None else torch.full((len(flat),), level, device=flat.device)
    used = [k for k in POOLED_LEVELS if (levels == k).any()] or [POOLED_LEVELS[0]]
    index = [torch.where(levels == k)[0] for k in used]
    maps = [full_precision(feats[k]) for k in used]
    parts = [
        roi_align(x, rois[rows].to(x.dtype), size, 1 / 2**k, SAMPLING_RATIO, aligned=True)
        for x, rows, k in zip(maps, index, used, strict=True)
    ]
    if len(parts) == 1:  # small objects: all from one level, and no copy of what is the largest tensor of the heads
        return parts[0]
    return torch.cat(parts)[torch.cat(index).argsort()]


class BoxHead(nn.Module):
    """Pooled features (n, c, 7, 7) -> class logits (n, C + 1), deltas (n, 4 (C + 1)), H (n, D) = output of the two
    layers before the predictors.
    """

    POOL = 7

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        outputs = len(spec.classes) + 1
        self.fc6 = nn.Linear(spec.fpn_channels * self.POOL**2, spec.head_dim)
        self.fc7 = nn.Linear(spec.head_dim, spec.head_dim)
        self.cls_score = nn.Linear(spec.head_dim, outputs)
        self.bbox_pred = nn.Linear(spec.head_dim, 4 * outputs)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.fc7(self.fc6(pooled.flatten(1)).relu()).relu()
        return self.cls_score(h), self.bbox_pred(h), h


class MaskHead(nn.Module):
    """Pooled features (n, c, 14, 14) -> mask logits (n, C + 1, 28, 28), one map a class, background first (He et al.,
    ICCV 2017, figure 4).
    """

    POOL = 14
    SIDE = 28

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        width = spec.fpn_channels
        for i in range(1, 5):
            layers[f"conv{i}"] = nn.Conv2d(width, spec.mask_channels, 3, padding=1)
            layers[f"relu{i}"] = nn.ReLU()
            width = spec.mask_channels
        layers["up"] = nn.ConvTranspose2d(width, spec.mask_channels, 2, stride=2)
        layers["relu_up"] = nn.ReLU()
        layers["logits"] = nn.Conv2d(spec.mask_channels, len(spec.classes) + 1, 1)
        self.layers = nn.Sequential(layers)
        for name, parameter in self.named_parameters():
            if name.endswith("weight"):
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.zeros_(parameter)

    def forward(self, pooled: Tensor) -> Tensor:
        return self.layers(pooled)
