"""Blending: what windows weigh, and the law that tiled equals untiled for a network that looks at its surroundings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from cytopipe.infer.blending import (
    Blender,
    axis_weights,
    default_blend_overlap_px,
    softmax,
    usable_radius_px,
    used_from,
)
from cytopipe.infer.windows import plan_windows

# float32 sums of 49 products of numbers below 1, in another order
ROUNDING = 1e-5


@st.composite
def grids(draw):
    """Slides smaller and larger than a window, windows that hang over, three windows on an axis, any stride."""
    stride = draw(st.sampled_from([1, 2, 4, 8]))
    window = stride * draw(st.integers(2, 8))
    overlap = draw(st.integers(0, window - stride))
    width, height = draw(st.integers(1, 4 * window)), draw(st.integers(1, 4 * window))
    return plan_windows(width, height, window, overlap, stride)


class LocalNet:
    """Two channels of a fixed random convolution over (2 r + 1) squared px, zeros beyond what it is shown."""

    def __init__(self, radius_px: int, seed: int) -> None:
        side = 2 * radius_px + 1
        kernels = np.random.default_rng(seed).uniform(-1, 1, (2, side, side))
        self.kernels = kernels / np.abs(kernels).sum(axis=(1, 2), keepdims=True)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        maps = [ndimage.correlate(image, kernel, mode="constant") for kernel in self.kernels]
        return np.stack(maps).astype(np.float32)


def blended(windows, net, image, ran=None, radius_px=0):
    """The map (2, height, width), where it was seen, and the blender, by one pass over the grid."""
    blender = Blender(windows, radius_px, 2)
    out = np.full((2, windows.height, windows.width), np.nan, np.float32)
    seen = np.zeros((windows.height, windows.width), bool)
    covered = np.zeros((windows.height, windows.width), int)
    size = windows.window_px
    canvas = np.zeros((windows.starts_y[-1] + size, windows.starts_x[-1] + size))
    canvas[: windows.height, : windows.width] = image
    for index, (x0, y0) in enumerate(zip(windows.x0, windows.y0, strict=True)):
        logits = net(canvas[y0 : y0 + size, x0 : x0 + size]) if ran is None or ran[index] else None
        block = blender.add(index, logits)
        place = np.s_[block.y0 : block.y0 + block.seen.shape[0], block.x0 : block.x0 + block.seen.shape[1]]
        out[:, *place], seen[place] = block.logits, block.seen
        covered[place] += 1
    assert (covered == 1).all()
    return out, seen, blender


@given(windows=grids(), radius_px=st.integers(0, 40))
def test_the_weights_over_every_pixel_sum_to_one_and_vanish_near_inner_edges(windows, radius_px):
    usable = usable_radius_px(windows, radius_px)

    for starts, extent in ((windows.starts_x, windows.width), (windows.starts_y, windows.height)):
        weights = axis_weights(starts, windows.window_px, extent, usable)
        total = np.zeros(starts[-1] + windows.window_px)
        for start, mine in zip(starts, weights, strict=True):
            total[start : start + windows.window_px] += mine
            if start > 0:
                assert not mine[:usable].any()
            if start + windows.window_px < extent:
                assert not mine[windows.window_px - usable :].any()
            assert not mine[max(extent - start, 0) :].any()
        assert np.allclose(total[:extent], 1, atol=1e-6)


@given(windows=grids(), radius_px=st.integers(0, 6), seed=st.integers(0, 1000))
def test_tiled_equals_untiled_for_a_network_of_small_receptive_field(windows, radius_px, seed):
    image = np.random.default_rng(seed).uniform(0, 1, (windows.height, windows.width))
    net = LocalNet(usable_radius_px(windows, radius_px), seed)

    tiled, seen, blender = blended(windows, net, image, radius_px=radius_px)

    assert seen.all()
    assert np.abs(tiled - net(image)).max() <= ROUNDING
    assert blender.seams.largest <= ROUNDING


@given(windows=grids(), radius_px=st.integers(0, 4), data=st.data())
def test_windows_left_out_change_nothing_where_others_see_well(windows, radius_px, data):
    ran = np.array(data.draw(st.lists(st.booleans(), min_size=len(windows), max_size=len(windows))))
    image = np.random.default_rng(3).uniform(0, 1, (windows.height, windows.width))
    net = LocalNet(usable_radius_px(windows, radius_px), 3)

    tiled, seen, _ = blended(windows, net, image, ran, radius_px)

    expected = np.zeros_like(seen)
    usable = usable_radius_px(windows, radius_px)
    size = windows.window_px
    from_x, from_y = used_from(windows.starts_x, size), used_from(windows.starts_y, size)
    for index in np.flatnonzero(ran):
        row, column = divmod(index, windows.columns)
        left, upper, right, lower = np.where(windows.inner[index], usable, 0)
        x1, y1 = windows.x0[index] + size - right, windows.y0[index] + size - lower
        expected[from_y[row] + upper : y1, from_x[column] + left : x1] = True
    assert np.array_equal(seen, expected)
    assert np.abs(tiled - net(image))[:, seen].max(initial=0) <= ROUNDING
    assert not tiled[:, ~seen].any()


@given(radius_px=st.integers(0, 500), windows_px=st.integers(1, 40), size=st.tuples(*[st.integers(1, 9000)] * 2))
def test_the_default_overlap_lets_the_radius_be_used_in_full_unless_half_a_window_is_less(radius_px, windows_px, size):
    window = 32 * windows_px
    overlap = min(default_blend_overlap_px(radius_px, window), window - 32)

    usable = usable_radius_px(plan_windows(*size, window, overlap, 32), radius_px)

    assert usable == radius_px or 2 * radius_px + 2 > overlap
    assert usable >= min(radius_px, overlap // 2 - 1)


def test_a_network_that_looks_farther_than_the_overlap_allows_shows_in_the_seams():
    windows = plan_windows(200, 150, 64, 16, 8)
    image = np.random.default_rng(5).uniform(0, 1, (150, 200))
    net = LocalNet(12, 5)

    tiled, _, blender = blended(windows, net, image, radius_px=12)

    assert blender.radius_px == 7
    assert np.abs(tiled - net(image)).max() > 1e-3
    assert blender.seams.largest > 1e-3
    assert blender.seams.px > 0


def test_a_window_out_of_scan_order_is_refused():
    blender = Blender(plan_windows(100, 100, 64, 16, 8), 4, 2)

    with pytest.raises(ValueError, match="window 1 where 0 is next"):
        blender.add(1, None)


def test_probabilities_sum_to_one_however_large_the_logits():
    logits = np.array([[1000.0, -1000.0], [998.0, 0.0]], np.float32)

    found = softmax(logits)

    assert np.allclose(found.sum(axis=0), 1)
    assert found[0, 0] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
