"""CrossMatch: multi-scale consistency for detectors.

Paper    CrossMatch: Improving Semi-Supervised Object Detection via Multi-Scale Consistency. Anonymous, under review at
         ICLR 2022. No code; built on Unbiased Teacher's, whose constants fill the gaps.
Idea     Hard pseudo-labels are few, so the gradient is sparse. The teacher reads a RoI from the one pyramid level that
         its size selects; the student must give the teacher's answer from every level, through hard pseudo-boxes and
         through soft class distributions on many RoIs, of which the hardest are kept.
Loss     L = L_s + β L_u,  L_u = λ_h L_p + λ_s L_c                                                       (Eqs. 1, 3)
         θ' ← α θ' + (1 − α) θ after each step from the end of burn-in on                                    (Eq. 2)
         k = floor(4 + log2(sqrt(wh) / 224)), clamped to 2..5: the teacher's level of a RoI                  (Eq. 4)
         L_p = rpn_cls(y) + (1/4) Σ_k roi_cls(y; level k),  y = teacher's boxes of score δ and more          (Eq. 5)
         L_c = (1/4) Σ_k (1/K_t) Σ_{i in top K_t} KL(p_t,i ‖ p_s,i^k), mean over images                      (Eq. 6)
         roi_cls = (1/n) Σ_i (1 − p_i,y)^γ (−log p_i,y), also in L_s, which is rpn_cls + rpn_reg + roi_cls + roi_reg
         K_t = round(N + (K − N) min(1, (t − burn_in) / ohem_ramp))
Differs  Eq. 6 is printed with KL(p_s ‖ p_t), which ignores classes that the student already denies, and summed over
         levels, where the text averages: `kl_direction`, `level_reduction`. RoIs are sampled once for all levels, so
         that the levels differ in their features alone. The paper names both networks' RPN as the source of the soft
         RoIs, and finds the teacher's better: `soft_proposals`. "A few iterations" of K_t's fall are 1000. K counts by
         image. With trained batch norm labelled and unlabelled images take separate forwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cytopipe.methods.base import Method, MethodConfig, PseudoLabels
from cytopipe.methods.forward import extract_both
from cytopipe.methods.shared_rois import in_both_views
from cytopipe.methods.supervised import object_terms
from cytopipe.nets import Detections, DetNet, NetSpec, classification_loss
from cytopipe.nets.heads import POOLED_LEVELS
from cytopipe.nets.losses import full_precision
from cytopipe.nets.ranks import mean_count
from cytopipe.semi import STRONG, WEAK, Batch, Clock, EmaRule, Part, Targets, View, ViewPlan, Weighted, map_boxes
from cytopipe.semi.pseudo_filter import REMOVED_BY, Kept, PseudoFilter
from cytopipe.semi.signals import disagreement, pseudo_label_signals

PRE_NMS = 2000  # RPN boxes a level before suppression [C: torchvision's training value]
LEAST_SCORE = 0.05  # of what counts as a detection at all [C: torchvision's value]; δ is far above
OWN_LEVEL = (None,)  # each RoI from the level of Eq. 4

Features = dict[int, Tensor]


class CrossMatch(Method):
    """The EMA teacher starts at the end of burn-in; until then L_s alone."""

    class Config(MethodConfig):
        """Settings of `crossmatch`, in the paper's symbols."""

        unsup_weight: float = Field(1.0, ge=0, description="β, factor of L_u")
        lambda_h: float = Field(1.0, ge=0, description="λ_h, factor of the hard term L_p; 0: no such term")
        lambda_s: float = Field(1.0, ge=0, description="λ_s, factor of the soft term L_c; 0: no such term")
        multi_scale: bool = Field(
            True, description="L_p and L_c on every level P2 to P5; else each RoI from the level of its size"
        )
        burn_in: int = Field(2000, ge=0, description="steps with L_s alone, after which the teacher is copied")
        alpha: float = Field(0.9996, ge=0, le=1, description="α, EMA decay of the teacher")
        delta: float = Field(0.7, ge=0, le=1, description="δ, least score of a pseudo-box")
        skip_empty: bool = Field(False, description="no L_p for images without pseudo-box; else they teach background")
        focal_gamma: float = Field(1.5, ge=0, description="γ of the focal loss; 0: cross-entropy")
        soft_proposals: Literal["teacher", "student"] = Field("teacher", description="whose RPN gives the soft RoIs")
        proposals_per_image: int = Field(1000, gt=0, description="N, soft RoIs of an image")
        ohem_k: int | None = Field(
            256, gt=0, description="K, hardest RoIs of an image and level that L_c keeps in the end; null: all"
        )
        ohem_ramp: int = Field(1000, ge=0, description="steps after burn-in over which K_t falls from N to K")
        kl_direction: Literal["teacher_student", "student_teacher"] = Field(
            "teacher_student", description="KL(p_t ‖ p_s), or KL(p_s ‖ p_t) as printed"
        )
        level_reduction: Literal["mean", "sum"] = Field(
            "mean", description="of L_c over the levels: mean as in the text, or sum as in Eq. 6"
        )
        labelled_strong: bool = Field(True, description="L_s on a strong copy of each labelled image as well")

    name = "crossmatch"
    paper = "CrossMatch: Multi-Scale Consistency, anonymous submission to ICLR 2022"
    tasks = frozenset({"detection"})
    status = "core"
    uses_unlabelled = True
    config: Config

    def __init__(self, net_spec: NetSpec, config: Config, *, seed: int = 0) -> None:
        super().__init__(net_spec, config, seed=seed)
        self.choose = PseudoFilter(config.delta)
        self.levels: tuple[int | None, ...] = POOLED_LEVELS if config.multi_scale else OWN_LEVEL
        self._seen: dict[str, Tensor] = {}
        self._pseudo: list[PseudoLabels] | None = None

    def views(self) -> ViewPlan:
        """Weak and strong views of one geometry; of labelled images both train the student."""
        both = {"weak": WEAK, "strong": STRONG}
        return ViewPlan(labelled=both if self.config.labelled_strong else {"weak": WEAK}, unlabelled=both)

    def teacher(self) -> EmaRule:
        """Eq. 2, from the end of burn-in on."""
        return EmaRule(self.config.alpha, warm=False, start=self.config.burn_in)

    def ohem_count(self, clock: Clock) -> int:
        """K_t: how many RoIs of an image and level L_c keeps at most."""
        n, k = self.config.proposals_per_image, self.config.ohem_k
        if k is None or k >= n:
            return n
        since, length = clock.t - self.config.burn_in, self.config.ohem_ramp
        return round(n + (k - n) * (min(1.0, since / length) if length else 1.0))

    def losses(self, batch: Batch, student: DetNet, teacher: DetNet | None, clock: Clock) -> dict[str, Weighted]:
        """Terms of one step: L_s by its parts, "L_p" and "L_c".

        batch.labelled.weak, .strong    image (B_l, 3, H, W) float32, with targets
        batch.unlabelled.weak, .strong  image (B_u, 3, H, W) float32; the teacher sees weak, the student strong
        """
        labelled = both_copies(batch.labelled) if self.config.labelled_strong else batch.labelled.weak
        self._seen, self._pseudo = {}, None
        hard, soft = (self.config.unsup_weight * w for w in (self.config.lambda_h, self.config.lambda_s))
        if clock.t < self.config.burn_in or hard == soft == 0:
            return object_terms(student, student.extract(labelled.image), labelled, focal_gamma=self.config.focal_gamma)
        if batch.unlabelled is None or batch.unlabelled.strong is None or teacher is None:
            raise ValueError("crossmatch: a batch without weak and strong views of unlabelled images, or no teacher")
        weak, strong = batch.unlabelled.weak, batch.unlabelled.strong

        feats_l, feats_s = extract_both(student, labelled.image, strong.image)
        terms = object_terms(student, feats_l, labelled, focal_gamma=self.config.focal_gamma)
        with torch.no_grad():
            feats_t = teacher.extract(weak.image)
        if hard > 0:
            terms["L_p"] = Weighted(self.hard_loss(student, teacher, feats_s, feats_t, weak, strong), hard)
        if soft > 0:
            terms["L_c"] = Weighted(self.soft_loss(student, teacher, feats_s, feats_t, weak, strong, clock), soft)
        return terms

    def hard_loss(
        self, student: DetNet, teacher: DetNet, feats_s: Features, feats_t: Features, weak: View, strong: View
    ) -> Tensor:
        """Eq. 5: L_p, the student's classifications on the strong view, with the teacher's confident boxes as truth."""
        least = min(LEAST_SCORE, self.config.delta)
        with torch.no_grad():
            found = teacher.detect(feats_t, weak.sizes, score_threshold=least, per_class=True)
        kept = self.choose(found)
        self._note_pseudo_boxes(found, kept)
        truth = pseudo_truth(kept, weak, strong)
        images = [i for i, one in enumerate(truth) if len(one.labels) or not self.config.skip_empty]
        share = 1.0 if images else 0.0
        images = images or list(range(len(truth)))  # also with nothing to learn: other ranks count on this one's counts
        feats = {level: f[images] for level, f in feats_s.items()}
        truth, sizes, keys = [truth[i] for i in images], [strong.sizes[i] for i in images], strong.keys[images]

        gamma, (first, *others) = self.config.focal_gamma, self.levels
        out = student.losses(feats, truth, sizes, keys, focal_gamma=gamma, reg=False, level=first)
        roi_cls = out.terms["roi_cls"]
        for level in others:
            logits, _, _ = student.score(feats, out.rois, level=level)
            roi_cls = roi_cls + classification_loss(logits, out.roi_labels, gamma)
        return share * (out.terms["rpn_cls"] + roi_cls / len(self.levels))

    def soft_loss(
        self,
        student: DetNet,
        teacher: DetNet,
        feats_s: Features,
        feats_t: Features,
        weak: View,
        strong: View,
        clock: Clock,
    ) -> Tensor:
        """Eq. 6: L_c, on the strong view. Only the RoIs that are kept take part in the gradient."""
        n, k_t = self.config.proposals_per_image, self.ohem_count(clock)
        if self.config.soft_proposals == "teacher":
            proposals, _ = teacher.propose(feats_t, weak.sizes, PRE_NMS, n)
            rois_t, rois_s = in_both_views(proposals, weak, strong)
        else:
            proposals, _ = student.propose({k: f.detach() for k, f in feats_s.items()}, strong.sizes, PRE_NMS, n)
            rois_s, rois_t = in_both_views(proposals, strong, weak)
        with torch.no_grad():
            logits_t, _, _ = teacher.score(feats_t, rois_t)
        counts = [len(rois) for rois in rois_s]

        levels = []
        for level in self.levels:
            logits_s, _, _ = student.score(feats_s, rois_s, level=level)
            self._seen["disagreement"] = disagreement(logits_s, logits_t)
            targets, kept = logits_t, counts
            if max(counts) > k_t:  # once more for those that are kept: the graph of the others is dropped
                hardest = hardest_rows(self.divergence(logits_t, logits_s), counts, k_t)
                logits_s, _, _ = student.score(feats_s, rows_of(rois_s, hardest), level=level)
                targets, kept = torch.cat(rows_of(logits_t.split(counts), hardest)), [len(rows) for rows in hardest]
            levels.append(mean_of_images(self.divergence(targets, logits_s), kept))
        self._seen["K_t"] = torch.tensor(float(k_t))
        total = torch.stack(levels).sum()
        return total / len(levels) if self.config.level_reduction == "mean" else total

    def divergence(self, logits_t: Tensor, logits_s: Tensor) -> Tensor:
        """ℓ_i of logits (n, C + 1): KL(p_t ‖ p_s), or the other way round; (n,) in float32 at least."""
        log_t, log_s = (F.log_softmax(full_precision(x), dim=1) for x in (logits_t.detach(), logits_s))
        if self.config.kl_direction == "student_teacher":
            log_t, log_s = log_s, log_t
        return (log_t.exp() * (log_t - log_s)).sum(dim=1)

    def signals(self) -> dict[str, float]:
        """K_t and the collapse signals of METHODS 1.9, of the last step that read unlabelled images."""
        return {name: float(value) for name, value in self._seen.items()}

    def pseudo(self) -> list[PseudoLabels] | None:
        """The pseudo-boxes of the last step."""
        return self._pseudo

    def _note_pseudo_boxes(self, found: list[Detections], kept: list[Kept]) -> None:
        """What `signals` and `pseudo` tell; counted among what the teacher detects at all."""
        used = [torch.zeros_like(one.labels, dtype=torch.bool) for one in found]
        for mask, one in zip(used, kept, strict=True):
            mask[one.index] = True
        labels, scores = torch.cat([one.labels for one in found]) - 1, torch.cat([one.scores for one in found])
        names = [item.name for item in self.net_spec.classes]
        self._seen |= pseudo_label_signals(labels, scores, torch.cat(used), [len(one.labels) for one in found], names)
        for rule in REMOVED_BY:
            self._seen[f"removed_by_{rule}"] = torch.tensor(float(sum(one.removed[rule] for one in kept)))
        self._pseudo = [PseudoLabels(one.boxes, one.labels, one.scores) for one in kept]


def both_copies(labelled: Part) -> View:
    """The weak and the strong views of the labelled images as one view of twice as many images."""
    weak, strong = labelled.weak, labelled.strong
    if strong is None:
        return weak
    return View(
        torch.cat([weak.image, strong.image]),
        (*weak.targets, *strong.targets),
        torch.cat([weak.affine, strong.affine]),
        torch.cat([weak.keys, strong.keys]),
    )


def pseudo_truth(kept: list[Kept], a: View, b: View) -> list[Targets]:
    """The pseudo-boxes of view a as the truth of view b."""
    truth = []
    for image, one in enumerate(kept):
        boxes, rows = map_boxes(one.boxes, a.affine[image], b.affine[image], b.sizes[image])
        truth.append(Targets(boxes, one.labels[rows]))
    return truth


def hardest_rows(values: Tensor, counts: list[int], most: int) -> list[Tensor]:
    """OHEM: of values (n,), `counts` of which belong to each image, the rows of the `most` largest of each image."""
    return [part.topk(min(most, len(part))).indices for part in values.detach().split(counts)]


def rows_of(parts: Sequence[Tensor], rows: list[Tensor]) -> list[Tensor]:
    """Some rows of the tensor of each image."""
    return [part[index] for part, index in zip(parts, rows, strict=True)]


def mean_of_images(values: Tensor, counts: list[int]) -> Tensor:
    """Mean over images of the means of their values (n,), `counts` of which belong to each; 0 for an image without."""
    means = [part.sum() / max(len(part), 1) for part in values.split(counts)]
    return torch.stack(means).sum() / mean_count(len(counts)).clamp(min=1).to(values)
