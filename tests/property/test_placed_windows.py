"""Windows anywhere: on a full grid they give what the grid gives, elsewhere what the slow, obvious rule gives."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cytopipe.infer.placed import PlacedWindows
from cytopipe.infer.stitching import Stitcher, stitch
from cytopipe.infer.windows import plan_windows
from tests.property import stitch_reference as oracle
from tests.property.stitch_cases import draw_case, results_of, results_of_oracle, views_of
from tests.property.stitch_scenes import Scene, predict, rows_of, scenes

seeds = st.integers(0, 2**32)


def placed(scene: Scene) -> PlacedWindows:
    return PlacedWindows(scene.windows.boxes, scene.windows.width, scene.windows.height)


def scattered(rng: random.Random, width: int, height: int, side: int) -> list[list[int]]:
    """Some windows of different sizes, anywhere on the slide: apart, nested, equal, hanging over its border."""
    boxes = []
    for _ in range(rng.randint(1, 14)):
        w, h = rng.randint(max(side // 2, 2), 2 * side), rng.randint(max(side // 2, 2), 2 * side)
        x, y = rng.randint(-w // 4, max(width - w // 2, 1)), rng.randint(-h // 4, max(height - h // 2, 1))
        boxes.append([x, y, x + w, y + h])
        if rng.random() < 0.1:
            boxes.append(boxes[rng.randrange(len(boxes))])
    return [box for box in boxes if box[0] < width and box[1] < height and box[2] > 0 and box[3] > 0]


@settings(max_examples=40, deadline=None)
@given(scene=scenes(), seed=seeds, ran_fraction=st.sampled_from([1.0, 0.7]))
def test_the_windows_of_a_grid_placed_one_by_one_give_what_the_grid_gives(scene, seed, ran_fraction):
    rng = random.Random(seed)
    views = {k: v for k, v in predict(scene, rng, 0.25).items() if rng.random() < ran_fraction}

    objects, again = (stitch(windows, views, scene.guard_px) for windows in (scene.windows, placed(scene)))

    assert rows_of(objects) == rows_of(again)  # also in this order, and by the same window


@pytest.mark.parametrize("mode", ["clip", "drop"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), with_masks=st.booleans())
def test_scattered_windows_are_stitched_by_the_slow_obvious_rule(mode, seed, with_masks):
    drawn = draw_case(seed, mode)
    assume(drawn is not None)
    rng = random.Random(seed)
    size, grid, objects, guard_px, bound, kind = drawn[0]
    boxes = scattered(rng, *size, grid[0].box[2] - grid[0].box[0])
    assume(boxes)
    windows = PlacedWindows(np.array(boxes, np.float64), *size)
    theirs = []
    for k, box in enumerate(windows.boxes.astype(int).tolist()):
        mask = oracle.draw(size, "box", box)
        inner = (box[0] > 0, box[1] > 0, box[2] < size[0], box[3] < size[1])
        theirs.append(oracle.Window(k, tuple(box), inner, mask, oracle.pack(mask)))
    case = (size, theirs, objects, guard_px, bound, kind)
    views = oracle.predict(rng, case, mode, 0)
    for view in views:
        view.score = float(np.float32(view.score))
    with_masks = with_masks or kind == "ellipse"
    ours = views_of(case, views, with_masks)

    found = stitch(windows, ours, guard_px)

    expected = oracle.stitch(theirs, views, guard_px)
    assert results_of(found, size, with_masks) == results_of_oracle(expected, size, with_masks)


@settings(max_examples=60, deadline=None)
@given(scene=scenes(), seed=seeds, drop_fraction=st.sampled_from([0.0, 0.5, 1.0]))
def test_a_cell_that_some_scattered_window_sees_whole_is_found_once_and_as_it_is(scene, seed, drop_fraction):
    rng = random.Random(seed)
    width, height = scene.windows.width, scene.windows.height
    boxes = scattered(rng, width, height, scene.windows.window_px)
    assume(boxes)
    windows = PlacedWindows(np.array(boxes, np.float64), width, height)
    views = predict(replace(scene, windows=windows), rng, drop_fraction)

    objects = stitch(windows, views, scene.guard_px)

    seen_whole = windows.count_at_distance(
        np.array([cell.box for cell in scene.cells]).reshape(-1, 4), scene.guard_px, np.ones(len(windows), bool)
    )
    truth = Counter((c.box, c.label, c.score) for c, n in zip(scene.cells, seen_whole, strict=True) if n)
    rows = rows_of(objects.take(objects.flags == 0))
    assert Counter((row[:4], row[4], row[5]) for row in rows) == truth


@settings(max_examples=40, deadline=None)
@given(scene=scenes(), seed=seeds)
def test_scattered_windows_stream_in_any_order(scene, seed):
    rng = random.Random(seed)
    width, height = scene.windows.width, scene.windows.height
    boxes = scattered(rng, width, height, scene.windows.window_px)
    assume(boxes)
    windows = PlacedWindows(np.array(boxes, np.float64), width, height)
    views = predict(replace(scene, windows=windows), rng, 0.25)

    stitcher, tables = Stitcher(windows, scene.guard_px), []
    for k in rng.sample(sorted(views), len(views)):
        stitcher.add(k, views[k])
        tables.append(stitcher.completed())
    tables.append(stitcher.finish())

    assert [row for table in tables for row in rows_of(table)] == rows_of(stitch(windows, views, scene.guard_px))


def test_windows_that_were_not_run_and_borders_of_the_slide_count_as_the_grid_counts_them():
    grid = plan_windows(220, 220, 100, 40)
    boxes = np.array([[70.0, 70, 85, 90], [-30, 10, -10, 30], [200, 190, 240, 260], [10, 10, 90, 90]])
    ran = np.arange(len(grid)) % 2 == 0

    counts = [
        (
            windows.count_at_distance(boxes, 8, np.ones(9, bool)).tolist(),
            windows.count_at_distance(boxes, 8, ran).tolist(),
        )
        for windows in (grid, PlacedWindows(grid.boxes, 220, 220))
    ]

    assert counts == [([4, 1, 1, 1], [2, 1, 1, 1])] * 2


def test_an_edge_on_or_beyond_the_border_of_the_slide_is_not_inner():
    boxes = np.array([[-10, -10, 60, 50], [40, 0, 100, 50.0], [0, 40, 60, 79.5], [40, 40, 99, 90]])

    windows = PlacedWindows(boxes, 100, 80, border_px=1.0)

    assert windows.order.tolist() == [0, 1, 2, 3]
    assert windows.inner.tolist() == [
        [False, False, True, True],
        [True, False, False, True],
        [False, True, True, False],  # half a px short of the border: no detector sees that half
        [True, True, True, False],
    ]
    assert windows.boxes[0].tolist() == [0, 0, 60, 50]
    assert windows.row_of(np.arange(4)).tolist() == [0, 0, 1, 1]


def test_overlaps_are_measured_across_inner_edges_that_have_a_neighbour():
    grid = plan_windows(220, 100, 100, 40)  # 0, 60, 120

    beside, apart = (PlacedWindows(grid.boxes[rows], 220, 100) for rows in ([0, 1, 2], [0, 2]))
    touching = PlacedWindows(np.array([[0.0, 0, 50, 50], [50, 0, 100, 50]]), 100, 50)

    assert beside.overlaps_px().tolist() == [40, 40, 40, 40]
    assert apart.overlaps_px().tolist() == []
    assert touching.overlaps_px().tolist() == [0, 0]


def test_a_window_beside_the_slide_is_our_own_mistake():
    with pytest.raises(ValueError, match="without area on the slide"):
        PlacedWindows(np.array([[100.0, 0, 200, 50]]), 100, 80)
