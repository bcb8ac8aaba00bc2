"""Adapters: a 1x1 convolution behind each level of a pyramid, into the space where teacher and student are compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


class Adapters(nn.Module):
    """Maps {level: (B, in_channels, h, w)} -> {level: (B, out_channels, h, w)}.

    Weights Kaiming-uniform with a = 1, biases zero [C: MMT-PSM], from a generator of its own: making them draws nothing
    from torch's stream, so that the networks of two methods with one seed start equal (METHODS 2.1).
    """

    def __init__(self, levels: Sequence[int], in_channels: int, out_channels: int, *, seed: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleDict()
        for level in levels:
            layer = skip_init(nn.Conv2d, in_channels, out_channels, 1)
            nn.init.kaiming_uniform_(layer.weight, a=1, generator=generator)
            nn.init.zeros_(layer.bias)
            self.layers[str(level)] = layer

    def forward(self, feats: dict[int, Tensor]) -> dict[int, Tensor]:
        """The adapted maps of the levels that have an adapter; float32 also under autocast."""
        return {int(level): layer(feats[int(level)]).float() for level, layer in self.layers.items()}
