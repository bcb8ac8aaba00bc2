"""The four metric losses of dual-alignment against slow loops in float64, and their laws (METHODS 5.1).

Golden values: METHODS 9. The floor of Φ (1e-6) is inside every tolerance of 1e-6.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cytopipe.core.classes import ObjectClass
from cytopipe.core.errors import UserError
from cytopipe.methods.dual_alignment import DualAlignment, class_means, distances, inter_loss, intra_loss, proxy_loss
from cytopipe.nets import NetSpec
from cytopipe.semi import Clock

C, DIM = 4, 5
CLASSES = tuple(ObjectClass(name=n, kind="cell", suspicious=True) for n in ("ASC-US", "LSIL", "HSIL", "AGC"))


def method_of(classes: int = C, **config) -> DualAlignment:
    spec = NetSpec(architecture="faster-rcnn-mobilenetv2-fpn", classes=CLASSES[:classes])
    return DualAlignment(spec, DualAlignment.Config(hidden_dim=6, embedding_dim=DIM, **config)).double()


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def embeddings(seed: int, n: int) -> torch.Tensor:
    return F.normalize(drawn(seed, n, DIM), dim=1)


def labels_of(seed: int, n: int, low: int, high: int) -> torch.Tensor:
    return torch.randint(low, high, (n,), generator=torch.Generator().manual_seed(seed))


def scene(seed: int, n: int = 12, m: int = 9) -> dict[str, torch.Tensor]:
    """What both alignments take: labelled RoIs (some background) and pseudo-labelled proposals."""
    return {
        "x_l": embeddings(seed, n),
        "roi_labels": labels_of(seed + 1, n, 0, C + 1),
        "q_l": drawn(seed + 2, n).sigmoid(),
        "x_u": embeddings(seed + 3, m),
        "pseudo": labels_of(seed + 4, m, 0, C),
        "q_u": drawn(seed + 5, m).sigmoid(),
    }


def proposals(given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return given["x_l"], given["roi_labels"], given["x_u"], given["pseudo"]


def prototypes(given: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(given[k] for k in ("x_l", "roi_labels", "q_l", "x_u", "pseudo", "q_u"))


# The second implementation: loops over numbers, written from the paper's equations.


def phi(a: list[float], b: list[float]) -> float:
    return math.sqrt(max(sum((u - v) ** 2 for u, v in zip(a, b, strict=True)), 1e-12))


def slow_proxy_loss(x, labels, proxies, *, others: bool, scale: float = 1.0) -> float:
    total = 0.0
    for row, c in zip(x.tolist(), labels.tolist(), strict=True):
        terms = [math.exp(-scale * phi(row, p)) for k, p in enumerate(proxies.tolist()) if not others or k != c]
        total += -math.log(math.exp(-scale * phi(row, proxies[c].tolist())) / sum(terms))
    return total / len(x)


def slow_means(x, labels, weights) -> dict[int, list[float]]:
    means = {}
    for c in range(C):
        rows = [(r, w) for r, k, w in zip(x.tolist(), labels.tolist(), weights, strict=True) if k == c]
        if rows:
            mass = sum(w for _, w in rows)
            means[c] = [sum(w * r[d] for r, w in rows) / mass for d in range(DIM)]
    return means


def slow_intra(a, b) -> float:
    values = [phi(a[c], b[c]) for c in a if c in b]
    return sum(values) / len(values) if values else 0.0


def slow_inter(a, b, m: float = 1.0) -> float:
    values = [max(0.0, m - phi(a[c], b[k])) for c in a for k in b if c != k]
    return sum(values) / len(values) if values else 0.0


@pytest.mark.parametrize(("others", "value"), [(False, 0.21762172), (True, -1.41421356)])
def test_the_proxy_loss_has_the_golden_values(others, value):
    proxies = torch.eye(2, dtype=torch.float64)

    loss = proxy_loss(torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([0]), proxies, others_only=others)

    assert loss.item() == pytest.approx(value, rel=1e-6)


def test_prototypes_at_distance_04_repel_by_06():
    at = torch.tensor([[0.0, 0.0], [0.4, 0.0]], dtype=torch.float64), torch.tensor([True, True])

    assert inter_loss(at, at, 1.0).item() == pytest.approx(0.6, rel=1e-6)


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10), others=st.booleans())
@settings(deadline=None)
def test_the_proxy_loss_equals_a_slow_double_loop(seed, scale, others):
    x, labels, proxies = embeddings(seed, 7), labels_of(seed, 7, 0, C), drawn(seed + 1, C, DIM)

    loss = proxy_loss(x, labels, proxies, scale=scale, others_only=others)

    assert loss.item() == pytest.approx(slow_proxy_loss(x, labels, proxies, others=others, scale=scale), rel=1e-6)


def test_with_all_classes_in_the_denominator_the_proxy_loss_is_a_cross_entropy_of_distances():
    x, labels, proxies = embeddings(0, 9), labels_of(0, 9, 0, C), drawn(1, C, DIM)

    expected = F.cross_entropy(-torch.cdist(x, proxies), labels)

    torch.testing.assert_close(proxy_loss(x, labels, proxies), expected, rtol=1e-6, atol=0)


@given(seed=st.integers(0, 10_000))
@settings(deadline=None)
def test_normalised_proxies_keep_the_loss_above_its_bound(seed):
    method = method_of()
    with torch.no_grad():
        method.proxies.copy_(drawn(seed, C, DIM) * 10)

    loss, pseudo_loss = method.align_proposals(*proposals(scene(seed) | {"roi_labels": labels_of(seed, 12, 1, C + 1)}))

    bound = math.log(1 + (C - 1) * math.exp(-2))
    assert bound == pytest.approx(0.34075295, rel=1e-6)
    assert loss.item() >= bound
    assert pseudo_loss.item() >= bound


def test_the_bound_is_reached_where_every_embedding_is_its_proxy_and_the_others_are_opposite():
    x = torch.tensor([[1.0, 0.0]], dtype=torch.float64)

    loss = proxy_loss(x, torch.tensor([0]), torch.cat([x, -x, -x, -x]))

    assert loss.item() == pytest.approx(0.34075295, rel=2e-6)  # Φ ends at its floor of 1e-6


@given(seed=st.integers(0, 10_000), pushed=st.integers(0, 6))
@settings(deadline=None)
def test_the_prototype_losses_equal_slow_loops_over_equations_4_to_8(seed, pushed):
    method, given_ = method_of(margin=1.3), scene(seed)
    bank_x, bank_labels = embeddings(seed + 9, pushed), labels_of(seed + 10, pushed, 0, C)
    method.bank.push(bank_x, bank_labels)

    l_pmb, l_pmb_u = method.align_prototypes(*prototypes(given_))

    memory = slow_means(bank_x, bank_labels, [1.0] * pushed)
    foreground = given_["roi_labels"] > 0
    labelled = slow_means(
        given_["x_l"][foreground], given_["roi_labels"][foreground] - 1, given_["q_l"][foreground].tolist()
    )
    unlabelled = slow_means(given_["x_u"], given_["pseudo"], given_["q_u"].tolist())
    for loss, mine in ((l_pmb, labelled), (l_pmb_u, unlabelled)):
        expected = slow_intra(memory, mine) + slow_inter(memory, mine, 1.3) + slow_inter(mine, mine, 1.3)
        assert loss.item() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_an_empty_bank_leaves_the_third_term_alone():
    method, given_ = method_of(), scene(3)

    l_pmb, _ = method.align_prototypes(*prototypes(given_))

    foreground = given_["roi_labels"] > 0
    mine = class_means(given_["x_l"][foreground], given_["roi_labels"][foreground] - 1, given_["q_l"][foreground], C)
    torch.testing.assert_close(l_pmb, inter_loss(mine, mine, 1.0))


def test_only_labelled_proposals_move_the_proxies():
    method, x_l, x_u = method_of(), embeddings(0, 6).requires_grad_(), embeddings(1, 6).requires_grad_()
    labels = labels_of(0, 6, 1, C + 1)

    _, pseudo_loss = method.align_proposals(x_l, labels, x_u, labels - 1)
    pseudo_loss.backward()
    assert method.proxies.grad is None
    assert x_u.grad.abs().sum() > 0

    loss, _ = method.align_proposals(x_l, labels, x_u, labels - 1)
    loss.backward()
    assert method.proxies.grad.abs().sum() > 0
    assert x_l.grad.abs().sum() > 0


def test_foreground_rois_move_by_their_prototypes_and_background_has_none():
    given_ = scene(5)
    x_l = given_["x_l"].requires_grad_()
    method = method_of()
    method.bank.push(embeddings(7, 8), torch.arange(8) % C)

    sum(method.align_prototypes(*prototypes(given_))).backward()

    assert x_l.grad[given_["roi_labels"] > 0].abs().sum() > 0
    assert x_l.grad[given_["roi_labels"] == 0].abs().sum() == 0


def test_classes_repel_up_to_the_margin_and_no_further():
    apart = torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.bool)  # all distances are the root of 2

    assert inter_loss(apart, apart, 1.4142).item() == 0
    assert inter_loss(apart, apart, 1.5).item() == pytest.approx(1.5 - math.sqrt(2), rel=1e-6)


def test_attraction_ends_at_its_floor_exactly_where_prototypes_are_equal():
    here = embeddings(0, 3), torch.ones(3, dtype=torch.bool)
    there = here[0] + torch.tensor([[0.0], [0.0], [1e-3]]), here[1]

    assert intra_loss(here, here).item() == pytest.approx(1e-6)
    assert intra_loss(here, there).item() > 1e-4


def test_a_class_that_only_one_side_has_is_left_out_of_attraction_and_repulsion():
    rows = torch.tensor([[0.0, 0.0], [0.5, 0.0], [9.0, 9.0]], dtype=torch.float64)
    a, b = (rows, torch.tensor([True, True, True])), (rows + 0.1, torch.tensor([True, True, False]))

    without_third = (rows[:2], torch.ones(2, dtype=torch.bool)), ((rows + 0.1)[:2], torch.ones(2, dtype=torch.bool))

    assert intra_loss(a, b).item() == pytest.approx(math.sqrt(0.02))
    pairs = [
        phi(p, q) for i, p in enumerate(rows.tolist()) for k, q in enumerate((rows + 0.1).tolist()) if k < 2 and i != k
    ]
    assert inter_loss(a, b, 1.0).item() == pytest.approx(sum(max(0.0, 1 - d) for d in pairs) / len(pairs))
    torch.testing.assert_close(intra_loss(*without_third), intra_loss(a, b))


@given(seed=st.integers(0, 10_000))
@settings(deadline=None)
def test_the_order_of_proposals_does_not_matter(seed):
    method, given_ = method_of(), scene(seed)
    order_l, order_u = (torch.randperm(n, generator=torch.Generator().manual_seed(seed)) for n in (12, 9))
    turned = {k: v[order_l if k in ("x_l", "roi_labels", "q_l") else order_u] for k, v in given_.items()}

    before = (*method.align_proposals(*proposals(given_)), *method.align_prototypes(*prototypes(given_)))
    after = (*method.align_proposals(*proposals(turned)), *method.align_prototypes(*prototypes(turned)))

    torch.testing.assert_close(torch.stack(after), torch.stack(before))


@given(seed=st.integers(0, 10_000), order=st.permutations(range(C)))
@settings(deadline=None)
def test_renaming_the_classes_does_not_matter(seed, order):
    new_of = torch.tensor(order)  # class c becomes new_of[c]
    given_, bank_x, bank_labels = scene(seed), embeddings(seed + 9, 6), labels_of(seed + 10, 6, 0, C)
    method, renamed = method_of(), method_of()
    method.bank.push(bank_x, bank_labels)
    renamed.bank.push(bank_x, new_of[bank_labels])
    with torch.no_grad():
        renamed.proxies[new_of] = method.proxies
    changed = given_ | {
        "roi_labels": torch.cat([torch.tensor([0]), new_of + 1])[given_["roi_labels"]],
        "pseudo": new_of[given_["pseudo"]],
    }

    before = (*method.align_proposals(*proposals(given_)), *method.align_prototypes(*prototypes(given_)))
    after = (*renamed.align_proposals(*proposals(changed)), *renamed.align_prototypes(*prototypes(changed)))

    torch.testing.assert_close(torch.stack(after), torch.stack(before))


@pytest.mark.parametrize("certainty", [1.0, 0.5, 1e-30])
def test_equal_certainties_give_plain_means(certainty):
    x, labels = drawn(0, 20, DIM), labels_of(0, 20, 0, C)

    weighted, present = class_means(x, labels, torch.full((20,), certainty, dtype=torch.float64), C)
    plain, also = class_means(x, labels, None, C)

    torch.testing.assert_close(weighted, plain)
    assert torch.equal(present, also)
    assert present.all()


def test_the_bank_takes_up_labelled_prototypes_after_the_step_and_keeps_the_newest():
    method, clock = method_of(bank_size=4), Clock(0, 10, 1)
    first = scene(0) | {"roi_labels": torch.arange(12) % C + 1}

    before = method.align_prototypes(*prototypes(first))
    again = method.align_prototypes(*prototypes(first))
    assert torch.equal(torch.stack(before), torch.stack(again))
    assert len(method.bank) == 0

    method.after_step(clock)
    expected, _ = class_means(first["x_l"], first["roi_labels"] - 1, None, C)
    torch.testing.assert_close(method.bank.read()[0], expected.float().to(method.bank.rows))

    second = scene(50) | {"roi_labels": torch.arange(12) % C + 1}
    method.align_prototypes(*prototypes(second))
    method.after_step(clock)
    newest, _ = class_means(second["x_l"], second["roi_labels"] - 1, None, C)
    torch.testing.assert_close(method.bank.read()[0], newest.float().to(method.bank.rows))


def test_the_bank_of_the_paper_keeps_the_newest_1024_prototypes_of_all_classes():
    method, rows, labels = method_of(), embeddings(0, 1030), torch.arange(1030) % C

    for start in range(0, 1030, 103):
        method.bank.push(rows[start : start + 103], labels[start : start + 103])

    kept, its = method.bank.read()
    assert len(method.bank) == 1024
    newest = {tuple(row) for row in rows[6:].to(kept).tolist()}
    assert {tuple(row) for row in kept.tolist()} == newest
    memory, _ = class_means(kept, its, None, C)
    for c in range(C):
        torch.testing.assert_close(memory[c], rows[6:][labels[6:] == c].mean(dim=0).to(memory))


def test_a_step_is_taken_up_once():
    method, clock = method_of(), Clock(0, 10, 1)
    method.align_prototypes(*prototypes(scene(0) | {"roi_labels": torch.arange(12) % C + 1}))

    method.after_step(clock)
    method.after_step(clock)

    assert len(method.bank) == C


@pytest.mark.parametrize(("scope", "kept"), [("total", 3), ("per_class", 3 * C)])
def test_the_scope_of_the_bank_says_whether_its_size_counts_all_classes(scope, kept):
    method = method_of(bank_size=3, bank_scope=scope)

    method.bank.push(embeddings(0, 40), torch.arange(40) % C)

    assert len(method.bank) == kept


def test_saved_and_loaded_the_method_has_the_same_memory_and_proxies():
    method, given_ = method_of(), scene(1)
    method.bank.push(embeddings(0, 9), labels_of(0, 9, 0, C))

    loaded = method_of()
    with torch.no_grad():
        loaded.proxies.zero_()
    loaded.load_state_dict(method.state_dict())

    for align, args in (("align_proposals", proposals(given_)), ("align_prototypes", prototypes(given_))):
        assert torch.equal(torch.stack(getattr(loaded, align)(*args)), torch.stack(getattr(method, align)(*args)))


def test_with_no_foreground_and_no_confident_proposal_the_losses_are_zero_and_their_gradients_finite():
    method = method_of()
    method.bank.push(embeddings(0, 9), labels_of(0, 9, 0, C))
    x_l, x_u = embeddings(1, 6).requires_grad_(), embeddings(2, 6).requires_grad_()
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = x_l, torch.zeros(6, dtype=torch.int64), torch.rand(6).double(), x_u[:0], nothing, torch.zeros(0).double()

    losses = (*method.align_proposals(empty[0], empty[1], empty[3], empty[4]), *method.align_prototypes(*empty))
    sum(losses).backward()

    assert torch.stack(losses).tolist() == [0.0] * 4
    for tensor in (x_l, x_u, method.proxies):
        assert torch.equal(tensor.grad, torch.zeros_like(tensor))  # attached, and nothing pulls


def test_a_certainty_of_zero_makes_a_class_absent_without_harm():
    method, x_l = method_of(), embeddings(1, 2).requires_grad_()
    one = torch.ones(2, dtype=torch.int64)

    l_pmb, _ = method.align_prototypes(x_l, one, torch.zeros(2).double(), x_l[:0], one[:0], torch.zeros(0).double())
    l_pmb.backward()

    assert l_pmb.item() == 0
    assert x_l.grad.isfinite().all()


def test_vectors_that_meet_have_a_finite_gradient():
    x = torch.ones(1, 3, requires_grad=True)

    distances(x, x).sum().backward()

    assert distances(x, x).item() == pytest.approx(1e-6)
    assert x.grad.isfinite().all()


def test_without_normalisation_proxies_enter_as_they_are():
    method = method_of(normalize=False)
    with torch.no_grad():
        method.proxies.mul_(3)
    x, labels = drawn(0, 6, DIM), labels_of(0, 6, 0, C)

    loss, _ = method.align_proposals(x, labels + 1, x, labels)

    assert loss.item() == pytest.approx(slow_proxy_loss(x, labels, method.proxies.detach(), others=False), rel=1e-6)


def test_a_background_proxy_joins_the_denominator_and_draws_background_rois():
    method, given_ = method_of(background_proxy=True), scene(2)

    loss, pseudo_loss = method.align_proposals(*proposals(given_))

    proxies = F.normalize(method.proxies.detach(), dim=1)
    rows = torch.where(given_["roi_labels"] > 0, given_["roi_labels"] - 1, C)
    assert (given_["roi_labels"] == 0).any()
    assert len(proxies) == C + 1
    assert loss.item() == pytest.approx(slow_proxy_loss(given_["x_l"], rows, proxies, others=False), rel=1e-6)
    expected = slow_proxy_loss(given_["x_u"], given_["pseudo"], proxies, others=False)
    assert pseudo_loss.item() == pytest.approx(expected, rel=1e-6)


def test_the_printed_denominator_is_refused_where_it_would_be_empty():
    with pytest.raises(UserError, match="single class"):
        method_of(classes=1, proxy_denominator="others")

    assert method_of(classes=1).proxies.shape == (1, DIM)


@pytest.mark.parametrize(("t", "value"), [(0, 0.00673795), (125, 0.28650480), (250, 1.0), (1000, 1.0)])
def test_lambda_rises_over_a_quarter_of_the_run(t, value):
    assert method_of(unsup_weight=2.0).weight(Clock(t, 1000, 10)) == pytest.approx(2 * value, rel=1e-6)


def test_lambda_falls_at_the_end_where_a_rampdown_is_given():
    method = method_of(rampdown=(100, 12.5))

    assert method.weight(Clock(900, 1000, 10)) == 1.0
    assert method.weight(Clock(1000, 1000, 10)) == pytest.approx(math.exp(-12.5))


def test_proxies_start_on_the_sphere_and_depend_on_the_seed_alone():
    spec, config = method_of().net_spec, DualAlignment.Config()

    torch.manual_seed(0)
    first = DualAlignment(spec, config, seed=1)
    torch.manual_seed(99)
    again, other = DualAlignment(spec, config, seed=1), DualAlignment(spec, config, seed=2)

    torch.testing.assert_close(first.proxies.norm(dim=1), torch.ones(C))
    assert torch.equal(first.proxies, again.proxies)
    assert not torch.equal(first.proxies, other.proxies)
