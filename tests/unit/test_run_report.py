"""A short semi-supervised run that goes wrong on purpose: what the terminal, the logs and the page say of it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from cytopipe.steps.tile import tile
from cytopipe.steps.train import train
from cytopipe.tiles import TileConfig
from cytopipe.train.log import read_log

SMALL = [
    'train.architecture="faster-rcnn-mobilenetv2-fpn"',
    "train.iterations=8",
    "train.val_every=4",
    "train.batch_labelled=2",
    "train.crop_px=64",
    "train.val_tiles=2",
    "train.monitor_every=2",
]


@pytest.fixture(scope="module")
def unlabelled_store(smears, tmp_path_factory):
    """Tiles without annotations of the fourth smear, whose patient is in no other store."""
    folder = tmp_path_factory.mktemp("unlabelled")
    with (folder / "slides.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "slide_id", "patient"))
        rows.writerow((smears.slides[3].path, smears.slides[3].slide_id, smears.slides[3].patient))
    tile([folder / "slides.csv"], folder / "store", config=TileConfig(tile_px=192))
    return folder / "store"


@pytest.fixture(scope="module")
def run(labelled_store, unlabelled_store, tmp_path_factory):
    """(folder, sentences said, live lines) of a run whose bar for pseudo-labels nothing passes."""
    said, shown = [], []
    out = tmp_path_factory.mktemp("runs") / "run"
    train(
        "dual-alignment",
        labelled_store,
        unlabelled_store,
        out,
        recipe="dual-alignment-small",
        overrides=[*SMALL, "train.config.pseudo_threshold=1.0"],
        seed=3,
        say=said.append,
        on_progress=lambda done, total, unit, status="": shown.append((done, status)),
    )
    return Path(out), said, shown


def test_a_bar_that_nothing_passes_is_said_aloud_and_kept_in_the_log(run):
    folder, said, _ = run

    warnings = [line for row in read_log(folder) for line in row.get("warnings", [])]
    without = [line for line in warnings if "100% of the unlabelled images had no pseudo-label" in line]
    assert len(without) == 1
    assert "lower train.config.pseudo_threshold (now 1)" in without[0]
    assert any(without[0] in line for line in said)


def test_the_live_line_of_each_iteration_names_losses_pace_pseudo_labels_and_the_metric(run):
    _, _, shown = run

    assert [done for done, _ in shown] == list(range(1, 9))
    last = shown[-1][1]
    for words in ("loss ", "roi_cls ", "L'_pml ", " images/s", "0 pseudo-labels an image", "map_50 student "):
        assert words in last


def test_the_page_shows_curves_warnings_and_samples_of_both_kinds(run):
    folder, _, _ = run
    page = (folder / "report.html").read_text(encoding="utf-8")

    for title in ("Validation", "Losses", "Pseudo-labels", "Validation images", "Unlabelled images", "Run"):
        assert f"<h2>{title}</h2>" in page
    assert "had no pseudo-label" in page
    validated, unlabelled = page.count("<figcaption>Truth"), page.count("<figcaption>Pseudo-labels")
    assert (validated, unlabelled) == (6, 2)
    assert page.count("<figcaption>Student") == 8


def test_tensorboard_has_the_run(run):
    folder, _, _ = run

    assert list((folder / "tensorboard").glob("events.out.tfevents.*"))


def test_a_run_that_ends_before_its_teacher_starts_says_so(labelled_store, unlabelled_store, tmp_path):
    said: list[str] = []
    train(
        "crossmatch",
        labelled_store,
        unlabelled_store,
        tmp_path / "run",
        recipe="crossmatch-small",
        overrides=["train.iterations=1", "train.crop_px=64", "train.val_tiles=1", "train.config.burn_in=1"],
        say=said.append,
    )

    assert any("no unlabelled image will teach" in line for line in said)
