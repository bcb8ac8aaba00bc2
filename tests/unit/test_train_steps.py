"""What a step is made of: parts of a batch, mixed precision, optimiser groups, burn-in of the teacher, checkpoints."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from cytopipe.core.classes import class_named
from cytopipe.core.errors import UserError
from cytopipe.methods import ParamGroup
from cytopipe.nets import SEMANTIC_ARCHITECTURES, NetSpec
from cytopipe.semi import PRESETS, Batch, EmaRule, EmaTeacher, Part, Targets, View
from cytopipe.train.build import check_batch, initial_network, iterations_per_epoch
from cytopipe.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from cytopipe.train.feed import parts_of
from cytopipe.train.optimiser import Optimiser
from cytopipe.train.precision import Precision
from cytopipe.train.reduce import is_count, over_parts
from cytopipe.train.settings import SEMANTIC, LabelledView, TrainSettings
from cytopipe.train.validate import METRICS

CPU = torch.device("cpu")


def view(images: int, *, labels: bool = False) -> View:
    image = torch.arange(images * 3 * 4, dtype=torch.float32).view(images, 3, 2, 2)
    targets = tuple(Targets(torch.full((1, 4), float(i)), torch.tensor([1])) for i in range(images))
    classes = torch.arange(images * 4).view(images, 2, 2) if labels else None
    return View(image, () if labels else targets, torch.zeros(images, 2, 3), torch.arange(images), classes)


def test_the_parts_of_a_batch_are_its_images_in_order_with_all_that_belongs_to_them():
    batch = Batch(Part(view(4)), Part({"weak": view(6, labels=True), "copy": view(6, labels=True)}))

    parts = parts_of(batch, 2)

    assert [part.labelled.weak.keys.tolist() for part in parts] == [[0, 1], [2, 3]]
    assert [part.unlabelled.views["copy"].keys.tolist() for part in parts] == [[0, 1, 2], [3, 4, 5]]
    for name in ("image", "affine", "labels"):
        joined = torch.cat([getattr(part.unlabelled.weak, name) for part in parts])
        assert torch.equal(joined, getattr(batch.unlabelled.weak, name))
    assert [float(t.boxes[0, 0]) for part in parts for t in part.labelled.weak.targets] == [0, 1, 2, 3]


def test_images_that_do_not_divide_are_refused_before_a_run_and_in_it():
    with pytest.raises(ValueError, match="4 images in 3 parts"):
        parts_of(Batch(Part(view(4))), 3)
    with pytest.raises(UserError, match=r"4 labelled images a step do not divide into 2 processes of 4 parts"):
        check_batch(TrainSettings(batch_labelled=4, accumulate=4), processes=2)
    check_batch(TrainSettings(batch_labelled=8, accumulate=4), processes=2)


def test_signals_over_parts_are_means_but_counts_of_a_class_are_sums():
    found = over_parts([{"max_confidence": 0.2, "labelled[HSIL]": 3.0}, {"max_confidence": 0.4, "labelled[HSIL]": 1.0}])

    assert found == pytest.approx({"max_confidence": 0.3, "labelled[HSIL]": 4.0})
    assert is_count("pseudo_labels[nucleus]")
    assert not is_count("pseudo_labels_per_image")


def trained(amp: str, steps: int, *, restart_at: int | None = None) -> tuple[nn.Module, Precision]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    precision = Precision(amp, CPU)
    for step in range(steps):
        if step == restart_at:
            state = precision.state()
            precision = Precision(amp, CPU)
            precision.restore(state)
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        with precision.forward():
            loss = (net(x).float() - x.sum(dim=1, keepdim=True)).square().mean()
        precision.backward(loss * (1e30 if step == 2 else 1.0))  # the scaled gradient of step 2 overflows
        precision.step(optimiser, list(net.parameters()), clip_norm=1.0)
    return net, precision


def test_without_mixed_precision_a_step_is_that_of_a_plain_optimiser():
    net, precision = trained("off", 1)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))

    (plain(x) - x.sum(dim=1, keepdim=True)).square().mean().backward()
    nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
    torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9).step()

    assert precision.scale is None
    assert precision.state() == {}
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), plain.parameters(), strict=True))


def test_fp16_leaves_out_a_step_whose_gradients_overflow_and_halves_its_scale():
    before, first = trained("fp16", 2)
    after, then = trained("fp16", 3)

    assert then.scale == first.scale / 2
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_the_loss_scale_goes_through_a_checkpoint_so_that_a_resumed_run_steps_alike():
    unbroken, kept = trained("fp16", 6)
    resumed, restored = trained("fp16", 6, restart_at=4)

    assert restored.state() == kept.state()
    assert all(torch.equal(a, b) for a, b in zip(unbroken.parameters(), resumed.parameters(), strict=True))


def test_a_checkpoint_holds_progress_loss_scale_and_the_optimisers_state(tmp_path):
    net, precision = trained("fp16", 3)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    optimiser.zero_grad()
    net(torch.ones(1, 4)).sum().backward()
    optimiser.step()
    progress = Progress(3, 0.25, 2, "teacher", precision.state())

    save_checkpoint(tmp_path, {"student": net}, optimiser, progress)
    other, _ = trained("fp16", 1)
    fresh = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    restored = load_checkpoint(tmp_path, {"student": other}, fresh)

    assert restored == progress
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters(), strict=True))
    buffers = [optimiser.state_dict()["state"][i]["momentum_buffer"] for i in range(4)]
    assert all(torch.equal(fresh.state_dict()["state"][i]["momentum_buffer"], b) for i, b in enumerate(buffers))
    assert not [p for p in tmp_path.iterdir() if p.suffix not in (".safetensors", ".json")]


def test_a_methods_group_has_its_own_rate_and_all_rates_follow_one_schedule():
    student, own = nn.Linear(2, 2), nn.Parameter(torch.zeros(3))
    group = ParamGroup("proxies", (own,), lr=1.0, momentum=0.0, weight_decay=0.0)
    method = SimpleNamespace(groups=lambda: [group])
    settings = TrainSettings(lr=0.1, schedule="step", lr_steps=[5], lr_gamma=0.1)

    optimiser = Optimiser(student, method, settings)
    rates = [(optimiser.set_rate(t), [g["lr"] for g in optimiser.torch.param_groups]) for t in (0, 5)]

    assert rates[0] == (pytest.approx(0.1), pytest.approx([0.1, 1.0]))
    assert rates[1] == (pytest.approx(0.01), pytest.approx([0.01, 0.1]))
    assert [g["momentum"] for g in optimiser.torch.param_groups] == [0.9, 0.0]


def test_a_parameter_of_the_student_that_a_method_claims_is_trained_once():
    student = nn.Linear(2, 2)
    group = ParamGroup("bias", (student.bias,), lr=1.0, momentum=0.0, weight_decay=0.0)

    optimiser = Optimiser(student, SimpleNamespace(groups=lambda: [group]), TrainSettings())

    assert [len(g["params"]) for g in optimiser.torch.param_groups] == [1, 1]
    assert optimiser.torch.param_groups[1]["params"][0] is student.bias


def test_after_burn_in_the_teacher_is_the_student_bit_for_bit_and_counts_anew():
    student = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    teacher = EmaTeacher(student, EmaRule(0.9, start=3, buffers="average"))
    teacher.follow(student)
    with torch.no_grad():
        student[0].weight.add_(1.0)
        student[1].running_var.fill_(7.0)
        student[1].num_batches_tracked.fill_(4)

    teacher.copy(student)

    assert all(torch.equal(value, teacher.net.state_dict()[key]) for key, value in student.state_dict().items())
    assert int(teacher.updates) == 0


def test_names_that_settings_repeat_without_torch_are_those_of_the_rooms_that_own_them():
    assert set(SEMANTIC) == set(SEMANTIC_ARCHITECTURES)
    assert set(LabelledView.__args__) == set(PRESETS)
    known = {name for names in METRICS.values() for name in names}
    assert set(TrainSettings.model_fields["val_metric"].annotation.__args__) == known | {"auto"}
    for architecture, task, metric in (
        ("unet", "semantic", "dice"),
        ("faster-rcnn-resnet50-fpn", "detection", "map_50"),
        ("mask-rcnn-mobilenetv2-fpn", "instance", "mask_map_50"),
    ):
        settings = TrainSettings(architecture=architecture)
        assert (settings.task, settings.metric) == (task, metric)


def test_an_epoch_is_counted_in_unlabelled_images_for_every_method():
    settings = TrainSettings(batch_labelled=4, ratio=2)

    assert iterations_per_epoch(settings, labelled=10, unlabelled=100) == 13
    assert iterations_per_epoch(settings, labelled=10, unlabelled=0) == 3


def test_the_first_weights_depend_on_seed_and_architecture_alone():
    classes = (class_named("nucleus"),)
    nets = [
        initial_network(TrainSettings(architecture="unet", method=method), classes, seed, None)
        for method, seed in (("supervised", 1), ("cdcl", 1), ("supervised", 2))
    ]

    states = [torch.cat([p.flatten() for p in net.parameters()]) for net in nets]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_frozen_batch_norm_stands_in_the_networks_spec():
    classes = (class_named("nucleus"),)
    settings = TrainSettings(architecture="faster-rcnn-mobilenetv2-fpn", frozen_batch_norm=True)

    net = initial_network(settings, classes, 0, None)

    assert isinstance(net.spec, NetSpec)
    assert net.spec.frozen_batch_norm
    assert not net.trains_batch_norm
