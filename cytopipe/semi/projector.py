"""The projector (METHODS 1.9): features into the space where a method compares them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


class Projector(nn.Module):
    """x = W2 σ(W1 H), σ = ReLU, both layers with bias.

    Initialised as torch's linear layers are, but from a generator of its own: building it draws nothing from torch's
    stream, so that the networks of two methods with one seed start equal (METHODS 2.1).
    """

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, *, seed: int) -> None:
        super().__init__()
        self.first = skip_init(nn.Linear, in_dim, hidden_dim)
        self.second = skip_init(nn.Linear, hidden_dim, out_dim)
        generator = torch.Generator().manual_seed(seed)
        for layer in (self.first, self.second):
            bound = 1.0 / math.sqrt(layer.in_features)
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.uniform_(layer.bias, -bound, bound, generator=generator)

    def forward(self, features: Tensor) -> Tensor:
        """Features (..., in_dim) -> embeddings (..., out_dim), not normalised; there may be none.

        On maps with their channels last it is a pair of 1x1 convolutions.
        """
        return self.second(torch.relu(self.first(features)))
