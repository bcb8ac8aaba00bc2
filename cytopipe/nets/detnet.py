"""DetNet: Faster and Mask R-CNN with a feature pyramid, behind verbs that a method can call one by one (METHODS 1.7).

    extract -> propose -> score -> mask          the stages
    losses                                       the supervised terms of a labelled batch, with what was sampled for
                                                 them
    detect                                       the answer for a batch of windows

Images enter normalised, (B, 3, H, W) float32, sides divisible by 64. Boxes are x0 y0 x1 y1 in px of that input. Label 0
is background, label i + 1 is classes[i].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder

from cytopipe.nets.answer import Detections, answer, candidates
from cytopipe.nets.backbones import PyramidTrunk
from cytopipe.nets.batch_norm import BatchNormed
from cytopipe.nets.heads import BoxHead, MaskHead, pool
from cytopipe.nets.losses import classification_loss, full_precision, mask_loss, regression_loss
from cytopipe.nets.relations import MOST_CANDIDATES, DuplicateRemoval, InstanceRelation, duplicate_loss, keep_goals
from cytopipe.nets.rois import RoISample, Truth, cut_masks, sample_rois
from cytopipe.nets.rpn import ProposalNet
from cytopipe.nets.spec import NetSpec

__all__ = ["DetNet", "DetOutput", "Detections", "RoISample", "Truth", "build_net"]

PROPOSAL_NMS_IOU = 0.7
CANDIDATE_SCORE = 0.05  # least score of what the duplicate removal learns from, as in `detect`


@dataclass(frozen=True, slots=True, eq=False)
class DetOutput:
    """The supervised terms of a batch, and the sampled RoIs they were computed on.

    terms          rpn_cls rpn_reg roi_cls roi_reg, mask where the network has masks, duplicate where it has relation
                   modules: scalars with gradient
    roi_labels     (n,) int64, 0 = background
    roi_logits     (n, C + 1)
    roi_features   H (n, D), output of the box head before the predictors
    rois           one (n_i, 4) an image: the RoIs, px of the input
    """

    terms: dict[str, Tensor]
    roi_labels: Tensor
    roi_logits: Tensor
    roi_features: Tensor
    rois: Sequence[Tensor] = ()


class DetNet(BatchNormed):
    """Detection and instance segmentation. `extra` holds what a method attaches (projectors, adapters)."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.spec = spec
        self.trunk = PyramidTrunk(spec)
        self.rpn = ProposalNet(spec)
        self.box_head = BoxHead(spec)
        self.mask_head = MaskHead(spec) if spec.task == "instance" else None
        self.mask_relation = InstanceRelation(spec.fpn_channels) if spec.relations and self.mask_head else None
        self.duplicates = DuplicateRemoval(spec.head_dim) if spec.relations else None
        self.extra = nn.ModuleDict()
        self._coder = BoxCoder((10.0, 10.0, 5.0, 5.0))

    @property
    def feature_dim(self) -> int:
        """D, the length of H."""
        return self.spec.head_dim

    def extract(self, image: Tensor) -> dict[int, Tensor]:
        """(B, 3, H, W) -> {2: P2 (B, c, H/4, W/4), ..., 6: P6}."""
        return self.trunk(image)

    def propose(
        self,
        feats: dict[int, Tensor],
        sizes: list[tuple[int, int]],
        pre_nms: int,
        post_nms: int,
        nms_iou: float = PROPOSAL_NMS_IOU,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Class-free boxes of each image (n_i, 4), best first, and their objectness (n_i,) in [0, 1]; detached."""
        return self.rpn.select(self.rpn(feats, sizes), sizes, pre_nms, post_nms, nms_iou)

    def score(
        self, feats: dict[int, Tensor], boxes: list[Tensor], level: int | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, C + 1), deltas (n, 4 (C + 1)) and H (n, D) of the boxes of all images, in order. `level` pools
        every box from P_level.
        """
        logits, deltas, h = self.box_head(pool(feats, boxes, BoxHead.POOL, self.spec.canonical_px, level))
        return full_precision(logits), full_precision(deltas), h

    def mask(self, feats: dict[int, Tensor], boxes: list[Tensor], labels: Tensor) -> Tensor:
        """Mask logits (n, 28, 28) of the boxes of all images, each for its own label (n,)."""
        if self.mask_head is None:
            raise ValueError(f"{self.spec.architecture} has no mask head")
        pooled = pool(feats, boxes, MaskHead.POOL, self.spec.canonical_px)
        if self.mask_relation is not None:
            pooled = self.mask_relation(pooled, [len(b) for b in boxes])
        logits = self.mask_head(pooled)
        return logits[torch.arange(len(labels), device=labels.device), labels]

    def roi_sample(
        self,
        feats: dict[int, Tensor],
        targets: Sequence[Truth],
        sizes: list[tuple[int, int]],
        keys: Sequence[int],
        proposals: list[Tensor] | None = None,
    ) -> RoISample:
        """The RoIs of a training step: up to `rois_per_image` an image, matched with its truth, a quarter foreground.

        keys       one integer an image: the draw depends on it alone
        proposals  (n_i, 4) of each image in place of those of the network's own RPN
        """
        if proposals is None:
            proposals, _ = self.propose(feats, sizes, self.spec.train_proposals, self.spec.train_proposals)
        return sample_rois(proposals, targets, keys, self.spec.rois_per_image, self._coder)

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
        reg          False leaves out both box regressions (pseudo-labels of CrossMatch, equation 5), and `duplicate`,
                     which learns from labelled images only
        level        pools every RoI from that level
        """
        anchored = self.rpn(feats, sizes)
        terms = self.rpn.losses(anchored, [t.boxes for t in targets], [int(k) for k in keys])
        most = self.spec.train_proposals
        proposals, _ = self.rpn.select(anchored, sizes, most, most, PROPOSAL_NMS_IOU)
        drawn = self.roi_sample(feats, targets, sizes, keys, proposals)
        logits, deltas, features = self.score(feats, drawn.rois, level)
        terms["roi_cls"] = classification_loss(logits, drawn.labels, focal_gamma)
        if reg:
            foreground = torch.where(drawn.labels > 0)[0]
            own = deltas.view(len(deltas), -1, 4)[foreground, drawn.labels[foreground]]
            terms["roi_reg"] = regression_loss(own, drawn.goals, len(drawn.labels))
        else:
            del terms["rpn_reg"]
        if self.mask_head is not None:
            terms["mask"] = self._mask_loss(feats, drawn, targets)
        if self.duplicates is not None and reg:
            terms["duplicate"] = self._duplicate_loss(drawn, logits, deltas, features, targets, sizes)
        return DetOutput(terms, drawn.labels, logits, features, drawn.rois)

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
        per_class: bool = False,
    ) -> list[Detections]:
        """What each image holds. Suppression is by box IoU among the classes of one kind: a nucleus never suppresses
        its cell.

        per_class  suppression among boxes of one class only, and each class of a box is an answer of its own, with
                   its probability as score, as in torchvision
        """
        proposals, _ = self.propose(feats, sizes, pre_nms, post_nms)
        logits, deltas, features = self.score(feats, proposals)
        counts = [len(p) for p in proposals]
        groups = [(k,) for k in range(len(self.spec.classes))] if per_class else self.spec.kinds
        parts = (logits.softmax(dim=1).split(counts), deltas.split(counts), proposals, sizes, features.split(counts))
        judge = self._judge if self.duplicates is not None and self.duplicates.is_on else None
        results = [
            answer(
                p,
                delta,
                boxes,
                size,
                groups,
                self._coder,
                threshold=score_threshold,
                nms_iou=nms_iou,
                most=max_detections,
                features=h,
                judge=judge,
            )
            for p, delta, boxes, size, h in zip(*parts, strict=True)
        ]
        if self.mask_head is None:
            return results
        masks = self.mask(feats, [r.boxes for r in results], torch.cat([r.labels for r in results])).sigmoid()
        split = masks.split([len(r.boxes) for r in results])
        return [Detections(r.boxes, r.scores, r.labels, r.class_scores, m) for r, m in zip(results, split, strict=True)]

    def _judge(self, features: Tensor, boxes: Tensor) -> Tensor:
        """s1 (n,) of candidates, best first; 0 beyond the first 200."""
        s1 = self.duplicates(features[:MOST_CANDIDATES], boxes[:MOST_CANDIDATES]).sigmoid()
        return torch.cat([s1, s1.new_zeros(max(len(boxes) - MOST_CANDIDATES, 0))])

    def _duplicate_loss(
        self,
        drawn: RoISample,
        logits: Tensor,
        deltas: Tensor,
        features: Tensor,
        targets: Sequence[Truth],
        sizes: list[tuple[int, int]],
    ) -> Tensor:
        """duplicate: the sampled RoIs are the candidates [D: they are scored already], of each kind by itself."""
        counts = [len(rois) for rois in drawn.rois]
        parts = (logits.detach().softmax(dim=1), deltas.detach(), features)
        said, goals = [features[:0].sum(dim=1)], [features[:0].detach().sum(dim=1)]
        split = zip(*(x.split(counts) for x in parts), drawn.rois, targets, sizes, strict=True)
        for probabilities, delta, h, rois, target, size in split:
            for kind in self.spec.kinds:
                found = candidates(probabilities, delta, rois, size, kind, self._coder, CANDIDATE_SCORE)
                boxes, rows = found.boxes[:MOST_CANDIDATES], found.rows[:MOST_CANDIDATES]
                truth = target.boxes[torch.isin(target.labels - 1, torch.tensor(kind, device=rois.device))]
                said.append(self.duplicates(h[rows], boxes))
                goals.append(keep_goals(boxes, found.scores[:MOST_CANDIDATES], truth))
        if self.training:
            self.duplicates.steps += 1
        return duplicate_loss(full_precision(torch.cat(said)), torch.cat(goals))

    def _mask_loss(self, feats: dict[int, Tensor], drawn: RoISample, targets: Sequence[Truth]) -> Tensor:
        """mask, over the foreground RoIs of the images whose truth has masks."""
        seen = [boxes if t.masks is not None else boxes[:0] for boxes, t in zip(drawn.foreground, targets, strict=True)]
        labels = [t.labels[o[: len(b)]] for t, o, b in zip(targets, drawn.owners, seen, strict=True)]
        goals = [
            cut_masks(t.masks, o, b, MaskHead.SIDE)
            for t, o, b in zip(targets, drawn.owners, seen, strict=True)
            if t.masks is not None
        ]
        logits = self.mask(feats, seen, torch.cat(labels))
        return mask_loss(logits, torch.cat(goals) if goals else logits.detach())


def build_net(spec: NetSpec) -> DetNet:
    """The network of a spec with torchvision's random initialisation, drawn from torch's global generator."""
    return DetNet(spec)
