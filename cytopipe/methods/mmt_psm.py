"""Mask-guided mean teacher with perturbation-sensitive sample mining.

Paper    Zhou, Chen, Lin, Heng: Deep Semi-supervised Knowledge Distillation for Overlapping Cervical Cell Instance
         Segmentation. MICCAI 2020. Code: SIAAAAAA/MMT-PSM.
Idea     A mean teacher sees K augmented copies of an unlabelled image. The mean of its class probabilities for shared
         proposals R is a soft pseudo-label; their variance says how sensitive a proposal is to perturbation. All
         foreground proposals, and as many of the most sensitive background ones, train the student's classifier; and
         its features follow the teacher's inside the masks that the teacher finds.
Loss     P̄_i = 1/K Σ_k f_cls(x^T_ik, R; θ'),  S(P̄) = P̄^(1/t) / Σ_c P̄_c^(1/t)                                 (Eq. 1)
         Var_i = 1/K Σ_k (f_cls(x^T_ik, R; θ') − P̄_i)²                                                     (Eq. 2)
         L_psm = 1/(M L) Σ_i Σ_l mean_j w_j L_ce(f_cls(x^S_il, R; θ)_j, sg S(P̄_i)_j) over the kept j,
                 L_ce(p, q) = −Σ_c q_c log p_c                                                             (Eq. 3)
         L_mgd = 1/(C_a T) Σ_t [Σ_ij M_tij Σ_c (Z^T_tijc − Z^S_tijc)² / (Σ_ij M_tij + 1e-7)],
                 Z = 1x1 adapters on the T levels of the pyramid                                           (Eq. 4)
         L = L_sup + λ(t) (L_psm + γ L_mgd),  L_sup = L_rpn + L_cls + L_reg + L_seg                        (Eq. 5)
         λ(t) = 0 for t < 1000, exp(−125 (1 − t/1250)²) up to 1250, 1, exp(−12 (1 − (T−t)/250)²) in the last 250 steps
         θ' = α_t θ' + (1 − α_t) θ, α_t = min(1 − 1/(t − 990), 0.99) for t > 990
Differs  S is printed with the exponent t = 0.5, which flattens: ours is that of the code and of MixMatch, 1/t
         (`sharpen`). The sensitivity is the sum of Var over classes; the code sums standard deviations (`sensitivity`)
         and averages logits (`ensemble`). Eq. 3 has no index for its mean; ours runs over the kept proposals, the code
         divides by C + 1 besides (`psm_scale`), keeps half as many background proposals (`bg_ratio`), and takes labels
         from the teacher's detections where the paper has, and we have, the argmax of P̄. "Half of them are flipped" is
         an exact mirror twin of each of the teacher's copies, so that the ensemble is balanced, and chance for the
         student's. RPN terms join L_sup, which Eq. 5 leaves out. The printed α_t lost its numerator. L_mgd is least
         where both adapters give 0, and nothing supervised uses them: they are spared weight decay
         (`adapter_weight_decay`) and the mean norm of Z^S inside M is logged (`adapter_norm`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cytopipe.methods.base import Method, MethodConfig, ParamGroup, PseudoLabels
from cytopipe.methods.forward import extract_both
from cytopipe.methods.supervised import object_terms
from cytopipe.nets import DetNet, NetSpec
from cytopipe.nets.ranks import mean_count
from cytopipe.semi import WEAK, Batch, Clock, EmaRule, Ramp, View, ViewPlan, Weighted, pseudo_label_signals
from cytopipe.semi.adapters import Adapters
from cytopipe.semi.mapping import map_boxes, map_features
from cytopipe.semi.mirror import mirrored
from cytopipe.semi.object_masks import level_mask, union_of_masks
from cytopipe.semi.presets import PSM

LEVELS = (2, 3, 4, 5, 6)  # T = 5 levels of the pyramid [C]
PRE_NMS = 2000  # RPN boxes before suppression [C: torchvision's training value]
RAMPDOWN_K = 12.0  # exponent of λ's end [P]
COPIED_BEFORE = 9  # the teacher follows from 991, 9 steps before the first use of unlabelled images [P]
MASK_FLOOR = 1e-7  # beside Σ M in Eq. 4 [C]

Maps = Mapping[int, Tensor]
"""One tensor a level of the pyramid: features (B, c, h, w), or masks M (B, h, w) of 0 and 1."""


class MmtPsm(Method):
    """The adapters are the student's (`extra["adapters"]`); the teacher's are their moving average."""

    class Config(MethodConfig):
        """Settings of `mmt-psm`, in the paper's symbols."""

        unsup_weight: float = Field(1.0, ge=0, description="w_max, largest λ: factor of L_psm and γ L_mgd")
        burn_in: int = Field(1000, ge=0, description="iterations on labelled images alone, before the teacher is used")
        ramp_steps: int = Field(250, ge=0, description="length of λ's gaussian ramp-up after burn-in, in iterations")
        rampdown_steps: int = Field(250, ge=0, description="length of λ's gaussian ramp-down at the end, in iterations")
        alpha: float = Field(0.99, ge=0, lt=1, description="α, largest EMA decay of the teacher")
        gamma: float = Field(5.0, ge=0, description="γ, factor of L_mgd beside L_psm; 0: without L_mgd")
        psm_weight: float = Field(1.0, ge=0, description="factor of L_psm beside γ L_mgd; 0: without L_psm")
        teacher_copies: int = Field(2, gt=0, description="colour copies of an unlabelled image for the teacher")
        flipped_twins: bool = Field(
            True, description="the teacher sees each colour copy mirrored, too: K = 2 teacher_copies"
        )
        student_copies: int = Field(1, gt=0, description="L, copies of an unlabelled image for the student")
        proposals_per_image: int = Field(512, gt=0, description="teacher's RPN boxes R of an image, after suppression")
        ensemble: Literal["probs", "logits"] = Field(
            "probs", description="P̄: mean of the teacher's probabilities, or the softmax of its mean logits (code)"
        )
        sharpen: Literal["inverse", "printed"] = Field(
            "inverse", description="exponent of S: 1/t, which sharpens, or t as printed, which flattens"
        )
        temperature: float = Field(0.5, gt=0, le=1, description="t of S")
        sensitivity: Literal["var", "std"] = Field(
            "var", description="of a proposal: sum over classes of Var, or of its root (code)"
        )
        bg_ratio: float = Field(1.0, ge=0, description="background proposals kept for each foreground one (code: 0.5)")
        background_weight: float = Field(1.5, ge=0, description="w of proposals with the hard label background")
        psm_scale: float = Field(1.0, gt=0, description="factor of L_psm inside Eq. 3 (code: 1/(C+1))")
        mask_score: float = Field(0.5, ge=0, le=1, description="least score of the detections whose masks make M")
        adapter_weight_decay: float = Field(0.0, ge=0, description="weight decay of the adapters, a group of their own")

    name = "mmt-psm"
    paper = (
        "Zhou et al., Deep Semi-supervised Knowledge Distillation for Overlapping Cervical Cell Instance Segmentation, "
        "MICCAI 2020"
    )
    tasks = frozenset({"instance"})
    status = "core"
    uses_unlabelled = True
    config: Config

    def __init__(self, net_spec: NetSpec, config: Config, *, seed: int = 0) -> None:
        super().__init__(net_spec, config, seed=seed)
        self._adapters: tuple[nn.Parameter, ...] = ()  # the student's: in a tuple, they are not registered here
        self._seen: dict[str, Tensor] = {}
        self._pseudo: list[PseudoLabels] | None = None

    def attach(self, student: DetNet) -> None:
        """1x1 convolutions to half the channels on P2 to P6 [P]; none without L_mgd."""
        if self.config.gamma > 0:
            channels = self.net_spec.fpn_channels
            adapters = Adapters(LEVELS, channels, channels // 2, seed=self.stream("adapters"))
            student.extra["adapters"] = adapters
            self._adapters = tuple(adapters.parameters())

    def views(self) -> ViewPlan:
        """Copies by Augmentor A of one crop. The teacher's first is named weak: its px are those of R and M.

        The labelled view is that of the comparison; the recipe gives it Augmentor A for all methods at once.
        """
        for_teacher = dict.fromkeys(_teacher_names(self.config.teacher_copies), PSM)
        for_student = dict.fromkeys(_student_names(self.config.student_copies), replace(PSM, own_hflip_p=0.5))
        return ViewPlan(labelled={"weak": WEAK}, unlabelled=for_teacher | for_student)

    def teacher(self) -> EmaRule:
        """A copy of the student at 990, and its warm average from 991 on: α_991 = 0, α_992 = 1/2, …, 0.99 from 1090."""
        return EmaRule(self.config.alpha, warm=True, start=max(self.config.burn_in - COPIED_BEFORE, 0))

    def groups(self) -> list[ParamGroup]:
        """The adapters, with the recipe's learning rate and a weight decay of their own."""
        if not self._adapters:
            return []
        decay = self.config.adapter_weight_decay
        return [ParamGroup("adapters", self._adapters, lr=None, momentum=None, weight_decay=decay)]

    def weight(self, clock: Clock) -> float:
        """λ(t)."""
        start, end = self.config.burn_in, self.config.burn_in + self.config.ramp_steps
        ramp = Ramp.gaussian(start, end) * Ramp.gaussian_down(self.config.rampdown_steps, RAMPDOWN_K, total=clock.T)
        return self.config.unsup_weight * ramp(clock.t)

    def losses(self, batch: Batch, student: DetNet, teacher: DetNet | None, clock: Clock) -> dict[str, Weighted]:
        """Terms of one step; in burn-in, and with `unsup_weight` 0, those of `supervised`, and no teacher forward.

        batch.labelled.weak           image (B_l, 3, H, W) float32, with targets
        batch.unlabelled.views[COPY]  image (M, 3, H, W) float32 of each of the teacher's and the student's copies
        """
        labelled, config = batch.labelled.weak, self.config
        self._seen, self._pseudo = {}, None
        switched_off = config.unsup_weight == 0 or (config.gamma == 0 and config.psm_weight == 0)
        if switched_off or clock.t < config.burn_in:
            return object_terms(student, student.extract(labelled.image), labelled)
        if batch.unlabelled is None or teacher is None:
            raise ValueError("mmt-psm: needs unlabelled images and a teacher")

        views = batch.unlabelled.views
        shown = [views[name] for name in _student_names(config.student_copies)]
        feats_l, feats_u = extract_both(student, labelled.image, torch.cat([view.image for view in shown]))
        terms = object_terms(student, feats_l, labelled)
        split = {level: f.split(len(shown[0].image)) for level, f in feats_u.items()}
        copies = [{level: parts[k] for level, parts in split.items()} for k in range(len(shown))]

        told = self.ask(teacher, self.teacher_views(views))
        weight = self.weight(clock)
        self._seen |= {"lambda": torch.tensor(weight)}
        if config.psm_weight > 0:
            terms["L_psm"] = Weighted(self.mine(student, copies, shown, told), weight * config.psm_weight)
        if config.gamma > 0:
            terms["L_mgd"] = Weighted(self.distil(student, copies, shown, told), weight * config.gamma)
        return terms

    def teacher_views(self, views: Mapping[str, View]) -> list[View]:
        """The K views that the teacher passes over: colour copies, each followed by its mirrored twin."""
        copies = [views[name] for name in _teacher_names(self.config.teacher_copies)]
        if not self.config.flipped_twins:
            return copies
        return [view for copy in copies for view in (copy, mirrored(copy))]

    @torch.no_grad()
    def ask(self, teacher: DetNet, views: Sequence[View]) -> Told:
        """What the teacher says of the K views: one pass each; proposals and masks are found on the first alone."""
        first, mining, guiding = views[0], self.config.psm_weight > 0, self.config.gamma > 0
        proposals: list[Tensor] = []
        union = torch.zeros((0, *first.sizes[0]), dtype=torch.bool)
        logits, adapted = [], []
        for k, view in enumerate(views):
            feats = teacher.extract(view.image)
            if k == 0 and mining:
                proposals, _ = teacher.propose(feats, first.sizes, PRE_NMS, self.config.proposals_per_image)
            if k == 0 and guiding:
                union = self._mask(teacher, feats, first)
            if mining:
                logits.append(teacher.score(feats, _boxes_in(proposals, first, view))[0].float())
            if guiding:
                adapted.append(teacher.extra["adapters"](feats))
        return Told(first, list(views), proposals, logits, union, adapted)

    def mine(self, student: DetNet, copies: Sequence[Maps], shown: Sequence[View], told: Told) -> Tensor:
        """L_psm: the student's copies, with features `copies` and views `shown`, against what the teacher said."""
        config = self.config
        logits = torch.stack(told.logits)  # (K, n, C + 1), images in order
        mean = ensemble(logits, config.ensemble)
        hard = mean.argmax(dim=1)
        sensitive = sensitivity(logits.softmax(dim=2), mean, config.sensitivity)
        targets = sharpened(mean, config.temperature, config.sharpen)

        counts = [len(boxes) for boxes in told.proposals]
        starts = [0, *torch.tensor(counts).cumsum(0).tolist()]
        kept = [kept_proposals(hard[a:b], sensitive[a:b], config.bg_ratio) for a, b in pairwise(starts)]
        boxes = [proposals[index] for proposals, index in zip(told.proposals, kept, strict=True)]
        rows = torch.cat([index + start for index, start in zip(kept, starts[:-1], strict=True)])
        sizes, loss, differ = [len(index) for index in kept], mean.new_zeros(()), mean.new_zeros(())
        for feats, view in zip(copies, shown, strict=True):
            answer, _, _ = student.score(dict(feats), _boxes_in(boxes, told.first, view))
            loss = loss + psm_loss(answer, targets[rows], hard[rows], sizes, config.background_weight) / len(copies)
            differ = differ + (answer.detach().argmax(dim=1) != hard[rows]).sum() / (max(len(rows), 1) * len(copies))

        names = [item.name for item in self.net_spec.classes]
        self._seen |= pseudo_label_signals(hard - 1, mean.amax(dim=1), hard > 0, counts, names)
        self._seen |= {"disagreement": differ, "sensitivity": sensitive.sum() / max(len(sensitive), 1)}
        parts = zip(told.proposals, hard.split(counts), mean.split(counts), strict=True)
        self._pseudo = [PseudoLabels(b[h > 0], h[h > 0], p.amax(dim=1)[h > 0]) for b, h, p in parts]
        return config.psm_scale * loss

    def distil(self, student: DetNet, copies: Sequence[Maps], shown: Sequence[View], told: Told) -> Tensor:
        """L_mgd: mean over the pairs of a teacher's view and a student's copy, compared in the px of the copy."""
        loss, norm, area = (told.adapted[0][LEVELS[0]].new_zeros(()) for _ in range(3))
        for feats, view in zip(copies, shown, strict=True):
            z_s = student.extra["adapters"](dict(feats))
            inside = map_features(told.union[:, None].float(), told.first.affine, view.affine, 1)
            masks = {level: level_mask(inside, z.shape[-2:]) for level, z in z_s.items()}
            total = mean_count(torch.stack([m.sum() for m in masks.values()]))
            for origin, adapted in zip(told.views, told.adapted, strict=True):
                z_t = {
                    level: map_features(z, origin.affine, view.affine, view.image.shape[-1] // z.shape[-1])
                    for level, z in adapted.items()
                }
                loss = loss + mgd_loss(z_t, z_s, masks, total) / (len(told.views) * len(copies))
            norm = norm + sum((masks[level] * z.detach().norm(dim=1)).sum() for level, z in z_s.items())
            area = area + sum(m.sum() for m in masks.values())
        self._seen |= {"adapter_norm": norm / area.clamp(min=1)}
        return loss

    def signals(self) -> dict[str, float]:
        """λ, pseudo-labels, disagreement and the adapters' norm (METHODS 1.9), of a step that asked the teacher."""
        return {name: float(value) for name, value in self._seen.items()}

    def pseudo(self) -> list[PseudoLabels] | None:
        """The proposals that the last step took for foreground, with hard labels and their mean probability."""
        return self._pseudo

    def _mask(self, teacher: DetNet, feats: dict[int, Tensor], view: View) -> Tensor:
        """(M, H, W) bool: the union of the masks of the teacher's detections."""
        least = torch.tensor(self.config.mask_score)
        below = float(torch.nextafter(least, torch.zeros(())))  # `detect` wants more than its threshold
        found = teacher.detect(feats, view.sizes, score_threshold=below)
        return torch.stack(
            [union_of_masks(f.masks.float(), f.boxes, size) for f, size in zip(found, view.sizes, strict=True)]
        )


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What the teacher said of one unlabelled batch of M images; without gradients.

    first      its first view, in whose px proposals and union are
    views      its K views
    proposals  R: (n_i, 4) of each image; empty without L_psm
    logits     (n, C + 1) float32 of each view, n = Σ n_i, images in order
    union      (M, H, W) bool, where the teacher found objects; empty without L_mgd
    adapted    Z^T of each view, in the px of that view
    """

    first: View
    views: list[View]
    proposals: list[Tensor]
    logits: list[Tensor]
    union: Tensor
    adapted: list[dict[int, Tensor]]


def ensemble(logits: Tensor, how: Literal["probs", "logits"]) -> Tensor:
    """Eq. 1: P̄ (n, C + 1) of the logits (K, n, C + 1) of K views: mean of probabilities, or softmax of mean logits."""
    values = logits.softmax(dim=2) if how == "probs" else logits
    mean = values[0] + (values - values[0]).mean(dim=0)  # so that K equal views give their value exactly: Var is 0 then
    return mean if how == "probs" else mean.softmax(dim=1)


def sharpened(p: Tensor, t: float, form: Literal["inverse", "printed"]) -> Tensor:
    """S of rows p (n, C + 1): p^(1/t) over its sum; "printed": p^t over its sum."""
    largest = p.amax(dim=1, keepdim=True)  # divided by it, no row underflows to 0/0
    power = (p / largest) ** (1 / t if form == "inverse" else t)
    return power / power.sum(dim=1, keepdim=True)


def sensitivity(p: Tensor, mean: Tensor, form: Literal["var", "std"]) -> Tensor:
    """Eq. 2 for probabilities p (K, n, C + 1) about P̄ (n, C + 1): (n,), the sum over classes of Var, or of its root."""
    var = (p - mean).square().mean(dim=0)
    return (var if form == "var" else var.sqrt()).sum(dim=1)


def kept_proposals(hard: Tensor, sensitive: Tensor, bg_ratio: float = 1.0) -> Tensor:
    """Which proposals of an image train the student: indices (k,), foreground first.

    hard (n,) with 0 = background, sensitive (n,). All s foreground proposals, and of the background ones the
    floor(bg_ratio · s) most sensitive, ties by index.
    """
    foreground, background = torch.where(hard > 0)[0], torch.where(hard == 0)[0]
    order = sensitive[background].argsort(descending=True, stable=True)
    return torch.cat([foreground, background[order[: int(bg_ratio * len(foreground))]]])


def psm_loss(logits: Tensor, targets: Tensor, hard: Tensor, counts: Sequence[int], background_weight: float) -> Tensor:
    """Eq. 3 for one student copy of M images: mean over images of the mean over their kept proposals of w L_ce.

    logits (k, C + 1) of the student, targets S(P̄) (k, C + 1), hard (k,), rows image by image
    counts how many rows belong to each of the M images; an image without any counts as 0
    """
    each = -(targets * logits.to(targets.dtype).log_softmax(dim=1)).sum(dim=1)
    each = torch.where(hard == 0, background_weight, 1.0) * each
    images = torch.stack([part.sum() / max(len(part), 1) for part in each.split(list(counts))])
    return images.sum() / mean_count(len(counts)).to(each).clamp(min=1)


def mgd_loss(z_t: Maps, z_s: Maps, masks: Maps, total: Tensor | None = None) -> Tensor:
    """Eq. 4 for one pair of views: Z^T, Z^S (B, C_a, h, w) and M (B, h, w) of each level; sums run over the batch, too.

    total  (T,) Σ M of each level, as `mean_count` gives it where ranks share the batch; None: of these masks
    """
    areas = torch.stack([mask.sum() for mask in masks.values()]) if total is None else total
    loss = next(iter(z_s.values())).new_zeros(())
    for (level, mask), area in zip(masks.items(), areas, strict=True):
        loss = loss + (mask * (z_t[level] - z_s[level]).square().sum(dim=1)).sum() / (area + MASK_FLOOR)
    return loss / (next(iter(z_s.values())).shape[1] * len(z_s))


def _boxes_in(boxes: Sequence[Tensor], origin: View, view: View) -> list[Tensor]:
    """Boxes of each image, px of the view `origin`, in another view. None is lost: box j is the same object in all."""
    parts = zip(boxes, origin.affine, view.affine, view.sizes, strict=True)
    return [map_boxes(b, a, to, size, min_side_px=0.0)[0] for b, a, to, size in parts]


def _teacher_names(copies: int) -> list[str]:
    return ["weak", *(f"teacher{k}" for k in range(2, copies + 1))]


def _student_names(copies: int) -> list[str]:
    return [f"student{k}" for k in range(1, copies + 1)]
