"""Bringing a slide's colours to those of the training slides."""

from __future__ import annotations

import numpy as np
import pytest

from cytopipe.infer.stain import Look, gains, look_of, recoloured, recolouring, table_of
from cytopipe.slides import MppView, find_foreground
from tests.array_slide import ArraySlide

GLASS = np.array([240.0, 238.0, 236.0])
DENSITY = np.array([0.15, 0.30, 0.10])


def smear(glass=GLASS, strength=(1.0, 1.0, 1.0), side_px=1024):
    """Discs of one density on glass, with a little noise, at 0.5 µm/px."""
    y, x = np.mgrid[:side_px, :side_px]
    inside = ((x % 128 - 64) ** 2 + (y % 128 - 64) ** 2) < 30**2
    density = inside[..., None] * DENSITY * np.array(strength)
    noise = np.random.default_rng(1).normal(0, 1.0, (side_px, side_px, 3))
    return ArraySlide(np.clip(np.rint(glass * 10.0**-density + noise), 0, 255).astype(np.uint8), mpp=0.5)


def look(slide):
    return look_of(MppView(slide, 0.5), find_foreground(slide))


def test_the_look_of_a_slide_is_its_glass_and_the_density_of_what_is_stained():
    found = look(smear())

    assert found.glass == pytest.approx(tuple(GLASS), abs=1.5)
    assert found.density == pytest.approx(tuple(DENSITY), rel=0.05)


@pytest.mark.parametrize(
    ("glass", "strength"),
    [((240.0, 238.0, 236.0), (0.6, 0.6, 0.6)), ((225.0, 215.0, 190.0), (1.0, 1.0, 1.0)), (GLASS, (1.3, 0.8, 1.2))],
)
def test_weak_tinted_and_miscoloured_slides_come_to_look_like_the_reference(glass, strength):
    reference, other = smear(), smear(np.array(glass), strength)
    table = table_of(look(other), look(reference))
    wanted = MppView(reference, 0.5).read(0, 0, 512, 512)

    found = recoloured(MppView(other, 0.5).read(0, 0, 512, 512), table)

    for middle in ((64, 64), (0, 0)):  # of a cell, of the glass between
        here = np.s_[middle[0] : middle[0] + 8, middle[1] : middle[1] + 8]
        assert found[here].mean(axis=(0, 1)) == pytest.approx(wanted[here].mean(axis=(0, 1)), abs=4)


def test_a_slide_that_looks_like_the_reference_is_left_almost_as_it_is():
    own = look(smear())

    table = table_of(own, own)

    assert np.abs(table[0, 60:240].astype(int) - np.arange(60, 240)[:, None]).max() <= 1


def test_another_stain_is_pulled_by_a_factor_of_two_at_most():
    weak = Look((240.0,) * 3, (0.01, 0.2, 2.0))

    assert gains(weak, Look((240.0,) * 3, (0.2, 0.2, 0.2))) == (2.0, 1.0, 0.5)


def test_a_model_that_says_nothing_of_its_slides_gets_the_white_balance_alone():
    own = Look((230.0, 210.0, 180.0), (0.1, 0.2, 0.3))

    table = table_of(own, None)

    assert table[0, 230, 0] == table[0, 210, 1] == table[0, 180, 2] == 242
    assert gains(own, None) == (1.0, 1.0, 1.0)


def test_a_dark_slide_is_not_recoloured():
    dark = ArraySlide(np.full((512, 512, 3), 3, np.uint8), mpp=0.5)

    assert dark.background == "dark"
    assert recolouring(None, dark, MppView(dark, 0.5), None) is None
