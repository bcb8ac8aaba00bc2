"""Choosing windows: the laws hold for every set of candidates, mixture and budget."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cytopipe.core.errors import UserError
from cytopipe.mine import Candidates, Picked, choose, parse_mixture, top_suspicion
from cytopipe.tiles import centred_corners

TILE_PX = 100


def candidates_of(slide_id: str, rows: list[tuple[int, int, float, bool]]) -> Candidates:
    """(x, y, score, on the grid) a window; what is not on the grid may be picked by score."""
    return Candidates(
        slide_id,
        np.array([row[:2] for row in rows], np.int64).reshape(-1, 2),
        np.array([row[2] for row in rows], np.float64),
        np.array([row[3] for row in rows], bool),
        np.array([not row[3] for row in rows], bool),
    )


window = st.tuples(st.integers(0, 400), st.integers(0, 400), st.sampled_from([0.0, 0.3, 0.5, 0.9]), st.booleans())
slides = st.lists(st.lists(window, max_size=12), min_size=1, max_size=4).map(
    lambda lists: [candidates_of(f"S-{i}", rows) for i, rows in enumerate(lists)]
)
mixtures = st.sampled_from(["score", "threshold", "random", "score=0.7,random=0.3", "random=0.5,threshold=0.5"])


def chosen(candidates: list[Candidates], mixture: str = "score", **changes: object) -> list[Picked]:
    settings = {"budget_per_slide": 3, "budget": None, "min_suspicion": 0.5, "max_overlap_fraction": 0.25, "seed": 0}
    return choose(candidates, TILE_PX, parse_mixture(mixture), **{**settings, **changes})


@settings(max_examples=200, deadline=None)
@given(slides, mixtures, st.integers(1, 6), st.integers(1, 10), st.sampled_from([0.0, 0.25, 0.8]))
def test_no_budget_is_exceeded_and_no_two_windows_overlap_more_than_asked(
    candidates, mixture, per_slide, total, most_overlap
):
    picked = chosen(candidates, mixture, budget_per_slide=per_slide, budget=total, max_overlap_fraction=most_overlap)

    assert len(picked) <= total
    assert all(count <= per_slide for count in Counter(window.slide_id for window in picked).values())
    for a, b in itertools.combinations(picked, 2):
        if a.slide_id == b.slide_id:
            shared = max(0, TILE_PX - abs(a.x - b.x)) * max(0, TILE_PX - abs(a.y - b.y))
            assert shared <= most_overlap * TILE_PX**2


@settings(max_examples=100, deadline=None)
@given(slides, mixtures, st.data())
def test_the_choice_depends_on_neither_the_order_of_slides_nor_that_of_windows(candidates, mixture, data):
    shuffled = []
    for of_slide in data.draw(st.permutations(candidates)):
        order = np.array(data.draw(st.permutations(range(len(of_slide)))), dtype=np.intp)
        arrays = (getattr(of_slide, name)[order] for name in ("corners", "score", "grid", "scored"))
        shuffled.append(Candidates(of_slide.slide_id, *arrays))

    assert chosen(shuffled, mixture, budget=5) == chosen(candidates, mixture, budget=5)


@settings(max_examples=100, deadline=None)
@given(slides, st.sampled_from(["score", "threshold", "random"]))
def test_without_a_total_budget_a_slide_gets_the_same_windows_whatever_other_slides_there_are(candidates, strategy):
    together = chosen(candidates, strategy)

    alone = [window for of_slide in candidates for window in chosen([of_slide], strategy)]
    assert together == sorted(alone)


@settings(max_examples=100, deadline=None)
@given(slides, mixtures)
def test_every_strategy_picks_only_what_is_a_candidate_for_it(candidates, mixture):
    by_id = {of_slide.slide_id: of_slide for of_slide in candidates}

    for pick in chosen(candidates, mixture):
        of_slide = by_id[pick.slide_id]
        (same,) = np.nonzero((of_slide.corners == (pick.x, pick.y)).all(axis=1) & (of_slide.score == pick.score))
        eligible = of_slide.grid if pick.strategy == "random" else of_slide.scored
        assert eligible[same].any()
        assert pick.strategy == "random" or pick.score >= (0.5 if pick.strategy == "threshold" else 0.3)


def row_of_windows(n: int, *, grid: bool) -> list[tuple[int, int, float, bool]]:
    return [(i * 1000, 0, (i + 1) / n, grid) for i in range(n)]


def test_score_takes_the_most_suspicious_windows_of_all_slides():
    a, b = candidates_of("a", [(0, 0, 0.2, False), (500, 0, 0.9, False)]), candidates_of("b", [(0, 0, 0.8, False)])

    assert [(p.slide_id, p.score) for p in chosen([a, b], budget=2)] == [("a", 0.9), ("b", 0.8)]


def test_a_mixture_divides_the_budget_by_its_shares():
    slide = candidates_of("a", row_of_windows(20, grid=False) + [(x, 5000, 0.0, True) for x in range(0, 20_000, 1000)])

    picked = chosen([slide], "score=0.7,random=0.3", budget_per_slide=10)

    assert Counter(window.strategy for window in picked) == {"score": 7, "random": 3}
    assert min(window.score for window in picked if window.strategy == "score") == pytest.approx(0.7)


def test_threshold_draws_among_the_suspicious_and_another_seed_draws_others():
    slide = candidates_of("a", row_of_windows(100, grid=False))

    first, second = (chosen([slide], "threshold", budget_per_slide=10, seed=seed) for seed in (0, 1))

    assert len(first) == 10
    assert all(window.score >= 0.5 for window in first)
    assert first != second
    # The ten most suspicious would have a mean of 0.955: a draw among the upper half is lower.
    assert np.mean([window.score for window in first]) < 0.9


def test_a_window_without_a_finding_is_never_picked_by_score_or_threshold():
    slide = candidates_of("a", [(0, 0, 0.0, False)])

    assert chosen([slide], "score") == []
    assert chosen([slide], "threshold", min_suspicion=0.0) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scores", r"unknown strategy 'scores'.*did you mean 'score'"),
        ("score,score", "names score twice"),
        ("score=0.7,random=0.2", "do not sum to 1"),
        ("score=1.5,random=-0.5", "do not sum to 1"),
        ("score=x,random=0.3", "'x' is no share"),
        ("", "unknown strategy ''"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_mixture(text)


def test_a_mixture_without_any_budget_is_refused():
    with pytest.raises(UserError, match="a mixture needs a budget"):
        chosen([candidates_of("a", [])], "score=0.5,random=0.5", budget_per_slide=None)


def test_a_window_is_as_suspicious_as_the_most_suspicious_object_whose_centre_it_holds():
    corners = np.array([[0, 0], [100, 0], [0, 100]])
    centres = np.array([[50.0, 50], [60, 60], [100, 20], [100, 100]])  # the third on an edge: in the window it begins

    score = top_suspicion(corners, TILE_PX, centres, np.array([0.3, 0.6, 0.8, 0.9]))

    assert score.tolist() == [0.6, 0.8, 0.0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 299), st.integers(0, 299), st.floats(0.01, 1)), max_size=20))
def test_each_object_scores_exactly_one_window_of_a_grid(objects):
    corners = np.array([(x, y) for y in (0, 100, 200) for x in (0, 100, 200)])
    centres = np.array([o[:2] for o in objects], np.float64).reshape(-1, 2)
    suspicion = np.array([o[2] for o in objects])

    score = top_suspicion(corners, TILE_PX, centres, suspicion)

    expected = np.zeros(9)
    for (x, y), value in zip(centres, suspicion, strict=True):
        expected[int(y // 100) * 3 + int(x // 100)] = max(expected[int(y // 100) * 3 + int(x // 100)], value)
    assert score.tolist() == expected.tolist()


def test_a_window_centred_on_an_object_stays_on_the_slide():
    centres = np.array([[500.0, 400], [3, 3], [999, 799]])

    assert centred_corners(centres, 100, 1000, 800).tolist() == [[450, 350], [0, 0], [900, 700]]
    assert centred_corners(centres[:1], 2000, 1000, 800).tolist() == [[0, 0]]
