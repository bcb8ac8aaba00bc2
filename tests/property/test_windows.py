"""The grid of windows: it covers, overlaps, keeps to the stride, and sees every object that fits the overlap whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytopipe.core.errors import UserError
from cytopipe.infer.windows import default_overlap_px, plan_windows


@st.composite
def plans(draw):
    """A slide's sizes, window, overlap and stride for which there is a grid."""
    stride_px = draw(st.sampled_from([1, 3, 16, 32]))
    window_px = draw(st.integers(stride_px, 300))
    overlap_px = draw(st.integers(0, window_px - stride_px))
    longest_px = min(2_000, window_px + 20 * (window_px - overlap_px))
    width, height = draw(st.integers(1, longest_px)), draw(st.integers(1, longest_px))
    return width, height, window_px, overlap_px, stride_px


@st.composite
def boxes_in(draw, width, height):
    """A box on the slide, in quarters of a px."""
    x = sorted(draw(st.integers(0, 4 * width)) / 4 for _ in "01")
    y = sorted(draw(st.integers(0, 4 * height)) / 4 for _ in "01")
    return [x[0], y[0], x[1], y[1]]


@given(plan=plans())
def test_windows_cover_the_slide_on_the_stride_with_the_overlap_and_without_a_needless_one(plan):
    width, height, window_px, overlap_px, stride_px = plan

    windows = plan_windows(*plan)

    for starts, extent_px in ((windows.starts_x, width), (windows.starts_y, height)):
        assert starts[0] == 0
        assert (starts % stride_px == 0).all()
        assert all(0 < b - a <= window_px - overlap_px for a, b in pairwise(starts.tolist()))
        assert starts[-1] + window_px >= extent_px
        assert all(start + window_px < extent_px for start in starts[:-1])
        assert starts[-1] + window_px - extent_px < stride_px or len(starts) == 1


@given(plan=plans())
def test_windows_are_numbered_by_rows_and_show_what_lies_on_the_slide(plan):
    width, height, window_px, *_ = plan

    windows = plan_windows(*plan)

    assert len(windows) == windows.rows * windows.columns == len(windows.x0)
    k = len(windows) - 1
    assert [windows.x0[k], windows.y0[k]] == [windows.starts_x[-1], windows.starts_y[-1]]
    assert [k for row in range(windows.rows) for k in windows.of_row(row)] == list(range(len(windows)))
    expected = [
        [x, y, min(x + window_px, width), min(y + window_px, height)]
        for y in windows.starts_y.tolist()
        for x in windows.starts_x.tolist()
    ]
    assert windows.boxes.tolist() == expected


@settings(max_examples=60)
@given(plan=plans(), data=st.data())
def test_distance_to_inner_edges_is_what_a_ruler_says(plan, data):
    width, height, window_px, *_ = plan
    windows = plan_windows(*plan)
    k = data.draw(st.integers(0, len(windows) - 1))
    x0, y0, x1, y1 = data.draw(boxes_in(width, height))

    distance = windows.inner_distance(np.array([[x0, y0, x1, y1]]), np.array([k]))

    left, upper = int(windows.x0[k]), int(windows.y0[k])
    gaps = [x0 - left] if left > 0 else []
    gaps += [y0 - upper] if upper > 0 else []
    gaps += [left + window_px - x1] if left + window_px < width else []
    gaps += [upper + window_px - y1] if upper + window_px < height else []
    assert distance.tolist() == [min(gaps, default=np.inf)]


@settings(max_examples=60)
@given(plan=plans(), distance_px=st.sampled_from([0.5, 1, 4, 8]), data=st.data())
def test_the_windows_that_hold_a_box_at_a_distance_are_a_rectangle_of_the_grid(plan, distance_px, data):
    windows = plan_windows(*plan)
    xyxy = np.array([data.draw(boxes_in(*plan[:2]))])

    ((column0, row0, column1, row1),) = windows.span_at_distance(xyxy, distance_px).tolist()

    numbers = np.arange(len(windows))
    near = windows.inner_distance(np.repeat(xyxy, len(windows), axis=0), numbers) >= distance_px
    assert numbers[near].tolist() == [
        row * windows.columns + column for row in range(row0, row1) for column in range(column0, column1)
    ]


@settings(max_examples=60)
@given(plan=plans(), guard_px=st.integers(1, 20), data=st.data())
def test_some_window_sees_each_box_that_fits_the_overlap_clear_of_its_inner_edges(plan, guard_px, data):
    width, height, _, overlap_px, _ = plan
    windows = plan_windows(*plan)
    x0, y0, x1, y1 = data.draw(boxes_in(width, height))
    bound_px = max(overlap_px - 2 * guard_px, 0)
    box = np.array([[x0, y0, min(x1, x0 + bound_px), min(y1, y0 + bound_px)]])

    column0, row0, column1, row1 = windows.span_at_distance(box, guard_px)[0]

    assert overlap_px < 2 * guard_px or (column0 < column1 and row0 < row1)


def test_three_windows_overlap_on_an_axis_where_the_last_is_shifted_inwards():
    assert plan_windows(165, 80, 100, 60).starts_x.tolist() == [0, 40, 65]
    assert plan_windows(165, 80, 100, 60, stride_px=16).starts_x.tolist() == [
        0,
        32,
        64,
        80,
    ]  # 80 + 100 hangs over by 15


def test_an_edge_towards_the_slide_is_inner_and_one_on_or_beyond_its_border_is_not():
    windows = plan_windows(165, 80, 100, 60, stride_px=16)

    assert windows.inner[0].tolist() == [False, False, True, False]
    assert windows.inner[-1].tolist() == [True, False, False, False]


@pytest.mark.parametrize(("overlap_px", "stride_px"), [(100, 1), (69, 32), (-1, 1)])
def test_an_overlap_that_leaves_no_step_is_refused_with_the_largest_one_that_does(overlap_px, stride_px):
    with pytest.raises(UserError, match=rf"give an overlap from 0 to {100 - stride_px} px"):
        plan_windows(500, 500, 100, overlap_px, stride_px)


@pytest.mark.parametrize("sizes", [(0, 10, 100, 0, 1), (10, 10, 0, 0, 1), (10, 10, 100, 0, 0), (10, 10, 16, 0, 32)])
def test_sizes_that_make_no_grid_are_our_own_mistake(sizes):
    with pytest.raises(ValueError, match="plan_windows"):
        plan_windows(*sizes)


def test_the_default_overlap_holds_the_largest_object_and_both_guard_bands():
    assert default_overlap_px(100.2) == 117
    assert default_overlap_px(64, guard_px=4) == 72
