"""`cytopipe models`: the model bundles that can be given by name."""

from __future__ import annotations

from typing import Annotated

import typer

from cytopipe.cli import options
from cytopipe.cli.console import Session, table


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME|DIR", show_default=False, help="show this model's facts and card")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """List the shipped models, or show one: what it finds, on what it was trained, what it is not for."""
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.steps.catalogue import list_models, show_model

        if name is None:
            rows = list_models()
            lines = table(
                ("model", "task", "µm/px", "MB", "classes"),
                [(m.name, m.task, m.mpp, m.size_mb, ", ".join(m.classes)) for m in rows],
            )
            io.result([*lines, "next: cytopipe models NAME, or cytopipe infer SLIDE --model NAME"], rows)
        else:
            model = show_model(name)
            facts = [
                f"{model.name}: {model.task} at {model.mpp} µm/px",
                f"classes: {', '.join(model.classes)}",
                f"folder: {model.folder}",
                f"sha256: {model.sha256}",
            ]
            io.result([*facts, *(["", *model.card.splitlines()] if model.card else [])], model)
