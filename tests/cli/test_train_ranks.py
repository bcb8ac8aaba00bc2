"""`cytopipe train` in two processes: the losses and weights of one process with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cytopipe.train.log import read_log

CLOSE = 1e-5  # of a loss or weight after ten steps in float32: sums over two halves round differently
ONE_PROCESS = [sys.executable, "-m", "cytopipe.cli.main"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *ONE_PROCESS[1:]]
SETTINGS = {
    "train.iterations": 10,
    "train.val_every": 10,
    "train.batch_labelled": 4,
    "train.ratio": 1,
    "train.val_tiles": 1,
    "train.frozen_batch_norm": "true",
    "train.optimiser": '"sgd"',
    "train.lr": 0.001,
}
NETWORKS = {
    "supervised": {"train.architecture": '"faster-rcnn-mobilenetv2-fpn"', "train.crop_px": 64},
    "cdcl": {"train.architecture": '"unet"', "train.crop_px": 128, "train.config.burn_in_epochs": 0},
}


@pytest.fixture(scope="module")
def unlabelled_store(smears, tmp_path_factory):
    from cytopipe.steps.tile import tile
    from cytopipe.tiles import TileConfig

    folder = tmp_path_factory.mktemp("unlabelled") / "store"
    tile([smears.slides[3].path], folder, config=TileConfig(tile_px=192))
    return folder


def trained(program: list[str], method: str, labelled: Path, unlabelled: Path, out: Path, *more: str) -> Path:
    settings = (SETTINGS | NETWORKS[method]).items()
    sets = [part for key, value in settings for part in ("--set", f"{key}={value}")]
    inputs = ["--labeled", str(labelled), "--unlabeled", str(unlabelled), "--out", str(out)]
    how = ["--device", "cpu", "--workers", "1", "--json", *sets, *more]
    done = subprocess.run(
        [*program, "train", "--method", method, "--recipe", f"{method}-small", *inputs, *how],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"] == method  # one document: the other process says nothing
    return out


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor([list(row["losses"].values()) for row in read_log(folder) if "losses" in row]).double()


def weights(folder: Path) -> torch.Tensor:
    return torch.cat(
        [value.double().flatten() for _, value in sorted(load_file(folder / "student.safetensors").items())]
    )


def bank(folder: Path) -> set[tuple[int, ...]]:
    """Which patches the bank of the last checkpoint holds: step, image and place of each."""
    last = max((folder / "checkpoints").glob("0*.safetensors"))
    state = load_file(last)
    columns = [state[f"method.bank.{name}"].tolist() for name in ("steps", "images", "places", "dominant")]
    return set(zip(*columns, strict=True))


@pytest.mark.parametrize("method", list(NETWORKS))
def test_two_processes_have_the_losses_the_weights_and_the_bank_of_one(
    method, labelled_store, unlabelled_store, tmp_path
):
    stores = labelled_store, unlabelled_store
    one = trained(ONE_PROCESS, method, *stores, tmp_path / "one")
    two = trained(TORCHRUN, method, *stores, tmp_path / "two")

    assert (losses(one) - losses(two)).abs().max() <= CLOSE
    assert (weights(one) - weights(two)).abs().max() <= CLOSE
    if method == "cdcl":
        assert bank(one) == bank(two) != set()


def test_gpus_starts_the_processes_itself_and_on_the_cpu_too(labelled_store, unlabelled_store, tmp_path):
    stores = labelled_store, unlabelled_store
    one = trained(ONE_PROCESS, "supervised", *stores, tmp_path / "one")
    two = trained(ONE_PROCESS, "supervised", *stores, tmp_path / "two", "--gpus", "2")

    assert (losses(one) - losses(two)).abs().max() <= CLOSE
    assert (weights(one) - weights(two)).abs().max() <= CLOSE
    assert (two / "report.html").is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--gpus", "64"], "torch sees"),
        (["--gpus", "64"], "--gpus 64 --device cpu starts 64 processes on the CPU"),
        (["--gpus", "2", "--device", "cuda:0"], "names one device, and --gpus 2 wants 2"),
        (["--gpus", "3", "--device", "cpu", "--set", "train.batch_labelled=4"], "do not divide into 3 processes"),
        (["--gpus", "2", "--device", "cpu", "--set", 'train.classes=["HSILL"]'], "did you mean 'HSIL'"),
    ],
)
def test_processes_that_cannot_be_had_are_refused_in_one_line(arguments, said, labelled_store, tmp_path):
    inputs = ["--labeled", str(labelled_store), "--out", str(tmp_path / "run")]
    done = subprocess.run(
        [*ONE_PROCESS, "train", "--method", "supervised", *inputs, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()
