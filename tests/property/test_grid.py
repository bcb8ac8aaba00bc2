"""The tile grid covers a slide, and the tiles that are kept cover all of its foreground."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import box

from cytopipe.core.errors import RunError
from cytopipe.formats.annotations import Annotation
from cytopipe.slides import Foreground, MppView
from cytopipe.tiles import TileConfig, plan_tiles
from cytopipe.tiles.grid import plan_axis, plan_grid, plan_padded_axis, rows_of
from tests.array_slide import ArraySlide
from tests.strategies import axes

ROUNDING_PX2 = 1e-6  # corners are float64 multiples of the view's scale, at places of up to 500 px


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


@st.composite
def slides_to_plan(draw):
    """A slide's view, its size, a mask over it with at least one px, and how to cut it."""
    width, height = draw(st.integers(1, 500)), draw(st.integers(1, 500))
    slide = ArraySlide(np.zeros((height, width, 3), np.uint8), mpp=0.25)
    tile_px = draw(st.integers(16, 300))
    config = TileConfig(
        tile_px=tile_px,
        mpp=draw(st.sampled_from([None, 0.25, 0.3, 0.5, 0.83, 1.0])),
        overlap_px=draw(st.integers(0, tile_px * 3 // 4)),
        edge=draw(st.sampled_from(["shift", "pad"])),
    )
    side = draw(st.floats(4, 60))
    shape = (int(np.ceil(height / side)), int(np.ceil(width / side)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    mask = random.random(shape) < draw(st.floats(0.01, 1))
    mask[random.integers(shape[0]), random.integers(shape[1])] = True
    return MppView(slide, config.mpp), (width, height), Foreground(mask, (side, side), "light"), config


def on_slide(foreground: Foreground, size: tuple[int, int]) -> shapely.Geometry:
    """The area of the mask's foreground, as far as it lies on the slide, level-0 px."""
    rows, columns = np.nonzero(foreground.mask)
    (sx, sy), slide = foreground.slide_px_per_px, box(0, 0, *size)
    pixels = shapely.box(columns * sx, rows * sy, (columns + 1) * sx, (rows + 1) * sy)
    return shapely.union_all(pixels).intersection(slide)


def left_out(area: shapely.Geometry, boxes: np.ndarray) -> float:
    return area.difference(shapely.union_all(shapely.box(*boxes.T))).area


@settings(deadline=None)
@given(slides_to_plan())
def test_the_kept_tiles_cover_every_foreground_pixel(planned):
    view, size, foreground, config = planned

    plan = plan_tiles(view, size, None, foreground, config)

    assert left_out(on_slide(foreground, size), plan.boxes[plan.kept]) < ROUNDING_PX2


@settings(deadline=None)
@given(slides_to_plan(), st.floats(0, 0.3))
def test_a_limit_leaves_out_less_foreground_a_tile_than_it_says(planned, limit):
    view, size, foreground, config = planned
    config = config.model_copy(update={"min_foreground": limit})
    try:
        plan = plan_tiles(view, size, None, foreground, config)
    except RunError:
        return  # all of its foreground is below the limit, and that is said

    missed = left_out(on_slide(foreground, size), plan.boxes[plan.kept])

    tile_area = float(np.prod(plan.boxes[0, 2:] - plan.boxes[0, :2]))
    assert missed <= limit * tile_area * (~plan.kept).sum() + ROUNDING_PX2


@settings(deadline=None)
@given(slides_to_plan())
def test_without_a_foreground_rule_the_tiles_cover_the_whole_slide(planned):
    view, size, foreground, config = planned
    config = config.model_copy(update={"foreground": False})

    plan = plan_tiles(view, size, None, foreground, config)

    assert plan.kept.all()
    assert left_out(box(0, 0, *size), plan.boxes) < ROUNDING_PX2


@settings(deadline=None)
@given(slides_to_plan(), st.data())
def test_the_kept_tiles_cover_every_foreground_pixel_of_the_regions_and_meet_them(planned, data):
    view, (width, height), foreground, config = planned
    config = config.model_copy(update={"roi": "scanned"})
    eighths = [st.integers(0, int(8 * side) - 4) for side in (width, height)] + [st.integers(8, 2400)] * 2
    drawn = data.draw(st.lists(st.tuples(*eighths), min_size=1, max_size=3))
    regions = [box(x / 8, y / 8, (x + w) / 8, (y + h) / 8) for x, y, w, h in drawn]  # nobody draws at 1e-279 px
    region = shapely.union_all(regions)
    outlines = [Annotation(f"region-{i}", "scanned", outline) for i, outline in enumerate(regions)]
    wanted = on_slide(foreground, (width, height)).intersection(region)
    try:
        plan = plan_tiles(view, (width, height), outlines, foreground, config)
    except RunError:
        assert wanted.area < ROUNDING_PX2
        return

    kept = shapely.box(*plan.boxes[plan.kept].T)
    assert left_out(wanted, plan.boxes[plan.kept]) < ROUNDING_PX2
    assert (shapely.area(shapely.intersection(kept, region)) > 0).all()
    assert plan.objects == []
