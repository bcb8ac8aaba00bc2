"""Dice and its kin against scikit-learn, a slow loop, and by hand (METHODS 3 and 9)."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, recall_score

from cytopipe.metrics import PixelScores, class_scores, mean_scores, pixel_scores

EMPTY, HALF, FULL = np.zeros((4, 4), bool), np.arange(16).reshape(4, 4) < 8, np.ones((4, 4), bool)


@pytest.mark.parametrize("seed", range(20))
def test_scores_equal_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, found = rng.random((9, 7)) < 0.3, rng.random((9, 7)) < 0.4

    scores = pixel_scores(found, true)

    a, b = true.ravel(), found.ravel()
    assert scores.dice == pytest.approx(f1_score(a, b), abs=1e-12)
    assert scores.jaccard == pytest.approx(jaccard_score(a, b), abs=1e-12)
    assert scores.acc == pytest.approx(accuracy_score(a, b), abs=1e-12)
    assert scores.se == pytest.approx(recall_score(a, b), abs=1e-12)
    assert scores.sp == pytest.approx(recall_score(~a, ~b), abs=1e-12)


@pytest.mark.parametrize(
    ("found", "true", "expected"),
    [
        (EMPTY, EMPTY, PixelScores(dice=1.0, jaccard=1.0, acc=1.0, sp=1.0, se=1.0)),
        (HALF, EMPTY, PixelScores(dice=0.0, jaccard=0.0, acc=0.5, sp=0.5, se=math.nan)),
        (EMPTY, HALF, PixelScores(dice=0.0, jaccard=0.0, acc=0.5, sp=1.0, se=0.0)),
        (FULL, FULL, PixelScores(dice=1.0, jaccard=1.0, acc=1.0, sp=math.nan, se=1.0)),
        (HALF, HALF, PixelScores(dice=1.0, jaccard=1.0, acc=1.0, sp=1.0, se=1.0)),
    ],
    ids=["both empty", "only truth empty", "only result empty", "no negatives", "perfect"],
)
def test_degenerate_cases_have_the_values_of_the_specification(found, true, expected) -> None:
    scores = pixel_scores(found, true)

    for name in PixelScores.__slots__:
        assert getattr(scores, name) == pytest.approx(getattr(expected, name), nan_ok=True), name


def scores_of(dice: float) -> PixelScores:
    return PixelScores(dice, dice / (2 - dice), 1.0, 1.0, 1.0)


def test_the_mean_over_images_has_the_golden_values_and_exceeds_what_pooled_counts_allow() -> None:
    means = mean_scores([scores_of(1.0), scores_of(0.5)])  # METHODS 9

    assert means["dice"] == pytest.approx(0.75)
    assert means["jaccard"] == pytest.approx(0.66666667, rel=1e-6)
    assert means["jaccard"] > means["dice"] / (2 - means["dice"])


def test_an_undefined_score_is_left_out_of_the_mean() -> None:
    scores = [pixel_scores(HALF, EMPTY), pixel_scores(HALF, HALF)]

    assert mean_scores(scores)["se"] == 1.0
    assert mean_scores(scores)["dice"] == 0.5
    assert math.isnan(mean_scores([])["dice"])


@pytest.mark.parametrize("seed", range(5))
def test_each_class_of_a_map_is_scored_for_itself_and_unlabelled_pixels_count_for_nothing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true, found = rng.integers(0, 4, (8, 8)), rng.integers(0, 4, (8, 8))
    true[rng.random((8, 8)) < 0.2] = 255

    scores = class_scores(found, true, 3)

    for label, of_class in enumerate(scores, start=1):
        tp = fp = fn = tn = 0
        for a, b in zip(found.ravel(), true.ravel(), strict=True):
            if b == 255:
                continue
            tp, fp = tp + (a == b == label), fp + (a == label != b)
            fn, tn = fn + (b == label != a), tn + (a != label != b)
        assert of_class.dice == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert of_class.sp == pytest.approx(tn / (tn + fp))
        assert of_class.acc == pytest.approx((tp + tn) / (tp + tn + fp + fn))


def test_maps_of_other_sizes_and_labels_of_no_class_are_refused() -> None:
    with pytest.raises(ValueError, match="found"):
        pixel_scores(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
    with pytest.raises(ValueError, match=r"outside 0\.\.2"):
        class_scores(np.zeros((1, 2), int), np.array([[0, 3]]), 2)
