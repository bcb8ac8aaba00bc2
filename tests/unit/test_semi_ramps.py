"""Ramps and the clock (METHODS 1.2, 1.3). Golden values: METHODS 9."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytopipe.semi import Clock, Ramp

RISING = {
    "linear": Ramp.linear,
    "gaussian": Ramp.gaussian,
    "cosine": Ramp.cosine,
    "exp": Ramp.exp,
    "log": Ramp.log,
}


@pytest.mark.parametrize(
    ("t", "value"), [(0, 0.00673795), (25, 0.06005467), (50, 0.28650480), (75, 0.73161563), (100, 1.0)]
)
def test_the_gaussian_ramp_has_the_golden_values(t, value):
    assert Ramp.gaussian(0, 100)(t) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("t", "value"),
    [
        (999, 0.0),
        (1000, 0.00673795),
        (1100, 0.16529889),
        (1125, 0.28650480),
        (1250, 1.0),
        (7750, 1.0),
        (7875, 0.04978707),
        (8000, 6.14421e-6),
    ],
)
def test_a_product_of_ramps_is_the_weight_of_mmt_psm(t, value):
    ramp = Ramp.gaussian(1000, 1250) * Ramp.gaussian_down(250, 12, total=8000)

    assert ramp(t) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "start", "middle", "end"),
    [
        ("linear", 0.0, 0.5, 1.0),
        ("gaussian", math.exp(-5), math.exp(-1.25), 1.0),
        ("cosine", 0.0, 0.5, 1.0),
        ("exp", math.exp(-5), math.exp(-2.5), 1.0),
        ("log", 0.0, 1 - math.exp(-2.5), 1 - math.exp(-5)),
    ],
)
def test_each_ramp_has_its_exact_values_at_start_middle_and_end(name, start, middle, end):
    ramp = RISING[name](40, 60)

    assert (ramp(40), ramp(50), ramp(60), ramp(1000)) == pytest.approx((start, middle, end, end), abs=1e-15)


def test_only_the_gaussian_ramp_jumps_at_its_start():
    before = {name: RISING[name](40, 60)(39) for name in RISING}

    assert before == {"linear": 0.0, "gaussian": 0.0, "cosine": 0.0, "exp": math.exp(-5), "log": 0.0}


@pytest.mark.parametrize("name", sorted(RISING))
@given(a=st.integers(0, 50), length=st.integers(0, 50))
def test_rising_ramps_never_fall_and_stay_between_0_and_1(name, a, length):
    ramp = RISING[name](a, a + length)

    values = [ramp(t) for t in range(110)]

    assert all(0.0 <= v <= w <= 1.0 for v, w in pairwise(values))


@given(a=st.integers(0, 50), up=st.integers(0, 50), down=st.integers(1, 60), k=st.floats(0.1, 20))
def test_a_rising_times_a_falling_ramp_stays_between_0_and_1_and_the_falling_one_never_rises(a, up, down, k):
    falling = Ramp.gaussian_down(down, k, total=100)
    product = Ramp.gaussian(a, a + up) * falling

    assert all(0.0 <= product(t) <= 1.0 for t in range(101))
    assert all(v >= w for v, w in pairwise(falling(t) for t in range(101)))
    assert falling(100) == pytest.approx(math.exp(-k))
    assert falling(100 - down) == 1.0


def test_step_constant_and_poly_are_what_they_say():
    assert [Ramp.step(5)(t) for t in (4, 5, 6)] == [0.0, 1.0, 1.0]
    assert Ramp.constant()(17) == 1.0
    assert [Ramp.poly(0.9, total=100)(t) for t in (0, 50, 100)] == pytest.approx([1.0, 0.5**0.9, 0.0])


def test_a_ramp_that_ends_before_it_starts_is_refused():
    with pytest.raises(ValueError, match="before its start"):
        Ramp.linear(10, 9)


def test_the_clock_reads_epoch_and_progress_from_the_iteration_alone():
    clock = Clock(25, 100, iterations_per_epoch=10)

    assert (clock.epoch, clock.progress) == (2, 0.25)


@pytest.mark.parametrize("bad", [(-1, 10, 1), (11, 10, 1), (0, 0, 1), (0, 10, 0)])
def test_a_clock_outside_its_run_is_refused(bad):
    with pytest.raises(ValueError, match="Clock"):
        Clock(*bad)
