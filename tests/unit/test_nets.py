"""DetNet and its parts: matching, sampling, pooling, suppression, losses in the degenerate cases."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import avg_pool2d
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from cytopipe.core.classes import class_named
from cytopipe.nets import NetSpec, build_net, classification_loss
from cytopipe.nets.answer import answer
from cytopipe.nets.heads import BoxHead, MaskHead, level_of, pool
from cytopipe.nets.matching import NEGATIVE, match, sample
from cytopipe.semi import Targets

CLASSES = tuple(class_named(name) for name in ("nucleus", "normal", "HSIL"))


def spec(family="mask-rcnn"):
    return NetSpec.model_validate({"architecture": f"{family}-mobilenetv2-fpn", "classes": CLASSES})


def random_boxes(count, seed, extent=256.0):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, 2, generator=generator) * extent
    half = torch.rand(count, 2, generator=generator) * 30 + 2
    return torch.cat([centre - half, centre + half], dim=1)


def targets(boxes, labels, size=(128, 128)):
    masks = torch.zeros((len(boxes), *size), dtype=torch.uint8)
    for i, (x0, y0, x1, y1) in enumerate(boxes.int().tolist()):
        masks[i, y0:y1, x0:x1] = 1
    return Targets(boxes, torch.tensor(labels, dtype=torch.int64), masks)


@pytest.mark.parametrize("best_too", [True, False])
@pytest.mark.parametrize("truths", [1, 7, 8, 9, 40])
def test_matching_is_that_of_torchvision_however_many_truths_there_are(truths, best_too):
    candidates, truth = random_boxes(3000, 1), random_boxes(truths, 2)

    ours = match(candidates, truth, 0.3, 0.7, best_too=best_too)

    theirs = Matcher(0.7, 0.3, allow_low_quality_matches=best_too)(box_iou(truth, candidates))
    assert torch.equal(ours, theirs)


def test_without_truth_every_candidate_is_background():
    matched = match(random_boxes(50, 1), torch.zeros(0, 4), 0.3, 0.7, best_too=True)

    assert (matched == NEGATIVE).all()


def test_what_is_sampled_depends_on_the_key_and_not_on_what_was_drawn_before():
    matched = match(random_boxes(3000, 1), random_boxes(20, 2), 0.3, 0.5, best_too=True)

    first = sample(matched, 64, 0.5, key=11)
    torch.rand(5)
    again, other = sample(matched, 64, 0.5, key=11), sample(matched, 64, 0.5, key=12)

    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], other[1])
    assert len(first[0]) + len(first[1]) == 64
    assert (matched[first[0]] >= 0).all()
    assert (matched[first[1]] == NEGATIVE).all()


def test_a_box_is_pooled_from_the_level_that_its_size_selects():
    boxes = torch.tensor(
        [[0, 0, 8.0, 8], [0, 0, 111.9, 111.9], [0, 0, 112.0, 112.0], [0, 0, 224.0, 224], [0, 0, 2000, 2000.0]]
    )

    assert level_of(boxes, 112.0).tolist() == [2, 3, 4, 5, 5]
    assert level_of(boxes, 224.0).tolist() == [2, 2, 3, 4, 5]


def test_boxes_of_112_224_and_448_px_are_pooled_from_levels_3_4_and_5_and_none_from_beyond():
    sides = torch.tensor([1.0, 111.9, 112, 223.9, 224, 447.9, 448, 895, 896, 5000])

    squares = torch.stack([torch.zeros(10), torch.zeros(10), sides, sides], dim=1)
    slim = torch.stack(
        [torch.zeros(10), torch.zeros(10), sides * 4, sides / 4], dim=1
    )  # the area counts, not the shape

    assert level_of(squares, 224.0).tolist() == [2, 2, 3, 3, 4, 4, 5, 5, 5, 5]
    assert torch.equal(level_of(slim, 224.0), level_of(squares, 224.0))


@pytest.mark.parametrize("axis", [2, 3], ids=["up-down", "left-right"])
@pytest.mark.parametrize("size", [BoxHead.POOL, MaskHead.POOL])
@pytest.mark.parametrize("level", [None, 2, 3, 4, 5])
def test_pooling_a_flipped_image_with_flipped_boxes_gives_the_flipped_result(level, size, axis):
    # METHODS 1.7: a trunk with stride-2 convolutions is not flip-equivariant itself, hence average pooling
    def trunk(image):
        return {k: avg_pool2d(image, 2**k) for k in range(2, 7)}

    image = torch.randn(1, 4, 192, 256, generator=torch.Generator().manual_seed(5))  # sides divisible by 64
    extent = torch.tensor([256.0, 192, 256, 192])
    boxes = (random_boxes(40, 3) * extent / 256).clamp(min=torch.zeros(4), max=extent)
    flipped = boxes.clone()
    near, far = (3 - axis, 5 - axis)
    flipped[:, [near, far]] = extent[near] - boxes[:, [far, near]]

    straight = pool(trunk(image), [boxes], size, 112.0, level)
    mirrored = pool(trunk(image.flip(axis)), [flipped], size, 112.0, level)

    torch.testing.assert_close(mirrored.flip(axis), straight, atol=1e-4, rtol=1e-4)
    if level is None:
        assert level_of(boxes, 112.0).unique().tolist() == [2]  # the others are named
    assert straight.std() > 0.01


def test_a_level_that_is_not_pooled_from_is_an_error():
    feats = {k: torch.randn(1, 4, 64 // 2**k, 64 // 2**k) for k in range(2, 7)}

    with pytest.raises(ValueError, match="level 6"):
        pool(feats, [random_boxes(2, 1)], 7, 224.0, level=6)


def test_rois_are_sampled_once_and_can_be_scored_from_every_level():
    torch.manual_seed(0)
    net = build_net(spec("faster-rcnn")).eval()
    batch = (targets(torch.tensor([[10.0, 10, 40, 50], [20, 22, 30, 33]]), [2, 1]), targets(torch.zeros(0, 4), []))
    sizes, keys = [(128, 128)] * 2, [3, 4]
    feats = net.extract(torch.randn(2, 3, 128, 128))

    out = net.losses(feats, batch, sizes, keys, level=2, focal_gamma=1.5, reg=False)
    drawn = net.roi_sample(feats, batch, sizes, keys)

    assert set(out.terms) == {"rpn_cls", "roi_cls"}
    assert all(torch.equal(a, b) for a, b in zip(out.rois, drawn.rois, strict=True))
    assert torch.equal(out.roi_labels, drawn.labels)
    assert drawn.goals.shape == (sum(len(o) for o in drawn.owners), 4)
    assert drawn.labels[: len(drawn.owners[0])].tolist() == [[2, 1][k] for k in drawn.owners[0].tolist()]
    assert (drawn.labels > 0).sum() == len(drawn.owners[0])
    logits, _, _ = net.score(feats, drawn.rois, level=2)
    torch.testing.assert_close(classification_loss(logits, drawn.labels, 1.5), out.terms["roi_cls"])
    other, _, _ = net.score(feats, drawn.rois, level=4)
    assert not torch.allclose(other, logits)


def test_proposals_of_another_network_can_be_sampled():
    net = build_net(spec("faster-rcnn"))
    feats = {k: torch.zeros(1, 64, 128 // 2**k, 128 // 2**k) for k in range(2, 7)}
    given, truth = torch.tensor([[0.0, 0, 64, 64]]), targets(torch.tensor([[10.0, 10, 40, 50]]), [2])

    drawn = net.roi_sample(feats, (truth,), [(128, 128)], [1], proposals=[given])

    assert drawn.rois[0].tolist() == [[10, 10, 40, 50], [0, 0, 64, 64]]  # the truth joins them, foreground first
    assert drawn.labels.tolist() == [2, 0]


def test_the_focal_loss_is_the_formula_in_a_loop():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0, 0, 1])

    for gamma in (None, 0.0, 1.5, 2.0):
        expected = 0.0
        for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
            p = math.exp(row[label]) / sum(math.exp(v) for v in row)
            expected += (1 - p) ** (gamma or 0.0) * -math.log(p) / len(labels)
        assert float(classification_loss(logits, labels, gamma)) == pytest.approx(expected, rel=1e-6)


def test_the_focal_loss_has_the_golden_value_and_no_label_gives_an_attached_zero():
    even = torch.zeros(1, 2, dtype=torch.float64)
    nothing = torch.zeros(0, 3, requires_grad=True)

    assert float(classification_loss(even, torch.tensor([1]), 1.5)) == pytest.approx(0.24506454, rel=1e-6)  # METHODS 9
    loss = classification_loss(nothing, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0.0
    assert nothing.grad is not None


def test_in_half_precision_boxes_keep_their_px():
    torch.manual_seed(0)
    net = build_net(spec()).eval()
    image = torch.randn(1, 3, 128, 1024)

    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        feats = net.extract(image)
        boxes, _ = net.propose(feats, [(128, 1024)], 200, 100)
        logits, deltas, _ = net.score(feats, boxes)
        found = net.detect(feats, [(128, 1024)], score_threshold=0.01)[0]
        terms = net.losses(feats, (targets(torch.tensor([[900.0, 9, 999, 99]]), [1], (128, 1024)),), [(128, 1024)], [1])

    assert {x.dtype for x in (boxes[0], logits, deltas, found.boxes, found.scores)} == {torch.float32}
    assert {value.dtype for value in terms.terms.values()} == {torch.float32}
    assert (boxes[0] != boxes[0].to(torch.bfloat16).float()).any()  # coordinates that bfloat16 could not hold
    assert all(torch.isfinite(value) for value in terms.terms.values())


def test_with_one_class_a_kind_suppression_by_class_is_that_by_kind():
    torch.manual_seed(0)
    net = build_net(
        NetSpec.model_validate({"architecture": "faster-rcnn-mobilenetv2-fpn", "classes": CLASSES[:2]})
    ).eval()

    with torch.inference_mode():
        feats = net.extract(torch.randn(1, 3, 128, 128))
        by_kind = net.detect(feats, [(128, 128)], score_threshold=0.1)[0]
        by_class = net.detect(feats, [(128, 128)], score_threshold=0.1, per_class=True)[0]

    assert len(by_kind.boxes) > 0
    assert torch.equal(by_kind.boxes, by_class.boxes)


def test_an_image_without_masks_teaches_boxes_only():
    torch.manual_seed(0)
    net = build_net(spec()).eval()
    box = torch.tensor([[10.0, 10, 40, 50]])
    with_mask, without = targets(box, [2]), Targets(box, torch.tensor([2]), None)
    feats = net.extract(torch.randn(1, 3, 128, 128)[[0, 0]])
    sizes = [(128, 128)]
    one = {k: v[:1] for k, v in feats.items()}

    both = net.losses(feats, (with_mask, without), sizes * 2, [1, 1]).terms
    alone = net.losses(one, (with_mask,), sizes, [1]).terms
    none = net.losses(one, (without,), sizes, [1]).terms

    torch.testing.assert_close(both["mask"], alone["mask"])
    assert none["mask"].item() == 0.0
    none["mask"].backward()
    assert all(p.grad is not None for p in net.mask_head.parameters())


def test_a_batch_with_an_image_without_objects_gives_finite_losses_and_gradients():
    torch.manual_seed(0)
    net = build_net(spec()).train()
    empty = targets(torch.zeros(0, 4), [])
    full = targets(torch.tensor([[10.0, 10, 40, 50], [20, 22, 30, 33]]), [2, 1])

    for batch in ((full, empty), (empty, empty)):
        feats = net.extract(torch.randn(2, 3, 128, 128))
        out = net.losses(feats, batch, [(128, 128)] * 2, [1, 2])
        sum(out.terms.values()).backward()

        assert set(out.terms) == {"rpn_cls", "rpn_reg", "roi_cls", "roi_reg", "mask"}
        assert all(torch.isfinite(value) for value in out.terms.values())
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in net.parameters())


def test_the_losses_of_an_image_do_not_depend_on_its_place_in_the_batch():
    torch.manual_seed(0)
    net = build_net(spec("faster-rcnn")).eval()  # batch norm by running statistics: images do not see each other
    one = targets(torch.tensor([[10.0, 10, 40, 50]]), [2])
    two = targets(torch.tensor([[60.0, 60, 90, 100], [5, 5, 25, 25]]), [3, 1])
    images = torch.randn(2, 3, 128, 128)

    straight = net.losses(net.extract(images), (one, two), [(128, 128)] * 2, [1, 2]).terms
    swapped = net.losses(net.extract(images.flip(0)), (two, one), [(128, 128)] * 2, [2, 1]).terms

    for name, value in straight.items():
        torch.testing.assert_close(swapped[name], value, atol=1e-5, rtol=1e-5)


def test_a_nucleus_never_suppresses_its_cell_but_a_second_class_of_one_cell_is_suppressed():
    net = build_net(spec("faster-rcnn"))
    box = torch.tensor([[10.0, 10, 60, 60]]).repeat(3, 1)
    probabilities = torch.tensor([[0.05, 0.9, 0.03, 0.02], [0.1, 0.0, 0.5, 0.4], [0.3, 0.0, 0.3, 0.4]])

    found = answer(
        probabilities,
        torch.zeros(3, 16),
        box,
        (128, 128),
        net.spec.kinds,
        net._coder,
        threshold=0.5,
        nms_iou=0.5,
        most=100,
        features=torch.zeros(3, 1),
    )

    assert sorted(found.labels.tolist()) == [1, 2]  # one nucleus, one cell
    cell = found.labels.tolist().index(2)
    assert found.scores[cell] == pytest.approx(0.9)  # that it is a cell: the sum over the classes of its kind
    assert found.class_scores[cell].tolist() == pytest.approx([0.0, 0.5, 0.4])


def test_an_image_without_any_proposal_holds_nothing():
    net = build_net(spec()).eval()

    with torch.inference_mode():
        feats = net.extract(torch.full((1, 3, 64, 64), torch.nan))  # no box of it has sides
        found = net.detect(feats, [(64, 64)])[0]

    assert len(found.boxes) == 0
    assert found.class_scores.shape == (0, 3)
    assert found.masks.shape == (0, 28, 28)


def test_statistics_stay_as_they_are_inside_frozen_statistics():
    net = build_net(spec("faster-rcnn")).train()
    before = {k: v.clone() for k, v in net.named_buffers()}

    with net.frozen_statistics():
        net.extract(torch.randn(2, 3, 64, 64))

    assert all(torch.equal(before[k], v) for k, v in net.named_buffers())
    net.extract(torch.randn(2, 3, 64, 64))
    assert not all(torch.equal(before[k], v) for k, v in net.named_buffers())


def test_an_unknown_architecture_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"known: .*mask-rcnn-resnet50-fpn"):
        NetSpec.model_validate({"architecture": "yolo", "classes": CLASSES})


@pytest.mark.parametrize("architecture", ["faster-rcnn-resnet18-fpn", "mask-rcnn-resnet50-fpn"])
def test_the_papers_trunks_give_the_same_pyramid_as_the_light_one(architecture):
    net = build_net(NetSpec.model_validate({"architecture": architecture, "classes": CLASSES})).eval()

    with torch.inference_mode():
        feats = net.extract(torch.randn(1, 3, 128, 128))

    assert {k: tuple(v.shape) for k, v in feats.items()} == {k: (1, 256, 128 // 2**k, 128 // 2**k) for k in range(2, 7)}
