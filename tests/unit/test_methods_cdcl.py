"""cdcl: its losses against slow loops in float64, golden values, and the laws of METHODS 5.3.

The networks are a stub with SegNet's verbs, exactly flip-equivariant, and tiny or published SegNets.
"""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cytopipe.core.classes import class_named
from cytopipe.methods.cdcl import NO_CLASS, Cdcl, consistency, dominant_class, entropy
from cytopipe.nets import SegSpec, build_segnet
from cytopipe.nets.segnet import Decoded
from cytopipe.recipes import load_recipe
from cytopipe.semi import Batch, Clock, EmaTeacher, Part, View
from cytopipe.semi.pixels import pixel_cross_entropy
from cytopipe.semi.presets import CDCL_STRONG, CDCL_WEAK, WEAK

NAMES = ("nucleus", "HSIL")
DIM = 4
LATE = Clock(50, 100, 10)  # after burn-in
UNSUPERVISED = {"L_contr", "L_cons", "L_ent"}


def method_of(classes: int = 2, architecture: str = "unet", **config) -> Cdcl:
    """`classes` with background. Double precision, so that slow loops agree to 1e-6."""
    widths = {"widths": (4, 4, 6)} if architecture == "unet" else {}
    spec = SegSpec(architecture=architecture, classes=[class_named(n) for n in NAMES[: classes - 1]], **widths)
    defaults = {"burn_in_epochs": 0, "embedding_dim": DIM, "hidden_dim": 5}
    return Cdcl(spec, Cdcl.Config(**(defaults | config))).double()


class StubNet(nn.Module):
    """Average pooling and 1x1 convolutions: a flipped image gives flipped maps, exactly."""

    feature_dim = 6

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
        self.extra = nn.ModuleDict()
        with torch.no_grad():
            self.head.weight.mul_(8)
            self.head.bias.zero_()

    def frozen_statistics(self):
        return torch.enable_grad()

    def encode(self, image):
        return [F.avg_pool2d(image, 4)]

    def decode(self, pyramid):
        return Decoded(self.trunk(pyramid[0]).tanh())

    def predict(self, decoded):
        return F.interpolate(self.head(decoded.features), scale_factor=4)

    def forward(self, image):
        return self.predict(self.decode(self.encode(image)))


def image_of(seed: int, images: int, side: int) -> torch.Tensor:
    """Blobs of 20 px, so that some patches are of one class."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(images, 3, side // 20, side // 20, generator=generator, dtype=torch.float64)
    return F.interpolate(2 * coarse, size=(side, side), mode="bilinear")


def view_of(image: torch.Tensor, *, labels=None, valid=None, first_key: int = 7) -> View:
    affine = torch.eye(2, 3, dtype=torch.float64).expand(len(image), 2, 3)
    return View(image, (), affine, torch.arange(len(image)) + first_key, labels=labels, valid=valid)


def batch_of(seed: int = 0, images: int = 2, side: int = 80, *, same: bool = False, valid=None) -> Batch:
    x_l, x_w = image_of(seed, images, side), image_of(seed + 1, images, side)
    x_s = x_w if same else x_w + 0.3 * image_of(seed + 2, images, side)
    labelled = Part(view_of(x_l, labels=(x_l[:, 0] > 0).long()))
    return Batch(labelled, Part(view_of(x_w, valid=valid), view_of(x_s, valid=valid)))


def nets_of(method: Cdcl, student: nn.Module, dtype=torch.float64) -> tuple[nn.Module, nn.Module]:
    method.attach(student)
    student = student.to(dtype).train()
    teacher = EmaTeacher(student, method.teacher()).net
    with torch.no_grad():
        for p in teacher.parameters() if isinstance(student, StubNet) else ():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()), dtype=p.dtype))
    return student, teacher


def values(terms) -> dict[str, float]:
    return {name: term.value.item() for name, term in terms.items()}


def gradients(student: nn.Module, terms) -> dict[str, torch.Tensor | None]:
    student.zero_grad(set_to_none=True)
    sum(term.weight * term.value for term in terms.values()).backward()
    return {name: p.grad for name, p in student.named_parameters()}


# The second implementation: loops over numbers, written from the paper's equations.


def slow_patches(features, labels, seen, keys, side, classes, shares=(Fraction(7, 10), Fraction(3, 10))):
    """Every patch as (image, place, dominant class or None, [(feature, label)])."""
    found = []
    for b in range(labels.shape[0]):
        rows, columns = labels.shape[1] // side[0], labels.shape[2] // side[1]
        for place in range(rows * columns):
            top, left = place // columns * side[0], place % columns * side[1]
            at = [(top + i, left + j) for i in range(side[0]) for j in range(side[1])]
            cells = [(features[b, i, j].tolist(), int(labels[b, i, j])) for i, j in at]
            share = [Fraction(sum(y == c for _, y in cells), len(cells)) for c in range(classes)]
            dominant = next((c for c in range(1, classes) if share[c] >= shares[0]), None)
            dominant = 0 if 1 - share[0] <= shares[1] else dominant
            whole = all(bool(seen[b, i, j]) for i, j in at)
            found.append((int(keys[b]), place, dominant if whole else None, cells))
    return found


def slow_l_contr(batches, method: Cdcl, side) -> float:
    """L_contr of the last of the batches (student maps, teacher maps, seen, keys), the others lie in the banks."""
    c, bank = method.config, []
    for number, (student, teacher, seen, keys) in enumerate(batches):
        mine = slow_patches(*student, seen, keys, side, method.classes)
        its = slow_patches(*teacher, seen, keys, side, method.classes)
        if number > len(batches) - 1 - c.bank_batches:
            pushed = (mine if c.bank_sources == "both" else []) + its
            bank += [(number, patch) for patch in pushed if patch[2] is not None]
    last, of_patches = len(batches) - 1, []
    for (image, place, dominant, cells), (_, _, _, teacher_cells) in zip(mine, its, strict=True):
        if dominant is None:
            continue
        total = 0.0
        for n, ((q, label), (positive, _)) in enumerate(zip(cells, teacher_cells, strict=True)):
            against = 0.0
            for number, (bank_image, bank_place, bank_dominant, bank_cells) in bank:
                for m, (key, bank_label) in enumerate(bank_cells):
                    own = number == last and (image, place, n) == (bank_image, bank_place, m)
                    meets = {
                        "pixel-patch": bank_dominant != dominant and bank_label != label,
                        "pixel": bank_label != label,
                        "random": not own,
                    }[c.sampling]
                    if meets:
                        against += math.exp(sum(a * b for a, b in zip(q, key, strict=True)) / c.tau)
            sim = math.exp(sum(a * b for a, b in zip(q, positive, strict=True)) / c.tau)
            total += -math.log(sim / (sim + against))
        of_patches.append(total / len(cells))
    return sum(of_patches) / len(of_patches) if of_patches else 0.0


def maps_of(seed: int, classes: int, *, side: int = 5, patch: int = 2, images: int = 2):
    """Random 𝓕 (B, h, w, d), and ỹ that is of one class in most patches."""
    generator = torch.Generator().manual_seed(seed)
    features = F.normalize(torch.randn(images, side, side, DIM, generator=generator, dtype=torch.float64), dim=-1)
    blocks = torch.randint(0, classes, (images, side // patch + 1, side // patch + 1), generator=generator)
    labels = blocks.repeat_interleave(patch, 1).repeat_interleave(patch, 2)[:, :side, :side]
    noise = torch.rand(labels.shape, generator=generator) < 0.15
    return features, torch.where(noise, (labels + 1) % classes, labels)


def scene(seed: int, classes: int, **sizes):
    """Maps of student and teacher, what is seen, and keys, of one batch."""
    student, teacher = maps_of(seed, classes, **sizes), maps_of(seed + 1, classes, **sizes)
    seen = torch.ones(student[1].shape, dtype=torch.bool)
    return (
        student,
        (teacher[0], torch.where(seen, student[1].roll(1, 0), teacher[1])),
        seen,
        torch.arange(2) + 10 * seed,
    )


@pytest.mark.parametrize("sampling", ["pixel-patch", "pixel", "random"])
@pytest.mark.parametrize("sources", ["both", "teacher"])
@pytest.mark.parametrize(("classes", "batches"), [(2, 1), (2, 3), (3, 2)])
def test_l_contr_equals_a_slow_triple_loop_over_patches_cells_and_banks(sampling, sources, classes, batches):
    method = method_of(classes, sampling=sampling, bank_sources=sources, patch_cells=2)
    given_ = [scene(seed, classes) for seed in range(batches)]

    for step, batch in enumerate(given_):
        loss = method.contrast_patches(*batch, step)

    expected = slow_l_contr(given_, method, (2, 2))
    assert expected > 0
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_cells_that_are_not_seen_exclude_their_patch_from_anchors_and_banks():
    method, (student, teacher, seen, keys) = method_of(patch_cells=2), scene(3, 2)
    before = method.contrast_patches(student, teacher, seen, keys, 0).item()
    seen[0, :, 1] = False

    after = method.contrast_patches(student, teacher, seen, keys, 0 + 9)

    assert after.item() == pytest.approx(slow_l_contr([(student, teacher, seen, keys)], method, (2, 2)), rel=1e-6)
    assert after.item() != pytest.approx(before)


@pytest.mark.parametrize(("config", "side"), [({"patch_grid": 3}, (2, 2)), ({"patch_cells": 3}, (3, 3))])
def test_patches_have_a_size_in_cells_or_a_number_along_the_image(config, side):
    method, batch = method_of(**config), scene(5, 2, side=6, patch=side[0])

    loss = method.contrast_patches(*batch, 0)

    expected = slow_l_contr([batch], method, side)
    assert expected > 0
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_grid_finer_than_the_cells_is_refused():
    with pytest.raises(ValueError, match="patch_grid 8"):
        method_of(patch_grid=8).contrast_patches(*scene(0, 2), 0)


def test_without_a_patch_of_the_opposite_class_every_query_has_loss_0():
    method, (student, teacher, seen, keys) = method_of(patch_cells=2), scene(0, 2)
    all_nucleus = torch.ones_like(student[1])

    loss = method.contrast_patches((student[0], all_nucleus), (teacher[0], all_nucleus), seen, keys, 0)

    assert len(method.bank) == 16
    assert loss.item() == 0


def test_without_any_dominated_patch_the_loss_is_0_and_attached():
    method, (student, teacher, seen, keys) = method_of(patch_cells=2), scene(0, 2)
    board = (torch.arange(5)[:, None] + torch.arange(5)).remainder(2).expand(2, 5, 5)
    features = student[0].requires_grad_()

    loss = method.contrast_patches((features, board), (teacher[0], board), seen, keys, 0)
    loss.backward()

    assert loss.item() == 0
    assert torch.equal(features.grad, torch.zeros_like(features))


def bank_of(method: Cdcl, step: int, features: torch.Tensor, label: int, dominant: int) -> None:
    """Add one patch whose cells all have one label."""
    held = method.bank.read()
    patches = type(held)(
        features[None],
        torch.full((1, len(features)), label),
        torch.tensor([dominant]),
        torch.tensor([99]),
        torch.tensor([0]),
    )
    method.bank.push(patches, step)


def test_a_masked_negative_changes_nothing_and_an_unmasked_one_raises_the_loss():
    """Query patch: an FDP of label 1. J masks label 1; the bank of FDPs is not looked at."""
    student, teacher, _, _ = scene(0, 2)
    losses = []
    for extra in (None, (1, 0), (0, 1), (1, 1), (0, 0)):  # label, dominant class of one more patch
        method = method_of(patch_cells=2)
        anchors = method._cut(student[0], torch.ones_like(student[1]), torch.ones_like(student[1]) > 0, torch.arange(2))
        bank_of(method, 0, teacher[0][0, 0, :4], 0, 0)
        if extra is not None:
            bank_of(method, 0, teacher[0][1, 0, :4], *extra)
        losses.append(method.contrast_cells(anchors, anchors.features, 0))

    alone, *masked, unmasked = losses
    for loss in masked:
        assert torch.equal(loss, alone)
    assert (unmasked > alone).all()


@given(order=st.permutations(range(8)))
@settings(deadline=None, max_examples=10)
def test_the_order_of_the_bank_does_not_matter(order):
    method, batch = method_of(patch_cells=2), scene(2, 2)
    method.contrast_patches(*batch, 0)
    anchors = method._cut(*batch[0], batch[2], batch[3])
    anchors = anchors.at(anchors.dominant != NO_CLASS)
    before = method.contrast_cells(anchors, anchors.features, 0)

    held = method.bank.read()
    turn = torch.cat([torch.tensor(order), torch.arange(8, len(held))]) if len(held) > 8 else torch.arange(len(held))
    for name in method.bank.NAMES:
        setattr(method.bank, name, getattr(method.bank, name)[turn])

    torch.testing.assert_close(method.contrast_cells(anchors, anchors.features, 0), before)


def test_a_gradient_reaches_the_students_features_and_nothing_else():
    method, (student, teacher, seen, keys) = method_of(patch_cells=2), scene(1, 2)
    student[0].requires_grad_()
    teacher[0].requires_grad_()

    for step in (0, 1):
        method.contrast_patches(student, teacher, seen, keys, step).backward()

    assert student[0].grad.abs().sum() > 0
    assert teacher[0].grad is None
    assert not method.bank.features.requires_grad


@pytest.mark.parametrize(
    ("cells", "foreground", "expected"),
    [
        (100, 70, 1), (100, 69, NO_CLASS), (100, 31, NO_CLASS), (100, 30, 0),  # thresholds are inclusive
        (25, 18, 1), (25, 17, NO_CLASS), (25, 8, NO_CLASS), (25, 7, 0),  # 0.7 · 25 is no integer
        (10, 7, 1), (10, 3, 0), (1, 1, 1), (1, 0, 0),
    ],
)  # fmt: skip
def test_the_thresholds_of_the_foreground_share_are_inclusive_counts(cells, foreground, expected):
    labels = (torch.arange(cells) < foreground).long()[None]

    assert dominant_class(labels, 2, 0.7, 0.3).tolist() == [expected]


@given(labels=st.lists(st.integers(0, 2), min_size=1, max_size=40), share=st.integers(51, 100))
def test_with_three_classes_a_patch_belongs_to_the_class_that_holds_the_share(labels, share):
    exact = Fraction(share, 100)

    found = dominant_class(torch.tensor([labels]), 3, share / 100, 1 - share / 100)

    holders = [c for c in range(3) if Fraction(labels.count(c), len(labels)) >= exact]
    assert found.tolist() == (holders or [NO_CLASS])


@pytest.mark.parametrize(
    ("p", "value"), [((0.8, 0.2), 0.50040242), ((0.5, 0.5), math.log(2)), ((1.0 - 1e-300, 1e-300), 0.0)]
)
def test_l_ent_has_the_golden_value_and_is_0_for_certainty(p, value):
    log_p = torch.tensor(p, dtype=torch.float64).log()[None, :, None, None].expand(2, 2, 3, 3)

    assert entropy(log_p, torch.ones(2, 3, 3) > 0).item() == pytest.approx(value, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("threshold", [0.0, 0.6])
def test_l_cons_and_l_ent_equal_loops_over_the_cells_that_are_seen(threshold):
    generator = torch.Generator().manual_seed(0)
    log_s, log_t = (torch.randn(2, 3, 4, 4, generator=generator).double().log_softmax(1) for _ in range(2))
    seen = torch.rand(2, 4, 4, generator=generator) < 0.7
    p_t, label = log_t.exp().max(dim=1)

    l_cons, l_ent = consistency(log_s, label, seen & (p_t >= threshold), seen), entropy(log_s, seen)

    cells = [(b, i, j) for b in range(2) for i in range(4) for j in range(4) if seen[b, i, j]]
    slow_cons = sum(-log_s[b, label[b, i, j], i, j].item() for b, i, j in cells if p_t[b, i, j] >= threshold)
    slow_ent = -sum(math.exp(v) * v for b, i, j in cells for v in log_s[b, :, i, j].tolist())
    assert l_cons.item() == pytest.approx(slow_cons / len(cells), rel=1e-6)
    assert l_ent.item() == pytest.approx(slow_ent / len(cells), rel=1e-6)


def test_equal_and_certain_predictions_are_consistent():
    log_p = torch.tensor([0.0, -900.0])[None, :, None, None].expand(1, 2, 2, 2).clone().requires_grad_()

    loss = consistency(log_p, torch.zeros(1, 2, 2, dtype=torch.int64), *2 * (torch.ones(1, 2, 2) > 0,))

    assert loss.item() == 0


def test_where_nothing_is_seen_the_losses_are_0_and_attached():
    log_p = torch.zeros(1, 2, 2, 2, requires_grad=True)
    nothing = torch.zeros(1, 2, 2, dtype=torch.bool)

    loss = consistency(log_p, nothing.long(), nothing, nothing) + entropy(log_p, nothing)
    loss.backward()

    assert loss.item() == 0
    assert torch.equal(log_p.grad, torch.zeros_like(log_p))


def test_a_whole_step_equals_the_slow_loops_on_the_networks_own_maps():
    method, batch = method_of(patch_cells=2), batch_of()
    student, teacher = nets_of(method, StubNet())

    terms = values(method.losses(batch, student, teacher, LATE))

    maps = []
    for net, view in ((student, batch.unlabelled.strong), (teacher, batch.unlabelled.weak)):
        decoded = net.decode(net.encode(view.image))
        p = F.avg_pool2d(net.predict(decoded).softmax(dim=1), 4)
        projected = net.extra["projector"](F.avg_pool2d(decoded.features, 2).movedim(1, -1))
        maps.append((p.log(), F.normalize(projected, dim=-1), F.avg_pool2d(p, 2).argmax(dim=1)))
    (log_s, features_s, label_s), (log_t, features_t, label_t) = maps
    seen = torch.ones(label_s.shape, dtype=torch.bool)
    expected = slow_l_contr([((features_s, label_s), (features_t, label_t), seen, torch.arange(2))], method, (2, 2))
    label = log_t.argmax(dim=1)
    assert expected > 0
    assert terms["L_contr"] == pytest.approx(expected, rel=1e-6)
    assert terms["L_cons"] == pytest.approx(F.nll_loss(log_s, label).item(), rel=1e-6)
    assert terms["L_ent"] == pytest.approx(-(log_s.exp() * log_s).sum(1).mean().item(), rel=1e-6)
    view = batch.labelled.weak
    assert terms["L_sup"] == pytest.approx(F.cross_entropy(student(view.image), view.labels).item(), rel=1e-6)


def test_both_views_flipped_give_the_same_losses():
    method, other, batch = method_of(), method_of(), batch_of()
    student, teacher = nets_of(method, StubNet())

    flipped = Batch(
        batch.labelled, Part(*(view_of(v.image.flip(3)) for v in (batch.unlabelled.weak, batch.unlabelled.strong)))
    )

    straight = values(method.losses(batch, student, teacher, LATE))
    assert straight["L_contr"] > 0
    assert values(other.losses(flipped, student, teacher, LATE)) == pytest.approx(straight, rel=1e-9)


def test_the_order_of_the_unlabelled_images_does_not_matter():
    method, other, batch = method_of(), method_of(), batch_of(images=3)
    student, teacher = nets_of(method, StubNet())
    turned = Batch(
        batch.labelled,
        Part(*(view_of(v.image[[2, 0, 1]]) for v in (batch.unlabelled.weak, batch.unlabelled.strong))),
    )

    assert values(other.losses(turned, student, teacher, LATE)) == pytest.approx(
        values(method.losses(batch, student, teacher, LATE)), rel=1e-9
    )


def test_pixels_beyond_the_image_take_no_part():
    valid = torch.ones(2, 80, 80, dtype=torch.bool)
    valid[:, :, 40:] = False
    left, whole = (batch_of(valid=v) for v in (valid, None))
    noisy = Batch(
        left.labelled,
        Part(*(view_of(torch.where(valid[:, None], v.image, 9.0), valid=valid)
               for v in (left.unlabelled.weak, left.unlabelled.strong))),
    )  # fmt: skip
    method = method_of()
    student, teacher = nets_of(method, StubNet())

    def terms(batch):
        fresh = method_of()
        return values(fresh.losses(batch, student, teacher, LATE))

    assert terms(left) == pytest.approx(terms(noisy), rel=1e-9)
    assert terms(left) != pytest.approx(terms(whole), rel=1e-3)


@pytest.mark.parametrize(("t", "terms"), [(0, {"L_sup"}), (49, {"L_sup"}), (50, {"L_sup"} | UNSUPERVISED)])
def test_the_unsupervised_branch_starts_with_the_sixth_epoch(t, terms):
    method = method_of(burn_in_epochs=5)
    student, teacher = nets_of(method, StubNet())

    found = method.losses(batch_of(), student, teacher, Clock(t, 100, 10))

    assert set(found) == terms
    assert (len(method.bank) > 0) == (len(terms) > 1)


def test_in_burn_in_neither_the_teacher_nor_an_unlabelled_image_is_read():
    method = method_of(burn_in_epochs=5)
    student, _ = nets_of(method, StubNet())

    terms = method.losses(Batch(batch_of().labelled), student, None, Clock(0, 100, 10))

    assert set(terms) == {"L_sup"}
    assert method.signals() == {}
    assert method.pseudo() is None


def test_with_weight_0_the_gradients_are_those_of_the_supervised_term_alone():
    method, batch = method_of(unsup_weight=0), batch_of()
    student, teacher = nets_of(method, StubNet())

    found = gradients(student, method.losses(batch, student, teacher, LATE))

    student.zero_grad(set_to_none=True)
    pixel_cross_entropy(student(batch.labelled.weak.image), batch.labelled.weak.labels).backward()
    for name, p in student.named_parameters():
        assert (p.grad is None) == (found[name] is None)
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("switch", "term"), [({"w_contr": 0}, "L_contr"), ({"w_cons": 0}, "L_cons"), ({"w_ent": 0}, "L_ent")]
)
def test_a_weight_of_0_removes_its_term_and_leaves_the_others(switch, term):
    method, without = method_of(), method_of(**switch)
    student, teacher = nets_of(method, StubNet())

    everything = values(method.losses(batch_of(), student, teacher, LATE))
    rest = values(without.losses(batch_of(), student, teacher, LATE))

    assert rest == {name: value for name, value in everything.items() if name != term}


@pytest.mark.parametrize(
    ("switch", "changed"),
    [
        ({"sampling": "random"}, {"L_contr"}),
        ({"sampling": "pixel"}, {"L_contr"}),
        ({"bank_sources": "teacher"}, {"L_contr"}),
        ({"patch_grid": 5}, {"L_contr"}),
        ({"tau": 0.2}, {"L_contr"}),
        ({"foreground_share": 0.55, "background_share": 0.45}, {"L_contr"}),
        ({"cons_threshold": 0.8}, {"L_cons"}),
    ],
)
def test_a_switch_changes_exactly_the_terms_that_it_names(switch, changed):
    method, other = method_of(), method_of(**switch)
    student, teacher = nets_of(method, StubNet())

    before = values(method.losses(batch_of(), student, teacher, LATE))
    after = values(other.losses(batch_of(), student, teacher, LATE))

    assert {name for name in before if after[name] != pytest.approx(before[name], rel=1e-9)} == changed


def test_the_weights_are_the_papers_and_only_that_of_l_cons_rises():
    weights = [method_of(burn_in_epochs=5).weights(Clock(t, 100, 10)) for t in (0, 25, 100)]

    assert [w["L_cons"] for w in weights] == pytest.approx([0.00673795, 0.06005467, 1.0], rel=1e-6)
    assert {(w["L_contr"], w["L_ent"]) for w in weights} == {(0.1, 0.01)}
    assert method_of(ramp_epochs=5, unsup_weight=0.5).weights(Clock(50, 100, 10)) == {
        "L_contr": 0.05, "L_cons": 0.5, "L_ent": 0.005,
    }  # fmt: skip


def test_the_teacher_follows_from_the_start_with_alpha_0999():
    rule = method_of(burn_in_epochs=5).teacher()

    assert (rule.alpha, rule.warm, rule.start) == (0.999, True, 0)


@pytest.mark.parametrize(("init", "copied"), [("start", False), ("burn-in", True)])
def test_after_burn_in_the_teacher_becomes_the_student_where_that_is_asked_for(init, copied):
    method = method_of(burn_in_epochs=5, teacher_init=init)
    student, teacher = nets_of(method, StubNet())

    method.losses(batch_of(), student, teacher, Clock(50, 100, 10))

    same = all(torch.equal(a, b) for a, b in zip(teacher.parameters(), student.parameters(), strict=True))
    assert same == copied
    assert not any(p.requires_grad for p in teacher.parameters())


def test_labelled_images_are_those_of_every_method_and_unlabelled_ones_have_two_views():
    plan = method_of().views()

    assert dict(plan.labelled) == {"weak": WEAK}
    assert dict(plan.unlabelled) == {"weak": CDCL_WEAK, "strong": CDCL_STRONG}


def test_saved_and_loaded_the_method_goes_on_with_the_same_loss():
    method, loaded = method_of(), method_of()
    student, teacher = nets_of(method, StubNet())
    method.losses(batch_of(0), student, teacher, Clock(50, 100, 10))

    loaded.load_state_dict(method.state_dict())

    terms = [values(m.losses(batch_of(5), student, teacher, Clock(51, 100, 10))) for m in (method, loaded)]
    fresh = values(method_of().losses(batch_of(5), student, teacher, Clock(51, 100, 10)))
    assert terms[0] == terms[1]
    assert terms[0]["L_contr"] > fresh["L_contr"]


@pytest.mark.parametrize("architecture", ["unet", "denseunet161"])
def test_a_step_on_a_published_network_trains_student_and_projector_and_moves_no_statistics_by_unlabelled_images(
    architecture,
):
    method = method_of(architecture=architecture, patch_cells=2).float()
    torch.manual_seed(0)
    student = build_segnet(method.net_spec)
    student, teacher = nets_of(method, student, torch.float32)
    batch = batch_of(side=64)
    batch = Batch(*(Part({k: view_of(v.image.float(), labels=v.labels) for k, v in part.views.items()})
                    for part in (batch.labelled, batch.unlabelled)))  # fmt: skip
    reference = build_segnet(method.net_spec).train()
    reference.load_state_dict({k: v for k, v in student.state_dict().items() if not k.startswith("extra")})
    torch.manual_seed(1)  # of the dropout before the last batch norm
    with torch.no_grad():
        reference(batch.labelled.weak.image)

    torch.manual_seed(1)
    grads = gradients(student, method.losses(batch, student, teacher, LATE))

    assert all(g is not None and g.isfinite().all() for name, g in grads.items())
    assert all(p.grad is None for p in teacher.parameters())
    statistics = {k: v for k, v in student.named_buffers() if "running" in k}
    assert statistics
    for name, value in reference.named_buffers():
        if name in statistics:
            torch.testing.assert_close(statistics[name], value)


def test_in_mixed_precision_the_losses_are_finite_and_in_float32():
    method = method_of(patch_cells=2).float()
    student, teacher = nets_of(method, build_segnet(method.net_spec), torch.float32)
    batch = batch_of(side=64)
    batch = Batch(*(Part({k: view_of(v.image.float(), labels=v.labels) for k, v in part.views.items()})
                    for part in (batch.labelled, batch.unlabelled)))  # fmt: skip

    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = method.losses(batch, student, teacher, LATE)

    assert all(term.value.dtype == torch.float32 and term.value.isfinite() for term in terms.values())


def test_the_log_gets_the_collapse_signals_and_the_report_the_teachers_labels():
    method = method_of(cons_threshold=0.6)
    student, teacher = nets_of(method, StubNet())

    method.losses(batch_of(), student, teacher, LATE)

    assert {
        "pseudo_labels_per_image", "images_without_pseudo_label_fraction", "max_confidence", "embedding_std",
        "disagreement", "pseudo_labels[background]", "pseudo_labels[nucleus]", "bank_patches",
    } <= set(method.signals())  # fmt: skip
    shown = method.pseudo()
    assert [tuple(image.labels.shape) for image in shown] == [(80, 80)] * 2
    assert all(((image.labels == 255) == (image.scores < 0.6)).all() for image in shown)


def test_the_recipe_has_the_papers_constants():
    train = load_recipe("cdcl").recipe.train
    config = Cdcl.Config.model_validate(train.config)

    assert (train.architecture, train.crop_px, train.batch_labelled, train.ratio) == ("denseunet161", 320, 8, 1)
    assert (train.optimiser, train.lr, train.schedule, train.poly_power) == ("adam", 1e-4, "poly", 0.9)
    assert (config.w_contr, config.w_cons, config.w_ent, config.burn_in_epochs) == (0.1, 1.0, 0.01, 5)
    assert (config.tau, config.alpha, config.patch_cells, config.embedding_dim) == (0.1, 0.999, 5, 128)
    assert (config.foreground_share, config.background_share, config.bank_batches) == (0.7, 0.3, 2)
