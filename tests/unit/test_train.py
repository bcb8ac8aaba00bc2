"""The engine: schedules, checkpoints, the parts of a run, what it refuses, and the bundle at its end."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest
from PIL import Image

from cytopipe.core.errors import RunError, UserError
from cytopipe.nets import load_bundle
from cytopipe.recipes import load_recipe
from cytopipe.steps.train import train
from cytopipe.tiles import TileConfig
from cytopipe.train import TrainSettings
from cytopipe.train.log import read_log
from cytopipe.train.stores import open_stores, with_fraction
from cytopipe.train.tasks import check_method

SMALL = [
    'train.architecture="faster-rcnn-mobilenetv2-fpn"',
    "train.iterations=4",
    "train.val_every=2",
    "train.batch_labelled=2",
    "train.crop_px=64",
    "train.val_tiles=2",
]


@pytest.fixture(scope="module")
def finished(labelled_store, tmp_path_factory):
    """A short supervised run with an averaged copy."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return train(
        "supervised",
        labelled_store,
        out=out,
        recipe="supervised-small",
        overrides=[*SMALL, "train.config.ema_eval=0.9"],
        seed=5,
    )


def test_the_learning_rate_is_a_function_of_the_iteration_alone():
    step = TrainSettings(iterations=100, schedule="step", lr_steps=[40, 80], lr_gamma=0.1, warmup_iterations=10)
    cosine = TrainSettings(iterations=100, schedule="cosine")
    poly = TrainSettings(iterations=100, schedule="poly")

    assert [step.lr_factor(t) for t in (0, 5, 10, 39, 40, 80)] == pytest.approx([1e-3, 0.5005, 1, 1, 0.1, 0.01])
    assert [cosine.lr_factor(t) for t in (0, 50, 100)] == pytest.approx([1, 0.5, 0])
    assert poly.lr_factor(50) == pytest.approx(0.5**0.9)


def test_a_run_folder_is_a_bundle_with_both_networks_and_a_page(finished, labelled_store):
    folder = load_bundle(finished.run).folder
    spec = load_bundle(finished.run).spec

    assert {
        "model.toml",
        "weights.safetensors",
        "student.safetensors",
        "teacher.safetensors",
        "metrics.jsonl",
        "report.html",
        "CARD.md",
        "recipe.json",
    } <= {p.name for p in folder.iterdir()}
    assert spec.mpp == 0.5
    assert 10 < spec.max_object_px < 192
    assert set(spec.thresholds.score) == {"nucleus", "cell"}
    load_bundle(finished.run).build()


def test_every_iteration_and_validation_stands_in_the_log(finished):
    rows = read_log(load_bundle(finished.run).folder)

    assert [row["t"] for row in rows if "losses" in row] == [0, 1, 2, 3]
    assert [row["t"] for row in rows if "val" in row] == [2, 4]
    assert all(set(row["losses"]) == {"rpn_cls", "rpn_reg", "roi_cls", "roi_reg"} for row in rows if "losses" in row)
    assert set(rows[-1]["val"]) == {"student", "teacher"}
    assert all(math.isfinite(row["total"]) for row in rows if "total" in row)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(finished, labelled_store, tmp_path):
    arguments = {"recipe": "supervised-small", "overrides": [*SMALL, "train.config.ema_eval=0.9"]}
    again = train("supervised", labelled_store, out=tmp_path / "again", seed=5, **arguments)
    other = train("supervised", labelled_store, out=tmp_path / "other", seed=6, **arguments)

    sha = [load_bundle(run.run).spec.weights_sha256 for run in (finished, again, other)]
    assert sha[0] == sha[1] != sha[2]


def test_a_finished_run_is_not_trained_again_and_other_settings_are_refused(finished, labelled_store):
    before = load_bundle(finished.run).spec.weights_sha256
    arguments = {"recipe": "supervised-small", "out": finished.run, "seed": 5}

    train("supervised", labelled_store, overrides=[*SMALL, "train.config.ema_eval=0.9"], **arguments)

    assert load_bundle(finished.run).spec.weights_sha256 == before
    with pytest.raises(UserError, match=r"recipe\.train\.lr 0\.001 -> 0\.5"):
        train(
            "supervised", labelled_store, overrides=[*SMALL, "train.config.ema_eval=0.9", "train.lr=0.5"], **arguments
        )


def test_training_learns_to_find_something(labelled_store, tmp_path):
    overrides = [
        'train.architecture="faster-rcnn-mobilenetv2-fpn"',
        "train.iterations=40",
        "train.val_every=40",
        "train.crop_px=64",
        "train.batch_labelled=2",
        "train.lr=0.002",
    ]
    train("supervised", labelled_store, out=tmp_path / "run", recipe="supervised-small", overrides=overrides, seed=1)

    totals = [row["total"] for row in read_log(tmp_path / "run") if "total" in row]
    assert np.mean(totals[-10:]) < 0.7 * np.mean(totals[:5])


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(labelled_store, tmp_path):
    overrides = [
        *SMALL,
        "train.lr=1e30",
        'train.optimiser="sgd"',
        "train.iterations=40",
        "train.val_every=1",
        "train.grad_clip_norm=1e30",
        "train.warmup_iterations=0",
    ]

    with pytest.raises(RunError, match="not finite at iteration") as caught:
        train("supervised", labelled_store, out=tmp_path / "run", recipe="supervised-small", overrides=overrides)

    assert "last good checkpoint is kept" in str(caught.value)
    assert list((tmp_path / "run" / "checkpoints").glob("0*.safetensors"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "supervised, stopped" in page
    assert "not finite at iteration" in page
    assert not (tmp_path / "run" / "model.toml").exists()  # what stopped is no model


def test_an_image_that_breaks_off_ends_a_run_at_run_time_and_names_the_file(tmp_path):
    corner = np.zeros((96, 96), np.uint8)
    corner[10:50, 10:20] = corner[10:20, 10:50] = 255
    for n in range(4):
        for kind, pixels in (("images", np.full((96, 96, 3), 60 * n, np.uint8)), ("masks", corner)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / kind / f"{n}.png")
    for n in (2, 3):
        path = tmp_path / "images" / f"{n}.png"
        path.write_bytes(path.read_bytes()[:-60])

    with pytest.raises(RunError, match=r"images/\d\.png: is no image that can be decoded"):
        train(
            "supervised",
            tmp_path,
            out=tmp_path / "run",
            recipe="supervised-semantic-small",
            label_class="nucleus",
            overrides=["train.crop_px=64", "train.iterations=2"],
            device="cpu",
        )


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("train.zoom=[2, 1]", "a least and a greatest factor"),
        ("train.zoom=[0, 1]", "a least and a greatest factor"),
        ('train.classes=["nucleus", "nucleus"]', "each class is named once"),
    ],
)
def test_ranges_and_lists_that_make_no_sense_are_refused_with_the_recipe(key, said):
    with pytest.raises(UserError, match=said):
        load_recipe("supervised-small", [key], {})


def test_a_label_fraction_is_nested_and_leaves_validation_alone(labelled_store):
    stores = open_stores(labelled_store, None, 0, print)

    half, quarter = (with_fraction(stores, share, 0, lambda line: None) for share in ("1/2", "1/4"))

    assert set(quarter.train_rows) < set(half.train_rows) < set(stores.train_rows)
    assert np.array_equal(half.val_rows, stores.val_rows)
    for wrong in ("0", "3/2", "1/0", "half"):
        with pytest.raises(UserError, match="--label-fraction"):
            with_fraction(stores, wrong, 0, lambda line: None)


def test_a_label_fraction_by_patient_keeps_all_tiles_of_some_patients(labelled_store):
    stores = open_stores(labelled_store, None, 0, print)
    patient = np.array(stores.labelled.patients)

    half = with_fraction(stores, "1/2", 0, lambda line: None, "patient")

    assert len(set(patient[stores.train_rows])) == 2
    assert len(set(patient[half.train_rows])) == 1
    kept = patient[half.train_rows][0]
    assert half.train_rows.tolist() == [i for i in stores.train_rows.tolist() if patient[i] == kept]


def test_all_labels_are_the_same_rows_in_the_same_order_as_no_fraction(labelled_store):
    stores = open_stores(labelled_store, None, 0, print)

    assert with_fraction(stores, "1", 0, lambda line: None).train_rows.tolist() == stores.train_rows.tolist()


@pytest.mark.parametrize("asked", ["flag", "recipe"])
def test_a_run_notes_which_labels_a_fraction_chose(asked, labelled_store, tmp_path):
    flags = {"label_fraction": "1/4", "label_unit": "tile"} if asked == "flag" else {}
    said = [*SMALL, "train.label_fraction=1/2" if flags else "train.label_fraction=1/4"]  # a flag goes before a recipe
    overrides = [*said, "train.iterations=1"]
    stores = open_stores(labelled_store, None, 3, print)

    run = train(
        "supervised",
        labelled_store,
        out=tmp_path / "run",
        recipe="supervised-small",
        overrides=overrides,
        seed=3,
        **flags,
    )

    with (tmp_path / "run/labelled_tiles.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept = with_fraction(stores, "1/4", 3, lambda line: None).train_rows
    assert [row["tile_id"] for row in rows] == [stores.labelled.ids[i] for i in kept]
    assert {row["patient"] for row in rows} <= set(stores.labelled.patients)
    assert json.loads((tmp_path / "run/recipe.json").read_text())["recipe"]["train"]["label_fraction"] == "1/4"
    assert "1/4 of the labels by tile, seed 3" in load_bundle(run.run).spec.training["data"]


def test_the_file_of_a_validation_slide_under_another_patient_is_refused(smears, labelled_store, tmp_path):
    from cytopipe.steps.tile import tile

    with (tmp_path / "slides.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "patient"), (smears.slides[2].path, "somebody else")])
    tile([tmp_path / "slides.csv"], tmp_path / "leaky", config=TileConfig(tile_px=192))

    with pytest.raises(UserError, match=f"the slide file of '{smears.slides[2].slide_id}', which"):
        open_stores(labelled_store, tmp_path / "leaky", 0, print)


def test_unlabelled_tiles_of_a_validation_patient_are_refused(smears, labelled_store, tmp_path):
    from cytopipe.steps.tile import tile

    with (tmp_path / "slides.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "patient"), (smears.slides[3].path, smears.slides[2].patient)])
    tile([tmp_path / "slides.csv"], tmp_path / "leaky", config=TileConfig(tile_px=192))

    with pytest.raises(UserError, match=f"keeps for validation or test: {smears.slides[2].patient}"):
        open_stores(labelled_store, tmp_path / "leaky", 0, print)


def test_stores_of_different_resolutions_are_refused(smears, labelled_store, tmp_path):
    from cytopipe.steps.tile import tile

    tile([smears.slides[3].path], tmp_path / "coarse", config=TileConfig(tile_px=128, mpp=1.0))

    with pytest.raises(UserError, match="has 1 µm/px"):
        open_stores(labelled_store, tmp_path / "coarse", 0, print)


def test_a_store_without_annotations_teaches_nothing(smears, tmp_path):
    from cytopipe.steps.tile import tile

    tile([smears.slides[3].path], tmp_path / "bare", config=TileConfig(tile_px=192))

    with pytest.raises(UserError, match="has no labelled tile"):
        open_stores(tmp_path / "bare", None, 0, print)


def test_a_semi_supervised_method_without_unlabelled_tiles_says_where_to_get_them():
    with pytest.raises(UserError, match="give --unlabeled STORE"):
        check_method(TrainSettings(method="dual-alignment"), has_unlabelled=False)


def test_the_recipe_that_was_settled_is_saved_with_the_run(finished):
    saved = json.loads((load_bundle(finished.run).folder / "recipe.json").read_text())

    assert saved["recipe"]["train"]["iterations"] == 4
    assert saved["sources"]["train.iterations"] == "--set"
    assert saved["sources"]["train.lr"] == "recipe supervised-small"
