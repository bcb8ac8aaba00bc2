"""Deep semi-supervised metric learning with dual alignment.

Paper    Chai, Luo, Lin, Chen, Han, Heng: Deep Semi-supervised Metric Learning with Dual Alignment for Cervical Cancer
         Cell Detection. ISBI 2022. No public code is known.
Idea     RoI features are projected into a metric space. Every confident proposal is pulled to a learnable vector
         (proxy) of its class; class means (prototypes) of the batch are aligned with the running mean of labelled
         ones, so that a class absent from the labelled half of a batch still has a target.
Loss     x = W2 σ(W1 H), Φ(a, b) = ‖a − b‖                                                                   (Eq. 1)
         L_pml  = −log exp(−Φ(x_c, p_c)) / Σ_k exp(−Φ(x_c, p_k)), mean over labelled foreground RoIs         (Eq. 2)
         L'_pml = the same over confident unlabelled proposals, with sg[p_k]                                 (Eq. 3)
         P^gg_c = mean of x_i, P^cg_c = mean of x_i weighted by sg[q_i], over the RoIs of class c            (Eq. 4)
         L_intra(A, B) = mean_c Φ(A_c, B_c),  L_inter(A, B) = mean_{c≠k} max(0, m − Φ(A_c, B_k))          (Eqs. 5, 6)
         L_pmb  = L_intra(P^M, P^cg_L) + L_inter(P^M, P^cg_L) + L_inter(P^cg_L, P^cg_L)                      (Eq. 7)
         L'_pmb = the same with P^cg_U                                                                       (Eq. 8)
         L = L_s + λ(t) (L_pml + L'_pml + L_pmb + L'_pmb),  L_s = L_rpn + L_cls + L_reg                      (Eq. 9)
Differs  The sum of Eq. 2 is printed over k ≠ c, which has no useful floor; ours is over all k (`proxy_denominator`).
         Embeddings and proxies are normalised, since a margin of 1 needs a bounded scale (`normalize`). L_intra and
         L_inter are divided by the classes, or ordered pairs, present in both: dividing by C weakens classes at random.
         λ(t) is printed as "following typical methods"; ours is a gaussian ramp over a quarter of the run. With trained
         batch norm labelled and unlabelled images take separate forwards. With a mask head the mask loss joins L_s.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor, nn

from cytopipe.core.errors import UserError
from cytopipe.methods.base import Method, MethodConfig, ParamGroup, PseudoLabels
from cytopipe.methods.forward import extract_both
from cytopipe.methods.supervised import object_terms
from cytopipe.nets import DetNet, NetSpec
from cytopipe.nets.ranks import mean_count, sum_over_ranks
from cytopipe.semi import (
    JITTERED,
    Batch,
    Clock,
    Projector,
    Ramp,
    RingBank,
    ViewPlan,
    Weighted,
    pseudo_label_signals,
    spread,
)

PRE_NMS = 2000  # RPN boxes before suppression [C: torchvision's training value]
SQUARED_FLOOR = 1e-12  # under the root of Φ, for a finite gradient where two vectors meet: Φ >= 1e-6


class DualAlignment(Method):
    """Proxies and the prototype bank are the method's own; the projector is the student's (`extra["projector"]`)."""

    class Config(MethodConfig):
        """Settings of `dual-alignment`, in the paper's symbols."""

        unsup_weight: float = Field(1.0, ge=0, description="w_max, largest λ: factor of the four metric terms")
        ramp_fraction: float = Field(
            0.25, ge=0, le=1, description="length of λ's gaussian ramp-up, as a fraction of the run"
        )
        rampdown: tuple[PositiveFloat, PositiveFloat] | None = Field(
            None, description="[d, k]: λ falls as exp(−k(1−(T−t)/d)²) over the last d steps; not given: it stays"
        )
        hidden_dim: int = Field(256, gt=0, description="rows of W1")
        embedding_dim: int = Field(128, gt=0, description="rows of W2, length of an embedding x")
        normalize: bool = Field(True, description="L2-normalise embeddings and proxies")
        proposal_alignment: bool = Field(True, description="L_pml and L'_pml")
        prototype_alignment: bool = Field(True, description="L_pmb and L'_pmb")
        proxy_denominator: Literal["all", "others"] = Field(
            "all", description="classes in the denominator of L_pml: all, or all but the own one as printed"
        )
        proxy_scale: float = Field(1.0, gt=0, description="factor of Φ in L_pml")
        proxy_lr: float = Field(0.01, gt=0, description="learning rate of the proxies; under sgd they have no momentum")
        background_proxy: bool = Field(False, description="one more proxy, for sampled background RoIs")
        pseudo_threshold: float = Field(0.5, ge=0, le=1, description="least probability of a pseudo-label")
        proposals_per_image: int = Field(512, gt=0, description="RPN boxes of an unlabelled image, after suppression")
        margin: float = Field(1.0, gt=0, description="m, distance at which prototypes of two classes no longer repel")
        bank_size: int = Field(1024, gt=0, description="labelled prototypes kept")
        bank_scope: Literal["total", "per_class"] = Field("total", description="whether bank_size counts all classes")

    name = "dual-alignment"
    paper = "Chai et al., Dual Alignment for Cervical Cancer Cell Detection, ISBI 2022"
    tasks = frozenset({"detection", "instance"})
    status = "core"
    uses_unlabelled = True
    config: Config

    def __init__(self, net_spec: NetSpec, config: Config, *, seed: int = 0) -> None:
        super().__init__(net_spec, config, seed=seed)
        self.classes = len(net_spec.classes)
        rows = self.classes + config.background_proxy  # the background proxy is the last row
        if config.proxy_denominator == "others" and rows < 2:
            raise UserError(
                "proxy_denominator 'others' leaves nothing with a single class",
                where="train.config",
                fix="use 'all', or background_proxy = true",
            )
        generator = torch.Generator().manual_seed(self.stream("proxies"))
        self.proxies = nn.Parameter(F.normalize(torch.randn(rows, config.embedding_dim, generator=generator)))
        self.bank = RingBank(
            config.bank_size, config.embedding_dim, self.classes, per_class=config.bank_scope == "per_class"
        )
        self._to_bank: tuple[Tensor, Tensor] | None = None
        self._seen: dict[str, Tensor] = {}
        self._pseudo: list[PseudoLabels] | None = None

    def attach(self, student: DetNet) -> None:
        """The projector is the student's."""
        sizes = (student.feature_dim, self.config.hidden_dim, self.config.embedding_dim)
        student.extra["projector"] = Projector(*sizes, seed=self.stream("projector"))

    def views(self) -> ViewPlan:
        """One view of each image: flip and colour jitter. The same view yields the pseudo-labels.

        Labelled images have the view of the comparison (METHODS 2.2); the recipe's `labelled_view` makes it jittered.
        """
        return ViewPlan(unlabelled={"weak": JITTERED})

    def groups(self) -> list[ParamGroup]:
        """The proxies have their own learning rate [P]; momentum and decay would move proxies of absent classes [A]."""
        return [ParamGroup("proxies", (self.proxies,), lr=self.config.proxy_lr, momentum=0.0, weight_decay=0.0)]

    def weight(self, clock: Clock) -> float:
        """λ(t)."""
        ramp = Ramp.gaussian(0, self.config.ramp_fraction * clock.T)
        if self.config.rampdown is not None:
            length, k = self.config.rampdown
            ramp = ramp * Ramp.gaussian_down(length, k, total=clock.T)
        return self.config.unsup_weight * ramp(clock.t)

    def losses(self, batch: Batch, student: DetNet, teacher: DetNet | None, clock: Clock) -> dict[str, Weighted]:
        """Terms of one step; with `unsup_weight` 0 those of `supervised`, and no unlabelled image is read.

        batch.labelled.weak    image (B_l, 3, H, W) float32, with targets
        batch.unlabelled.weak  image (B_u, 3, H, W) float32
        """
        labelled = batch.labelled.weak
        if self.config.unsup_weight == 0:
            return object_terms(student, student.extract(labelled.image), labelled)
        if batch.unlabelled is None:
            raise ValueError("dual-alignment: a batch without unlabelled images")

        unlabelled = batch.unlabelled.weak
        feats_l, feats_u = extract_both(student, labelled.image, unlabelled.image)
        out = student.losses(feats_l, labelled.targets, labelled.sizes, labelled.keys)
        terms = {name: Weighted(value, 1.0) for name, value in out.terms.items()}

        boxes, _ = student.propose(feats_u, unlabelled.sizes, PRE_NMS, self.config.proposals_per_image)
        logits_u, _, features_u = student.score(feats_u, boxes)
        confidence, pseudo = logits_u.detach().float().softmax(dim=1)[:, 1:].max(dim=1)  # class 0: the first foreground
        kept = confidence >= self.config.pseudo_threshold

        x_l = self.embed(student, out.roi_features)
        x_u = self.embed(student, features_u[kept])
        q_l = out.roi_logits.detach().float().softmax(dim=1).gather(1, out.roi_labels[:, None])[:, 0]

        weight = self.weight(clock)
        if self.config.proposal_alignment:
            l_pml, l_pml_u = self.align_proposals(x_l, out.roi_labels, x_u, pseudo[kept])
            terms |= {"L_pml": Weighted(l_pml, weight), "L'_pml": Weighted(l_pml_u, weight)}
        if self.config.prototype_alignment:
            l_pmb, l_pmb_u = self.align_prototypes(x_l, out.roi_labels, q_l, x_u, pseudo[kept], confidence[kept])
            terms |= {"L_pmb": Weighted(l_pmb, weight), "L'_pmb": Weighted(l_pmb_u, weight)}
        names = [item.name for item in self.net_spec.classes]
        self._seen = pseudo_label_signals(pseudo, confidence, kept, [len(b) for b in boxes], names)
        self._seen |= {"embedding_std": spread(x_u), "lambda": torch.tensor(weight)}
        counts = [len(b) for b in boxes]
        images = zip(boxes, kept.split(counts), pseudo.split(counts), confidence.split(counts), strict=True)
        self._pseudo = [PseudoLabels(b[k], label[k] + 1, score[k]) for b, k, label, score in images]
        return terms

    def embed(self, student: DetNet, features: Tensor) -> Tensor:
        """Eq. 1: RoI features H (n, D) -> embeddings (n, embedding_dim) float32, whatever the precision of H."""
        x = student.extra["projector"](features).float()
        return F.normalize(x, dim=1) if self.config.normalize else x

    def align_proposals(self, x_l: Tensor, roi_labels: Tensor, x_u: Tensor, pseudo: Tensor) -> tuple[Tensor, Tensor]:
        """Eqs. 2, 3: (L_pml, L'_pml).

        x_l (n, d), roi_labels (n,) with 0 = background;  x_u (m, d), pseudo (m,) from 0 = first foreground class
        """
        proxies = F.normalize(self.proxies, dim=1) if self.config.normalize else self.proxies
        used = torch.ones_like(roi_labels, dtype=torch.bool) if self.config.background_proxy else roi_labels > 0
        rows = torch.where(roi_labels > 0, roi_labels - 1, self.classes)[used]
        others, scale = self.config.proxy_denominator == "others", self.config.proxy_scale
        l_pml = proxy_loss(x_l[used], rows, proxies, scale=scale, others_only=others)
        l_pml_u = proxy_loss(x_u, pseudo, proxies.detach(), scale=scale, others_only=others)
        return l_pml, l_pml_u

    def align_prototypes(
        self, x_l: Tensor, roi_labels: Tensor, q_l: Tensor, x_u: Tensor, pseudo: Tensor, q_u: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Eqs. 4 to 8: (L_pmb, L'_pmb). Also keeps P^gg_L for the bank, which takes it up after the step.

        x, labels and pseudo-labels as in `align_proposals`; q_l (n,), q_u (m,) probability of the RoI's own class
        """
        foreground = roi_labels > 0
        x_l, labels, q_l = x_l[foreground], roi_labels[foreground] - 1, q_l[foreground]
        memory = class_means(*self.bank.read(), None, self.classes)
        weighted_l = class_means(x_l, labels, q_l, self.classes, of_all_ranks=True)
        weighted_u = class_means(x_u, pseudo, q_u, self.classes, of_all_ranks=True)
        plain, present = class_means(x_l.detach(), labels, None, self.classes, of_all_ranks=True)
        self._to_bank = plain[present], torch.where(present)[0]
        l_pmb, l_pmb_u = (
            intra_loss(memory, mine)
            + inter_loss(memory, mine, self.config.margin)
            + inter_loss(mine, mine, self.config.margin)
            for mine in (weighted_l, weighted_u)
        )
        return l_pmb, l_pmb_u

    def after_step(self, clock: Clock) -> None:
        """The bank takes up the step's labelled prototypes: "from previous steps" [P] leaves the present one out."""
        if self._to_bank is not None:
            self.bank.push(*self._to_bank)
            self._to_bank = None

    def signals(self) -> dict[str, float]:
        """λ, bank filling and the collapse signals of METHODS 1.9, of the last step that read unlabelled images."""
        numbers = {name: float(value) for name, value in self._seen.items()}
        return numbers | {"bank_rows": float(len(self.bank))} if numbers else {}

    def pseudo(self) -> list[PseudoLabels] | None:
        """The confident proposals of the last step that read unlabelled images, in px of their one view."""
        return self._pseudo


Prototypes = tuple[Tensor, Tensor]
"""Vectors (C, d) of the classes, and which are present (C,) bool; the vector of an absent class means nothing."""


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Φ between rows of a (n, d) and of b (k, d): (n, k), Euclidean, never below 1e-6."""
    squared = (a[:, None, :] - b[None, :, :]).square().sum(dim=2)
    return squared.clamp(min=SQUARED_FLOOR).sqrt()


def proxy_loss(x: Tensor, labels: Tensor, proxies: Tensor, *, scale: float = 1.0, others_only: bool = False) -> Tensor:
    """Eq. 2: embeddings x (n, d) of classes labels (n,) against proxies (k, d); mean over n, 0 where n is 0.

    others_only  the denominator leaves out the own class, as printed; the value may then be negative. Needs k >= 2.
    """
    logits = -scale * distances(x, proxies)
    if others_only:
        own = F.one_hot(labels, len(proxies)).bool()
        total = (logits.masked_fill(own, -torch.inf).logsumexp(dim=1) - logits[own]).sum()
    else:
        total = F.cross_entropy(logits, labels, reduction="sum")
    return total / mean_count(len(x)).to(total).clamp(min=1)


def class_means(
    x: Tensor, labels: Tensor, weights: Tensor | None, classes: int, *, of_all_ranks: bool = False
) -> Prototypes:
    """Eq. 4: means of x (n, d) by class, plain or weighted by weights (n,). A class without weight is absent.

    of_all_ranks  the rows of all ranks count: the prototypes of the global batch, the same on each rank
    """
    share = F.one_hot(labels, classes).to(x)  # (n, C)
    if weights is not None:
        share = share * weights[:, None]
    mass = share.sum(dim=0)
    sums = (share[:, :, None] * x[:, None, :]).sum(dim=0)  # not a matrix product: that is half precision under autocast
    if of_all_ranks:
        mass, sums = sum_over_ranks(mass), sum_over_ranks(sums)
    return sums / mass.clamp(min=torch.finfo(x.dtype).tiny)[:, None], mass > 0


def intra_loss(a: Prototypes, b: Prototypes) -> Tensor:
    """Eq. 5: mean distance of the prototypes of one class, over the classes present in both; 0 where there is none."""
    (rows_a, in_a), (rows_b, in_b) = a, b
    both = in_a & in_b
    return _mean_where(distances(rows_a, rows_b).diagonal(), both)


def inter_loss(a: Prototypes, b: Prototypes, margin: float) -> Tensor:
    """Eq. 6: mean of max(0, m − Φ(A_c, B_k)) over the ordered pairs c ≠ k with A_c and B_k present; 0 without any."""
    (rows_a, in_a), (rows_b, in_b) = a, b
    pairs = in_a[:, None] & in_b[None, :]
    pairs = pairs & ~torch.eye(len(in_a), dtype=torch.bool, device=pairs.device)
    return _mean_where((margin - distances(rows_a, rows_b)).clamp(min=0), pairs)


def _mean_where(values: Tensor, use: Tensor) -> Tensor:
    return torch.where(use, values, 0.0).sum() / use.sum().clamp(min=1)
