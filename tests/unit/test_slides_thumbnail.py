"""Thumbnails, focus and the share of glass."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cytopipe.slides import glass_fraction, sharpness, thumbnail
from tests.array_slide import ArraySlide


def checks(side: int, size: int = 512) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    grey = (((x // side) + (y // side)) % 2 * 200).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


@pytest.mark.parametrize(
    ("max_px", "shape"), [(300, (150, 300)), (600, (300, 600)), (601, (300, 601)), (5000, (1000, 2000))]
)
def test_a_thumbnail_has_its_longer_side_as_asked_or_is_level_0(max_px, shape):
    slide = ArraySlide(np.full((1000, 2000, 3), 90, np.uint8), np.full((250, 500, 3), 90, np.uint8))

    small = thumbnail(slide, max_px)

    assert small.shape == (*shape, 3)
    assert (small == 90).all()


def test_a_thumbnail_reads_the_coarsest_level_that_is_large_enough():
    slide = ArraySlide(*(np.zeros((1024 >> k, 1024 >> k, 3), np.uint8) for k in range(4)))

    thumbnail(slide, 200)

    assert slide.px_read == 256 * 256


def test_a_thumbnail_of_a_slide_larger_than_a_block_is_in_place():
    pixels = np.zeros((100, 9000, 3), np.uint8)
    pixels[:, 4500:] = 200

    small = thumbnail(ArraySlide(pixels), 900)

    assert (small[:, :450] == 0).all()
    assert (small[:, 450:] == 200).all()


def test_a_thumbnail_shows_undecodable_data_as_flat_grey_and_the_rest_as_it_is():
    small = thumbnail(ArraySlide(np.full((1024, 1024, 3), 240, np.uint8), bad=((0, 1000, 1000),)), 64)

    assert (small[-1, -1] == 128).all()
    assert (small[:40, :40] == 240).all()


def test_a_thumbnail_of_no_pixels_is_our_own_mistake():
    with pytest.raises(ValueError, match="max_px 0"):
        thumbnail(ArraySlide(np.zeros((9, 9, 3), np.uint8)), 0)


def test_sharpness_falls_with_blur_and_is_0_for_a_flat_window():
    sharp = checks(16)
    blurred = [cv2.GaussianBlur(sharp, (0, 0), sigma) for sigma in (1, 2, 4)]

    values = [sharpness(window) for window in (sharp, *blurred, np.full_like(sharp, 80))]

    assert values == sorted(values, reverse=True)
    assert values[-1] == 0


def test_sharpness_of_one_bright_pixel_is_the_variance_of_the_kernel():
    pixels = np.zeros((9, 9, 3), np.uint8)
    pixels[4, 4] = 10

    assert sharpness(pixels) == pytest.approx((40**2 + 4 * 10**2) / 81)  # one -4·10, four 10, sum 0


def test_glass_fraction_counts_pixels_that_are_glass_in_all_channels():
    pixels = np.full((10, 10, 3), (236, 240, 233), np.uint8)
    pixels[:3] = (236, 200, 233)  # pink
    pixels[3] = (230, 236, 230)  # still within 7% of glass

    assert glass_fraction(pixels, (236.0, 240.0, 233.0)) == 0.7
