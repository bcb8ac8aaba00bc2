"""The summary of a slide: the same however its objects come, bounded however many there are."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from cytopipe.core.classes import class_named
from cytopipe.core.objects import JOINED, TRUNCATED, Objects, no_objects
from cytopipe.formats.results import suspicion
from cytopipe.report.summary import DENSITY_PX, KEPT, SLIDE_SUSPECTS, SlideSummary

CLASSES = [class_named(name) for name in ("nucleus", "normal", "HSIL")]
SIZE = (3000, 1000)


def random_objects(count, seed, *, distinct_scores=7):
    """Boxes anywhere on the slide; few different scores, so that many objects are equally suspicious."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 1, (count, 2)) * (np.array(SIZE) - 60)
    xyxy = np.concatenate([corners, corners + rng.uniform(4, 60, (count, 2))], axis=1)
    kind = rng.integers(0, 3, count).astype(np.int32)
    scores = np.zeros((count, 3), np.float32)
    scores[:, 2] = rng.integers(0, distinct_scores, count) / np.float32(distinct_scores)
    scores[kind == 0, 2] = 0
    score = rng.integers(0, distinct_scores, count).astype(np.float32) / distinct_scores
    flags = rng.integers(0, 4, count).astype(np.uint8)
    geometry = np.array(shapely.box(*xyxy.T), dtype=object).reshape(count)
    return Objects(xyxy, kind, score, scores, geometry, flags, np.zeros(count, np.int32))


def summary_of(*tables, mpp=(0.5, 0.5)):
    summary = SlideSummary(CLASSES, mpp, SIZE)
    for objects, ids in tables:
        summary.add(objects, ids)
    return summary


def told(summary):
    """All that a page can know of a summary."""
    suspects = summary.suspects(KEPT, at_least=KEPT)
    return (
        summary.counts.tolist(),
        summary.score_counts.tolist(),
        summary.area_px.tolist(),
        np.nan_to_num(summary.mean_score, nan=-1).tolist(),
        summary.suspicious,
        summary.suspicion,
        summary.flag_counts,
        summary.density.tolist(),
        summary.suspicion_density.tolist(),
        suspects.objects.xyxy.tolist(),
        suspects.suspicion.tolist(),
        suspects.object_ids,
    )


@settings(max_examples=25)
@given(seed=st.integers(0, 2**16), cuts=st.lists(st.integers(0, 1200), max_size=8), shuffled=st.booleans())
def test_a_summary_does_not_depend_on_how_its_objects_were_cut_into_tables_or_on_their_order(seed, cuts, shuffled):
    objects = random_objects(1200, seed)
    ids = np.array([f"id-{k:04}" for k in range(1200)])
    whole = summary_of((objects, ids.tolist()))

    order = np.random.default_rng(seed).permutation(1200) if shuffled else np.arange(1200)
    pieces = np.split(order, sorted(cuts))
    cut = summary_of(*((objects.take(rows), ids[rows].tolist()) for rows in pieces))

    assert told(cut) == told(whole)


def test_the_sums_are_those_of_all_objects_at_once():
    objects = random_objects(5000, 3)

    summary = summary_of((objects, None))

    level = suspicion(objects.class_scores, CLASSES, objects.score)
    area = shapely.area(objects.geometry)
    for k in range(3):
        mine = objects.class_index == k
        assert summary.counts[k] == mine.sum()
        assert summary.area_px[k] == pytest.approx(area[mine].sum(), rel=1e-6)  # kept in steps of 1/1024 px²
        assert summary.mean_score[k] == pytest.approx(objects.score[mine].mean(), rel=1e-6)
        assert summary.score_counts[k].tolist() == np.histogram(objects.score[mine], 20, (0, 1))[0].tolist()
    assert summary.suspicious == (level >= 0.5).sum()
    assert summary.flag_counts == {bit: ((objects.flags & bit) > 0).sum() for bit in (JOINED, TRUNCATED)}
    assert summary.density.sum() == 5000
    assert summary.suspicion_density.sum() == pytest.approx(level.sum(), rel=1e-6)


def test_the_suspects_are_the_head_of_all_objects_sorted_by_suspicion_score_and_place():
    objects = random_objects(5000, 4)

    suspects = summary_of((objects, [str(k) for k in range(5000)])).suspects(200)

    level = suspicion(objects.class_scores, CLASSES, objects.score)
    place = [(-level[k], -objects.score[k], objects.xyxy[k, 1], objects.xyxy[k, 0]) for k in range(5000)]
    expected = sorted(range(5000), key=lambda k: place[k])[:200]
    assert suspects.object_ids == tuple(str(k) for k in expected)
    assert (suspects.objects.xyxy == objects.xyxy[expected]).all()


def test_what_is_kept_does_not_grow_with_the_number_of_objects():
    summary = SlideSummary(CLASSES, None, (100_000, 90_000))

    for seed in range(10):
        summary.add(random_objects(1000, seed))

    assert len(summary.suspects(10**6, at_least=10**6)) == KEPT
    assert max(summary.density.shape) == DENSITY_PX


def test_a_calm_slide_fills_up_with_cells_and_leaves_nuclei_out():
    objects = random_objects(300, 5)
    objects.class_scores[:, 2] = 0
    objects.class_scores[objects.class_index == 2, 2] = 0.25
    lesions, cells = (objects.class_index == 2).sum(), (objects.class_index > 0).sum()
    summary = summary_of((objects, None))

    assert len(summary.suspects(400)) == lesions
    assert len(summary.suspects(400, at_least=lesions + 5)) == lesions + 5
    everything = summary.suspects(400, at_least=400)
    assert len(everything) == cells
    assert (everything.objects.class_index > 0).all()


def test_a_model_that_knows_nuclei_only_shows_nuclei():
    summary = SlideSummary([class_named("nucleus")], None, SIZE)
    objects = random_objects(40, 6)
    nuclei = Objects(
        objects.xyxy, np.zeros(40, np.int32), objects.score, objects.score[:, None], objects.geometry, objects.flags,
        objects.window,
    )  # fmt: skip

    summary.add(nuclei)

    assert len(summary.suspects(100, at_least=100)) == 40


def test_a_slide_is_as_suspicious_as_its_twenty_most_suspicious_cells_and_many_calm_ones_do_not_add_up():
    def slide(suspicious, calm):
        objects = random_objects(suspicious + calm, 7)
        objects.class_scores[:] = 0
        objects.class_scores[:, 2] = [1.0] * suspicious + [0.0625] * calm
        return summary_of((objects, None)).suspicion

    assert slide(SLIDE_SUSPECTS, 0) == slide(SLIDE_SUSPECTS, 5000) == 1
    assert slide(1, 0) == pytest.approx(0.05)  # one alarm: nineteen places stay empty
    assert slide(0, 5000) == pytest.approx(0.0625)
    assert summary_of().suspicion == 0


def test_an_object_on_or_past_the_border_is_counted_in_the_outermost_cell():
    summary = summary_of()
    objects = random_objects(2, 8)
    objects.xyxy[:] = [[2990, 990, 3010, 1010], [-30, -30, -10, -10]]

    summary.add(objects)

    assert summary.density[-1, -1] == summary.density[0, 0] == 1


def test_tables_without_objects_change_nothing_and_ids_must_be_one_an_object():
    summary = summary_of((no_objects(3), []))

    assert summary.total == 0
    assert np.isnan(summary.mean_score).all()
    with pytest.raises(ValueError, match="1 ids for 2 objects"):
        summary.add(random_objects(2, 9), ["a"])
