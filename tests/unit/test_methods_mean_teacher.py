"""mean-teacher (METHODS 6.2): L_u for boxes, masks and pixels against slow loops, its ramp, and who sees what."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from cytopipe.methods.mean_teacher import class_consistency, mask_consistency, pixel_consistency
from cytopipe.semi import PRESETS, STRONG, Batch, Clock, Part, View
from tests.unit.tiny_batches import CLASSES, batch_for, made, pooled_net, tiny_net, to_double

C = len(CLASSES) + 1
SEMANTIC = {"first_step": 0, "ramp_steps": 10, "ramp_every": 1}
LATE = Clock(60, 100, 10)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_softmax(row: list[float]) -> list[float]:
    powers = [math.exp(x - max(row)) for x in row]
    return [p / sum(powers) for p in powers]


def slow_class_consistency(student: torch.Tensor, teacher: torch.Tensor) -> float:
    total = 0.0
    for row_s, row_t in zip(student.tolist(), teacher.tolist(), strict=True):
        total += sum((a - b) ** 2 for a, b in zip(slow_softmax(row_s), slow_softmax(row_t), strict=True))
    return total / len(student)


def slow_pixel_consistency(student: torch.Tensor, teacher: torch.Tensor) -> float:
    b, classes, h, w = student.shape
    total = 0.0
    for i in range(b):
        for y in range(h):
            for x in range(w):
                p_s, p_t = (slow_softmax(z[i, :, y, x].tolist()) for z in (student, teacher))
                total += sum((p - q) ** 2 for p, q in zip(p_s, p_t, strict=True))
    return total / (b * classes * h * w)


def slow_mask_consistency(student: torch.Tensor, teacher: torch.Tensor) -> float:
    pairs = list(zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True))
    return sum((1 / (1 + math.exp(-a)) - 1 / (1 + math.exp(-b))) ** 2 for a, b in pairs) / len(pairs)


LOSSES = [
    (class_consistency, slow_class_consistency, (7, C)),
    (pixel_consistency, slow_pixel_consistency, (2, C, 3, 4)),
    (mask_consistency, slow_mask_consistency, (3, 4, 4)),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("loss", "slow", "shape"), LOSSES, ids=lambda v: getattr(v, "__name__", ""))
def test_each_consistency_equals_a_slow_loop(loss, slow, shape, seed):
    student, teacher = drawn(seed, *shape), drawn(seed + 50, *shape)

    assert loss(student, teacher).item() == pytest.approx(slow(student, teacher), rel=1e-6)


@pytest.mark.parametrize(("loss", "slow", "shape"), LOSSES, ids=lambda v: getattr(v, "__name__", ""))
def test_equal_answers_give_0_and_no_gradient_and_the_teacher_never_gets_one(loss, slow, shape):
    student = drawn(0, *shape).requires_grad_()
    same, other = student.detach().clone().requires_grad_(), drawn(1, *shape).requires_grad_()

    value = loss(student, same)
    value.backward()
    loss(student, other).backward(inputs=[student])

    assert value.item() == 0
    assert same.grad is None
    assert other.grad is None
    assert student.grad.abs().sum() > 0  # of the second call alone: the first one added nothing
    student.grad = None
    loss(student, same).backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize(("loss", "shape"), [(class_consistency, (7, C)), (pixel_consistency, (2, C, 3, 4))])
def test_the_order_of_the_classes_does_not_matter(loss, shape):
    student, teacher, order = drawn(0, *shape), drawn(1, *shape), [2, 0, 1]

    assert loss(student[:, order], teacher[:, order]).item() == pytest.approx(loss(student, teacher).item(), rel=1e-12)


@pytest.mark.parametrize(("loss", "shape"), [(class_consistency, (0, C)), (mask_consistency, (0, 4, 4))])
def test_nothing_to_compare_gives_0_attached(loss, shape):
    student = drawn(0, *shape).requires_grad_()

    value = loss(student, drawn(1, *shape))
    value.backward()

    assert value.item() == 0
    assert student.grad is not None


def double_step(task: str, *, seed: int = 0, **config):
    """Method, student, teacher, batch in float64, of networks without batch norm (boxes) or in eval mode (pixels)."""
    made_of = (lambda s: tiny_net("semantic", s).eval()) if task == "semantic" else (lambda s: pooled_net(task, s))
    student, teacher = made_of(seed).double(), made_of(seed + 1).double().eval().requires_grad_(False)
    method = made("mean-teacher", student, **config)
    return method, student, teacher, to_double(batch_for(method))


def test_for_boxes_the_student_answers_on_the_strong_view_for_the_teachers_proposals_on_the_weak_one():
    method, student, teacher, batch = double_step("detection", proposals_per_image=20)

    terms = method.losses(batch, student, teacher, LATE)

    weak, strong = batch.unlabelled.weak, batch.unlabelled.strong
    feats_t = teacher.extract(weak.image)
    proposals, _ = teacher.propose(feats_t, weak.sizes, 2000, 20)
    logits_t, _, _ = teacher.score(feats_t, proposals)
    logits_s, _, _ = student.score(student.extract(strong.image), proposals)
    assert [len(p) for p in proposals] == [20, 20]
    assert terms["L_u"].value.item() == pytest.approx(slow_class_consistency(logits_s, logits_t), rel=1e-6)
    assert terms["L_u"].weight == 1.0


def test_for_masks_the_rois_that_the_teacher_takes_for_foreground_are_compared_in_its_class():
    _, student, teacher, batch = double_step("instance")
    weak, strong = batch.unlabelled.weak, batch.unlabelled.strong
    feats_t, feats_s = teacher.extract(weak.image), student.extract(strong.image)
    proposals, _ = teacher.propose(feats_t, weak.sizes, 2000, 12)
    p_t = teacher.score(feats_t, proposals)[0].softmax(dim=1)
    least = (1 - p_t[:, 0]).median().item()
    config = {"proposals_per_image": 12, "mask_weight": 3.0, "mask_foreground": least}

    terms = made("mean-teacher", student, **config).losses(batch, student, teacher, LATE)

    m_s, m_t, row = [], [], 0
    for image, boxes in enumerate(proposals):
        for box in boxes:
            if 1 - p_t[row, 0] >= least:
                label = p_t[row, 1:].argmax()[None] + 1
                alone = [box[None] if i == image else boxes[:0] for i in range(len(proposals))]
                m_t.append(teacher.mask(feats_t, alone, label))
                m_s.append(student.mask(feats_s, alone, label))
            row += 1
    assert 0 < len(m_s) < row
    slow = slow_mask_consistency(torch.cat(m_s), torch.cat(m_t))
    assert terms["L_mask"].value.item() == pytest.approx(slow, rel=1e-6)
    assert terms["L_mask"].weight == 3.0 * terms["L_u"].weight


def test_for_pixels_the_student_sees_the_image_and_the_teacher_the_image_with_noise():
    method, student, teacher, batch = double_step("semantic", **SEMANTIC)
    seen: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}
    student.register_forward_pre_hook(lambda _, args: seen["student"].append(args[0]))
    teacher.register_forward_pre_hook(lambda _, args: seen["teacher"].append(args[0]))

    terms = method.losses(batch, student, teacher, LATE)

    image, ((noisy,), (_, plain)) = batch.unlabelled.weak.image, (seen["teacher"], seen["student"])
    assert torch.equal(plain, image)
    assert 0.199 < (noisy - image).abs().max() <= 0.2 + 1e-9
    slow = slow_pixel_consistency(student(image)[:, :, ::16, ::16], teacher(noisy)[:, :, ::16, ::16])
    part = pixel_consistency(student(image)[:, :, ::16, ::16], teacher(noisy)[:, :, ::16, ::16])
    assert part.item() == pytest.approx(slow, rel=1e-6)
    assert terms["L_u"].value.item() == pytest.approx(
        pixel_consistency(student(image), teacher(noisy)).item(), rel=1e-9
    )


def test_for_pixels_what_lies_beyond_the_border_of_an_image_takes_no_part():
    method, student, teacher, batch = double_step("semantic", **SEMANTIC)
    whole, valid = batch.unlabelled.weak, torch.ones(2, 64, 64, dtype=torch.bool)
    valid[1, 40:] = False
    cut = Batch(batch.labelled, Part(replace(whole, valid=valid)))
    at: list[torch.Tensor] = []
    for net in (student, teacher):
        net.register_forward_hook(lambda _, args, out: at.append(out.detach()))

    l_u = method.losses(cut, student, teacher, LATE)["L_u"].value.item()

    logits_t, logits_s = at[-1], at[-2]
    squared = (logits_s.softmax(dim=1) - logits_t.softmax(dim=1)).square()
    shown = [squared[i, :, y, x].sum().item() for i in range(2) for y in range(64) for x in range(64) if valid[i, y, x]]
    assert l_u == pytest.approx(sum(shown) / (C * len(shown)), rel=1e-6)
    assert l_u != pytest.approx(squared.mean().item(), rel=1e-5)
    assert (method.pseudo()[1].labels[40:] == 255).all()
    assert (method.pseudo()[0].labels != 255).all()
    assert method.signals()["pseudo_labels_per_image"] == valid.sum().item() / 2


@pytest.mark.parametrize("task", ["detection", "instance", "semantic"])
def test_equal_networks_and_views_give_0_and_no_gradient(task):
    config = SEMANTIC | {"noise_std": 0.0} if task == "semantic" else {"mask_weight": 1.0, "mask_foreground": 0.0}
    method, student, _, batch = double_step(task, **config)
    weak = batch.unlabelled.weak
    batch = Batch(batch.labelled, Part(dict.fromkeys(batch.unlabelled.views, weak)))

    terms = method.losses(batch, student, copy.deepcopy(student).eval(), LATE)
    unsupervised = [terms[name].value for name in ("L_u", "L_mask") if name in terms]
    sum(unsupervised).backward()

    assert len(unsupervised) == (2 if task == "instance" else 1)
    assert [value.item() for value in unsupervised] == pytest.approx([0.0] * len(unsupervised), abs=1e-20)
    assert all(p.grad is None or p.grad.abs().max() < 1e-12 for p in student.parameters())


def test_boxes_are_looked_up_where_the_strong_view_shows_them():
    method, student, teacher, batch = double_step("detection", proposals_per_image=30)
    for net in (student, teacher):  # a head that cannot tell left from right
        with torch.no_grad():
            grid = net.box_head.fc6.weight.view(net.spec.head_dim, -1, 7, 7)
            grid.copy_((grid + grid.flip(3)) / 2)
    strong = batch.unlabelled.strong
    affine = strong.affine.clone()
    affine[:, 0, 0], affine[:, 0, 2] = -1.0, strong.image.shape[-1]
    flipped = replace(strong, image=strong.image.flip(3), affine=affine)

    straight = method.losses(batch, student, teacher, LATE)["L_u"].value.item()
    mirrored = Batch(batch.labelled, Part(batch.unlabelled.weak, flipped))
    unmapped = Batch(batch.labelled, Part(batch.unlabelled.weak, replace(flipped, affine=strong.affine)))

    assert method.losses(mirrored, student, teacher, LATE)["L_u"].value.item() == pytest.approx(straight, rel=1e-5)
    assert abs(method.losses(unmapped, student, teacher, LATE)["L_u"].value.item() / straight - 1) > 1e-3


def test_masks_of_views_with_different_geometry_are_refused():
    method, student, teacher, batch = double_step("instance", mask_weight=1.0)
    strong = batch.unlabelled.strong
    moved = View(strong.image, (), strong.affine + 1.0, strong.keys)

    with pytest.raises(ValueError, match="different geometry"):
        method.losses(Batch(batch.labelled, Part(batch.unlabelled.weak, moved)), student, teacher, LATE)


def test_consistency_of_boxes_trains_the_classifier_and_neither_rpn_nor_regression():
    method, student, teacher, batch = double_step("detection")

    method.losses(batch, student, teacher, LATE)["L_u"].value.backward()

    with_gradient = {name.partition(".weight")[0] for name, p in student.named_parameters() if p.grad is not None}
    assert "box_head.cls_score" in with_gradient
    assert "trunk.lift" in with_gradient
    assert not any(name.startswith(("rpn.", "box_head.bbox_pred")) for name in with_gradient)


@pytest.mark.parametrize(
    ("t", "value"), [(1000, 0.00673795), (8500, 0.06005467), (15000, 0.28650480), (22500, 0.73161563), (30000, 1.0)]
)
def test_the_weight_of_pixels_is_a_tenth_of_a_gaussian_over_30000_steps(t, value):
    """Golden values of METHODS 9; those at a step that is no multiple of 150 hold since the last multiple."""
    method = made("mean-teacher", tiny_net("semantic"))
    u = {1000: 900 / 30000, 8500: 8400 / 30000}.get(t)
    expected = value if u is None else math.exp(-5 * (1 - u) ** 2)

    assert method.weight(Clock(t, 40_000, 10)) == pytest.approx(0.1 * expected, rel=1e-6)


def test_the_weight_of_pixels_is_0_before_step_1000_and_changes_every_150_steps():
    method = made("mean-teacher", tiny_net("semantic"))
    w = [method.weight(Clock(t, 40_000, 10)) for t in range(2000)]

    assert set(w[:1000]) == {0.0}
    assert w[1000] > 0
    assert [t for t in range(1001, 2000) if w[t] != w[t - 1]] == [1050, 1200, 1350, 1500, 1650, 1800, 1950]


@pytest.mark.parametrize(("t", "value"), [(0, 0.00673795), (125, 0.28650480), (250, 1.0), (1000, 1.0)])
def test_the_weight_of_boxes_rises_to_1_over_a_quarter_of_the_run(t, value):
    method = made("mean-teacher", tiny_net("detection"), unsup_weight=2.0)

    assert method.weight(Clock(t, 1000, 10)) == pytest.approx(2 * value, rel=1e-6)


def test_what_is_not_given_is_chosen_by_the_task_and_what_is_given_stands():
    boxes, pixels = made("mean-teacher", tiny_net("instance")), made("mean-teacher", tiny_net("semantic"))
    given = made("mean-teacher", tiny_net("semantic"), alpha=0.5, w_max=7.0, first_step=0, ramp_steps=0, ramp_every=1)

    assert (boxes.teacher().alpha, pixels.teacher().alpha, given.teacher().alpha) == (0.999, 0.99, 0.5)
    assert boxes.teacher().warm
    assert pixels.teacher().warm
    assert given.weight(Clock(0, 10, 1)) == 7.0


def test_views_follow_the_task_and_the_comparison():
    boxes = made("mean-teacher", tiny_net("detection"), view="jittered").views()
    pixels = made("mean-teacher", tiny_net("semantic")).views()

    assert boxes.labelled == {"weak": PRESETS["jittered"]}
    assert boxes.unlabelled == {"weak": PRESETS["jittered"], "strong": STRONG}
    assert pixels.unlabelled == {"weak": PRESETS["weak"]}


def test_before_the_first_step_the_terms_are_those_of_supervised_and_the_teacher_is_not_asked():
    student = tiny_net("semantic")
    method, plain = made("mean-teacher", student), made("supervised", student)
    batch = batch_for(method)

    early = method.losses(batch, student, None, Clock(999, 40_000, 10))

    expected = plain.losses(batch, student, None, LATE)
    assert {n: (t.value.item(), t.weight) for n, t in early.items()} == {
        n: (t.value.item(), t.weight) for n, t in expected.items()
    }
    assert method.pseudo() is None


def test_signals_tell_the_weight_and_how_sure_and_how_different_the_teacher_is():
    method, student, teacher, batch = double_step("semantic", **SEMANTIC)
    method.losses(batch, student, teacher, LATE)

    seen, pseudo = method.signals(), method.pseudo()

    names = ["background", *(item.name for item in CLASSES)]
    assert seen["w"] == pytest.approx(0.1)
    assert sum(seen[f"pseudo_labels[{name}]"] for name in names) == 2 * 64 * 64
    assert 1 / C <= seen["max_confidence"] <= 1
    assert 0 <= seen["disagreement"] <= 1
    assert [one.labels.shape for one in pseudo] == [(64, 64)] * 2


def test_dice_joins_the_supervised_terms_as_in_supervised():
    method, student, teacher, batch = double_step("semantic", dice_weight=0.5, **SEMANTIC)

    assert sorted(method.losses(batch, student, teacher, LATE)) == ["L_u", "ce", "dice"]
