"""Pen, edges, cover glass and empty space are no foreground, and cells beside them stay."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cytopipe.slides import Foreground, find_foreground
from tests.array_slide import ArraySlide

MPP = 0.5
GLASS = (236, 240, 233)
INKS = {"blue": (30, 60, 190), "black": (40, 40, 44), "green": (40, 140, 70), "red": (200, 40, 50)}


def smear(width: int = 2400, height: int = 2400) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Glass with cells of 30 µm, 200 px apart; their centres."""
    noise = np.random.default_rng(2).standard_normal((height, width, 1), dtype=np.float32)
    pixels = (np.float32(GLASS) + noise).astype(np.uint8)
    places = [(x, y) for x in range(100, width - 60, 200) for y in range(100, height - 60, 200)]
    for place in places:
        cv2.circle(pixels, place, 30, (170, 205, 205), -1)
        cv2.circle(pixels, place, 8, (80, 70, 120), -1)
    return pixels, places


def foreground_of(pixels: np.ndarray) -> Foreground:
    return find_foreground(ArraySlide(pixels, mpp=MPP))


def kept(foreground: Foreground, x: int, y: int) -> float:
    """The share of a cell's nucleus that is foreground."""
    return foreground.fraction(x - 6, y - 6, x + 6, y + 6)


def stroke(pixels: np.ndarray, ink: tuple[int, int, int], soft_px: float) -> np.ndarray:
    """A felt pen between two columns of cells and over some; returns where it is at least half."""
    cover = np.zeros(pixels.shape[:2], np.uint8)
    cv2.polylines(cover, [np.array([[1000, 300], [1020, 1200], [1300, 2100]])], False, 255, 150)
    share = cv2.GaussianBlur(cover.astype(np.float32) / 255, (0, 0), soft_px)[..., None]
    pixels[:] = (pixels * (1 - share) + pixels * share * np.float32(ink) / np.float32(GLASS)).astype(np.uint8)
    return share[..., 0] > 0.5


@pytest.mark.parametrize("soft_px", [2.0, 10.0])
@pytest.mark.parametrize("ink", list(INKS))
def test_a_stroke_of_a_pen_on_bare_glass_is_dropped_with_its_border(ink, soft_px):
    pixels = smear(2400, 2400)[0]
    pixels[:] = np.float32(GLASS)
    stroke(pixels, INKS[ink], soft_px)

    assert foreground_of(pixels).kept_fraction < 0.002


@pytest.mark.parametrize("ink", list(INKS))
def test_cells_beside_a_stroke_and_the_nuclei_of_those_under_it_are_kept(ink):
    pixels, places = smear()
    is_ink = stroke(pixels, INKS[ink], 6.0)

    foreground = foreground_of(pixels)

    clear = cv2.dilate(is_ink.view(np.uint8), np.ones((81, 81), np.uint8)) == 0
    assert all(kept(foreground, x, y) > 0.9 for x, y in places if clear[y, x])
    under = [kept(foreground, x, y) for x, y in places if is_ink[y, x]]
    assert len(under) >= 4
    assert np.mean(np.array(under) > 0.5) > 0.8
    assert foreground.kept_fraction < 0.13


@pytest.mark.parametrize("grey", [0, 128, 200, 255])
def test_a_frame_that_was_never_scanned_is_dropped_with_its_border(grey):
    pixels, places = smear()
    pixels[:, :90], pixels[2300:] = grey, grey

    foreground = foreground_of(pixels)

    assert foreground.mask[:, :10].mean() < 0.04  # cells that the frame cuts
    assert foreground.mask[290:].mean() < 0.04
    assert all(kept(foreground, x, y) > 0.9 for x, y in places if x > 140 and y < 2250)


def test_a_dark_bar_along_the_edge_is_dropped():
    pixels, places = smear()
    pixels[:, :70] = (60, 62, 60)

    foreground = foreground_of(pixels)

    assert foreground.mask[:, :8].mean() < 0.04
    assert all(kept(foreground, x, y) > 0.9 for x, y in places if x > 140)


@pytest.mark.parametrize("slope", [0.0, 0.013, -0.06])
def test_the_border_of_a_cover_glass_is_dropped_where_no_cell_lies_on_it(slope):
    pixels, places = smear()
    start, stop = (0, 1000), (2399, round(1000 + slope * 2400))
    cv2.line(pixels, start, stop, (120, 122, 121), 20, cv2.LINE_AA)
    cv2.line(pixels, (0, start[1] + 18), (2399, stop[1] + 18), (250, 252, 250), 12, cv2.LINE_AA)
    line = np.array([[x, round(1000 + slope * x)] for x in range(100, 2300, 10)])
    foreground = foreground_of(pixels)

    assert all(kept(foreground, x, y) > 0.9 for x, y in places if abs(y - 1000 - slope * x) > 70)
    free = [(x, y) for x, y in line if min(np.hypot(x - px, y - py) for px, py in places) > 110]
    assert len(free) > 10
    assert np.mean([foreground.fraction(x - 8, y - 20, x + 8, y + 20) > 0 for x, y in free]) < 0.1


def test_a_row_of_cells_is_no_line():
    pixels = np.full((2400, 2400, 3), GLASS, np.uint8)
    places = [(x, 1200) for x in range(40, 2380, 44)]
    for number, place in enumerate(places):
        cv2.circle(pixels, place, 22, (170, 205, 205) if number % 2 else (220, 160, 180), -1)
        cv2.circle(pixels, place, 7, (80, 70, 120), -1)

    assert all(kept(foreground_of(pixels), x, y) > 0.9 for x, y in places[::6])


def test_large_smooth_red_cells_of_a_picture_without_resolution_are_no_ink():
    pixels = np.full((900, 1200, 3), GLASS, np.uint8)
    for x in range(100, 1150, 90):
        cv2.circle(pixels, (x, 400), 50, (150, 60, 80), -1)

    foreground = find_foreground(ArraySlide(pixels))

    assert all(foreground.fraction(x - 30, 370, x + 30, 430) > 0.9 for x in range(100, 1150, 90))


def test_uneven_light_is_followed_and_pale_cells_in_a_dark_corner_are_kept():
    pixels, _ = smear()
    pixels[:] = np.float32(GLASS)
    places = [(x, y) for x in range(150, 2300, 300) for y in range(150, 2300, 300)]
    for place in places:
        cv2.circle(pixels, place, 40, (214, 226, 222), -1)
    across = np.linspace(-1, 1, 2400, dtype=np.float32)
    light = np.exp(-0.18 * across[:, None] ** 2 - 0.18 * across[None] ** 2)[..., None]
    lit = (pixels * light + np.random.default_rng(4).standard_normal(pixels.shape, dtype=np.float32)).astype(np.uint8)

    foreground = foreground_of(lit)

    assert all(foreground.fraction(x - 26, y - 26, x + 26, y + 26) > 0.95 for x, y in places)
    assert foreground.kept_fraction < 0.25
