"""`cytopipe train` killed with SIGKILL at ten random moments ends with the weights and the log of an unbroken run."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from pathlib import Path

import pytest

from cytopipe.train.log import read_log
from tests.forked import start

KILLS = 10
ITERATIONS = 12
RUNS = {  # two methods with banks, on the smallest network of their task
    "dual-alignment": {"train.architecture": '"faster-rcnn-mobilenetv2-fpn"', "train.config.bank_size": "16"},
    "cdcl": {"train.architecture": '"unet"', "train.config.burn_in_epochs": "0"},
}


def arguments(method, labelled, unlabelled, out):
    settings = {
        "train.iterations": ITERATIONS,
        "train.val_every": 3,
        "train.batch_labelled": 2,
        "train.crop_px": 64,
        "train.val_tiles": 1,
    } | RUNS[method]
    sets = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    inputs = ["--labeled", str(labelled), "--unlabeled", str(unlabelled), "--out", str(out)]
    return [
        "train",
        "--method",
        method,
        "--recipe",
        f"{method}-small",
        *inputs,
        "--device",
        "cpu",
        "--workers",
        "1",
        *sets,
    ]


@pytest.fixture(scope="module")
def unlabelled_store(smears, tmp_path_factory):
    from cytopipe.steps.tile import tile
    from cytopipe.tiles import TileConfig

    folder = tmp_path_factory.mktemp("unlabelled") / "store"
    tile([smears.slides[3].path], folder, config=TileConfig(tile_px=192))
    return folder


def run_to_the_end(command, said: Path):
    process = start(command, said)
    process.join(300)
    assert process.exitcode == 0, said.read_text()


def lines(folder: Path) -> int:
    return len(read_log(folder))


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()


def without_clock(folder: Path):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_log(folder)]


@pytest.mark.parametrize("method", list(RUNS))
def test_a_run_killed_at_ten_random_moments_ends_as_an_unbroken_one(method, labelled_store, unlabelled_store, tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_to_the_end(arguments(method, labelled_store, unlabelled_store, whole), tmp_path / "said")
    command = arguments(method, labelled_store, unlabelled_store, broken)
    draw = random.Random(len(method))

    killed = 0
    for _ in range(KILLS):
        # between one line of the log and up to two checkpoints on, and any part of an iteration
        reached = lines(broken) if (broken / "metrics.jsonl").exists() else 0
        wanted, moment_s = min(reached + draw.randint(0, 2), ITERATIONS), draw.uniform(0.0, 0.3)
        process = start(command, tmp_path / "said")
        deadline = time.monotonic() + 120
        while process.is_alive() and lines(broken) < wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(moment_s)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            killed += 1
        process.join(60)
    run_to_the_end(command, tmp_path / "said")

    assert killed == KILLS
    assert weights(broken) == weights(whole)
    assert without_clock(broken) == without_clock(whole)
