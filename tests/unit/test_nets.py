"""DetNet and its parts: matching, sampling, pooling, suppression, losses in the degenerate cases."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from cytopipe.core.classes import class_named
from cytopipe.nets import NetSpec, build_net
from cytopipe.nets.heads import level_of, pool
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


def targets(boxes, labels, side=128):
    masks = torch.zeros((len(boxes), side, side), dtype=torch.uint8)
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


def test_pooling_a_flipped_map_with_flipped_boxes_gives_the_flipped_result():
    feats = {k: torch.randn(1, 4, 256 // 2**k, 256 // 2**k) for k in range(2, 7)}
    boxes = random_boxes(40, 3).clamp(0, 256)
    flipped = boxes.clone()
    flipped[:, [0, 2]] = 256 - boxes[:, [2, 0]]

    straight = pool(feats, [boxes], 7, 112.0)
    mirrored = pool({k: v.flip(3) for k, v in feats.items()}, [flipped], 7, 112.0)

    torch.testing.assert_close(mirrored.flip(3), straight, atol=1e-4, rtol=1e-4)


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

    found = net._answer(probabilities, torch.zeros(3, 16), box, (128, 128), 0.5, 0.5, 100)

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
