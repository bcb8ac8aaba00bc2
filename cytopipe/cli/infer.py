"""`cytopipe infer`: find the objects of slides."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytopipe.cli import options
from cytopipe.cli.console import Session, duration, table
from cytopipe.cli.options import RUN, option

if TYPE_CHECKING:
    from cytopipe.steps.infer import InferredSlide


class Frame(StrEnum):
    """Frames of GeoJSON files."""

    bounds = "bounds"
    slide = "slide"


class Tta(StrEnum):
    """Orientations in which each window is looked at."""

    off = "off"
    flips = "flips"
    turns = "turns"
    all = "all"


class Stain(StrEnum):
    """What is done to a slide's colours."""

    off = "off"
    normalise = "normalise"


def _batch(text: str) -> int:
    """Windows a forward pass; 0 stands for auto."""
    if text == "auto":
        return 0
    if not text.isdecimal() or not 1 <= int(text) <= 1024:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number from 1 to 1024")
    return int(text)


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
    roi: Annotated[
        str | None,
        option("--roi", "only objects in regions outlined with this class", metavar="CLASS", shown="off"),
    ] = None,
    annotations: Annotated[
        Path | None,
        option(
            "--annotations", "folder of files named after slides, or one file, with the regions", metavar="DIR|FILE"
        ),
    ] = None,
    write: Annotated[
        str,
        option(
            "--write", "files, with commas between: parquet, geojson, coco, zarr, csv; prob (semantic)", metavar="LIST"
        ),
    ] = "parquet,geojson",
    frame: Annotated[Frame, option("--frame", "frame of GeoJSON, read and written: bounds is QuPath's")] = Frame.bounds,
    geojson_gz: Annotated[bool, option("--geojson-gz", "GeoJSON as objects.geojson.gz")] = False,
    split_mb: Annotated[
        float | None,
        option("--split-mb", "GeoJSON in files of at most so many MB", metavar="MB", min=1, shown="one file"),
    ] = None,
    tta: Annotated[
        Tta,
        option("--tta", "look at each window flipped (4 x as long), in quarter turns (4 x), or all of them (8 x)"),
    ] = Tta.off,
    stain: Annotated[
        Stain, option("--stain", "normalise: bring colours to those that the model was trained on")
    ] = Stain.off,
    mpp_override: options.MppOverride = None,
    reader: options.Reader = "auto",
    icc: options.Icc = options.IccChoice.off,
    z: options.Z = None,
    channels: options.Channels = None,
    background: options.Background = options.BackgroundChoice.auto,
    device: options.Device = "auto",
    batch_size: Annotated[
        int, option("--batch-size", "windows a forward pass", panel=RUN, metavar="auto|N", parser=_batch)
    ] = "auto",  # type: ignore[assignment]  # the parser makes a number of it
    workers: options.Workers = None,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Find the cells of slides: objects as Parquet and QuPath GeoJSON, and a page to look at, a folder a slide."""
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.formats.results import WriteOptions
        from cytopipe.slides import showing_of
        from cytopipe.steps.infer import infer, parse_write

        result = infer(
            slides,
            out,
            model=model,
            device=device,
            score_threshold=score_threshold,
            foreground=foreground,
            roi=roi,
            annotations=annotations,
            write=parse_write(write),
            options=WriteOptions(frame=frame.value, geojson_gz=geojson_gz, split_mb=split_mb),
            batch_size=batch_size or None,
            tta=tta.value,
            stain=stain.value,
            workers=workers,
            reader=reader,
            mpp_override=mpp_override,
            showing=showing_of(icc.value, z, channels),
            background=background.value,
            overwrite=overwrite,
            on_progress=io.progress,
            say=io.say,
        )
        header = ("slide", "status", "objects", "classes", "time")
        rows = [(r.slide_id, r.status, r.objects, _found(r), duration(r.seconds)) for r in result.rows]
        pages = [f"look at {Path(r.folder) / 'report.html'}" for r in result.rows if not r.error][:1]
        if len(result.rows) > 1:
            pages = [f"look at {out / 'index.html'}"]
        io.result([*table(header, rows), f"written to {out}", *pages], result)
        io.failures([(r.slide_id, r.error) for r in result.rows if r.error], total=len(result.rows))


def _found(row: InferredSlide) -> str:
    """Objects by class, or what area each class has."""
    counts = [f"{name} {count}" for name, count in row.classes.items() if count]
    areas = [f"{name} {area:.3g} mm²" for name, area in row.areas_mm2.items() if area]
    return ", ".join(counts or areas) or "-"
