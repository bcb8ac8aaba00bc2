"""`train`: stores and a recipe in, a run folder out that is itself a model bundle (DESIGN 5 and 9)."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from cytopipe.core.files import FolderLock, disk_error, sha256_of, write_json, write_text
from cytopipe.core.journal import open_journal
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.core.resources import cores
from cytopipe.core.seeds import rng_from
from cytopipe.infer.predict import choose_device, locate_in
from cytopipe.nets import DetNet
from cytopipe.recipes import load_recipe, recipe_hash
from cytopipe.report.train_page import Sample, write_train_report
from cytopipe.tiles.fractions import LabelUnit
from cytopipe.train.build import Stores, assemble, check_method, labelled_names, open_stores, with_fraction
from cytopipe.train.engine import Engine
from cytopipe.train.finish import Finished, finish
from cytopipe.train.log import read_log
from cytopipe.train.settings import TrainSettings

RECIPE_FILE = "recipe.json"
LABELLED_FILE = "labelled_tiles.csv"  # which labels a fraction chose
SAMPLES = 6  # validation tiles shown in the report


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
    overwrite: bool = False,
    on_progress: OnProgress = silent,
    say: Say = unsaid,
) -> TrainResult:
    """Train a model by one method; run again, it resumes from its last checkpoint and ends with the same weights.

    recipe          name of a shipped recipe or a path; None: the recipe of the method's name
    overrides       "KEY=VALUE" for keys of the recipe, dotted: "train.iterations=500"
    init            a bundle whose weights are the start
    label_fraction  "1/8": this share of the labelled training tiles, nested and seeded; None: what the recipe says
    label_unit      what it is a share of: tiles, or patients with all their tiles; None: what the recipe says
    workers         loader threads
    Raises UserError before anything is written (method, recipe, stores, device, folder), RunError for a loss that is
    not finite or a full disk.
    """
    flags = {"train.method": method, "train.label_fraction": label_fraction, "train.label_unit": label_unit}
    resolved = load_recipe(recipe if recipe is not None else method, list(overrides), flags)
    settings = resolved.recipe.train
    config = check_method(settings, unlabeled is not None)
    where = choose_device(device)
    stores = open_stores(Path(labeled), None if unlabeled is None else Path(unlabeled), seed, say)
    stores = with_fraction(stores, settings.label_fraction, seed, say, settings.label_unit)
    threads = workers if workers is not None else min(cores(), 4)
    parts = assemble(stores, settings, config, seed=seed, device=where, init=init, loader_threads=threads)
    out = Path(out)
    parameters: dict[str, Any] = {
        "recipe": resolved.recipe.model_dump(mode="json"),
        "seed": seed,
        "init": init,
        "labeled": sha256_of(Path(labeled) / "tiles.parquet"),
        "unlabeled": None if unlabeled is None else sha256_of(Path(unlabeled) / "tiles.parquet"),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, out) from error
    with FolderLock(out):
        open_journal(out, "train", parameters, overwrite=overwrite)
        write_json(out / RECIPE_FILE, {"recipe": parameters["recipe"], "sources": dict(resolved.sources)})
        if settings.label_fraction is not None:
            _write_labelled(out / LABELLED_FILE, stores)
        say(_plan_text(stores, parts.student, settings.iterations, where.type, method))
        engine = Engine(parts, out, on_progress, say)
        engine.run()
        facts = {
            "data": _data_text(stores, settings, seed),
            "recipe": recipe_hash(resolved.recipe),
            "labeled": parameters["labeled"],
        }
        finished = finish(engine, facts)
        _report(out, method, engine, finished)
    return TrainResult(str(out), method, finished.network, finished.iteration, finished.validation.metrics)


def _plan_text(stores: Stores, student: DetNet, iterations: int, device: str, method: str) -> str:
    size = sum(p.numel() for p in student.parameters()) / 1e6
    unlabelled = f", {len(stores.unlabelled_rows)} unlabelled" if stores.unlabelled is not None else ""
    return (
        f"{method}: {student.spec.architecture} ({size:.1f} million weights) on {device}, {iterations} iterations; "
        f"{len(stores.train_rows)} labelled tiles{unlabelled}, {len(stores.val_rows)} for validation"
    )


def _data_text(stores: Stores, settings: TrainSettings, seed: int) -> str:
    patients = len(set(labelled_names(stores)[1]))
    text = f"{len(stores.train_rows)} labelled tiles of {patients} patients"
    if settings.label_fraction is not None:
        text += f" ({settings.label_fraction} of the labels by {settings.label_unit}, seed {seed}: {LABELLED_FILE})"
    return text if stores.unlabelled is None else f"{text}, {len(stores.unlabelled_rows)} unlabelled tiles"


def _write_labelled(path: Path, stores: Stores) -> None:
    """The labelled training tiles that a fraction left, in the order of the store: tile_id, patient."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("tile_id", "patient"))
    rows.writerows(zip(*labelled_names(stores), strict=True))
    write_text(path, text.getvalue())


def _report(out: Path, method: str, engine: Engine, finished: Finished) -> None:
    """report.html: curves, and validation tiles with truth and what the chosen network finds."""
    net = finished.bundle.build()
    pool = engine.parts.validation
    names = [c.name for c in net.spec.classes]
    least = finished.bundle.spec.thresholds.score
    samples = []
    for i in sorted(rng_from(engine.parts.seed, "samples").permutation(len(pool))[:SAMPLES].tolist()):
        image, objects = pool.image(i), pool.objects(i)
        found = locate_in(net, [image], score_threshold=min(least.values(), default=0.5))[0]
        cut = np.array([least.get(c.kind, 0.5) for c in net.spec.classes])
        keep = found.scores >= cut[found.labels - 1]
        samples.append(
            Sample(
                image,
                np.asarray(shapely.bounds(objects.geometry), np.float64).reshape(-1, 4),
                [names[label - 1] for label in objects.labels],
                found.boxes[keep],
                [names[label - 1] for label in found.labels[keep]],
                found.scores[keep].tolist(),
                caption=str(pool.store.tiles["tile_id"][int(pool.rows[i])]),
            )
        )
    facts = {
        "network": f"{finished.network} after {finished.iteration} iterations",
        "validation": {key: f"{value:.3f}" for key, value in finished.validation.metrics.items()},
        "settings": engine.parts.settings.model_dump(mode="json"),
    }
    write_train_report(out / "report.html", title=method, metrics=read_log(out), samples=samples, facts=facts)
