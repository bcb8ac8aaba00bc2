"""From one view of an image to another (METHODS 1.6): boxes, masks, features, validity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cytopipe.semi import Geometry, View, map_boxes, map_features, map_masks, valid_both

exact = st.builds(Geometry, st.booleans(), st.booleans(), st.integers(0, 3), own_hflip=st.booleans())
any_geometry = st.builds(
    Geometry,
    st.booleans(),
    st.booleans(),
    st.integers(0, 3),
    st.floats(-15, 15),
    st.floats(0.8, 1.2),
    st.booleans(),
)
SIDE = 48


def affine(geometry: Geometry, side: int = SIDE) -> torch.Tensor:
    return torch.from_numpy(geometry.affine(side, side))


def boxes_inside(seed: int, n: int = 6, side: int = SIDE) -> torch.Tensor:
    """Boxes well inside every view of a source of that side."""
    generator = torch.Generator().manual_seed(seed)
    corner = side * (0.4 + 0.1 * torch.rand(n, 2, generator=generator, dtype=torch.float64))
    return torch.cat([corner, corner + 3 + side * 0.08 * torch.rand(n, 2, generator=generator)], dim=1)


def view(geometry: Geometry, valid: torch.Tensor | None = None, side: int = SIDE) -> View:
    keys = torch.zeros(1, dtype=torch.int64)
    return View(torch.zeros(1, 3, side, side), (), affine(geometry, side)[None], keys, valid=valid)


@settings(max_examples=25, deadline=None)
@given(exact, exact, st.integers(0, 999))
def test_boxes_mapped_to_a_turned_view_and_back_are_the_same(first, second, seed):
    a, b = affine(first), affine(second)
    boxes = boxes_inside(seed)

    there, kept = map_boxes(boxes, a, b, (SIDE, SIDE))
    back, _ = map_boxes(there, b, a, (SIDE, SIDE))

    assert kept.tolist() == list(range(len(boxes)))
    torch.testing.assert_close(back, boxes, atol=1e-4, rtol=0)


@settings(max_examples=25, deadline=None)
@given(any_geometry, any_geometry, st.integers(0, 999))
def test_a_box_mapped_through_a_rotation_is_the_hull_of_its_four_mapped_corners(first, second, seed):
    boxes = boxes_inside(seed)

    found, _ = map_boxes(boxes, affine(first), affine(second), (SIDE, SIDE))

    to_second = first_to_second(first, second)
    for box, mapped in zip(boxes.numpy(), found.numpy(), strict=True):
        corners = [to_second(x, y) for x in box[[0, 2]] for y in box[[1, 3]]]
        xs, ys = zip(*corners, strict=True)
        np.testing.assert_allclose(mapped, [min(xs), min(ys), max(xs), max(ys)], atol=1e-6)


def first_to_second(first: Geometry, second: Geometry):
    """The map by solving for the source pixel, then applying the second view's matrix."""
    a, b = first.affine(SIDE, SIDE), second.affine(SIDE, SIDE)

    def move(x: float, y: float) -> tuple[float, float]:
        source = np.linalg.solve(a[:, :2], np.array([x, y]) - a[:, 2])
        column, row = b[:, :2] @ source + b[:, 2]
        return float(column), float(row)

    return move


def test_boxes_are_clipped_to_the_view_and_slivers_are_dropped_by_name():
    boxes = torch.tensor([[-5.0, 2, 3, 8], [9.5, 0, 30, 10], [2, 2, 4, 4], [20, 20, 30, 30]])
    same = affine(Geometry(), 10)

    mapped, kept = map_boxes(boxes, same, same, (10, 10))

    assert kept.tolist() == [0, 2]
    assert mapped.tolist() == [[0, 2, 3, 8], [2, 2, 4, 4]]
    assert mapped.dtype == torch.float32


def test_no_box_maps_to_no_box():
    boxes, kept = map_boxes(torch.zeros(0, 4), affine(Geometry()), affine(Geometry(hflip=True)), (SIDE, SIDE))

    assert boxes.shape == (0, 4)
    assert kept.shape == (0,)


@settings(max_examples=25, deadline=None)
@given(exact, exact, st.integers(0, 999))
def test_a_box_covers_the_same_object_as_the_mapped_mask(first, second, seed):
    rng = np.random.default_rng(seed)
    x0, y0 = rng.integers(0, SIDE - 4, 2)
    x1, y1 = x0 + rng.integers(2, SIDE - x0), y0 + rng.integers(2, SIDE - y0)
    mask = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    mask[0, y0:y1, x0:x1] = 1
    a, b = affine(first), affine(second)

    moved = map_masks(mask, a, b)
    (box,), _ = map_boxes(torch.tensor([[x0, y0, x1, y1]], dtype=torch.float64), a, b, (SIDE, SIDE))

    rows, columns = torch.where(moved[0] > 0)
    drawn = [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]
    assert drawn == [round(v) for v in box.tolist()]
    assert moved.sum() == mask.sum()
    assert (map_masks(moved, b, a) == mask).all()


@settings(max_examples=25, deadline=None)
@given(any_geometry, any_geometry)
def test_a_disc_mapped_as_a_mask_lies_where_its_mapped_box_says(first, second):
    y, x = torch.meshgrid(torch.arange(SIDE) + 0.5, torch.arange(SIDE) + 0.5, indexing="ij")
    disc = (((x - 26) ** 2 + (y - 22) ** 2) < 64).to(torch.uint8)[None]
    a, b = affine(first), affine(second)

    moved = map_masks(disc, a, b)
    centre = first_to_second(first, second)(26.0, 22.0)
    zoom = second.scale / first.scale

    rows, columns = torch.where(moved[0] > 0)
    assert float(columns.double().mean()) + 0.5 == pytest.approx(centre[0], abs=0.6)
    assert float(rows.double().mean()) + 0.5 == pytest.approx(centre[1], abs=0.6)
    assert int(moved.sum()) == pytest.approx(math.pi * 64 * zoom**2, rel=0.12)


@settings(max_examples=25, deadline=None)
@given(exact, exact, st.sampled_from([1, 4]))
def test_features_of_a_flipped_view_are_mapped_back_by_index_alone(first, second, stride):
    cells = SIDE // stride
    source = torch.rand(2, 3, cells, cells, dtype=torch.float64)
    turned = [torch.from_numpy(g.apply(source.numpy(), axes=(2, 3))) for g in (first, second)]
    a, b = affine(first)[None].expand(2, 2, 3), affine(second)[None].expand(2, 2, 3)

    assert (map_features(turned[0], a, b, stride) == turned[1]).all()


def test_map_features_of_a_flip_equals_the_features():
    features = torch.rand(1, 5, 8, 8)
    plain, flipped = affine(Geometry(), 32)[None], affine(Geometry(hflip=True), 32)[None]

    assert (map_features(features.flip(-1), flipped, plain, 4) == features).all()
    assert not (map_features(features.flip(-1), flipped, flipped, 4) == features).all()


def test_each_image_of_a_batch_is_mapped_by_its_own_affine():
    features = torch.rand(2, 1, 6, 6)
    plain = affine(Geometry(), 24)
    to = torch.stack([plain, affine(Geometry(vflip=True), 24)])

    mapped = map_features(features, torch.stack([plain, plain]), to, 4)

    assert (mapped[0] == features[0]).all()
    assert (mapped[1] == features[1].flip(-2)).all()


@settings(max_examples=25, deadline=None)
@given(any_geometry, any_geometry, st.sampled_from([1, 4]))
def test_mapped_features_are_those_of_the_second_view_wherever_both_show_the_image(first, second, stride):
    """A plane f(x, y) of source coordinates: bilinear sampling reproduces it exactly."""
    a, b = affine(first), affine(second)
    cells = SIDE // stride

    def plane(geometry: Geometry) -> torch.Tensor:
        matrix = geometry.affine(SIDE, SIDE)
        rows, columns = np.mgrid[:cells, :cells]
        at = np.stack([(columns + 0.5) * stride, (rows + 0.5) * stride]).reshape(2, -1) - matrix[:, 2:]
        x, y = np.linalg.solve(matrix[:, :2], at)
        return torch.from_numpy(0.3 * x - 0.2 * y + 1).reshape(1, 1, cells, cells)

    mapped = map_features(plane(first), a[None], b[None], stride)
    middle = slice(cells // 4, -(cells // 4))

    torch.testing.assert_close(mapped[..., middle, middle], plane(second)[..., middle, middle], atol=1e-6, rtol=0)


def test_features_keep_their_gradient_through_a_rotation():
    features = torch.rand(1, 2, 8, 8, dtype=torch.float64, requires_grad=True)

    mapped = map_features(features, affine(Geometry(), 32)[None], affine(Geometry(rotate_deg=10), 32)[None], 4)
    mapped.sum().backward()

    assert features.grad is not None
    assert features.grad[..., 3:5, 3:5].min() > 0.5


def test_quarter_turns_of_some_images_of_a_batch_only_are_refused_where_maps_are_not_square():
    features = torch.rand(2, 1, 4, 6)
    plain = torch.from_numpy(Geometry().affine(16, 24))
    turned = torch.from_numpy(Geometry(quarter_turns=1).affine(16, 24))

    with pytest.raises(ValueError, match="turned in some images"):
        map_features(features, torch.stack([plain, plain]), torch.stack([plain, turned]), 4)

    both = map_features(features, torch.stack([plain, plain]), torch.stack([turned, turned]), 4)
    assert both.shape == (2, 1, 6, 4)


def test_two_views_of_one_geometry_without_borders_show_the_image_everywhere():
    assert valid_both(view(Geometry(hflip=True)), view(Geometry()), 4).all()
    assert valid_both(view(Geometry()), view(Geometry()), 8).shape == (1, 6, 6)


@settings(max_examples=25, deadline=None)
@given(exact, exact)
def test_what_one_view_lacks_is_not_shown_by_both_and_one_pixel_costs_its_whole_cell(first, second):
    lacking = torch.ones(1, SIDE, SIDE, dtype=torch.bool)
    lacking[0, 5, 9] = False  # a pixel of the first view

    shown = valid_both(view(first, lacking), view(second), 4)

    moved = map_masks((~lacking).to(torch.uint8), affine(first), affine(second))
    row, column = (int(v) for v in torch.where(moved[0] > 0))
    assert shown.sum() == 12 * 12 - 1
    assert not shown[0, row // 4, column // 4]
    assert (valid_both(view(second), view(first, lacking), 4).sum()) == 12 * 12 - 1


@settings(max_examples=25, deadline=None)
@given(any_geometry, any_geometry)
def test_cells_shown_by_both_views_are_those_whose_every_pixel_comes_from_inside_the_other(first, second):
    found = valid_both(view(first), view(second), 4)[0]

    back = first_to_second(second, first)
    for row in range(12):
        for column in range(12):
            pixels = [back(4 * column + i + 0.5, 4 * row + j + 0.5) for i in range(4) for j in range(4)]
            inside = [min(x, y, SIDE - x, SIDE - y) for x, y in pixels]
            if min(inside) > 0.51:
                assert found[row, column]
            elif min(inside) < 0.49:
                assert not found[row, column]
