"""`cytopipe demo`: the whole way on a made-up slide, without any data of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cytopipe.cli import options
from cytopipe.cli.console import Session
from cytopipe.cli.options import option


def command(
    out: options.Out = Path("demo"),
    full: Annotated[bool, option("--full", "also train: supervised, mine, semi-supervised, compare (minutes)")] = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Make a synthetic slide, find its cells, count against the truth, and write pages to look at."""
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.steps.demo import demo

        result = demo(
            out, full=full, seed=seed, device=device, overwrite=overwrite, on_progress=io.progress, say=io.say
        )
        io.result(result.lines, result.document)
