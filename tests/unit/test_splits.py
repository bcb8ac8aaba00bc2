"""Patients into training, validation and test."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytopipe.core.errors import UserError
from cytopipe.tiles.split import (
    FileOfPatient,
    assign_splits,
    fixed_parts,
    parse_ratio,
    refuse_shared_files,
    split_patients,
)

RATIO = parse_ratio("7:1:2")


def patients(n: int, stratum: str | None = None, name: str = "P") -> dict[str, str | None]:
    return {f"{name}{i:03d}": stratum for i in range(n)}


def test_ten_patients_are_split_as_the_ratio_says():
    part_of = assign_splits(patients(10), {}, RATIO)

    assert Counter(part_of.values()) == {"train": 7, "val": 1, "test": 2}


@given(st.integers(20, 200), st.integers(0, 5))
def test_each_part_is_within_one_patient_of_its_share(n, seed):
    count = Counter(assign_splits(patients(n), {}, RATIO, seed).values())

    assert all(abs(count[part] - n * share) < 1 for part, share in RATIO.items())


@given(st.permutations(sorted(patients(12))))
def test_the_order_of_the_list_does_not_matter(names):
    assert assign_splits(dict.fromkeys(names), {}, RATIO) == assign_splits(patients(12), {}, RATIO)


@given(st.integers(20, 60), st.integers(0, 60))
def test_assignments_once_made_stay_and_new_patients_fill_the_deficit(before, more):
    first = assign_splits(patients(before), {}, RATIO)

    second = assign_splits(patients(before + more), first, RATIO)

    assert {name: second[name] for name in first} == first
    count = Counter(second.values())
    assert all(abs(count[part] - (before + more) * share) < 1 for part, share in RATIO.items())


def test_each_stratum_is_split_by_the_ratio():
    strata = {**patients(10, "HSIL", "H"), **patients(20, "NILM", "N")}

    part_of = assign_splits(strata, {}, RATIO)

    count = Counter((strata[name], part) for name, part in part_of.items())
    assert [count["HSIL", part] for part in RATIO] == [7, 1, 2]
    assert [count["NILM", part] for part in RATIO] == [14, 2, 4]


def test_strata_of_one_patient_do_not_all_end_in_training():
    strata = {f"P{i}": f"stratum {i}" for i in range(10)}

    part_of = assign_splits(strata, {}, RATIO)

    assert Counter(part_of.values()) == {"train": 7, "val": 1, "test": 2}


def test_another_seed_gives_another_split():
    assert assign_splits(patients(50), {}, RATIO, seed=0) != assign_splits(patients(50), {}, RATIO, seed=1)


def test_an_empty_part_is_refused_with_the_counts():
    with pytest.raises(UserError, match=r"2 patients give an empty part 'val' \(train 2, val 0, test 0\)"):
        assign_splits(patients(2), {}, RATIO)


def test_a_patient_in_two_parts_is_refused_by_name():
    with pytest.raises(UserError, match="patient 'P1' is in two parts, train and test"):
        fixed_parts([("P1", "train"), ("P2", None), ("P1", "test")])


def test_an_unknown_part_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="'validation' of patient 'P1' is unknown; train, val and test"):
        fixed_parts([("P1", "validation")])


@pytest.mark.parametrize("text", ["7", "7:1:2:1", "a:b", "7:0:3", "7:-1:2", "", "inf:1", "nan:1"])
def test_what_is_no_ratio_is_refused(text):
    with pytest.raises(UserError, match="is no ratio"):
        parse_ratio(text)


def test_two_numbers_are_training_and_validation():
    assert parse_ratio("8:2") == {"train": 0.8, "val": 0.2}


def test_without_a_ratio_all_are_training_but_those_the_list_assigns():
    slides = [("P1", None, None), ("P2", None, "test"), ("P1", None, None)]

    assert split_patients(slides, {}, None) == {"P1": "train", "P2": "test"}


def test_a_list_that_contradicts_an_earlier_run_is_refused():
    with pytest.raises(UserError, match="patient 'P1' is in two parts, val and train"):
        split_patients([("P1", None, "train")], {"P1": "val"}, None)


def test_a_patient_with_slides_of_several_strata_stands_with_the_most_frequent():
    slides = [("P0", "HSIL", None), ("P0", "NILM", None), ("P0", "NILM", None)]
    slides += [(f"P{i}", "NILM", None) for i in range(1, 10)]

    part_of = split_patients(slides, {}, RATIO)

    assert Counter(part_of.values()) == {"train": 7, "val": 1, "test": 2}


grown = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["HSIL", "NILM", None])), min_size=3, max_size=60)


@given(st.lists(grown, min_size=2, max_size=5), st.integers(0, 3))
def test_no_assignment_ever_changes_however_a_list_grows(batches, seed):
    slides = [(f"P{i:02d}", None, None) for i in range(20)]
    part_of = split_patients(slides, {}, RATIO, seed)

    for batch in batches:  # new patients, and new slides of old ones, whose stratum may be another one
        slides += [(f"P{patient:02d}", stratum, None) for patient, stratum in batch]
        larger = split_patients(slides, part_of, RATIO, seed)
        assert {patient: larger[patient] for patient in part_of} == part_of
        part_of = larger

    assert set(part_of) == {patient for patient, _, _ in slides}


@given(st.integers(10, 17), st.integers(0, 3))
def test_while_one_part_has_more_than_its_share_all_new_patients_go_to_the_others(more, seed):
    fixed = {f"P{i:03d}": "train" for i in range(40)}  # the share of 57 patients

    part_of = assign_splits(patients(40 + more), fixed, RATIO, seed)

    count = Counter(part_of.values())
    assert count["train"] == 40
    lacking = {part: (40 + more) * RATIO[part] - count[part] for part in ("val", "test")}
    assert abs(lacking["val"] - lacking["test"]) <= 1  # each went to the part that lacked more


def in_part(slide_id: str, part: str, fingerprint: str, patient: str = "") -> FileOfPatient:
    return FileOfPatient(slide_id, patient or f"patient of {slide_id}", part, fingerprint)


def test_one_slide_file_in_two_parts_is_refused_by_both_names():
    files = [in_part("S-1", "train", "aa"), in_part("S-2", "val", "bb"), in_part("copy of S-1", "test", "aa")]

    with pytest.raises(UserError, match="'S-1' and 'copy of S-1' are the same file, in two parts: train as") as told:
        refuse_shared_files(files)

    assert "test as patient 'patient of copy of S-1'" in str(told.value)
    assert "give both one patient" in str(told.value)


def test_one_slide_file_twice_in_one_part_is_no_leak():
    refuse_shared_files([in_part("S-1", "train", "aa"), in_part("S-2", "train", "aa"), in_part("S-3", "val", "bb")])
