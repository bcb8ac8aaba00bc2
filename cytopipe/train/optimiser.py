"""The optimiser of a run: the student's parameters by the recipe, a method's own by its groups, one schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from cytopipe.methods import Method
from cytopipe.nets import Net
from cytopipe.train.settings import TrainSettings


class Optimiser:
    """One torch optimiser with several groups. All learning rates have the same factor at iteration t.

    torch       the optimiser itself
    parameters  all that it trains, in order
    """

    def __init__(self, student: Net, method: Method, settings: TrainSettings) -> None:
        groups = _groups(student, method, settings)
        self.torch = (torch.optim.SGD if settings.optimiser == "sgd" else torch.optim.Adam)(groups, lr=settings.lr)
        self.parameters: list[nn.Parameter] = [p for group in groups for p in group["params"]]
        self._settings, self._start_lr = settings, [group["lr"] for group in groups]

    def set_rate(self, t: int) -> float:
        """Set the learning rates of iteration t; returns the student's."""
        factor = self._settings.lr_factor(t)
        for group, start in zip(self.torch.param_groups, self._start_lr, strict=True):
            group["lr"] = start * factor
        return self._settings.lr * factor


def _groups(student: Net, method: Method, settings: TrainSettings) -> list[dict[str, Any]]:
    own = method.groups()
    taken = {id(p) for group in own for p in group.parameters}
    sgd = settings.optimiser == "sgd"
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in student.parameters() if p.requires_grad and id(p) not in taken],
            "lr": settings.lr,
            "weight_decay": settings.weight_decay,
            **({"momentum": settings.momentum} if sgd else {}),
        }
    ]
    for group in own:
        lr = settings.lr if group.lr is None else group.lr
        momentum = {"momentum": settings.momentum if group.momentum is None else group.momentum} if sgd else {}
        groups.append({"params": list(group.parameters), "lr": lr, "weight_decay": group.weight_decay, **momentum})
    return groups
