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
    PRESETS,
    ROBUST,
    STRONG,
    WEAK,
    Batch,
    Erasing,
    Geometry,
    Part,
    Targets,
    View,
    ViewPlan,
    apply_preset,
    draw_geometry,
)

geometries = st.builds(Geometry, st.booleans(), st.booleans(), st.integers(0, 3))
PLAIN = replace(WEAK, name="plain", hflip_p=0.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@given(geometry=geometries, height=st.integers(2, 9), width=st.integers(2, 9))
def test_every_pixel_goes_where_the_matrix_says(geometry, height, width):
    image = noise(height, width)

    turned = geometry.apply(image)

    for y in range(height):
        for x in range(width):
            column, row = geometry.affine(height, width) @ [x + 0.5, y + 0.5, 1.0]  # pixel centres
            assert (turned[int(row), int(column)] == image[y, x]).all()


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
    plan = ViewPlan(unlabelled={"weak": WEAK, "strong": STRONG})

    turned = plan.with_flips("both-and-turns")

    drawn = [turned.labelled["weak"], *turned.unlabelled.values()]
    assert [(p.vflip_p, p.turns) for p in drawn] == [(0.5, True)] * 3
    assert plan.with_flips("horizontal") == plan
    assert [p.vflip_p for p in plan.with_flips("both").unlabelled.values()] == [0.5, 0.5]
    assert [p.jitter_p for p in turned.unlabelled.values()] == [0.0, 0.8]


def test_a_plan_without_a_labelled_view_is_refused():
    with pytest.raises(ValueError, match="no labelled view"):
        ViewPlan(labelled={})


def test_targets_of_unequal_lengths_are_refused():
    with pytest.raises(ValueError, match="2 labels"):
        Targets(torch.zeros(1, 4), torch.ones(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="masks"):
        Targets(torch.zeros(1, 4), torch.ones(1, dtype=torch.int64), torch.zeros(2, 8, 8, dtype=torch.uint8))


def test_a_view_knows_the_sizes_of_its_images():
    view = View(torch.zeros(2, 3, 5, 7), (), torch.zeros(2, 2, 3), torch.zeros(2, dtype=torch.int64))

    assert view.sizes == [(5, 7), (5, 7)]


def view_of(images: int = 2) -> View:
    return View(torch.zeros(images, 3, 8, 8), (), torch.zeros(images, 2, 3), torch.zeros(images, dtype=torch.int64))


def test_a_part_knows_its_views_by_name_and_the_usual_two_by_their_own():
    weak, strong = view_of(), view_of()

    both, named = Part(weak, strong), Part({"weak": weak, "copy_1": strong})

    assert (both.weak, both.strong) == (weak, strong)
    assert list(named.views) == ["weak", "copy_1"]
    assert named.strong is None
    assert Part(weak).views == {"weak": weak}


def test_a_part_without_views_or_of_different_images_is_refused():
    with pytest.raises(ValueError, match="Part"):
        Part({})
    with pytest.raises(ValueError, match=r"'weak': 2, 'strong': 1"):
        Part(view_of(2), view_of(1))


def test_a_class_map_or_validity_of_another_size_than_the_image_is_refused():
    view = view_of()

    with pytest.raises(ValueError, match="labels"):
        View(view.image, (), view.affine, view.keys, labels=torch.zeros(2, 8, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="valid"):
        View(view.image, (), view.affine, view.keys, valid=torch.ones(1, 8, 8, dtype=torch.bool))


def test_a_batch_on_another_device_has_its_images_and_what_is_annotated_there_and_its_maps_here():
    target = Targets(torch.zeros(1, 4), torch.ones(1, dtype=torch.int64), torch.zeros(1, 8, 8, dtype=torch.uint8))
    view = view_of(1)
    full = View(
        view.image,
        (target,),
        view.affine,
        view.keys,
        torch.zeros(1, 8, 8, dtype=torch.int64),
        torch.ones(1, 8, 8, dtype=torch.bool),
    )
    batch = Batch(Part({"weak": full, "other": full}), Part(view_of()))

    moved = batch.to(torch.device("meta"))

    for name in ("weak", "other"):
        there = moved.labelled.views[name]
        on_device = [there.image, there.labels, there.valid, there.targets[0].boxes, there.targets[0].masks]
        assert {tensor.device.type for tensor in on_device} == {"meta"}
        assert there.affine.device.type == there.keys.device.type == "cpu"
    assert moved.unlabelled.weak.image.device.type == "meta"
    assert batch.to(torch.device("cpu")) is batch


def test_every_preset_has_its_own_name_and_is_what_a_recipe_may_ask_for():
    from typing import get_args

    from cytopipe.train.settings import LabelledView

    assert set(PRESETS) == set(get_args(LabelledView))
    assert all(name == preset.name for name, preset in PRESETS.items())


def test_a_view_without_colours_is_not_copied_and_an_erased_one_is():
    image = noise(16, 16)
    kept = image.copy()
    erased = replace(PLAIN, erasings=(Erasing(1.0, (0.2, 0.2), (1.0, 1.0)),))

    views = [apply_preset(image, preset, rng()) for preset in (PLAIN, erased)]

    assert (views[0].image == kept).all()
    assert (views[1].image != kept).any()
    assert (image == kept).all()
