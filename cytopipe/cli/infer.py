"""`cytopipe infer`: find the objects of slides."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cytopipe.cli import options
from cytopipe.cli.console import Session, duration, table
from cytopipe.cli.options import option


def command(
    slides: options.Slides,
    out: options.Out = Path("results"),
    model: options.Model = None,
    score_threshold: Annotated[
        float | None,
        option(
            "--score-threshold", "leave out objects below this score", metavar="S", min=0, max=1, shown="the model's"
        ),
    ] = None,
    foreground: Annotated[bool, option("--foreground/--no-foreground", "skip windows of bare glass")] = True,
    mpp_override: options.MppOverride = None,
    reader: options.Reader = "auto",
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Find the cells of slides: objects as Parquet and QuPath GeoJSON, and a page to look at, a folder a slide."""
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.steps.infer import infer

        result = infer(
            slides,
            out,
            model=model,
            device=device,
            score_threshold=score_threshold,
            foreground=foreground,
            reader=reader,
            mpp_override=mpp_override,
            overwrite=overwrite,
            on_progress=io.progress,
            say=io.say,
        )
        header = ("slide", "status", "objects", "classes", "time")
        rows = [(r.slide_id, r.status, r.objects, _counts(r.classes), duration(r.seconds)) for r in result.rows]
        pages = [f"look at {Path(r.folder) / 'report.html'}" for r in result.rows if not r.error][:1]
        io.result([*table(header, rows), f"written to {out}", *pages], result)
        io.failures([(r.slide_id, r.error) for r in result.rows if r.error], total=len(result.rows))


def _counts(classes: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in classes.items() if count) or "-"
