"""IR-Net's modules: the identity at the start, blind to the order of instances, able to learn what a duplicate is."""

from __future__ import annotations

import math

import pytest
import torch

from cytopipe.core.classes import class_named
from cytopipe.nets import NetSpec, build_net
from cytopipe.nets.relations import (
    DuplicateRemoval,
    InstanceRelation,
    duplicate_loss,
    keep_goals,
    relative_geometry,
    sinusoidal,
)
from cytopipe.semi import Targets

SIZES = [(128, 128)] * 2
BOXES = torch.tensor([[10.0, 10, 40, 50], [20, 22, 60, 63], [70, 60, 110, 120]])
LABELS = torch.tensor([2, 1, 2])


def net_with(relations, seed=0):
    torch.manual_seed(seed)
    classes = (class_named("nucleus"), class_named("cytoplasm"))
    spec = {"architecture": "mask-rcnn-mobilenetv2-fpn", "classes": classes, "relations": relations}
    return build_net(NetSpec.model_validate(spec)).eval()


@pytest.fixture(scope="module")
def plain():
    return net_with(False)


@pytest.fixture(scope="module")
def related(plain):
    net = net_with(True)
    net.load_state_dict({**net.state_dict(), **plain.state_dict()})
    return net


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(1))


def truth():
    masks = torch.zeros(3, 128, 128, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(masks, BOXES.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    return (Targets(BOXES, LABELS, masks), Targets(BOXES[:1], LABELS[:1], masks[:1]))


def test_at_the_start_the_answers_are_those_of_the_plain_network(plain, related, image):
    with torch.inference_mode():
        expected = plain.detect(plain.extract(image), SIZES, score_threshold=0.2, max_detections=20)
        found = related.detect(related.extract(image), SIZES, score_threshold=0.2, max_detections=20)

    for a, b in zip(found, expected, strict=True):
        assert len(b.boxes) > 0
        assert torch.equal(a.boxes, b.boxes)
        assert torch.equal(a.scores, b.scores)
        assert torch.equal(a.masks, b.masks)


def test_at_the_start_the_other_terms_are_those_of_the_plain_network(plain, related, image):
    expected = plain.losses(plain.extract(image), truth(), SIZES, [1, 2]).terms
    found = related.losses(related.extract(image), truth(), SIZES, [1, 2]).terms

    assert set(found) - set(expected) == {"duplicate"}
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)
    assert torch.isfinite(found["duplicate"])


def test_pseudo_labels_do_not_teach_what_a_duplicate_is(related, image):
    terms = related.losses(related.extract(image), truth(), SIZES, [1, 2], reg=False).terms

    assert "duplicate" not in terms


def test_the_relation_is_the_formula_in_a_loop():
    torch.manual_seed(0)
    module = InstanceRelation(6).double()
    torch.nn.init.normal_(module.mix.weight)
    x = torch.randn(5, 6, 3, 3, dtype=torch.float64)

    seen = module(x, [3, 2])

    for own in (range(3), range(3, 5)):  # instances of two images
        for i in own:
            v = [x[j].mean(dim=(1, 2)) for j in own]
            q = module.query(x[i].mean(dim=(1, 2)))
            weights = [math.exp((q @ module.key(v_j)).item() / 8) for v_j in v]
            mixed = sum(w / sum(weights) * x[j] for w, j in zip(weights, own, strict=True))
            expected = x[i] + torch.einsum("dc,chw->dhw", module.mix.weight[:, :, 0, 0], mixed)
            expected = expected + module.mix.bias[:, None, None]
            torch.testing.assert_close(seen[i], expected)


def test_the_order_of_instances_is_the_order_of_what_they_see():
    torch.manual_seed(0)
    module = InstanceRelation(6)
    torch.nn.init.normal_(module.mix.weight)
    x, order = torch.randn(4, 6, 3, 3), torch.tensor([2, 0, 3, 1])

    torch.testing.assert_close(module(x[order], [4]), module(x, [4])[order])


def test_the_order_of_boxes_is_the_order_of_their_masks(image):
    net = net_with(True)
    torch.nn.init.normal_(net.mask_relation.mix.weight, std=0.1)
    order = torch.tensor([2, 0, 1])

    with torch.inference_mode():
        feats = {k: v[:1] for k, v in net.extract(image).items()}
        straight = net.mask(feats, [BOXES], LABELS)
        permuted = net.mask(feats, [BOXES[order]], LABELS[order])
        alone = net.mask(feats, [BOXES[:1]], LABELS[:1])

    torch.testing.assert_close(permuted, straight[order], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(alone[0], straight[0], atol=1e-3)  # it does see the others


def test_each_truth_keeps_its_best_candidate_and_no_other():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 3, 3], [50, 50, 60, 61]])
    scores = torch.tensor([0.9, 0.95, 0.3, 0.99, 0.2])
    truth_boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60], [90, 90, 99, 99]])

    assert keep_goals(boxes, scores, truth_boxes).tolist() == [0, 1, 1, 0, 0]
    assert keep_goals(boxes, scores, truth_boxes[:0]).tolist() == [0] * 5
    assert keep_goals(boxes[:0], scores[:0], truth_boxes).tolist() == []


def test_the_loss_is_the_formula_in_a_loop_and_nothing_costs_nothing():
    logits, goals = torch.tensor([0.3, -2.0, 1.5], dtype=torch.float64), torch.tensor([1.0, 0.0, 0.0])

    expected = 0.0
    for logit, goal in zip(logits.tolist(), goals.tolist(), strict=True):
        s1 = 1 / (1 + math.exp(-logit))
        expected += (-math.log(s1 if goal else 1 - s1) + 0.01 * s1) / 3

    assert float(duplicate_loss(logits, goals.double())) == pytest.approx(expected, rel=1e-6)
    assert float(duplicate_loss(logits[:0], goals[:0].double())) == 0.0


def test_the_relative_geometry_is_that_of_hu():
    boxes = torch.tensor([[0.0, 0, 10, 20], [30, 10, 50, 50]])  # centres (5, 10), (40, 30)

    geometry = relative_geometry(boxes)[0, 1]

    expected = [math.log(35 / 10), math.log(20 / 20), math.log(20 / 10), math.log(40 / 20)]
    torch.testing.assert_close(geometry, torch.tensor(expected))
    assert sinusoidal(geometry, 16).shape == (4, 16)


def test_no_candidate_has_no_answer():
    module = DuplicateRemoval(8)

    assert module(torch.zeros(0, 8), torch.zeros(0, 4)).shape == (0,)


def test_of_two_candidates_of_one_truth_the_better_is_kept_after_200_steps():
    torch.manual_seed(0)
    module = DuplicateRemoval(8)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-3)

    def scene():
        corner = torch.rand(4, 2) * 200
        better = torch.cat([corner, corner + 20 + torch.rand(4, 2) * 10], dim=1)
        boxes = torch.cat([better, better + torch.randn(4, 4)])
        scores = torch.cat([torch.rand(4) * 0.2 + 0.8, torch.rand(4) * 0.2 + 0.5])
        order = scores.argsort(descending=True)
        return boxes[order], scores[order], better

    for _ in range(200):
        boxes, scores, better = scene()
        loss = duplicate_loss(module(torch.randn(8, 8) * 0.1, boxes), keep_goals(boxes, scores, better))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    right = 0
    for _ in range(10):
        boxes, scores, better = scene()
        s1 = module(torch.randn(8, 8) * 0.1, boxes).sigmoid().detach()
        right += int(((s1 > 0.5).float() == keep_goals(boxes, scores, better)).sum())
    assert right >= 76  # of 80


def test_trained_it_answers_without_suppression_by_s0_times_s1(image):
    net = net_with(True).train()
    net.duplicates.steps += 1
    torch.nn.init.zeros_(net.duplicates.keep.weight)
    torch.nn.init.constant_(net.duplicates.keep.bias, math.log(3.0))  # s1 = 0.75 for everything
    net.eval()

    with torch.inference_mode():
        feats = net.extract(image)
        found = net.detect(feats, SIZES, score_threshold=0.2)
        proposals, _ = net.propose(feats, SIZES, 1000, 1000)
        logits, _, _ = net.score(feats, proposals)

    s0 = logits.softmax(dim=1).split([len(p) for p in proposals])
    for answers, probabilities in zip(found, s0, strict=True):
        for label in (1, 2):
            of_label = probabilities[:, label].sort(descending=True).values[:200] * 0.75
            of_label = of_label[of_label > 0.2]
            assert len(of_label) > 20  # overlapping ones among them: nothing was suppressed
            torch.testing.assert_close(answers.scores[answers.labels == label], of_label)


def test_a_training_step_turns_it_on_and_an_evaluation_does_not(image):
    net = net_with(True)

    net.losses(net.extract(image), truth(), SIZES, [1, 2])
    assert not net.duplicates.is_on
    net.train()
    sum(net.losses(net.extract(image), truth(), SIZES, [1, 2]).terms.values()).backward()

    assert net.duplicates.is_on
    assert all(p.grad is not None for p in net.duplicates.parameters())
    assert net.mask_relation.mix.weight.grad is not None
