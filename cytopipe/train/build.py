"""Assembly of a run: stores, settings and a seed become the parts that the engine drives."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from cytopipe.core.classes import ObjectClass
from cytopipe.core.errors import UserError
from cytopipe.core.progress import Say, unsaid
from cytopipe.core.seeds import seed_from
from cytopipe.data import Batches, LoaderSettings
from cytopipe.methods import Method, MethodConfig, find_method
from cytopipe.nets import Net, NetSpec, SegSpec, build_net, build_segnet, ranks
from cytopipe.nets.pretrained import init_weights
from cytopipe.semi import PRESETS, ViewPlan
from cytopipe.train.engine import Parts
from cytopipe.train.settings import TrainSettings
from cytopipe.train.stores import Stores, chosen_classes
from cytopipe.train.tasks import check_annotations


def assemble(
    stores: Stores,
    settings: TrainSettings,
    config: MethodConfig,
    *,
    seed: int,
    device: torch.device,
    init: str | None,
    loader_threads: int,
    say: Say = unsaid,
) -> Parts:
    """Network, method, batches and validation pool of a run. The network's first weights depend on the seed and the
    architecture only.

    Raises UserError for classes that are not there, annotations that cannot teach the network's task, weights that do
    not fit, and a batch that cannot be divided.
    """
    if stores.labelled.unit == "tile" and stores.resize_px is not None:
        say(f"train.resize_px {stores.resize_px} is for images in files: tiles keep their resolution")
        stores = replace(stores, resize_px=None)
    # before the classes: a recipe of another task often names classes that such data do not have either
    check_annotations(settings, stores.training_pool(stores.labelled.classes), str(stores.labelled.path))
    classes = chosen_classes(stores.labelled, settings.classes)
    labelled = stores.training_pool(classes)
    check_batch(settings, ranks.world_size())
    student = initial_network(settings, classes, seed, init, say)
    method: Method = find_method(settings.method)(student.spec, config, seed=seed)
    method.attach(student)
    plan = view_plan(method, settings)
    unlabelled = stores.unlabelled_pool(classes) if plan.unlabelled else None
    loader = LoaderSettings(
        seed,
        settings.crop_px,
        settings.batch_labelled,
        settings.batch_labelled * settings.ratio,
        settings.zoom,
        share=(ranks.rank(), ranks.world_size()),
    )
    return Parts(
        student.to(memory_format=torch.channels_last),  # where convolutions of few channels are fastest
        method,
        Batches(labelled, unlabelled, plan, student.spec, loader),
        stores.validation_pool(classes),
        settings,
        iterations_per_epoch(settings, len(stores.train_rows), len(stores.unlabelled_rows)),
        seed,
        device,
        loader_threads,
    )


def view_plan(method: Method, settings: TrainSettings) -> ViewPlan:
    """The method's views, with what the recipe says for all methods at once."""
    plan = method.views()
    if settings.labelled_view is not None:
        plan = plan.with_labelled(PRESETS[settings.labelled_view])
    return plan.with_flips(settings.flips)


def initial_network(
    settings: TrainSettings, classes: tuple[ObjectClass, ...], seed: int, init: str | None, say: Say = unsaid
) -> Net:
    """The student before training: drawn from the seed, or with the weights of `init` (nets/pretrained.py)."""
    torch.manual_seed(seed_from(seed, "network"))
    spec = {
        "architecture": settings.architecture,
        "classes": classes,
        "frozen_batch_norm": settings.frozen_batch_norm,
    }
    student: Net
    if settings.task == "semantic":
        student = build_segnet(SegSpec.model_validate(spec))
    else:
        student = build_net(NetSpec.model_validate({**spec, "relations": settings.relations}))
    if init is not None:
        say(init_weights(student, init).sentence)
    return student


def iterations_per_epoch(settings: TrainSettings, labelled: int, unlabelled: int) -> int:
    """ceil(N_u / B_u), for every method alike (METHODS 1.2); without unlabelled images ceil(N_l / B_l)."""
    if unlabelled:
        return math.ceil(unlabelled / (settings.batch_labelled * settings.ratio))
    return math.ceil(labelled / settings.batch_labelled)


def check_batch(settings: TrainSettings, processes: int) -> None:
    """Raises UserError where the images of a step do not divide among processes and parts."""
    shares = processes * settings.accumulate
    if settings.batch_labelled % shares:
        among = {"processes": processes, "parts (train.accumulate)": settings.accumulate}
        counts = " of ".join(f"{count} {what}" for what, count in among.items() if count > 1)
        raise UserError(
            f"{settings.batch_labelled} labelled images a step do not divide into {counts}",
            where="train.batch_labelled",
            fix=f"give a multiple of {shares}",
        )
