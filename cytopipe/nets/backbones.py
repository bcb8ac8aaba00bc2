"""Trunks with a feature pyramid: an image goes in, P2 to P6 come out (strides 4, 8, 16, 32, 64).

Built from torchvision's MobileNetV2 and ResNets and its FeaturePyramidNetwork; P6 is P5 subsampled, for the RPN only
(Lin et al., CVPR 2017, section 4).
No group norm and no squeeze-and-excitation: they pool over the window, and a cell's result would depend on where the
window lies (DESIGN 5).
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18, resnet34, resnet50, resnet101
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from cytopipe.nets.spec import NetSpec, SegSpec

_RESNETS = {"resnet18": resnet18, "resnet34": resnet34, "resnet50": resnet50, "resnet101": resnet101}

# MobileNetV2 blocks after which the map has stride 4, 8, 16 and 32 (Sandler et al., CVPR 2018, table 2). The last 1x1
# convolution to 1280 channels is left out: the pyramid takes the map before it.
_MOBILENET_CUTS = (4, 7, 14, 18)


class PyramidTrunk(nn.Module):
    """Image (B, 3, H, W) float32, normalised -> {2: (B, c, H/4, W/4), ..., 6: (B, c, H/64, W/64)}."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        norm = FrozenBatchNorm2d if spec.frozen_batch_norm else nn.BatchNorm2d
        if spec.backbone == "mobilenetv2":
            features = mobilenet_v2(weights=None, width_mult=spec.width, norm_layer=norm).features
            cuts = [0, *_MOBILENET_CUTS]
            self.stages = nn.ModuleList(features[a:b] for a, b in pairwise(cuts))
            widths = [features[end - 1].out_channels for end in _MOBILENET_CUTS]
        else:
            body = _RESNETS[spec.backbone](weights=None, norm_layer=norm)
            stem = nn.Sequential(
                OrderedDict(conv1=body.conv1, bn1=body.bn1, relu=body.relu, maxpool=body.maxpool, layer1=body.layer1)
            )
            self.stages = nn.ModuleList([stem, body.layer2, body.layer3, body.layer4])
            last = body.fc.in_features
            widths = [last // 8, last // 4, last // 2, last]
        self.pyramid = FeaturePyramidNetwork(widths, spec.fpn_channels, extra_blocks=LastLevelMaxPool())

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        maps: OrderedDict[str, Tensor] = OrderedDict()
        x = image
        for level, stage in enumerate(self.stages, start=2):
            x = stage(x)
            maps[str(level)] = x
        return dict(enumerate(self.pyramid(maps).values(), start=2))


def normalise(images: Tensor, spec: NetSpec | SegSpec) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W), zero mean and unit variance by the spec's constants."""
    mean = torch.tensor(spec.mean, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(spec.std, device=images.device).view(1, 3, 1, 1)
    return (images.permute(0, 3, 1, 2).to(torch.float32) / 255.0 - mean) / std
