"""DetNet: Faster and Mask R-CNN with a feature pyramid, behind verbs that a method can call one by one (METHODS 1.7).

    extract -> propose -> score -> mask          the stages
    losses                                       the supervised terms of a labelled batch, with what was sampled for
                                                 them
    detect                                       the answer for a batch of windows

Images enter normalised, (B, 3, H, W) float32, sides divisible by 64. Boxes are x0 y0 x1 y1 in px of that input. Label 0
is background, label i + 1 is classes[i].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import clip_boxes_to_image, nms, roi_align

from cytopipe.nets.backbones import PyramidTrunk, batch_norms
from cytopipe.nets.heads import BoxHead, MaskHead, pool
from cytopipe.nets.matching import match, sample
from cytopipe.nets.rpn import SMOOTH_L1_BETA, ProposalNet
from cytopipe.nets.spec import NetSpec

__all__ = ["DetNet", "DetOutput", "Detections", "Truth", "build_net"]

ROI_POSITIVE_FRACTION = 0.25


class Truth(Protocol):
    """What a labelled image must bring; `semi.Targets` does."""

    boxes: Tensor  # (n, 4) float32, px of the view
    labels: Tensor  # (n,) int64, 1..C
    masks: Tensor | None  # (n, H, W) uint8


@dataclass(frozen=True, slots=True, eq=False)
class DetOutput:
    """The supervised terms of a batch, and the sampled RoIs they were computed on.

    terms          rpn_cls rpn_reg roi_cls roi_reg, and mask where the network has masks: scalars with gradient
    roi_labels     (n,) int64, 0 = background
    roi_logits     (n, C + 1)
    roi_features   H (n, D), output of the box head before the predictors
    """

    terms: dict[str, Tensor]
    roi_labels: Tensor
    roi_logits: Tensor
    roi_features: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What one window holds, best first.

    boxes         (n, 4) float32, px of the input
    scores        (n,) float32: the probability that an object of this kind is there (sum over the classes of the kind)
    labels        (n,) int64, 1..C: the most probable class of the kind
    class_scores  (n, C) float32: probabilities of the classes of the kind, 0 elsewhere
    masks         (n, 28, 28) float32 probabilities in the box, or None
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    class_scores: Tensor
    masks: Tensor | None


class DetNet(nn.Module):
    """Detection and instance segmentation. `extra` holds what a method attaches (projectors, adapters)."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.trunk = PyramidTrunk(spec)
        self.rpn = ProposalNet(spec)
        self.box_head = BoxHead(spec)
        self.mask_head = MaskHead(spec) if spec.task == "instance" else None
        self.extra = nn.ModuleDict()
        self._coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    @property
    def feature_dim(self) -> int:
        """D, the length of H."""
        return self.spec.head_dim

    @property
    def trains_batch_norm(self) -> bool:
        """Whether batch norm has running statistics; then labelled and unlabelled images take separate forwards
        (METHODS 1.7).
        """
        return bool(batch_norms(self))

    @contextmanager
    def frozen_statistics(self) -> Iterator[None]:
        """Inside, a forward in train mode normalises by its own batch and leaves the running statistics alone."""
        norms = batch_norms(self)
        for norm in norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True

    def extract(self, image: Tensor) -> dict[int, Tensor]:
        """(B, 3, H, W) -> {2: P2 (B, c, H/4, W/4), ..., 6: P6}."""
        return self.trunk(image)

    def propose(
        self, feats: dict[int, Tensor], sizes: list[tuple[int, int]], pre_nms: int, post_nms: int, nms_iou: float = 0.7
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Class-free boxes of each image (n_i, 4), best first, and their objectness (n_i,) in [0, 1]; detached."""
        return self.rpn.select(self.rpn(feats, sizes), sizes, pre_nms, post_nms, nms_iou)

    def score(
        self, feats: dict[int, Tensor], boxes: list[Tensor], level: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, C + 1), deltas (n, 4 (C + 1)) and H (n, D) of the boxes of all images, in order. `level` pools
        every box from P_level.
        """
        return self.box_head(pool(feats, boxes, BoxHead.POOL, self.spec.canonical_px, level))

    def mask(self, feats: dict[int, Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Mask logits (n, 28, 28) of the boxes of all images, each for its own label (n,)."""
        if self.mask_head is None:
            raise ValueError(f"{self.spec.architecture} has no mask head")
        logits = self.mask_head(pool(feats, boxes, MaskHead.POOL, self.spec.canonical_px))
        return logits[torch.arange(len(labels), device=labels.device), labels]

    def losses(
        self,
        feats: dict[int, Tensor],
        targets: Sequence[Truth],
        sizes: list[tuple[int, int]],
        keys: Sequence[int],
        *,
        focal_gamma: float | None = None,
        reg: bool = True,
        level: int | None = None,
    ) -> DetOutput:
        """The terms of METHODS 6.1 with torchvision's reductions.

        keys         one integer an image: the draw of anchors and RoIs depends on it alone
        focal_gamma  multi-class focal loss for roi_cls instead of cross-entropy
        reg          False leaves out both box regressions (pseudo-labels of CrossMatch, equation 5)
        level        pools every RoI from that level
        """
        proposals_of = self.rpn(feats, sizes)
        truth = [t.boxes for t in targets]
        terms = self.rpn.losses(proposals_of, truth, [int(k) for k in keys])
        proposed, _ = self.rpn.select(proposals_of, sizes, self.spec.train_proposals, self.spec.train_proposals, 0.7)
        rois, labels, goals, owners = self._sample_rois(proposed, targets, keys)
        roi_labels = torch.cat(labels)
        logits, deltas, features = self.score(feats, rois, level)
        terms["roi_cls"] = _classification(logits, roi_labels, focal_gamma)
        foreground = torch.where(roi_labels > 0)[0]
        own = deltas.view(len(deltas), len(self.spec.classes) + 1, 4)[foreground, roi_labels[foreground]]
        terms["roi_reg"] = F.smooth_l1_loss(own, torch.cat(goals), beta=SMOOTH_L1_BETA, reduction="sum") / max(
            len(roi_labels), 1
        )
        if not reg:
            del terms["rpn_reg"], terms["roi_reg"]
        if self.mask_head is not None:
            terms["mask"] = self._mask_loss(feats, rois, labels, owners, targets)
        return DetOutput(terms, roi_labels, logits, features)

    def detect(
        self,
        feats: dict[int, Tensor],
        sizes: list[tuple[int, int]],
        *,
        score_threshold: float = 0.05,
        nms_iou: float = 0.5,
        max_detections: int = 1000,
        pre_nms: int = 1000,
        post_nms: int = 1000,
    ) -> list[Detections]:
        """What each image holds. Suppression is by box IoU among the classes of one kind: a nucleus never suppresses
        its cell.
        """
        proposals, _ = self.propose(feats, sizes, pre_nms, post_nms)
        logits, deltas, _ = self.score(feats, proposals)
        counts = [len(p) for p in proposals]
        results = []
        parts = zip(logits.softmax(dim=1).split(counts), deltas.split(counts), proposals, sizes, strict=True)
        for probabilities, delta, boxes, size in parts:
            results.append(self._answer(probabilities, delta, boxes, size, score_threshold, nms_iou, max_detections))
        if self.mask_head is None:
            return results
        masks = self.mask(feats, [r.boxes for r in results], torch.cat([r.labels for r in results])).sigmoid()
        split = masks.split([len(r.boxes) for r in results])
        return [Detections(r.boxes, r.scores, r.labels, r.class_scores, m) for r, m in zip(results, split, strict=True)]

    def _answer(
        self,
        probabilities: Tensor,
        deltas: Tensor,
        boxes: Tensor,
        size: tuple[int, int],
        threshold: float,
        nms_iou: float,
        most: int,
    ) -> Detections:
        deltas = deltas.view(len(deltas), len(self.spec.classes) + 1, 4)
        found = []
        for kind in self.spec.kinds:
            columns = torch.tensor(kind, device=boxes.device) + 1
            of_kind = probabilities[:, columns]
            scores = of_kind.sum(dim=1)
            keep = torch.where(scores > threshold)[0]
            labels = columns[of_kind[keep].argmax(dim=1)]
            decoded = clip_boxes_to_image(self._coder.decode_single(deltas[keep, labels], boxes[keep]), size)
            large = ((decoded[:, 2:] - decoded[:, :2]) >= 1.0).all(dim=1)
            keep, labels, decoded = keep[large], labels[large], decoded[large]
            best = nms(decoded, scores[keep], nms_iou)
            spread = torch.zeros((len(best), len(self.spec.classes)), dtype=probabilities.dtype, device=boxes.device)
            spread[:, columns - 1] = of_kind[keep[best]]
            found.append((decoded[best], scores[keep[best]], labels[best], spread))
        all_boxes, all_scores, all_labels, all_spread = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = all_scores.argsort(descending=True, stable=True)[:most]
        return Detections(all_boxes[order], all_scores[order], all_labels[order], all_spread[order], None)

    def _sample_rois(
        self, proposed: list[Tensor], targets: Sequence[Truth], keys: Sequence[int]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
        """RoIs, labels, regression goals of the foreground ones, and the index of the truth of each foreground one;
        lists over images.
        """
        rois, labels, goals, owners = [], [], [], []
        for boxes, target, key in zip(proposed, targets, keys, strict=True):
            candidates = torch.cat([boxes, target.boxes.to(boxes)])
            matched = match(candidates, target.boxes, 0.5, 0.5, best_too=False)
            positive, negative = sample(matched, self.spec.rois_per_image, ROI_POSITIVE_FRACTION, int(key) + 1)
            label = torch.zeros(len(positive) + len(negative), dtype=torch.int64, device=boxes.device)
            owner = matched[positive]
            label[: len(positive)] = target.labels[owner]
            rois.append(candidates[torch.cat([positive, negative])])
            labels.append(label)
            goals.append(
                self._coder.encode_single(target.boxes[owner], candidates[positive])
                if len(positive)
                else boxes.new_zeros((0, 4))
            )
            owners.append(owner)
        return rois, labels, goals, owners

    def _mask_loss(
        self,
        feats: dict[int, Tensor],
        rois: list[Tensor],
        labels: list[Tensor],
        owners: list[Tensor],
        targets: Sequence[Truth],
    ) -> Tensor:
        """Binary cross-entropy on the 28x28 map of the true class, mean over positive RoIs; attached zero where there
        are none.
        """
        positive = [r[: len(o)] for r, o in zip(rois, owners, strict=True)]  # `sample` puts the foreground first
        own = torch.cat([label[: len(o)] for label, o in zip(labels, owners, strict=True)])
        logits = self.mask(feats, positive, own)
        if len(own) == 0:
            return logits.sum() + 0.0 * sum(p.sum() for p in self.mask_head.parameters())
        goals = [
            _cut_masks(t.masks, o, p)
            for t, o, p in zip(targets, owners, positive, strict=True)
            if t.masks is not None and len(o)
        ]
        return F.binary_cross_entropy_with_logits(logits, torch.cat(goals).to(logits.dtype))


def build_net(spec: NetSpec) -> DetNet:
    """The network of a spec with torchvision's random initialisation, drawn from torch's global generator."""
    return DetNet(spec)


def _classification(logits: Tensor, labels: Tensor, focal_gamma: float | None) -> Tensor:
    if len(labels) == 0:
        return logits.sum()
    each = F.cross_entropy(logits, labels, reduction="none")
    if focal_gamma is not None:
        each = (1 - logits.softmax(dim=1)[torch.arange(len(labels)), labels]) ** focal_gamma * each
    return each.mean()


def _cut_masks(masks: Tensor, owner: Tensor, boxes: Tensor) -> Tensor:
    """The truth seen by each RoI, (n, 28, 28) float32: the part of its owner's mask inside the box, resampled as in
    Mask R-CNN.
    """
    used, place = owner.unique(return_inverse=True)
    rois = torch.cat([place[:, None].to(boxes), boxes], dim=1)
    return roi_align(masks[used][:, None].to(boxes.dtype), rois, MaskHead.SIDE, 1.0, aligned=False)[:, 0].clamp(0, 1)
