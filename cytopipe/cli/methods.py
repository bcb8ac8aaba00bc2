"""`cytopipe methods`: what can be trained, and by which paper."""

from __future__ import annotations

from typing import Annotated

import typer

from cytopipe.cli import options
from cytopipe.cli.console import Session, table


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="show this method and its settings")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """List the training methods, or show one with its paper and its settings."""
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.steps.catalogue import list_methods, show_method

        if name is None:
            rows = list_methods()
            header = ("method", "status", "tasks", "unlabelled tiles", "paper")
            lines = table(
                header,
                [(m.name, m.status, " ".join(m.tasks), "yes" if m.uses_unlabelled else "no", m.paper) for m in rows],
            )
            io.result(
                [*lines, "next: cytopipe methods NAME, or cytopipe train --method NAME --labeled STORE --out RUN"], rows
            )
        else:
            method = show_method(name)
            settings = table(
                ("setting", "default", "meaning"), [(s.name, s.default, s.meaning) for s in method.settings]
            )
            io.result([f"{method.name} ({method.status}): {method.paper}", "", *method.text, "", *settings], method)
