"""`cytopipe models import`: a bundle from weights of one's own."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from cytopipe.cli.main import app
from cytopipe.core.classes import class_named
from cytopipe.nets import NetSpec, SegSpec, build_net, build_segnet, load_bundle

LIGHT = "faster-rcnn-mobilenetv2-fpn"
GIVEN = ("--architecture", LIGHT, "--classes", "nucleus,HSIL", "--mpp", "0.5", "--max-object-px", "80")


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, done.stderr
    return done


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    classes = (class_named("nucleus"), class_named("HSIL"))
    net = build_net(NetSpec.model_validate({"architecture": LIGHT, "classes": classes}))
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    return tmp_path / "mine.pth", net.eval()


def test_a_state_dict_becomes_a_bundle_that_answers_as_the_network_did(tmp_path, weights):
    path, net = weights

    facts = json.loads(run("models", "import", path, *GIVEN, "--out", tmp_path / "m", "--json").stdout)

    bundle = load_bundle(tmp_path / "m")
    image = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        found = bundle.build().detect(net.extract(image), [(128, 128)])[0]
        expected = net.detect(net.extract(image), [(128, 128)])[0]
    assert torch.equal(found.boxes, expected.boxes)
    assert facts["classes"] == ["nucleus", "HSIL"]
    assert bundle.spec.mpp == 0.5
    assert bundle.spec.max_object_px == 80
    assert "no medical device" in (bundle.folder / "CARD.md").read_text()
    assert not list(bundle.folder.glob("*.pth"))  # no pickle goes in
    assert run("models", tmp_path / "m").stdout.startswith("m: detection at 0.5")


def test_a_semantic_network_is_imported_without_a_size_of_objects(tmp_path):
    net = build_segnet(SegSpec(architecture="unet", classes=(class_named("nucleus"),)))
    torch.save(net.state_dict(), tmp_path / "u.pth")
    given = ("--architecture", "unet", "--classes", "nucleus", "--mpp", "0.5", "--out", tmp_path / "u")

    run("models", "import", tmp_path / "u.pth", *given)

    assert load_bundle(tmp_path / "u").build_segnet().spec.architecture == "unet"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (("--classes", "nucleus"), "'box_head.cls_score.weight' is missing, or belongs to another number of classes"),
        (("--architecture", "mask-rcnn-mobilenetv2-fpn"), "has no tensor 'mask_head.layers.conv1.weight'"),
        (("--architecture", "yolo"), "unknown architecture 'yolo'"),
        (("--tile-px", "100"), "a multiple of 64 is expected"),
        (("--max-object-px", "-3"), "max_object_px"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line_and_nothing_is_written(tmp_path, weights, changed, said):
    path, _ = weights

    done = run("models", "import", path, *GIVEN, *changed, "--out", tmp_path / "m", code=2)

    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "m").exists()


def test_what_is_missing_or_goes_with_import_only_is_said(tmp_path):
    assert "--out, --architecture, --classes, --mpp: missing" in run("models", "import", "x.pth", code=2).stderr
    assert "--mpp goes with import only" in run("models", "--mpp", "0.5", code=2).stderr
    assert "is no file" in run("models", "import", "x.pth", *GIVEN, "--out", tmp_path / "m", code=2).stderr


def test_a_folder_that_holds_something_is_not_overwritten(tmp_path, weights):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "notes.txt").write_text("mine")

    assert "is not empty" in run("models", "import", weights[0], *GIVEN, "--out", tmp_path / "m", code=2).stderr
