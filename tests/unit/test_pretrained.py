"""Weights to start from: torchvision's files, bundles and state dicts; what fits, what is frozen, what is refused."""

from __future__ import annotations

import hashlib
import pickle
import re

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import densenet161, mobilenet_v2, resnet18

from cytopipe.core.classes import class_named
from cytopipe.core.errors import RunError, UserError
from cytopipe.nets import (
    BundleSpec,
    NetSpec,
    SegSpec,
    build_net,
    build_segnet,
    inference_state,
    init_weights,
    load_bundle,
    save_bundle,
)
from cytopipe.nets.pretrained import load_matching, official_state, read_state

TWO = (class_named("nucleus"), class_named("HSIL"))
THREE = (class_named("nucleus"), class_named("LSIL"), class_named("HSIL"))
SMALL = {"fpn_channels": 16, "head_dim": 16, "mask_channels": 8}


def detector(classes=TWO, architecture="faster-rcnn-mobilenetv2-fpn", seed=0, **fields):
    torch.manual_seed(seed)
    return build_net(NetSpec.model_validate({"architecture": architecture, "classes": classes, **SMALL, **fields}))


def bundle_of(net, folder, **fields):
    said = {"name": folder.name, "net": net.spec, "mpp": 0.5, "tile_px": 64, "max_object_px": 20.0}
    said |= {"receptive_field_px": 64, "weights_sha256": "", **fields}
    return save_bundle(folder, BundleSpec(**said), inference_state(net), "card")


def trained(net):
    """With statistics of batch norm that are not the first ones."""
    net.train()
    with torch.no_grad():
        net.extract(torch.randn(2, 3, 64, 64)) if hasattr(net, "extract") else net(torch.randn(2, 3, 64, 64))
    return net.eval()


def named_by_hash(folder, state):
    raw = folder / "raw.pth"
    torch.save(state, raw)
    path = folder / f"net-{hashlib.sha256(raw.read_bytes()).hexdigest()[:8]}.pth"
    return raw.rename(path)


def test_a_file_of_torchvision_is_fetched_once_and_its_hash_is_checked_each_time(tmp_path):
    torch.manual_seed(0)
    model = resnet18(weights=None)
    (tmp_path / "there").mkdir()
    path = named_by_hash(tmp_path / "there", model.state_dict())
    cache = tmp_path / "cache"

    state = official_state(path.as_uri(), cache)
    assert torch.equal(state["trunk.stages.0.conv1.weight"], model.conv1.weight)
    path.unlink()
    assert official_state(path.as_uri(), cache).keys() == state.keys()  # from the cache

    kept = cache / path.name
    kept.write_bytes(kept.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"is not torchvision's file .* delete it and run the same command again"):
        official_state(path.as_uri(), cache)


def test_without_a_network_the_message_says_what_to_do(tmp_path):
    with pytest.raises(RunError, match=r"could not be fetched .* copy that file to .*x-12345678\.pth, or .* --init"):
        official_state("http://127.0.0.1:9/x-12345678.pth", tmp_path)

    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_imagenet_is_refused_where_torchvision_has_no_such_trunk():
    with pytest.raises(UserError, match=r"no ImageNet weights for mobilenetv2 at width 0\.5; choose a ResNet"):
        init_weights(detector(), "imagenet")
    with pytest.raises(UserError, match=r"no ImageNet weights for unet; --init NAME or --init PATH"):
        init_weights(build_segnet(SegSpec(architecture="unet", classes=TWO, widths=(4, 4, 6))), "imagenet")


def test_the_trunk_of_a_classifier_gives_the_classifiers_maps(tmp_path):
    torch.manual_seed(1)
    model = resnet18(weights=None)
    model.train()(torch.randn(2, 3, 64, 64))
    path = tmp_path / "resnet18.pth"
    torch.save(model.eval().state_dict(), path)
    net = detector(architecture="faster-rcnn-resnet18-fpn")
    head = net.box_head.fc6.weight.clone()

    loaded = init_weights(net, path)

    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        x = image
        for stage in net.eval().trunk.stages:
            x = stage(x)
        y = model.maxpool(model.relu(model.bn1(model.conv1(image))))
        y = model.layer4(model.layer3(model.layer2(model.layer1(y))))
    torch.testing.assert_close(x, y)
    assert torch.equal(net.box_head.fc6.weight, head)
    assert loaded.sentence == (
        "starting from resnet18.pth; all but the trunk starts at random; its batch norm is frozen"
    )
    assert not net.trains_batch_norm
    assert net.spec.frozen_batch_norm


def test_a_mobilenet_of_the_same_width_is_a_trunk_too(tmp_path):
    torch.manual_seed(1)
    model = mobilenet_v2(weights=None, width_mult=0.5)
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    net = detector()

    init_weights(net, tmp_path / "m.safetensors")

    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        x = image
        for stage in net.eval().trunk.stages:
            x = stage(x)
        torch.testing.assert_close(x, model.eval().features[:18](image))


def test_a_densenet_is_the_trunk_of_the_denseunet_and_the_decoder_trains_its_batch_norm(tmp_path):
    torch.manual_seed(1)
    model = densenet161(weights=None)
    dotted = re.compile(r"(denselayer\d+\.(?:norm|conv))([12])\.")  # as the oldest of torchvision's files spell it
    state = {dotted.sub(r"\1.\2.", name): value for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "d.pth")
    net = build_segnet(SegSpec(architecture="denseunet161", classes=TWO))

    init_weights(net, tmp_path / "d.pth")

    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(net.eval().encode(image)[-1], model.eval().features(image).relu())
    norms = [name for name, m in net.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {name.split(".")[1] for name in norms} == {"up", "head"}
    again = build_segnet(net.spec)  # what the bundle of this run will be read with
    assert again.state_dict().keys() == net.state_dict().keys()
    assert again.trains_batch_norm


def test_a_bundle_gives_its_answers_its_normalisation_and_frozen_batch_norm(tmp_path):
    source = trained(detector(seed=3, mean=(0.5, 0.4, 0.3)))
    bundle_of(source, tmp_path / "mine")
    net = detector(seed=4)

    loaded = init_weights(net, tmp_path / "mine")

    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected, found = source.extract(image), net.eval().extract(image)
    for level, value in expected.items():
        torch.testing.assert_close(found[level], value, rtol=1e-4, atol=1e-5)
    assert net.spec.mean == (0.5, 0.4, 0.3)
    assert not net.trains_batch_norm
    assert loaded.random == ()
    assert loaded.sentence == "starting from the weights of mine; nothing starts at random; its batch norm is frozen"
    bundle_of(net, tmp_path / "next")  # and what was trained from it is a bundle again
    load_bundle(tmp_path / "next").build()


def test_with_other_classes_the_layers_that_name_them_start_at_random(tmp_path):
    source = detector(seed=3)
    bundle_of(source, tmp_path / "mine")
    renamed = (class_named("nucleus"), class_named("LSIL"))  # as many, but not the same
    for classes in (THREE, renamed):
        net = detector(classes, seed=4)
        drawn = net.box_head.cls_score.weight.clone()

        loaded = init_weights(net, tmp_path / "mine")

        assert torch.equal(net.box_head.fc6.weight, source.box_head.fc6.weight)
        assert torch.equal(net.box_head.cls_score.weight, drawn)
        assert {name.split(".")[1] for name in loaded.random} == {"cls_score", "bbox_pred"}
        assert "the layers that name the classes start at random" in loaded.sentence


def test_relation_modules_start_at_random_where_the_weights_have_none(tmp_path):
    architecture = "mask-rcnn-mobilenetv2-fpn"
    bundle_of(detector(architecture=architecture), tmp_path / "mine")

    loaded = init_weights(detector(architecture=architecture, relations=True), tmp_path / "mine")

    assert {name.split(".")[0] for name in loaded.random} == {"mask_relation", "duplicates"}
    assert "the relation modules start at random" in loaded.sentence


def test_a_student_file_of_a_run_is_taken_and_a_wrapped_state_dict_too(tmp_path):
    source = detector(seed=3)
    save_file(inference_state(source), tmp_path / "student.safetensors")
    torch.save({"model": {f"module.{k}": v for k, v in source.state_dict().items()}, "epoch": 3}, tmp_path / "c.pth")

    for name in ("student.safetensors", "c.pth"):
        net = detector(seed=4)
        init_weights(net, tmp_path / name)
        assert torch.equal(net.box_head.fc6.weight, source.box_head.fc6.weight)


def test_weights_of_another_network_are_refused_by_name(tmp_path):
    bundle_of(detector(), tmp_path / "mine")
    torch.save(resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")

    with pytest.raises(UserError, match="architecture is faster-rcnn-mobilenetv2-fpn, the network's is mask-rcnn"):
        init_weights(detector(architecture="mask-rcnn-mobilenetv2-fpn"), tmp_path / "mine")
    with pytest.raises(UserError, match="head_dim is 16, the network's is 32"):
        init_weights(detector(head_dim=32), tmp_path / "mine")
    with pytest.raises(UserError, match=r"has a tensor 'trunk\.stages\.0\.conv1\.weight' that the network does"):
        init_weights(detector(), tmp_path / "resnet18.pth")
    wide = dict(detector(head_dim=32).state_dict())
    with pytest.raises(UserError, match=r"'box_head\.fc6\.weight' has shape \(32, 784\), the network needs \(16,"):
        load_matching(detector(), wide, "file")
    del wide["rpn.head.conv.0.0.weight"]
    with pytest.raises(UserError, match=r"has no tensor 'rpn\.head\.conv\.0\.0\.weight'"):
        load_matching(detector(head_dim=32), wide, "file")


def test_a_bundle_whose_weights_were_changed_is_refused(tmp_path):
    bundle_of(detector(), tmp_path / "mine")
    path = tmp_path / "mine" / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")

    with pytest.raises(UserError, match=r"is not the file that model\.toml describes"):
        init_weights(detector(), tmp_path / "mine")


class Harmful:
    """A pickle that writes a file where it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path):
    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"weight": Harmful(tmp_path / "ran")}, protocol=2))
    torch.save({"weight": Harmful(tmp_path / "ran")}, tmp_path / "bad2.pth")

    for name in ("bad.pth", "bad2.pth"):
        with pytest.raises(UserError, match="is no state dict of torch that holds tensors only"):
            read_state(tmp_path / name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [{}, {"weight": 3}, [torch.zeros(1)], torch.zeros(2)])
def test_what_is_no_state_dict_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "x.pth")

    with pytest.raises(UserError, match="holds no state dict"):
        read_state(tmp_path / "x.pth")


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"unknown model 'pap-lite'; did you mean 'pap-light'"):
        init_weights(detector(), "pap-lite")


def test_a_file_of_weights_that_is_not_there_is_no_unknown_model():
    with pytest.raises(UserError, match=r"nofile\.pt: no such file; --init takes"):
        init_weights(detector(), "nofile.pt")
