"""Eccentricity and solidity of outlines, against scikit-image on their pixels and against geometry known by heart."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from shapely.affinity import rotate, scale, translate
from skimage.measure import regionprops

from cytopipe.core.shapes import centroids_and_measures, shape_measures
from cytopipe.formats.rasterise import label_image
from tests.outlines import cells


def test_random_cells_measure_as_scikit_image_measures_their_pixels():
    outlines = cells(120, seed=4, radius_px=(40, 70))

    eccentricity, solidity = shape_measures(outlines).T

    for k, outline in enumerate(outlines):
        x0, y0, x1, y1 = (int(v) for v in (*np.floor(outline.bounds[:2]), *np.ceil(outline.bounds[2:])))
        (theirs,) = regionprops(label_image(np.array([outline], object), (x0, y0, x1, y1)))
        # in squares, since the root has no slope limit at 0; pixels have a variance of 1/12 px² of their own
        assert eccentricity[k] ** 2 == pytest.approx(theirs.eccentricity**2, abs=0.01)
        # its hull goes round the corners of the pixels: half a px further out
        assert solidity[k] == pytest.approx(theirs.solidity, abs=1.2 * outline.convex_hull.length / 2 / outline.area)
        assert outline.area == pytest.approx(theirs.area, rel=0.01)
        assert 2 * np.sqrt(outline.area / np.pi) == pytest.approx(theirs.equivalent_diameter_area, rel=0.005)


def test_an_ellipse_a_ring_and_a_bar_measure_as_geometry_says():
    circle = shapely.Point(0, 0).buffer(10, quad_segs=64)
    ellipse = rotate(scale(circle, 3, 1), 33)
    ring = circle.difference(shapely.Point(0, 0).buffer(5, quad_segs=64))
    bar = shapely.box(0, 0, 40, 10)

    measured = shape_measures(np.array([circle, ellipse, ring, bar], object))

    assert measured[:, 0] == pytest.approx([0, np.sqrt(1 - 1 / 9), 0, np.sqrt(1 - 1 / 16)], abs=1e-6)
    assert measured[:, 1] == pytest.approx([1, 1, 0.75, 1], abs=1e-3)


def test_where_an_outline_lies_and_which_way_round_it_is_drawn_changes_nothing():
    outlines = cells(20, seed=5)
    far = np.array([translate(outline, 90_000.25, 80_000.5) for outline in outlines], object)
    around = shapely.reverse(outlines)
    in_parts = np.array([shapely.MultiPolygon([outline]) for outline in outlines], object)

    expected = shape_measures(outlines)

    for moved in (far, around, in_parts):
        assert shape_measures(moved) == pytest.approx(expected, abs=1e-6)


def test_two_parts_are_one_shape():
    apart = shapely.MultiPolygon([shapely.box(0, 0, 10, 10), shapely.box(30, 0, 40, 10)])

    ((eccentricity, solidity),) = shape_measures(np.array([apart], object))

    variance_x, variance_y = 15**2 + 100 / 12, 100 / 12  # of the middles, and of a square of 10 px
    assert eccentricity == pytest.approx(np.sqrt(1 - variance_y / variance_x))
    assert solidity == pytest.approx(0.5)


def test_what_has_no_outline_or_no_area_has_no_shape():
    outlines = np.array([None, shapely.Polygon(), shapely.Polygon([(0, 0), (5, 5), (0, 0)])], object)

    assert np.isnan(shape_measures(outlines)).all()
    assert shape_measures(outlines[:0]).shape == (0, 2)


def test_centroids_are_those_of_geos_also_far_from_the_origin_and_with_holes():
    outlines = np.array(
        [
            shapely.Point(90_000.25, 70_000.5).buffer(20).difference(shapely.Point(90_007, 70_000).buffer(5)),
            shapely.MultiPolygon([shapely.box(0, 0, 4, 2), shapely.box(10, 0, 11, 30)]),
        ],
        object,
    )
    expected = shapely.get_coordinates(shapely.centroid(outlines))
    assert centroids_and_measures(outlines)[0] == pytest.approx(expected, abs=1e-8)
