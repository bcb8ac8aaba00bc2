"""`cytopipe infer` with a semantic model, at the command line: the class map, its areas, resume, batches, refusals."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import zarr

from cytopipe.core.errors import UserError
from cytopipe.formats.results import read_run_json
from cytopipe.steps.infer import infer
from cytopipe.steps.synth import synth
from tests.semantic import semantic_bundle


def run(*arguments):
    command = [sys.executable, "-m", "cytopipe.cli.main", "infer", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """0.5 µm/px, windows of 128 px."""
    return semantic_bundle(tmp_path_factory.mktemp("model") / "tiny-semantic").folder


@pytest.fixture(scope="module")
def slides(tmp_path_factory):
    """Two slides of 700 x 620 px at 0.25 µm/px: 350 x 310 px of the model."""
    return synth(tmp_path_factory.mktemp("slides"), slides=2, size=(700, 620), cells_per_mm2=400.0, seed=11).slides


@pytest.fixture(scope="module")
def done(model, slides, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "out"
    result = run(slides[0].path, "--out", out, "--model", model, "--no-foreground")
    assert result.returncode == 0, result.stderr
    return result, out, out / slides[0].slide_id


def bytes_of(folder):
    """SHA-256 of every file without clock times."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "run.json"]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_the_class_map_is_a_zarr_pyramid_whose_areas_stand_in_run_json(done, slides):
    result, _, folder = done

    group = zarr.open_group(folder / "semantic.zarr", mode="r")
    labels = group["0"][...]
    said = read_run_json(folder)

    assert labels.shape == (310, 350)
    counts = np.bincount(labels.ravel(), minlength=3)
    assert (counts > 0).sum() >= 2
    named = {name: area["px"] for name, area in said["areas"].items()}
    expected = {"background": counts[0], "nucleus": counts[1], "cell": counts[2], "not searched": 0}
    assert named == expected
    for name, px in expected.items():
        assert said["areas"][name]["mm2"] == pytest.approx(px * 0.5 * 0.5 / 1e6)
    total = sum(area["mm2"] for area in said["areas"].values())
    assert total == pytest.approx(700 * 620 * 0.25**2 / 1e6)
    scale = group.attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"]
    assert scale == pytest.approx([0.5, 0.5])
    assert "mm²" in result.stdout
    assert "prob" not in group


def test_the_folder_holds_the_map_the_page_and_the_facts_and_no_table_of_objects(done):
    _, _, folder = done

    page = (folder / "report.html").read_text()

    assert {p.name for p in folder.iterdir()} == {"semantic.zarr", "report.html", "run.json"}
    assert "Segmentation report" in page
    assert page.count('class="layer"') == 3
    assert read_run_json(folder)["blending"]["seam_difference"] <= 1e-5


def test_a_finished_slide_is_skipped_and_its_areas_are_still_told(done, slides, model):
    _, out, folder = done
    before = bytes_of(folder)

    again = run(slides[0].path, "--out", out, "--model", model, "--no-foreground", "--json")

    row = json.loads(again.stdout)["rows"][0]
    assert row["status"] == "skipped"
    assert row["areas_mm2"] == {
        k: v["mm2"] for k, v in read_run_json(folder)["areas"].items() if k in ("nucleus", "cell")
    }
    assert bytes_of(folder) == before


def test_a_run_that_was_cut_short_ends_with_the_bytes_of_an_unbroken_one(done, slides, model, tmp_path):
    _, _, unbroken = done
    folder = tmp_path / "out" / slides[0].slide_id
    infer([slides[0].path], tmp_path / "out", model=model, foreground=False, device="cpu")
    lines = (tmp_path / "out" / "run.jsonl").read_text().splitlines()
    (tmp_path / "out" / "run.jsonl").write_text(lines[0] + "\n")  # killed after the map was renamed, before the journal
    (folder / "report.html").unlink()
    (folder / ".semantic.zarr.0badcafe.partial").mkdir()

    result = infer([slides[0].path], tmp_path / "out", model=model, foreground=False, device="cpu")

    assert result.rows[0].status == "done"
    assert bytes_of(folder) == bytes_of(unbroken)


def test_a_batch_has_an_index_and_a_table_of_areas_and_probabilities_come_on_request(slides, model, tmp_path):
    bad = tmp_path / "bad.svs"
    bad.write_bytes(b"II*\0 no slide")

    result = infer([*(s.path for s in slides), bad], tmp_path / "out", model=model, device="cpu", write=["prob"])

    assert [row.status for row in result.rows] == ["done", "done", "failed"]
    table = list(csv.DictReader((tmp_path / "out" / "slides.csv").read_text().splitlines()))
    assert [float(row["nucleus_mm2"] or 0) for row in table[:2]] == [r.areas_mm2["nucleus"] for r in result.rows[:2]]
    assert (table[2]["status"], table[2]["cell_mm2"]) == ("failed", "")
    assert f'href="{slides[0].slide_id}/report.html"' in (tmp_path / "out" / "index.html").read_text()
    group = zarr.open_group(tmp_path / "out" / slides[0].slide_id / "semantic.zarr", mode="r")
    labels, probabilities = group["0"][...], group["prob/0"][...].astype(int)
    assert probabilities.shape == (2, 310, 350)
    clear = np.abs(probabilities[0] - probabilities[1]) > 1  # not a tie within rounding
    assert not ((labels == 1) & clear & (probabilities[0] < probabilities[1])).any()
    assert (probabilities.sum(axis=0) <= 256).all()


def test_settings_of_another_task_are_refused_before_anything_is_written(slides, model, tmp_path):
    refused = run(slides[0].path, "--out", tmp_path / "out", "--model", model, "--score-threshold", "0.5")

    assert refused.returncode == 2
    assert "model tiny-semantic is a semantic one, which knows no --score-threshold" in refused.stderr
    with pytest.raises(UserError, match="--write prob: model pap-light locates objects"):
        infer([slides[0].path], tmp_path / "out", device="cpu", write=["prob"])
    assert not (tmp_path / "out").exists()
