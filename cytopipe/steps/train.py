"""`train`: stores and a recipe in, a run folder out that is itself a model bundle (DESIGN 5 and 9)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytopipe.core.errors import CytopipeError, DiskError, RunError
from cytopipe.core.files import FolderLock, disk_error, write_json, write_text
from cytopipe.core.journal import open_journal
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.core.resources import cores
from cytopipe.infer.predict import choose_device
from cytopipe.methods import find_method
from cytopipe.nets import ranks
from cytopipe.recipes import load_recipe, recipe_hash
from cytopipe.tiles.fractions import LabelUnit
from cytopipe.train.build import assemble, check_batch
from cytopipe.train.engine import Engine, Parts
from cytopipe.train.finish import finish
from cytopipe.train.processes import check_gpus, is_first, is_rank, joined, rank_device, run_ranks
from cytopipe.train.reduce import wait_for_all
from cytopipe.train.run_report import write_run_report, write_stopped_report
from cytopipe.train.settings import TrainSettings
from cytopipe.train.stores import Stores, labelled_names, open_stores, with_fraction
from cytopipe.train.tasks import check_method

RECIPE_FILE = "recipe.json"
LOADER_THREADS = 4  # [D] most that are started unasked
LABELLED_FILE = "labelled_tiles.csv"  # which labels a fraction chose


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished run: its folder (a bundle), the method, the network that validated better, at which iteration, and its
    validation metrics in [0, 1].
    """

    run: str
    method: str
    network: str
    iteration: int
    metrics: dict[str, float]


def train(
    method: str,
    labeled: Path | str,
    unlabeled: Path | str | None = None,
    out: Path | str = "run",
    *,
    recipe: str | Path | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    seed: int = 0,
    init: str | None = None,
    label_fraction: str | None = None,
    label_unit: LabelUnit | None = None,
    workers: int | None = None,
    label_class: str | None = None,
    gpus: int | None = None,
    overwrite: bool = False,
    on_progress: OnProgress = silent,
    say: Say = unsaid,
) -> TrainResult | None:
    """Train a model by one method; run again, it resumes from its last checkpoint and ends with the same weights.

    labeled         tile store, or images in files (data/dataset.py)
    unlabeled       the same; the labelled path again: its training images without a label
    recipe          name of a shipped recipe or a path; None: the recipe of the method's name
    overrides       "KEY=VALUE" for keys of the recipe, dotted: "train.iterations=500"
    init            imagenet, a bundle, or a file of weights to start from (nets/pretrained.py)
    label_fraction  "1/8": this share of the labelled training tiles, nested and seeded; None: what the recipe says
    label_unit      what it is a share of: tiles, or patients with all their tiles; None: what the recipe says
    label_class     class of what masks and label maps mark, for images in files; None: what the recipe says
    workers         loader threads
    gpus            processes that share each batch, one a GPU (with device "cpu": on the CPU); under torchrun leave it
                    out
    Returns None in all processes of a run but the first one.
    Raises UserError before anything is written (method, recipe, stores, device, folder), RunError for a loss that is
    not finite, an image that cannot be read, a full disk, or a process that died.
    """
    flags = {
        "train.method": method,
        "train.label_fraction": label_fraction,
        "train.label_unit": label_unit,
        "train.label_class": label_class,
    }
    find_method(method)  # before the recipe of its name is looked for
    resolved = load_recipe(recipe if recipe is not None else method, list(overrides), flags)
    settings = resolved.recipe.train
    config = check_method(settings, unlabeled is not None)
    if gpus is not None:
        check_gpus(gpus, device)
        check_batch(settings, gpus)
    threads = workers if workers is not None else max(1, min(cores() // (gpus or 1), LOADER_THREADS))
    if gpus is not None and gpus > 1:
        asked: dict[str, Any] = {
            "method": method,
            "labeled": labeled,
            "unlabeled": unlabeled,
            "out": out,
            "recipe": recipe,
            "overrides": list(overrides),
            "device": device,
            "seed": seed,
            "init": init,
            "label_fraction": label_fraction,
            "label_unit": label_unit,
            "label_class": label_class,
            "workers": threads,
            "overwrite": overwrite,
        }
        shared: TrainResult = run_ranks(gpus, train, asked, on_progress, say)
        return shared
    if not is_first():
        on_progress, say = silent, unsaid
    where = rank_device(device) if is_rank() else choose_device(device)
    stores = open_stores(
        Path(labeled),
        None if unlabeled is None else Path(unlabeled),
        seed,
        say,
        label_class=settings.label_class,
        resize_px=settings.resize_px,
    )
    stores = with_fraction(stores, settings.label_fraction, seed, say, settings.label_unit)
    out = Path(out)
    parameters: dict[str, Any] = {
        "recipe": resolved.recipe.model_dump(mode="json"),
        "seed": seed,
        "init": init,
        "labeled": stores.labelled.digest(),
        "unlabeled": None if stores.unlabelled is None else stores.unlabelled.digest(),
    }
    facts = {
        "data": _data_text(stores, settings, seed),
        "recipe": recipe_hash(resolved.recipe),
        "labeled": parameters["labeled"],
    }
    with ExitStack() as stack:
        stack.enter_context(joined(where))
        parts = assemble(stores, settings, config, seed=seed, device=where, init=init, loader_threads=threads, say=say)
        if is_first():
            stack.enter_context(_opened(out, parameters, overwrite))
            write_json(out / RECIPE_FILE, {"recipe": parameters["recipe"], "sources": dict(resolved.sources)})
            if settings.label_fraction is not None:
                _write_labelled(out / LABELLED_FILE, stores)
            say(_plan_text(stores, parts, where.type))
            rule = parts.method.teacher()
            if rule is not None and rule.start >= settings.iterations:
                say(f"the teacher starts at iteration {rule.start}, after the end: no unlabelled image will teach")
            if stores.labelled.mpp is None and settings.mpp is None:
                say(f"{labeled} does not say its resolution: the model will claim 1 µm/px; --set train.mpp=UM mends it")
        wait_for_all()  # until the folder is there, and what --overwrite removes is gone
        engine = Engine(parts, out, on_progress, say)
        _run(engine, facts, say)
        if not is_first():
            return None
        finished = finish(engine, facts)
        write_run_report(engine, finished, facts)
    return TrainResult(str(out), method, finished.network, finished.iteration, finished.validation.metrics)


def _run(engine: Engine, facts: dict[str, str], say: Say) -> None:
    """The loop; where it stops for good reason, the report shows how far it came, and the error is raised on."""
    try:
        engine.run()
    except DiskError:  # no room for a report either
        raise
    except CytopipeError as error:
        if is_first():
            say(f"how it went until then: {write_stopped_report(engine, facts, str(error))}")
        # an image that cannot be read is no UserError here: the folder is there already
        raise RunError(error.what, where=error.where, fix=error.fix) from error


@contextmanager
def _opened(out: Path, parameters: dict[str, Any], overwrite: bool) -> Iterator[None]:
    """The run's folder, made, locked, and known to be this run's."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    with FolderLock(out):
        open_journal(out, "train", parameters, overwrite=overwrite)
        yield


def _plan_text(stores: Stores, parts: Parts, device: str) -> str:
    size = sum(p.numel() for p in parts.student.parameters()) / 1e6
    unit, processes = stores.labelled.unit, ranks.world_size()
    unlabelled = f", {len(stores.unlabelled_rows)} unlabelled" if stores.unlabelled is not None else ""
    together = f" in {processes} processes" if processes > 1 else ""
    return (
        f"{parts.method.name}: {parts.student.spec.architecture} ({size:.1f} million weights) on {device}{together}, "
        f"{parts.settings.iterations} iterations, an epoch is {parts.iterations_per_epoch}; {len(stores.train_rows)} "
        f"labelled {unit}s{unlabelled}, {len(stores.val_rows)} for validation"
    )


def _data_text(stores: Stores, settings: TrainSettings, seed: int) -> str:
    unit, text = stores.labelled.unit, f"{len(stores.train_rows)} labelled {stores.labelled.unit}s"
    if stores.labelled.states_patients:
        text += f" of {len(set(labelled_names(stores)[1]))} patients"
    if settings.label_fraction is not None:
        text += f" ({settings.label_fraction} of the labels by {settings.label_unit}, seed {seed}: {LABELLED_FILE})"
    return text if stores.unlabelled is None else f"{text}, {len(stores.unlabelled_rows)} unlabelled {unit}s"


def _write_labelled(path: Path, stores: Stores) -> None:
    """The labelled training tiles that a fraction left, in the order of the store: tile_id, patient."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("tile_id", "patient"))
    rows.writerows(zip(*labelled_names(stores), strict=True))
    write_text(path, text.getvalue())
