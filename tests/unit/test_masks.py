"""Polygons of mask-head answers, against pasting the whole mask into the image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import shapely
from torch import from_numpy
from torchvision.models.detection.roi_heads import paste_masks_in_image

from cytopipe.infer.masks import SIMPLIFY_PX, polygons_from_roi_masks

CELLS = 28


def blobs(n: int, seed: int) -> np.ndarray:
    """(n, 28, 28) float32 probabilities: rough, lobed, some in pieces or with holes."""
    rng = np.random.default_rng(seed)
    yy, xx = np.mgrid[:CELLS, :CELLS]
    radius = np.hypot((xx - 13.5) / 14, (yy - 13.5) / 14)
    masks = np.empty((n, CELLS, CELLS), np.float32)
    for mask in masks:
        noise = cv2.GaussianBlur(rng.normal(size=radius.shape), (0, 0), rng.uniform(1.5, 5))
        logits = (1 - radius) * rng.uniform(2, 8) + noise / noise.std() * rng.uniform(0, 2)
        mask[:] = 1 / (1 + np.exp(-3 * logits))
    return masks


def pasted(mask: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The slow way: every pixel whose centre reads 0.5 or more, and the centres, x and y."""
    xs, ys = np.meshgrid(*(np.arange(np.floor(box[k]), np.ceil(box[k + 2])) + 0.5 for k in (0, 1)))
    column = (xs - box[0]) / (box[2] - box[0]) * CELLS + 0.5  # in a mask with one more cell of 0 on each side
    row = (ys - box[1]) / (box[3] - box[1]) * CELLS + 0.5
    padded = np.pad(mask, 1)
    left, upper = np.clip(column.astype(int), 0, CELLS), np.clip(row.astype(int), 0, CELLS)
    u, v = np.clip(column - left, 0, 1), np.clip(row - upper, 0, 1)
    top = padded[upper, left] * (1 - u) + padded[upper, left + 1] * u
    bottom = padded[upper + 1, left] * (1 - u) + padded[upper + 1, left + 1] * u
    return top * (1 - v) + bottom * v >= 0.5, xs, ys


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1))


def test_polygons_cover_the_pixels_that_the_pasted_mask_covers():
    masks, rng = blobs(200, seed=1), np.random.default_rng(2)
    corner, size = rng.uniform(0, 60_000, (200, 2)), rng.uniform(12, 150, (200, 2))
    boxes = np.concatenate([corner, corner + size], axis=1)

    exact, simplified = (polygons_from_roi_masks(masks, boxes, simplify_px=px) for px in (0, 0.15))

    ious = np.zeros((200, 2))
    for k in range(200):
        truth, xs, ys = pasted(masks[k], boxes[k])
        ious[k] = [iou(truth, shapely.contains_xy(polygons[k], xs, ys)) for polygons in (exact, simplified)]
    assert ious[:, 0].mean() > 0.999  # what is left are pixel centres within a hair of the outline
    assert ious[:, 1].mean() > 0.99
    assert ious[:, 1].min() > 0.9
    vertices = [shapely.get_num_coordinates(polygons).mean() for polygons in (exact, simplified)]
    assert vertices[1] < vertices[0] / 2


def test_polygons_agree_with_torchvision_where_its_rounding_does_not_move_the_box():
    # torchvision pads the mask, widens the box to match, truncates its corners, and takes the last px as part of it:
    # this is the box for which it pastes 30 padded cells onto 90 px sharp, 28 of them from 100 to 184
    masks, px_per_cell, x0 = blobs(60, seed=3), 3, 100
    half, centre = (30 * px_per_cell - 1) / 2 * 28 / 30, x0 + 14 * px_per_cell - 0.5 + 1e-3
    theirs_box = np.tile([centre - half, centre - half, centre + half, centre + half], (60, 1))
    boxes = np.tile([x0, x0, x0 + 28.0 * px_per_cell, x0 + 28.0 * px_per_cell], (60, 1))

    theirs = paste_masks_in_image(from_numpy(masks)[:, None], from_numpy(theirs_box), (220, 220))[:, 0].numpy() >= 0.5

    ours = polygons_from_roi_masks(masks, boxes, simplify_px=0)
    xs, ys = np.meshgrid(np.arange(220) + 0.5, np.arange(220) + 0.5)
    agree = [iou(a, shapely.contains_xy(b, xs, ys)) for a, b in zip(theirs, ours, strict=True)]
    assert min(agree) > 0.995  # specks below a pixel are left out


def test_simplifying_moves_an_outline_by_no_more_than_it_says():
    masks, rng = blobs(200, seed=5), np.random.default_rng(7)
    corner = rng.uniform(0, 300, (200, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(12, 150, (200, 2))], axis=1)

    exact, simplified = (polygons_from_roi_masks(masks, boxes, simplify_px=px) for px in (0, SIMPLIFY_PX))

    moved = shapely.hausdorff_distance(shapely.boundary(exact), shapely.boundary(simplified))  # over all vertices
    assert moved.max() <= SIMPLIFY_PX + 1e-9
    assert moved.max() > SIMPLIFY_PX / 2


def test_every_polygon_is_valid_and_lies_within_its_box():
    masks, rng = np.random.default_rng(4).random((60, CELLS, CELLS)).astype(np.float32), np.random.default_rng(5)
    corner = rng.uniform(0, 100_000, (60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.5, 60, (60, 2))], axis=1)

    for simplify_px in (0, 0.15):
        polygons = polygons_from_roi_masks(masks, boxes, simplify_px=simplify_px)

        assert shapely.is_valid(polygons).all()
        assert set(shapely.get_type_id(polygons)) <= {shapely.GeometryType.POLYGON, shapely.GeometryType.MULTIPOLYGON}
        bounds = shapely.bounds(polygons)
        assert (bounds[:, :2] >= boxes[:, :2] - 1e-6).all()
        assert (bounds[:, 2:] <= boxes[:, 2:] + 1e-6).all()


def test_a_full_mask_gives_its_box():
    (polygon,) = polygons_from_roi_masks(np.ones((1, CELLS, CELLS), np.float32), np.array([[100.5, 200, 156.5, 228]]))

    assert polygon.bounds == pytest.approx((100.5, 200, 156.5, 228), abs=1e-5)
    assert polygon.area == pytest.approx(56 * 28, rel=0.002)  # the corners are rounded by half a cell


def test_holes_are_kept():
    mask = np.zeros((1, CELLS, CELLS), np.float32)
    mask[0, 4:24, 4:24] = 1
    mask[0, 10:18, 8:14] = 0

    (polygon,) = polygons_from_roi_masks(mask, np.array([[0.0, 0, 56, 56]]))

    assert polygon.geom_type == "Polygon"
    assert len(polygon.interiors) == 1
    assert shapely.Polygon(polygon.interiors[0]).bounds == pytest.approx((16, 20, 28, 36), abs=0.01)


def test_an_island_in_a_hole_is_a_part_of_its_own():
    mask = np.zeros((1, CELLS, CELLS), np.float32)
    mask[0, 2:26, 2:26] = 1
    mask[0, 6:22, 6:22] = 0
    mask[0, 10:18, 10:18] = 1

    (polygon,) = polygons_from_roi_masks(mask, np.array([[0.0, 0, 56, 56]]))

    assert [len(part.interiors) for part in sorted(polygon.geoms, key=lambda part: part.area)] == [0, 1]
    assert not polygon.contains(shapely.Point(16, 28))
    assert polygon.contains(shapely.Point(28, 28))


def test_parts_and_holes_below_a_pixel_are_left_out_but_never_the_largest_part():
    speckled = np.zeros((2, CELLS, CELLS), np.float32)
    speckled[:, 20, 20] = speckled[:, 3, 5] = 1
    speckled[0, 5:15, 5:15] = 1
    speckled[0, 9, 9] = 0

    large, small = polygons_from_roi_masks(speckled, np.array([[0.0, 0, 28, 28], [0, 0, 14, 14]]), simplify_px=0)

    assert large.geom_type == "Polygon"
    assert len(large.interiors) == 0
    assert 0 < small.area < 1


def test_parts_that_meet_at_a_corner_stay_valid():
    mask = np.zeros((2, CELLS, CELLS), np.float32)
    mask[:, 5:10, 5:10] = mask[:, 10:15, 10:15] = 1  # probabilities at the corner: 0.5 exactly
    mask[1, 9, 10] = mask[1, 10, 9] = 0.1  # above it: one piece

    apart, together = polygons_from_roi_masks(mask, np.tile([0.0, 0, 56, 56], (2, 1)))

    assert apart.is_valid
    assert together.is_valid
    assert together.geom_type == "Polygon"


def test_an_empty_mask_or_box_has_no_polygon():
    masks = np.full((3, CELLS, CELLS), 0.49, np.float32)
    masks[1:] = 1

    polygons = polygons_from_roi_masks(masks, np.array([[0.0, 0, 20, 20], [5, 5, 5, 20], [0, 0, 20, 20]]))

    assert shapely.is_missing(polygons).tolist() == [True, True, False]
    assert len(polygons_from_roi_masks(masks[:0], np.zeros((0, 4)))) == 0


def test_a_box_far_below_a_pixel_and_far_from_the_origin_gives_a_valid_polygon_or_none():
    masks = np.random.default_rng(6).random((50, CELLS, CELLS)).astype(np.float32)
    boxes = np.tile([90_000.0, 90_000, 90_000 + 1e-8, 90_000 + 1e-8], (50, 1))

    polygons = polygons_from_roi_masks(masks, boxes)

    assert all(polygon is None or (polygon.is_valid and polygon.area > 0) for polygon in polygons)


def test_masks_without_their_boxes_are_our_own_mistake():
    with pytest.raises(ValueError, match="polygons_from_roi_masks"):
        polygons_from_roi_masks(np.zeros((2, CELLS, CELLS), np.float32), np.zeros((1, 4)))
