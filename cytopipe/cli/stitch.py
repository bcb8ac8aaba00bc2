"""`cytopipe stitch`: one results folder from what another detector reports on overlapping windows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cytopipe.cli import options
from cytopipe.cli.console import Session, table
from cytopipe.cli.options import option


def command(
    predictions: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTIONS",
            show_default=False,
            help="COCO results JSON, or Parquet with window_id, class, score, x0, y0, x1, y1, in px of the windows",
        ),
    ],
    windows: Annotated[
        Path,
        option(
            "--windows",
            "a tile store, or CSV or Parquet with window_id, x0, y0, x1, y1 in level-0 px",
            metavar="STORE|FILE",
            shown=False,
        ),
    ],
    out: options.Out = Path("results"),
    slide_size: Annotated[
        tuple[int, int] | None,
        option("--slide-size", "size of the slide in level-0 px", metavar="W H", min=1, shown="the store's"),
    ] = None,
    tile_px: Annotated[
        int | None,
        option(
            "--tile-px",
            "side of a tile, in px at --mpp; here of a window, in px of the predictions",
            metavar="PX",
            min=1,
            shown="the store's; else window px are level-0 px",
        ),
    ] = None,
    classes: Annotated[
        Path | None,
        option("--classes", "JSON with the names of the categories, or COCO file", metavar="FILE", shown="numbers"),
    ] = None,
    slides: Annotated[
        list[str] | None,
        option("--slides", "the slides, for pictures, size and resolution; may be given often", metavar="SLIDES"),
    ] = None,
    guard_px: Annotated[
        int,
        option("--guard-px", "band in a window in which cells may be cut, in px of it", metavar="PX", min=2),
    ] = 8,
    iou: Annotated[
        float,
        option("--iou", "overlap from which cells of two windows may be one", metavar="IOU", min=0.01, max=1),
    ] = 0.5,
    mpp_override: options.MppOverride = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Stitch another detector's results: each cell once, in level-0 px, as Parquet, GeoJSON and a page to look at."""
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.steps.stitch import stitch

        result = stitch(
            predictions,
            windows,
            out,
            slide_size=slide_size,
            tile_px=tile_px,
            classes=classes,
            slides=slides or (),
            guard_px=guard_px,
            iou=iou,
            mpp_override=mpp_override,
            overwrite=overwrite,
            on_progress=io.progress,
            say=io.say,
        )
        header = ("slide", "status", "windows", "detections", "objects", "joined", "truncated")
        rows = [(r.slide_id, r.status, r.windows, r.detections, r.objects, r.joined, r.truncated) for r in result.rows]
        io.result([*table(header, rows), f"written to {out}"], result)
