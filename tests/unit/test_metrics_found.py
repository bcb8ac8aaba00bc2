"""Found, missed, doubled, false: against exhaustive search over all matchings, and by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytopipe.core.boxes import box_iou
from cytopipe.metrics import Found, count_found, match_one_to_one, overlapping_pairs

# A few coordinates only, so that shared, nested and equal boxes are frequent.
coordinate = st.integers(0, 5)
box = st.tuples(coordinate, coordinate, st.integers(1, 5), st.integers(1, 5)).map(
    lambda b: (*b[:2], b[0] + b[2], b[1] + b[3])
)
box_lists = st.lists(box, max_size=5)


def as_boxes(rows: list[tuple[int, ...]]) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, 4)


def every_matching(iou: np.ndarray, threshold: float) -> list[tuple[int, float]]:
    """(pairs, sum of IoU) of every one-to-one matching of rows to columns, by trying them all."""
    options = [[*np.flatnonzero(row >= threshold).tolist(), None] for row in iou]
    sizes = []
    for choice in itertools.product(*options):
        used = [c for c in choice if c is not None]
        if len(used) == len(set(used)):
            sizes.append((len(used), sum(iou[i, c] for i, c in enumerate(choice) if c is not None)))
    return sizes


@settings(max_examples=150, deadline=None)
@given(true=box_lists, results=box_lists, threshold=st.sampled_from([0.2, 0.5, 1.0]))
def test_pairs_are_as_many_as_possible_and_of_the_largest_sum_of_iou(true, results, threshold) -> None:
    a, b = as_boxes(results), as_boxes(true)
    iou = box_iou(a, b)

    pairs = overlapping_pairs(a, b, np.zeros(len(b), bool))
    partner = match_one_to_one(pairs.where(pairs.iou >= threshold), len(a), len(b))

    used = partner[partner >= 0]
    assert len(used) == len(set(used.tolist()))
    most, best = max(every_matching(iou, threshold))
    assert len(used) == most
    assert sum(iou[i, t] for i, t in enumerate(partner) if t >= 0) == pytest.approx(best, abs=1e-9)


@settings(max_examples=150, deadline=None)
@given(true=box_lists, results=box_lists, data=st.data())
def test_the_counts_add_up_and_do_not_depend_on_the_order_of_the_boxes(true, results, data) -> None:
    a, b = as_boxes(results), as_boxes(true)
    reaches = (box_iou(a, b) >= 0.5).any(axis=1) if len(b) else np.zeros(len(a), bool)

    counts = count_found(b, a)
    shuffled = count_found(
        b[data.draw(st.permutations(range(len(b))))] if len(b) else b,
        a[data.draw(st.permutations(range(len(a))))] if len(a) else a,
    )

    assert counts == shuffled
    assert counts.found + counts.missed == len(b)
    assert counts.found + counts.doubled == reaches.sum()
    assert counts.false == (~reaches).sum()


CELL, OTHER = [0.0, 0, 10, 10], [40.0, 0, 50, 10]


def test_a_second_result_on_one_cell_is_doubled_and_one_on_nothing_is_false() -> None:
    results = np.array([CELL, [0, 0, 10, 9], [80, 80, 90, 90]], np.float64)

    assert count_found(np.array([CELL, OTHER]), results) == Found(found=1, missed=1, doubled=1, false=1)


def test_two_overlapping_cells_with_two_results_are_both_found() -> None:
    # By hand: the first result is nearest to the first cell, which is the only one the second result reaches.
    true = np.array([[0.0, 0, 10, 10], [3.0, 0, 13, 10]])
    results = np.array([[1.0, 0, 11, 10], [-3.0, 0, 7, 10]])

    assert count_found(true, results) == Found(found=2, missed=0, doubled=0, false=0)


def test_results_in_a_crowd_and_lenient_results_are_neither_doubled_nor_false() -> None:
    results = np.array([[1.0, 1, 3, 3], [4.0, 4, 6, 6], OTHER])
    crowd = np.array([True])

    assert count_found(np.array([CELL]), results, crowd=crowd) == Found(found=0, missed=0, doubled=0, false=1)
    lenient = np.array([False, False, True])
    assert count_found(np.array([CELL]), results, crowd=crowd, lenient=lenient) == Found(0, 0, 0, 0)


def test_sensitivity_and_precision_are_undefined_where_there_is_nothing_to_count() -> None:
    nothing = count_found(np.zeros((0, 4)), np.zeros((0, 4)))

    assert np.isnan(nothing.sensitivity)
    assert np.isnan(nothing.precision)
    assert (Found(3, 1, 1, 2) + Found(0, 0, 0, 0)).sensitivity == 0.75
    assert Found(3, 1, 1, 2).precision == 0.5


def test_a_threshold_outside_zero_to_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"iou must lie in \(0, 1\], got 0"):
        count_found(np.zeros((0, 4)), np.zeros((0, 4)), 0)


def test_a_slide_of_a_hundred_thousand_cells_is_counted_without_a_full_matrix() -> None:
    # A full float64 matrix would need 75 GiB.
    column, row = np.meshgrid(np.arange(316) * 100.0, np.arange(316) * 100.0)
    corner = np.stack([column.ravel(), row.ravel()], axis=1)
    true = np.concatenate([corner, corner + 60], axis=1)
    results = np.concatenate([true + 2, true[:500], true[500:600] + 45])

    assert count_found(true, results) == Found(found=len(true), missed=0, doubled=500, false=100)
