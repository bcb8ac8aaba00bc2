"""A whole step of dual-alignment as the engine takes it (METHODS 5.1, 8).

Two networks: a stub with DetNet's verbs, small enough to follow by hand, and a light DetNet on 64 px images.
"""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from cytopipe.core.classes import ObjectClass
from cytopipe.methods import find_method
from cytopipe.nets import DetOutput, NetSpec, build_net
from cytopipe.semi import Batch, Clock, EmaRule, EmaTeacher, Part, Targets, View

CLASSES = tuple(ObjectClass(name=n, kind="cell", suspicious=True) for n in ("LSIL", "HSIL"))
SPEC = NetSpec(
    architecture="faster-rcnn-mobilenetv2-fpn",
    classes=CLASSES,
    width=0.25,
    fpn_channels=16,
    head_dim=32,
    rois_per_image=24,
)
SUPERVISED_TERMS = ["rpn_cls", "rpn_reg", "roi_cls", "roi_reg"]
METRIC_TERMS = ["L_pml", "L'_pml", "L_pmb", "L'_pmb"]
MIDDLE = Clock(50, 100, 10)


class StubNet(nn.Module):
    """Features are the mean colour; every image has four proposals; H depends on the image and the proposal's number.

    sure  the classifier tells proposals apart, and is never for background
    """

    feature_dim = 6

    def __init__(self, *, trains_batch_norm: bool = False, sure: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.body, self.head = nn.Linear(3, 3), nn.Linear(4, 6), nn.Linear(6, 3)
        self.extra = nn.ModuleDict()
        self.trains_batch_norm, self.frozen, self.seen = trains_batch_norm, False, []
        if sure:
            with torch.no_grad():
                self.head.weight.mul_(3)
                self.head.bias.copy_(torch.tensor([-3.0, 0.0, 0.0]))

    @contextmanager
    def frozen_statistics(self):
        self.frozen = True
        yield
        self.frozen = False

    def extract(self, image):
        self.seen.append((len(image), self.frozen))
        return {2: self.trunk(image.mean(dim=(2, 3)))}

    def propose(self, feats, sizes, pre_nms, post_nms):
        boxes = [torch.arange(4.0)[:, None].expand(4, 4)[:post_nms] for _ in sizes]
        return boxes, [b[:, 0] for b in boxes]

    def score(self, feats, boxes, level=None):
        rows = [torch.cat([f.expand(len(b), 3), b[:, :1]], dim=1) for f, b in zip(feats[2], boxes, strict=True)]
        features = self.body(torch.cat(rows)).tanh()
        return self.head(features), features.new_zeros(len(features), 12), features

    def losses(self, feats, targets, sizes, keys, **_):
        boxes, _ = self.propose(feats, sizes, 9, 4)
        logits, _, features = self.score(feats, boxes)
        labels = torch.cat([torch.cat([t.labels, torch.zeros(4, dtype=torch.int64)])[:4] for t in targets])
        terms = {name: (k + 1) * logits.square().mean() for k, name in enumerate(SUPERVISED_TERMS)}
        return DetOutput(terms, labels, logits, features)


def view_of(seed: int, images: int, side: int, labels: list[int] | None) -> View:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(images, 3, side, side, generator=generator)
    targets: tuple[Targets, ...] = ()
    if labels is not None:
        boxes = torch.tensor([[4.0 + 8 * k, 6.0, 24.0 + 8 * k, 30.0] for k in range(len(labels))]).reshape(-1, 4)
        targets = (Targets(boxes, torch.tensor(labels, dtype=torch.int64)),) * images
    affine = torch.eye(2, 3, dtype=torch.float64).expand(images, 2, 3)
    return View(pixels, targets, affine, torch.arange(images) + seed)


def batch_of(
    seed: int = 0, *, labelled: int = 2, unlabelled: int = 2, side: int = 64, labels: tuple[int, ...] = (1, 2)
):
    return Batch(
        Part(view_of(seed, labelled, side, list(labels))), Part(view_of(seed + 100, unlabelled, side, labels=None))
    )


def made(name: str, student: nn.Module, **config):
    kind = find_method(name)
    method = kind(SPEC, kind.Config(**config))
    method.attach(student)
    return method


def small_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_net(SPEC).train()


def gradients(student: nn.Module, terms) -> dict[str, torch.Tensor | None]:
    student.zero_grad(set_to_none=True)
    sum(term.weight * term.value for term in terms.values()).backward()
    return {name: p.grad for name, p in student.named_parameters() if not name.startswith("extra.")}


def values(terms) -> dict[str, float]:
    return {name: term.value.item() for name, term in terms.items()}


def test_with_unsup_weight_0_dual_alignment_gives_the_gradients_of_supervised_exactly():
    student, plain = small_net(), small_net()
    dual, supervised = made("dual-alignment", student, unsup_weight=0), made("supervised", plain)
    batch = batch_of()

    mine = gradients(student, dual.losses(batch, student, None, MIDDLE))
    its = gradients(plain, supervised.losses(batch, plain, None, MIDDLE))

    assert mine.keys() == its.keys()
    assert any(g is not None for g in its.values())
    for name, gradient in its.items():
        assert (mine[name] is None and gradient is None) or torch.equal(mine[name], gradient), name


def test_the_metric_terms_carry_lambda_and_the_supervised_ones_weight_1():
    student = StubNet()
    method = made("dual-alignment", student, unsup_weight=3.0, ramp_fraction=1.0)

    terms = method.losses(batch_of(), student, None, MIDDLE)

    assert list(terms) == SUPERVISED_TERMS + METRIC_TERMS
    assert [terms[name].weight for name in SUPERVISED_TERMS] == [1.0] * 4
    assert [terms[name].weight for name in METRIC_TERMS] == [method.weight(MIDDLE)] * 4
    assert method.weight(MIDDLE) == pytest.approx(3 * 0.28650480)


@pytest.mark.parametrize(
    ("switch", "gone"),
    [("proposal_alignment", ["L_pml", "L'_pml"]), ("prototype_alignment", ["L_pmb", "L'_pmb"])],
)
def test_each_ablation_takes_away_exactly_its_two_terms(switch, gone):
    full, without = StubNet(), StubNet()

    terms = made("dual-alignment", full).losses(batch_of(), full, None, MIDDLE)
    fewer = made("dual-alignment", without, **{switch: False}).losses(batch_of(), without, None, MIDDLE)

    assert values(fewer) == {name: value for name, value in values(terms).items() if name not in gone}


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"proxy_scale": 2.0}, {"L_pml", "L'_pml"}),
        ({"proxy_denominator": "others"}, {"L_pml", "L'_pml"}),
        ({"margin": 1.9}, {"L_pmb", "L'_pmb"}),
        ({"pseudo_threshold": 1.0}, {"L'_pml", "L'_pmb"}),
        ({"proposals_per_image": 2}, {"L'_pml", "L'_pmb"}),
        ({"normalize": False}, set(METRIC_TERMS)),
        ({"bank_scope": "per_class", "bank_size": 7}, set()),
    ],
    ids=lambda value: "-".join(sorted(map(str, value))),
)
def test_each_setting_changes_the_terms_it_names_and_no_other(change, moved):
    def terms_of(**config):
        student = StubNet(sure=True)
        method = made("dual-alignment", student, **config)
        method.bank.push(torch.eye(2, 128), torch.arange(2))
        return values(method.losses(batch_of(), student, None, MIDDLE))

    before, after = terms_of(), terms_of(**change)

    assert {name for name in before if before[name] != after[name]} == moved


def test_pseudo_labels_are_the_confident_foreground_classes_of_the_students_own_proposals():
    student = StubNet(sure=True)
    method, batch = made("dual-alignment", student, pseudo_threshold=0.6), batch_of()

    terms = method.losses(batch, student, None, MIDDLE)

    feats = student.extract(batch.unlabelled.weak.image)
    logits, _, features = student.score(feats, student.propose(feats, [None] * 2, 0, 512)[0])
    probability = logits.softmax(dim=1)[:, 1:]
    rows = [i for i in range(8) if probability[i].max() >= 0.6]
    chosen = [int(probability[i].argmax()) for i in rows]
    assert len(rows) < 8
    assert set(chosen) == {0, 1}
    _, expected = method.align_proposals(
        method.embed(student, features[:0]),
        torch.zeros(0, dtype=torch.int64),
        method.embed(student, features[rows]),
        torch.tensor(chosen),
    )
    torch.testing.assert_close(terms["L'_pml"].value, expected)
    seen = method.signals()
    assert seen["pseudo_labels_per_image"] == len(rows) / 2
    assert [seen[f"pseudo_labels[{c.name}]"] for c in CLASSES] == [chosen.count(0), chosen.count(1)]
    shown = method.pseudo()
    assert torch.cat([p.labels for p in shown]).tolist() == [c + 1 for c in chosen]
    assert torch.cat([p.boxes for p in shown])[:, 0].tolist() == [i % 4 for i in rows]
    torch.testing.assert_close(torch.cat([p.scores for p in shown]), probability[rows].amax(dim=1))


def test_certainties_and_pseudo_labels_are_no_path_to_learn_by():
    student = StubNet(sure=True)
    terms = made("dual-alignment", student).losses(batch_of(), student, None, MIDDLE)

    student.zero_grad(set_to_none=True)
    sum(terms[name].value for name in METRIC_TERMS).backward()

    assert student.head.weight.grad is None  # the classifier only labels and weighs
    assert student.body.weight.grad.abs().sum() > 0
    assert all(p.grad.abs().sum() > 0 for p in student.extra["projector"].parameters())


def test_both_kinds_share_one_forward_unless_batch_norm_is_trained():
    together, apart = StubNet(), StubNet(trains_batch_norm=True)

    for student in (together, apart):
        made("dual-alignment", student).losses(batch_of(labelled=2, unlabelled=3), student, None, MIDDLE)

    assert together.seen == [(5, False)]
    assert apart.seen == [(2, False), (3, True)]


def test_unlabelled_images_leave_the_running_statistics_of_batch_norm_alone():
    student, plain = small_net(), small_net()
    batch = batch_of()

    made("dual-alignment", student).losses(batch, student, None, MIDDLE)
    made("supervised", plain).losses(batch, plain, None, MIDDLE)

    assert student.trains_batch_norm
    for (name, mine), its in zip(student.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, its), name


def test_the_order_of_the_unlabelled_images_does_not_matter():
    student = StubNet(sure=True)
    method, batch = made("dual-alignment", student), batch_of(unlabelled=3)
    weak = batch.unlabelled.weak
    turned = Batch(batch.labelled, Part(View(weak.image.flip(0), (), weak.affine.flip(0), weak.keys.flip(0))))

    before, after = (values(method.losses(b, student, None, MIDDLE)) for b in (batch, turned))

    assert after == pytest.approx(before, rel=1e-5)  # sums in another order, float32


@pytest.mark.parametrize("labels", [(), (1,), (1, 2)])
def test_a_step_runs_with_few_or_no_boxes_and_one_image_of_each_kind(labels):
    student = small_net()
    method = made("dual-alignment", student, pseudo_threshold=0.0)
    parameters = [*student.parameters(), *(p for group in method.groups() for p in group.parameters)]
    optimiser = torch.optim.SGD(parameters, lr=0.001)

    terms = method.losses(batch_of(labelled=1, unlabelled=1, labels=labels), student, None, MIDDLE)
    sum(term.weight * term.value for term in terms.values()).backward()
    optimiser.step()
    method.after_step(MIDDLE)

    assert all(term.value.isfinite() for term in terms.values())
    assert all(p.isfinite().all() for p in parameters)
    assert all(p.grad is not None for p in student.extra.parameters())  # also with nothing to align


def test_no_pseudo_label_at_all_gives_zero_terms_and_says_so():
    student = StubNet()
    method = made("dual-alignment", student, pseudo_threshold=1.0)

    terms = method.losses(batch_of(), student, None, MIDDLE)

    assert (terms["L'_pml"].value.item(), terms["L'_pmb"].value.item()) == (0.0, 0.0)
    assert method.signals()["pseudo_labels_per_image"] == 0
    assert method.signals()["images_without_pseudo_label_fraction"] == 1


@pytest.mark.parametrize("normalize", [True, False])
def test_embeddings_are_float32_also_in_mixed_precision(normalize):
    student = StubNet()
    method = made("dual-alignment", student, normalize=normalize)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = method.embed(student, torch.randn(3, 6))

    assert x.dtype == torch.float32


def test_terms_are_finite_in_mixed_precision_and_distances_are_taken_in_float32():
    student = small_net()
    method = made("dual-alignment", student, pseudo_threshold=0.0)
    for _ in range(2):  # the second step meets a filled bank
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = method.losses(batch_of(), student, None, MIDDLE)
        method.after_step(MIDDLE)

    assert all(term.value.isfinite() for term in terms.values())
    assert {terms[name].value.dtype for name in METRIC_TERMS} == {torch.float32}


def test_a_run_that_was_stopped_and_restored_takes_the_same_step():
    def step(student, method, seed):
        terms = method.losses(batch_of(seed, side=8), student, None, MIDDLE)
        student.zero_grad(set_to_none=True)
        method.zero_grad(set_to_none=True)
        sum(term.weight * term.value for term in terms.values()).backward()
        with torch.no_grad():
            for p in (*student.parameters(), *method.parameters()):
                p -= 0.1 * p.grad
        method.after_step(MIDDLE)

    student = StubNet(sure=True)
    method = made("dual-alignment", student)
    step(student, method, 1)
    saved = student.state_dict(), method.state_dict()
    fresh = StubNet()
    restored = made("dual-alignment", fresh)
    fresh.load_state_dict(saved[0])
    restored.load_state_dict(saved[1])

    for each, its in ((student, method), (fresh, restored)):
        step(each, its, 2)

    assert len(method.bank) == 4
    for mine, its in ((fresh, student), (restored, method)):
        assert all(torch.equal(v, its.state_dict()[k]) for k, v in mine.state_dict().items())


def test_attaching_a_projector_changes_nothing_of_the_student_and_the_teacher_gets_its_own():
    student, plain = small_net(), small_net()

    method = made("dual-alignment", student)
    teacher = EmaTeacher(student, EmaRule(0.9))

    assert all(torch.equal(v, student.state_dict()[k]) for k, v in plain.state_dict().items())
    mine, its = student.extra["projector"].first.weight, teacher.net.extra["projector"].first.weight
    assert torch.equal(mine, its)
    assert mine is not its
    assert not any(name.startswith("extra") for name, _ in method.named_parameters())


def test_a_batch_without_unlabelled_images_is_refused_where_they_are_needed():
    student = StubNet()

    with pytest.raises(ValueError, match="unlabelled"):
        made("dual-alignment", student).losses(Batch(batch_of().labelled), student, None, MIDDLE)
