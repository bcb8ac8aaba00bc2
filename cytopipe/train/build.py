"""Assembly of a run: stores, settings and a seed become the parts that the engine drives. And the bundle at its end."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from cytopipe.core.classes import ObjectClass
from cytopipe.core.errors import UserError, refuse_unknown
from cytopipe.core.progress import Say
from cytopipe.core.seeds import rng_from, seed_from
from cytopipe.data import Batches, LoaderSettings, TilePool
from cytopipe.methods import Method, MethodConfig, find_method
from cytopipe.nets import DetNet, NetSpec, build_net, load_bundle
from cytopipe.nets.bundle import WEIGHTS_FILE, load_state
from cytopipe.tiles import TileStore
from cytopipe.tiles.fractions import LabelUnit, choose_labelled, parse_fraction
from cytopipe.train.engine import Parts
from cytopipe.train.settings import TrainSettings

MPP_TOLERANCE = 0.02  # stores and bundles whose resolution differs by more are refused (DESIGN 5)
VAL_FRACTION = 0.1  # set aside where the store has no validation part (DESIGN 4)


@dataclass(frozen=True, slots=True)
class Stores:
    """What a run reads: the labelled store, its rows for training and validation, and the unlabelled store with its
    rows.
    """

    labelled: TileStore
    train_rows: NDArray[np.intp]
    val_rows: NDArray[np.intp]
    unlabelled: TileStore | None
    unlabelled_rows: NDArray[np.intp]


def check_method(settings: TrainSettings, has_unlabelled: bool) -> MethodConfig:
    """The method's settings, checked. Raises UserError for an unknown method or key, a task it cannot train, or a
    missing unlabelled store.
    """
    kind = find_method(settings.method)
    refuse_unknown(settings.config, kind.Config.model_fields, f"[train.config] of {settings.method}")
    try:
        config = kind.Config.model_validate(settings.config)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}", where=f"[train.config] of {settings.method}"
        ) from error
    task = "instance" if settings.architecture.startswith("mask-rcnn") else "detection"
    if task not in kind.tasks:
        raise UserError(
            f"method {settings.method} trains {', '.join(sorted(kind.tasks))}, not {task}",
            where=settings.architecture,
            fix="choose a faster-rcnn architecture",
        )
    if kind.uses_unlabelled and not has_unlabelled:
        raise UserError(
            f"method {settings.method} learns from unlabelled tiles too",
            fix="give --unlabeled STORE (`cytopipe mine-unlabeled` makes one)",
        )
    return config


def open_stores(labelled: Path, unlabelled: Path | None, seed: int, say: Say) -> Stores:
    """Open both stores and choose the rows. Raises UserError where resolutions differ, a part is empty, or unlabelled
    tiles come from patients or slide files of the validation or test part of the labelled store.
    """
    store = TileStore(labelled)
    rows = store.rows(labelled=True)
    if len(rows) == 0:
        raise UserError(
            "has no labelled tile", where=str(labelled), fix="give `cytopipe tile` the annotations of its slides"
        )
    train_rows, val_rows = _validation_part(store, rows, seed, say)
    if unlabelled is None:
        return Stores(store, train_rows, val_rows, None, np.zeros(0, np.intp))
    other = TileStore(unlabelled)
    _same_mpp(store, other)
    held_out = _patients(store, "val") | _patients(store, "test")
    leaks = sorted(set(other.tiles["patient"].to_pylist()) & held_out)
    if leaks:
        raise UserError(
            f"holds tiles of patients that {labelled} keeps for validation or test: "
            f"{', '.join(leaks[:5])}{' …' if len(leaks) > 5 else ''}",
            where=str(unlabelled),
            fix=f"make it with `cytopipe mine-unlabeled --exclude {labelled}`",
        )
    files = _files(store, held_out)
    same = sorted(set(_files(other)) & set(files))
    if same:
        raise UserError(
            f"holds the slide file of {files[same[0]]!r}, which {labelled} keeps for validation or test, under another "
            "patient",
            where=str(unlabelled),
            fix="give both slides one patient",
        )
    return Stores(store, train_rows, val_rows, other, other.rows())


def with_fraction(
    stores: Stores, fraction: str | float | None, seed: int, say: Say, unit: LabelUnit = "tile"
) -> Stores:
    """The stores with a share of the labelled training tiles, or of their patients (tiles/fractions.py); None: all.

    Validation is not touched. Raises UserError for what is no fraction in (0, 1].
    """
    if fraction is None:
        return stores
    tile_ids, patients = labelled_names(stores)
    kept = choose_labelled(tile_ids, patients, parse_fraction(fraction), unit, seed)
    people = len({patients[i] for i in kept.tolist()})
    say(
        f"{len(kept)} of {len(tile_ids)} labelled training tiles are used, of {people} of {len(set(patients))} patients"
    )
    return replace(stores, train_rows=stores.train_rows[kept])


def labelled_names(stores: Stores) -> tuple[list[str], list[str]]:
    """tile_id and patient of each labelled training tile, in the order of `train_rows`."""
    rows = stores.labelled.tiles.select(["tile_id", "patient"]).take(stores.train_rows)
    return rows["tile_id"].to_pylist(), rows["patient"].to_pylist()


def chosen_classes(store: TileStore, names: list[str] | None) -> tuple[ObjectClass, ...]:
    """The classes to learn, in order. Raises UserError for a class that the store does not have, naming the nearest."""
    if names is None:
        return tuple(store.info.classes)
    by_name = {item.name: item for item in store.info.classes}
    refuse_unknown(names, by_name, f"train.classes for {store.folder}")
    return tuple(by_name[name] for name in names)


def assemble(
    stores: Stores,
    settings: TrainSettings,
    config: MethodConfig,
    *,
    seed: int,
    device: torch.device,
    init: str | None,
    loader_threads: int,
) -> Parts:
    """Network, method, batches and validation pool of a run. The network's first weights depend on the seed and the
    architecture only.
    """
    classes = chosen_classes(stores.labelled, settings.classes)
    spec = NetSpec(architecture=settings.architecture, classes=classes)
    torch.manual_seed(seed_from(seed, "network"))
    student = build_net(spec)
    if init is not None:
        load_state(student, load_bundle(init).folder / WEIGHTS_FILE)
    method: Method = find_method(settings.method)(spec, config, seed=seed)
    method.attach(student)
    labelled = TilePool(stores.labelled, stores.train_rows, classes)
    unlabelled = None
    if stores.unlabelled is not None and method.uses_unlabelled:
        unlabelled = TilePool(stores.unlabelled, stores.unlabelled_rows, classes)
    batch_unlabelled = settings.batch_labelled * settings.ratio
    plan = method.views().with_flips(settings.flips)
    loader = LoaderSettings(seed, settings.crop_px, settings.batch_labelled, batch_unlabelled, settings.zoom)
    source = unlabelled if unlabelled is not None else labelled
    epoch = math.ceil(len(source) / (batch_unlabelled if unlabelled is not None else settings.batch_labelled))
    return Parts(
        _laid_out(student),
        method,
        Batches(labelled, unlabelled, plan, spec, loader),
        TilePool(stores.labelled, stores.val_rows, classes),
        settings,
        epoch,
        seed,
        device,
        loader_threads,
    )


def _laid_out(net: DetNet) -> DetNet:
    """Channels last: the layout in which convolutions of few channels are fastest on CPU and GPU alike."""
    return net.to(memory_format=torch.channels_last)


def _validation_part(
    store: TileStore, rows: NDArray[np.intp], seed: int, say: Say
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    split = np.array(store.tiles["split"].to_pylist())[rows]
    if (split == "val").any():
        return rows[split == "train"], rows[split == "val"]
    train = rows[split == "train"]
    patient = np.array(store.tiles["patient"].to_pylist())[train]
    names = sorted(set(patient))
    if len(names) > 1:
        chosen = rng_from(seed, "validation").permutation(names)[: max(1, round(VAL_FRACTION * len(names)))]
        aside = np.isin(patient, chosen)
        say(
            f"no validation part in the store: {len(chosen)} of {len(names)} patients set aside for it ({aside.sum()} "
            "tiles)"
        )
    else:
        aside = np.zeros(len(train), bool)
        aside[rng_from(seed, "validation").permutation(len(train))[: max(1, round(VAL_FRACTION * len(train)))]] = True
        say(
            f"one patient and no validation part: {aside.sum()} of {len(train)} tiles set aside for it; its figures "
            "flatter"
        )
    if aside.all():
        raise UserError("has too few tiles to keep some for validation", where=str(store.folder))
    return train[~aside], train[aside]


def _patients(store: TileStore, part: str) -> set[str]:
    return {
        p
        for p, s in zip(store.tiles["patient"].to_pylist(), store.tiles["split"].to_pylist(), strict=True)
        if s == part
    }


def _files(store: TileStore, patients: Collection[str] | None = None) -> dict[str, str]:
    """fingerprint -> slide_id of the slides that have one; of some patients only, where they are given."""
    slides = store.slides.select(["fingerprint", "slide_id", "patient"]).to_pylist()
    return {
        row["fingerprint"]: row["slide_id"]
        for row in slides
        if row["fingerprint"] is not None and (patients is None or row["patient"] in patients)
    }


def _same_mpp(a: TileStore, b: TileStore) -> None:
    if a.info.mpp is None or b.info.mpp is None:
        return
    if abs(a.info.mpp - b.info.mpp) > MPP_TOLERANCE * a.info.mpp:
        raise UserError(
            f"has {b.info.mpp:g} µm/px, {a.folder} has {a.info.mpp:g}",
            where=str(b.folder),
            fix=f"cut it at --mpp {a.info.mpp:g}",
        )
