"""Foreground on slides painted here: it must not lose a cell, and must not keep clean glass."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cytopipe.core.errors import RunError
from cytopipe.slides import Foreground, find_foreground
from tests.array_slide import ArraySlide

MPP = 0.5  # 16 level-0 px per mask px
GLASS = (236, 240, 233)


def glass(
    width: int = 1600, height: int = 1200, *, noise: float = 1.5, colour: tuple[int, int, int] = GLASS
) -> np.ndarray:
    """Empty glass with the noise of a camera."""
    random = np.random.default_rng(3)
    values = random.standard_normal((height, width, 3), dtype=np.float32) * noise + np.float32(colour)
    return values.clip(0, 255).astype(np.uint8)


def paint_cell(pixels: np.ndarray, x: int, y: int, radius_px: int, density: tuple[float, float, float]) -> None:
    """A round cell of the given optical density per channel."""
    around = pixels[max(0, y - radius_px) : y + radius_px + 1, max(0, x - radius_px) : x + radius_px + 1]
    centre = (min(x, radius_px), min(y, radius_px))
    mask = cv2.circle(np.zeros(around.shape[:2], np.uint8), centre, radius_px, 1, -1).astype(bool)
    around[mask] = (around[mask] * 10.0 ** -np.array(density)).astype(np.uint8)


def covers(foreground: Foreground, x: int, y: int, radius_px: int) -> bool:
    """Whether the largest square inside a round cell is foreground."""
    half = 0.7 * radius_px
    return foreground.fraction(x - half, y - half, x + half, y + half) > 0.99


@pytest.mark.parametrize(
    ("name", "radius_px", "density"),
    [
        ("a pale pink superficial cell", 50, (0.01, 0.05, 0.02)),
        ("a pale blue intermediate cell", 50, (0.05, 0.02, 0.01)),
        ("a bare nucleus of 8 µm", 8, (0.35, 0.45, 0.25)),
        ("a lymphocyte of 7 µm", 7, (0.4, 0.5, 0.3)),
    ],
)
def test_no_cell_is_lost_wherever_it_lies_on_the_grid(name, radius_px, density):
    pixels = glass()
    places = [(100 + 137 * i, 100 + 111 * j) for i in range(10) for j in range(9)]
    for x, y in places:
        paint_cell(pixels, x, y, radius_px, density)

    foreground = find_foreground(ArraySlide(pixels, mpp=MPP))

    assert [place for place in places if not covers(foreground, *place, radius_px)] == [], name


def test_cytoplasm_of_the_colour_of_glass_is_kept_for_its_texture():
    pixels = glass()
    random = np.random.default_rng(5)
    granules = cv2.GaussianBlur(random.normal(0, 14, (200, 200, 1)), (0, 0), 1.5)[..., None]
    pixels[500:700, 700:900] = (pixels[500:700, 700:900] + granules).clip(0, 255).astype(np.uint8)
    assert abs(float(pixels[500:700, 700:900].mean()) - float(pixels[:400].mean())) < 1

    assert covers(find_foreground(ArraySlide(pixels, mpp=MPP)), 800, 600, 90)


def test_clean_glass_is_no_foreground_whatever_the_lamp():
    for colour in (GLASS, (205, 214, 196), (250, 251, 252)):
        assert find_foreground(ArraySlide(glass(colour=colour), mpp=MPP)).kept_fraction == 0


def test_most_of_a_sparse_slide_is_saved():
    pixels = glass()
    for x, y in ((300, 300), (1200, 800)):
        paint_cell(pixels, x, y, 40, (0.1, 0.1, 0.1))

    assert find_foreground(ArraySlide(pixels, mpp=MPP)).kept_fraction < 0.05


def test_a_field_without_any_glass_is_kept_whole():
    assert find_foreground(ArraySlide(glass(colour=(110, 60, 120), noise=12), mpp=MPP)).kept_fraction == 1


def test_white_that_was_never_scanned_does_not_pass_for_glass():
    pixels = glass()
    pixels[:, 500:] = 255
    paint_cell(pixels, 200, 200, 30, (0.05, 0.05, 0.05))

    foreground = find_foreground(ArraySlide(pixels, mpp=MPP))

    assert foreground.glass == pytest.approx(GLASS, abs=1)
    assert covers(foreground, 200, 200, 30)
    assert foreground.kept_fraction < 0.05


def test_glass_that_saturates_the_camera_is_glass_and_pale_cells_on_it_are_kept():
    pixels = np.full((1200, 1600, 3), 255, np.uint8)
    places = [(150 + 250 * i, 150 + 250 * j) for i in range(6) for j in range(4)]
    for x, y in places:
        paint_cell(pixels, x, y, 90, (0.02, 0.03, 0.01))
    for x, y in places[:12]:
        paint_cell(pixels, x, y, 60, (0.2, 0.3, 0.1))

    foreground = find_foreground(ArraySlide(pixels, mpp=MPP))

    assert foreground.glass == (255, 255, 255)
    assert all(covers(foreground, x, y, 60) for x, y in places)
    assert foreground.kept_fraction < 0.6


def test_on_a_dark_slide_the_dim_cells_are_kept_and_the_dark_is_not():
    pixels = glass(colour=(2, 3, 14), noise=1.0)
    for x in range(200, 1500, 200):
        mask = cv2.circle(np.zeros(pixels.shape[:2], np.uint8), (x, 600), 12, 1, -1).astype(bool)
        pixels[mask, 2] = 70
    slide = ArraySlide(pixels, mpp=MPP)

    foreground = find_foreground(slide)

    assert (slide.background, foreground.background) == ("dark", "dark")
    assert all(covers(foreground, x, 600, 12) for x in range(200, 1500, 200))
    assert foreground.kept_fraction < 0.05


def test_the_background_may_be_said_instead_of_judged():
    slide = ArraySlide(glass(), mpp=MPP)

    assert find_foreground(slide, "dark").background == "dark"


def test_a_coarse_level_is_read_instead_of_level_0():
    levels = [glass(1600 >> k, 1200 >> k) for k in range(4)]
    slide = ArraySlide(*levels, mpp=MPP)
    _ = slide.background
    slide.px_read = 0

    find_foreground(slide)

    assert slide.px_read == 200 * 150  # 4 µm/px, the coarsest with 2 x 2 px to a mask px


def test_px_of_the_mask_are_about_4_um_and_8_px_where_nothing_is_known():
    assert find_foreground(ArraySlide(glass(640, 320), mpp=0.25)).mask.shape == (20, 40)
    assert find_foreground(ArraySlide(glass(640, 320), mpp=1.0)).mask.shape == (80, 160)
    assert find_foreground(ArraySlide(glass(640, 320), mpp=30.0)).mask.shape == (320, 640)
    assert find_foreground(ArraySlide(glass(640, 320))).mask.shape == (40, 80)


def test_a_slide_larger_than_a_block_is_measured_as_a_whole():
    pixels = np.broadcast_to(np.array(GLASS, np.uint8), (300, 9000, 3)).copy()
    for x in (30, 4096, 8192, 8960):
        paint_cell(pixels, x, 150, 20, (0.2, 0.2, 0.2))

    foreground = find_foreground(ArraySlide(pixels, mpp=MPP))

    assert all(covers(foreground, x, 150, 20) for x in (30, 4096, 8192, 8960))


def test_what_cannot_be_decoded_counts_as_foreground_and_is_reported_with_the_rest_measured():
    pixels = glass()
    paint_cell(pixels, 1300, 300, 40, (0.1, 0.1, 0.1))

    foreground = find_foreground(ArraySlide(pixels, mpp=MPP, bad=((0, 401, 800),)), "light")

    assert 0 < foreground.unreadable_fraction < 0.1  # a block of 400 px, the least one not below 256
    assert covers(foreground, 401, 800, 4)
    assert covers(foreground, 1300, 300, 40)
    assert foreground.kept_fraction < 0.15


def test_a_slide_of_which_nothing_can_be_decoded_is_an_error():
    slide = ArraySlide(glass(40, 40), mpp=MPP, bad=((0, 0, 0),))

    with pytest.raises(RunError, match="cannot be decoded"):
        find_foreground(slide)


def test_a_fraction_is_by_area_and_counts_what_lies_outside_as_none():
    mask = np.zeros((4, 6), bool)
    mask[1, 2] = True
    foreground = Foreground(mask, (10.0, 10.0), "light")

    assert foreground.fraction(20, 10, 30, 20) == 1
    assert foreground.fraction(25, 10, 35, 20) == 0.5
    assert foreground.fraction(24, 12, 25, 13) == pytest.approx(1)
    assert foreground.fraction(0, 0, 60, 40) == pytest.approx(1 / 24)
    assert foreground.fraction(-60, 0, 60, 40) == pytest.approx(1 / 48)
    assert foreground.fraction(100, 100, 110, 110) == 0
    with pytest.raises(ValueError, match="rectangle"):
        foreground.fraction(10, 10, 10, 20)


def test_the_fractions_of_many_rectangles_are_those_of_each():
    random = np.random.default_rng(11)
    foreground = Foreground(random.random((40, 50)) < 0.3, (16.0, 12.5), "light")
    low = random.uniform(-60, 700, (400, 2))
    boxes = np.hstack([low, low + random.uniform(0.5, 500, (400, 2))])

    np.testing.assert_allclose(
        foreground.fractions(boxes), [foreground.fraction(*box) for box in boxes], rtol=0, atol=1e-9
    )
    with pytest.raises(ValueError, match="rectangle 5"):
        foreground.fractions(np.array([[0.0, 0, 1, 1], [5, 5, 5, 9]]))


def test_a_rectangle_without_foreground_has_a_fraction_of_exactly_0_among_many():
    mask = np.random.default_rng(12).random((60, 60)) < 0.5
    mask[20:40] = False
    boxes = np.array([[x / 7, 20.3 + x / 50, x / 7 + 13.1, 20.9 + x / 50 + 3.3] for x in range(300)])

    assert not Foreground(mask, (1.0, 1.0), "light").fractions(boxes).any()
