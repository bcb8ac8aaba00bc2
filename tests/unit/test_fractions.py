"""Label fractions: nested subsets of tiles or patients, the same wherever they are drawn."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytopipe.core.errors import UserError
from cytopipe.tiles.fractions import choose_labelled, parse_fraction

NESTED = [Fraction(1, 32), Fraction(1, 16), Fraction(1, 8), Fraction(1, 4), Fraction(1, 2), Fraction(1)]

labels = st.lists(st.integers(0, 12), min_size=1, max_size=120).map(
    lambda of: ([f"S-{i}/0/{i}" for i in range(len(of))], [f"P-{k}" for k in of])
)
units = st.sampled_from(["tile", "patient"])


@given(labels, units, st.integers(0, 3))
def test_each_fraction_lies_inside_the_next_larger_one_and_one_is_all(drawn, unit, seed):
    tile_ids, patients = drawn

    chosen = [set(choose_labelled(tile_ids, patients, share, unit, seed).tolist()) for share in NESTED]

    assert all(small <= large for small, large in pairwise(chosen))
    assert chosen[-1] == set(range(len(tile_ids)))
    assert chosen[0]


@given(labels, st.sampled_from(NESTED))
def test_the_count_of_units_is_the_fraction_rounded_and_at_least_one(drawn, share):
    tile_ids, patients = drawn

    tiles = choose_labelled(tile_ids, patients, share, "tile")
    people = {patients[i] for i in choose_labelled(tile_ids, patients, share, "patient").tolist()}

    assert len(tiles) == max(1, int(share * len(tile_ids) + Fraction(1, 2)))
    assert len(people) == max(1, int(share * len(set(patients)) + Fraction(1, 2)))


@given(labels, st.sampled_from(NESTED), st.integers(0, 3))
def test_by_patient_all_tiles_of_a_patient_stay_or_none(drawn, share, seed):
    tile_ids, patients = drawn

    kept = set(choose_labelled(tile_ids, patients, share, "patient", seed).tolist())

    for patient in set(patients):
        mine = {i for i, name in enumerate(patients) if name == patient}
        assert mine <= kept or not mine & kept


@given(st.permutations(range(40)), units)
def test_the_order_of_the_store_does_not_matter(order, unit):
    tile_ids, patients = [f"S/0/{i}" for i in range(40)], [f"P{i % 7}" for i in range(40)]
    chosen = {tile_ids[i] for i in choose_labelled(tile_ids, patients, Fraction(1, 4), unit).tolist()}

    shuffled = [tile_ids[i] for i in order], [patients[i] for i in order]

    assert {shuffled[0][i] for i in choose_labelled(*shuffled, Fraction(1, 4), unit).tolist()} == chosen


@pytest.mark.parametrize("unit", ["tile", "patient"])
def test_another_seed_chooses_others_and_indices_ascend(unit):
    tile_ids, patients = [f"S/0/{i}" for i in range(200)], [f"P{i}" for i in range(200)]

    first, second = (choose_labelled(tile_ids, patients, Fraction(1, 4), unit, seed) for seed in (0, 1))

    assert set(first.tolist()) != set(second.tolist())
    assert np.all(np.diff(first) > 0)


def test_the_order_is_that_of_the_hash_that_the_module_promises():
    names = [f"S/0/{i}" for i in range(9)]
    first = min(names, key=lambda name: hashlib.sha256(f"cytopipe-labels-1\x1ftile\x1f5\x1f{name}".encode()).digest())

    assert choose_labelled(names, ["P"] * 9, Fraction(1, 32), "tile", 5).tolist() == [names.index(first)]


@pytest.mark.parametrize(("text", "value"), [("1/8", Fraction(1, 8)), ("0.1", Fraction(1, 10)), (0.25, Fraction(1, 4))])
def test_a_fraction_is_exact_however_it_is_written(text, value):
    assert parse_fraction(text) == value


@pytest.mark.parametrize("text", ["0", "3/2", "-1/8", "1/0", "half", "", "nan", "inf", 0.0])
def test_what_is_no_fraction_of_the_labels_is_refused(text):
    with pytest.raises(UserError, match="--label-fraction"):
        parse_fraction(text)
