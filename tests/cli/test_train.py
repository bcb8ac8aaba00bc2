"""`cytopipe train` at the command line: killed and resumed, two methods, and its refusals."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from cytopipe.train.log import read_log

SETTINGS = {
    "train.architecture": '"faster-rcnn-mobilenetv2-fpn"',
    "train.iterations": 8,
    "train.val_every": 2,
    "train.batch_labelled": 2,
    "train.crop_px": 64,
    "train.val_tiles": 1,
}


def command(method, *arguments):
    sets = [part for key, value in SETTINGS.items() for part in ("--set", f"{key}={value}")]
    return [
        sys.executable,
        "-m",
        "cytopipe.cli.main",
        "train",
        "--method",
        method,
        "--recipe",
        f"{method}-small",
        *sets,
        *map(str, arguments),
    ]


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def unlabelled_store(smears, tmp_path_factory):
    from cytopipe.steps.tile import tile
    from cytopipe.tiles import TileConfig

    folder = tmp_path_factory.mktemp("unlabelled") / "store"
    tile([smears.slides[3].path], folder, config=TileConfig(tile_px=192))
    return folder


def weights(folder):
    return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def without_clock(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_log(folder)]


@pytest.mark.parametrize("method", ["supervised", "dual-alignment"])
def test_a_run_killed_and_started_again_ends_with_the_weights_and_log_of_an_unbroken_one(
    method, labelled_store, unlabelled_store, tmp_path
):
    inputs = ["--labeled", labelled_store, *(["--unlabeled", unlabelled_store] if method != "supervised" else [])]
    unbroken = subprocess.run(
        command(method, *inputs, "--out", tmp_path / "unbroken"),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert unbroken.returncode == 0, unbroken.stderr

    broken = tmp_path / "broken"
    process = subprocess.Popen(
        command(method, *inputs, "--out", broken),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(read_log(broken)) < 5:  # past the first checkpoint, inside the run
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 0 < len(read_log(broken)) < 12
    resumed = subprocess.run(
        command(method, *inputs, "--out", broken), env=environment(), capture_output=True, text=True, check=False
    )

    assert resumed.returncode == 0, resumed.stderr
    assert weights(broken) == weights(tmp_path / "unbroken")
    assert without_clock(broken) == without_clock(tmp_path / "unbroken")


def test_dual_alignment_logs_its_four_terms_by_their_names(labelled_store, unlabelled_store, tmp_path):
    done = subprocess.run(
        command(
            "dual-alignment",
            "--labeled",
            labelled_store,
            "--unlabeled",
            unlabelled_store,
            "--out",
            tmp_path / "run",
            "--json",
        ),
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "dual-alignment"
    last = [row for row in read_log(tmp_path / "run") if "losses" in row][-1]
    assert {"L_pml", "L'_pml", "L_pmb", "L'_pmb"} < set(last["losses"])
    assert all(last["weights"][name] == 1.0 for name in ("rpn_cls", "rpn_reg", "roi_cls", "roi_reg"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--method", "supervized"], "unknown method 'supervized'; did you mean 'supervised'"),
        (["--method", "dual-alignment"], "give --unlabeled STORE"),
        (["--method", "supervised", "--set", "train.itertions=5"], "did you mean 'iterations'"),
        (["--method", "supervised", "--set", "train.config.margin=5"], "margin"),
        (["--method", "supervised", "--label-fraction", "2"], "--label-fraction"),
        (["--method", "supervised", "--label-unit", "slide"], "--label-unit"),
        (["--method", "supervised", "--set", 'train.classes=["HSILL"]'], "did you mean 'HSIL'"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line_before_anything_is_written(
    arguments, said, labelled_store, tmp_path
):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "cytopipe.cli.main",
            "train",
            *arguments,
            "--labeled",
            str(labelled_store),
            "--out",
            str(tmp_path / "run"),
        ],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )

    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
