"""What the engine knows of a method: settings, views, teacher, parameters of its own, and the terms of its loss.

A method computes terms and nothing else; the loop, the sum, the optimiser, the teacher's updates and the log are the
engine's. What a method trains is of two kinds: proxies, banks and the like are the method's own submodules and buffers;
what the teacher must have a copy of (projectors, adapters) is attached to the student.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cytopipe.core.seeds import seed_from
from cytopipe.semi import Batch, Clock, EmaRule, ViewPlan, Weighted

if TYPE_CHECKING:
    from cytopipe.nets import Net, NetSpec, SegSpec


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
    """Parameters that a method trains by settings of its own, also such as it attached to the student.

    lr, momentum  None: the recipe's. `lr` is that of the start; it decays as the student's.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    lr: float | None
    momentum: float | None
    weight_decay: float


@dataclass(frozen=True, slots=True, eq=False)
class PseudoLabels:
    """What a method took for the truth of one unlabelled image in its last step: for the report's pictures.

    boxes       (n, 4) float32, px of the view; None for a semantic method
    labels      (n,) int64 1..C; or, semantic, the class map (H, W) int64 with 0 = background and 255 = not used
    scores      (n,) float32; or, semantic, the confidence (H, W) float32
    """

    boxes: Tensor | None
    labels: Tensor
    scores: Tensor


class Method(nn.Module, ABC):
    """One training method; its file is its paper's method section.

    name             as `train --method` takes it
    paper            authors, title, venue
    tasks            what it can train: "detection", "instance", "semantic"
    status           "experimental" where constants of the paper could not be verified
    uses_unlabelled  whether it reads unlabelled images: without them `train` refuses
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    tasks: ClassVar[frozenset[str]]
    status: ClassVar[Literal["core", "experimental"]]
    uses_unlabelled: ClassVar[bool]
    Config: ClassVar[type[MethodConfig]]

    def __init__(self, net_spec: NetSpec | SegSpec, config: MethodConfig, *, seed: int = 0) -> None:
        """`seed` is the run's; what the method initialises is drawn from streams of its own (METHODS 2.1)."""
        super().__init__()
        self.net_spec, self.config, self.seed = net_spec, config, seed

    def attach(self, student: Net) -> None:
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
    def losses(self, batch: Batch, student: Net, teacher: Net | None, clock: Clock) -> dict[str, Weighted]:
        """The terms of one step, by the paper's names; the engine sums them. No gradient reaches the teacher.

        Means over things whose number differs between the processes of a run divide by `nets.ranks.mean_count`. What is
        drawn for the whole batch may come from torch's own generator: the engine seeds it by (seed, t), alike on all
        ranks. What is drawn for one image comes from its key.
        """

    def after_step(self, clock: Clock) -> None:
        """What happens after the optimiser step that `losses` led to: banks take up what the step saw.

        Called once for each call of `losses`: where a step accumulates gradients over parts of its batch, after each
        part's backward pass. Banks push `nets.ranks.gather_rows(...)`, to be the same on all ranks.
        """

    def signals(self) -> dict[str, float]:
        """Numbers of the last `losses` for the log and the collapse detector; waits for the device."""
        return {}

    def pseudo(self) -> list[PseudoLabels] | None:
        """The pseudo-labels of the last `losses`, one a unlabelled image, for the report; None: the method has none."""
        return None

    def stream(self, what: str) -> int:
        """The seed of one thing that the method initialises."""
        return seed_from(self.seed, self.name, what)
