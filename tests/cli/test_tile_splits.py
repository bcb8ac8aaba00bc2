"""`cytopipe tile --split` at the command line: by patient, stable, stratified on request, and never leaking."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cytopipe.cli.main import app
from cytopipe.recipes import load_recipe
from cytopipe.tiles import TileStore
from cytopipe.tiles.split import parse_ratio

SIDE_PX = 96


def write_slide(path: Path, seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(200, 240, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    cv2.imwrite(str(path), rgb)


def write_list(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def tile(*arguments: object):
    fixed = ["--tile-px", str(SIDE_PX), "--native", "--no-foreground", "--workers", "1"]
    return CliRunner().invoke(app, ["tile", *map(str, arguments), *fixed])


def parts_of(store: Path) -> dict[str, str]:
    slides = TileStore(store).slides
    return dict(zip(slides["patient"].to_pylist(), slides["split"].to_pylist(), strict=True))


@pytest.fixture
def rows(tmp_path) -> list[dict[str, object]]:
    """Twenty patients with a slide each, two strata by diagnosis, none by stratum."""
    for k in range(20):
        write_slide(tmp_path / f"S-{k:02}.png", seed=k)
    return [
        {"path": f"S-{k:02}.png", "patient": f"P-{k:02}", "diagnosis": "HSIL" if k < 10 else "NILM"} for k in range(20)
    ]


def test_seven_to_one_to_two_is_the_split_of_the_dual_alignment_recipe(rows, tmp_path):
    listed = write_list(tmp_path / "slides.csv", rows)

    done = tile(listed, "--recipe", "dual-alignment", "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    ratio = load_recipe("dual-alignment").recipe.tile.split
    assert parse_ratio(ratio) == {"train": 0.7, "val": 0.1, "test": 0.2}
    assert Counter(parts_of(tmp_path / "store").values()) == {"train": 14, "val": 2, "test": 4}


def test_a_flag_goes_before_the_recipe_and_a_set_key_between_them(rows, tmp_path):
    listed = write_list(tmp_path / "slides.csv", rows)

    done = tile(
        listed, "--recipe", "dual-alignment", "--set", "tile.codec=png", "--set", "tile.tile_px=64",
        "--split", "1:1", "--out", tmp_path / "store",
    )  # fmt: skip
    wrong = tile(listed, "--recipe", "dual-alignment", "--set", "tile.til_px=64", "--out", tmp_path / "other")

    assert done.exit_code == 0, done.stderr
    info = TileStore(tmp_path / "store").info
    assert (info.tile_px, info.codec) == (SIDE_PX, "png")  # 96, as the flag says; 64 as --set, 1200 as the recipe
    assert set(parts_of(tmp_path / "store").values()) == {"train", "val"}
    assert wrong.exit_code == 2
    assert "did you mean 'tile_px'" in wrong.stderr


def test_stratified_on_request_each_diagnosis_has_its_share_of_each_part(rows, tmp_path):
    listed = write_list(tmp_path / "slides.csv", rows)

    done = tile(listed, "--split", "7:1:2", "--stratify", "diagnosis", "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    parts = parts_of(tmp_path / "store")
    count = Counter((row["diagnosis"], parts[row["patient"]]) for row in rows)
    assert count == {
        (name, part): n for name in ("HSIL", "NILM") for part, n in (("train", 7), ("val", 1), ("test", 2))
    }


def test_a_list_that_grows_by_patients_and_slides_moves_nobody(rows, tmp_path):
    store = tmp_path / "store"
    before: dict[str, str] = {}
    for k, many in enumerate((12, 16, 20)):
        more = [{**row, "path": f"again-{row['path']}"} for row in rows[: 2 * k]]  # further slides of old patients
        for row in more:
            write_slide(tmp_path / row["path"], seed=100 + int(row["path"][8:10]))
        done = tile(write_list(tmp_path / "slides.csv", rows[:many] + more), "--split", "7:1:2", "--out", store)
        assert done.exit_code == 0, done.stderr
        after = parts_of(store)
        assert {patient: after[patient] for patient in before} == before
        before = after

    assert Counter(before.values()) == {"train": 14, "val": 2, "test": 4}


def test_one_file_under_two_patients_of_different_parts_ends_with_exit_code_2(rows, tmp_path):
    shutil.copy(tmp_path / "S-00.png", tmp_path / "copy.png")
    given = [{**row, "split": "train"} for row in rows[:3]]
    given.append({"path": "copy.png", "patient": "P-99", "diagnosis": "", "split": "test"})

    done = tile(write_list(tmp_path / "slides.csv", given), "--out", tmp_path / "store")

    assert done.exit_code == 2
    last = done.stderr.strip().splitlines()[-1]
    assert "slides 'S-00' and 'copy' are the same file, in two parts: train as patient 'P-00', test as" in last
    assert not (tmp_path / "store").exists()


def test_a_file_that_comes_again_under_another_patient_when_the_list_grows_is_refused(rows, tmp_path):
    given = [{**row, "split": "train"} for row in rows[:3]]
    first = tile(write_list(tmp_path / "slides.csv", given), "--out", tmp_path / "store")
    before = parts_of(tmp_path / "store")
    shutil.copy(tmp_path / "S-00.png", tmp_path / "copy.png")
    later = [{"path": "copy.png", "patient": "P-99", "split": "test"}]

    refused = tile(write_list(tmp_path / "later.csv", later), "--out", tmp_path / "store")

    assert first.exit_code == 0, first.stderr
    assert refused.exit_code == 2
    assert "slides 'S-00' and 'copy' are the same file" in refused.stderr
    assert parts_of(tmp_path / "store") == before


def test_a_patient_in_two_parts_of_the_list_ends_with_exit_code_2(rows, tmp_path):
    given = [{**rows[0], "split": "train"}, {**rows[1], "patient": "P-00", "split": "val"}]

    done = tile(write_list(tmp_path / "slides.csv", given), "--out", tmp_path / "store")

    assert done.exit_code == 2
    assert "patient 'P-00' is in two parts, train and val" in done.stderr
    assert not (tmp_path / "store").exists()
