"""`cytopipe train`: train a model, supervised or semi-supervised."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

from cytopipe.cli import options
from cytopipe.cli.console import Session, table
from cytopipe.cli.options import option


class LabelUnit(StrEnum):
    """Units of a label fraction."""

    tile = "tile"
    patient = "patient"


def command(
    method: Annotated[str, option("--method", "see `cytopipe methods`", metavar="NAME")],
    labeled: Annotated[
        Path,
        option(
            "--labeled",
            "tile store whose labelled tiles teach; or a COCO file, a folder or CSV of images",
            metavar="STORE",
        ),
    ],
    out: options.Out,
    unlabeled: Annotated[
        Path | None, option("--unlabeled", "the same without labels, for semi-supervised methods", metavar="STORE")
    ] = None,
    recipe: options.Recipe = None,
    set_: options.Set = None,
    init: Annotated[
        str | None,
        option(
            "--init", "start from ImageNet weights (`imagenet`), or from a bundle or state dict", metavar="NAME|PATH"
        ),
    ] = None,
    label_fraction: Annotated[
        str | None,
        option("--label-fraction", "use this share of the labelled tiles, e.g. 1/8", metavar="N/M", shown="all"),
    ] = None,
    label_unit: Annotated[
        LabelUnit | None,
        option("--label-unit", "what the share counts: tiles, or patients with all their tiles", shown="tile"),
    ] = None,
    label_class: Annotated[
        str | None,
        option("--label-class", "class of what masks and label maps mark; several by commas", metavar="NAME"),
    ] = None,
    gpus: Annotated[
        int | None,
        option(
            "--gpus",
            "processes that share each batch, one a GPU; with --device cpu they run on the CPU",
            panel=options.RUN,
            metavar="N",
            min=1,
            shown="1",
        ),
    ] = None,
    device: options.Device = "auto",
    workers: options.Workers = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train a model by one of the methods; the run folder is itself a model bundle that `infer --model` takes."""
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.steps.train import train

        result = train(
            method,
            labeled,
            unlabeled,
            out,
            recipe=recipe,
            overrides=set_ or [],
            device=device,
            seed=seed,
            init=init,
            label_fraction=label_fraction,
            label_unit=label_unit and label_unit.value,
            workers=workers,
            label_class=label_class,
            gpus=gpus,
            overwrite=overwrite,
            on_progress=io.progress,
            say=io.say,
        )
        if result is None:  # one of several processes, and not the one that writes
            return
        measures = table(("validation", "value"), sorted(result.metrics.items()))
        best = f"the {result.network} network after {result.iteration} iterations validated best"
        report = f"model written to {out}; look at {out / 'report.html'}"
        io.result([*measures, best, report, f"next: cytopipe infer SLIDES --model {out} --out results"], result)
