"""The EMA teacher (METHODS 1.4): a copy of the student that follows it after each optimiser step.

The teacher has the student's parameters, with whatever a method attached to the student; a method's own proxies, banks
and discriminators are not the student's and have no copy here. Its counter is a buffer: the state dict holds all that
exact resume needs.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class EmaRule:
    """How a teacher follows: θ' ← α θ' + (1 − α) θ.

    alpha    the decay, in [0, 1]
    warm     α = min(1 − 1/(n+1), alpha) with n updates done so far: the first update copies the student
    buffers  batch-norm statistics: "copy" them (they are averages already), or "average" the float ones (integer
             buffers are always copied)
    start    iteration at whose beginning the teacher becomes a copy of the student, parameters and buffers; it follows
             after each optimiser step from that one on (burn-in, METHODS 1.5)
    """

    alpha: float
    warm: bool = True
    buffers: Literal["copy", "average"] = "copy"
    start: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ValueError(f"EmaRule: alpha {self.alpha} is not in [0, 1]")
        if self.start < 0:
            raise ValueError(f"EmaRule: start {self.start} is below 0")

    def alpha_at(self, updates: int) -> float:
        """α of the next update, after `updates` of them."""
        return min(1.0 - 1.0 / (updates + 1), self.alpha) if self.warm else self.alpha


class EmaTeacher(nn.Module):
    """The averaged copy. `net` has the student's verbs and is what methods receive as `teacher`.

    Always in eval mode (`train()` changes nothing), without gradients. Make it after `method.attach(student)`.
    """

    updates: torch.Tensor

    def __init__(self, student: nn.Module, rule: EmaRule) -> None:
        super().__init__()
        self.rule = rule
        self.net = copy.deepcopy(student).eval().requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.training = False

    @torch.no_grad()
    def copy(self, student: nn.Module) -> None:
        """Become the student, bit for bit: at the end of burn-in. The count of updates starts anew.

        Raises ValueError as `follow`.
        """
        for of in (nn.Module.named_parameters, nn.Module.named_buffers):
            for mine, its in _pairs(dict(of(self.net)), dict(of(student))):
                mine.copy_(its)
        self.updates.zero_()

    @torch.no_grad()
    def follow(self, student: nn.Module) -> float:
        """One update from the student; returns the α used.

        Raises ValueError if the names of the student's parameters or buffers are no longer the teacher's.
        """
        alpha = self.rule.alpha_at(int(self.updates))
        for mine, its in _pairs(dict(self.net.named_parameters()), dict(student.named_parameters())):
            mine.lerp_(its.to(mine.dtype), 1.0 - alpha)  # exact at both ends: α = 1 leaves, α = 0 copies
        for mine, its in _pairs(dict(self.net.named_buffers()), dict(student.named_buffers())):
            if self.rule.buffers == "average" and mine.is_floating_point():
                mine.lerp_(its, 1.0 - alpha)
            else:
                mine.copy_(its)
        self.updates += 1
        return alpha

    def train(self, mode: bool = True) -> Self:
        """Changes nothing: dropout stays off and batch norm on its running statistics, whoever asks."""
        return self


def _pairs(mine: dict[str, torch.Tensor], its: dict[str, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    if mine.keys() != its.keys():
        raise ValueError(f"EmaTeacher: student and teacher differ in {sorted(mine.keys() ^ its.keys())}")
    return [(mine[name], its[name]) for name in mine]
