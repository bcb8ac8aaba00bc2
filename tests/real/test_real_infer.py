"""`cytopipe infer` and the steps around it on the real slides, with the shipped model and no further option."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cytopipe.cli.main import app
from cytopipe.formats.results import read_results, read_run_json
from cytopipe.tiles import TileStore
from tests.conftest import shared_data

FILES = {"objects.parquet", "objects.geojson", "report.html", "run.json"}


def run(*arguments):
    return CliRunner().invoke(app, [*map(str, arguments)])


@pytest.fixture(scope="module")
def svs():
    return shared_data("wsi") / "CMU-1-Small-Region.svs"


def test_a_real_svs_is_searched_and_its_label_and_macro_stay_in_the_file(svs, tmp_path):
    done = run("infer", svs, "--out", tmp_path)

    folder = tmp_path / svs.stem
    assert done.exit_code == 0, done.stderr
    assert {path.name for path in folder.iterdir()} >= FILES
    facts = read_run_json(folder)
    assert facts["slide"]["mpp"] == pytest.approx([0.499, 0.499])
    assert facts["objects"] == len(read_results(folder).objects)
    assert "macro" not in json.dumps(facts)
    assert "label" not in json.dumps(facts["slide"])


def test_a_fluorescence_ndpi_is_searched_with_a_warning_that_the_model_was_not_made_for_it(tmp_path):
    ndpi = next(shared_data("wsi").glob("*.ndpi"))

    done = run("infer", ndpi, "--out", tmp_path)

    assert done.exit_code == 0, done.stderr
    assert "dark background" in done.stderr
    assert {path.name for path in (tmp_path / ndpi.stem).iterdir()} >= FILES
    assert any("dark background" in line for line in read_run_json(tmp_path / ndpi.stem)["warnings"])
    assert "dark background" in (tmp_path / ndpi.stem / "report.html").read_text()


def test_a_dicom_of_29_um_a_pixel_is_refused_in_one_line_that_says_so(tmp_path):
    dicom = next((shared_data("wsi") / "camelyon_dicom").glob("*.dcm"))

    done = run("infer", dicom, "--out", tmp_path / "out")

    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.exit_code == 2
    assert len(errors) == 1
    assert "28.97" in errors[0]
    assert not (tmp_path / "out").exists()


def test_a_real_svs_is_tiled_and_mined_and_the_stores_are_read(svs, tmp_path):
    tiled = run("tile", svs, "--out", tmp_path / "tiles")
    mined = run("mine-unlabeled", svs, "--out", tmp_path / "mined", "--budget-per-slide", "3", "--select", "random")

    assert tiled.exit_code == 0, tiled.stderr
    assert mined.exit_code == 0, mined.stderr
    store, mined_store = TileStore(tmp_path / "tiles"), TileStore(tmp_path / "mined")
    assert len(store) > 2
    assert store.read_image(0).shape == (1200, 1200, 3)
    assert 0 < len(mined_store) <= 3
    assert set(mined_store.tiles["origin"].to_pylist()) <= {"mined", "random"}
