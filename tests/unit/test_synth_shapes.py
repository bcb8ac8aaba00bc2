"""Outlines of synthetic cells: simple polygons of the size that was asked for."""

from __future__ import annotations

import numpy as np
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely import Point, Polygon

from cytopipe.synth.shapes import Star, folded, nucleus_outline, polygonal_outline, round_outline

seeds = st.integers(0, 2**32 - 1)


@given(seed=seeds, diameter=st.floats(2, 80), aspect=st.floats(1, 3))
def test_an_outline_is_a_simple_polygon_of_about_the_area_asked_for(seed, diameter, aspect):
    rng = np.random.default_rng(seed)

    for make in (polygonal_outline, round_outline, lambda *a: nucleus_outline(*a, 0.05)):
        shape = Polygon(make(rng, diameter, aspect).vertices)

        assert shape.is_valid
        # The waves of a contour move the area a little; a polygon inscribed in an ellipse of ratio 3 loses 3%.
        assert 0.7 < shape.area / (np.pi * diameter**2 / 4) < 1.35


@given(seed=seeds, x=st.floats(-15, 15), y=st.floats(-15, 15))
def test_the_depth_of_a_point_is_positive_exactly_inside(seed, x, y):
    star = polygonal_outline(np.random.default_rng(seed), 20.0, 1.2)
    shape = Polygon(star.vertices)
    point = Point(x, y)

    depth = float(star.depth(np.array([[x, y]]))[0])

    if shape.exterior.distance(point) > 1e-6:  # on the border itself rounding decides
        assert (depth > 0) == shape.contains(point)


@given(seed=seeds, share=st.floats(0.3, 1.2), dx=st.floats(-3, 3), dy=st.floats(-3, 3))
def test_an_outline_grown_around_another_contains_it_even_where_it_was_smaller(seed, share, dx, dy):
    rng = np.random.default_rng(seed)
    cell = polygonal_outline(rng, 20.0, 1.3)
    nucleus = nucleus_outline(rng, 20.0 * share, 1.3, 0.05)
    nucleus = Star(np.array([dx, dy]) * share, nucleus.radii)

    grown = Polygon(cell.grown_around(nucleus, 0.5).vertices)

    assert grown.contains(Polygon(nucleus.vertices))
    assert grown.buffer(1e-6).contains(Polygon(cell.vertices))


@given(seed=seeds, angle=st.floats(0, 6.28), height=st.floats(-0.9, 0.9))
def test_folding_keeps_the_area_and_lays_the_flap_on_the_other_side_of_the_line(seed, angle, height):
    outline = polygonal_outline(np.random.default_rng(seed), 40.0, 1.2).vertices
    normal = np.array([np.cos(angle), np.sin(angle)])
    point = normal * height * 20

    result = folded(outline, point, normal)

    if result is not None:
        rest, flap = (Polygon(part) for part in result)
        assert rest.is_valid
        assert np.isclose(rest.area + shapely.area(flap), Polygon(outline).area)
        assert max(((part - point) @ normal).max() for part in result) < 1e-6


def test_a_line_beside_the_cell_folds_nothing():
    outline = round_outline(np.random.default_rng(0), 40.0, 1.0).vertices

    assert folded(outline, np.array([100.0, 0.0]), np.array([1.0, 0.0])) is None
