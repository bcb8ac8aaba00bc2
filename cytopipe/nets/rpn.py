"""The region proposal network: anchors on P2 to P6, their objectness and refinement, and its two losses.

Source: Ren et al., NeurIPS 2015, with the constants of METHODS 1.7. Anchors, head and box coding are torchvision's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import batched_nms, clip_boxes_to_image

from cytopipe.nets.losses import full_precision, objectness_loss, regression_loss
from cytopipe.nets.matching import NEGATIVE, match, sample
from cytopipe.nets.spec import NetSpec

ANCHORS_PER_IMAGE = 256
MIN_SIDE_PX = 1e-3


class ProposalNet(nn.Module):
    """Objectness and boxes for every anchor of a batch."""

    def __init__(self, spec: NetSpec) -> None:
        super().__init__()
        self.anchors = AnchorGenerator(tuple((px,) for px in spec.anchor_px), ((0.5, 1.0, 2.0),) * 5)
        self.head = RPNHead(spec.fpn_channels, 3)
        self.coder = BoxCoder((1.0, 1.0, 1.0, 1.0))

    def forward(
        self, feats: dict[int, Tensor], sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor, list[Tensor], list[int]]:
        """Objectness logits (B, A), deltas (B, A, 4), anchors per image (A, 4), and how many anchors each level has."""
        maps = [feats[level] for level in sorted(feats)]
        logits, deltas = self.head(maps)
        canvas = torch.empty((len(sizes), 3, maps[0].shape[2] * 4, maps[0].shape[3] * 4), device="meta")
        anchors = self.anchors(ImageList(canvas, sizes), maps)
        counts = [level.shape[1] * level.shape[2] * level.shape[3] for level in logits]
        flat_logits = torch.cat([_per_anchor(level, 1) for level in logits], dim=1).squeeze(2)
        flat_deltas = torch.cat([_per_anchor(level, 4) for level in deltas], dim=1)
        return full_precision(flat_logits), full_precision(flat_deltas), anchors, counts

    def select(
        self,
        output: tuple[Tensor, Tensor, list[Tensor], list[int]],
        sizes: list[tuple[int, int]],
        pre_nms: int,
        post_nms: int,
        nms_iou: float,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The best boxes of each image, best first: boxes (n_i, 4) clipped to the image, objectness (n_i,) in [0, 1];
        detached.
        """
        logits, deltas, anchors, counts = (x.detach() if isinstance(x, Tensor) else x for x in output)
        level_of = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(logits.device)
        boxes_of, scores_of = [], []
        for image, size in enumerate(sizes):
            keep = torch.cat(
                [
                    part.topk(min(pre_nms, len(part))).indices + start
                    for part, start in zip(logits[image].split(counts), _starts(counts), strict=True)
                ]
            )
            boxes = self.coder.decode_single(deltas[image, keep], anchors[image][keep])
            boxes = clip_boxes_to_image(boxes, size)
            scores, levels = logits[image, keep].sigmoid(), level_of[keep]
            large = ((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE_PX).all(dim=1)
            boxes, scores, levels = boxes[large], scores[large], levels[large]
            best = batched_nms(boxes, scores, levels, nms_iou)[:post_nms]
            boxes_of.append(boxes[best])
            scores_of.append(scores[best])
        return boxes_of, scores_of

    def losses(
        self, output: tuple[Tensor, Tensor, list[Tensor], list[int]], truth: list[Tensor], keys: list[int]
    ) -> dict[str, Tensor]:
        """rpn_cls: binary cross-entropy, mean over the sampled anchors; rpn_reg: smooth L1 summed over positives /
        sampled anchors.
        """
        logits, deltas, anchors, _ = output
        picked_logits, picked_labels, picked_deltas, goals = [], [], [], []
        for image, (boxes, key) in enumerate(zip(truth, keys, strict=True)):
            matched = match(anchors[image], boxes, 0.3, 0.7, best_too=True)
            positive, negative = sample(matched, ANCHORS_PER_IMAGE, 0.5, key)
            both = torch.cat([positive, negative])
            picked_logits.append(logits[image, both])
            picked_labels.append((matched[both] > NEGATIVE).to(logits.dtype))
            picked_deltas.append(deltas[image, positive])
            if len(positive):
                goals.append(self.coder.encode_single(boxes[matched[positive]], anchors[image][positive]))
        all_logits, all_labels, all_deltas = (
            torch.cat(picked_logits),
            torch.cat(picked_labels),
            torch.cat(picked_deltas),
        )
        goal = torch.cat(goals) if goals else all_deltas.detach()
        return {
            "rpn_cls": objectness_loss(all_logits, all_labels),
            "rpn_reg": regression_loss(all_deltas, goal, len(all_labels)),
        }


def _per_anchor(x: Tensor, values: int) -> Tensor:
    """(B, A * values, h, w) -> (B, h * w * A, values), the order in which AnchorGenerator lists its anchors."""
    batch, _, h, w = x.shape
    return x.view(batch, -1, values, h, w).permute(0, 3, 4, 1, 2).reshape(batch, -1, values)


def _starts(counts: list[int]) -> list[int]:
    return [sum(counts[:i]) for i in range(len(counts))]
