"""`cytopipe mine-unlabeled` at the command line, with untrained weights: what it prints, and how it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from cytopipe.cli.main import app
from cytopipe.core.classes import class_named
from cytopipe.nets import NetSpec, build_net, save_bundle
from cytopipe.nets.bundle import BundleSpec, Thresholds
from cytopipe.tiles import TileStore


def run(*arguments):
    return CliRunner().invoke(app, ["mine-unlabeled", *map(str, arguments)])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A bundle that finds something in each window: untrained, and a threshold of 0."""
    net_spec = NetSpec.model_validate(
        {"architecture": "faster-rcnn-mobilenetv2-fpn", "classes": (class_named("normal"), class_named("HSIL"))}
    )
    spec = BundleSpec(
        name="untrained",
        net=net_spec,
        mpp=0.5,
        tile_px=128,
        max_object_px=20,
        receptive_field_px=64,
        thresholds=Thresholds(score={"cell": 0.0}, max_detections=5),
        weights_sha256="",
    )
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_bundle(folder, spec, build_net(net_spec).state_dict(), "untrained")
    return folder


@pytest.fixture
def slide(tmp_path):
    grain = np.random.default_rng(0).integers(60, 255, (256, 256, 3), dtype=np.uint8)
    path = tmp_path / "slides" / "a.png"
    path.parent.mkdir()
    Image.fromarray(grain).save(path)
    return path


def test_mined_windows_are_counted_and_the_next_command_is_said(slide, model, tmp_path):
    out = tmp_path / "mined"

    done = run(slide, "--model", model, "--out", out, "--mpp-override", "0.5", "--budget-per-slide", "2")

    assert done.exit_code == 0, done.stderr
    assert done.stdout.splitlines()[1].split() == ["a", "a", "2"]
    assert "windows chosen: 2 by score" in done.stdout
    assert f"next: cytopipe train --method dual-alignment --labeled STORE --unlabeled {out} --out RUN" in done.stdout
    assert "without --exclude nothing keeps slides of validation or test patients out" in done.stderr
    store = TileStore(out)
    assert (len(store), store.info.tile_px, store.info.mpp) == (2, 128, 0.5)
    assert "2 tiles of 1 slide" in (out / "index.html").read_text()


def test_json_prints_one_document_and_nothing_else_on_stdout(slide, model, tmp_path):
    out = tmp_path / "mined"
    arguments = ("--model", model, "--out", out, "--mpp-override", "0.5", "--select", "random")

    done = run(slide, *arguments, "--json", "--quiet")

    picked = json.loads(done.stdout)["picked"]
    assert picked == {"random": len(TileStore(out))}
    assert done.stderr == ""


def test_a_slide_of_several_that_cannot_be_read_is_listed_and_the_exit_code_is_one(slide, model, tmp_path):
    (slide.parent / "b.png").write_bytes(slide.read_bytes()[:300])

    done = run(slide.parent, "--model", model, "--out", tmp_path / "mined", "--mpp-override", "0.5", "--quiet")

    assert done.exit_code == 1
    assert done.stderr.splitlines()[0] == "error: 1 of 2 slides failed:"
    assert TileStore(tmp_path / "mined").slides["slide_id"].to_pylist() == ["a", "b"]


def test_bad_input_is_one_line_exit_code_two_and_nothing_written(slide, model, tmp_path):
    out = tmp_path / "mined"
    fine = ("--model", model, "--out", out, "--mpp-override", "0.5")
    cases = {
        (slide, "--out", out, "--model", "no-such-model"): "unknown model 'no-such-model'",
        (slide, "--out", out, "--model", model): "no resolution in the file",
        (tmp_path / "nowhere.svs", *fine): "nowhere.svs",
        (slide, *fine, "--select", "scroe"): "unknown strategy 'scroe'; did you mean 'score'?",
        (slide, *fine, "--exclude", tmp_path): "store",
        (slide, *fine, "--budget", "0"): "see `cytopipe mine-unlabeled --help`",
        (slide, *fine, "--tile-px", "4"): "mine.tile_px: 4",
        (slide, "--model", model): "missing option '--out'",
    }
    for arguments, message in cases.items():
        done = run(*arguments, "--quiet")

        lines = done.stderr.splitlines()
        assert (done.exit_code, len(lines), done.stdout) == (2, 1, ""), (arguments, done.stderr)
        assert message in lines[0]
    assert not out.exists()
