"""The model bundle: written and read back, and every way in which it can be wrong."""

from __future__ import annotations

import pytest
import torch

from cytopipe.core.classes import class_named
from cytopipe.core.errors import UserError
from cytopipe.nets import (
    BundleSpec,
    NetSpec,
    Thresholds,
    build_net,
    inference_state,
    list_bundles,
    load_bundle,
    save_bundle,
)


def make(folder, *names):
    net_spec = NetSpec.model_validate(
        {
            "architecture": "faster-rcnn-mobilenetv2-fpn",
            "classes": tuple(class_named(n) for n in names or ("nucleus", "HSIL")),
        }
    )
    net = build_net(net_spec)
    spec = BundleSpec(
        name="tiny",
        net=net_spec,
        mpp=0.5,
        tile_px=128,
        max_object_px=20.5,
        receptive_field_px=64,
        thresholds=Thresholds(score={"nucleus": 0.4, "cell": 0.5}),
        training={"data": 'slides "A" and B', "note": "two\nlines"},
        metrics={"map_50": 0.25},
        weights_sha256="",
    )
    return net, save_bundle(folder, spec, inference_state(net), "card")


def test_a_bundle_is_read_back_as_it_was_written(tmp_path):
    net, written = make(tmp_path / "tiny")

    read = load_bundle(tmp_path / "tiny")

    assert read.spec == written.spec
    rebuilt = read.build()
    assert not rebuilt.training
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), rebuilt.state_dict().values(), strict=True))


def test_what_a_method_attached_for_training_is_not_shipped(tmp_path):
    net, _ = make(tmp_path / "tiny")
    net.extra["projector"] = torch.nn.Linear(4, 2)

    assert not [name for name in inference_state(net) if "projector" in name]


def test_other_weights_than_the_description_names_are_refused(tmp_path):
    make(tmp_path / "tiny")
    path = tmp_path / "tiny" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")

    with pytest.raises(UserError, match=r"is not the file that model\.toml describes"):
        load_bundle(tmp_path / "tiny").build()


def test_weights_of_other_classes_are_refused_by_the_name_of_the_tensor(tmp_path):
    from cytopipe.nets.bundle import load_state

    make(tmp_path / "two")
    other, _ = make(tmp_path / "three", "nucleus", "LSIL", "HSIL")

    with pytest.raises(
        UserError, match=r"'box_head\.cls_score\.weight' has shape \(3, 256\), the network needs \(4, 256\)"
    ):
        load_state(other, tmp_path / "two" / "weights.safetensors")


def test_an_unknown_model_names_the_shipped_ones():
    with pytest.raises(UserError, match=r"unknown model 'pap-lite'; did you mean 'pap-light'"):
        load_bundle("pap-lite")


def test_a_folder_without_a_description_is_no_bundle(tmp_path):
    with pytest.raises(UserError, match=r"holds no model\.toml"):
        load_bundle(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("mpp = 0.5", "mpp = -1", "mpp"),
        ("tile_px = 128", "tile_pxx = 128", "tile_px"),
        ("[net]", "[net", "model description"),
    ],
)
def test_a_broken_description_is_refused_in_one_line(tmp_path, old, new, said):
    make(tmp_path / "tiny")
    path = tmp_path / "tiny" / "model.toml"
    path.write_text(path.read_text().replace(old, new))

    with pytest.raises(UserError, match=said) as caught:
        load_bundle(tmp_path / "tiny")

    assert "\n" not in str(caught.value)


def test_every_shipped_bundle_is_whole_small_and_says_what_it_is_not_for():
    for name in list_bundles():
        bundle = load_bundle(name)
        bundle.build()
        size = sum(p.stat().st_size for p in bundle.folder.iterdir())

        assert size <= 40_000_000
        assert "no medical device" in (bundle.folder / "CARD.md").read_text()
    assert "pap-light" in list_bundles()
