"""SegNet: a class for each pixel, behind verbs that a method can call one by one (METHODS 1.8).

    encode -> decode -> predict -> upsample

Images enter normalised, (B, 3, H, W) float32, sides divisible by the spec's `stride_px`. Label 0 is background, label
i + 1 is classes[i]; C counts background. All convolutions, batch norms and bilinear steps are local: what a pixel
becomes depends on its neighbourhood (`receptive_radius_px`) and, in eval mode, on nothing else of the window.

Source   `denseunet161`: the network of CDCL (Wu et al., CVPR 2022), after Li et al., TMI 2018, section III-B; the trunk
         is torchvision's DenseNet-161 (Huang et al., CVPR 2017). `unet`: Ronneberger et al., MICCAI 2015, with padding
         and batch norm, narrow.
Differs  CDCL's released code leaves dropout on at test time and upsamples with align_corners = True; neither here. The
         features F travel together with what the unet still needs for its finer levels, as `Decoded`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import densenet161
from torchvision.ops import FrozenBatchNorm2d

from cytopipe.nets.batch_norm import BatchNormed, freeze
from cytopipe.nets.spec import SegSpec

DENSE_WIDTHS = (384, 768, 2112, 2208)  # DenseNet-161 at strides 4, 8, 16, 32
DENSE_UP_WIDTHS = (768, 384)  # of the blocks at strides 16 and 8; the one at stride 4 gives F


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What `decode` gives and `predict` takes.

    features  F (B, D, H/4, W/4): what methods project and compare
    finer     encoder maps below stride 4, coarse to fine; empty for a network whose logits have stride 4
    """

    features: Tensor
    finer: tuple[Tensor, ...] = ()


class SegNet(BatchNormed):
    """Semantic segmentation. `extra` holds what a method attaches (projectors, auxiliary decoders)."""

    def __init__(self, spec: SegSpec) -> None:
        super().__init__()
        self.spec = spec
        self.body = DenseUNet(spec) if spec.architecture == "denseunet161" else UNet(spec)
        self.extra = nn.ModuleDict()

    @property
    def feature_dim(self) -> int:
        """D, channels of F."""
        return self.spec.feature_dim

    @property
    def feature_stride(self) -> int:
        """Input px per px of F."""
        return self.spec.feature_stride

    def encode(self, image: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps of the encoder, fine to coarse. Raises ValueError for sides that the stride does not
        divide.
        """
        stride = self.spec.stride_px
        if image.shape[-2] % stride or image.shape[-1] % stride:
            raise ValueError(f"encode: {tuple(image.shape)}, sides must be multiples of {stride} px")
        return self.body.encode(image)

    def decode(self, pyramid: Sequence[Tensor]) -> Decoded:
        """The encoder's maps -> F at stride 4."""
        return self.body.decode(pyramid)

    def predict(self, decoded: Decoded) -> Tensor:
        """Logits (B, C, H/s, W/s), C with background, s = `spec.logits_stride`."""
        return self.body.predict(decoded)

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Logits at (height, width) of the image: bilinear, corners not aligned."""
        if logits.shape[-2:] == torch.Size(size):
            return logits
        return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> logits (B, C, H, W): the four verbs in a row."""
        height, width = image.shape[-2:]
        return self.upsample(self.predict(self.decode(self.encode(image))), (height, width))


def build_segnet(spec: SegSpec) -> SegNet:
    """The network of a spec with random initialisation, drawn from torch's global generator."""
    return SegNet(spec)


class UNet(nn.Module):
    """Two 3x3 convolutions a level; max pooling down, bilinear up, maps joined by concatenation."""

    def __init__(self, spec: SegSpec) -> None:
        super().__init__()
        widths = spec.widths
        norm = FrozenBatchNorm2d if spec.frozen_batch_norm else nn.BatchNorm2d
        self.down = nn.ModuleList(_double(before, n, norm) for before, n in zip((3, *widths), widths, strict=False))
        self.up = nn.ModuleList(_double(widths[k + 1] + widths[k], widths[k]) for k in reversed(range(len(widths) - 1)))
        self.logits = nn.Conv2d(widths[0], len(spec.classes) + 1, 1)
        self._coarse_steps = len(widths) - 3  # up blocks that end at stride 4 or above

    def encode(self, image: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        x = image
        for level, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if level else x)
            maps.append(x)
        return maps

    def decode(self, pyramid: Sequence[Tensor]) -> Decoded:
        x = pyramid[-1]
        for step in range(self._coarse_steps):
            x = self._joined(step, x, pyramid[-2 - step])
        return Decoded(x, tuple(reversed(pyramid[:2])))

    def predict(self, decoded: Decoded) -> Tensor:
        x = decoded.features
        for step, skip in enumerate(decoded.finer, start=self._coarse_steps):
            x = self._joined(step, x, skip)
        return self.logits(x)

    def _joined(self, step: int, x: Tensor, skip: Tensor) -> Tensor:
        return self.up[step](torch.cat([_twice(x), skip], dim=1))


class DenseUNet(nn.Module):
    """DenseNet-161, and three blocks up: twice the size, plus the map of that stride, a 3x3 convolution."""

    def __init__(self, spec: SegSpec) -> None:
        super().__init__()
        trunk = densenet161(weights=None).features
        self.stem = nn.Sequential(trunk.conv0, trunk.norm0, trunk.relu0, trunk.pool0)
        self.blocks = nn.ModuleList([trunk.denseblock1, trunk.denseblock2, trunk.denseblock3, trunk.denseblock4])
        self.transitions = nn.ModuleList([trunk.transition1, trunk.transition2, trunk.transition3])
        self.norm = trunk.norm5
        if spec.frozen_batch_norm:
            freeze(self)  # torchvision's DenseNet takes no other norm; nothing but the trunk is here yet
        self.bridge = nn.Conv2d(DENSE_WIDTHS[2], DENSE_WIDTHS[3], 1)
        inputs, outputs = (DENSE_WIDTHS[3], *DENSE_UP_WIDTHS), (*DENSE_UP_WIDTHS, spec.feature_dim)
        self.up = nn.ModuleList(_single(before, after) for before, after in zip(inputs, outputs, strict=True))
        self.head = nn.Sequential(
            nn.Conv2d(spec.feature_dim, spec.head_channels, 3, padding=1),
            nn.Dropout2d(spec.dropout),
            nn.BatchNorm2d(spec.head_channels),
            nn.ReLU(),
            nn.Conv2d(spec.head_channels, len(spec.classes) + 1, 1),
        )

    def encode(self, image: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        x = self.stem(image)
        for level, block in enumerate(self.blocks):
            x = block(self.transitions[level - 1](x) if level else x)
            maps.append(x)
        maps[-1] = self.norm(x).relu()
        return maps

    def decode(self, pyramid: Sequence[Tensor]) -> Decoded:
        fine, middle, coarse, x = pyramid
        for block, skip in zip(self.up, (self.bridge(coarse), middle, fine), strict=True):
            x = block(_twice(x) + skip)
        return Decoded(x)

    def predict(self, decoded: Decoded) -> Tensor:
        return self.head(decoded.features)


def _single(before: int, after: int, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, padding=1), norm(after), nn.ReLU())


def _double(before: int, after: int, norm: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    return nn.Sequential(*_single(before, after, norm), *_single(after, after, norm))


def _twice(x: Tensor) -> Tensor:
    """(B, c, h, w) -> (B, c, 2h, 2w). By factor, not by size: then no weight depends on how large the window is."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
