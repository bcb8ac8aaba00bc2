"""`cytopipe train`: what does not fit together is said in one line that names what does; and switches of the engine."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cytopipe.nets import load_bundle
from cytopipe.train.log import read_log
from tests.forked import start

QUICK = {"train.iterations": 4, "train.val_every": 4, "train.batch_labelled": 2, "train.val_tiles": 1}


def command(method, data: Path, out: Path, *, recipe: str | None = None, **settings):
    sets = [part for key, value in settings.items() for part in ("--set", f"train.{key}={value}")]
    inputs = ["--labeled", str(data), "--unlabeled", str(data), "--out", str(out), "--device", "cpu", "--workers", "1"]
    return ["train", "--method", method, *(["--recipe", recipe] if recipe else []), *inputs, *sets]


def ended(arguments, tmp_path: Path) -> tuple[int, str]:
    said = tmp_path / "said"
    process = start(arguments, said)
    process.join(300)
    return process.exitcode, said.read_text()


@pytest.fixture(scope="module")
def boxes_only(tmp_path_factory) -> Path:
    """A COCO file of six images with boxes and no outlines."""
    folder = tmp_path_factory.mktemp("boxes")
    rng = np.random.default_rng(3)
    images, annotations = [], []
    for i in range(6):
        Image.fromarray(rng.integers(0, 255, (128, 128, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 128, "height": 128})
        annotations += [
            {"id": 2 * i + k, "image_id": i, "category_id": 1, "bbox": [10 + 50 * k, 20, 30, 40], "area": 1200}
            for k in range(2)
        ]
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "boxes.json").write_text(json.dumps(coco))
    return folder / "boxes.json"


@pytest.mark.parametrize("method", ["cdcl", "mspa", "mmt-psm"])
def test_a_method_that_boxes_cannot_teach_names_the_methods_that_they_can(method, boxes_only, tmp_path):
    code, said = ended(command(method, boxes_only, tmp_path / "run"), tmp_path)

    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2
    assert len(errors) == 1
    assert f"method {method} " in errors[0]
    assert "boxes only" in errors[0]
    fitting = errors[0].split("methods that fit boxes")[1]
    assert all(name in fitting for name in ("supervised", "mean-teacher", "dual-alignment", "crossmatch"))
    assert not any(name in fitting for name in ("cdcl", "mspa", "mmt-psm"))
    assert not (tmp_path / "run").exists()


def test_a_network_of_another_task_names_architectures_and_methods(boxes_only, tmp_path):
    arguments = command("cdcl", boxes_only, tmp_path / "run", architecture='"faster-rcnn-mobilenetv2-fpn"')

    code, said = ended(arguments, tmp_path)

    assert code == 2
    assert "method cdcl trains semantic, not detection" in said
    assert "choose unet or denseunet161; methods that train detection: supervised" in said


def test_a_metric_of_another_task_is_refused(boxes_only, tmp_path):
    arguments = command(
        "supervised",
        boxes_only,
        tmp_path / "run",
        architecture='"faster-rcnn-mobilenetv2-fpn"',
        val_metric='"dice"',
    )

    code, said = ended(arguments, tmp_path)

    assert code == 2
    assert "dice is no metric of detection networks; auto (map_50), or map_50, map_10_70 or map_coco" in said


def test_boxes_teach_a_detector_and_its_unknown_resolution_is_said(boxes_only, tmp_path):
    settings = QUICK | {"train.crop_px": 64, "train.architecture": '"faster-rcnn-mobilenetv2-fpn"'}
    settings = {key.removeprefix("train."): value for key, value in settings.items()}
    arguments = command("supervised", boxes_only, tmp_path / "run", recipe="supervised-small", **settings)

    code, said = ended(arguments, tmp_path)

    assert code == 0, said
    assert "does not say its resolution: the model will claim 1 µm/px" in said
    assert load_bundle(tmp_path / "run").spec.task == "detection"


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_a_step_in_parts_and_in_16_bits_trains_a_semantic_model_that_infer_takes(amp, labelled_store, tmp_path):
    settings = {key.removeprefix("train."): value for key, value in QUICK.items()}
    arguments = command(
        "supervised",
        labelled_store,
        tmp_path / "run",
        recipe="supervised-semantic-small",
        crop_px=64,
        accumulate=2,
        amp=f'"{amp}"',
        **settings,
    )

    code, said = ended(arguments, tmp_path)

    assert code == 0, said
    rows = [row for row in read_log(tmp_path / "run") if "losses" in row]
    assert all(math.isfinite(value) for row in rows for value in row["losses"].values())
    assert all(("loss_scale" in row) == (amp == "fp16") for row in rows)
    bundle = load_bundle(tmp_path / "run")
    assert bundle.spec.task == "semantic"
    assert "dice" in bundle.spec.metrics
    bundle.build_segnet()
