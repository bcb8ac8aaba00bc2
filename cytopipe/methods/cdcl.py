"""Cross-patch dense contrastive learning.

Paper    Wu, Wang, Song, Yang, Qin: Cross-patch Dense Contrastive Learning for Semi-supervised Segmentation of Cellular
         Nuclei in Histopathologic Images. CVPR 2022. Code (model part): zzw-szu/CDCL.
Idea     A pixel's pseudo-label is unreliable at the border of a nucleus, the foreground share of a patch is easy to
         judge. Each pixel of a clearly foreground patch should look like the teacher's pixel at its place, and unlike
         all pixels of clearly background patches, of this batch and the last; and the other way round.
Loss     𝓕_s, 𝓕_t  projected features of student (strong view) and teacher (weak view, sg), of length 1, at stride 8
         ỹ^s, ỹ^t = argmax P_u^s, argmax P_u^t                                                              (Eqs. 3, 4)
         FS = N_f / N of a patch;  FDP: FS >= 0.7,  BDP: FS <= 0.3,  else it is not used                    (Eqs. 5, 6)
         l(q) = −log[ sim(q, k₊) / (sim(q, k₊) + Σ_{k₋ ∈ FB} J sim(q, k₋)) ]                                   (Eq. 7)
         sim(q, k) = exp(qᵀk / τ),  J = 1[ỹ_q ≠ ỹ_k₋],  FB = the BDPs' bank for an FDP, the FDPs' for a BDP (Eqs. 8, 9)
         L_contr = mean of l(q) over a patch's cells, then over all FDPs and BDPs of the student         (Eqs. 10 to 12)
         L_cons = CE(P_u^s, sg ỹ^t),  L_ent = −mean Σ_c P_u^s log P_u^s                                  (Eqs. 13 to 15)
         L = L_sup + w_contr L_contr + w_cons(t) L_cons + w_ent L_ent,  L_sup = CE(P_l, y_l)                   (Eq. 1)
         θ' ← α θ' + (1 − α) θ                                                                                 (Eq. 2)
Differs  FDP and BDP are told by counts of cells, so that rounding cannot move a threshold; the code's rule
         FS_anchor + FS_neg <= 1 is not followed. With C > 2 classes a patch is c-dominated where the share of class c
         is >= 0.7, each class has its bank, and negatives come from all others; for C = 2 this is the printed rule.
         No gradient reaches the banks: through those of old batches it is impossible. Where a network's logits are
         finer than stride 4, the losses at stride 4 see the mean softmax of each cell (`semi.cells`). Patches keep
         their size in cells at other image sizes, since nuclei do not grow with the tile (`patch_grid` divides the
         image as printed). Cells that the rotation filled from beyond the image take no part.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cytopipe.methods.base import Method, MethodConfig, PseudoLabels
from cytopipe.nets import SegNet, SegSpec
from cytopipe.nets.losses import full_precision
from cytopipe.nets.ranks import mean_count
from cytopipe.semi import Batch, Clock, EmaRule, Projector, Ramp, ViewPlan, Weighted, spread
from cytopipe.semi.cells import cells_within, log_probabilities, patches_of, to_pixels
from cytopipe.semi.contrast import LEAST_TAU, contrast
from cytopipe.semi.mapping import valid_both
from cytopipe.semi.patch_bank import PatchBank, Patches
from cytopipe.semi.pixels import pixel_cross_entropy
from cytopipe.semi.presets import CDCL_STRONG, CDCL_WEAK, WEAK
from cytopipe.semi.signals import pixel_signals
from cytopipe.semi.views import IGNORE

PROJECTED_STRIDE = 2  # cells of F (stride 4) a cell of 𝓕 (stride 8), each way [C]
NO_CLASS = -1  # the dominant class of a mixed patch


class Cdcl(Method):
    """The banks are the method's own; the projector is the student's (`extra["projector"]`), the teacher has a copy."""

    class Config(MethodConfig):
        """Settings of `cdcl`, in the paper's symbols."""

        unsup_weight: float = Field(1.0, ge=0, description="factor of w_contr, w_cons and w_ent")
        w_contr: float = Field(0.1, ge=0, description="weight of L_contr; 0: neither projection nor banks")
        w_cons: float = Field(1.0, ge=0, description="weight of L_cons at the end of its ramp; 0: no such term")
        w_ent: float = Field(0.01, ge=0, description="weight of L_ent; 0: no such term")
        ramp_epochs: float | None = Field(
            None, ge=0, description="E_max, length of w_cons's gaussian ramp-up in epochs; not given: the whole run"
        )
        burn_in_epochs: int = Field(5, ge=0, description="epochs of L_sup alone at the start")
        alpha: float = Field(0.999, ge=0, le=1, description="EMA decay of the teacher, min(1 − 1/(n+1), alpha)")
        teacher_init: Literal["start", "burn-in"] = Field(
            "start", description="the teacher follows from the start, or becomes a copy of the student after burn-in"
        )
        tau: float = Field(0.1, ge=LEAST_TAU, description="τ, temperature of sim")
        hidden_dim: int | None = Field(
            None, gt=0, description="width between the projector's layers; not given: that of the features F"
        )
        embedding_dim: int = Field(128, gt=0, description="length of a projected feature")
        patch_cells: int = Field(5, gt=0, description="side of a patch, in cells of 8 px")
        patch_grid: int | None = Field(
            None, gt=0, description="patches along each side of the image, as printed (8), instead of patch_cells"
        )
        foreground_share: float = Field(0.7, gt=0.5, le=1, description="least FS of a foreground dominated patch")
        background_share: float = Field(0.3, ge=0, lt=0.5, description="largest FS of a background dominated patch")
        bank_batches: int = Field(2, gt=0, description="batches whose patches the banks hold, with the present one")
        bank_sources: Literal["both", "teacher"] = Field("both", description="whose patches go to the banks")
        sampling: Literal["pixel-patch", "pixel", "random"] = Field(
            "pixel-patch",
            description="negatives: of the opposite bank with another label; of all banks with another label; all",
        )
        cons_threshold: float = Field(
            0.0, ge=0, le=1, description="least teacher probability of a pixel in L_cons; 0: all pixels"
        )

    name = "cdcl"
    paper = "Wu et al., Cross-patch Dense Contrastive Learning for Cellular Nuclei, CVPR 2022"
    tasks = frozenset({"semantic"})
    status = "core"
    uses_unlabelled = True
    config: Config

    def __init__(self, net_spec: SegSpec, config: Config, *, seed: int = 0) -> None:
        super().__init__(net_spec, config, seed=seed)
        self.classes = len(net_spec.classes) + 1
        self.bank = PatchBank(config.bank_batches, config.embedding_dim)
        self._seen: dict[str, Tensor] = {}
        self._shown: tuple[Tensor, Tensor] | None = None

    def attach(self, student: SegNet) -> None:
        """The projector is the student's."""
        sizes = (student.feature_dim, self.config.hidden_dim or student.feature_dim, self.config.embedding_dim)
        student.extra["projector"] = Projector(*sizes, seed=self.stream("projector"))

    def views(self) -> ViewPlan:
        """Unlabelled images: weak view for the teacher, strong view of the same geometry for the student."""
        return ViewPlan(labelled={"weak": WEAK}, unlabelled={"weak": CDCL_WEAK, "strong": CDCL_STRONG})

    def teacher(self) -> EmaRule:
        """It follows in burn-in, too [A]: n counts from step 0."""
        return EmaRule(self.config.alpha)

    def weights(self, clock: Clock) -> dict[str, float]:
        """The factors of the unsupervised terms; w_cons rises, the other two are fixed [P]."""
        c = self.config
        end = clock.T if c.ramp_epochs is None else c.ramp_epochs * clock.iterations_per_epoch
        ramped = {"L_contr": c.w_contr, "L_cons": c.w_cons * Ramp.gaussian(0, end)(clock.t), "L_ent": c.w_ent}
        return {name: c.unsup_weight * weight for name, weight in ramped.items()}

    def losses(self, batch: Batch, student: SegNet, teacher: SegNet | None, clock: Clock) -> dict[str, Weighted]:
        """Terms of one step; in burn-in, and with `unsup_weight` 0, L_sup alone, and no unlabelled image is read.

        batch.labelled.weak      image (B_l, 3, H, W) float32, labels (B_l, H, W) int64
        batch.unlabelled.weak    image (B_u, 3, H, W) float32, for the teacher
        batch.unlabelled.strong  the same images in the same geometry, for the student
        """
        labelled, c = batch.labelled.weak, self.config
        self._seen, self._shown = {}, None
        terms = {"L_sup": Weighted(pixel_cross_entropy(student(labelled.image), labelled.labels), 1.0)}
        if c.unsup_weight == 0 or clock.epoch < c.burn_in_epochs:
            return terms
        if teacher is None or batch.unlabelled is None or batch.unlabelled.strong is None:
            raise ValueError("cdcl: a step without a teacher, or without unlabelled images in two views")
        if c.teacher_init == "burn-in" and clock.t == c.burn_in_epochs * clock.iterations_per_epoch:
            teacher.load_state_dict(student.state_dict())

        weak, strong = batch.unlabelled.weak, batch.unlabelled.strong
        with student.frozen_statistics():
            features_s, log_p_s = self._at_stride_4(student, strong.image)
        with torch.no_grad():
            features_t, log_p_t = self._at_stride_4(teacher, weak.image)
            p_t, label_t = log_p_t.exp().max(dim=1)
        seen = valid_both(weak, strong, self.net_spec.feature_stride)

        weight = self.weights(clock)
        if c.w_contr > 0:
            projected_s = self.project(student, features_s)
            with torch.no_grad():
                projected_t = self.project(teacher, features_t)
                label_s8, label_t8 = (
                    F.avg_pool2d(log_p.detach().exp(), PROJECTED_STRIDE).argmax(dim=1) for log_p in (log_p_s, log_p_t)
                )
            seen8 = cells_within(seen, PROJECTED_STRIDE)
            l_contr = self.contrast_patches(
                (projected_s, label_s8), (projected_t, label_t8), seen8, weak.keys.to(seen.device), clock.t
            )
            terms["L_contr"] = Weighted(l_contr, weight["L_contr"])
            self._seen["embedding_std"] = spread(projected_s.detach().flatten(0, 2))
        if c.w_cons > 0:
            terms["L_cons"] = Weighted(
                consistency(log_p_s, label_t, seen & (p_t >= c.cons_threshold), seen), weight["L_cons"]
            )
        if c.w_ent > 0:
            terms["L_ent"] = Weighted(entropy(log_p_s, seen), weight["L_ent"])
        self._note(log_p_s, label_t, p_t, seen)
        return terms

    def project(self, net: SegNet, features: Tensor) -> Tensor:
        """F (B, D, h, w) -> 𝓕 (B, h/2, w/2, embedding_dim) float32, each cell of length 1."""
        pooled = F.avg_pool2d(features, PROJECTED_STRIDE)
        return F.normalize(full_precision(net.extra["projector"](pooled.movedim(1, -1))), dim=-1)

    def contrast_patches(
        self, student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor], seen: Tensor, keys: Tensor, step: int
    ) -> Tensor:
        """Eqs. 5 to 12: L_contr. First the banks take up the patches of this batch, as those of iteration `step`.

        student, teacher  each 𝓕 (B, h, w, d) and ỹ (B, h, w) at stride 8; a gradient reaches the student's 𝓕 alone
        seen              (B, h, w) bool, cells that both views show
        keys              (B,) int64, the images' own
        """
        mine, its = (self._cut(*maps, seen, keys) for maps in (student, teacher))
        used, its_used = mine.dominant != NO_CLASS, its.dominant != NO_CLASS
        anchors = mine.at(used)
        both = self.config.bank_sources == "both"
        self.bank.push(Patches.joined(anchors, its.at(its_used)) if both else its.at(its_used), step)
        losses = self.contrast_cells(anchors, its.features[used], step)
        for c, name in enumerate(("background", *self._names())):
            self._seen[f"patches[{name}]"] = (mine.dominant == c).sum()
        return losses.mean(dim=1).sum() / mean_count(len(anchors)).clamp(min=1).to(losses)

    def contrast_cells(self, anchors: Patches, positive: Tensor, step: int) -> Tensor:
        """Eqs. 7 to 9: l(q) (n, N) of the cells of n patches against the banks; positive (n, N, d), the teacher's.

        Queries of one patch class and label have the same negatives: J and FB choose rows, and nothing is masked.
        """
        bank, scheme, cells = self.bank.read(), self.config.sampling, anchors.labels.shape[1:].numel()
        queries, labels = anchors.features.flatten(0, 1), anchors.labels.flatten()
        if scheme == "random" or len(bank) == 0:
            own = self._own_places(anchors, bank, step)
            return contrast(
                queries, positive.flatten(0, 1), bank.features.flatten(0, 1), self.config.tau, left_out=own
            ).view_as(anchors.labels)
        dominant, bank_dominant = (d.repeat_interleave(cells) for d in (anchors.dominant, bank.dominant))
        bank_features, bank_labels = bank.features.flatten(0, 1), bank.labels.flatten()
        rows, losses = [], []
        for patch_class in range(self.classes):
            for label in range(self.classes):
                mine = torch.where((dominant == patch_class) & (labels == label))[0]
                negatives = bank_labels != label
                if scheme == "pixel-patch":
                    negatives = negatives & (bank_dominant != patch_class)
                rows.append(mine)
                losses.append(
                    contrast(queries[mine], positive.flatten(0, 1)[mine], bank_features[negatives], self.config.tau)
                )
        back = torch.cat(rows).argsort()
        return torch.cat(losses)[back].view_as(anchors.labels)

    def signals(self) -> dict[str, float]:
        """Sizes of patches and banks, and the collapse signals of METHODS 1.9, of the last unsupervised step."""
        numbers = {name: float(value) for name, value in self._seen.items()}
        return numbers | {"bank_patches": float(len(self.bank))} if numbers else {}

    def pseudo(self) -> list[PseudoLabels] | None:
        """ỹ^t of each unlabelled image of the last step, with its probability, at the size of the view."""
        if self._shown is None:
            return None
        labels, sure = (to_pixels(maps, self.net_spec.feature_stride) for maps in self._shown)
        return [PseudoLabels(None, *maps) for maps in zip(labels, sure, strict=True)]

    def _at_stride_4(self, net: SegNet, image: Tensor) -> tuple[Tensor, Tensor]:
        """F (B, D, h, w) and log P (B, C, h, w) of the images."""
        decoded = net.decode(net.encode(image))
        factor = self.net_spec.feature_stride // self.net_spec.logits_stride
        return decoded.features, log_probabilities(net.predict(decoded), factor)

    def _cut(self, features: Tensor, labels: Tensor, seen: Tensor, keys: Tensor) -> Patches:
        """All patches of a batch of maps, and the class that dominates each; those not wholly seen count as mixed."""
        grid = self.config.patch_grid
        side = (self.config.patch_cells,) * 2 if grid is None else (seen.shape[1] // grid, seen.shape[2] // grid)
        if min(side) == 0:
            raise ValueError(f"cdcl: patch_grid {grid}, and only {tuple(seen.shape[1:])} cells of 8 px")
        cut_features, cut_labels, cut_seen = (patches_of(maps, *side) for maps in (features, labels, seen))
        images, per_image = cut_labels.shape[:2]
        cut_labels = cut_labels.flatten(0, 1)
        dominant = dominant_class(
            cut_labels, self.classes, self.config.foreground_share, self.config.background_share
        ).masked_fill(~cut_seen.all(dim=2).flatten(), NO_CLASS)
        places = torch.arange(per_image, device=keys.device)
        return Patches(
            cut_features.flatten(0, 1), cut_labels, dominant, keys.repeat_interleave(per_image), places.repeat(images)
        )

    def _own_places(self, anchors: Patches, bank: Patches, step: int) -> Tensor:
        """Pairs (query, bank cell) that lie at one place of one image of this batch: (p, 2) int64."""
        same = (
            (anchors.images[:, None] == bank.images)
            & (anchors.places[:, None] == bank.places)
            & (self.bank.steps == step)
        ).nonzero()
        cells = anchors.labels.shape[1:].numel()
        return (same[:, None, :] * cells + torch.arange(cells, device=same.device)[:, None]).flatten(0, 1)

    @torch.no_grad()
    def _note(self, log_p_s: Tensor, label_t: Tensor, p_t: Tensor, seen: Tensor) -> None:
        """Keep what `signals` and `pseudo` report, on the device: it is read only when it is logged."""
        kept = seen & (p_t >= self.config.cons_threshold)
        self._seen |= pixel_signals(label_t, p_t, kept, self._names())
        self._seen["disagreement"] = ((log_p_s.argmax(dim=1) != label_t) & seen).sum() / seen.sum().clamp(min=1)
        self._shown = label_t.masked_fill(~kept, IGNORE), p_t

    def _names(self) -> list[str]:
        return [item.name for item in self.net_spec.classes]


def dominant_class(labels: Tensor, classes: int, foreground_share: float, background_share: float) -> Tensor:
    """Eqs. 5, 6: the class (n,) int64 that dominates each patch of labels (n, N); −1 where none does.

    Both thresholds belong to their class, and are compared as counts of cells: N_c >= foreground_share · N for a
    foreground class c, N − N_0 <= background_share · N for the background.
    """
    cells = labels.shape[1]
    least = math.ceil(foreground_share * cells - 1e-9)
    most = math.floor(background_share * cells + 1e-9)
    dominant = torch.full_like(labels[:, 0], NO_CLASS)
    for c in range(1, classes):
        dominant = dominant.masked_fill((labels == c).sum(dim=1) >= least, c)
    return dominant.masked_fill((labels != 0).sum(dim=1) <= most, 0)


def consistency(log_p: Tensor, label: Tensor, use: Tensor, seen: Tensor) -> Tensor:
    """Eqs. 13, 14: L_cons = −log p_ỹ of log p (B, C, h, w), ỹ (B, h, w), mean over the cells seen.

    A cell that is seen and not used (its confidence is below the threshold) counts as 0: few sure cells weigh little.
    """
    per_cell = -log_p.gather(1, label[:, None])[:, 0]
    return torch.where(use, per_cell, 0.0).sum() / mean_count(seen.sum()).clamp(min=1).to(per_cell)


def entropy(log_p: Tensor, seen: Tensor) -> Tensor:
    """Eq. 15: −Σ_c p log p of log p (B, C, h, w), mean over the cells seen; not divided by log C."""
    per_cell = -(log_p.exp() * log_p).sum(dim=1)
    return torch.where(seen, per_cell, 0.0).sum() / mean_count(seen.sum()).clamp(min=1).to(per_cell)
