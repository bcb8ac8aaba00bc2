"""Laws of reading a slide at a target resolution: what is read does not depend on the window through which it is
read."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytopipe.core.errors import UserError
from cytopipe.slides import MppView
from tests.array_slide import ArraySlide

SIDES = st.integers(90, 420)
RATIOS = st.one_of(st.sampled_from([1.0, 2.0, 4.0, 0.5, 0.25]), st.floats(0.2, 1.0), st.floats(1.0, 9.0))


def noise(width: int, height: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@st.composite
def views(draw: st.DrawFn) -> MppView:
    """A slide of noise with one to three levels, at some mpp; pixels may be a little oblong."""
    width, height, seed = draw(SIDES), draw(SIDES), draw(st.integers(0, 99))
    sizes = [(width >> k, height >> k) for k in range(draw(st.integers(1, 3)))]
    mpp = (0.25, 0.25 * draw(st.sampled_from([1.0, 1.05, 0.9])))
    slide = ArraySlide(*(noise(w, h, seed + k) for k, (w, h) in enumerate(sizes)), mpp=mpp)
    return MppView(slide, 0.25 * draw(RATIOS), force=True)


@st.composite
def windows(draw: st.DrawFn, view: MppView) -> tuple[int, int, int, int]:
    """A window that meets the slide and may hang over its border."""
    x, y = draw(st.integers(-20, view.width - 1)), draw(st.integers(-20, view.height - 1))
    return x, y, draw(st.integers(max(1, 1 - x), view.width + 30)), draw(st.integers(max(1, 1 - y), view.height + 30))


@settings(max_examples=150, deadline=None)
@given(view=views(), data=st.data())
def test_two_windows_show_their_common_area_with_the_same_bits(view, data):
    ax, ay, aw, ah = data.draw(windows(view))
    bx, by, bw, bh = data.draw(windows(view))

    a, b = view.read(ax, ay, aw, ah), view.read(bx, by, bw, bh)

    x0, x1, y0, y1 = max(ax, bx), min(ax + aw, bx + bw), max(ay, by), min(ay + ah, by + bh)
    if x0 < x1 and y0 < y1:
        np.testing.assert_array_equal(a[y0 - ay : y1 - ay, x0 - ax : x1 - ax], b[y0 - by : y1 - by, x0 - bx : x1 - bx])


@settings(max_examples=60, deadline=None)
@given(width=SIDES, height=SIDES, value=st.integers(0, 255), ratio=RATIOS)
def test_a_slide_of_one_colour_stays_that_colour_up_to_its_border(width, height, value, ratio):
    view = MppView(ArraySlide(np.full((height, width, 3), value, np.uint8), mpp=0.25), 0.25 * ratio, force=True)

    assert (view.read(0, 0, view.width, view.height) == value).all()


@settings(max_examples=80, deadline=None)
@given(width=st.integers(90, 256), ratio=RATIOS, is_upright=st.booleans())
def test_a_ramp_is_met_at_the_centre_of_each_pixel_to_one_grey_level(width, ratio, is_upright):
    ramp = np.broadcast_to(np.arange(width, dtype=np.uint8)[None, :, None], (64, width, 3))
    slide = ArraySlide(ramp.transpose(1, 0, 2) if is_upright else ramp, mpp=0.25)
    view = MppView(slide, 0.25 * ratio, force=True)
    view_px = view.height if is_upright else view.width

    row = view.read(0, 0, 1, view_px)[:, 0, 0] if is_upright else view.read(0, 0, view_px, 1)[0, :, 0]

    starts = np.arange(view_px) * view.slide_px_per_px[0]
    centres = starts + view.slide_px_per_px[0] / 2 - 0.5  # slide px i has its value i at its own centre
    is_whole = (centres >= 0) & (centres <= width - 1) & (starts + view.slide_px_per_px[0] <= width)
    assert np.abs(row - centres)[is_whole].max() <= 1.0


@settings(max_examples=25, deadline=None)
@given(width=st.integers(20, 60), height=st.integers(20, 60), ratio=st.floats(1.03, 5.0), seed=st.integers(0, 9))
def test_a_coarser_pixel_is_the_mean_over_its_own_footprint(width, height, ratio, seed):
    pixels = noise(width, height, seed)
    view = MppView(ArraySlide(pixels, mpp=0.25), 0.25 * ratio)

    read = view.read(0, 0, view.width, view.height)

    for j in range(math.floor(height / view.slide_px_per_px[1])):
        for i in range(math.floor(width / view.slide_px_per_px[0])):
            assert (
                np.abs(read[j, i] - _footprint_mean(pixels, i, j, view.slide_px_per_px)).max() <= 1.0
            )  # rounding, twice


def _footprint_mean(pixels, i, j, scale):
    """The mean of the slide over view px (i, j), px by px with the area that each shares: slow and obvious."""
    x0, x1, y0, y1 = i * scale[0], (i + 1) * scale[0], j * scale[1], (j + 1) * scale[1]
    total, area = np.zeros(3), 0.0
    for y in range(math.floor(y0), min(math.ceil(y1), pixels.shape[0])):
        for x in range(math.floor(x0), min(math.ceil(x1), pixels.shape[1])):
            shared = max(0.0, min(x + 1, x1) - max(x, x0)) * max(0.0, min(y + 1, y1) - max(y, y0))
            total, area = total + shared * pixels[y, x], area + shared
    return total / area


@settings(max_examples=100, deadline=None)
@given(width=SIDES, height=SIDES, ratio=RATIOS)
def test_the_view_covers_the_slide_and_hangs_over_by_less_than_a_pixel(width, height, ratio):
    view = MppView(ArraySlide(noise(width, height, 0), mpp=0.25), 0.25 * ratio, force=True)

    for extent_px, count, scale in zip((width, height), (view.width, view.height), view.slide_px_per_px, strict=True):
        assert (count - 1) * scale < extent_px <= count * scale + 1e-6  # the last is rounding of a fraction to a float


@settings(max_examples=200, deadline=None)
@given(mpp=st.floats(0.1, 1.0), ratio=st.floats(0.51, 30.0))
def test_the_recorded_mpp_is_within_two_percent_of_the_asked_one(mpp, ratio):
    slide = ArraySlide(*(np.zeros((256 >> k, 256 >> k, 3), np.uint8) for k in range(3)), mpp=mpp)

    view = MppView(slide, mpp * ratio, force=True)

    assert view.mpp == pytest.approx(mpp * ratio, rel=0.02)
    assert view.slide_px_per_px[0] == pytest.approx(view.mpp / mpp)


def test_a_level_within_two_percent_is_read_as_it_is_and_its_true_mpp_recorded():
    levels = noise(400, 300, 0), noise(200, 150, 1)
    view = MppView(ArraySlide(*levels, mpp=0.2475), 0.5)

    assert (view.level, view.mpp, view.slide_px_per_px) == (1, pytest.approx(0.495), (2.0, 2.0))
    np.testing.assert_array_equal(view.read(10, 20, 30, 40), levels[1][20:60, 10:40])


def test_the_level_that_is_read_is_the_coarsest_one_that_is_not_coarser_than_asked():
    slide = ArraySlide(*(noise(400 >> k, 400 >> k, k) for k in range(4)), mpp=0.25)

    assert [MppView(slide, mpp).level for mpp in (0.25, 0.4, 0.9, 1.0, 1.5, 7.0)] == [0, 0, 1, 2, 2, 3]


@pytest.mark.parametrize(("pixels", "outside"), [(200, 255), (10, 0)])
def test_what_lies_outside_the_slide_is_background(pixels, outside):
    view = MppView(ArraySlide(np.full((50, 40, 3), pixels, np.uint8), mpp=0.5), 0.5)

    read = view.read(-5, 45, 20, 10)

    assert (read[:5, 5:] == pixels).all()
    assert (read[:, :5] == outside).all()
    assert (read[5:] == outside).all()
    assert (view.read(100, 100, 3, 3) == outside).all()


def test_without_a_target_level_0_is_read_whether_or_not_its_resolution_is_known():
    pixels = noise(50, 40, 0)

    for mpp in (None, 0.3):
        view = MppView(ArraySlide(pixels, mpp=mpp), None)
        assert (view.mpp, view.slide_px_per_px, view.width, view.height) == (mpp, (1.0, 1.0), 50, 40)
        np.testing.assert_array_equal(view.read(3, 4, 5, 6), pixels[4:10, 3:8])


def test_upsampling_is_silent_up_to_a_quarter_warned_about_above_and_refused_over_twice_unless_forced():
    slide = ArraySlide(noise(60, 50, 0), mpp=1.0)

    assert MppView(slide, 0.81).warning is None
    assert "1.43x" in (MppView(slide, 0.7).warning or "")
    assert MppView(slide, 0.5).warning is not None
    with pytest.raises(UserError, match=r"finest level is 1 µm/px, coarser than the 0\.49 asked by over 2x; .*--force"):
        MppView(slide, 0.49)
    assert MppView(slide, 0.25, force=True).width == 240


@pytest.mark.parametrize("mpp", [0.0, -0.5, math.nan, math.inf])
def test_a_target_that_is_no_resolution_is_refused(mpp):
    with pytest.raises(UserError, match="give a positive number"):
        MppView(ArraySlide(noise(10, 10, 0), mpp=0.5), mpp)


def test_a_target_on_a_slide_without_resolution_is_refused_with_the_way_out():
    with pytest.raises(
        UserError, match="no resolution in the file; give --mpp-override, or a column mpp in the slide list"
    ):
        MppView(ArraySlide(noise(10, 10, 0)), 0.5)
