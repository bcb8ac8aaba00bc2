"""What the engine knows of a method: settings, views, teacher, parameters of its own, and the terms of its loss.

A method computes terms and nothing else; the loop, the sum, the optimiser, the teacher's updates and the log are the
engine's. What a method trains is of two kinds: proxies, banks and the like are the method's own submodules and buffers;
what the teacher must have a copy of (projectors, adapters) is attached to the student.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from cytopipe.core.seeds import seed_from
from cytopipe.nets import DetNet, NetSpec
from cytopipe.semi import Batch, Clock, EmaRule, ViewPlan, Weighted


class MethodConfig(BaseModel):
    """What every method's settings share: frozen, and no unknown key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    unsup_weight: float = Field(
        1.0,
        ge=0,
        description="factor of all terms but the method's own supervised one; 0 makes the method its own baseline",
    )


@dataclass(frozen=True, slots=True, eq=False)
class ParamGroup:
    """Parameters that a method trains by settings of its own. `lr` is that of the start; it decays as the student's."""

    name: str
    parameters: tuple[nn.Parameter, ...]
    lr: float
    momentum: float
    weight_decay: float


class Method(nn.Module, ABC):
    """One training method; its file is its paper's method section.

    name             as `train --method` takes it
    paper            authors, title, venue
    tasks            what it can train
    status           "experimental" where constants of the paper could not be verified
    uses_unlabelled  whether it reads unlabelled images: without them `train` refuses
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    tasks: ClassVar[frozenset[str]]
    status: ClassVar[Literal["core", "experimental"]]
    uses_unlabelled: ClassVar[bool]
    Config: ClassVar[type[MethodConfig]]

    def __init__(self, net_spec: NetSpec, config: MethodConfig, *, seed: int = 0) -> None:
        """`seed` is the run's; what the method initialises is drawn from streams of its own (METHODS 2.1)."""
        super().__init__()
        self.net_spec, self.config, self.seed = net_spec, config, seed

    def attach(self, student: DetNet) -> None:
        """Put what the teacher must have a copy of into `student.extra`; called once, before the teacher is made."""

    def views(self) -> ViewPlan:
        """The views that the batches must hold."""
        return ViewPlan()

    def teacher(self) -> EmaRule | None:
        """How an EMA teacher follows the student; None: the method has none."""
        return None

    def groups(self) -> list[ParamGroup]:
        """The method's own parameters with their settings; the student's are the recipe's."""
        return []

    @abstractmethod
    def losses(self, batch: Batch, student: DetNet, teacher: DetNet | None, clock: Clock) -> dict[str, Weighted]:
        """The terms of one step, by the paper's names; the engine sums them. No gradient reaches the teacher."""

    def after_step(self, clock: Clock) -> None:
        """What happens after the optimiser step that `losses` led to: banks take up what the step saw."""

    def signals(self) -> dict[str, float]:
        """Numbers of the last `losses` for the log and the collapse detector; waits for the device."""
        return {}

    def stream(self, what: str) -> int:
        """The seed of one thing that the method initialises."""
        return seed_from(self.seed, self.name, what)
