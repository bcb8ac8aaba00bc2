"""`cytopipe convert` of results: every format from the table, at the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from faster_coco_eval import COCO
from typer.testing import CliRunner

from cytopipe.cli.main import app
from cytopipe.core.classes import class_named
from cytopipe.core.objects import Objects
from cytopipe.formats.qupath import read_qupath
from cytopipe.formats.results import read_results, write_results, write_run_json

CLASSES = [class_named("nucleus"), class_named("HSIL")]


def run(*arguments, code=0):
    done = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert done.exit_code == code, done.stderr
    return done


def refusal(*arguments):
    lines = run(*arguments, "--quiet", code=2).stderr.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def some_results(folder, *, size=(640, 480), seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 400, (40, 2))
    geometry = shapely.box(corner[:, 0], corner[:, 1], corner[:, 0] + 20, corner[:, 1] + 12)
    score = rng.random((40, 2)).astype(np.float32)
    objects = Objects(
        shapely.bounds(geometry),
        score.argmax(axis=1).astype(np.int32),
        score.max(axis=1),
        score,
        geometry,
        np.zeros(40, np.uint8),
        np.zeros(40, np.int32),
    )
    return write_results(folder, folder.name, objects, CLASSES, mpp=(0.5, 0.5), bounds_offset=(10, 20), size=size)


def test_all_formats_are_written_from_the_table_under_the_ids_of_the_run(tmp_path):
    results = some_results(tmp_path / "S-1")
    out = tmp_path / "out"

    run(tmp_path / "S-1", "--write", "geojson,coco,zarr,csv,parquet", "--out", out)

    assert sorted(p.name for p in out.iterdir()) == [
        "labels.zarr",
        "objects.coco.json",
        "objects.csv",
        "objects.geojson",
        "objects.parquet",
    ]
    assert (out / "objects.geojson").read_bytes() == (tmp_path / "S-1" / "objects.geojson").read_bytes()
    assert (out / "objects.parquet").read_bytes() == (tmp_path / "S-1" / "objects.parquet").read_bytes()
    coco = COCO(str(out / "objects.coco.json"))
    assert [a["object_id"] for a in coco.anns.values()] == list(results.object_ids)
    assert [line.split(",")[0].strip('"') for line in (out / "objects.csv").read_text().splitlines()[1:]] == list(
        results.object_ids
    )


def test_without_out_the_files_lie_beside_the_table(tmp_path):
    for name in ("S-1", "S-2"):
        some_results(tmp_path / name, seed=len(name))

    found = json.loads(run(tmp_path, "--write", "csv", "--json").stdout)

    assert [(one["slide_id"], one["objects"]) for one in found["results"]] == [("S-1", 40), ("S-2", 40)]
    assert (tmp_path / "S-1" / "objects.csv").is_file()
    assert (tmp_path / "S-2" / "objects.csv").is_file()


def test_several_slides_get_a_folder_each_in_the_frame_and_the_parts_asked_for(tmp_path):
    for name in ("S-1", "S-2"):
        some_results(tmp_path / "in" / name)

    run(
        *(tmp_path / "in", "--write", "geojson", "--out", tmp_path / "out"),
        *("--frame", "slide", "--geojson-gz", "--split-mb", "0.005"),
    )

    parts = sorted((tmp_path / "out" / "S-2").iterdir())
    assert len(parts) > 2
    assert all(part.name.endswith(".geojson.gz") for part in parts)


def test_a_geojson_in_frame_slide_holds_the_coordinates_of_the_table(tmp_path):
    results = some_results(tmp_path / "S-1")

    run(tmp_path / "S-1", "--write", "geojson", "--out", tmp_path / "out", "--frame", "slide")

    found, _ = read_qupath(tmp_path / "out" / "objects.geojson", frame="slide")
    boxes = np.array([annotation.geometry.bounds for annotation in found])
    assert np.abs(boxes - results.objects.xyxy).max() <= 0.0005


def test_the_size_of_a_slide_that_its_table_does_not_say_comes_from_its_run(tmp_path):
    some_results(tmp_path / "S-1", size=None)
    write_run_json(tmp_path / "S-1", {"slide": {"size_px": [700, 600]}})
    some_results(tmp_path / "S-2", size=None)

    run(tmp_path, "--write", "coco")

    sizes = []
    for name in ("S-1", "S-2"):
        image = COCO(str(tmp_path / name / "objects.coco.json")).imgs[1]
        sizes.append((image["width"], image["height"]))
    reach = np.ceil(read_results(tmp_path / "S-2").objects.xyxy[:, 2:].max(axis=0))
    assert sizes == [(700, 600), tuple(reach)]


def test_arguments_that_do_not_fit_results_are_refused_before_anything_is_written(tmp_path):
    some_results(tmp_path / "in" / "S-1")
    some_results(tmp_path / "other" / "S-1")
    (tmp_path / "a.csv").write_text("class,x,y,w,h\nRBC,0,0,1,1\n")
    results, out = tmp_path / "in", tmp_path / "out"
    cases = {
        (results, "--write", "geojson"): "exists already; choose another --out, or give --replace",
        (results, "--write", "cvs", "--out", out): "did you mean 'csv'?",
        (results, tmp_path / "a.csv", "--out", out): "is no results folder, and others are",
        (results, tmp_path / "other", "--out", out): "two slides would be written to one folder",
        (results, "--out", tmp_path / "a.csv"): "is a file; results become a folder",
        (results, "--out", out, "--slide", "S"): "belongs to annotations",
        (results, "--out", out, "--write", "zarr", "--zarr-mpp", "0.1"): "finer than level 0",
        (tmp_path / "a.csv", "--out", out, "--write", "csv"): "annotations are written as one of coco, geojson",
        (tmp_path / "a.csv", "--out", out, "--geojson-gz"): "belongs to results of infer",
        (tmp_path / "a.csv",): "--out: is missing",
    }

    for arguments, complaint in cases.items():
        assert complaint in refusal(*arguments)

    assert not out.exists()


@pytest.mark.parametrize("name", ["objects.parquet", "objects.csv"])
def test_with_replace_files_are_written_again(tmp_path, name):
    some_results(tmp_path / "S-1")
    run(tmp_path / "S-1", "--write", "parquet,csv", "--replace")
    before = (tmp_path / "S-1" / name).read_bytes()

    run(tmp_path / "S-1", "--write", "parquet,csv", "--replace")

    assert (tmp_path / "S-1" / name).read_bytes() == before
