"""The collapse detector: every way to go wrong is provoked, and each sentence says what happened and what to change."""

from __future__ import annotations

import math

import pytest
import torch

from cytopipe.semi import Targets, View
from cytopipe.semi.signals import labelled_signals, pixel_signals, pseudo_label_signals, spread
from cytopipe.train.collapse import CollapseDetector, CollapseSettings

ITERATIONS, EVERY, WINDOW = 4000, 50, 500
CONFIG = {"pseudo_threshold": 0.7, "unsup_weight": 1.0, "alpha": 0.999, "normalize": True}
HEALTHY = {
    "pseudo_labels_per_image": 10.0,
    "images_without_pseudo_label_fraction": 0.1,
    "max_confidence": 0.8,
    "pseudo_labels[LSIL]": 12.0,
    "pseudo_labels[HSIL]": 8.0,
    "labelled[LSIL]": 6.0,
    "labelled[HSIL]": 4.0,
    "embedding_std": 0.08,
}


def detector(**changes) -> CollapseDetector:
    return CollapseDetector(CollapseSettings(ITERATIONS, "map_50", EVERY, config=CONFIG, **changes))


def fed(watch: CollapseDetector, signals: dict[str, float], start: int, stop: int) -> list[tuple[int, str]]:
    """The sentences, with their iterations, that the same signals lead to over start..stop-1."""
    return [(t, line) for t in range(start, stop) for line in watch.look(t, {"roi_cls": 1.0}, signals)]


def test_a_healthy_run_is_not_commented() -> None:
    watch = detector()

    assert fed(watch, HEALTHY, 0, 2000) == []
    assert watch.look(2000, {}, {}, {"student": {"map_50": 0.5}, "teacher": {"map_50": 0.48}}) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_named_at_once_with_what_to_change(value: float) -> None:
    (said,) = detector().look(7, {"roi_cls": 1.0, "L_pml": value}, {})

    assert f"not finite at iteration 7 (L_pml is {value})" in said
    assert "train.lr" in said
    assert "train.grad_clip_norm" in said
    assert "roi_cls" not in said


def test_vanishing_pseudo_labels_are_said_within_a_window_and_once() -> None:
    watch = detector()
    assert fed(watch, HEALTHY, 0, 1000) == []

    said = fed(watch, HEALTHY | {"pseudo_labels_per_image": 0.5}, 1000, 2500)

    assert len(said) == 1
    t, line = said[0]
    assert 1000 + 0.9 * WINDOW <= t <= 1000 + WINDOW + EVERY
    assert "pseudo-labels vanish" in line
    assert "against 10 before" in line
    assert "lower train.config.pseudo_threshold (now 0.7)" in line


def test_a_count_that_falls_to_a_tenth_and_not_below_is_no_warning() -> None:
    watch = detector()
    fed(watch, HEALTHY, 0, 1000)

    assert fed(watch, HEALTHY | {"pseudo_labels_per_image": 1.05}, 1000, 2500) == []


def test_exploding_pseudo_labels_are_said_with_what_to_change() -> None:
    watch = detector()
    fed(watch, HEALTHY, 0, 1000)

    (said,) = fed(watch, HEALTHY | {"pseudo_labels_per_image": 150.0}, 1000, 2000)

    assert "pseudo-labels explode" in said[1]
    assert "raise train.config.pseudo_threshold (now 0.7)" in said[1]
    assert "lower train.config.unsup_weight (now 1)" in said[1]


def test_the_first_pseudo_labels_of_a_young_network_are_no_explosion() -> None:
    watch = detector(images=4)
    fed(watch, HEALTHY | {"pseudo_labels_per_image": 0.01, "labelled[LSIL]": 40.0}, 0, 600)

    # a hundred labelled objects in four images: 25 a image is what there is to find
    assert fed(watch, HEALTHY | {"pseudo_labels_per_image": 20.0, "labelled[LSIL]": 96.0}, 600, 1500) == []


def test_images_without_pseudo_labels_are_said_though_there_never_were_any() -> None:
    nothing = {"pseudo_labels_per_image": 0.0, "images_without_pseudo_label_fraction": 1.0}

    (said,) = fed(detector(), HEALTHY | nothing, 0, 1500)

    assert "100% of the unlabelled images had no pseudo-label" in said[1]
    assert "lower train.config.pseudo_threshold" in said[1]
    assert "burn-in" in said[1]


def test_one_class_that_eats_all_is_named_with_its_share_of_what_is_labelled() -> None:
    eaten = HEALTHY | {"pseudo_labels[LSIL]": 0.5, "pseudo_labels[HSIL]": 19.5}

    (said,) = fed(detector(), eaten, 0, 1500)

    assert "98% of the pseudo-labels" in said[1]
    assert "are 'HSIL', which is 40% of what is labelled" in said[1]
    assert "KL divergence" in said[1]
    assert "raise train.config.pseudo_threshold" in said[1]


def test_a_class_that_is_nearly_all_of_what_is_labelled_may_be_nearly_all_pseudo_labels() -> None:
    usual = HEALTHY | {"pseudo_labels[LSIL]": 19.5, "pseudo_labels[HSIL]": 0.5, "labelled[LSIL]": 18.0}

    assert fed(detector(), usual, 0, 1500) == []


def test_a_single_class_cannot_eat_others() -> None:
    one = {k: v for k, v in HEALTHY.items() if "HSIL" not in k and "labelled" not in k}

    assert fed(detector(), one, 0, 1500) == []


def test_embeddings_that_hardly_differ_are_said() -> None:
    (said,) = fed(detector(), HEALTHY | {"embedding_std": 5e-4}, 0, 1500)

    assert "the embeddings hardly differ: standard deviation 5.0e-04" in said[1]
    assert "lower train.config.unsup_weight" in said[1]


def values(student: float, teacher: float) -> dict[str, dict[str, float]]:
    return {"student": {"map_50": student}, "teacher": {"map_50": teacher}}


def test_a_teacher_far_below_the_student_is_said_at_the_second_validation() -> None:
    watch = detector(start=1000)

    assert watch.look(1000, {}, {}, values(0.5, 0.1)) == []  # it has only begun to follow
    assert watch.look(1500, {}, {}, values(0.5, 0.1)) == []
    (said,) = watch.look(2000, {}, {}, values(0.5, 0.2))

    assert "the teacher is far below the student: map_50 0.200 against 0.500 at iteration 2000" in said
    assert "lower train.config.alpha (now 0.999)" in said
    assert watch.look(2500, {}, {}, values(0.5, 0.2)) == []  # said already
    assert watch.look(3000, {}, {}, values(0.5, 0.49)) == []
    assert watch.look(3500, {}, {}, values(0.5, 0.1)) == []
    assert len(watch.look(4000, {}, {}, values(0.5, 0.1))) == 1  # anew


@pytest.mark.parametrize(("student", "teacher"), [(0.5, 0.41), (0.06, 0.02), (0.3, 0.4)])
def test_a_teacher_that_is_near_or_above_is_not_commented(student: float, teacher: float) -> None:
    watch = detector()

    assert [watch.look(t, {}, {}, values(student, teacher)) for t in (500, 1000, 1500)] == [[], [], []]


def test_a_short_run_is_judged_over_a_fifth_of_it() -> None:
    assert CollapseSettings(1000, "map_50").window == 200
    assert CollapseSettings(100_000, "map_50").window == 500
    assert CollapseSettings(100, "map_50").window == 100  # two judgements at least
    watch = CollapseDetector(CollapseSettings(1000, "map_50"))
    fed(watch, HEALTHY, 0, 400)

    assert len(fed(watch, HEALTHY | {"pseudo_labels_per_image": 0.1}, 400, 1000)) == 1


def test_signals_that_are_logged_rarely_are_judged_all_the_same() -> None:
    watch = detector()
    for t in range(0, 1000, EVERY):
        assert watch.look(t, {}, HEALTHY) == []

    said = [line for t in range(1000, 2000, EVERY) for line in watch.look(t, {}, HEALTHY | {"embedding_std": 0.0})]

    assert len(said) == 1


def test_a_method_without_pseudo_labels_is_left_alone() -> None:
    assert fed(detector(), {}, 0, 1500) == []
    assert fed(detector(), {"labelled[LSIL]": 3.0}, 0, 1500) == []


@pytest.mark.parametrize("killed_at", [900, 1250, 1500, 1999])
def test_a_resumed_run_says_what_an_unbroken_one_says(killed_at: int) -> None:
    rows = [{"t": t, "losses": {"a": 1.0}, "signals": HEALTHY} for t in range(1000)]
    rows += [{"t": t, "losses": {"a": 1.0}, "signals": HEALTHY | {"embedding_std": 0.0}} for t in range(1000, 1200)]
    rows += [
        {"t": t, "losses": {"a": 1.0}, "signals": HEALTHY | {"pseudo_labels_per_image": 0.1}} for t in range(1200, 2400)
    ]
    unbroken, resumed = detector(), detector()
    said = [(row["t"], line) for row in rows for line in unbroken.look(row["t"], row["losses"], row["signals"])]

    resumed.replay(rows[:killed_at])
    after = [
        (row["t"], line) for row in rows[killed_at:] for line in resumed.look(row["t"], row["losses"], row["signals"])
    ]

    assert after == [(t, line) for t, line in said if t >= killed_at]
    assert said


def test_the_signals_of_pseudo_boxes_count_what_was_kept_of_each_image_and_class() -> None:
    pseudo, confidence = torch.tensor([0, 1, 1, 0, 1]), torch.tensor([0.9, 0.8, 0.3, 0.7, 0.95])
    kept = confidence >= 0.75

    seen = pseudo_label_signals(pseudo, confidence, kept, [3, 1, 1], ["LSIL", "HSIL"])

    assert {name: float(value) for name, value in seen.items()} == pytest.approx(
        {
            "pseudo_labels_per_image": 1.0,
            "images_without_pseudo_label_fraction": 1 / 3,
            "max_confidence": 0.73,
            "pseudo_labels[LSIL]": 1.0,
            "pseudo_labels[HSIL]": 2.0,
        }
    )


def test_the_signals_of_pseudo_pixels_count_background_too() -> None:
    pseudo = torch.tensor([[[0, 1], [2, 2]], [[0, 0], [0, 1]]])
    confidence = torch.tensor([[[0.9, 0.9], [0.9, 0.2]], [[0.1, 0.1], [0.1, 0.1]]])

    seen = pixel_signals(pseudo, confidence, confidence >= 0.5, ["LSIL", "HSIL"])

    assert {name: float(value) for name, value in seen.items()} == pytest.approx(
        {
            "pseudo_labels_per_image": 1.5,
            "images_without_pseudo_label_fraction": 0.5,
            "max_confidence": 3.3 / 8,
            "pseudo_labels[background]": 1.0,
            "pseudo_labels[LSIL]": 1.0,
            "pseudo_labels[HSIL]": 1.0,
        }
    )


def test_labelled_objects_and_labelled_pixels_are_counted_by_class() -> None:
    image, affine, keys = torch.zeros(2, 3, 2, 2), torch.eye(2, 3, dtype=torch.float64).expand(2, 2, 3), torch.arange(2)
    targets = (Targets(torch.zeros(2, 4), torch.tensor([1, 2])), Targets(torch.zeros(1, 4), torch.tensor([2])))
    labels = torch.tensor([[[0, 1], [255, 255]], [[2, 2], [2, 255]]])

    of_objects = labelled_signals(View(image, targets, affine, keys), ["LSIL", "HSIL"])
    of_pixels = labelled_signals(View(image, (), affine, keys, labels=labels), ["LSIL", "HSIL"])

    assert {name: int(value) for name, value in of_objects.items()} == {"labelled[LSIL]": 1, "labelled[HSIL]": 2}
    assert {name: int(value) for name, value in of_pixels.items()} == {
        "labelled[background]": 1,
        "labelled[LSIL]": 1,
        "labelled[HSIL]": 3,
    }


def test_embeddings_that_are_all_the_same_have_no_spread() -> None:
    torch.manual_seed(0)

    assert float(spread(torch.ones(5, 8))) == 0.0
    assert float(spread(torch.randn(4000, 8))) == pytest.approx(1.0, abs=0.05)  # of the normal distribution
    assert float(spread(torch.zeros(1, 8))) == 0.0
