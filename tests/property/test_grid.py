"""The tile grid covers a slide."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytopipe.tiles.grid import plan_axis, plan_grid, plan_padded_axis, rows_of
from tests.strategies import axes


@given(axes())
def test_every_pixel_lies_in_a_window_and_only_a_small_slide_needs_padding(axis):
    extent_px, window_px, overlap_px = axis

    starts = plan_axis(extent_px, window_px, overlap_px)

    assert starts[0] == 0
    assert starts[-1] + window_px == max(window_px, extent_px)
    assert all(0 < b - a <= window_px - overlap_px for a, b in pairwise(starts))


@given(axes())
def test_padded_windows_keep_their_stride_and_the_last_one_still_shows_the_slide(axis):
    extent_px, window_px, overlap_px = axis

    starts = plan_padded_axis(extent_px, window_px, overlap_px)

    assert starts[0] == 0
    assert all(b - a == window_px - overlap_px for a, b in pairwise(starts))
    assert starts[-1] + window_px >= extent_px
    assert len(starts) == 1 or starts[-2] + window_px < extent_px


@pytest.mark.parametrize(
    ("extent_px", "window_px", "overlap_px"), [(0, 10, 0), (10, 0, 0), (10, 5, 5), (10, 5, -1), (-3, 5, 0)]
)
def test_a_grid_that_cannot_advance_is_our_mistake(extent_px, window_px, overlap_px):
    with pytest.raises(ValueError, match="plan_axis"):
        plan_axis(extent_px, window_px, overlap_px)


def test_a_grid_goes_by_rows():
    grid = plan_grid(25, 15, tile_px=10, overlap_px=0, edge="shift")

    assert list(grid.origins()) == [(0, 0), (10, 0), (15, 0), (0, 5), (10, 5), (15, 5)]
    assert len(grid) == 6


def test_the_last_row_and_column_hang_over_when_padding_is_asked_for():
    grid = plan_grid(25, 15, tile_px=10, overlap_px=2, edge="pad")

    assert (grid.xs, grid.ys) == ((0, 8, 16), (0, 8))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), unique=True))
def test_rows_hold_each_origin_once_in_reading_order(origins):
    rows = list(rows_of(origins))

    flat = [(y, x) for y, xs in rows for x in xs]
    assert flat == sorted((y, x) for x, y in origins)
    assert [y for y, _ in rows] == sorted({y for _, y in origins})
