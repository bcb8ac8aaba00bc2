"""`cytopipe evaluate`: measure located objects against annotations."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytopipe.cli import options
from cytopipe.cli.console import Session, table
from cytopipe.cli.options import option

if TYPE_CHECKING:
    from cytopipe.evaluate import Row

HEADER = ("", "true", "AP50", "AP", "AP10-70", "found", "missed", "doubled", "false", "sensitivity", "precision")


class Frame(StrEnum):
    """Frames of GeoJSON files."""

    bounds = "bounds"
    slide = "slide"


def command(
    results: Annotated[
        Path,
        typer.Argument(metavar="RESULTS", show_default=False, help="results of one or several slides, or a GeoJSON"),
    ],
    truth: Annotated[
        Path,
        typer.Argument(
            metavar="TRUTH",
            show_default=False,
            help="a GeoJSON, a folder of SLIDE_ID.geojson, or a labelled tile store",
        ),
    ],
    out: Annotated[
        Path | None, option("--out", "folder to write", metavar="DIR", shown="`evaluation` in RESULTS")
    ] = None,
    iou: Annotated[
        float, option("--iou", "box overlap at which a cell counts as found", metavar="IOU", min=0, max=1)
    ] = 0.5,
    score_threshold: Annotated[
        float, option("--score-threshold", "leave out objects below this score", metavar="S", min=0, max=1)
    ] = 0.0,
    roi: Annotated[
        str | None,
        option(
            "--roi", "class of the annotations that say what was annotated", metavar="CLASS", shown="the whole slide"
        ),
    ] = None,
    split: Annotated[
        str | None,
        option(
            "--split", "part of a tile store that counts", metavar="PART", shown="test where there is one, else all"
        ),
    ] = None,
    frame: Annotated[Frame, option("--frame", "frame of GeoJSON files: bounds is QuPath's")] = Frame.bounds,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare located objects with annotations: average precision, and cells found, missed, doubled, false."""
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.steps.evaluate import FILE_NAME, evaluate

        result = evaluate(
            results,
            truth,
            out=out,
            iou=iou,
            score_threshold=score_threshold,
            frame=frame.value,
            roi=roi,
            split=split,
            overwrite=overwrite,
            on_progress=io.progress,
            say=io.say,
        )
        tables = result.evaluation
        means = {"AP50": tables.map50, "AP": tables.map, "AP10-70": tables.map10_70}
        mean = ", ".join(f"{name} {_percent(share)}" for name, share in means.items())
        io.result(
            [
                *table(HEADER, [_cells(row) for row in tables.classes]),
                "",
                *table(HEADER, [_cells(row) for row in tables.kinds]),
                "",
                f"mean over classes: {mean}; shares are in percent",
                f"written to {result.out / FILE_NAME}",
            ],
            result,
        )
        io.failures(result.failed, total=len(tables.slides) + len(result.failed))


def _cells(row: Row) -> tuple[object, ...]:
    ap = (_percent(row.ap50), _percent(row.ap), _percent(row.ap10_70))
    counts = (row.found, row.missed, row.doubled, row.false)
    return (row.name, row.truths, *ap, *counts, _percent(row.sensitivity), _percent(row.precision))


def _percent(share: float) -> str:
    return f"{100 * share:.1f}" if share == share else "-"  # NaN is undefined, not zero
