"""SegNet: shapes, verbs, how far it looks, and its bundle."""

from __future__ import annotations

import pytest
import torch

from cytopipe.core.classes import class_named
from cytopipe.core.errors import UserError
from cytopipe.nets import (
    BundleSpec,
    SegSpec,
    build_segnet,
    inference_state,
    load_bundle,
    receptive_radius_px,
    save_bundle,
)

CLASSES = (class_named("nucleus"), class_named("HSIL"))
TINY = SegSpec(architecture="unet", classes=CLASSES, widths=(4, 4, 6))
UNET = SegSpec(architecture="unet", classes=CLASSES)
DENSE = SegSpec(architecture="denseunet161", classes=CLASSES)


@pytest.fixture(scope="module")
def dense():
    return build_segnet(DENSE).eval()


def make(folder, spec=TINY, **changes):
    net = build_segnet(spec)
    said = {"name": "tiny", "net": spec, "mpp": 0.5, "tile_px": 64, "weights_sha256": ""}
    said["receptive_field_px"] = receptive_radius_px(spec)
    return net, save_bundle(folder, BundleSpec(**{**said, **changes}), inference_state(net), "card")


@pytest.mark.parametrize("spec", [TINY, UNET], ids=["tiny", "unet"])
def test_the_unet_gives_features_at_stride_4_and_logits_at_stride_1(spec):
    net = build_segnet(spec).eval()
    image = torch.randn(2, 3, 64, 96)

    with torch.inference_mode():
        decoded = net.decode(net.encode(image))
        logits = net.predict(decoded)

    assert decoded.features.shape == (2, net.feature_dim, 16, 24)
    assert net.feature_dim == spec.widths[2]
    assert logits.shape == (2, 3, 64, 96)


def test_the_denseunet_has_the_widths_of_the_paper_and_logits_at_stride_4(dense):
    with torch.inference_mode():
        pyramid = dense.encode(torch.randn(1, 3, 64, 96))
        decoded = dense.decode(pyramid)
        logits = dense.predict(decoded)

    # METHODS 1.8: skips of 384, 768 and 2112 channels at strides 4, 8, 16, and 2208 at stride 32
    assert [tuple(m.shape[1:]) for m in pyramid] == [(384, 16, 24), (768, 8, 12), (2112, 4, 6), (2208, 2, 3)]
    assert decoded.features.shape == (1, 256, 16, 24)
    assert logits.shape == (1, 3, 16, 24)
    assert DENSE.logits_stride == 4


def test_the_verbs_in_a_row_are_the_forward_pass(dense):
    for net in (dense, build_segnet(TINY).eval()):
        image = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            expected = net.upsample(net.predict(net.decode(net.encode(image))), (64, 64))

            assert torch.equal(net(image), expected)
        assert expected.shape == (1, 3, 64, 64)


def test_dropout_is_on_in_training_and_off_in_eval(dense):
    head = torch.nn.Sequential(*list(dense.body.head)[:2])
    features = torch.ones(1, 256, 4, 4)

    with torch.inference_mode():
        assert torch.equal(head(features), head(features))
        dropped = head.train()(features)
        head.eval()

    dead = (dropped == 0).all(dim=(2, 3)).float().mean()
    assert 0.05 < dead < 0.6  # 64 channels at 0.3: whole channels go


def test_eval_answers_do_not_depend_on_what_else_is_in_the_batch():
    torch.manual_seed(0)
    net = build_segnet(TINY)
    net(torch.randn(4, 3, 64, 64))  # running statistics that are not the first ones
    net.eval()
    images = torch.randn(3, 3, 64, 64)

    with torch.inference_mode():
        together, alone = net(images), torch.cat([net(image[None]) for image in images])

    assert torch.allclose(together, alone, atol=1e-6)


def test_no_layer_pools_over_the_window(dense):
    over_the_window = (torch.nn.GroupNorm, torch.nn.InstanceNorm2d, torch.nn.AdaptiveAvgPool2d, torch.nn.LayerNorm)

    for net in (dense, build_segnet(UNET)):
        assert not [m for m in net.modules() if isinstance(m, over_the_window)]


def test_sides_that_the_stride_does_not_divide_are_an_error():
    with pytest.raises(ValueError, match="multiples of 4 px"):
        build_segnet(TINY).encode(torch.zeros(1, 3, 66, 64))


def measured_radius_px(net, length, height):
    """The farthest input px along x with any gradient on the output px of one period, weights all positive."""
    for module in net.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.constant_(module.weight, 1 / module.weight[0].numel())
    net = net.double().eval()
    farthest = 0
    for p in range(length // 2, length // 2 + net.spec.stride_px):
        image = torch.ones(1, 3, height, length, dtype=torch.float64, requires_grad=True)
        net(image)[0, 0, height // 2, p].backward()
        touched = image.grad[0].abs().sum(dim=(0, 1)).nonzero()[:, 0]
        farthest = max(farthest, p - int(touched[0]), int(touched[-1]) - p)
    return farthest


@pytest.mark.parametrize("widths", [(2, 2, 2), (1, 2, 1, 2), (1, 1, 1, 1, 1)])
def test_the_radius_is_the_reach_of_the_gradient(widths):
    spec = SegSpec(architecture="unet", classes=CLASSES, widths=widths)
    radius_px = receptive_radius_px(spec)
    stride = spec.stride_px
    length = -(-(2 * radius_px + 2 * stride + 2) // stride) * stride  # wide enough that no border hides a touched px

    assert measured_radius_px(build_segnet(spec), length, 2 * stride) == radius_px


def test_the_default_unet_looks_122_px_far_and_the_denseunet_1562():
    # regression; the test above compares small unets with their gradient. The DenseUNet's reach to the left was
    # compared with its gradient once (positive weights, float64): equal on 6 px of 6
    assert receptive_radius_px(UNET) == 122
    assert receptive_radius_px(DENSE) == 1562


def test_a_semantic_bundle_is_read_back_as_it_was_written(tmp_path):
    net, written = make(tmp_path / "tiny")

    read = load_bundle(tmp_path / "tiny")
    rebuilt = read.build_segnet()

    assert read.spec == written.spec
    assert isinstance(read.spec.net, SegSpec)
    assert read.spec.task == "semantic"
    assert not rebuilt.training
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), rebuilt.state_dict().values(), strict=True))


def test_a_bundle_of_another_task_is_refused_by_name(tmp_path):
    make(tmp_path / "tiny")

    with pytest.raises(UserError, match="tiny is a semantic one, and a detection or instance model is needed"):
        load_bundle(tmp_path / "tiny").build()
    with pytest.raises(UserError, match="pap-light is one for instance, and a semantic model is needed"):
        load_bundle("pap-light").build_segnet()


def test_a_radius_below_what_the_network_looks_at_is_refused(tmp_path):
    make(tmp_path / "tiny")
    path = tmp_path / "tiny" / "model.toml"
    path.write_text(path.read_text().replace("receptive_field_px = 26", "receptive_field_px = 25"))

    with pytest.raises(UserError, match="receptive_field_px 25: unet looks 26 px far"):
        load_bundle(tmp_path / "tiny")


def test_an_object_model_still_needs_the_size_of_its_objects(tmp_path):
    source = load_bundle("pap-light").folder / "model.toml"
    lines = [line for line in source.read_text().splitlines() if not line.startswith("max_object_px")]
    (tmp_path / "model.toml").write_text("\n".join(lines))

    with pytest.raises(UserError, match="max_object_px is missing"):
        load_bundle(tmp_path)


def test_an_unknown_semantic_architecture_is_refused(tmp_path):
    make(tmp_path / "tiny")
    path = tmp_path / "tiny" / "model.toml"
    path.write_text(path.read_text().replace('"unet"', '"u-net"'))

    with pytest.raises(UserError, match=r"net: unknown architecture; known: .*denseunet161, unet"):
        load_bundle(tmp_path / "tiny")


def test_statistics_of_a_semantic_network_stay_inside_frozen_statistics():
    net = build_segnet(TINY).train()
    before = {k: v.clone() for k, v in net.named_buffers()}

    with net.frozen_statistics():
        net(torch.randn(2, 3, 64, 64))

    assert net.trains_batch_norm
    assert all(torch.equal(before[k], v) for k, v in net.named_buffers())
    net(torch.randn(2, 3, 64, 64))
    assert not all(torch.equal(before[k], v) for k, v in net.named_buffers())


def test_a_network_with_a_frozen_encoder_still_trains_its_decoder():
    net = build_segnet(TINY.model_copy(update={"frozen_batch_norm": True})).train()
    before = {k: v.clone() for k, v in net.named_buffers()}

    net(torch.randn(2, 3, 64, 64)).sum().backward()

    moved = {k.split(".")[1] for k, v in net.named_buffers() if not torch.equal(before[k], v)}
    assert moved == {"up"}
    assert net.trains_batch_norm
