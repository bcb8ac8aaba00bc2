"""Views: presets, geometry, colours (METHODS 1.6)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cytopipe.semi import (
    JITTERED,
    ROBUST,
    STRONG,
    WEAK,
    Erasing,
    Geometry,
    Targets,
    View,
    ViewPlan,
    affine_between,
    apply_preset,
    draw_geometry,
    map_boxes,
    map_masks,
)

geometries = st.builds(Geometry, st.booleans(), st.booleans(), st.integers(0, 3))
PLAIN = replace(WEAK, name="plain", hflip_p=0.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def box_of(mask: np.ndarray) -> list[float]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@given(geometry=geometries, height=st.integers(3, 12), width=st.integers(3, 12), data=st.data())
def test_a_box_mapped_by_the_matrix_covers_the_same_object_as_the_mapped_mask(geometry, height, width, data):
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    mask = np.zeros((1, height, width), np.uint8)
    mask[0, y0:y1, x0:x1] = 1

    turned = map_masks(mask, geometry)
    boxes, kept = map_boxes(np.array([[x0, y0, x1, y1]]), geometry.affine(height, width), turned.shape[1:])

    assert boxes.tolist() == [box_of(turned[0])]
    assert kept.tolist() == [0]
    assert turned.sum() == mask.sum()


@given(geometry=geometries, height=st.integers(2, 9), width=st.integers(2, 9))
def test_every_pixel_goes_where_the_matrix_says(geometry, height, width):
    image = noise(height, width)

    turned = geometry.apply(image)

    for y in range(height):
        for x in range(width):
            column, row = geometry.affine(height, width) @ [x + 0.5, y + 0.5, 1.0]  # pixel centres
            assert (turned[int(row), int(column)] == image[y, x]).all()


@given(first=geometries, second=geometries, seed=st.integers(0, 999))
def test_boxes_mapped_to_another_view_and_back_are_the_same(first, second, seed):
    height, width = 40, 60
    corner, side = rng(seed).uniform(0, 20, (5, 2)), rng(seed + 1).uniform(2, 18, (5, 2))
    source = np.concatenate([corner, corner + side], axis=1)
    a, b = first.affine(height, width), second.affine(height, width)
    size_a, size_b = (g.apply(np.zeros((height, width))).shape for g in (first, second))
    in_a, _ = map_boxes(source, a, size_a)

    in_b, kept = map_boxes(in_a, affine_between(a, b), size_b)
    back, _ = map_boxes(in_b, affine_between(b, a), size_a)

    np.testing.assert_allclose(back, in_a, atol=1e-4)
    np.testing.assert_allclose(in_b, map_boxes(source, b, size_b)[0], atol=1e-4)
    assert kept.tolist() == list(range(5))


def test_boxes_are_clipped_to_the_view_and_slivers_are_dropped_by_name():
    boxes = np.array([[-5.0, 2, 3, 8], [9.5, 0, 30, 10], [2, 2, 4, 4], [20, 20, 30, 30]])

    mapped, kept = map_boxes(boxes, Geometry().affine(10, 10), (10, 10))

    assert kept.tolist() == [0, 2]
    assert mapped.tolist() == [[0, 2, 3, 8], [2, 2, 4, 4]]


def test_no_box_maps_to_no_box():
    boxes, kept = map_boxes(np.zeros((0, 4)), Geometry(hflip=True).affine(5, 5), (5, 5))

    assert boxes.shape == (0, 4)
    assert kept.shape == (0,)


@pytest.mark.parametrize("preset", [WEAK, JITTERED, ROBUST, STRONG], ids=lambda p: p.name)
def test_the_same_seed_draws_the_same_view_and_another_seed_another(preset):
    image = noise(32, 32)

    views = [apply_preset(image, preset, rng(seed)) for seed in (1, 1, *range(2, 12))]

    assert (views[0].image == views[1].image).all()
    assert views[0].photometric == views[1].photometric
    assert any((views[0].image != view.image).any() for view in views[2:])


def test_a_weak_view_moves_pixels_and_changes_none_and_leaves_the_tile_alone():
    image = noise(16, 16)
    kept = image.copy()

    view = apply_preset(image, WEAK, rng(), Geometry(hflip=True))

    assert (view.image == image[:, ::-1]).all()
    assert view.photometric == ()
    assert (image == kept).all()


def test_a_given_geometry_is_used_so_that_weak_and_strong_views_of_an_image_correspond():
    image = noise(16, 24)
    geometry = Geometry(hflip=True, quarter_turns=1)

    weak, strong = apply_preset(image, WEAK, rng(1), geometry), apply_preset(image, STRONG, rng(2), geometry)

    assert (weak.affine == strong.affine).all()
    assert weak.image.shape == strong.image.shape == (24, 16, 3)


def test_flips_come_in_the_presets_proportion_and_never_where_it_has_none():
    drawn = [draw_geometry(replace(WEAK, hflip_p=0.25, turns=True), rng(seed)) for seed in range(2000)]

    share = np.mean([g.hflip for g in drawn])
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / 2000) ** 0.5  # four standard errors
    assert not any(g.vflip for g in drawn)
    assert {g.quarter_turns for g in drawn} == {0, 1, 2, 3}


def test_colour_jitter_does_what_its_four_parts_say():
    image = noise(8, 8)
    pixels = image.astype(float)

    def jittered(**strength):
        view = apply_preset(image, replace(PLAIN, jitter_p=1.0, **strength), rng(3))
        amount = next(float(text.split()[1]) for text in view.photometric if text.split()[0] in strength)
        return view.image.astype(float), 1 + amount

    grey = (pixels @ [0.299, 0.587, 0.114])[..., None]
    for strength, expected in (
        ({"brightness": 0.4}, lambda f: pixels * f),
        ({"contrast": 0.4}, lambda f: grey.mean() + (pixels - grey.mean()) * f),
        ({"saturation": 0.4}, lambda f: grey + (pixels - grey) * f),
    ):
        view, factor = jittered(**strength)
        assert factor != 1
        np.testing.assert_allclose(view, expected(factor).clip(0, 255), atol=0.6)  # rounding to uint8, 4 digits noted


def test_a_hue_shift_turns_red_towards_the_noted_angle_and_leaves_grey_alone():
    red_and_grey = np.zeros((2, 1, 3), np.uint8)
    red_and_grey[0, 0, 0], red_and_grey[1] = 200, 90

    view = apply_preset(red_and_grey, replace(PLAIN, jitter_p=1.0, hue=0.1), rng(0))

    amount = next(float(text.split()[1]) for text in view.photometric if text.startswith("hue"))
    other = round(
        200 * 6 * abs(amount)
    )  # within 60 degrees of red one other channel rises: green, or blue for a turn back
    assert view.image[0, 0].tolist() == ([200, other, 0] if amount > 0 else [200, 0, other])
    assert view.image[1, 0].tolist() == [90, 90, 90]


def test_grey_and_blur_are_done_and_noted():
    image = noise(32, 32)

    grey = apply_preset(image, replace(PLAIN, grey_p=1.0), rng())
    blurred = apply_preset(image, replace(PLAIN, blur_p=1.0, blur_sigma_px=(2.0, 2.0)), rng())

    assert np.ptp(grey.image, axis=2).max() == 0
    assert grey.photometric == ("grey",)
    assert blurred.image.std() < 0.5 * image.std()
    assert blurred.photometric == ("blur 2.0000 px",)


def test_each_colour_operation_comes_in_the_strong_presets_proportion():
    image, draws = noise(24, 24), 800

    done = [apply_preset(image, STRONG, rng(seed)).photometric for seed in range(draws)]

    def share(word):
        return sum(text.startswith(word) for photometric in done for text in photometric) / draws

    for word, p, spread in (("hue", 0.8, 0.16), ("grey", 0.2, 0.16), ("blur", 0.5, 0.25), ("erase", 1.5, 0.67)):
        assert abs(share(word) - p) < 4 * (spread / draws) ** 0.5, (
            word
        )  # four standard errors; erasings 0.7 + 0.5 + 0.3


@given(seed=st.integers(0, 10_000), area=st.floats(0.02, 0.2), aspect=st.floats(0.3, 3.3))
def test_an_erasing_changes_its_rectangle_and_nothing_else(seed, area, aspect):
    image = np.full((50, 40, 3), 7, np.uint8)
    preset = replace(PLAIN, erasings=(Erasing(1.0, (area, area), (aspect, aspect)),))

    view = apply_preset(image, preset, rng(seed))

    x0, y0, x1, y1 = map(int, view.photometric[0].split()[1:])
    outside = view.image.copy()
    outside[y0:y1, x0:x1] = 7
    assert (outside == 7).all()
    assert (view.image[y0:y1, x0:x1] != 7).any()
    assert (x1 - x0) * (y1 - y0) == pytest.approx(area * 2000, rel=0.2)  # whole pixels
    assert 0 <= x0 < x1 <= 40
    assert 0 <= y0 < y1 <= 50


def test_an_erasing_that_fits_nowhere_is_given_up_and_said():
    preset = replace(PLAIN, erasings=(Erasing(1.0, (0.9, 0.9), (50.0, 50.0)),))

    view = apply_preset(noise(20, 20), preset, rng())

    assert (view.image == noise(20, 20)).all()
    assert view.photometric == ("erase nothing",)


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)])
def test_anything_but_rgb_bytes_is_refused(image):
    with pytest.raises(ValueError, match="uint8"):
        apply_preset(image, WEAK, rng())


def test_a_plan_gives_both_views_the_geometry_that_was_asked_for():
    plan = ViewPlan(unlabelled=("weak", "strong"), strong=STRONG)

    turned = plan.with_flips("both-and-turns")

    assert [(p.vflip_p, p.turns) for p in (turned.weak, turned.strong)] == [(0.5, True), (0.5, True)]
    assert turned.with_flips("horizontal") == plan
    assert (turned.strong.jitter_p, turned.weak.jitter_p) == (0.8, 0.0)


def test_a_plan_that_asks_for_a_strong_view_without_a_preset_is_refused():
    with pytest.raises(ValueError, match="strong"):
        ViewPlan(unlabelled=("strong",))


def test_targets_of_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="2 labels"):
        Targets(torch.zeros(1, 4), torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="masks"):
        Targets(torch.zeros(1, 4), torch.ones(1, dtype=torch.int64), torch.zeros(2, 8, 8, dtype=torch.uint8))


def test_a_view_knows_the_sizes_of_its_images():
    view = View(torch.zeros(2, 3, 5, 7), (), torch.zeros(2, 2, 3), torch.zeros(2, dtype=torch.int64))

    assert view.sizes == [(5, 7), (5, 7)]
