"""Mixed precision of a step: in which type the forward pass computes, and how gradients are scaled that would vanish in
16 bits.

bf16 has the range of float32 and needs no scale. fp16 does: the loss is multiplied before the backward pass, the
gradients are divided after it, and a step whose gradients overflowed is left out (Micikevicius et al., ICLR 2018). The
scale follows the gradients, so it is part of the state that exact resume needs.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn

TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """One run's mixed precision; with "off" every call is that of plain float32."""

    def __init__(self, amp: Literal["off", "bf16", "fp16"], device: torch.device) -> None:
        self._type, self._device = TYPES.get(amp), device
        self._scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    @property
    def scale(self) -> float | None:
        """What the loss is multiplied by; None where it is not."""
        return float(self._scaler.get_scale()) if self._scaler.is_enabled() else None

    def forward(self) -> AbstractContextManager[Any]:
        """Inside, convolutions and matrix products compute in 16 bits."""
        return nullcontext() if self._type is None else torch.autocast(self._device.type, dtype=self._type)

    def backward(self, total: Tensor) -> None:
        """Add the gradients of a scalar, scaled."""
        self._scaler.scale(total).backward()

    def step(
        self, optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], clip_norm: float | None
    ) -> float | None:
        """Scale the gradients back, clip their norm, step. Returns the norm before clipping; None: nothing is clipped.

        A step whose gradients overflowed in 16 bits is left out, and the scale halved.
        """
        norm = None
        if clip_norm is not None:
            self._scaler.unscale_(optimiser)
            norm = float(nn.utils.clip_grad_norm_(parameters, clip_norm))
        self._scaler.step(optimiser)
        self._scaler.update()
        return norm

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps; empty without a scale."""
        return {key: float(value) for key, value in self._scaler.state_dict().items()}

    def restore(self, state: dict[str, float]) -> None:
        """Go on from `state()`."""
        if self._scaler.is_enabled() and state:
            counts = {key: int(state[key]) for key in ("growth_interval", "_growth_tracker")}
            self._scaler.load_state_dict(state | counts)
