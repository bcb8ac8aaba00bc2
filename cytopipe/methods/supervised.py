"""Supervised training: the baseline of every comparison.

Paper    none; the losses are torchvision's, and those of SSL4MIS for pixels (METHODS 6.1).
Loss     detection  L = rpn_cls + rpn_reg + roi_cls + roi_reg
         instance   L = rpn_cls + rpn_reg + roi_cls + roi_reg + mask
         semantic   L = (1 − d) CE + d Dice,  d = dice_weight

         rpn_cls  binary cross-entropy, mean over the sampled anchors
         rpn_reg  smooth L1 (β = 1/9), sum over positive / number of sampled anchors
         roi_cls  cross-entropy, mean over the sampled RoIs
         roi_reg  smooth L1 (β = 1/9) of the true class, sum over positive / number of sampled RoIs
         mask     binary cross-entropy on the 28 x 28 mask of the true class, mean over positive RoIs
         CE       −log p_y at the size of the image, mean over the pixels with a label (255 = none)
         Dice     1 − (2 Σ p s + ε) / (Σ p² + Σ s² + ε), ε = 1e-5, over batch and pixels, mean over classes
Differs  Anchors and RoIs are drawn from each image's own seed, not from torch's generator: every method samples the
         same ones, on one process and on several. Normalisers count the whole batch of all processes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from cytopipe.methods.base import Method, MethodConfig
from cytopipe.nets import DetNet, Net
from cytopipe.semi import PRESETS, Batch, Clock, EmaRule, View, ViewPlan, Weighted
from cytopipe.semi.pixels import pixel_cross_entropy, soft_dice

ViewName = Literal["weak", "jittered", "robust", "psm-labelled", "cdcl-weak", "mspa"]


class Supervised(Method):
    """Labelled images only; an EMA copy for evaluation on request."""

    class Config(MethodConfig):
        """Settings of `supervised`."""

        unsup_weight: float = Field(1.0, ge=0, description="no effect: every term of this method is supervised")
        view: ViewName = Field(
            "weak",
            description="augmentation: flip; colour jitter too (as dual-alignment); at times grey or blur as well; or "
            "that of the labelled images of mmt-psm, cdcl, mspa",
        )
        dice_weight: float = Field(
            0.0, ge=0, le=1, description="d, share of the soft Dice loss beside cross-entropy; semantic networks only"
        )
        ema_eval: float | None = Field(
            None,
            ge=0,
            lt=1,
            description="decay of an averaged copy of the network, used for evaluation only; not given: no copy",
        )
        consume_unlabelled: bool = Field(
            False, description="draw unlabelled images and look at none: for fair comparisons of speed"
        )

    name = "supervised"
    paper = "the labelled part of every method"
    tasks = frozenset({"detection", "instance", "semantic"})
    status = "core"
    uses_unlabelled = False
    config: Config

    def views(self) -> ViewPlan:
        """One view of each labelled image; of unlabelled ones none, or one that nobody looks at."""
        weak = {"weak": PRESETS[self.config.view]}
        return ViewPlan(labelled=weak, unlabelled=weak if self.config.consume_unlabelled else {})

    def teacher(self) -> EmaRule | None:
        """The copy for evaluation, if asked for: it follows, and nothing follows it."""
        return None if self.config.ema_eval is None else EmaRule(self.config.ema_eval)

    def losses(self, batch: Batch, student: Net, teacher: Net | None, clock: Clock) -> dict[str, Weighted]:
        """L on the labelled images; `batch.unlabelled` is not read.

        batch.labelled.weak  image (B, 3, H, W) float32, with targets; semantic: with labels (B, H, W), 255 = ignore
        """
        view = batch.labelled.weak
        if self.net_spec.task == "semantic":
            return pixel_terms(student(view.image), view, dice_weight=self.config.dice_weight)
        return object_terms(student, student.extract(view.image), view)


def object_terms(
    student: DetNet, feats: dict[int, Tensor], view: View, *, focal_gamma: float | None = None
) -> dict[str, Weighted]:
    """The terms of a labelled view from its features; `focal_gamma` as in `DetNet.losses`."""
    out = student.losses(feats, view.targets, view.sizes, view.keys, focal_gamma=focal_gamma)
    return {name: Weighted(value, 1.0) for name, value in out.terms.items()}


def pixel_terms(logits: Tensor, view: View, *, dice_weight: float = 0.0) -> dict[str, Weighted]:
    """(1 − d) CE + d Dice of logits (B, C, H, W) at the size of the view; a term with weight 0 is left out."""
    if view.labels is None:
        raise ValueError("supervised: a labelled view without a class map, and a semantic network")
    terms = {}
    if dice_weight < 1:
        terms["ce"] = Weighted(pixel_cross_entropy(logits, view.labels), 1.0 - dice_weight)
    if dice_weight > 0:
        terms["dice"] = Weighted(soft_dice(logits, view.labels), dice_weight)
    return terms
