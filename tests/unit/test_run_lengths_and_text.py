"""Numbers as text and outlines as run lengths, made a column at a time: each against the plain way."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from cytopipe.core.rings import rings_of, turns_of
from cytopipe.formats.decimal_text import MILLIONTH_WORDS, put_millionths, thousandths
from cytopipe.formats.results.identity import ID_GRID_PX, _keys
from cytopipe.formats.run_lengths import MAX_PIXELS, run_lengths


def texts(words):
    return [row.tobytes().replace(b"\0", b"").decode() for row in np.ascontiguousarray(words)]


@given(st.lists(st.one_of(st.integers(0, 10**10 - 1), st.integers(0, 99).map(lambda k: k * 1000)), min_size=1))
def test_thousandths_are_the_shortest_text_of_their_value(values):
    found = texts(np.stack(thousandths(np.array(values), ","), axis=1))

    for value, text in zip(values, found, strict=True):
        number = text.removesuffix(",")
        assert json.loads(number) == value / 1000
        assert "." not in number or not number.endswith(("0", "."))


@given(st.lists(st.one_of(st.floats(-1e20, 1e20), st.floats(-10, 10), st.integers(-5, 5).map(float)), min_size=1))
def test_millionths_are_the_value_to_their_last_digit(values):
    words = np.empty((len(values), MILLIONTH_WORDS), np.uint32)

    put_millionths(words, np.array(values))

    for value, text in zip(values, texts(words), strict=True):
        assert json.loads(text) == pytest.approx(value, rel=1e-11, abs=0.50001e-6)


@given(seed=st.integers(0, 10**6), points=st.integers(3, 9), whole=st.booleans(), clockwise=st.booleans())
@settings(deadline=None)
def test_the_key_of_an_outline_is_the_well_known_binary_of_its_normal_form(seed, points, whole, clockwise):
    rng = np.random.default_rng(seed)
    turn = np.sort(rng.random((20, points)), axis=1)[:, :: -1 if clockwise else 1] * 2 * np.pi
    radius = rng.uniform(0.01, 9, (20, points))
    xy = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=2) + rng.uniform(0, 1e5, (20, 1, 2))
    shapes = shapely.polygons(np.round(xy) if whole else xy)

    on_grid = shapely.transform(shapes, lambda p: np.round(p / ID_GRID_PX) + 0.0)

    assert _keys(shapes) == shapely.to_wkb(shapely.normalize(on_grid), byte_order=1).tolist()


def test_a_star_shaped_ring_is_told_from_one_that_goes_round_twice_and_from_a_bent_one():
    turn = np.arange(5) / 5 * 2 * np.pi
    once = shapely.Polygon(np.stack([9 * np.cos(turn), 9 * np.sin(turn)], axis=1))
    twice = shapely.Polygon(np.stack([9 * np.cos(2 * turn), 9 * np.sin(2 * turn)], axis=1))
    bent = shapely.Polygon([(0, 0), (9, 0), (9, 9), (8, 9), (8, 1), (1, 1), (1, 9), (0, 9)])
    rings = rings_of(np.array([once, once.reverse(), twice, bent], dtype=object))

    area, is_star = turns_of(rings.xy, rings.first)

    assert is_star.tolist() == [True, True, False, False]
    assert area[[0, 1]] == pytest.approx([once.area, -once.area])


def test_an_image_of_more_pixels_than_32_bits_count_has_no_run_lengths():
    with pytest.raises(ValueError, match="an image of"):
        list(run_lengths(np.array([shapely.box(0, 0, 1, 1)]), (MAX_PIXELS, 2)))
