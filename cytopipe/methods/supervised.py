"""Supervised training: the baseline of every comparison.

Paper    none; the losses are torchvision's (METHODS 6.1).
Loss     L = rpn_cls + rpn_reg + roi_cls + roi_reg (+ mask, for instance networks)
         rpn_cls  binary cross-entropy, mean over the sampled anchors
         rpn_reg  smooth L1 (β = 1/9), sum over positive / number of sampled anchors
         roi_cls  cross-entropy, mean over the sampled RoIs
         roi_reg  smooth L1 (β = 1/9) of the true class, sum over positive / number of sampled RoIs
         mask     binary cross-entropy on the 28 x 28 mask of the true class, mean over positive RoIs
Differs  detection and instance segmentation only: there is no semantic network yet.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from cytopipe.methods.base import Method, MethodConfig
from cytopipe.nets import DetNet
from cytopipe.semi import JITTERED, ROBUST, WEAK, Batch, Clock, EmaRule, ViewPlan, Weighted


class Supervised(Method):
    """Labelled images only; an EMA copy for evaluation on request."""

    class Config(MethodConfig):
        """Settings of `supervised`."""

        unsup_weight: float = Field(1.0, ge=0, description="no effect: every term of this method is supervised")
        view: Literal["weak", "jittered", "robust"] = Field(
            "weak",
            description="augmentation: flip; colour jitter too (as dual-alignment); at times grey or blur as well",
        )
        ema_eval: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="decay of an averaged copy of the network, used for evaluation only; not given: no copy",
        )

    name = "supervised"
    paper = "the labelled part of every method"
    tasks = frozenset({"detection", "instance"})
    status = "core"
    uses_unlabelled = False
    config: Config

    def views(self) -> ViewPlan:
        """One view of each labelled image, none of unlabelled ones."""
        return ViewPlan(unlabelled=(), weak={"weak": WEAK, "jittered": JITTERED, "robust": ROBUST}[self.config.view])

    def teacher(self) -> EmaRule | None:
        """The copy for evaluation, if asked for: it follows, and nothing follows it."""
        return None if self.config.ema_eval is None else EmaRule(self.config.ema_eval)

    def losses(self, batch: Batch, student: DetNet, teacher: DetNet | None, clock: Clock) -> dict[str, Weighted]:
        """The network's own terms on the labelled images, each with weight 1."""
        view = batch.labelled.weak
        out = student.losses(student.extract(view.image), view.targets, view.sizes, view.keys)
        return {name: Weighted(value, 1.0) for name, value in out.terms.items()}
