"""What the stitching rule promises of a predictor that errs: it invents nothing, and loses only what it mistakes."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cytopipe.core.objects import Objects
from cytopipe.infer.stitching import Views, stitch
from tests.property import stitch_reference as oracle
from tests.property.stitch_cases import results_of, results_of_oracle, views_of, windows_of
from tests.property.stitch_noise import NOISES, draw_noisy_case, judge, noisy_views
from tests.property.stitch_scenes import moved_scenes, numbers_of, scenes

seeds = st.integers(0, 2**32)
noises = st.sampled_from(sorted(NOISES))


@pytest.mark.parametrize("name", sorted(NOISES))
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), with_masks=st.booleans())
def test_under_noise_the_stitcher_and_the_slow_obvious_rule_agree_and_lose_only_what_was_mistaken(
    name, seed, with_masks
):
    noise = NOISES[name]
    drawn = draw_noisy_case(seed, noise)
    assume(drawn is not None)
    case, views = drawn
    size, windows, _, guard_px, _, kind = case
    with_masks = with_masks or kind == "ellipse"
    ours = views_of(case, views, with_masks)

    objects = stitch(windows_of(case), ours, guard_px)

    expected = oracle.stitch(windows, views, guard_px)
    assert results_of(objects, size, with_masks) == results_of_oracle(expected, size, with_masks)
    assert judge(case, views, expected, noise)["lost"] == 0


@settings(max_examples=100, deadline=None)
@given(scene=st.one_of(scenes(), moved_scenes()), seed=seeds, name=noises)
def test_a_cell_that_some_window_reported_whole_is_missed_only_where_another_was_taken_for_it(scene, seed, name):
    views = noisy_views(scene, NOISES[name], random.Random(seed))

    objects = stitch(scene.windows, views, scene.guard_px)

    whole = objects.take(objects.flags == 0)
    found = set(numbers_of(whole))
    distance = scene.windows.inner_distance(whole.xyxy, whole.window)
    for k, reported in views.items():
        for i, number in enumerate(numbers_of(reported)):
            d = scene.windows.inner_distance(reported.xyxy[i : i + 1], np.array([k]))[0]
            if d >= scene.guard_px and number not in found:
                like = _all_alike(views, k, i)
                rivals = zip(_names(whole), distance.tolist(), strict=True)
                assert any(name in like and d <= theirs for name, theirs in rivals)


@settings(max_examples=60, deadline=None)
@given(scene=st.one_of(scenes(), moved_scenes()), seed=seeds, name=noises)
def test_whatever_is_not_flagged_is_one_report_word_for_word_by_a_window_that_saw_it_clear(scene, seed, name):
    views = noisy_views(scene, NOISES[name], random.Random(seed))

    objects = stitch(scene.windows, views, scene.guard_px)

    whole = objects.take(objects.flags == 0)
    assert (scene.windows.inner_distance(whole.xyxy, whole.window) >= scene.guard_px).all()
    reported = Counter(_spelled(seen, i, k) for k, seen in views.items() for i in range(len(seen)))
    given_out = Counter(_spelled(whole, i, int(whole.window[i])) for i in range(len(whole)))
    assert given_out <= reported  # not one of them twice


def _spelled(table: Objects | Views, i: int, window: int) -> tuple:
    shape = table.geometry[i]
    numbers = (*table.xyxy[i].tolist(), int(table.class_index[i]), float(table.score[i]))
    told = (table.class_scores[i].tobytes(), table.measures[i].tobytes())
    return (window, *numbers, *told, "" if shape is None else shape.wkt)


def _names(table: Objects) -> list[tuple]:
    return [(int(k), *box) for k, box in zip(table.window, table.xyxy.tolist(), strict=True)]


def _all_alike(views: dict[int, Views], window: int, i: int) -> set[tuple]:
    """The views of other cells, by window and box, that a chain of views with IoU >= 0.5 connects with this one."""
    pool = [(k, j) for k, seen in views.items() for j in range(len(seen))]
    number, connected, new = numbers_of(views[window])[i], {(window, i)}, [(window, i)]
    while new:
        k, j = new.pop()
        for other in pool:
            if other[0] != k and other not in connected and _iou(views[k], j, views[other[0]], other[1]) >= 0.5:
                connected.add(other)
                new.append(other)
    by_window = defaultdict(list)
    for k, j in connected:
        if numbers_of(views[k])[j] != number:
            by_window[k].append(j)
    return {(k, *views[k].xyxy[j].tolist()) for k, rows in by_window.items() for j in rows}


def _iou(a: Views, i: int, b: Views, j: int) -> float:
    if a.geometry[i] is not None and b.geometry[j] is not None:
        both = a.geometry[i].intersection(b.geometry[j]).area
        return both / (a.geometry[i].area + b.geometry[j].area - both)
    low, high = np.maximum(a.xyxy[i, :2], b.xyxy[j, :2]), np.minimum(a.xyxy[i, 2:], b.xyxy[j, 2:])
    both = np.prod(np.clip(high - low, 0, None))
    return both / (np.prod(a.xyxy[i, 2:] - a.xyxy[i, :2]) + np.prod(b.xyxy[j, 2:] - b.xyxy[j, :2]) - both)
