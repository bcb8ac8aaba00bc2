"""What feature distillation is made of: adapters, the mirror twin of a view, masks of the image and of levels."""

from __future__ import annotations

import math

import pytest
import torch

from cytopipe.semi import EmaRule, EmaTeacher, Targets, View
from cytopipe.semi.adapters import Adapters
from cytopipe.semi.mapping import map_boxes, map_features
from cytopipe.semi.mirror import mirrored
from cytopipe.semi.object_masks import level_mask, union_of_masks

LEVELS = (2, 3)


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def view_of(images: int = 2, height: int = 4, width: int = 6) -> View:
    affine = torch.tensor([[[1.0, 0, -3], [0, 1, 2]]] * images, dtype=torch.float64)
    return View(drawn(0, images, 3, height, width), (), affine, torch.arange(images))


# Adapters


def test_adapters_start_kaiming_uniform_with_zero_biases_and_draw_nothing_from_torchs_stream():
    torch.manual_seed(3)
    untouched = torch.rand(4)
    torch.manual_seed(3)

    adapters = Adapters(LEVELS, 64, 32, seed=1)

    assert torch.equal(torch.rand(4), untouched)
    for layer in adapters.layers.values():
        bound = math.sqrt(6 / ((1 + 1) * 64))  # a = 1, fan-in 64
        assert layer.weight.shape == (32, 64, 1, 1)
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert torch.equal(layer.bias, torch.zeros(32))
    assert not torch.equal(adapters.layers["2"].weight, adapters.layers["3"].weight)
    assert torch.equal(Adapters(LEVELS, 64, 32, seed=1).layers["3"].weight, adapters.layers["3"].weight)


def test_each_level_goes_through_its_own_adapter():
    adapters, feats = Adapters(LEVELS, 4, 2, seed=1), {2: drawn(1, 2, 4, 6, 6), 3: drawn(2, 2, 4, 3, 3)}

    adapted = adapters(feats)

    for level in LEVELS:
        weight = adapters.layers[str(level)].weight[:, :, 0, 0]
        torch.testing.assert_close(adapted[level], torch.einsum("oc,bchw->bohw", weight, feats[level]))


def test_adapted_maps_are_float32_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        adapted = Adapters((2,), 4, 2, seed=1)({2: drawn(1, 1, 4, 6, 6)})

    assert adapted[2].dtype == torch.float32


def test_the_teachers_adapters_are_the_average_of_the_students():
    student = torch.nn.ModuleDict({"adapters": Adapters((2,), 4, 2, seed=1)})
    teacher = EmaTeacher(student, EmaRule(0.75, warm=False))
    before = teacher.net["adapters"].layers["2"].weight.clone()
    with torch.no_grad():
        student["adapters"].layers["2"].weight.add_(1)

    teacher.follow(student)

    torch.testing.assert_close(teacher.net["adapters"].layers["2"].weight, before + 0.25)


# The twin


def test_a_twin_is_the_mirror_image_and_its_affine_says_so():
    view = view_of()

    twin = mirrored(view)

    assert torch.equal(twin.image, view.image.flip(-1))
    assert torch.equal(twin.keys, view.keys)
    x, y = 5.0, 1.0  # a point of the source
    for image in range(2):
        (vx, vy), (tx, ty) = (
            a[image, :, :2] @ torch.tensor([x, y]).double() + a[image, :, 2] for a in (view.affine, twin.affine)
        )
        assert (tx, ty) == (6 - vx, vy)
    moved = map_features(view.image, view.affine, twin.affine, 1)
    assert torch.equal(moved, twin.image)
    boxes, _ = map_boxes(torch.tensor([[1.0, 0, 3, 2]]), view.affine[0], twin.affine[0], (4, 6))
    assert boxes.tolist() == [[3, 0, 5, 2]]


def test_the_twin_of_a_twin_is_the_view():
    view = view_of()
    view = View(view.image, (), view.affine, view.keys, valid=drawn(5, 2, 4, 6) > 0.5)

    again = mirrored(mirrored(view))

    assert torch.equal(again.image, view.image)
    assert torch.equal(again.affine, view.affine)
    assert torch.equal(again.valid, view.valid)
    assert torch.equal(mirrored(view).valid, view.valid.flip(-1))


def test_a_view_with_annotations_has_no_twin():
    view = view_of(1)
    target = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))

    with pytest.raises(ValueError, match="annotations"):
        mirrored(View(view.image, (target,), view.affine, view.keys))


# Masks


def slow_union(masks, boxes, size, level=0.5):
    """Pixel by pixel: the bilinear value between cell centres, 0 beyond the outer ones."""
    height, width = size
    found = torch.zeros(size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks.tolist(), boxes.tolist(), strict=True):
        side = len(mask)

        def cell(row, column, mask=mask, side=side):
            return mask[row][column] if 0 <= row < side and 0 <= column < side else 0.0

        for i in range(height):
            for j in range(width):
                if not (x0 <= j + 0.5 <= x1 and y0 <= i + 0.5 <= y1):
                    continue
                u, v = (j + 0.5 - x0) / (x1 - x0) * side - 0.5, (i + 0.5 - y0) / (y1 - y0) * side - 0.5
                a, b = math.floor(u), math.floor(v)
                upper = cell(b, a) * (1 - (u - a)) + cell(b, a + 1) * (u - a)
                lower = cell(b + 1, a) * (1 - (u - a)) + cell(b + 1, a + 1) * (u - a)
                found[i, j] |= upper * (1 - (v - b)) + lower * (v - b) >= level
    return found


BOXES = torch.tensor([[2.3, 1.6, 14.9, 9.2], [-4.0, 5.0, 6.5, 20.0], [9.0, 8.0, 9.4, 8.3], [3.0, 3.0, 3.0, 9.0]])


@pytest.mark.parametrize("seed", range(5))
def test_the_union_of_masks_equals_a_slow_loop_over_pixels(seed):
    masks = drawn(seed, 4, 5, 5).double()

    union = union_of_masks(masks, BOXES.double(), (12, 16))

    assert torch.equal(union, slow_union(masks, BOXES.double(), (12, 16)))
    assert union.any()


def test_mirrored_answers_give_the_mirrored_union():
    masks = drawn(1, 4, 5, 5)
    turned = torch.stack([16 - BOXES[:, 2], BOXES[:, 1], 16 - BOXES[:, 0], BOXES[:, 3]], dim=1)

    union = union_of_masks(masks, BOXES, (12, 16))

    assert torch.equal(union_of_masks(masks.flip(-1), turned, (12, 16)), union.flip(-1))


def test_without_objects_and_outside_the_image_there_is_no_mask():
    far = torch.tensor([[20.0, 0, 30, 10]])

    assert not union_of_masks(torch.ones(0, 5, 5), torch.zeros(0, 4), (4, 4)).any()
    assert not union_of_masks(torch.ones(1, 5, 5), far, (12, 16)).any()


def test_a_cell_of_a_level_is_on_where_more_than_half_of_it_lies_inside():
    inside = torch.zeros(1, 1, 4, 4)
    inside[0, 0, 0, :2] = 1  # upper left cell of 2 x 2 px: exactly half
    inside[0, 0, 2:, :2] = torch.tensor([[1.0, 1], [1, 0]])  # lower left: three quarters

    assert level_mask(inside, (2, 2)).tolist() == [[[0, 0], [1, 0]]]
    assert level_mask(torch.ones(1, 1, 4, 4), (1, 1)).tolist() == [[[1]]]
