"""DetNet against torchvision's own Faster and Mask R-CNN, with the same weights and the same images.

Where the definitions coincide: everything but RoIAlign's half cell (torchvision's pooler passes aligned=False; here it
is given aligned=True), so its `roi_align` in the pooler is replaced for these tests.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torchvision.models import resnet18, resnet50
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d, poolers
from torchvision.ops import roi_align as plain_roi_align

from cytopipe.core.classes import class_named
from cytopipe.nets import NetSpec, build_net
from cytopipe.nets.foreign import own_names
from cytopipe.semi import Targets

CLASSES = tuple(class_named(name) for name in ("nucleus", "normal", "HSIL"))
SIDE = 128
RESNETS = {"resnet18": resnet18, "resnet50": resnet50}
ALL = 10**6  # more than there are: both draw every anchor and every RoI, so that no draw can differ
CASES = ["mask-rcnn-resnet18-fpn", "faster-rcnn-resnet50-fpn", "mask-rcnn-resnet50-fpn"]


@pytest.fixture(autouse=True)
def _aligned(monkeypatch):
    monkeypatch.setattr(poolers, "roi_align", functools.partial(plain_roi_align, aligned=True))


@functools.cache
def both(architecture):
    """torchvision's model and ours with its weights; frozen batch norm with statistics that are not the identity."""
    torch.manual_seed(0)
    kind = MaskRCNN if architecture.startswith("mask") else FasterRCNN
    trunk = RESNETS[architecture.split("-")[2]](weights=None, norm_layer=FrozenBatchNorm2d)
    theirs = kind(
        _resnet_fpn_extractor(trunk, 5),
        num_classes=len(CLASSES) + 1,
        rpn_batch_size_per_image=ALL,
        box_batch_size_per_image=ALL,
        box_positive_fraction=0.25,
        rpn_pre_nms_top_n_train=80,
        rpn_post_nms_top_n_train=80,
        rpn_pre_nms_top_n_test=80,
        rpn_post_nms_top_n_test=80,
        box_score_thresh=0.1,
        box_detections_per_img=40,
    )
    with torch.no_grad():
        for module in theirs.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.running_mean.normal_(0, 0.05)
                module.running_var.uniform_(0.8, 1.2)
        _spread(theirs.eval())
    values = {"architecture": architecture, "classes": CLASSES, "frozen_batch_norm": True}
    ours = build_net(NetSpec.model_validate({**values, "rois_per_image": ALL, "train_proposals": 80}))
    ours.load_state_dict(own_names(theirs.state_dict()))
    return theirs, ours


def images():
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def truth(masks):
    boxes = (
        torch.tensor([[10.0, 10, 42, 50], [60, 22, 90, 60], [3, 80, 120, 126], [64, 64, 80, 80]]),
        torch.tensor([[30.0, 40, 100, 118]]),
    )
    labels = (torch.tensor([2, 1, 3, 1]), torch.tensor([2]))
    generator = torch.Generator().manual_seed(2)
    drawn = [(torch.rand(len(b), SIDE, SIDE, generator=generator) > 0.5).to(torch.uint8) for b in boxes]
    return [Targets(b, n, m if masks else None) for b, n, m in zip(boxes, labels, drawn, strict=True)]


@pytest.mark.parametrize("architecture", CASES)
def test_the_losses_are_those_of_torchvision(architecture, monkeypatch):
    theirs, ours = both(architecture)
    theirs.train(), ours.train()
    targets = truth(masks=architecture.startswith("mask"))
    monkeypatch.setattr("cytopipe.nets.rpn.ANCHORS_PER_IMAGE", ALL)
    sizes = [(SIDE, SIDE)] * 2

    out = ours.losses(ours.extract(images()), targets, sizes, [5, 6]).terms

    known = [{"boxes": t.boxes, "labels": t.labels, "masks": t.masks} for t in targets]
    listed = ImageList(images(), sizes)
    feats = theirs.backbone(listed.tensors)
    proposals, of_rpn = theirs.rpn(listed, feats, known)
    _, of_rois = theirs.roi_heads(feats, proposals, sizes, known)
    expected = {
        "rpn_cls": of_rpn["loss_objectness"],
        "rpn_reg": of_rpn["loss_rpn_box_reg"],
        "roi_cls": of_rois["loss_classifier"],
        "roi_reg": of_rois["loss_box_reg"],
    } | ({"mask": of_rois["loss_mask"]} if "loss_mask" in of_rois else {})
    assert set(out) == set(expected)
    for name, value in expected.items():
        assert value > 1e-3
        torch.testing.assert_close(out[name], value, rtol=1e-4, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("architecture", ["mask-rcnn-resnet18-fpn"])
def test_the_gradients_are_those_of_torchvision(architecture, monkeypatch):
    theirs, ours = both(architecture)
    theirs.train(), ours.train()
    targets = truth(masks=architecture.startswith("mask"))
    monkeypatch.setattr("cytopipe.nets.rpn.ANCHORS_PER_IMAGE", ALL)
    sizes = [(SIDE, SIDE)] * 2
    theirs.zero_grad(), ours.zero_grad()

    sum(ours.losses(ours.extract(images()), targets, sizes, [5, 6]).terms.values()).backward()

    known = [{"boxes": t.boxes, "labels": t.labels, "masks": t.masks} for t in targets]
    listed = ImageList(images(), sizes)
    feats = theirs.backbone(listed.tensors)
    proposals, of_rpn = theirs.rpn(listed, feats, known)
    sum((of_rpn | theirs.roi_heads(feats, proposals, sizes, known)[1]).values()).backward()
    expected = own_names({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        scale = expected[name].abs().max()
        torch.testing.assert_close(parameter.grad / scale, expected[name] / scale, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", CASES)
def test_the_answers_are_those_of_torchvision(architecture):
    theirs, ours = both(architecture)
    theirs.eval(), ours.eval()
    sizes = [(SIDE, SIDE)] * 2

    with torch.inference_mode():
        found = ours.detect(
            ours.extract(images()),
            sizes,
            score_threshold=0.1,
            nms_iou=0.5,
            max_detections=40,
            pre_nms=80,
            post_nms=80,
            per_class=True,
        )
        listed = ImageList(images(), sizes)
        feats = theirs.backbone(listed.tensors)
        proposals, _ = theirs.rpn(listed, feats)
        expected, _ = theirs.roi_heads(feats, proposals, sizes)

    for ours_of, theirs_of in zip(found, expected, strict=True):
        assert len(theirs_of["boxes"]) == 40
        torch.testing.assert_close(ours_of.boxes, theirs_of["boxes"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours_of.scores, theirs_of["scores"], rtol=1e-4, atol=1e-4)
        assert torch.equal(ours_of.labels, theirs_of["labels"])
        if ours_of.masks is not None:
            torch.testing.assert_close(ours_of.masks, theirs_of["masks"][:, 0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("architecture", CASES[:1])
def test_each_stage_gives_what_that_of_torchvision_gives(architecture):
    theirs, ours = both(architecture)
    theirs.eval(), ours.eval()
    sizes = [(SIDE, SIDE)] * 2

    with torch.inference_mode():
        feats = ours.extract(images())
        proposals, objectness = ours.propose(feats, sizes, 80, 80)
        logits, deltas, h = ours.score(feats, proposals)
        theirs_feats = theirs.backbone(images())
        theirs_proposals, _ = theirs.rpn(ImageList(images(), sizes), theirs_feats)
        pooled = theirs.roi_heads.box_roi_pool(theirs_feats, theirs_proposals, sizes)
        theirs_h = theirs.roi_heads.box_head(pooled)
        theirs_logits, theirs_deltas = theirs.roi_heads.box_predictor(theirs_h)

    for ours_map, theirs_map in zip(feats.values(), theirs_feats.values(), strict=True):
        torch.testing.assert_close(ours_map, theirs_map, rtol=1e-4, atol=1e-4)
    for a, b in zip(proposals, theirs_proposals, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert all((s[:-1] >= s[1:]).all() for s in objectness)
    torch.testing.assert_close(h, theirs_h, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, theirs_logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deltas, theirs_deltas, rtol=1e-4, atol=1e-4)


def _spread(model):
    """Maps of unit size, and logits of every class that win somewhere: with random weights as they come, all boxes
    would be one and all answers alike.
    """
    for block, level in zip(model.backbone.fpn.layer_blocks, model.backbone(images()).values(), strict=False):
        block[0].weight.div_(level.std())
    model.rpn.head.cls_logits.weight.mul_(50)
    model.rpn.head.bbox_pred.weight.mul_(5)
    sizes = [(SIDE, SIDE)] * 2
    feats = model.backbone(images())
    proposals, _ = model.rpn(ImageList(images(), sizes), feats)
    h = model.roi_heads.box_head(model.roi_heads.box_roi_pool(feats, proposals, sizes))
    last = model.roi_heads.box_predictor.cls_score
    logits = last(h)
    last.weight.div_(logits.std(dim=0)[:, None])
    last.bias.sub_(logits.mean(dim=0)).div_(logits.std(dim=0))
