"""`cytopipe synth`: synthetic slides with their exact truth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytopipe.cli import options
from cytopipe.cli.console import Session, table


def command(
    out: options.Out = Path("synth"),
    slides: Annotated[
        int, typer.Option("--slides", min=1, metavar="N", help="how many slides to write", rich_help_panel=options.WORK)
    ] = 1,
    size: Annotated[
        tuple[int, int],
        typer.Option(
            "--size", metavar="W H", help="width and height of a slide, in px at --mpp", rich_help_panel=options.WORK
        ),
    ] = (8192, 8192),
    mpp: Annotated[float, options.mpp_option(True)] = 0.25,
    cells_per_mm2: Annotated[
        float,
        typer.Option("--cells-per-mm2", min=0, metavar="N", help="mean density of cells", rich_help_panel=options.WORK),
    ] = 300.0,
    lesion_fraction: Annotated[
        float,
        typer.Option(
            "--lesion-fraction",
            min=0,
            max=1,
            metavar="F",
            help="share of abnormal cells, 0 to 1",
            rich_help_panel=options.WORK,
        ),
    ] = 0.06,
    setting: Annotated[
        str,
        typer.Option(
            "--setting",
            metavar="NAME",
            help="light, dark, pale, thick, bloody, badly-lit or marks (pen, edges, cover glass)",
            rich_help_panel=options.WORK,
        ),
    ] = "light",
    seed: options.Seed = 0,
    workers: options.Workers = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write synthetic Pap-like slides and the outline and class of every cell on them."""
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.steps.synth import synth

        result = synth(
            out,
            slides=slides,
            size=size,
            mpp=mpp,
            cells_per_mm2=cells_per_mm2,
            lesion_fraction=lesion_fraction,
            setting=setting,
            seed=seed,
            workers=workers,
            overwrite=overwrite,
            on_progress=io.progress,
            say=io.say,
        )
        header = ("slide", "patient", "nuclei", "cells")
        rows = [
            (s.slide_id, s.patient, s.nuclei, ", ".join(f"{name} {count}" for name, count in s.cells.items()) or "-")
            for s in result.slides
        ]
        closing = [f"written to {out}", f"next: cytopipe tile {result.slide_list} --out tiles"]
        io.result([*table(header, rows), *closing], result)
