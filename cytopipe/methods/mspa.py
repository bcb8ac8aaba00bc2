"""Mutual- and self-prototype alignment.

Paper    Zhang, Tian, Jiao: Mutual- and Self- Prototype Alignment for Semi-supervised Medical Image Segmentation.
         arXiv 2022. No code is known.
Idea     The mean background and foreground features of one labelled image are a classifier of pixels. N labelled images
         are N classifiers of each unlabelled one: together they should say what the network says (LPA), their vote is
         a pseudo-label whose own prototypes should segment the labelled images (UPA), and pixels that won the vote
         narrowly should look like those that won it clearly (SPA). One network, no teacher.
Loss     F features, Ŝ softmax, S = argmax Ŝ, all at stride 4
         P^c_i = Σ F_i 1[S_i = c] / Σ 1[S_i = c]  of labelled image i                                           (Eq. 1)
         G^c_i = cos(F_u, P^c_i),  M̂_u = softmax_c(Σ_i G^c_i)                                              (Eqs. 2, 3)
         L_LPA = (1 / (C h w)) Σ_c Σ_hw ‖Ŝ^c_u − M̂^c_u‖²                                                     (Eq. 4)
         S_u,i = argmax_c G^c_i; these N and the network's own S_u vote; S_u = the majority                (Eqs. 5 to 7)
         P^c_u = mean over unlabelled images of their P^c by the vote                                           (Eq. 8)
         L_UPA = CE(softmax_c cos(F_l, P^c_u), Y_l)                                                             (Eq. 9)
         R_k = Σ sg[Ŝ^c] F_u 1[k votes for foreground] / Σ sg[Ŝ^c] 1[...],  k = 1 .. 4                         (Eq. 10)
         L_SPA = ‖R_3 − R_4‖² + ‖R_2 − R_1‖²                                                                   (Eq. 11)
         L = L_S + λ(t) (L_LPA + L_UPA + L_SPA),  L_S = CE(Ŝ_l, Y_l) at full size                              (Eq. 12)
         λ(t) = w_max exp(−5 (1 − t/T)²)
Differs  The rules of the vote are written for any number of classes C and of labelled images N, and are the printed
         ones for C = 2, N = 4. An image that lacks a predicted class lends the pixels of its annotation, or takes no
         part. Norms are squared, so that L_LPA is a mean squared error and smooth at 0. Ŝ weighs the regions without
         a gradient: it is a confidence, and not a way to move them. w_max is not printed; it is that of URPC, whose
         ramp the paper cites. Where a network's logits are finer than stride 4, Ŝ is the mean softmax of each cell
         (`semi.cells`). With trained batch norm labelled and unlabelled images take separate forwards. The labelled
         images of all ranks are voters.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from cytopipe.methods.base import Method, MethodConfig, PseudoLabels
from cytopipe.nets import SegNet, SegSpec
from cytopipe.nets.losses import full_precision
from cytopipe.nets.ranks import gather_rows, mean_count, shared_rows
from cytopipe.semi import Batch, Clock, Ramp, View, ViewPlan, Weighted, spread
from cytopipe.semi.cells import cells_shown, label_of_cells, log_probabilities, to_pixels
from cytopipe.semi.pixels import pixel_cross_entropy
from cytopipe.semi.presets import MSPA, WEAK
from cytopipe.semi.signals import pixel_signals
from cytopipe.semi.views import IGNORE

LEAST_NORM = 1e-8  # of a vector in a cosine


class Maps(NamedTuple):
    """What one part of a batch looks like at stride 4.

    features  F (B, D, h, w)
    p         Ŝ (B, C, h, w), softmax
    seen      (B, h, w) bool, cells that show the image
    """

    features: Tensor
    p: Tensor
    seen: Tensor


class Mspa(Method):
    """Prototypes are those of one step: no bank, nothing of the method's own to train or to keep."""

    class Config(MethodConfig):
        """Settings of `mspa`, in the paper's symbols."""

        unsup_weight: float = Field(0.1, ge=0, description="w_max, largest λ: factor of the three alignment terms")
        lpa: bool = Field(True, description="L_LPA, labelled prototype alignment")
        upa: bool = Field(True, description="L_UPA, unlabelled prototype alignment")
        spa: bool = Field(True, description="L_SPA, self-prototype alignment")
        lpa_detach: Literal["none", "pred", "proto"] = Field(
            "none", description="side of L_LPA without a gradient: neither, the prediction Ŝ, or the prototypes' M̂"
        )
        upa_scale: float = Field(1.0, gt=0, description="factor of the cosines in L_UPA; the paper prints none")
        spa_weight_grad: bool = Field(False, description="a gradient through Ŝ as the weight of a region's features")
        spa_stop_reliable: bool = Field(
            False, description="no gradient to R_4 and R_1: uncertain regions move to reliable ones, not both"
        )

    name = "mspa"
    paper = "Zhang et al., Mutual- and Self-Prototype Alignment, arXiv 2022"
    tasks = frozenset({"semantic"})
    status = "core"
    uses_unlabelled = True
    config: Config

    def __init__(self, net_spec: SegSpec, config: Config, *, seed: int = 0) -> None:
        super().__init__(net_spec, config, seed=seed)
        self.classes = len(net_spec.classes) + 1
        self._seen: dict[str, Tensor] = {}
        self._shown: tuple[Tensor, Tensor] | None = None

    def views(self) -> ViewPlan:
        """One view of each image: rescaled, flipped, colours distorted."""
        return ViewPlan(labelled={"weak": WEAK}, unlabelled={"weak": MSPA})

    def weight(self, clock: Clock) -> float:
        """λ(t)."""
        return self.config.unsup_weight * Ramp.gaussian(0, clock.T)(clock.t)

    def losses(self, batch: Batch, student: SegNet, teacher: SegNet | None, clock: Clock) -> dict[str, Weighted]:
        """Terms of one step; with `unsup_weight` 0 L_S alone, and no unlabelled image is read.

        batch.labelled.weak    image (B_l, 3, H, W) float32, labels (B_l, H, W) int64
        batch.unlabelled.weak  image (B_u, 3, H, W) float32
        """
        labelled, self._seen, self._shown = batch.labelled.weak, {}, None
        logits_l, features_l = _forward(student, labelled.image)
        full = student.upsample(logits_l, labelled.image.shape[-2:])
        terms = {"L_S": Weighted(pixel_cross_entropy(full, labelled.labels), 1.0)}
        if self.config.unsup_weight == 0:
            return terms
        if batch.unlabelled is None:
            raise ValueError("mspa: a step without unlabelled images")

        unlabelled = batch.unlabelled.weak
        with student.frozen_statistics():
            logits_u, features_u = _forward(student, unlabelled.image)
        with torch.autocast(labelled.image.device.type, enabled=False):  # norms, cosines and means in float32
            aligned = self.align(
                self._maps(features_l, logits_l, labelled),
                self._maps(features_u, logits_u, unlabelled),
                labelled.labels,
            )
        weight = self.weight(clock)
        return terms | {name: Weighted(value, weight) for name, value in aligned.items()}

    def align(self, labelled: Maps, unlabelled: Maps, y: Tensor) -> dict[str, Tensor]:
        """L_LPA, L_UPA and L_SPA, those that are switched on; all 0 where no labelled image has every class.

        y  (B_l, H, W) int64, the annotation at full size, 255 = ignore
        """
        c = self.config
        pairs = self.labelled_prototypes(labelled, y)  # (N_v, C, D)
        nothing = 0.0 * (labelled.features.sum() + unlabelled.features.sum() + unlabelled.p.sum() + pairs.sum())
        wanted = {"L_LPA": c.lpa, "L_UPA": c.upa, "L_SPA": c.spa}
        self._seen["voters"] = torch.tensor(len(pairs) + 1)
        vote = cast_votes(unlabelled.features, unlabelled.p, pairs)
        self._note(unlabelled, vote)  # also where the network votes alone: the parts of a step tell the same signals
        if len(pairs) == 0:
            return {name: nothing for name, on in wanted.items() if on}
        terms = {}
        if c.lpa:
            terms["L_LPA"] = self.labelled_alignment(unlabelled, pairs)
        if c.upa:
            prototypes, present = self.unlabelled_prototypes(unlabelled, vote)
            terms["L_UPA"] = self.unlabelled_alignment(labelled, prototypes, y) if present else nothing
        if c.spa:
            terms["L_SPA"] = self.self_alignment(unlabelled, vote) if vote.voters > 2 else nothing
        return terms

    def labelled_prototypes(self, labelled: Maps, y: Tensor) -> Tensor:
        """Eq. 1: P^c of the labelled images of all ranks that have all classes: (N_v, C, D).

        A class that is not predicted in an image takes its annotated pixels; where there are none, the image drops out.
        """
        cells = label_of_cells(y, y.shape[-1] // labelled.p.shape[-1])
        predicted, has = class_means(labelled.features, labelled.p.argmax(dim=1), labelled.seen, self.classes)
        annotated, given = class_means(labelled.features, cells, labelled.seen, self.classes)
        whole = gather_rows((has | given).all(dim=1).long()) > 0
        return shared_rows(torch.where(has[:, :, None], predicted, annotated))[whole]

    def labelled_alignment(self, unlabelled: Maps, pairs: Tensor) -> Tensor:
        """Eqs. 2 to 4: L_LPA, mean over classes and cells."""
        m = cosines(unlabelled.features, pairs, summed=True).softmax(dim=1)
        p = unlabelled.p.detach() if self.config.lpa_detach == "pred" else unlabelled.p
        m = m.detach() if self.config.lpa_detach == "proto" else m
        squares = torch.where(unlabelled.seen, (p - m).square().sum(dim=1), 0.0)
        return squares.sum() / (self.classes * mean_count(unlabelled.seen.sum()).clamp(min=1).to(squares))

    def unlabelled_prototypes(self, unlabelled: Maps, vote: Vote) -> tuple[Tensor, bool]:
        """Eq. 8: P^c_u (C, D), means over the unlabelled images that have the class, and whether each class has one."""
        means, has = class_means(unlabelled.features, vote.label, unlabelled.seen, self.classes)
        means, has = shared_rows(means), gather_rows(has.long())
        images = has.sum(dim=0)
        return (means * has[:, :, None]).sum(dim=0) / images.clamp(min=1)[:, None], bool((images > 0).all())

    def unlabelled_alignment(self, labelled: Maps, prototypes: Tensor, y: Tensor) -> Tensor:
        """Eq. 9: L_UPA, mean over the labelled pixels; the similarities are upsampled to the size of y."""
        logits = self.config.upa_scale * cosines(labelled.features, prototypes[None], summed=True)
        return pixel_cross_entropy(F.interpolate(logits, size=y.shape[-2:], mode="bilinear", align_corners=False), y)

    def self_alignment(self, unlabelled: Maps, vote: Vote) -> Tensor:
        """Eqs. 10, 11: L_SPA = Σ_c ‖R^uncertain_c − R^reliable_c‖², mean over unlabelled images.

        A label is uncertain with the smallest majority q = ⌊V/2⌋ + 1 of the V voters, reliable with one vote more. A
        term with an empty region is 0.
        """
        majority = vote.voters // 2 + 1
        p = unlabelled.p if self.config.spa_weight_grad else unlabelled.p.detach()
        of_label = _one_hot(vote.label, self.classes) & unlabelled.seen[:, None]
        (uncertain, some), (reliable, others) = (
            _weighted_means(unlabelled.features, p * (of_label & (vote.most == votes)[:, None]))
            for votes in (majority, majority + 1)
        )
        reliable = reliable.detach() if self.config.spa_stop_reliable else reliable
        gaps = torch.where(some & others, (uncertain - reliable).square().sum(dim=2), 0.0)
        return gaps.sum() / mean_count(len(gaps)).clamp(min=1).to(gaps)

    def signals(self) -> dict[str, float]:
        """Voters, how unanimous they were, and the collapse signals of METHODS 1.9, of the last step."""
        return {name: float(value) for name, value in self._seen.items()}

    def pseudo(self) -> list[PseudoLabels] | None:
        """The vote on each unlabelled image of the last step and the share of votes it got, at the size of the view."""
        if self._shown is None:
            return None
        labels, share = (to_pixels(maps, self.net_spec.feature_stride) for maps in self._shown)
        return [PseudoLabels(None, *maps) for maps in zip(labels, share, strict=True)]

    def _maps(self, features: Tensor, logits: Tensor, view: View) -> Maps:
        stride = self.net_spec.feature_stride
        p = log_probabilities(logits, stride // self.net_spec.logits_stride).exp()
        return Maps(full_precision(features), p, cells_shown(view, stride))

    @torch.no_grad()
    def _note(self, unlabelled: Maps, vote: Vote) -> None:
        """Keep what `signals` and `pseudo` report, on the device: it is read only when it is logged."""
        share, seen = vote.most / vote.voters, unlabelled.seen
        names = [item.name for item in self.net_spec.classes]
        self._seen |= pixel_signals(vote.label, unlabelled.p.amax(dim=1), seen, names)
        self._seen["agreement"] = (share * seen).sum() / seen.sum().clamp(min=1)
        self._seen["embedding_std"] = spread(F.normalize(unlabelled.features, dim=1).movedim(1, -1).flatten(0, 2))
        self._shown = vote.label.masked_fill(~seen, IGNORE), share


class Vote(NamedTuple):
    """How the V voters see each cell of the unlabelled images.

    label   (B, h, w) int64, the class with the most votes
    most    (B, h, w) int64, its votes
    voters  V, the labelled images and the network itself
    """

    label: Tensor
    most: Tensor
    voters: int


@torch.no_grad()
def cast_votes(features: Tensor, p: Tensor, pairs: Tensor) -> Vote:
    """Eqs. 5 to 7: each pair of prototypes (N_v, C, D) votes for its nearest class, the network for its own."""
    similar = cosines(features, pairs)  # (B, N_v, C, h, w)
    votes = torch.cat([similar.argmax(dim=2), p.argmax(dim=1)[:, None]], dim=1)
    return count_votes(votes, similar.sum(dim=1))


def count_votes(votes: Tensor, similarity: Tensor) -> Vote:
    """The majority of votes (B, V, h, w) int64, the network's own last.

    Ties go to the network's class if it is among the tied, else to the tied class of largest similarity Σ_i G^c
    (B, C, h, w).
    """
    counts = torch.stack([(votes == c).sum(dim=1) for c in range(similarity.shape[1])], dim=1)
    most = counts.amax(dim=1)
    tied = counts == most[:, None]
    own = votes[:, -1]
    nearest = similarity.masked_fill(~tied, -torch.inf).argmax(dim=1)
    label = torch.where(tied.gather(1, own[:, None])[:, 0], own, nearest)
    return Vote(label, most, votes.shape[1])


def cosines(features: Tensor, prototypes: Tensor, *, summed: bool = False) -> Tensor:
    """Eq. 2: cos(F, P^c_i) of F (B, D, h, w) and P (N, C, D): (B, N, C, h, w), or their sum over i (B, C, h, w)."""
    unit_f, unit_p = F.normalize(features, dim=1, eps=LEAST_NORM), F.normalize(prototypes, dim=2, eps=LEAST_NORM)
    if summed:  # the sum of cosines is a product with the summed prototypes
        return torch.einsum("bdhw,cd->bchw", unit_f, unit_p.sum(dim=0))
    return torch.einsum("bdhw,ncd->bnchw", unit_f, unit_p)


def class_means(features: Tensor, labels: Tensor, seen: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Eq. 1: means of F (B, D, h, w) by class, an image each: (B, C, D), and which are present (B, C) bool."""
    return _weighted_means(features, (_one_hot(labels, classes) & seen[:, None]).to(features))


def _weighted_means(features: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Σ w F / Σ w of F (B, D, h, w) and w (B, C, h, w): (B, C, D), 0 where a class has no weight, and where it has."""
    mass = weights.sum(dim=(2, 3))
    present = mass > 0
    sums = torch.einsum("bchw,bdhw->bcd", weights, features)
    return sums / torch.where(present, mass, 1.0)[:, :, None], present


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """(B, h, w) -> (B, C, h, w) bool; other labels (255) are of no class."""
    return labels[:, None] == torch.arange(classes, device=labels.device)[:, None, None]


def _forward(net: SegNet, image: Tensor) -> tuple[Tensor, Tensor]:
    """Logits at the network's own stride, and F (B, D, H/4, W/4)."""
    decoded = net.decode(net.encode(image))
    return net.predict(decoded), decoded.features
