"""mspa: its losses against slow loops in float64, golden values, and the laws of METHODS 5.4."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cytopipe.core.classes import class_named
from cytopipe.core.errors import UserError
from cytopipe.methods.mspa import Maps, Mspa, Vote, cosines, count_votes
from cytopipe.nets import SegSpec, build_segnet
from cytopipe.recipes import load_recipe
from cytopipe.semi import Batch, Clock, Part, View
from cytopipe.semi.pixels import pixel_cross_entropy
from cytopipe.semi.presets import MSPA, WEAK

NAMES = ("nucleus", "HSIL")
DIM, SIDE, STRIDE = 5, 4, 4
LATE = Clock(90, 100, 10)
ALIGNMENT = {"L_LPA", "L_UPA", "L_SPA"}


def method_of(classes: int = 2, architecture: str = "unet", **config) -> Mspa:
    """`classes` with background."""
    widths = {"widths": (4, 4, 6)} if architecture == "unet" else {}
    spec = SegSpec(architecture=architecture, classes=[class_named(n) for n in NAMES[: classes - 1]], **widths)
    return Mspa(spec, Mspa.Config(**config))


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps_of(seed: int, images: int, classes: int = 2) -> Maps:
    """Features that lean to their predicted class, in each image a little differently: votes are neither all alike nor
    random.
    """
    logits = 2 * drawn(seed, images, classes, SIDE, SIDE)
    centres = drawn(0, classes, DIM) + 1.2 * drawn(seed + 2, images, classes, DIM)
    lean = centres[torch.arange(images)[:, None, None], logits.argmax(dim=1)].movedim(-1, 1)
    return Maps(
        drawn(seed + 1, images, DIM, SIDE, SIDE) + lean, logits.softmax(dim=1), torch.ones(images, SIDE, SIDE) > 0
    )


def labels_of(seed: int, images: int, classes: int = 2) -> torch.Tensor:
    """Class maps at full size, some pixels unknown."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images, SIDE * STRIDE, SIDE * STRIDE), generator=generator)
    return labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.1, 255)


def scene(seed: int, labelled: int = 4, unlabelled: int = 3, classes: int = 2):
    return maps_of(seed, labelled, classes), maps_of(seed + 50, unlabelled, classes), labels_of(seed, labelled, classes)


def values(terms) -> dict[str, float]:
    return {name: value.item() for name, value in terms.items()}


# The second implementation: loops over numbers, written from the paper's equations.


def cosine(a, b) -> float:
    norms = [max(math.sqrt(sum(v * v for v in x)), 1e-8) for x in (a, b)]
    return sum(u * v for u, v in zip(a, b, strict=True)) / norms[0] / norms[1]


def mean_of(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def softmax(scores):
    total = sum(math.exp(s) for s in scores)
    return [math.exp(s) / total for s in scores]


def places():
    return [(i, j) for i in range(SIDE) for j in range(SIDE)]


def slow_pairs(maps: Maps, y, classes):
    """Eq. 1: prototypes [class] of each labelled image that has them all."""
    pairs = []
    for f, p, shown, truth in zip(maps.features, maps.p, maps.seen, y, strict=True):
        pair = []
        for c in range(classes):
            at = [(i, j) for i, j in places() if shown[i, j]]
            predicted = [f[:, i, j].tolist() for i, j in at if p[:, i, j].argmax() == c]
            annotated = [f[:, i, j].tolist() for i, j in at if truth[4 * i + 2, 4 * j + 2] == c]
            pair.append(mean_of(predicted or annotated) if predicted or annotated else None)
        if None not in pair:
            pairs.append(pair)
    return pairs


def slow_votes(similarities, own, classes):
    """The label of one cell, its votes: similarities [voter][class], own = class of the network."""
    ballots = [max(range(classes), key=lambda c, s=s: (s[c], -c)) for s in similarities] + [own]
    counts = [ballots.count(c) for c in range(classes)]
    tied = [c for c in range(classes) if counts[c] == max(counts)]
    label = own if own in tied else max(tied, key=lambda c: sum(s[c] for s in similarities))
    return label, max(counts)


def slow_terms(labelled: Maps, unlabelled: Maps, y, classes) -> dict[str, float]:
    pairs, images = slow_pairs(labelled, y, classes), len(unlabelled.features)
    voters = len(pairs) + 1
    squares, cells, gaps, means = 0.0, 0, [], []
    for f, p, shown in zip(unlabelled.features, unlabelled.p, unlabelled.seen, strict=True):
        at = [(i, j) for i, j in places() if shown[i, j]]
        vote = {}
        for i, j in at:
            similarities = [[cosine(f[:, i, j].tolist(), pair[c]) for c in range(classes)] for pair in pairs]
            m = softmax([sum(s[c] for s in similarities) for c in range(classes)])
            squares += sum((p[c, i, j].item() - m[c]) ** 2 for c in range(classes))
            cells += 1
            vote[i, j] = slow_votes(similarities, p[:, i, j].argmax().item(), classes)
        means.append(
            {c: mean_of([f[:, i, j].tolist() for i, j in at if vote[i, j][0] == c])
             for c in range(classes) if any(label == c for label, _ in vote.values())}
        )  # fmt: skip
        gap = 0.0
        for c in range(classes):
            regions = []
            for votes in (voters // 2 + 1, voters // 2 + 2):
                region = [(i, j) for i, j in at if vote[i, j] == (c, votes)]
                mass = sum(p[c, i, j].item() for i, j in region)
                weighted = [[p[c, i, j].item() * v / mass for v in f[:, i, j].tolist()] for i, j in region]
                regions.append([sum(column) for column in zip(*weighted, strict=True)])
            if all(regions):
                gap += sum((a - b) ** 2 for a, b in zip(*regions, strict=True))
        gaps.append(gap if voters > 2 else 0.0)
    prototypes = [mean_of([m[c] for m in means if c in m]) for c in range(classes) if any(c in m for m in means)]
    l_upa = 0.0
    if len(prototypes) == classes:
        similarity = torch.tensor(
            [[[[cosine(f[:, i, j].tolist(), prototypes[c]) for j in range(SIDE)] for i in range(SIDE)]
              for c in range(classes)] for f in labelled.features], dtype=torch.float64
        )  # fmt: skip
        full = F.interpolate(similarity, scale_factor=STRIDE, mode="bilinear", align_corners=False)
        known = (y != 255).nonzero().tolist()
        l_upa = sum(-math.log(softmax(full[b, :, i, j].tolist())[y[b, i, j]]) for b, i, j in known) / len(known)
    return {"L_LPA": squares / classes / cells, "L_UPA": l_upa, "L_SPA": sum(gaps) / images}


@pytest.mark.parametrize(
    ("labelled", "unlabelled", "classes"), [(4, 3, 2), (2, 4, 2), (3, 2, 2), (4, 3, 3), (1, 2, 2), (6, 1, 3)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_all_three_losses_equal_a_slow_loop_over_the_cells(seed, labelled, unlabelled, classes):
    given_ = scene(seed, labelled, unlabelled, classes)

    terms = values(method_of(classes).align(*given_))

    expected = slow_terms(*given_, classes)
    assert expected["L_UPA"] > 0
    assert (expected["L_SPA"] > 0) == (labelled > 1)
    assert terms == pytest.approx(expected, rel=1e-6)


def test_cells_beyond_the_image_take_no_part():
    labelled, unlabelled, y = scene(3)
    for maps, hidden in ((labelled, (0, 1)), (unlabelled, (2, 3))):
        maps.seen[:, hidden] = False
    y[:, :4] = y[:, 4:8] = 255

    terms = values(method_of().align(labelled, unlabelled, y))

    assert terms == pytest.approx(slow_terms(labelled, unlabelled, y, 2), rel=1e-6)


def one_cell(*vectors: tuple[float, float]) -> torch.Tensor:
    """F (1, 2, 1, n), a row of cells."""
    return torch.tensor(vectors, dtype=torch.float64).T[None, :, None]


def test_m_hat_and_l_lpa_have_the_golden_values():
    pairs = torch.eye(2, dtype=torch.float64).flip(0).expand(4, 2, 2)  # class 1 is (1, 0), class 0 is (0, 1)
    features = one_cell((1.0, 0.0))
    maps = Maps(features, torch.full((1, 2, 1, 1), 0.5, dtype=torch.float64), torch.ones(1, 1, 1) > 0)

    m = cosines(features, pairs, summed=True).softmax(dim=1)

    assert m[0, 1].item() == pytest.approx(0.98201379, rel=1e-6)
    assert method_of().labelled_alignment(maps, pairs).item() == pytest.approx(0.23233729, rel=1e-6)


@pytest.mark.parametrize(
    ("prototypes", "value"), [([[0.0, 1.0], [1.0, 0.0]], 0.31326169), ([[-1.0, 0.0], [1.0, 0.0]], 0.12692801)]
)
def test_l_upa_has_the_golden_values(prototypes, value):
    features = one_cell((2.0, 0.0))
    maps = Maps(features, features.softmax(1), torch.ones(1, 1, 1) > 0)

    loss = method_of().unlabelled_alignment(
        maps, torch.tensor(prototypes, dtype=torch.float64), torch.ones(1, 4, 4).long()
    )

    assert loss.item() == pytest.approx(value, rel=1e-6)


@given(seed=st.integers(0, 10_000))
@settings(deadline=None, max_examples=20)
def test_l_upa_is_never_below_its_floor(seed):
    assert method_of().align(*scene(seed))["L_UPA"].item() >= math.log(1 + math.exp(-2)) - 1e-12


def test_classes_of_constant_orthogonal_features_have_a_closed_form():
    """Every voter is right: M̂ = softmax([N, 0]), unanimous votes, no uncertain region."""
    label = torch.tensor([[0, 1], [1, 1]]).repeat(2, 2)
    hot = F.one_hot(label, 2).movedim(-1, 0).double()
    features = torch.zeros(4, DIM, SIDE, SIDE, dtype=torch.float64)
    features[:, 0], features[:, 3] = 3 * hot[0], 7 * hot[1]
    maps = Maps(features, (0.9 * hot + 0.05).expand(4, 2, SIDE, SIDE), torch.ones(4, SIDE, SIDE) > 0)
    y = label.repeat_interleave(4, 0).repeat_interleave(4, 1).expand(4, 16, 16)

    terms = values(method_of().align(maps, maps, y))

    right = 1 / (1 + math.exp(-4))
    assert terms["L_LPA"] == pytest.approx((0.95 - right) ** 2, rel=1e-6)
    assert terms["L_SPA"] == 0


def test_the_order_of_the_labelled_images_does_not_matter():
    labelled, unlabelled, y = scene(0)
    order = [2, 0, 3, 1]

    turned = method_of().align(Maps(*(m[order] for m in labelled)), unlabelled, y[order])

    assert values(turned) == pytest.approx(values(method_of().align(labelled, unlabelled, y)), rel=1e-9)


def test_longer_features_change_l_spa_alone_by_the_square():
    labelled, unlabelled, y = scene(0)

    longer = method_of().align(
        labelled._replace(features=3 * labelled.features), unlabelled._replace(features=3 * unlabelled.features), y
    )

    before = values(method_of().align(labelled, unlabelled, y))
    assert before["L_SPA"] > 0
    assert values(longer) == pytest.approx(before | {"L_SPA": 9 * before["L_SPA"]}, rel=1e-9)


@pytest.mark.parametrize(("foreground_votes", "label"), [(0, 0), (1, 0), (2, 0), (3, 1), (4, 1), (5, 1)])
def test_five_votes_follow_the_table_of_equation_7(foreground_votes, label):
    votes = (torch.arange(5) < foreground_votes).long()[None, :, None, None]

    vote = count_votes(votes, torch.zeros(1, 2, 1, 1))

    assert (vote.label.item(), vote.most.item(), vote.voters) == (label, max(foreground_votes, 5 - foreground_votes), 5)


@given(ballots=st.lists(st.integers(0, 1), min_size=5, max_size=5))
def test_for_two_classes_and_four_images_the_general_rule_is_the_printed_one(ballots):
    vote = count_votes(torch.tensor(ballots)[None, :, None, None], torch.randn(1, 2, 1, 1))

    total = sum(ballots)
    printed_region = {1: "R_1", 2: "R_2", 3: "R_3", 4: "R_4"}.get(total)
    q = vote.voters // 2 + 1
    name = {(0, q): "R_2", (0, q + 1): "R_1", (1, q): "R_3", (1, q + 1): "R_4"}
    assert vote.label.item() == int(total in (3, 4, 5))
    assert name.get((vote.label.item(), vote.most.item())) == printed_region


@pytest.mark.parametrize(
    ("ballots", "similarity", "label", "most"),
    [
        ([0, 1, 1, 2, 0], (0.0, 9.0, 0.0), 0, 2),  # tied 0 and 1: the network's own vote, 0
        ([0, 0, 1, 1, 2], (1.0, 3.0, 9.0), 1, 2),  # the network's 2 is not tied: the larger similarity of 0 and 1
        ([0, 0, 1, 1, 2], (3.0, 1.0, 9.0), 0, 2),
        ([2, 2, 1, 0, 2], (9.0, 9.0, 0.0), 2, 3),  # no tie
        ([0, 1], (9.0, 0.0), 1, 1),  # one image against the network
    ],
)
def test_ties_go_to_the_network_or_to_the_nearest_class(ballots, similarity, label, most):
    vote = count_votes(torch.tensor(ballots)[None, :, None, None], torch.tensor(similarity)[None, :, None, None])

    assert (vote.label.item(), vote.most.item()) == (label, most)


def test_a_label_without_a_majority_joins_no_region():
    features, p = drawn(0, 1, DIM, 1, 4), drawn(1, 1, 3, 1, 4).softmax(dim=1)
    maps, seen = Maps(features, p, torch.ones(1, 1, 4) > 0), torch.tensor([[[1, 1, 2, 2]]])

    def loss(most):
        return method_of(3).self_alignment(maps, Vote(seen, torch.tensor([[most]]), 5)).item()

    assert loss([2, 2, 3, 4]) == loss([5, 2, 3, 4]) > 0
    assert loss([3, 2, 3, 4]) == loss([2, 2, 3, 4])  # an uncertain region without a reliable one
    assert loss([3, 4, 2, 4]) > 0


def test_a_class_that_is_not_predicted_takes_its_annotation_and_then_drops_the_image():
    labelled, unlabelled, y = scene(0)
    p = labelled.p.clone()
    p[:2] = torch.tensor([0.9, 0.1])[:, None, None]  # images 0 and 1 predict background alone
    y[1] = 0  # and image 1 has no annotated foreground either
    labelled = labelled._replace(p=p)
    method = method_of()

    pairs = method.labelled_prototypes(labelled, y)

    expected = torch.tensor(slow_pairs(labelled, y, 2), dtype=torch.float64)
    assert len(pairs) == 3
    torch.testing.assert_close(pairs, expected)
    assert values(method.align(labelled, unlabelled, y)) == pytest.approx(
        slow_terms(labelled, unlabelled, y, 2), rel=1e-6
    )


def test_without_any_complete_image_all_three_losses_are_0_and_attached():
    labelled, unlabelled, y = scene(0)
    features = labelled.features.requires_grad_()
    blind = labelled._replace(
        p=torch.tensor([0.9, 0.1], dtype=torch.float64)[None, :, None, None].expand_as(labelled.p)
    )

    terms = method_of().align(blind, unlabelled, torch.zeros_like(y))
    sum(terms.values()).backward()

    assert values(terms) == dict.fromkeys(ALIGNMENT, 0.0)
    assert torch.equal(features.grad, torch.zeros_like(features))


def test_without_any_complete_image_the_network_votes_alone_and_the_signals_are_the_same():
    labelled, unlabelled, y = scene(0)
    p = torch.tensor([0.9, 0.1], dtype=torch.float64)[None, :, None, None].expand_as(labelled.p)
    whole, blind = method_of(), method_of()

    whole.align(labelled, unlabelled, y)
    blind.align(labelled._replace(p=p), unlabelled, torch.zeros_like(y))

    assert whole.signals().keys() == blind.signals().keys()  # else the parts of a step could not be joined
    assert (blind.signals()["voters"], blind.signals()["agreement"]) == (1, 1)
    predicted = unlabelled.p.argmax(dim=1)
    assert torch.equal(torch.stack([one.labels[::4, ::4] for one in blind.pseudo()]), predicted)


def test_where_the_vote_never_finds_a_class_l_upa_is_0():
    labelled, unlabelled, y = scene(0)
    toward_background = method_of().labelled_prototypes(labelled, y)[:, 0].mean(dim=0)
    for_background = unlabelled._replace(
        features=toward_background[None, :, None, None].expand_as(unlabelled.features),
        p=torch.tensor([0.9, 0.1], dtype=torch.float64)[None, :, None, None].expand_as(unlabelled.p),
    )

    terms = values(method_of().align(labelled, for_background, y))

    assert terms["L_UPA"] == terms["L_SPA"] == 0
    assert terms["L_LPA"] > 0


def test_one_labelled_image_makes_two_voters_and_no_self_alignment():
    terms = values(method_of().align(*scene(0, labelled=1)))

    assert terms["L_SPA"] == 0
    assert min(terms["L_LPA"], terms["L_UPA"]) > 0


def with_gradients(seed: int = 0):
    labelled, unlabelled, y = scene(seed)
    leaves = {"F_l": labelled.features, "F_u": unlabelled.features, "p_l": labelled.p, "p_u": unlabelled.p}
    for leaf in leaves.values():
        leaf.requires_grad_()
    return labelled, unlabelled, y, leaves


@pytest.mark.parametrize(
    ("switch", "term", "reached"),
    [
        ({}, "L_LPA", {"F_l", "F_u", "p_u"}),
        ({"lpa_detach": "pred"}, "L_LPA", {"F_l", "F_u"}),
        ({"lpa_detach": "proto"}, "L_LPA", {"p_u"}),
        ({}, "L_UPA", {"F_l", "F_u"}),  # none through votes and masks
        ({}, "L_SPA", {"F_u"}),  # none through votes and weights
        ({"spa_weight_grad": True}, "L_SPA", {"F_u", "p_u"}),
    ],
)
def test_gradients_take_the_paths_of_the_paper_and_no_other(switch, term, reached):
    labelled, unlabelled, y, leaves = with_gradients()

    method_of(**switch).align(labelled, unlabelled, y)[term].backward()

    assert {name for name, leaf in leaves.items() if leaf.grad is not None and leaf.grad.abs().sum() > 0} == reached
    assert all(leaf.grad is None or leaf.grad.isfinite().all() for leaf in leaves.values())


def test_reliable_regions_can_be_held_still():
    cells = {}
    for stop in (False, True):
        features = drawn(4, 1, DIM, 1, 2).requires_grad_()
        maps = Maps(features, torch.full((1, 2, 1, 2), 0.5, dtype=torch.float64), torch.ones(1, 1, 2) > 0)
        vote = Vote(torch.ones(1, 1, 2).long(), torch.tensor([[[3, 4]]]), 5)
        method_of(spa_stop_reliable=stop).self_alignment(maps, vote).backward()
        cells[stop] = features.grad.abs().sum(dim=1).flatten() > 0

    assert cells[False].tolist() == [True, True]
    assert cells[True].tolist() == [True, False]


@pytest.mark.parametrize(("switch", "term"), [("lpa", "L_LPA"), ("upa", "L_UPA"), ("spa", "L_SPA")])
def test_a_switch_removes_its_term_and_leaves_the_others(switch, term):
    everything = values(method_of().align(*scene(0)))

    rest = values(method_of(**{switch: False}).align(*scene(0)))

    assert rest == {name: value for name, value in everything.items() if name != term}


def test_the_scale_of_the_cosines_sharpens_l_upa_alone():
    plain, sharp = (values(method_of(upa_scale=s).align(*scene(0))) for s in (1.0, 5.0))

    assert {name for name in plain if sharp[name] != plain[name]} == {"L_UPA"}


def test_lambda_rises_over_the_whole_run_to_a_tenth():
    weights = [method_of().weight(Clock(t, 100, 10)) for t in (0, 50, 100)]

    assert weights == pytest.approx([0.000673795, 0.02865048, 0.1], rel=1e-6)


# Whole steps on networks.


def view_of(seed: int, images: int, side: int, *, labelled: bool, valid=None) -> View:
    generator = torch.Generator().manual_seed(seed)
    image = F.interpolate(torch.randn(images, 3, side // 8, side // 8, generator=generator), size=(side, side))
    affine = torch.eye(2, 3, dtype=torch.float64).expand(images, 2, 3)
    labels = (image[:, 0] > 0).long() if labelled else None
    return View(image, (), affine, torch.arange(images), labels=labels, valid=valid)


def batch_of(labelled: int = 4, unlabelled: int = 4, side: int = 64, valid=None) -> Batch:
    return Batch(
        Part(view_of(0, labelled, side, labelled=True)), Part(view_of(1, unlabelled, side, labelled=False, valid=valid))
    )


def student_of(method: Mspa) -> torch.nn.Module:
    torch.manual_seed(0)
    student = build_segnet(method.net_spec).train()
    method.attach(student)
    return student


def step(method: Mspa, student, batch: Batch) -> dict[str, torch.Tensor | None]:
    """Gradients of one step."""
    student.zero_grad(set_to_none=True)
    terms = method.losses(batch, student, None, LATE)
    sum(term.weight * term.value for term in terms.values()).backward()
    return {name: p.grad for name, p in student.named_parameters()}


@pytest.mark.parametrize("architecture", ["unet", "denseunet161"])
def test_a_step_trains_the_network_and_moves_no_statistics_by_unlabelled_images(architecture):
    method, batch = method_of(architecture=architecture), batch_of(2, 2)
    student, reference = student_of(method), student_of(method)
    torch.manual_seed(1)
    with torch.no_grad():
        reference(batch.labelled.weak.image)

    torch.manual_seed(1)
    grads = step(method, student, batch)

    assert all(g is not None and g.isfinite().all() for g in grads.values())
    for (name, mine), its in zip(student.named_buffers(), reference.buffers(), strict=True):
        torch.testing.assert_close(mine, its, msg=name)


def test_a_step_has_the_terms_of_equation_12():
    method, batch = method_of(), batch_of()
    student = student_of(method)

    terms = method.losses(batch, student, None, LATE)

    assert {name: term.weight for name, term in terms.items()} == {
        "L_S": 1.0, **dict.fromkeys(ALIGNMENT, method.weight(LATE)),
    }  # fmt: skip
    view = batch.labelled.weak
    assert terms["L_S"].value.item() == pytest.approx(pixel_cross_entropy(student(view.image), view.labels).item())


def test_with_weight_0_the_gradients_are_those_of_the_supervised_term_alone():
    method, batch = method_of(unsup_weight=0), batch_of()
    student = student_of(method)

    found = step(method, student, Batch(batch.labelled))

    student.zero_grad(set_to_none=True)
    pixel_cross_entropy(student(batch.labelled.weak.image), batch.labelled.weak.labels).backward()
    for name, p in student.named_parameters():
        torch.testing.assert_close(found[name], p.grad)


@pytest.mark.parametrize(("labelled", "unlabelled"), [(1, 1), (3, 2)])
def test_other_batch_sizes_run(labelled, unlabelled):
    method = method_of()

    terms = method.losses(batch_of(labelled, unlabelled), student_of(method), None, LATE)

    assert all(term.value.isfinite() for term in terms.values())


def test_pixels_beyond_an_unlabelled_image_change_nothing():
    valid = torch.ones(4, 64, 64, dtype=torch.bool)
    valid[:, 40:] = False
    whole, partly, method = batch_of(), batch_of(valid=valid), method_of()
    student = student_of(method)

    method.losses(whole, student, None, LATE)
    everywhere = method.pseudo()
    method.losses(partly, student, None, LATE)

    assert all((image.labels[40:] == 255).all() and (image.labels[:40] != 255).all() for image in method.pseudo())
    assert all((image.labels != 255).all() for image in everywhere)


def test_in_mixed_precision_the_losses_are_finite_and_in_float32():
    method = method_of()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method.losses(batch_of(), student_of(method), None, LATE)

    assert all(term.value.dtype == torch.float32 and term.value.isfinite() for term in terms.values())


def test_labelled_images_are_those_of_every_method_and_there_is_no_teacher():
    method = method_of()

    assert dict(method.views().labelled) == {"weak": WEAK}
    assert dict(method.views().unlabelled) == {"weak": MSPA}
    assert method.teacher() is None


def test_the_log_gets_the_collapse_signals_and_the_number_of_voters():
    method = method_of()

    method.losses(batch_of(), student_of(method), None, LATE)

    signals = method.signals()
    assert {
        "pseudo_labels_per_image", "images_without_pseudo_label_fraction", "max_confidence", "embedding_std",
        "pseudo_labels[background]", "pseudo_labels[nucleus]", "agreement",
    } <= set(signals)  # fmt: skip
    assert signals["voters"] == 5


def test_the_recipe_has_the_papers_constants():
    train = load_recipe("mspa").recipe.train
    config = Mspa.Config.model_validate(train.config)

    assert (train.architecture, train.crop_px, train.batch_labelled, train.ratio) == ("denseunet161", 416, 4, 1)
    assert (train.optimiser, train.lr, train.schedule, train.iterations) == ("adam", 1e-4, "constant", 30_000)
    assert (config.unsup_weight, config.lpa, config.upa, config.spa) == (0.1, True, True, True)


def test_the_papers_crop_of_416_px_is_for_semantic_networks_alone():
    with pytest.raises(UserError, match="crop_px 416: a multiple of 64"):
        load_recipe("mspa", ["train.method=supervised", "train.architecture=faster-rcnn-resnet50-fpn"])
