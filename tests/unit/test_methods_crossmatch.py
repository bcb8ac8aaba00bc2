"""CrossMatch (METHODS 5.5): Eqs. 3 to 6 against slow loops, golden values, OHEM, and who gets a gradient."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch

from cytopipe.methods.crossmatch import hardest_rows, mean_of_images
from cytopipe.nets import classification_loss
from cytopipe.nets.heads import level_of
from cytopipe.semi import STRONG, WEAK, Batch, Clock, EmaTeacher, Part
from tests.unit.tiny_batches import batch_for, made, pooled_net, tiny_net, to_double

LEVELS = (2, 3, 4, 5)
BURN_IN = 10
FIRST, LATE = Clock(BURN_IN, 100, 10), Clock(60, 100, 10)
SUPERVISED_TERMS = ["roi_cls", "roi_reg", "rpn_cls", "rpn_reg"]


def step(*, seed: int = 0, **config):
    """Method, student, teacher and batch in float64; pyramids of averages, so that nothing tells train from eval."""
    student, teacher = (pooled_net("detection", seed + k, canonical_px=20.0).double() for k in (0, 1))
    given = {"burn_in": BURN_IN, "proposals_per_image": 25, "ohem_k": None, "delta": 0.4} | config
    method = made("crossmatch", student, **given)
    return method, student, teacher.eval().requires_grad_(False), to_double(batch_for(method))


def bare(**config):
    return made("crossmatch", tiny_net("detection"), **config)


def term(name: str, **config) -> float:
    method, student, teacher, batch = step(**config)
    return method.losses(batch, student, teacher, LATE)[name].value.item()


def slow_softmax(row: list[float]) -> list[float]:
    powers = [math.exp(x - max(row)) for x in row]
    return [p / sum(powers) for p in powers]


def slow_kl(p: list[float], q: list[float]) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))


def slow_soft_loss(
    student, teacher, batch, *, levels=LEVELS, n=25, keep=None, reverse=False, reduction="mean"
) -> float:
    """Eq. 6, RoI by RoI, from networks that share their proposals and views that share their geometry."""
    weak, strong = batch.unlabelled.weak, batch.unlabelled.strong
    feats_t, feats_s = teacher.extract(weak.image), student.extract(strong.image)
    proposals, _ = teacher.propose(feats_t, weak.sizes, 2000, n)
    images = []
    for image, boxes in enumerate(proposals):
        of_levels = []
        for level in levels:
            each = []
            for box in boxes:
                alone = [box[None] if i == image else boxes[:0] for i in range(len(proposals))]
                p_t = slow_softmax(teacher.score(feats_t, alone)[0][0].tolist())
                p_s = slow_softmax(student.score(feats_s, alone, level=level)[0][0].tolist())
                each.append(slow_kl(p_s, p_t) if reverse else slow_kl(p_t, p_s))
            kept = sorted(each, reverse=True)[: keep or n]
            of_levels.append(sum(kept) / len(kept))
        images.append(sum(of_levels) / (len(levels) if reduction == "mean" else 1))
    return sum(images) / len(images)


def slow_focal(logits: torch.Tensor, labels: torch.Tensor, gamma: float) -> float:
    rows = [slow_softmax(row)[y] for row, y in zip(logits.tolist(), labels.tolist(), strict=True)]
    return sum((1 - p) ** gamma * -math.log(p) for p in rows) / len(rows)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"multi_scale": False},
        {"kl_direction": "student_teacher"},
        {"level_reduction": "sum"},
        {"ohem_k": 7, "ohem_ramp": 0},
        {"ohem_k": 7, "ohem_ramp": 0, "multi_scale": False, "kl_direction": "student_teacher"},
    ],
    ids=str,
)
def test_the_soft_term_equals_a_slow_loop_over_images_levels_and_rois(change):
    method, student, teacher, batch = step(**change)

    l_c = method.losses(batch, student, teacher, LATE)["L_c"]

    slow = slow_soft_loss(
        student,
        teacher,
        batch,
        levels=LEVELS if method.config.multi_scale else (None,),
        keep=method.config.ohem_k,
        reverse=method.config.kl_direction == "student_teacher",
        reduction=method.config.level_reduction,
    )
    assert slow > 1e-3
    assert l_c.value.item() == pytest.approx(slow, rel=1e-6)
    assert l_c.weight == 1.0


@pytest.mark.parametrize(
    ("student", "teacher", "direction", "value"),
    [
        ((0.5, 0.3, 0.2), (0.7, 0.2, 0.1), "teacher_student", 0.08512283),
        ((0.5, 0.3, 0.2), (0.7, 0.2, 0.1), "student_teacher", 0.09203285),
    ],
)
def test_the_divergence_has_the_golden_values_of_METHODS_9(student, teacher, direction, value):
    method = bare(kl_direction=direction)
    p_s, p_t = (torch.tensor([p], dtype=torch.float64).log() for p in (student, teacher))

    assert method.divergence(p_t, p_s).item() == pytest.approx(value, rel=1e-6)
    assert method.divergence(p_t + 5.0, p_s - 3.0).item() == pytest.approx(value, rel=1e-6)  # shifts change nothing


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_the_divergence_is_never_negative_and_0_only_between_equals(direction):
    method = bare(kl_direction=direction)
    a, b = (3 * torch.randn(200, 4, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (0, 1))

    assert (method.divergence(a, b) > 0).all()
    assert method.divergence(a, a).abs().max() == 0


@pytest.mark.parametrize(("since", "value"), [(0, 1000), (500, 628), (1000, 256), (5000, 256)])
def test_ohem_falls_from_n_to_k_with_the_golden_values_of_METHODS_9(since, value):
    method = bare()

    assert method.ohem_count(Clock(2000 + since, 40_000, 10)) == value


@pytest.mark.parametrize(("k", "n"), [(None, 40), (64, 40), (40, 40)])
def test_without_k_or_with_fewer_rois_than_k_all_are_kept(k, n):
    method = bare(ohem_k=k, proposals_per_image=n)

    assert {method.ohem_count(Clock(t, 40_000, 10)) for t in (2000, 2700, 9000)} == {n}


@pytest.mark.parametrize("most", [1, 3, 5, 9])
def test_the_hardest_rois_are_those_of_a_slow_sort_in_each_image(most):
    counts = [5, 0, 8]
    values = torch.randn(13, generator=torch.Generator().manual_seed(most))

    rows = hardest_rows(values, counts, most)

    for index, part in zip(rows, values.split(counts), strict=True):
        order = sorted(range(len(part)), key=lambda i, part=part: -part[i].item())
        assert index.tolist() == order[:most]


def test_the_mean_over_images_is_not_the_mean_over_rois_and_an_image_without_any_gives_0():
    values = torch.tensor([1.0, 2.0, 9.0])

    assert mean_of_images(values, [2, 1, 0]).item() == pytest.approx((1.5 + 9.0 + 0.0) / 3)


def test_with_k_t_equal_to_n_the_soft_term_is_the_plain_mean():
    assert term("L_c", ohem_k=25, ohem_ramp=0) == term("L_c", ohem_k=None)


def test_the_sum_over_levels_is_four_times_their_mean():
    assert term("L_c", level_reduction="sum") == pytest.approx(4 * term("L_c"), rel=1e-12)


def test_equal_networks_and_views_agree_where_the_student_reads_the_teachers_level():
    method, student, _, batch = step(multi_scale=False)
    weak = batch.unlabelled.weak

    terms = method.losses(Batch(batch.labelled, Part(weak, weak)), student, copy.deepcopy(student).eval(), LATE)

    assert terms["L_c"].value.item() == pytest.approx(0.0, abs=1e-15)


def test_of_all_levels_the_own_one_of_a_roi_adds_nothing_for_equal_networks_and_views():
    method, student, _, batch = step()
    weak = batch.unlabelled.weak
    feats = student.extract(weak.image)
    boxes, _ = student.propose(feats, weak.sizes, 2000, 25)
    answers = student.score(feats, boxes)[0]
    own = level_of(torch.cat(boxes), student.spec.canonical_px)
    assert len(own.unique()) > 1

    for level in LEVELS:
        each = method.divergence(answers, student.score(feats, boxes, level=level)[0])

        assert each[own == level].abs().sum() < 1e-12
        assert each[own != level].abs().sum() > 1e-6


@pytest.mark.parametrize(
    ("side", "level"), [(112, 3), (223, 3), (224, 4), (448, 5), (111, 2), (56, 2), (10, 2), (896, 5), (4000, 5)]
)
def test_the_level_of_a_box_is_that_of_eq_4_clamped_to_2_and_5(side, level):
    assert level_of(torch.tensor([[3.0, 5.0, 3.0 + side, 5.0 + side]]), 224.0).tolist() == [level]


def test_the_focal_loss_is_a_slow_loop_and_with_gamma_0_cross_entropy():
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.arange(9) % 3

    for gamma in (0.0, 1.5, 2.0):
        value = classification_loss(logits, labels, gamma).item()
        assert value == pytest.approx(slow_focal(logits, labels, gamma), rel=1e-6)
    plain = classification_loss(logits, labels).item()
    assert classification_loss(logits, labels, 0.0).item() == pytest.approx(plain, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0])
def test_a_roi_of_which_the_network_is_certain_has_no_focal_loss_and_a_finite_gradient(gamma):
    logits = torch.tensor([[60.0, 0.0], [0.0, 60.0], [0.3, 0.1]], requires_grad=True)

    loss = classification_loss(logits, torch.tensor([0, 1, 1]), gamma)
    loss.backward()

    assert loss.item() == pytest.approx(slow_focal(logits[2:].double(), torch.tensor([1]), gamma) / 3, rel=1e-5)
    assert logits.grad.isfinite().all()
    assert logits.grad[:2].abs().max() < 1e-6 < logits.grad[2].abs().min()


def test_the_focal_loss_has_the_golden_value_of_METHODS_9():
    even = torch.zeros(1, 2, dtype=torch.float64)

    assert classification_loss(even, torch.tensor([1]), 1.5).item() == pytest.approx(0.24506454, rel=1e-6)


@pytest.mark.parametrize("multi_scale", [True, False])
def test_the_hard_term_is_rpn_cls_and_the_mean_focal_loss_of_all_levels_on_one_sampling(multi_scale):
    method, student, teacher, batch = step(multi_scale=multi_scale)

    l_p = method.losses(batch, student, teacher, LATE)["L_p"]

    weak, strong = batch.unlabelled.weak, batch.unlabelled.strong
    found = teacher.detect(teacher.extract(weak.image), weak.sizes, per_class=True)
    truth = [one.targets for one in method.choose(found)]
    assert min(len(one.labels) for one in truth) > 0
    feats = student.extract(strong.image)
    out = student.losses(feats, truth, strong.sizes, strong.keys, focal_gamma=1.5, reg=False)
    drawn = student.roi_sample(feats, truth, strong.sizes, strong.keys)
    slow = [
        slow_focal(student.score(feats, drawn.rois, level=level)[0], drawn.labels, 1.5)
        for level in (LEVELS if multi_scale else (None,))
    ]
    assert (drawn.labels > 0).any()
    expected = out.terms["rpn_cls"].item() + sum(slow) / len(slow)
    assert l_p.value.item() == pytest.approx(expected, rel=1e-6)


def test_pseudo_boxes_reach_delta_and_are_shown():
    method, student, teacher, batch = step(delta=0.45)
    method.losses(batch, student, teacher, LATE)

    shown, seen = method.pseudo(), method.signals()

    assert len(shown) == 2
    assert all((one.scores >= 0.45).all() and len(one.boxes) == len(one.labels) for one in shown)
    assert seen["pseudo_labels_per_image"] == sum(len(one.labels) for one in shown) / 2
    assert seen["K_t"] == 25
    assert 0 <= seen["disagreement"] <= 1


def test_images_without_pseudo_box_teach_background_or_are_skipped():
    _, student, teacher, batch = step()
    weak = batch.unlabelled.weak
    (mine, other) = teacher.detect(teacher.extract(weak.image), weak.sizes, per_class=True)
    best = sorted([mine.scores.max().item(), other.scores.max().item()])
    assert best[0] < best[1]

    def l_p(delta: float, **config) -> float:
        method = made("crossmatch", student, burn_in=BURN_IN, lambda_s=0, delta=delta, **config)
        return method.losses(batch, student, teacher, LATE)["L_p"].value.item()

    one_has = sum(best) / 2
    assert l_p(one_has, skip_empty=True) != l_p(one_has)  # the empty image no longer counts
    assert l_p(best[0], skip_empty=True) == l_p(best[0])  # both have one
    assert l_p(1.0) > 0
    assert l_p(1.0, skip_empty=True) == 0


def test_labelled_images_train_in_both_copies_with_focal_loss_for_their_rois():
    method, student, teacher, batch = step()
    weak, strong = batch.labelled.weak, batch.labelled.strong
    images = torch.cat([weak.image, strong.image])
    keys = torch.cat([weak.keys, strong.keys])

    terms = method.losses(batch, student, teacher, LATE)

    feats = student.extract(images)
    targets, sizes = (*weak.targets, *strong.targets), weak.sizes + strong.sizes
    out = student.losses(feats, targets, sizes, keys, focal_gamma=1.5)
    assert sorted(terms) == sorted([*SUPERVISED_TERMS, "L_p", "L_c"])
    for name in SUPERVISED_TERMS:
        assert terms[name].value.item() == pytest.approx(out.terms[name].item(), rel=1e-9)
        assert terms[name].weight == 1.0
    slow = slow_focal(out.roi_logits, out.roi_labels, 1.5)
    assert terms["roi_cls"].value.item() == pytest.approx(slow, rel=1e-6)


def test_views_are_weak_and_strong_of_both_kinds_and_the_strong_labelled_one_can_be_left_out():
    assert bare().views().labelled == bare().views().unlabelled == {"weak": WEAK, "strong": STRONG}
    assert bare(labelled_strong=False).views().labelled == {"weak": WEAK}


@pytest.mark.parametrize(
    ("name", "nothing_in"), [("L_c", ("rpn.", "box_head.bbox_pred")), ("L_p", ("box_head.bbox_pred",))]
)
def test_unlabelled_images_train_no_regression_and_the_soft_term_no_rpn(name, nothing_in):
    method, student, teacher, batch = step()

    method.losses(batch, student, teacher, LATE)[name].value.backward()

    grads = {key: p.grad for key, p in student.named_parameters()}
    assert all(g is None or g.abs().max() == 0 for key, g in grads.items() if key.startswith(nothing_in))
    assert grads["box_head.cls_score.weight"].abs().sum() > 0
    assert grads["trunk.lift"].abs().sum() > 0
    if name == "L_p":
        assert grads["rpn.head.cls_logits.weight"].abs().sum() > 0
        assert grads["rpn.head.bbox_pred.weight"] is None or grads["rpn.head.bbox_pred.weight"].abs().max() == 0


def test_no_gradient_reaches_the_teacher():
    method, student, teacher, batch = step()
    teacher.requires_grad_(True)

    terms = method.losses(batch, student, teacher, LATE)
    sum(t.value for t in terms.values()).backward()

    assert all(p.grad is None for p in teacher.parameters())


def test_only_the_rois_that_ohem_keeps_are_learnt_from():
    """Scaled by K, the gradient of the kept ones alone: raising the number of RoIs beyond K adds nothing."""
    method, student, teacher, batch = step(ohem_k=4, ohem_ramp=0, multi_scale=False)
    method.losses(batch, student, teacher, LATE)["L_c"].value.backward()
    mine = student.box_head.cls_score.weight.grad.clone()

    student.zero_grad()
    weak, strong = batch.unlabelled.weak, batch.unlabelled.strong
    feats_t, feats_s = teacher.extract(weak.image), student.extract(strong.image)
    boxes, _ = teacher.propose(feats_t, weak.sizes, 2000, 25)
    each = method.divergence(teacher.score(feats_t, boxes)[0], student.score(feats_s, boxes)[0])
    sum(part.sort(descending=True).values[:4].mean() for part in each.split([25, 25])).div(2).backward()

    torch.testing.assert_close(mine, student.box_head.cls_score.weight.grad)


def test_flipping_the_students_view_and_its_proposals_leaves_the_soft_term_unchanged():
    method, student, teacher, batch = step()
    for net in (student, teacher):  # a head that cannot tell left from right; the trunk is exactly flip-equivariant
        with torch.no_grad():
            grid = net.box_head.fc6.weight.view(net.spec.head_dim, -1, 7, 7)
            grid.copy_((grid + grid.flip(3)) / 2)
    strong = batch.unlabelled.strong
    affine = strong.affine.clone()
    affine[:, 0, 0], affine[:, 0, 2] = -1.0, strong.image.shape[-1]
    flipped = replace(strong, image=strong.image.flip(3), affine=affine)

    def l_c(view) -> float:
        return method.losses(Batch(batch.labelled, Part(batch.unlabelled.weak, view)), student, teacher, LATE)["L_c"]

    straight, mirrored, unmapped = (
        l_c(view).value.item() for view in (strong, flipped, replace(flipped, affine=strong.affine))
    )
    assert mirrored == pytest.approx(straight, rel=1e-9)
    assert abs(unmapped / straight - 1) > 1e-3


def test_soft_proposals_can_be_the_students():
    method, student, teacher, batch = step(soft_proposals="student", multi_scale=False)

    l_c = method.losses(batch, student, teacher, LATE)["L_c"].value

    weak, strong = batch.unlabelled.weak, batch.unlabelled.strong
    feats_t, feats_s = teacher.extract(weak.image), student.extract(strong.image)
    boxes, _ = student.propose(feats_s, strong.sizes, 2000, 25)
    p_t, p_s = (x[0].tolist() for x in (teacher.score(feats_t, boxes), student.score(feats_s, boxes)))
    rows = [slow_kl(slow_softmax(a), slow_softmax(b)) for a, b in zip(p_t, p_s, strict=True)]
    assert l_c.item() == pytest.approx(sum(rows) / len(rows), rel=1e-6)


@pytest.mark.parametrize(
    ("config", "clock"),
    [({"lambda_h": 0, "lambda_s": 0}, LATE), ({"unsup_weight": 0}, LATE), ({}, Clock(BURN_IN - 1, 100, 10))],
    ids=["lambdas", "beta", "burn-in"],
)
def test_without_weights_and_in_burn_in_the_supervised_terms_stand_alone_and_the_teacher_is_not_asked(config, clock):
    method, student, teacher, batch = step(**config)
    full, *_ = step()

    alone = method.losses(batch, student, None, clock)
    together = full.losses(batch, student, teacher, LATE)

    assert sorted(alone) == SUPERVISED_TERMS
    for name in SUPERVISED_TERMS:
        assert alone[name].value.item() == pytest.approx(together[name].value.item(), rel=1e-9)


@pytest.mark.parametrize(
    ("config", "weights"),
    [
        ({}, {"L_p": 1.0, "L_c": 1.0}),
        ({"unsup_weight": 4.0, "lambda_h": 0.5}, {"L_p": 2.0, "L_c": 4.0}),
        ({"lambda_h": 0}, {"L_c": 1.0}),
        ({"lambda_s": 0}, {"L_p": 1.0}),
    ],
    ids=str,
)
def test_beta_and_the_lambdas_weigh_the_two_terms(config, weights):
    method, student, teacher, batch = step(**config)

    terms = method.losses(batch, student, teacher, FIRST)

    assert {name: t.weight for name, t in terms.items() if name not in SUPERVISED_TERMS} == weights


def test_the_teacher_is_a_copy_at_the_end_of_burn_in_and_follows_slowly_from_there():
    method = bare()
    rule, student = method.teacher(), tiny_net("detection", 1)
    teacher = EmaTeacher(tiny_net("detection", 2), rule)

    teacher.copy(student)

    assert (rule.alpha, rule.warm, rule.start) == (0.9996, False, 2000)
    assert rule.alpha_at(0) == rule.alpha_at(10_000) == 0.9996
    pairs = zip(teacher.net.state_dict().values(), student.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_batch_without_a_strong_view_is_refused():
    method, student, teacher, batch = step()

    with pytest.raises(ValueError, match="weak and strong"):
        method.losses(Batch(batch.labelled, Part(batch.unlabelled.weak)), student, teacher, LATE)
