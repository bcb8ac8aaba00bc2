"""Outlines as pixels, against shapely point by point, and as a label image that gives the outlines back."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.draw import polygon2mask

from cytopipe.formats.pixel_outlines import PixelOutlines
from cytopipe.formats.rasterise import label_image, spans
from cytopipe.infer.masks import polygons_from_roi_masks
from tests.outlines import cells


def centres(box):
    x0, y0, x1, y1 = box
    return np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), corner=st.tuples(st.integers(-40, 300), st.integers(-40, 300)))
def test_a_pixel_is_inside_where_its_centre_is(seed, corner):
    outlines = np.append(cells(4, seed), None)
    box = (*corner, corner[0] + 150, corner[1] + 90)

    images = [label_image(outlines[k : k + 1], box) for k in range(5)]

    for outline, image in zip(outlines, images, strict=True):
        assert (image == shapely.contains_xy(outline, *centres(box))).all()  # no centre lies on these outlines


def test_scikit_image_fills_the_same_pixels():
    for outline in cells(30, seed=1, side_px=100):
        x, y = np.asarray(outline.exterior.coords).T

        # polygon2mask takes rows first and pixel centres at integers
        theirs = polygon2mask((120, 120), np.stack([y - 0.5, x - 0.5], axis=1))

        ours = label_image(np.array([shapely.Polygon(outline.exterior)], object), (0, 0, 120, 120))
        assert (ours == theirs).all()


def test_polygons_that_share_edges_through_pixel_centres_share_no_pixel_and_leave_none_out():
    tiles = shapely.box(*np.array([[x, y, x + 2.5, y + 3.5] for x in (0.5, 3) for y in (0.5, 4)]).T)

    found = spans(tiles, (0, 0, 8, 9))

    times = np.zeros((9, 8), int)
    for row, first, last in zip(found.row, found.first, found.last, strict=True):
        times[row, first:last] += 1
    expected = np.zeros((9, 8), int)
    expected[0:7, 0:5] = 1  # centres from 0.5 up to, and not including, 5.5 and 7.5
    assert times.tolist() == expected.tolist()


def test_the_last_of_overlapping_polygons_is_seen_and_labels_are_as_given():
    outlines = np.array([shapely.box(0, 0, 4, 4), shapely.box(2, 2, 6, 6)], object)
    canvas = np.full((6, 12), 9, np.uint16)[:, ::2]

    image = label_image(outlines, (0, 0, 6, 6), labels=[7, 3], out=canvas)

    assert image is canvas
    assert (image[:4, :2] == 7).all()
    assert (image[2:, 2:] == 3).all()
    assert (image[4:, :2] == 9).all()


def test_the_outline_of_painted_pixels_is_painted_as_the_same_pixels():
    rng = np.random.default_rng(8)
    labels = (rng.random((60, 70)) < 0.6) * rng.integers(1, 4, (60, 70))
    outlines = PixelOutlines(70)
    outlines.add(labels)
    shapes = np.empty(3, object)
    for label, polygons in outlines.polygons().items():
        shapes[label - 1] = shapely.MultiPolygon([shapely.Polygon(rings[0], rings[1:]) for rings in polygons])

    assert (label_image(shapes, (0, 0, 70, 60)) == labels).all()


def test_label_images_and_polygons_of_a_mask_head_agree():
    rng = np.random.default_rng(3)
    masks = np.clip(rng.normal(0.3, 0.3, (40, 28, 28)), 0, 1).astype(np.float32)
    masks[:, 6:22, 6:22] += 0.5
    masks[:, 12:15, 12:15] = 0  # a hole
    corner = rng.uniform(0, 200, (40, 2))
    polygons = polygons_from_roi_masks(np.minimum(masks, 1), np.hstack([corner, corner + rng.uniform(15, 60, (40, 2))]))
    box = (0, 0, 260, 260)

    image = label_image(polygons, box)

    inside = np.stack([shapely.contains_xy(polygon, *centres(box)) for polygon in polygons])
    uppermost = np.where(inside.any(axis=0), 40 - np.argmax(inside[::-1], axis=0), 0)
    assert (image == uppermost).all()
    assert spans(polygons, box).areas(40).tolist() == inside.sum(axis=(1, 2)).tolist()


def test_a_box_without_area_or_labels_that_do_not_fit_are_our_own_mistake():
    outlines = np.array([shapely.box(0, 0, 4, 4)], object)

    with pytest.raises(ValueError, match="box"):
        spans(outlines, (0, 0, 0, 5))
    with pytest.raises(ValueError, match="2 labels for 1"):
        label_image(outlines, (0, 0, 5, 5), [1, 2])
    with pytest.raises(ValueError, match="out of shape"):
        label_image(outlines, (0, 0, 5, 5), out=np.zeros((4, 5), int))
