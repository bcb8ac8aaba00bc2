"""The committed parts of the evidence sets, and the arithmetic of the evidence tables. No image is needed."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from tests.benchmarks.evidence import similar
from tests.benchmarks.evidence.make_splits import LABELLED, SETS, SPLITS, assign, labelled_subsets
from tests.benchmarks.evidence.table import paired, refuse_unfair


def rows(name: str) -> list[dict[str, str]]:
    with (SPLITS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", SETS)
def test_images_of_one_specimen_are_in_one_part(name: str) -> None:
    parts = defaultdict(set)
    for row in rows(name):
        parts[row["group"]].add(row["part"])

    assert all(len(found) == 1 for found in parts.values())


@pytest.mark.parametrize("name", SETS)
def test_each_part_has_about_its_share_of_a_set_and_each_id_is_named_once(name: str) -> None:
    found = rows(name)
    counts = Counter(row["part"] for row in found)

    assert len({row["id"] for row in found}) == len(found)
    assert 0.6 <= counts["train"] / len(found) <= 0.8
    assert 0.15 <= counts["test"] / len(found) <= 0.25
    assert 0.05 <= counts["val"] / len(found) <= 0.15


def test_the_committed_labelled_subsets_follow_from_the_committed_parts() -> None:
    found = {name: [(r["id"], int(r["group"]), r["kind"], r["part"]) for r in rows(name)] for name in SETS}

    assert labelled_subsets(found) == json.loads((SPLITS / "labelled.json").read_text())


def test_labelled_subsets_are_nested_and_of_the_training_part() -> None:
    subsets = json.loads((SPLITS / "labelled.json").read_text())

    for task, (sets, fractions) in LABELLED.items():
        train = {r["id"] for name in sets for r in rows(name) if r["part"] == "train"}
        for by_fraction in subsets[task].values():
            nested = [set(by_fraction[f]) for f in fractions] + [train]
            assert all(a < b for a, b in pairwise(nested))


def test_a_set_of_one_large_group_and_many_single_images_is_parted_without_cutting_the_group() -> None:
    group = np.array([0] * 50 + list(range(1, 51)))

    part = assign(group, ["kind"] * 100)

    assert set(part[:50]) == {"train"}
    assert Counter(part) == {"train": 70, "test": 20, "val": 10}


def drawn(height: int, width: int, seed: int) -> np.ndarray:
    """A textured field: smooth noise, so that borders have something to continue."""
    import cv2

    field = cv2.GaussianBlur(np.random.default_rng(seed).normal(size=(height, width)), (0, 0), 3)
    field = 128 + 50 * field / field.std()
    return np.repeat(field.clip(0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def test_two_halves_of_one_field_are_neighbours_and_another_field_is_not() -> None:
    field = drawn(96, 192, 0)
    images = [field[:, :96].copy(), drawn(96, 96, 1), field[:, 96:].copy()]

    found = similar.neighbours(images)

    assert similar.groups(found.joined).tolist() == [0, 1, 0]


def test_two_crops_that_share_a_third_are_one_specimen() -> None:
    field = drawn(96, 160, 2)
    images = [field[:, :96].copy(), field[:, 64:].copy(), drawn(96, 96, 3)]

    found = similar.overlaps(images)

    assert similar.groups(found.joined).tolist() == [0, 0, 1]
    assert found.control == 0


def test_the_paired_interval_is_that_of_students_t() -> None:
    differences, mean, half = paired({0: 0.5, 1: 0.7, 2: 0.6, 9: 0.0}, {0: 0.4, 1: 0.5, 2: 0.6})

    assert differences == pytest.approx([0.1, 0.2, 0.0])
    assert mean == pytest.approx(0.1)
    assert half == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)  # t of 0.975 at 2 degrees of freedom


def run(**other: Any) -> dict[str, Any]:
    hashes = {"initial_weights_sha256": "w", "labelled_batches_sha256": "b", "data_sha256": "d"}
    settings = {"method": "supervised", "config": {}, "iterations": 600}
    same = {"key": "a", "task": "semantic", "scale": "cpu", "labels": "1/32", "seed": 0, "settings": settings}
    return {**same, **hashes, **other}


def change_weights(it: dict[str, Any]) -> None:
    it["initial_weights_sha256"] = "other"


def change_batches(it: dict[str, Any]) -> None:
    it["labelled_batches_sha256"] = "other"


def change_steps(it: dict[str, Any]) -> None:
    it["settings"] = {**it["settings"], "iterations": 700}


@pytest.mark.parametrize("change", [change_weights, change_batches, change_steps])
def test_a_table_refuses_runs_that_do_not_share_what_must_be_shared(change: Callable[[dict[str, Any]], None]) -> None:
    other = run(key="b", settings={"method": "cdcl", "config": {"alpha": 0.9}, "iterations": 600})
    refuse_unfair([run(), other])

    change(other)

    with pytest.raises(ValueError, match="b and a do not share"):
        refuse_unfair([run(), other])
