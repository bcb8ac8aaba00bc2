"""The losses of mmt-psm against slow loops in float64, and their laws (METHODS 5.2). Golden values: METHODS 9.

A whole step with a stub network stands in test_methods_mmt_psm_step.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytopipe.core.classes import ObjectClass
from cytopipe.methods.mmt_psm import (
    MmtPsm,
    ensemble,
    kept_proposals,
    mgd_loss,
    psm_loss,
    sensitivity,
    sharpened,
)
from cytopipe.nets import NetSpec
from cytopipe.semi import Clock

CLASSES = tuple(
    ObjectClass(name=n, kind=k, suspicious=False) for n, k in (("cytoplasm", "cell"), ("nucleus", "nucleus"))
)
SPEC = NetSpec(architecture="mask-rcnn-mobilenetv2-fpn", classes=CLASSES)
FORMS = ("inverse", "printed")


def method_of(**config) -> MmtPsm:
    return MmtPsm(SPEC, MmtPsm.Config(**config))


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def whole(seed: int, high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def entropy(p: torch.Tensor) -> float:
    return -sum(v * math.log(v) for v in p[0].tolist() if v > 0)


rows = st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=5).map(lambda v: row(*v) / sum(v))


# Eq. 1 and sharpening


@pytest.mark.parametrize(("form", "expected"), [("inverse", (0.98780488, 0.01219512)), ("printed", (0.75, 0.25))])
def test_sharpening_has_the_golden_values(form, expected):
    assert sharpened(row(0.9, 0.1), 0.5, form)[0].tolist() == pytest.approx(expected, rel=1e-6)


@given(p=rows, t=st.floats(0.05, 1.0))
@settings(deadline=None)
def test_sharpening_keeps_the_largest_sums_to_1_and_lowers_the_entropy(p, t):
    s = sharpened(p, t, "inverse")

    assert s.sum().item() == pytest.approx(1)
    assert s[0, p[0].argmax()] == s.max()
    assert entropy(s) <= entropy(p) + 1e-9


@given(p=rows)
@settings(deadline=None)
def test_the_printed_exponent_flattens(p):
    assert entropy(sharpened(p, 0.5, "printed")) >= entropy(p) - 1e-9


@pytest.mark.parametrize("form", FORMS)
def test_a_uniform_row_stays_uniform(form):
    assert sharpened(row(*[0.25] * 4), 0.5, form)[0].tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("t", [0.5, 0.2, 1.0])
def test_sharpening_equals_a_slow_loop(form, t):
    p = drawn(0, 6, 3).softmax(dim=1)

    for mine, its in zip(sharpened(p, t, form).tolist(), p.tolist(), strict=True):
        powers = [v ** (1 / t if form == "inverse" else t) for v in its]
        assert mine == pytest.approx([v / sum(powers) for v in powers], rel=1e-6)


def test_sharpening_in_float32_survives_powers_that_underflow():
    s = sharpened(torch.tensor([[0.4, 0.35, 0.25], [0.0, 0.0, 1.0]]), 0.005, "inverse")

    assert s.isfinite().all()
    assert s.sum(dim=1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("how", ["probs", "logits"])
def test_the_ensemble_equals_a_slow_loop(how):
    logits = drawn(1, 4, 5, 3)

    mean = ensemble(logits, how)

    for j in range(5):
        if how == "probs":
            each = [_softmax(logits[k, j].tolist()) for k in range(4)]
            expected = [sum(p[c] for p in each) / 4 for c in range(3)]
        else:
            expected = _softmax([sum(logits[k, j, c].item() for k in range(4)) / 4 for c in range(3)])
        assert mean[j].tolist() == pytest.approx(expected, rel=1e-6)


# Eq. 2 and the kept set


def test_the_variance_has_the_golden_value():
    p = torch.tensor([[[0.7, 0.2, 0.1]], [[0.5, 0.4, 0.1]]], dtype=torch.float64)

    assert sensitivity(p, p.mean(dim=0), "var").item() == pytest.approx(0.02, rel=1e-6)


@pytest.mark.parametrize("form", ["var", "std"])
def test_the_sensitivity_equals_a_slow_loop(form):
    p = drawn(2, 3, 4, 3).softmax(dim=2)

    found = sensitivity(p, p.mean(dim=0), form)

    for j in range(4):
        total = 0.0
        for c in range(3):
            values = p[:, j, c].tolist()
            var = sum((v - sum(values) / 3) ** 2 for v in values) / 3
            total += var if form == "var" else math.sqrt(var)
        assert found[j].item() == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("how", ["probs", "logits"])
@pytest.mark.parametrize("copies", [1, 2, 3, 4, 6, 7])
def test_identical_copies_have_no_variance_and_are_kept_in_their_order(copies, how):
    one = drawn(3, 40, 3).float()
    logits = one.expand(copies, 40, 3)

    found = sensitivity(logits.softmax(dim=2), ensemble(logits, how), "var")

    assert torch.equal(found, torch.zeros(40))
    hard = (torch.arange(40) < 3).long()
    assert kept_proposals(hard, found).tolist() == [0, 1, 2, 3, 4, 5]


@given(
    hard=st.lists(st.integers(0, 2), max_size=30),
    seed=st.integers(0, 1000),
    ratio=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
@settings(deadline=None)
def test_every_foreground_proposal_is_kept_and_the_most_sensitive_background_ones(hard, seed, ratio):
    labels = torch.tensor(hard, dtype=torch.int64)
    sensitive = whole(seed, 4, len(hard)).double()  # many ties

    kept = kept_proposals(labels, sensitive, ratio).tolist()

    foreground = [j for j, label in enumerate(hard) if label > 0]
    background = [j for j, label in enumerate(hard) if label == 0]
    by_rank = sorted(background, key=lambda j: (-sensitive[j].item(), j))  # ties by index
    assert kept == foreground + by_rank[: int(ratio * len(foreground))]
    chosen, dropped = set(kept) & set(background), set(background) - set(kept)
    assert len(chosen) <= ratio * len(foreground)
    if chosen and dropped:
        assert min(sensitive[j] for j in chosen) >= max(sensitive[j] for j in dropped)


def test_without_a_foreground_proposal_none_is_kept():
    assert len(kept_proposals(torch.zeros(5, dtype=torch.int64), torch.rand(5))) == 0


# Eq. 3


@pytest.mark.parametrize(("hard", "expected"), [(1, 0.81301069), (0, 1.21951603)])
def test_the_soft_cross_entropy_has_the_golden_values_with_either_weight(hard, expected):
    target = sharpened(row(0.6, 0.3, 0.1), 0.5, "inverse")

    loss = psm_loss(row(0.5, 0.3, 0.2).log(), target, torch.tensor([hard]), [1], 1.5)

    assert loss.item() == pytest.approx(expected, rel=1e-6)


@given(seed=st.integers(0, 1000), counts=st.lists(st.integers(0, 4), min_size=1, max_size=4))
@settings(deadline=None)
def test_equation_3_equals_a_slow_loop_over_images_and_proposals(seed, counts):
    n = sum(counts)
    logits, targets, hard = drawn(seed, n, 3), drawn(seed + 1, n, 3).softmax(dim=1), whole(seed, 3, n)

    loss = psm_loss(logits, targets, hard, counts, 1.5)

    total, j = 0.0, 0
    for count in counts:
        image = 0.0
        for _ in range(count):
            p = _softmax(logits[j].tolist())
            w = 1.5 if hard[j] == 0 else 1.0
            image += w * -sum(q * math.log(p[c]) for c, q in enumerate(targets[j].tolist()))
            j += 1
        total += image / count if count else 0.0
    assert loss.item() == pytest.approx(total / len(counts), rel=1e-6)


def test_a_prediction_that_is_one_hot_already_is_left_alone():
    logits = torch.tensor([[30.0, 0.0, 0.0], [0.0, 30.0, 0.0]], dtype=torch.float64, requires_grad=True)
    mean = ensemble(logits.detach().expand(4, 2, 3), "probs")

    psm_loss(logits, sharpened(mean, 0.5, "inverse"), mean.argmax(dim=1), [2], 1.5).backward()

    assert logits.grad.abs().max() < 1e-6


def test_no_kept_proposal_gives_an_attached_zero():
    logits = torch.zeros((0, 3), requires_grad=True)

    loss = psm_loss(logits, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), [0, 0], 1.5)
    loss.backward()

    assert loss.item() == 0
    assert logits.grad.shape == (0, 3)


# Eq. 4


def pyramid(seed: int) -> dict[int, torch.Tensor]:
    return {2: drawn(seed, 3, 4, 6, 8), 3: drawn(seed + 1, 3, 4, 3, 4)}


def masks_of(seed: int) -> dict[int, torch.Tensor]:
    return {2: whole(seed, 2, 3, 6, 8).double(), 3: whole(seed + 1, 2, 3, 3, 4).double()}


@given(seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_equation_4_equals_a_slow_loop_on_3_images_and_2_levels(seed):
    z_t, z_s, masks = pyramid(seed), pyramid(seed + 10), masks_of(seed)

    loss = mgd_loss(z_t, z_s, masks)

    total = 0.0
    for level in (2, 3):
        above, below = 0.0, 0.0
        t, s, m = z_t[level].tolist(), z_s[level].tolist(), masks[level].tolist()
        for b in range(3):
            for i in range(len(m[b])):
                for j in range(len(m[b][i])):
                    below += m[b][i][j]
                    above += m[b][i][j] * sum((t[b][c][i][j] - s[b][c][i][j]) ** 2 for c in range(4))
        total += above / (below + 1e-7)
    assert loss.item() == pytest.approx(total / (4 * 2), rel=1e-6)


def test_a_level_with_an_empty_mask_contributes_nothing_and_without_any_mask_the_loss_is_an_attached_zero():
    z_t, masks = pyramid(0), masks_of(0)
    z_s = {level: z.requires_grad_() for level, z in pyramid(9).items()}
    nothing = {level: torch.zeros_like(m) for level, m in masks.items()}

    one = mgd_loss(z_t, z_s, {2: masks[2], 3: nothing[3]})
    none = mgd_loss(z_t, z_s, nothing)
    none.backward()

    single = mgd_loss({2: z_t[2]}, {2: z_s[2]}, {2: masks[2]})
    assert one.item() == pytest.approx(single.item() / 2)
    assert none.item() == 0
    assert all(torch.equal(z.grad, torch.zeros_like(z)) for z in z_s.values())


def test_with_a_mask_of_ones_the_loss_is_the_mean_square_of_all_positions():
    z_t, z_s = pyramid(0), pyramid(9)
    ones = {level: torch.ones_like(m) for level, m in masks_of(0).items()}

    expected = sum((z_t[level] - z_s[level]).square().mean() for level in (2, 3)) / 2

    torch.testing.assert_close(mgd_loss(z_t, z_s, ones), expected, rtol=1e-6, atol=0)


# λ(t) and α_t


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (999, 0),
        (1000, 0.00673795),
        (1100, 0.16529889),
        (1125, 0.28650480),
        (1250, 1),
        (7750, 1),
        (7875, 0.04978707),
        (8000, 6.14421e-6),
    ],
)
def test_lambda_has_the_golden_values(t, expected):
    assert method_of().weight(Clock(t, 8000, 10)) == pytest.approx(expected, rel=1e-6)


def test_lambda_is_the_printed_curve_at_every_iteration():
    method = method_of(unsup_weight=2.0)

    for t in range(8001):
        printed = 0.0 if t < 1000 else math.exp(-125 * (1 - t / 1250) ** 2) if t < 1250 else 1.0
        if t > 7750:
            printed = math.exp(-12 * (1 - (8000 - t) / 250) ** 2)
        assert method.weight(Clock(t, 8000, 10)) == pytest.approx(2 * printed, abs=1e-12)


@pytest.mark.parametrize(("t", "alpha"), [(991, 0.0), (992, 0.5), (1000, 0.9), (1090, 0.99), (5000, 0.99)])
def test_alpha_is_that_of_the_code(t, alpha):
    rule = method_of().teacher()

    assert rule.start == 991
    assert rule.alpha_at(t - rule.start) == pytest.approx(alpha)
    assert rule.alpha_at(t - rule.start) == pytest.approx(min(1 - 1 / (t - 990), 0.99))


def test_a_short_burn_in_leaves_the_teacher_no_start_before_0():
    assert method_of(burn_in=4).teacher().start == 0


def _softmax(values: list[float]) -> list[float]:
    powers = [math.exp(v - max(values)) for v in values]
    return [v / sum(powers) for v in powers]
