"""report.html at the end of a run, or where an error stopped it: what report/train_page.py draws, gathered from the
run's folder and its networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cytopipe.core.seeds import seed_from
from cytopipe.methods import PseudoLabels
from cytopipe.nets import Net, ranks
from cytopipe.report.encode import number
from cytopipe.report.panels import Sample
from cytopipe.report.train_page import write_train_report
from cytopipe.semi import Clock, View
from cytopipe.train.engine import Engine, Parts
from cytopipe.train.feed import parts_of
from cytopipe.train.finish import Finished
from cytopipe.train.log import read_log
from cytopipe.train.samples import pseudo_label_samples, validation_samples

REPORT_FILE = "report.html"


def write_run_report(engine: Engine, finished: Finished, facts: dict[str, str]) -> None:
    """Write the report of a finished run into its folder. `facts`: data, licences, command, as in model.toml.

    The run must be over: to show pseudo-labels the method is asked for its losses once more, which changes what it
    remembers of its last step.
    """
    parts = engine.parts
    networks: dict[str, Net] = {"Student": engine.student}
    if engine.teacher is not None:
        networks["Teacher"] = engine.teacher.net
    least = finished.bundle.spec.thresholds.score
    metrics = read_log(engine.folder)
    write_train_report(
        engine.folder / REPORT_FILE,
        title=parts.method.name,
        metrics=metrics,
        samples=validation_samples(parts.validation, networks, least, parts.seed),
        pseudo_samples=_pseudo_samples(engine, networks, least),
        key_figures=_key_figures(engine, finished, metrics),
        facts={
            **_who(parts),
            "network": f"{finished.network} after {finished.iteration} iterations",
            **facts,
            "validation": {key: f"{value:.3f}" for key, value in finished.validation.metrics.items()},
            **_settings(parts),
        },
    )


def write_stopped_report(engine: Engine, facts: dict[str, str], reason: str) -> Path:
    """Write the report of a run that an error stopped: its curves, its settings and the reason, and no pictures of
    networks that may be broken. Returns its path.
    """
    parts = engine.parts
    path = engine.folder / REPORT_FILE
    write_train_report(
        path,
        title=f"{parts.method.name}, stopped",
        metrics=read_log(engine.folder),
        facts={**_who(parts), **facts, **_settings(parts)},
        warnings=[reason],
    )
    return path


def _who(parts: Parts) -> dict[str, Any]:
    return {"architecture": parts.settings.architecture, "seed": str(parts.seed), "device": str(parts.device)}


def _settings(parts: Parts) -> dict[str, Any]:
    return {
        "settings": parts.settings.model_dump(mode="json", exclude={"config"}),
        f"settings of {parts.method.name}": parts.method.config.model_dump(mode="json"),
    }


def _key_figures(engine: Engine, finished: Finished, metrics: Sequence[dict[str, Any]]) -> list[tuple[str, str, str]]:
    settings = engine.parts.settings
    value = finished.validation.metrics.get(settings.metric, 0.0)
    figures = [(settings.metric, f"{value:.3f}", f"{finished.network}, iteration {finished.iteration}, on validation")]
    last = next((row["val"] for row in reversed(metrics) if "val" in row), {})
    figures += [
        (f"{name} at the end", f"{found.get(settings.metric, 0.0):.3f}", settings.metric)
        for name, found in last.items()
    ]
    counts = [row["signals"]["pseudo_labels_per_image"] for row in metrics if _has_pseudo_labels(row)]
    if counts:
        recent = counts[-max(1, len(counts) // 5) :]
        unit = "px an image, mean" if settings.task == "semantic" else "an image, mean"
        figures.append(("pseudo-labels", number(sum(recent) / len(recent)), f"{unit} of the last fifth"))
    seconds = [row["seconds"] for row in metrics if "losses" in row and "seconds" in row]
    if seconds:
        figures.append(("seconds an iteration", f"{sorted(seconds)[len(seconds) // 2]:.3g}", "median"))
    return figures


def _has_pseudo_labels(row: dict[str, Any]) -> bool:
    return "pseudo_labels_per_image" in row.get("signals", {})


def _pseudo_samples(engine: Engine, networks: dict[str, Net], least_scores: dict[str, float]) -> list[Sample]:
    """Pseudo-labels of the batch of the last iteration; none where the method reads no unlabelled image."""
    view, pseudo = _last_pseudo_labels(engine)
    if view is None or not pseudo:
        return []
    return pseudo_label_samples(view, pseudo, networks, least_scores)


def _last_pseudo_labels(engine: Engine) -> tuple[View | None, Sequence[PseudoLabels]]:
    parts, settings = engine.parts, engine.parts.settings
    t = settings.iterations - 1
    # With several parts a step the method remembers its last one.
    batch = parts_of(parts.batches.batch(t), settings.accumulate)[-1]
    if batch.unlabelled is None:
        return None, []
    views = batch.unlabelled.views
    view = views.get("weak", next(iter(views.values())))
    if ranks.world_size() == 1:  # else the other ranks are gone: `losses` would wait for them
        clock = Clock(t, settings.iterations, parts.iterations_per_epoch)
        torch.manual_seed(seed_from(parts.seed, "report"))
        with torch.no_grad():
            teacher = engine.teacher.net if engine.teacher is not None else None
            engine.method.losses(batch.to(parts.device), engine.student, teacher, clock)
    return view, engine.method.pseudo() or []
