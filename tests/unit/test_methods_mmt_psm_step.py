"""A whole step of mmt-psm: who sees which copy, what is learned from what, and every switch (METHODS 5.2, 8).

The stub has DetNet's verbs; its trunk pools and its head looks at means of a RoI, so that mirrored images give mirrored
features and equal answers. Proposals and detections are given by hand.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from cytopipe.core.classes import ObjectClass
from cytopipe.methods.mmt_psm import LEVELS, MmtPsm, ensemble, kept_proposals, sensitivity, sharpened
from cytopipe.nets import Detections, DetOutput, NetSpec, build_net
from cytopipe.nets.heads import pool
from cytopipe.semi import Batch, Clock, EmaTeacher, Part, Targets, View
from cytopipe.semi.mirror import mirrored
from cytopipe.semi.object_masks import level_mask, union_of_masks
from cytopipe.train.optimiser import Optimiser
from cytopipe.train.settings import TrainSettings

CLASSES = tuple(
    ObjectClass(name=n, kind=k, suspicious=False) for n, k in (("cytoplasm", "cell"), ("nucleus", "nucleus"))
)
SPEC = NetSpec(architecture="mask-rcnn-mobilenetv2-fpn", classes=CLASSES, fpn_channels=8)
REAL = NetSpec(
    architecture="mask-rcnn-mobilenetv2-fpn",
    classes=CLASSES,
    width=0.25,
    fpn_channels=16,
    head_dim=32,
    mask_channels=8,
    rois_per_image=24,
    train_proposals=60,
)
SUPERVISED = ["rpn_cls", "roi_cls"]
LATE = Clock(1100, 8000, 10)
SIDE = 64
BOXES = [
    torch.tensor([[4.0, 8, 30, 40], [20.0, 4, 60, 28], [33.0, 33, 63, 62], [0.0, 0, 63.5, 63], [12.0, 40, 22, 51]]),
    torch.tensor([[40.0, 8, 62, 50], [2.0, 30, 28, 60], [7.0, 5, 20, 19]]),
]


class StubNet(nn.Module):
    """Levels are pooled colours; logits come from the mean of a RoI, and from its width.

    boxes, found  what `propose` and `detect` answer, an image each, in px of the view they are asked about
    calls         the verbs used, in order
    """

    feature_dim, trains_batch_norm = 8, False

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk, self.head, self.regression = nn.Conv2d(3, 8, 1), nn.Linear(8, 3), nn.Linear(8, 12)
        with torch.no_grad():
            self.trunk.bias.zero_()
            self.head.weight.mul_(8)
        self.extra = nn.ModuleDict()
        self.calls: list[str] = []
        self.boxes = BOXES
        self.found = [(b[:2], torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(5))) for b in BOXES]
        self.scores = torch.tensor([0.9, 0.5])

    def extract(self, image):
        self.calls.append("extract")
        return {level: nn.functional.avg_pool2d(self.trunk(image), 2**level) for level in LEVELS}

    def propose(self, feats, sizes, pre_nms, post_nms):
        self.calls.append("propose")
        return [b[:post_nms] for b in self.boxes], [torch.ones(len(b[:post_nms])) for b in self.boxes]

    def score(self, feats, boxes, level=None):
        self.calls.append("score")
        h = pool(feats, boxes, 7, 112.0).mean(dim=(2, 3))
        return self.head(h), self.regression(h), h

    def detect(self, feats, sizes, *, score_threshold):
        self.calls.append("detect")
        keep = self.scores > score_threshold
        labels, spread = torch.ones(2, dtype=torch.int64)[keep], torch.zeros(2, 2)[keep]
        return [Detections(b[keep], self.scores[keep], labels, spread, m[keep]) for b, m in self.found]

    def losses(self, feats, targets, sizes, keys, **_):
        terms = {name: (k + 1) * feats[2].square().mean() for k, name in enumerate(SUPERVISED)}
        return DetOutput(terms, torch.zeros(0), torch.zeros(0), torch.zeros(0))


def view_of(seed: int, images: int = 2, side: int = SIDE, labels: tuple[int, ...] | None = None) -> View:
    """The same scene for every seed, in noise of its own: colour copies of one crop."""
    scene = torch.randn(images, 3, 8, 8, generator=torch.Generator().manual_seed(7))
    pixels = torch.randn(images, 3, side, side, generator=torch.Generator().manual_seed(seed))
    pixels = 0.3 * pixels + nn.functional.interpolate(2 * scene, side)
    targets: tuple[Targets, ...] = ()
    if labels is not None:
        boxes = torch.tensor([[4.0 + 8 * k, 6.0, 24.0 + 8 * k, 30.0] for k in range(len(labels))]).reshape(-1, 4)
        masks = torch.zeros(len(labels), side, side, dtype=torch.uint8)
        masks[:, 8:28, 10:30] = 1
        targets = (Targets(boxes, torch.tensor(labels, dtype=torch.int64), masks),) * images
    affine = torch.eye(2, 3, dtype=torch.float64).expand(images, 2, 3)
    return View(pixels, targets, affine, torch.arange(images) + seed)


def flipped_where(view: View, where: list[bool]) -> View:
    """The view with some of its images mirrored, as a preset with `own_hflip_p` gives it."""
    twin, chosen = mirrored(view), torch.tensor(where)
    image = torch.where(chosen[:, None, None, None], twin.image, view.image)
    return replace(view, image=image, affine=torch.where(chosen[:, None, None], twin.affine, view.affine))


def batch_of(*, images: int = 2, student_copies: int = 1, labels: tuple[int, ...] = (1, 2), side: int = SIDE) -> Batch:
    copies = {"weak": view_of(100, images, side), "teacher2": view_of(101, images, side)}
    for k in range(1, student_copies + 1):
        copies[f"student{k}"] = flipped_where(view_of(110 + k, images, side), [k % 2 == 1, False][:images])
    return Batch(Part(view_of(1, images, side, labels)), Part(copies))


def made(student: nn.Module, spec: NetSpec = SPEC, **config) -> MmtPsm:
    method = MmtPsm(spec, MmtPsm.Config(**config))
    method.attach(student)
    return method


def pair(**config) -> tuple[MmtPsm, StubNet, StubNet]:
    """A method, its student and a teacher with other weights."""
    student, teacher = StubNet(0), StubNet(1)
    method = made(student, **config)
    MmtPsm(SPEC, method.config, seed=9).attach(teacher)
    return method, student, teacher


def values(terms) -> dict[str, float]:
    return {name: term.value.item() for name, term in terms.items()}


class Untouchable(nn.Module):
    """A teacher that must not be asked anything: every verb is missing."""


# Burn-in and the sum


@pytest.mark.parametrize("t", [0, 500, 999])
def test_in_burn_in_the_teacher_is_not_asked_and_no_unlabelled_image_read(t):
    method, student, _ = pair()

    terms = method.losses(Batch(batch_of().labelled), student, Untouchable(), Clock(t, 8000, 10))

    assert list(terms) == SUPERVISED
    assert {term.weight for term in terms.values()} == {1.0}
    assert student.calls == ["extract"]
    assert method.signals() == {}
    assert method.pseudo() is None


def test_after_burn_in_the_two_terms_carry_lambda_and_gamma_lambda():
    method, student, teacher = pair(unsup_weight=2.0)

    terms = method.losses(batch_of(), student, teacher, LATE)

    assert list(terms) == [*SUPERVISED, "L_psm", "L_mgd"]
    assert [terms[name].weight for name in SUPERVISED] == [1.0, 1.0]
    assert terms["L_psm"].weight == pytest.approx(2 * 0.16529889, rel=1e-6)
    assert terms["L_mgd"].weight == pytest.approx(5 * 2 * 0.16529889, rel=1e-6)
    assert all(term.value > 0 for term in terms.values())


def test_the_teacher_passes_over_each_colour_copy_and_its_mirror_twin_and_proposes_on_the_first_alone():
    method, student, teacher = pair()

    method.losses(batch_of(), student, teacher, LATE)

    assert teacher.calls == ["extract", "propose", "detect", "score", *["extract", "score"] * 3]
    assert student.calls == ["extract", "score"]


def test_each_colour_copy_of_the_teacher_is_followed_by_its_mirror_twin():
    method, views = pair()[0], batch_of().unlabelled.views

    asked = method.teacher_views(views)

    expected = [image for name in ("weak", "teacher2") for image in (views[name].image, views[name].image.flip(-1))]
    assert len(asked) == 4
    assert all(torch.equal(view.image, image) for view, image in zip(asked, expected, strict=True))


def test_the_views_are_augmentor_a_and_only_the_students_copies_flip_by_chance():
    method = MmtPsm(SPEC, MmtPsm.Config(teacher_copies=3, student_copies=2))

    plan = method.views()

    assert list(plan.unlabelled) == ["weak", "teacher2", "teacher3", "student1", "student2"]
    for name, preset in plan.unlabelled.items():
        assert (preset.brightness, preset.contrast, preset.hue, preset.saturation) == (0.15, 0.15, 0.05, 0.0)
        assert preset.own_hflip_p == (0.5 if name.startswith("student") else 0.0)
        (erasing,) = preset.erasings
        assert (erasing.p, erasing.area_fraction, erasing.aspect, erasing.attempts) == (
            0.9,
            (0.001, 0.004),
            (0.2, 5.0),
            (0, 10),
        )


# The whole of Eqs. 1 to 4, written out with explicit flips


def by_hand(method: MmtPsm, student: StubNet, teacher: StubNet, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """L_psm and L_mgd of one student copy whose first image is mirrored, without any mapping of the method's."""
    views, config = batch.unlabelled.views, method.config
    with torch.no_grad():
        logits, adapted = [], []
        for name in ("weak", "teacher2"):
            for mirror in (False, True):
                image = views[name].image.flip(-1) if mirror else views[name].image
                boxes = [flip_boxes(b) if mirror else b for b in BOXES]
                feats = teacher.extract(image)
                logits.append(teacher.score(feats, boxes)[0])
                z = teacher.extra["adapters"](feats)
                adapted.append({level: m.flip(-1) if mirror else m for level, m in z.items()})
        mean = ensemble(torch.stack(logits), config.ensemble)
        target = sharpened(mean, config.temperature, config.sharpen)
        sensitive = sensitivity(torch.stack(logits).softmax(dim=2), mean, config.sensitivity)
        hard = mean.argmax(dim=1)
        unions = torch.stack([union_of_masks(m, b, (SIDE, SIDE)) for b, m in teacher.found]).float()[:, None]
    feats = student.extract(views["student1"].image)
    back = {level: torch.stack([f[0].flip(-1), f[1]]) for level, f in feats.items()}  # image 0 was mirrored
    answers = student.score(feats, [flip_boxes(BOXES[0]), BOXES[1]])[0]
    psm, start = torch.zeros(()), 0
    for boxes in BOXES:
        part = slice(start, start + len(boxes))
        image = []
        for j in kept_proposals(hard[part], sensitive[part], config.bg_ratio).tolist():
            w = config.background_weight if hard[part][j] == 0 else 1.0
            image.append(-w * (target[part][j] * answers[part][j].log_softmax(dim=0)).sum())
        psm = psm + (sum(image) / len(image) if image else 0.0)
        start += len(boxes)
    mgd = torch.zeros(())
    z_s = student.extra["adapters"](back)
    for z_t in adapted:
        for level in LEVELS:
            m = level_mask(unions, z_s[level].shape[-2:])
            mgd = mgd + (m[:, None] * (z_t[level] - z_s[level]).square()).sum() / (m.sum() + 1e-7)
    return config.psm_scale * psm / len(BOXES), mgd / (4 * len(adapted) * len(LEVELS))


def flip_boxes(boxes: torch.Tensor) -> torch.Tensor:
    return torch.stack([SIDE - boxes[:, 2], boxes[:, 1], SIDE - boxes[:, 0], boxes[:, 3]], dim=1)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"ensemble": "logits", "sensitivity": "std", "psm_scale": 1 / 3, "bg_ratio": 0.5},
        {"sharpen": "printed", "temperature": 0.7, "background_weight": 3.0},
    ],
    ids=["paper", "code", "printed"],
)
def test_a_step_computes_what_the_equations_say(config):
    method, student, teacher = pair(**config)
    batch = batch_of()

    terms = method.losses(batch, student, teacher, LATE)

    psm, mgd = by_hand(method, student, teacher, batch)
    torch.testing.assert_close(terms["L_psm"].value, psm, rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["L_mgd"].value, mgd, rtol=1e-5, atol=0)


def test_several_student_copies_count_their_mean():
    method, student, teacher = pair(student_copies=2)
    batch = batch_of(student_copies=2)
    views = batch.unlabelled.views

    both = values(method.losses(batch, student, teacher, LATE))

    single = made(student)
    student.extra["adapters"] = pair()[1].extra["adapters"]
    ones = []
    for name in ("student1", "student2"):
        copies = {"weak": views["weak"], "teacher2": views["teacher2"], "student1": views[name]}
        ones.append(values(single.losses(Batch(batch.labelled, Part(copies)), student, teacher, LATE)))
    for name in ("L_psm", "L_mgd"):
        assert both[name] == pytest.approx((ones[0][name] + ones[1][name]) / 2, rel=1e-5)
    assert student.calls.count("extract") == 3  # labelled images and all copies share one forward


# Laws


def test_flipping_the_whole_batch_with_its_proposals_and_masks_leaves_both_losses_unchanged():
    method, student, teacher = pair()
    batch = batch_of()
    turned = Batch(batch.labelled, Part({name: mirrored(view) for name, view in batch.unlabelled.views.items()}))

    before = values(method.losses(batch, student, teacher, LATE))
    teacher.boxes = [flip_boxes(b) for b in BOXES]
    teacher.found = [(flip_boxes(b), m.flip(-1)) for b, m in teacher.found]
    after = values(method.losses(turned, student, teacher, LATE))

    assert after == pytest.approx(before, rel=1e-5)


def test_equal_networks_that_see_equal_views_have_nothing_to_distil():
    student = StubNet()
    method = made(student)
    batch = batch_of()
    one = batch.unlabelled.weak
    same = Batch(batch.labelled, Part({"weak": one, "teacher2": one, "student1": mirrored(one)}))

    terms = method.losses(same, student, copy.deepcopy(student), LATE)

    assert terms["L_mgd"].value.item() < 1e-10
    assert terms["L_psm"].value > 0


def test_no_gradient_reaches_the_teacher_the_pseudo_labels_or_the_masks():
    method, student, teacher = pair()
    batch = batch_of()

    terms = method.losses(batch, student, teacher, LATE)  # the teacher's parameters do ask for gradients here
    sum(term.value for term in terms.values()).backward()
    told = method.ask(teacher, method.teacher_views(batch.unlabelled.views))

    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    for tensor in (*told.logits, *told.proposals, told.union, *(z for maps in told.adapted for z in maps.values())):
        assert not tensor.requires_grad


def test_the_classifier_learns_from_l_psm_and_the_adapters_from_l_mgd_alone():
    method, student, teacher = pair()
    teacher.found = [(torch.tensor([[0.0, 0, SIDE, SIDE]] * 2), torch.ones(2, 28, 28))] * 2  # M has cells of each level
    terms = method.losses(batch_of(), student, teacher, LATE)

    def moved(name: str) -> set[str]:
        student.zero_grad(set_to_none=True)
        terms[name].value.backward(retain_graph=True)
        return {p for p, v in student.named_parameters() if v.grad is not None and v.grad.abs().sum() > 0}

    trunk, adapters = (
        {"trunk.weight", "trunk.bias"},
        {n for n, _ in student.named_parameters() if n.startswith("extra")},
    )
    assert moved("L_psm") == trunk | {"head.weight", "head.bias"}
    assert moved("L_mgd") == trunk | adapters
    assert len(adapters) == 2 * len(LEVELS)


def test_with_unsup_weight_0_the_step_is_that_of_supervised():
    method, student, _ = pair(unsup_weight=0.0)
    plain, batch = StubNet(0), batch_of()

    terms = method.losses(batch, student, Untouchable(), LATE)

    view = batch.labelled.weak
    expected = plain.losses(plain.extract(view.image), view.targets, view.sizes, view.keys).terms
    assert values(terms) == {name: value.item() for name, value in expected.items()}
    assert {term.weight for term in terms.values()} == {1.0}


def test_the_order_of_the_unlabelled_images_does_not_matter():
    method, student, teacher = pair()
    batch = batch_of()
    views = {n: replace(v, image=v.image.flip(0), affine=v.affine.flip(0)) for n, v in batch.unlabelled.views.items()}

    before = values(method.losses(batch, student, teacher, LATE))
    teacher.boxes, teacher.found = BOXES[::-1], teacher.found[::-1]
    after = values(method.losses(Batch(batch.labelled, Part(views)), student, teacher, LATE))

    assert after == pytest.approx(before, rel=1e-5)


# Switches


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        ({"ensemble": "logits"}, {"L_psm"}),
        ({"sharpen": "printed"}, {"L_psm"}),
        ({"temperature": 0.9}, {"L_psm"}),
        ({"bg_ratio": 0.0}, {"L_psm"}),
        ({"background_weight": 4.0}, {"L_psm"}),
        ({"psm_scale": 0.5}, {"L_psm"}),
        ({"proposals_per_image": 2}, {"L_psm"}),
        ({"mask_score": 0.7}, {"L_mgd"}),
        ({"teacher_copies": 1}, {"L_psm", "L_mgd"}),
        ({"adapter_weight_decay": 0.1}, set()),
        ({"gamma": 2.0}, set()),
        ({"psm_weight": 2.0}, set()),
    ],
    ids=lambda value: "-".join(sorted(map(str, value))),
)
def test_each_setting_changes_the_terms_it_names_and_no_other(change, moved):
    def terms_of(**config):
        method, student, teacher = pair(**config)
        return values(method.losses(batch_of(), student, teacher, LATE))

    before, after = terms_of(), terms_of(**change)

    assert {name for name in before if before[name] != after[name]} == moved


def test_without_twins_the_teacher_passes_over_the_colour_copies_alone():
    method, student, teacher = pair(flipped_twins=False)
    full, student_full, teacher_full = pair()

    terms = values(method.losses(batch_of(), student, teacher, LATE))

    assert teacher.calls.count("extract") == 2
    # this network answers a mirrored image alike, and its twins tell it nothing
    assert terms == pytest.approx(values(full.losses(batch_of(), student_full, teacher_full, LATE)), rel=1e-5)


def test_the_form_of_the_sensitivity_changes_which_background_proposals_are_kept():
    p = torch.tensor([[[0.9, 0.1, 0.0], [0.7, 0.2, 0.1]], [[0.5, 0.5, 0.0], [0.7, 0.2, 0.1]]])
    p = torch.stack([p[0], p[1]])
    one_class = torch.tensor([[[0.6, 0.4, 0.0]], [[0.6, 0.4, 0.0]], [[0.9, 0.1, 0.0]]])

    assert sensitivity(p, p.mean(dim=0), "std")[0] > sensitivity(p, p.mean(dim=0), "var")[0]
    assert sensitivity(one_class, one_class.mean(dim=0), "var").item() == pytest.approx(0.04, rel=1e-5)
    assert sensitivity(one_class, one_class.mean(dim=0), "std").item() == pytest.approx(0.2828427, rel=1e-5)


def test_gamma_0_takes_away_l_mgd_the_adapters_and_the_detections():
    method, student, teacher = pair(gamma=0.0)
    full, student_full, teacher_full = pair()

    terms = method.losses(batch_of(), student, teacher, LATE)

    expected = values(full.losses(batch_of(), student_full, teacher_full, LATE))
    assert values(terms) == {name: value for name, value in expected.items() if name != "L_mgd"}
    assert len(student.extra) == 0
    assert "detect" not in teacher.calls
    assert method.groups() == []


def test_psm_weight_0_takes_away_l_psm_and_the_proposals():
    method, student, teacher = pair(psm_weight=0.0)
    full, student_full, teacher_full = pair()

    terms = method.losses(batch_of(), student, teacher, LATE)

    expected = values(full.losses(batch_of(), student_full, teacher_full, LATE))
    assert values(terms) == {name: value for name, value in expected.items() if name != "L_psm"}
    assert not {"propose", "score"} & {*teacher.calls, *student.calls}


def test_without_either_term_the_teacher_is_not_asked():
    method, student, _ = pair(gamma=0.0, psm_weight=0.0)

    assert list(method.losses(batch_of(), student, Untouchable(), LATE)) == SUPERVISED


# Edges


def test_without_any_proposal_or_object_both_terms_are_attached_zeros():
    method, student, teacher = pair()
    teacher.boxes = [torch.zeros(0, 4)] * 2
    teacher.found = [(torch.zeros(2, 4), torch.zeros(2, 28, 28))] * 2

    terms = method.losses(batch_of(), student, teacher, LATE)
    student.zero_grad(set_to_none=True)
    (terms["L_psm"].value + terms["L_mgd"].value).backward()

    assert (terms["L_psm"].value.item(), terms["L_mgd"].value.item()) == (0.0, 0.0)
    assert all(p.grad is None or torch.equal(p.grad, torch.zeros_like(p)) for p in student.parameters())
    assert all(p.grad is not None for p in student.extra.parameters())
    assert method.signals()["images_without_pseudo_label_fraction"] == 1
    assert method.signals()["adapter_norm"] == 0


def test_an_image_without_foreground_counts_as_0_in_the_mean_over_images():
    method, student, teacher = pair()
    full = method.losses(batch_of(), student, teacher, LATE)["L_psm"].value.item()
    kept_before = method.pseudo()

    teacher.boxes = [BOXES[0], torch.zeros(0, 4)]
    half = method.losses(batch_of(), student, teacher, LATE)["L_psm"].value.item()
    teacher.boxes = [torch.zeros(0, 4), BOXES[1]]
    other = method.losses(batch_of(), student, teacher, LATE)["L_psm"].value.item()

    assert all(len(p.labels) for p in kept_before)
    assert half + other == pytest.approx(full, rel=1e-5)


def test_a_detection_at_the_least_score_joins_the_mask():
    method, student, teacher = pair(mask_score=0.5)
    batch = batch_of()

    with_both = method.ask(teacher, method.teacher_views(batch.unlabelled.views)).union
    teacher.scores = torch.tensor([0.9, 0.4999])
    with_one = method.ask(teacher, method.teacher_views(batch.unlabelled.views)).union

    assert with_both.sum() > with_one.sum() > 0
    assert student.calls == []


def test_a_batch_without_unlabelled_images_or_a_run_without_a_teacher_is_refused():
    method, student, teacher = pair()

    for batch, its in ((Batch(batch_of().labelled), teacher), (batch_of(), None)):
        with pytest.raises(ValueError, match="unlabelled images and a teacher"):
            method.losses(batch, student, its, LATE)


# What is logged and shown


def test_the_signals_are_those_of_the_collapse_detector():
    method, student, teacher = pair()
    batch = batch_of()
    method.losses(batch, student, teacher, LATE)

    seen, shown = method.signals(), method.pseudo()

    told = method.ask(teacher, method.teacher_views(batch.unlabelled.views))
    mean = ensemble(torch.stack(told.logits), "probs")
    hard = mean.argmax(dim=1)
    assert {0} < set(hard.tolist())
    assert seen["pseudo_labels_per_image"] == (hard > 0).sum() / 2
    assert [seen[f"pseudo_labels[{c.name}]"] for c in CLASSES] == [(hard == k).sum() for k in (1, 2)]
    assert seen["max_confidence"] == pytest.approx(mean.amax(dim=1).mean().item())
    assert 0 <= seen["disagreement"] <= 1
    assert seen["lambda"] == pytest.approx(method.weight(LATE))
    assert torch.cat([p.labels for p in shown]).tolist() == hard[hard > 0].tolist()
    assert torch.equal(torch.cat([p.boxes for p in shown]), torch.cat(BOXES)[hard > 0])
    torch.testing.assert_close(torch.cat([p.scores for p in shown]), mean.amax(dim=1)[hard > 0])


def test_the_adapter_norm_is_the_mean_length_of_the_students_features_inside_the_mask():
    method, student, teacher = pair()
    batch = batch_of()
    method.losses(batch, student, teacher, LATE)

    view = batch.unlabelled.views["student1"]
    z_s = student.extra["adapters"](student.extract(view.image))
    union = method.ask(teacher, method.teacher_views(batch.unlabelled.views)).union.float()
    union = torch.stack([union[0].flip(-1), union[1]])[:, None]
    norms = []
    for z in z_s.values():
        m = level_mask(union, z.shape[-2:])
        norms += [z[b, :, i, j].norm().item() for b, i, j in m.nonzero().tolist()]
    assert method.signals()["adapter_norm"] == pytest.approx(sum(norms) / len(norms), rel=1e-5)


def test_the_adapters_have_a_group_of_their_own_without_weight_decay():
    student = build_net(REAL)
    method = made(student, REAL)
    settings = TrainSettings(lr=0.01, momentum=0.8, weight_decay=1e-4)

    main, adapters = Optimiser(student, method, settings).torch.param_groups

    mine = set(map(id, student.extra["adapters"].parameters()))
    assert set(map(id, adapters["params"])) == mine
    assert not mine & set(map(id, main["params"]))
    assert (adapters["lr"], adapters["momentum"], adapters["weight_decay"]) == (0.01, 0.8, 0.0)
    assert main["weight_decay"] == 1e-4
    assert list(method.parameters()) == []  # the adapters are the student's, and stand in its state alone


def test_the_adapters_halve_the_channels_and_shift_no_other_weight():
    torch.manual_seed(0)
    student = build_net(REAL)
    torch.manual_seed(0)
    plain = build_net(REAL)

    made(student, REAL)

    assert all(torch.equal(v, student.state_dict()[k]) for k, v in plain.state_dict().items())
    assert {tuple(p.shape) for p in student.extra.parameters()} == {(8, 16, 1, 1), (8,)}
    assert list(student.extra["adapters"].layers) == ["2", "3", "4", "5", "6"]


# The light network


@pytest.mark.parametrize(("images", "labels", "amp"), [(1, (), True), (2, (1, 2), False)])
def test_steps_of_the_light_network_are_finite_and_the_teacher_follows(images, labels, amp):
    torch.manual_seed(0)
    student = build_net(REAL).train()
    method = made(student, REAL, burn_in=1, ramp_steps=2, proposals_per_image=16, mask_score=0.0)
    teacher = EmaTeacher(student, method.teacher())
    optimiser = Optimiser(student, method, TrainSettings(lr=1e-3))
    batch = batch_of(images=images, labels=labels)

    for t in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=amp):
            terms = method.losses(batch, student, teacher.net, Clock(t, 1000, 10))
        optimiser.torch.zero_grad()
        sum(term.weight * term.value for term in terms.values()).backward()
        optimiser.torch.step()
        teacher.follow(student)
        assert all(term.value.isfinite() for term in terms.values())

    assert {"L_psm", "L_mgd"} < terms.keys()
    assert {terms[name].value.dtype for name in ("L_psm", "L_mgd")} == {torch.float32}
    assert all(p.isfinite().all() for p in student.parameters())
    assert all(p.grad is not None for p in student.extra.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_unlabelled_images_leave_the_running_statistics_of_batch_norm_alone():
    torch.manual_seed(0)
    student = build_net(REAL).train()
    method = made(student, REAL, proposals_per_image=8)
    teacher, plain = copy.deepcopy(student).eval(), copy.deepcopy(student)
    batch = batch_of()

    method.losses(batch, student, teacher, LATE)
    plain.losses(
        plain.extract(batch.labelled.weak.image), batch.labelled.weak.targets, batch.labelled.weak.sizes, [1, 2]
    )

    for (name, mine), its in zip(student.named_buffers(), plain.buffers(), strict=True):
        assert torch.equal(mine, its), name
