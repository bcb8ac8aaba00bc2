"""Mean teacher, for boxes, masks and pixels.

Paper    Tarvainen, Valpola: Mean teachers are better role models. NeurIPS 2017, section 2.
Idea     The student should answer as a moving average of itself does for another view of the same image.
Loss     p_s, p_t = softmax of student and teacher, w(t) = w_max · ramp(t)
         L = L_s + w(t) L_u (+ w(t) mask_weight L_mask),  L_s as in `supervised`
         boxes   teacher: weak view, student: strong view, of the n proposals of the teacher's RPN
                 L_u = (1/n) Σ_i Σ_c (p_s,ic − sg[p_t,ic])², over the C + 1 classes
                 L_mask = mean over the RoIs with 1 − p_t,i0 >= 0.5 of (m_s − sg[m_t])², m = mask probability of the
                 teacher's class
         pixels  student: weak view x, teacher: x + clip(0.1 N(0, 1), ±0.2)
                 L_u = mean over pixels and classes of (p_s − sg[p_t])², over the pixels that show the image
Differs  The paper classifies images. Distillation of class probabilities is how Dual Alignment's table 2 adapts it to
         detectors; the details are ours (METHODS 6.2). The dense form and its constants are those of SSL4MIS. Values
         that are not given take those of the task. Noise is drawn from the image's key, so that an image gets the same
         in any batch. The mask term is our addition.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from cytopipe.methods.base import Method, MethodConfig, PseudoLabels
from cytopipe.methods.forward import extract_both
from cytopipe.methods.shared_rois import in_both_views, refuse_other_geometry
from cytopipe.methods.supervised import ViewName, object_terms, pixel_terms
from cytopipe.nets import DetNet, Net, NetSpec, SegNet, SegSpec
from cytopipe.nets.losses import full_precision
from cytopipe.nets.ranks import mean_count
from cytopipe.semi import (
    PRESETS,
    STRONG,
    Batch,
    Clock,
    EmaRule,
    Part,
    Ramp,
    View,
    ViewPlan,
    Weighted,
    pseudo_label_signals,
)
from cytopipe.semi.cells import cells_shown
from cytopipe.semi.pixels import clipped_noise, pixel_pseudo_labels
from cytopipe.semi.signals import disagreement, pixel_signals
from cytopipe.semi.views import IGNORE

PRE_NMS = 2000  # RPN boxes a level before suppression [C: torchvision's training value]


class MeanTeacher(Method):
    """The teacher follows from the first step on, also while w(t) is still 0."""

    class Config(MethodConfig):
        """Settings of `mean-teacher`. What is not given is chosen by the task."""

        unsup_weight: float = Field(1.0, ge=0, description="factor of w_max: of L_u and L_mask")
        w_max: float | None = Field(None, ge=0, description="largest w; not given: 1 for boxes, 0.1 for pixels")
        alpha: float | None = Field(
            None,
            ge=0,
            le=1,
            description="EMA decay, min(1 − 1/(n+1), alpha); not given: 0.999 for boxes, 0.99 for pixels",
        )
        ramp_steps: int | None = Field(
            None,
            ge=0,
            description="length of w's gaussian ramp-up in steps; not given: a quarter of the run, 30000 for pixels",
        )
        ramp_every: int | None = Field(
            None, gt=0, description="steps between two changes of w; not given: 1, 150 for pixels"
        )
        first_step: int | None = Field(None, ge=0, description="no L_u before this step; not given: 0, 1000 for pixels")
        view: ViewName = Field("weak", description="augmentation of labelled images and of what the teacher sees")
        proposals_per_image: int = Field(512, gt=0, description="RPN boxes of the teacher, after suppression")
        mask_weight: float = Field(0.0, ge=0, description="factor of L_mask, networks with masks only; 0: no such term")
        mask_foreground: float = Field(0.5, ge=0, le=1, description="least 1 − p_t,0 of a RoI whose mask is compared")
        noise_std: float = Field(0.1, ge=0, description="of the teacher's input for pixels, in normalised image units")
        noise_limit: float = Field(0.2, ge=0, description="where that noise is clipped")
        dice_weight: float = Field(0.0, ge=0, le=1, description="share of soft Dice in L_s, as in `supervised`")

    name = "mean-teacher"
    paper = "Tarvainen and Valpola, Mean teachers are better role models, NeurIPS 2017"
    tasks = frozenset({"detection", "instance", "semantic"})
    status = "core"
    uses_unlabelled = True
    config: Config

    def __init__(self, net_spec: NetSpec | SegSpec, config: Config, *, seed: int = 0) -> None:
        super().__init__(net_spec, config, seed=seed)
        self._seen: dict[str, Tensor] = {}
        self._pixels: tuple[Tensor, Tensor] | None = None

    @property
    def of_pixels(self) -> bool:
        """Whether pixels are compared, not RoIs."""
        return self.net_spec.task == "semantic"

    @property
    def first_step(self) -> int:
        """The first step with L_u."""
        given = self.config.first_step
        return given if given is not None else 1000 if self.of_pixels else 0

    def views(self) -> ViewPlan:
        """Pixels: one view, the teacher's with noise. Boxes: the student sees a strong view of the same geometry."""
        weak = {"weak": PRESETS[self.config.view]}
        return ViewPlan(labelled=weak, unlabelled=weak if self.of_pixels else weak | {"strong": STRONG})

    def teacher(self) -> EmaRule:
        """α = min(1 − 1/(n+1), alpha)."""
        published = 0.99 if self.of_pixels else 0.999
        return EmaRule(published if self.config.alpha is None else self.config.alpha)

    def weight(self, clock: Clock) -> float:
        """w(t) = w_max exp(−5(1 − u)²) with u = t / ramp_steps, in steps of `ramp_every`; 0 before `first_step`."""
        if clock.t < self.first_step:
            return 0.0
        c = self.config
        w_max = c.w_max if c.w_max is not None else 0.1 if self.of_pixels else 1.0
        length = c.ramp_steps if c.ramp_steps is not None else 30_000 if self.of_pixels else 0.25 * clock.T
        every = c.ramp_every if c.ramp_every is not None else 150 if self.of_pixels else 1
        return c.unsup_weight * w_max * Ramp.gaussian(0, length)(clock.t // every * every)

    def losses(self, batch: Batch, student: Net, teacher: Net | None, clock: Clock) -> dict[str, Weighted]:
        """Terms of one step; before `first_step`, and with `unsup_weight` 0, those of `supervised` alone.

        batch.labelled.weak      image (B_l, 3, H, W) float32, with targets; pixels: with labels (B_l, H, W)
        batch.unlabelled.weak    image (B_u, 3, H, W) float32
        batch.unlabelled.strong  boxes only: the same geometry
        """
        labelled = batch.labelled.weak
        self._seen, self._pixels = {}, None
        if self.config.unsup_weight == 0 or clock.t < self.first_step:
            if self.of_pixels:
                return pixel_terms(student(labelled.image), labelled, dice_weight=self.config.dice_weight)
            return object_terms(student, student.extract(labelled.image), labelled)
        if batch.unlabelled is None or teacher is None:
            raise ValueError("mean-teacher: a batch without unlabelled images, or no teacher")
        self._seen["w"] = torch.tensor(self.weight(clock))
        if self.of_pixels:
            return self._pixel_losses(labelled, batch.unlabelled.weak, student, teacher, self.weight(clock))
        return self._object_losses(labelled, batch.unlabelled, student, teacher, self.weight(clock))

    def _object_losses(
        self, labelled: View, unlabelled: Part, student: DetNet, teacher: DetNet, w: float
    ) -> dict[str, Weighted]:
        weak, strong = unlabelled.weak, unlabelled.views["strong"]
        feats_l, feats_s = extract_both(student, labelled.image, strong.image)
        terms = object_terms(student, feats_l, labelled)

        with torch.no_grad():
            feats_t = teacher.extract(weak.image)
            proposals, _ = teacher.propose(feats_t, weak.sizes, PRE_NMS, self.config.proposals_per_image)
            rois_t, rois_s = in_both_views(proposals, weak, strong)
            logits_t, _, _ = teacher.score(feats_t, rois_t)
        logits_s, _, _ = student.score(feats_s, rois_s)
        terms["L_u"] = Weighted(class_consistency(logits_s, logits_t), w)

        p_t = logits_t.softmax(dim=1)
        confidence, pseudo = p_t[:, 1:].max(dim=1)  # class 0: the first foreground
        if self.config.mask_weight > 0 and student.spec.task == "instance":
            refuse_other_geometry(weak, strong)
            use = (1 - p_t[:, 0] >= self.config.mask_foreground).split([len(rois) for rois in rois_t])
            labels = pseudo[torch.cat(use)] + 1
            with torch.no_grad():
                masks_t = teacher.mask(feats_t, [rois[u] for rois, u in zip(rois_t, use, strict=True)], labels)
            masks_s = student.mask(feats_s, [rois[u] for rois, u in zip(rois_s, use, strict=True)], labels)
            terms["L_mask"] = Weighted(mask_consistency(masks_s, masks_t), self.config.mask_weight * w)

        names = [item.name for item in self.net_spec.classes]
        is_object = logits_t.argmax(dim=1) > 0
        self._seen |= pseudo_label_signals(pseudo, confidence, is_object, [len(rois) for rois in rois_t], names)
        self._seen["disagreement"] = disagreement(logits_s, logits_t)
        return terms

    def _pixel_losses(
        self, labelled: View, unlabelled: View, student: SegNet, teacher: SegNet, w: float
    ) -> dict[str, Weighted]:
        terms = pixel_terms(student(labelled.image), labelled, dice_weight=self.config.dice_weight)
        with student.frozen_statistics():  # running statistics are those of labelled images, METHODS 1.7
            logits_s = student(unlabelled.image)
        noise = clipped_noise(unlabelled.image, unlabelled.keys, self.config.noise_std, self.config.noise_limit)
        with torch.no_grad():
            logits_t = teacher(unlabelled.image + noise)
        seen = cells_shown(unlabelled, 1)
        terms["L_u"] = Weighted(pixel_consistency(logits_s, logits_t, seen), w)

        pseudo, confidence, _ = pixel_pseudo_labels(logits_t, 0.0)
        self._pixels = pseudo.masked_fill(~seen, IGNORE), confidence
        self._seen |= pixel_signals(pseudo, confidence, seen, [item.name for item in self.net_spec.classes])
        self._seen["disagreement"] = disagreement(logits_s, logits_t)
        return terms

    def signals(self) -> dict[str, float]:
        """w(t) and the collapse signals of METHODS 1.9. RoIs count where they are objects."""
        return {name: float(value) for name, value in self._seen.items()}

    def pseudo(self) -> list[PseudoLabels] | None:
        """Pixels: what the teacher saw in each unlabelled image. RoIs are compared by the hundred, and not shown."""
        return None if self._pixels is None else [PseudoLabels(None, *both) for both in zip(*self._pixels, strict=True)]


def class_consistency(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """L_u of boxes: logits (n, C + 1), squared distance of the class probabilities, mean over the RoIs; 0 for n = 0."""
    p_s, p_t = (full_precision(logits).softmax(dim=1) for logits in (logits_s, logits_t.detach()))
    squared = (p_s - p_t).square()
    return squared.sum() / mean_count(len(squared)).clamp(min=1).to(squared)


def mask_consistency(masks_s: Tensor, masks_t: Tensor) -> Tensor:
    """L_mask: mask logits (n, h, w), mean squared difference of the probabilities over RoIs and cells; 0 for n = 0."""
    m_s, m_t = (full_precision(masks).sigmoid() for masks in (masks_s, masks_t.detach()))
    squared = (m_s - m_t).square()
    return squared.sum() / mean_count(squared.numel()).clamp(min=1).to(squared)


def pixel_consistency(logits_s: Tensor, logits_t: Tensor, seen: Tensor | None = None) -> Tensor:
    """L_u of pixels: logits (B, C, H, W), mean over pixels and classes of the squared difference of probabilities.

    seen  (B, H, W) bool, pixels that show the image; the others take no part (METHODS 1.6). None: all show it
    """
    p_s, p_t = (full_precision(logits).softmax(dim=1) for logits in (logits_s, logits_t.detach()))
    squared = (p_s - p_t).square()
    if seen is None:
        seen = torch.ones_like(squared[:, 0], dtype=torch.bool)
    total = torch.where(seen[:, None], squared, 0.0).sum()
    return total / mean_count(seen.sum() * squared.shape[1]).clamp(min=1).to(total)
