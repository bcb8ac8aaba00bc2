"""`cytopipe evaluate` at the command line: what it prints, what it writes, and how it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from typer.testing import CliRunner

from cytopipe.cli.main import app
from cytopipe.core.classes import class_named
from cytopipe.core.objects import Objects
from cytopipe.formats.annotations import Annotation
from cytopipe.formats.qupath import QuPathWriter
from cytopipe.formats.results import write_results


def run(*arguments):
    return CliRunner().invoke(app, ["evaluate", *map(str, arguments)])


def write_slide(results, truths, slide_id, *, found, true):
    """One slide with cells of 20 px at the given x: in results/SLIDE, and in truths/SLIDE.geojson."""
    n = len(found)
    boxes = np.array([(x, 0, x + 20, 20) for x in found], np.float64).reshape(n, 4)
    rest = np.zeros(n, np.int32), np.full(n, 0.9, np.float32), np.full((n, 1), 0.9, np.float32)
    objects = Objects(boxes, *rest, np.full(n, None, object), np.zeros(n, np.uint8), np.full(n, -1, np.int32))
    write_results(results / slide_id, slide_id, objects, [class_named("HSIL")], mpp=None)
    truths.mkdir(exist_ok=True)
    with QuPathWriter(truths / f"{slide_id}.geojson") as out:
        for x in true:
            out.add(Annotation(f"at-{x}", "HSIL", shapely.box(x, 0, x + 20, 20)))


@pytest.fixture
def folders(tmp_path):
    """Results and truths of two slides: of 5 true cells 3 are found, one of them twice, and one result is false."""
    results, truths = tmp_path / "results", tmp_path / "truths"
    write_slide(results, truths, "a", found=[0, 1, 100], true=[0, 100, 200])
    write_slide(results, truths, "b", found=[0, 900], true=[0, 500])
    return results, truths


def test_the_tables_say_what_was_found_and_where_the_numbers_are(folders):
    results, truths = folders

    done = run(results, truths)

    assert done.exit_code == 0
    (row,) = (line.split() for line in done.stdout.splitlines() if line.startswith("HSIL"))
    assert row[1] == "5"
    assert row[5:] == ["3", "2", "1", "1", "60.0", "60.0"]
    assert f"written to {results / 'evaluation' / 'evaluation.json'}" in done.stdout
    assert "the truth covers the whole slide" in done.stderr


def test_json_prints_one_document_and_nothing_else_on_stdout(folders):
    done = run(*folders, "--json", "--quiet")

    document = json.loads(done.stdout)
    assert document["evaluation"]["classes"][0]["found"] == 3
    assert done.stderr == ""


def test_a_slide_that_cannot_be_read_is_listed_and_the_exit_code_is_one(folders):
    results, truths = folders
    (truths / "b.geojson").write_text("no JSON")

    done = run(results, truths, "--quiet")

    assert done.exit_code == 1
    assert "error: 1 of 2 slides failed:" in done.stderr
    assert "b.geojson: is not JSON" in done.stderr
    assert done.stdout.splitlines()[1].split()[:2] == ["HSIL", "3"]


def test_bad_input_is_one_line_and_exit_code_two(folders, tmp_path):
    results, truths = folders
    cases = {
        (tmp_path / "nowhere", truths): "nowhere: no such file or folder; give the --out of infer",
        (truths, truths): "holds no objects.parquet",
        (results, tmp_path / "nowhere"): "nowhere: no such file or folder; give a GeoJSON",
        (results, results): "holds no annotation file and is no tile store",
        (results, truths / "a.geojson"): "one truth for the results of 2 slides; give a folder",
        (results, truths, "--iou", "0"): "--iou 0",
        (results / "a", truths, "--roi", "Region"): "has no annotation of class 'Region'",
    }
    for arguments, message in cases.items():
        done = run(*arguments, "--quiet")

        lines = done.stderr.splitlines()
        assert (done.exit_code, len(lines), done.stdout) == (2, 1, ""), done.stderr
        assert message in lines[0]
    assert not list(results.rglob("evaluation"))
