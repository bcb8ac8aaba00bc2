"""`cytopipe infer` at the command line, with the shipped model: files, resume, batches, refusals."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import geopandas
import numpy as np
import pytest
import shapely

from cytopipe.formats.qupath import read_qupath
from cytopipe.formats.results import read_results, read_run_json
from cytopipe.metrics import count_found
from cytopipe.steps.synth import synth

FILES = {"objects.parquet", "objects.geojson", "report.html", "run.json"}


def command(*arguments):
    return [sys.executable, "-m", "cytopipe.cli.main", "infer", *map(str, arguments)]


def run(*arguments):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command(*arguments), env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide of 3072 px (768 µm): two by two windows of the shipped model."""
    return synth(tmp_path_factory.mktemp("slide"), size=(3072, 3072), cells_per_mm2=300.0, seed=501).slides[0]


@pytest.fixture(scope="module")
def done(slide, tmp_path_factory):
    out = tmp_path_factory.mktemp("results") / "out"
    result = run(slide.path, "--out", out)
    assert result.returncode == 0, result.stderr
    return result, out, out / slide.slide_id


def digests(folder):
    """Bytes of the files without clock times."""
    return {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("objects.parquet", "objects.geojson")
    }


def test_the_results_folder_holds_what_other_programs_read(done, slide):
    _, _, folder = done

    table = geopandas.read_parquet(folder / "objects.parquet")
    features = json.loads((folder / "objects.geojson").read_text())["features"]

    assert {path.name for path in folder.iterdir()} >= FILES
    assert len(table) == len(features) == read_run_json(folder)["objects"] > 50
    assert {f["properties"]["objectType"] for f in features} == {"detection"}
    assert table.geometry.is_valid.all()
    assert (table.area_um2 > 0).all()
    assert table.total_bounds[2] <= 3072 + 1
    assert str(features[0]["id"]) in set(table.object_id)


def test_nuclei_of_a_fresh_slide_are_found_once_each(done, slide):
    _, _, folder = done
    results = read_results(folder)
    truth = [a for a in read_qupath(slide.annotations, frame="slide")[0] if a.class_name == "nucleus"]
    nuclei = np.array([c.kind == "nucleus" for c in results.classes])[results.objects.class_index]

    counts = count_found(shapely.bounds(np.array([a.geometry for a in truth], object)), results.objects.xyxy[nuclei])

    assert counts.sensitivity > 0.7  # a floor that tells a shifted frame from a weak model; the card has the figures
    assert counts.precision > 0.7
    assert counts.doubled <= 0.02 * len(truth)


def test_the_command_says_what_it_wrote_and_one_document_with_json(done, slide, tmp_path):
    result, out, _ = done

    again = run(slide.path, "--out", out, "--json")

    assert f"written to {out}" in result.stdout
    assert "report.html" in result.stdout
    document = json.loads(again.stdout)
    assert document["rows"][0]["status"] == "skipped"
    assert document["rows"][0]["objects"] > 50


def test_a_run_killed_and_started_again_ends_with_the_bytes_of_an_unbroken_one(done, slide, tmp_path):
    _, _, unbroken = done
    out = tmp_path / "broken"
    process = subprocess.Popen(
        command(slide.path, "--out", out),
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (out / "run.jsonl").exists():
        time.sleep(0.02)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / slide.slide_id / "objects.parquet").exists()

    resumed = run(slide.path, "--out", out)

    assert resumed.returncode == 0, resumed.stderr
    assert digests(out / slide.slide_id) == digests(unbroken)


def test_one_bad_slide_of_several_is_a_row_and_the_others_are_done(smears, tmp_path):
    folder = tmp_path / "slides"
    folder.mkdir()
    shutil.copy(smears.slides[0].path, folder / "good.tif")
    (folder / "bad.svs").write_text("no slide")

    result = run(folder / "good.tif", folder / "bad.svs", "--out", tmp_path / "out")

    assert result.returncode == 1
    assert "1 of 2 slides failed" in result.stderr
    assert "Traceback" not in result.stderr
    assert {path.name for path in (tmp_path / "out" / "good").iterdir()} >= FILES
    assert not (tmp_path / "out" / "bad").exists()
    with (tmp_path / "out" / "slides.csv").open() as file:
        assert [(row["slide_id"], row["status"]) for row in csv.DictReader(file)] == [
            ("good", "done"),
            ("bad", "failed"),
        ]
    assert "bad" in (tmp_path / "out" / "index.html").read_text()


def test_a_slide_of_bare_glass_is_a_result_without_objects(tmp_path):
    from PIL import Image

    glass = np.random.default_rng(0).normal(240, 1.0, (600, 600, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(glass).save(tmp_path / "glass.png")

    result = run(tmp_path / "glass.png", "--mpp-override", "0.25", "--out", tmp_path / "out")

    assert result.returncode == 0, result.stderr
    assert read_run_json(tmp_path / "out" / "glass")["objects"] == 0
    assert "no object was found" in result.stderr


def test_a_corrupt_tile_is_reported_with_its_place_and_never_searched_as_blank(smears, tmp_path):
    import tifffile

    path = tmp_path / "torn.tif"
    shutil.copy(smears.slides[1].path, path)
    with tifffile.TiffFile(path) as tif:
        offset, size = tif.pages[0].dataoffsets[5], tif.pages[0].databytecounts[5]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x00" * size)

    result = run(path, "--out", tmp_path / "out")

    assert result.returncode == 1  # one window covers this small slide, and it cannot be read
    assert "torn.tif" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_finer_resolution_than_the_slide_has_is_refused_before_anything_is_written(tmp_path):
    from PIL import Image

    Image.new("RGB", (300, 300), (230, 230, 230)).save(tmp_path / "coarse.png")

    result = run(tmp_path / "coarse.png", "--mpp-override", "28.97", "--out", tmp_path / "out")

    assert result.returncode == 2
    assert "28.97" in result.stderr
    assert not (tmp_path / "out").exists()


def test_results_of_another_model_setting_are_not_overwritten(done, slide):
    _, out, folder = done
    before = digests(folder)

    result = run(slide.path, "--out", out, "--score-threshold", "0.9")

    assert result.returncode == 2
    assert "score_threshold None -> 0.9" in result.stderr
    assert digests(folder) == before
