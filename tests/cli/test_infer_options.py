"""What the options of `cytopipe infer` do to a run, with a tiny model in real processes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import shapely
from shapely import Point, box

from cytopipe.formats.annotations import Annotation
from cytopipe.formats.qupath import QuPathWriter
from cytopipe.formats.results import read_results, read_run_json
from tests.cli.test_infer_resume import write_slide
from tests.forked import run
from tests.tiny_model import write_tiny_model

REGIONS = (box(30.0, 40.0, 140.0, 200.0), Point(200, 60).buffer(30))


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    """Two slides; only the first has a region."""
    folder = tmp_path_factory.mktemp("slides")
    for name, seed in (("A", 1), ("B", 2)):
        write_slide(folder / f"{name}.tif", seed=seed, side_px=256)
    with QuPathWriter(folder / "A.geojson", frame="bounds") as writer:
        for k, region in enumerate(REGIONS):
            writer.add(Annotation(str(k), "ROI", region))
        writer.add(Annotation("2", "other", box(0, 0, 9, 9)))
    return folder


@pytest.fixture(scope="module")
def plain(slides, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain") / "out"
    ended = run(command(slides / "A.tif", model, out), out.parent / "said")
    assert ended.code == 0, ended.said
    return ended, out


def command(slides: object, model: Path, out: Path, *more: object) -> list[str]:
    return ["infer", str(slides), "--model", str(model), "--out", str(out), *map(str, more)]


def test_before_it_starts_a_run_says_what_it_is_going_to_do_how_long_it_takes_and_once_that_there_is_no_gpu(plain):
    ended, _ = plain

    plan = re.search(r"at most (\d+) windows of 128 px, about (\d+) s", ended.said)

    assert int(plan.group(1)) > 4
    assert ended.said.count("no GPU") == 1
    assert ended.said.index("no GPU") < plan.start()


def test_a_region_keeps_the_objects_whose_centroid_lies_in_it(slides, model, plain, tmp_path):
    everything = read_results(plain[1] / "A").objects

    ended = run(
        command(slides / "A.tif", model, tmp_path / "out", "--roi", "ROI", "--annotations", slides), tmp_path / "said"
    )

    assert ended.code == 0, ended.said
    found = read_results(tmp_path / "out" / "A").objects
    inside = shapely.contains(shapely.union_all(REGIONS), shapely.centroid(everything.geometry))
    assert 0 < len(found) == inside.sum() < len(everything)
    assert np.abs(found.xyxy - everything.xyxy[inside]).max() < 1e-9
    assert read_run_json(tmp_path / "out" / "A")["settings"]["roi"] == "ROI"


def test_a_slide_of_several_without_the_region_is_a_failed_row_and_alone_it_is_refused(slides, model, tmp_path):
    both = run(command(slides, model, tmp_path / "both", "--roi", "ROI", "--annotations", slides), tmp_path / "said")
    alone = run(
        command(slides / "A.tif", model, tmp_path / "alone", "--roi", "RIO", "--annotations", slides), tmp_path / "said"
    )
    without = run(command(slides / "A.tif", model, tmp_path / "alone", "--roi", "ROI"), tmp_path / "said")
    unasked = run(command(slides / "A.tif", model, tmp_path / "alone", "--annotations", slides), tmp_path / "said")

    assert both.code == 1
    assert "1 of 2 slides failed" in both.said
    assert (tmp_path / "both" / "A" / "report.html").exists()
    assert [alone.code, without.code, unasked.code] == [2, 2, 2]
    assert "did you mean 'ROI'" in alone.said
    assert "no slide has annotations" in without.said
    assert "give --roi" in unasked.said
    assert not (tmp_path / "alone").exists()


def test_a_csv_list_names_slides_with_their_own_resolution(slides, model, tmp_path):
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [("path", "slide_id", "mpp"), (slides / "A.tif", "fine", 0.25), (slides / "B.tif", "b", "")]
        )

    ended = run(command(tmp_path / "list.csv", model, tmp_path / "out", "--json"), tmp_path / "said")

    assert ended.code == 0, ended.said
    assert read_run_json(tmp_path / "out" / "fine")["slide"]["mpp"] == [0.25, 0.25]
    assert (tmp_path / "out" / "b" / "report.html").exists()
    assert (tmp_path / "out" / "index.html").exists()


def test_augmentation_colours_and_batches_change_the_run_and_stand_in_run_json_and_report(
    slides, model, plain, tmp_path
):
    ended = run(
        command(
            slides / "A.tif", model, tmp_path / "out", "--tta", "all", "--stain", "normalise", "--batch-size", 3,
            "--write", "parquet", "--score-threshold", "0.05", "--no-foreground",
        ),
        tmp_path / "said",
    )  # fmt: skip

    assert ended.code == 0, ended.said
    folder = tmp_path / "out" / "A"
    assert {path.name for path in folder.iterdir()} == {"objects.parquet", "report.html", "run.json"}
    settings = read_run_json(folder)["settings"]
    assert settings == {
        "foreground": False, "roi": None, "stain": "normalise", "batch_windows": 3, "tta": "all",
    }  # fmt: skip
    assert "normalise" in (folder / "report.html").read_text()
    assert len(read_results(folder).objects) != len(read_results(plain[1] / "A").objects)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--batch-size", "0"), "neither auto nor a number"),
        (("--batch-size", "many"), "neither auto nor a number"),
        (("--write", "cooc"), "did you mean 'coco'"),
        (("--write", "prob"), "it is for semantic ones"),
        (("--tta", "spin"), "--tta"),
        (("--score-threshold", "2"), "--score-threshold"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_written(options, reason, slides, model, tmp_path):
    ended = run(command(slides / "A.tif", model, tmp_path / "out", *options), tmp_path / "said")

    assert ended.code == 2
    assert reason in ended.said
    assert not (tmp_path / "out").exists()


def test_another_setting_in_the_same_folder_is_refused_and_workers_and_device_are_none(slides, model, plain, tmp_path):
    _, out = plain

    other = run(command(slides / "A.tif", model, out, "--tta", "flips"), tmp_path / "said")
    same = run(command(slides / "A.tif", model, out, "--workers", 3, "--device", "cpu", "--json"), tmp_path / "said")

    assert other.code == 2
    assert "tta off -> flips" in other.said
    assert same.code == 0
    assert json.loads(same.said[same.said.index("{\n") :])["rows"][0]["status"] == "skipped"


def test_weights_of_other_classes_and_broken_ones_are_refused_by_name(slides, model, tmp_path):
    other = write_tiny_model(tmp_path / "other", classes=("nucleus", "LSIL", "HSIL"))
    (other / "weights.safetensors").write_bytes((model / "weights.safetensors").read_bytes())
    text = (other / "model.toml").read_text()
    own = re.search(r'weights_sha256 = "(\w+)"', (model / "model.toml").read_text()).group(1)

    hashed = run(command(slides / "A.tif", other, tmp_path / "out"), tmp_path / "said")
    (other / "model.toml").write_text(re.sub(r'weights_sha256 = "\w+"', f'weights_sha256 = "{own}"', text))
    shaped = run(command(slides / "A.tif", other, tmp_path / "out"), tmp_path / "said")

    assert (hashed.code, shaped.code) == (2, 2)
    assert "is not the file that model.toml describes" in hashed.said
    assert "classes or architecture differ" in shaped.said
    assert not (tmp_path / "out").exists()
