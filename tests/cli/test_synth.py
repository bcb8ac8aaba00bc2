"""`cytopipe synth` at the command line: what it writes, resumes and refuses."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time

import openslide
import pytest
from typer.testing import CliRunner

from cytopipe.cli.main import app
from cytopipe.formats.qupath import read_qupath

SMALL = ["--size", "900", "700", "--cells-per-mm2", "400"]


def synth(out, *arguments):
    return CliRunner().invoke(app, ["synth", "--out", str(out), *SMALL, *map(str, arguments)])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".tif", ".geojson", ".csv")}


def test_it_writes_slides_that_openslide_reads_with_their_truth_and_a_list(tmp_path):
    done = synth(tmp_path / "out", "--slides", 2, "--seed", 5, "--mpp", 0.5, "--json")

    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    with (tmp_path / "out" / "slides.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["slide_id"] for row in rows] == ["synth-0000", "synth-0001"]
    assert [row["patient"] for row in rows] == ["patient-5-0000", "patient-5-0001"]
    for row, told in zip(rows, document["slides"], strict=True):
        with openslide.OpenSlide(tmp_path / "out" / row["path"]) as slide:
            assert slide.dimensions == (900, 700)
            assert slide.properties["openslide.vendor"] == "aperio"
            assert slide.properties["aperio.MPP"] == "0.5000"
            assert slide.properties["aperio.AppMag"] == "20"
        truth, left_out = read_qupath(tmp_path / "out" / row["annotations"])
        assert left_out == []
        assert sum(a.class_name == "nucleus" for a in truth) == told["nuclei"] > 0
        assert sum(a.class_name != "nucleus" for a in truth) == sum(told["cells"].values())
        assert {a.attributes["patient"] for a in truth} == {row["patient"]}


def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(tmp_path):
    synth(tmp_path / "a", "--seed", 7, "--workers", 1)
    synth(tmp_path / "b", "--seed", 7, "--workers", 3)
    synth(tmp_path / "c", "--seed", 8)

    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a") != contents(tmp_path / "c")


def test_more_slides_may_be_asked_for_later_and_leave_the_first_alone(tmp_path):
    synth(tmp_path / "out")
    first = (tmp_path / "out" / "synth-0000.tif").stat().st_mtime_ns

    done = synth(tmp_path / "out", "--slides", 2)

    assert done.exit_code == 0, done.stderr
    assert (tmp_path / "out" / "synth-0000.tif").stat().st_mtime_ns == first
    assert (tmp_path / "out" / "synth-0001.tif").exists()
    assert (tmp_path / "out" / "slides.csv").read_text().count("\n") == 3


def test_after_kill_9_the_same_command_ends_with_the_bytes_of_an_unbroken_run(tmp_path):
    arguments = ["synth", "--size", "1200", "1000", "--slides", "3", "--out"]
    code = "import sys; from cytopipe.cli.main import app; app(sys.argv[1:])"

    def start(out):
        return subprocess.Popen(
            [sys.executable, "-c", code, *arguments, str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    broken = start(tmp_path / "broken")
    journal = tmp_path / "broken" / "run.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (journal.exists() and b'"synth-0000"' in journal.read_bytes()):
        time.sleep(0.01)
    os.kill(broken.pid, signal.SIGKILL)
    broken.wait()
    assert not (tmp_path / "broken" / "slides.csv").exists()
    assert start(tmp_path / "broken").wait() == 0
    assert start(tmp_path / "whole").wait() == 0

    assert contents(tmp_path / "broken") == contents(tmp_path / "whole")
    assert sorted(p.name for p in (tmp_path / "broken").iterdir()) == sorted(
        p.name for p in (tmp_path / "whole").iterdir()
    )


def test_other_parameters_are_refused_in_the_same_folder_with_the_difference(tmp_path):
    synth(tmp_path / "out")

    done = synth(tmp_path / "out", "--seed", 1)

    assert done.exit_code == 2
    assert "seed 0 -> 1" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--size", "10", "700"], "size"),
        (["--mpp", "30"], "mpp"),
        (["--cells-per-mm2", "5000"], "cells-per-mm2"),
        (["--lesion-fraction", "2"], "lesion-fraction"),
        (["--slides", "0"], "slides"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_out_of_range_are_refused_in_one_line_and_nothing_is_written(tmp_path, arguments, named):
    done = synth(tmp_path / "out", *arguments)

    assert done.exit_code == 2
    assert named in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_setting_is_a_parameter_of_its_own_and_the_default_leaves_slides_as_they_were(tmp_path):
    synth(tmp_path / "plain", "--seed", 7)
    synth(tmp_path / "light", "--seed", 7, "--setting", "light")
    dark = synth(tmp_path / "dark", "--seed", 7, "--setting", "dark", "--json")
    wrong = synth(tmp_path / "wrong", "--setting", "drak")

    assert contents(tmp_path / "plain") == contents(tmp_path / "light")
    assert dark.exit_code == 0, dark.stderr
    with openslide.OpenSlide(tmp_path / "dark" / "synth-0000.tif") as slide:
        assert slide.get_thumbnail((60, 60)).convert("L").resize((1, 1)).getpixel((0, 0)) < 60
    truth = [(tmp_path / name / "synth-0000.geojson").read_bytes() for name in ("plain", "dark")]
    assert truth[0] == truth[1]  # the same cells, seen in another light
    assert wrong.exit_code == 2
    assert "did you mean 'dark'" in wrong.stderr
