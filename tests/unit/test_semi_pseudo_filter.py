"""PseudoFilter (METHODS 1.9): what becomes a pseudo-label, against a slow loop, rule by rule."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch

from cytopipe.semi.pixels import clipped_noise, pixel_pseudo_labels
from cytopipe.semi.pseudo_filter import PseudoFilter


class Found(NamedTuple):
    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor


def found(*rows: tuple[float, float, float, float, float, int]) -> Found:
    """Rows of x0 y0 x1 y1 score label."""
    table = torch.tensor([row[:5] for row in rows]).reshape(-1, 5)
    return Found(table[:, :4], table[:, 4], torch.tensor([row[5] for row in rows], dtype=torch.int64))


def drawn(seed: int, n: int = 60) -> Found:
    generator = torch.Generator().manual_seed(seed)
    corner = 40 * torch.rand(n, 2, generator=generator)
    side = 30 * torch.rand(n, 2, generator=generator)
    scores = torch.rand(n, generator=generator)
    return Found(torch.cat([corner, corner + side], dim=1), scores, torch.randint(1, 4, (n,), generator=generator))


def iou(a: list[float], b: list[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(w, 0) * max(h, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def slow_filter(given: Found, taus: list[float], most: int) -> tuple[list[int], dict[str, int]]:
    boxes, scores, labels = given.boxes.tolist(), given.scores.tolist(), given.labels.tolist()
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    alive: list[int] = []
    for i in order:
        if all(labels[j] != labels[i] or iou(boxes[i], boxes[j]) <= 0.5 for j in alive):
            alive.append(i)
    sure = [i for i in alive if scores[i] >= taus[labels[i] - 1]]
    few = sure[:most]
    kept = [i for i in few if min(boxes[i][2] - boxes[i][0], boxes[i][3] - boxes[i][1]) >= 2.0]
    counts = [len(order), len(alive), len(sure), len(few), len(kept)]
    removed = [a - b for a, b in pairwise(counts)]
    return kept, dict(zip(("suppression", "score", "count", "side"), removed, strict=True))


@pytest.mark.parametrize("taus", [(0.4, 0.4, 0.4), (0.2, 0.9, 0.5)])
@pytest.mark.parametrize("seed", range(4))
def test_the_rules_in_their_order_equal_a_slow_loop(seed, taus):
    given = drawn(seed)
    threshold = taus[0] if len(set(taus)) == 1 else taus

    (kept,) = PseudoFilter(threshold, most=12)([given])

    rows, removed = slow_filter(given, list(taus), 12)
    assert kept.index.tolist() == rows
    assert kept.removed == removed
    assert sum(removed.values()) + len(rows) == len(given.scores)
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(kept, name), getattr(given, name)[rows])


def test_boxes_of_different_classes_do_not_suppress_each_other():
    same, other = (
        found((0, 0, 10, 10, 0.9, 1), (0, 0, 10, 9, 0.8, 1)),
        found((0, 0, 10, 10, 0.9, 1), (0, 0, 10, 9, 0.8, 2)),
    )

    kept = PseudoFilter(0.5)([same, other])

    assert [len(one.index) for one in kept] == [1, 2]


def test_a_score_that_reaches_the_threshold_is_kept():
    (kept,) = PseudoFilter(0.5)([found((0, 0, 10, 10, 0.5, 1), (20, 0, 30, 10, 0.49, 1))])

    assert kept.scores.tolist() == [0.5]


def test_at_most_a_hundred_are_kept_of_an_image_the_best_ones():
    rows = [(20.0 * i, 0.0, 20.0 * i + 10, 10.0, 0.5 + i / 1000, 1) for i in range(130)]

    (kept,) = PseudoFilter(0.5)([found(*rows)])

    assert len(kept.index) == 100
    assert kept.index.tolist() == list(range(129, 29, -1))


def test_sides_below_2_px_are_dropped():
    (kept,) = PseudoFilter(0.5)([found((0, 0, 1.9, 50, 0.9, 1), (20, 0, 22, 50, 0.8, 1), (40, 0, 60, 1.5, 0.7, 1))])

    assert kept.index.tolist() == [1]


def test_nothing_found_gives_no_pseudo_label_and_an_empty_truth():
    kept = PseudoFilter(0.5)([found(), found((0, 0, 9, 9, 0.1, 1))])

    assert [len(one.targets.labels) for one in kept] == [0, 0]
    assert kept[0].targets.boxes.shape == (0, 4)


def test_a_class_without_threshold_is_refused():
    with pytest.raises(ValueError, match="class 3"):
        PseudoFilter((0.5, 0.5))([found((0, 0, 9, 9, 0.9, 3))])


def test_pseudo_labels_carry_no_gradient():
    given = drawn(0)
    boxes = given.boxes.requires_grad_()

    (kept,) = PseudoFilter(0.0)([Found(boxes, given.scores, given.labels)])

    assert not kept.boxes.requires_grad


def test_pixels_take_their_most_probable_class_where_it_is_sure_enough():
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.1, 0.2, 0.0], [0.0, 0.0, 4.0]]).T.reshape(1, 3, 1, 3).requires_grad_()

    label, confidence, kept = pixel_pseudo_labels(logits, 0.7)

    expected = logits.detach().softmax(dim=1).amax(dim=1)
    assert label.flatten().tolist() == [0, 1, 2]
    torch.testing.assert_close(confidence, expected)
    assert kept.flatten().tolist() == (expected.flatten() >= 0.7).tolist() == [True, False, True]
    assert not confidence.requires_grad


def test_noise_is_clipped_and_depends_on_the_images_key_alone():
    image = torch.zeros(3, 3, 40, 40)

    noise = clipped_noise(image, torch.tensor([4, 5, 6]), 0.1, 0.2)
    turned = clipped_noise(image[:2], torch.tensor([6, 4]), 0.1, 0.2)

    assert torch.equal(turned, noise[[2, 0]])
    assert not torch.equal(noise[0], noise[1])
    assert noise.abs().max().item() == pytest.approx(0.2)
    assert noise.std().item() == pytest.approx(
        0.0959, abs=0.002
    )  # 0.1 · sqrt(0.9205), N(0, 1) clipped at 2; 14,400 draws
