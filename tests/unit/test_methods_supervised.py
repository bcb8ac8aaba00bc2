"""supervised (METHODS 6.1): slow loops of its terms, ignored pixels, options, and that it can learn one image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from cytopipe.metrics import Frame, average_precision
from cytopipe.semi import PRESETS, Batch, Part, View
from cytopipe.semi.pixels import pixel_cross_entropy, soft_dice
from tests.unit.tiny_batches import CLASSES, MIDDLE, batch_for, made, tiny_net, to_double

C = len(CLASSES) + 1
PIXEL_TERMS = {0.0: {"ce": 1.0}, 0.5: {"ce": 0.5, "dice": 0.5}, 1.0: {"dice": 1.0}}


def scene(seed: int, *, ignored: float = 0.2) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (2, C, 5, 7) float64 and a class map with some pixels of 255."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, C, 5, 7, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, C, (2, 5, 7), generator=generator)
    return logits, labels.masked_fill(torch.rand(2, 5, 7, generator=generator) < ignored, 255)


def slow_softmax(row: list[float]) -> list[float]:
    top = max(row)
    powers = [math.exp(x - top) for x in row]
    return [p / sum(powers) for p in powers]


def known_pixels(labels: torch.Tensor) -> list[tuple[int, int, int]]:
    b, h, w = labels.shape
    return [(i, y, x) for i in range(b) for y in range(h) for x in range(w) if labels[i, y, x] != 255]


def slow_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    places = known_pixels(labels)
    each = [-math.log(slow_softmax(logits[i, :, y, x].tolist())[int(labels[i, y, x])]) for i, y, x in places]
    return sum(each) / len(each)


def slow_dice(logits: torch.Tensor, labels: torch.Tensor) -> float:
    losses = []
    for c in range(logits.shape[1]):
        both = square_p = square_s = 0.0
        for i, y, x in known_pixels(labels):
            p, s = slow_softmax(logits[i, :, y, x].tolist())[c], float(labels[i, y, x] == c)
            both, square_p, square_s = both + p * s, square_p + p * p, square_s + s * s
        losses.append(1 - (2 * both + 1e-5) / (square_p + square_s + 1e-5))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("seed", range(3))
def test_cross_entropy_is_the_mean_over_the_pixels_that_have_a_label(seed):
    logits, labels = scene(seed)

    assert pixel_cross_entropy(logits, labels).item() == pytest.approx(slow_cross_entropy(logits, labels), rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_dice_sums_over_batch_and_known_pixels_and_averages_over_classes(seed):
    logits, labels = scene(seed)

    assert soft_dice(logits, labels).item() == pytest.approx(slow_dice(logits, labels), rel=1e-6)


def test_dice_is_0_for_a_perfect_answer_and_1_for_a_wrong_one():
    labels = torch.arange(C).repeat(4)[None, None]
    right = 1000.0 * torch.nn.functional.one_hot(labels, C).movedim(-1, 1).double()

    assert soft_dice(right, labels).item() == pytest.approx(0.0, abs=1e-9)
    assert soft_dice(right.roll(1, dims=1), labels).item() == pytest.approx(1.0, abs=1e-5)  # epsilon


@pytest.mark.parametrize("loss", [pixel_cross_entropy, soft_dice])
def test_what_stands_at_ignored_pixels_is_never_looked_at(loss):
    logits, labels = scene(0)
    other = torch.where((labels == 255)[:, None], 7 * torch.randn_like(logits), logits).requires_grad_()

    value = loss(other, labels)
    value.backward()

    assert value.item() == pytest.approx(loss(logits, labels).item(), rel=1e-12)
    assert other.grad.movedim(1, -1)[labels == 255].abs().max() == 0
    assert other.grad.abs().sum() > 0


@pytest.mark.parametrize("loss", [pixel_cross_entropy, soft_dice])
def test_a_map_without_any_label_gives_0_and_stays_attached(loss):
    logits, labels = scene(0)
    logits.requires_grad_()

    value = loss(logits, torch.full_like(labels, 255))
    value.backward()

    assert value.item() == pytest.approx(0.0, abs=1e-12)
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pixel_losses_are_taken_in_float32(dtype):
    logits, labels = scene(1)

    for loss in (pixel_cross_entropy, soft_dice):
        value = loss(logits.to(dtype), labels)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(loss(logits.to(dtype).double(), labels).item(), rel=1e-5)  # float32


@pytest.mark.parametrize("dice_weight", sorted(PIXEL_TERMS))
def test_semantic_terms_share_the_weight_1_and_are_taken_at_the_size_of_the_image(dice_weight):
    student = tiny_net("semantic").double()
    method = made("supervised", student, dice_weight=dice_weight)
    batch = to_double(batch_for(method, labelled=1, side=32))

    terms = method.losses(batch, student, None, MIDDLE)

    view = batch.labelled.weak
    logits = student(view.image)
    expected = {"ce": slow_cross_entropy(logits, view.labels), "dice": slow_dice(logits, view.labels)}
    assert {name: term.weight for name, term in terms.items()} == PIXEL_TERMS[dice_weight]
    assert logits.shape[-2:] == view.image.shape[-2:]
    for name, term in terms.items():
        assert term.value.item() == pytest.approx(expected[name], rel=1e-6)


def test_a_semantic_network_and_boxes_are_refused():
    student = tiny_net("semantic")
    method = made("supervised", student)
    view = batch_for(method).labelled.weak

    with pytest.raises(ValueError, match="class map"):
        method.losses(Batch(Part(View(view.image, (), view.affine, view.keys))), student, None, MIDDLE)


@pytest.mark.parametrize("task", ["detection", "instance"])
def test_detection_terms_are_those_of_the_network_each_with_weight_1(task):
    student = tiny_net(task).double()
    method = made("supervised", student)
    batch = to_double(batch_for(method))
    view = batch.labelled.weak

    terms = method.losses(batch, student, None, MIDDLE)

    out = student.losses(student.extract(view.image), view.targets, view.sizes, view.keys)
    names = ["rpn_cls", "rpn_reg", "roi_cls", "roi_reg", *(["mask"] if task == "instance" else [])]
    assert sorted(terms) == sorted(names)
    assert {term.weight for term in terms.values()} == {1.0}
    assert {n: t.value.item() for n, t in terms.items()} == pytest.approx({n: out.terms[n].item() for n in names})
    rows = zip(out.roi_logits.tolist(), out.roi_labels.tolist(), strict=True)
    slow = [-math.log(slow_softmax(row)[label]) for row, label in rows]
    assert terms["roi_cls"].value.item() == pytest.approx(sum(slow) / len(slow), rel=1e-6)


@pytest.mark.parametrize("task", ["detection", "instance", "semantic"])
def test_unlabelled_data_leaves_weights_bit_equal(task):
    def trained(*, consume: bool) -> list[torch.Tensor]:
        student = tiny_net(task)
        method = made("supervised", student, consume_unlabelled=consume)
        optimiser = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
        for t in range(3):
            batch = batch_for(method, seed=10 * t)
            assert (batch.unlabelled is not None) == consume
            optimiser.zero_grad()
            sum(x.weight * x.value for x in method.losses(batch, student, None, MIDDLE).values()).backward()
            optimiser.step()
        return list(student.state_dict().values())

    assert all(map(torch.equal, trained(consume=False), trained(consume=True)))


def test_unlabelled_images_are_asked_for_only_to_be_drawn():
    student = tiny_net("detection")

    assert made("supervised", student).views().unlabelled == {}
    assert made("supervised", student, consume_unlabelled=True).views().unlabelled == {"weak": PRESETS["weak"]}


@pytest.mark.parametrize("name", ["weak", "jittered", "robust", "psm-labelled", "cdcl-weak", "mspa"])
def test_the_labelled_view_can_be_that_of_any_method(name):
    method = made("supervised", tiny_net("detection"), view=name)

    assert method.views().labelled == {"weak": PRESETS[name]}


def test_an_averaged_copy_is_kept_on_request_alone():
    student = tiny_net("semantic")

    assert made("supervised", student).teacher() is None
    assert made("supervised", student, ema_eval=0.99).teacher().alpha == 0.99


def learnt_by_heart(task: str, steps: int, **given):
    student = tiny_net(task, seed=1, **given)
    method = made("supervised", student)
    batch = batch_for(method, labelled=1)
    optimiser = torch.optim.Adam(student.parameters(), lr=0.003)
    for _ in range(steps):
        optimiser.zero_grad()
        sum(x.weight * x.value for x in method.losses(batch, student, None, MIDDLE).values()).backward()
        optimiser.step()
    return student.eval(), batch.labelled.weak


def test_one_image_is_learnt_by_heart_its_boxes_to_map_1():
    student, view = learnt_by_heart("detection", 120)
    (target,) = view.targets

    with torch.no_grad():
        (found,) = student.detect(student.extract(view.image), view.sizes)

    frame = Frame(
        found.boxes.double().numpy(),
        found.labels.numpy() - 1,
        found.scores.numpy(),
        target.boxes.double().numpy(),
        target.labels.numpy() - 1,
        np.zeros(len(target.labels), bool),
    )
    assert average_precision([frame], len(CLASSES)).mean_at(0.5) == pytest.approx(1.0)


def test_one_image_is_learnt_by_heart_its_pixels_to_dice_above_99_percent():
    student, view = learnt_by_heart("semantic", 90, widths=(8, 12, 16, 16, 16))

    with torch.no_grad():
        found = student(view.image).argmax(dim=1)

    known = view.labels != 255
    for c in range(C):
        mine, true = (found == c) & known, view.labels == c
        assert 2 * (mine & true).sum() / (mine.sum() + true.sum()) > 0.99
