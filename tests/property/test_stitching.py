"""What the stitching rule promises, on any grid: against the untiled truth, against the oracle, in any order."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cytopipe.core.objects import JOINED, TRUNCATED
from cytopipe.infer.stitching import Stitcher, Views, stitch
from tests.property import stitch_reference as oracle
from tests.property.stitch_cases import draw_case, results_of, results_of_oracle, views_of, windows_of
from tests.property.stitch_scenes import Scene, moved_scenes, numbers_of, predict, rows_of, scenes

seeds = st.integers(0, 2**32)
any_grid = st.one_of(scenes(), moved_scenes())
drop_fractions = st.sampled_from([0.0, 0.5, 1.0])  # of the cut views: all reported as clips, or some, or none


@settings(max_examples=150, deadline=None)
@given(scene=any_grid, seed=seeds, drop_fraction=drop_fractions)
def test_each_cell_that_fits_the_overlap_is_found_once_and_as_in_the_untiled_slide(scene, seed, drop_fraction):
    views = predict(scene, random.Random(seed), drop_fraction)

    objects = stitch(scene.windows, views, scene.guard_px)

    whole = objects.take(objects.flags == 0)
    found = Counter(
        (tuple(box), int(label), float(score), None if polygon is None else polygon.wkt)
        for box, label, score, polygon in zip(
            whole.xyxy.tolist(), whole.class_index, whole.score, whole.geometry, strict=True
        )
    )
    truth = Counter((c.box, c.label, c.score, None if c.polygon is None else c.polygon.wkt) for c in scene.cells)
    small = {key for key in truth if max(key[0][2] - key[0][0], key[0][3] - key[0][1]) <= scene.bound_px}
    assert {key: found[key] for key in small} == {key: truth[key] for key in small}
    assert set(found) <= set(truth)  # whatever is not flagged is an object of the untiled slide
    if len(small) == len(truth):
        assert len(objects) == len(scene.cells)  # no piece is left over


@settings(max_examples=100, deadline=None)
@given(scene=any_grid, seed=seeds, drop_fraction=drop_fractions)
def test_a_larger_cell_is_whole_joined_or_flagged_and_gone_only_if_a_view_was_withheld(scene, seed, drop_fraction):
    views = predict(scene, random.Random(seed), drop_fraction)

    objects = stitch(scene.windows, views, scene.guard_px)

    numbers, joined = numbers_of(objects), objects.xyxy[objects.flags == JOINED]
    for number, cell in enumerate(scene.cells):
        frames = scene.windows.boxes
        shown = ((frames[:, :2] < cell.box[2:]) & (frames[:, 2:] > cell.box[:2])).all(axis=1)
        reports = np.concatenate([v.xyxy[np.array(numbers_of(v), int) == number] for v in views.values()])
        withheld = np.count_nonzero(shown) - len(reports)
        in_a_joined_one = any(((joined[:, :2] <= box[:2]) & (joined[:, 2:] >= box[2:])).all(1).any() for box in reports)
        assert number in numbers or in_a_joined_one or withheld > 0
    for number, flags, box in zip(numbers, objects.flags, objects.xyxy.tolist(), strict=True):
        cell = scene.cells[number]
        assert flags == 0 or max(box[2] - box[0], box[3] - box[1], cell.longer_side_px) > scene.bound_px
        assert flags in (0, JOINED, TRUNCATED)


@pytest.mark.parametrize(("mode", "jitter"), [("clip", 0), ("drop", 0), ("clip", 2)])
@settings(max_examples=16, deadline=None)
@given(seed=st.integers(0, 10**6), with_masks=st.booleans())
def test_the_stitcher_and_the_slow_obvious_rule_agree_and_keep_its_promises(mode, jitter, seed, with_masks):
    drawn = draw_case(seed, mode, jitter)
    assume(drawn is not None)
    case, views = drawn
    size, windows, _, guard_px, _, kind = case
    with_masks = with_masks or kind == "ellipse"
    ours = views_of(case, views, with_masks)

    objects = stitch(windows_of(case), ours, guard_px)

    expected = oracle.stitch(windows, views, guard_px)
    assert results_of(objects, size, with_masks) == results_of_oracle(expected, size, with_masks)
    judged = oracle.judge(case, views, expected, jitter)
    assert judged["missed"] == 0
    assert jitter or judged["doubled"] == judged["extra"] == 0
    assert mode == "drop" or jitter or judged["vanished"] == 0


@settings(max_examples=25, deadline=None)
@given(scene=scenes(), seed=seeds)
def test_the_result_does_not_depend_on_the_order_of_windows_and_views(scene, seed):
    rng = random.Random(seed)
    views = predict(scene, rng, 0.25)
    shuffled = {k: _shuffled(views[k], rng) for k in rng.sample(sorted(views), len(views))}

    objects, again = stitch(scene.windows, views, scene.guard_px), stitch(scene.windows, shuffled, scene.guard_px)

    assert rows_of(objects) == rows_of(again)


@settings(max_examples=50, deadline=None)
@given(scene=scenes(), seed=seeds, by_rows=st.booleans(), ran_fraction=st.sampled_from([1.0, 0.7]))
def test_streaming_gives_what_all_windows_at_once_give(scene, seed, by_rows, ran_fraction):
    rng = random.Random(seed)
    views = predict(scene, rng, 0.25)
    ran = np.array([rng.random() < ran_fraction for _ in views])
    unread = {k for k in views if ran[k] and rng.random() < (1 - ran_fraction) / 3}
    order = [k for k in views if ran[k]]
    if not by_rows:
        rng.shuffle(order)

    stitcher, tables = Stitcher(scene.windows, scene.guard_px, ran), []
    for k in order:
        if k in unread:
            stitcher.leave_out(k)
        else:
            stitcher.add(k, views[k])
        tables.append(stitcher.completed())
    tables.append(stitcher.finish())

    at_once = stitch(scene.windows, {k: views[k] for k in order if k not in unread}, scene.guard_px)
    assert [row for table in tables for row in rows_of(table)] == list(rows_of(at_once))  # also in this order


@settings(max_examples=25, deadline=None)
@given(scene=scenes(), seed=seeds)
def test_an_object_leaves_at_the_latest_a_window_further_down(scene, seed):
    cells = [cell for cell in _far_apart(scene) if cell.longer_side_px <= scene.bound_px]
    scene = Scene(scene.windows, scene.overlap_px, scene.guard_px, cells)
    views = predict(scene, random.Random(seed), 0.0)
    stitcher, given_out = Stitcher(scene.windows, scene.guard_px), []

    for row in range(scene.windows.rows - 1):
        for k in scene.windows.of_row(row):
            stitcher.add(k, views[k])
        given_out += rows_of(stitcher.completed())

        border = scene.windows.starts_y[row + 1]
        due = {cell.box for cell in scene.cells if cell.box[3] + scene.windows.window_px <= border}
        assert due <= {row[:4] for row in given_out}


def _shuffled(views: Views, rng: random.Random) -> Views:
    return views.take(np.array(rng.sample(range(len(views)), len(views)), dtype=np.intp))


def _far_apart(scene: Scene) -> list:
    """Cells none of which meets another: overlapping ones may wait for each other's twins."""
    kept = []
    for cell in scene.cells:
        x0, y0, x1, y1 = cell.box
        if all(x1 <= c.box[0] or c.box[2] <= x0 or y1 <= c.box[1] or c.box[3] <= y0 for c in kept):
            kept.append(cell)
    return kept
