"""`cytopipe tile`: slides into a tile store."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from cytopipe.cli import options
from cytopipe.cli.console import Session, table
from cytopipe.cli.options import option


class Codec(StrEnum):
    """Codecs of the images."""

    jpeg = "jpeg"
    png = "png"


class Edge(StrEnum):
    """What becomes of the last row and column."""

    shift = "shift"
    pad = "pad"


class Frame(StrEnum):
    """Frames of annotations."""

    bounds = "bounds"
    slide = "slide"


def command(
    slides: options.Slides,
    out: options.Out,
    annotations: Annotated[
        Path | None,
        option(
            "--annotations", "QuPath GeoJSON: a folder of SLIDE_ID.geojson, or one slide's file", metavar="DIR|FILE"
        ),
    ] = None,
    tile_px: options.TilePx = None,
    mpp: options.Mpp = None,
    native: Annotated[bool, option("--native", "cut level 0 as it is, whatever its resolution")] = False,
    overlap_px: options.OverlapPx = None,
    edge: Annotated[
        Edge | None, option("--edge", "last row and column: shift inwards, or pad with background", shown="shift")
    ] = None,
    split: Annotated[
        str | None, option("--split", "split patients into train:val:test, for example 7:1:2", metavar="RATIO")
    ] = None,
    foreground: Annotated[bool, option("--foreground/--no-foreground", "drop tiles of bare glass")] = True,
    min_foreground: Annotated[
        float | None,
        option("--min-foreground", "least share of foreground in a tile", metavar="F", min=0, max=1, shown="0.0005"),
    ] = None,
    min_visible: Annotated[
        float | None,
        option("--min-visible", "least share of an object inside a tile", metavar="F", min=0, max=1, shown="0.2"),
    ] = None,
    codec: Annotated[Codec | None, option("--codec", "codec of the images", shown="jpeg")] = None,
    frame: Annotated[Frame, option("--frame", "frame of the annotations: bounds is QuPath's")] = Frame.bounds,
    mpp_override: options.MppOverride = None,
    reader: options.Reader = "auto",
    force: options.Force = False,
    workers: options.Workers = None,
    seed: options.Seed = 0,
    overwrite: options.Overwrite = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Cut slides into a store of tiles, with their annotations, split by patients."""
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.core.errors import UserError
        from cytopipe.steps.tile import tile
        from cytopipe.tiles import tile_config

        if native and mpp is not None:
            raise UserError("--native and --mpp exclude each other", fix="give one of them")
        given: dict[str, Any] = {
            "tile_px": tile_px,
            "mpp": mpp,
            "overlap_px": overlap_px,
            "edge": edge and edge.value,
            "foreground": foreground,
            "min_foreground": min_foreground,
            "min_visible": min_visible,
            "codec": codec and codec.value,
        }
        config = tile_config(given)
        result = tile(
            slides,
            out,
            config=config.model_copy(update={"mpp": None}) if native else config,
            annotations=annotations,
            split=split,
            frame=frame.value,
            mpp_override=mpp_override,
            reader=reader,
            force=force,
            workers=workers,
            seed=seed,
            overwrite=overwrite,
            on_progress=io.progress,
            say=io.say,
        )
        header = ("slide", "split", "tiles", "glass", "unreadable", "objects", "unseen")
        rows = [
            (
                r.slide_id,
                r.split,
                r.tiles_kept,
                r.tiles_glass,
                r.tiles_unreadable,
                r.objects_annotated,
                r.objects_unseen,
            )
            for r in result.slides
        ]
        io.result([*table(header, rows), *_summary(result)], {**_totals(result), "slides": result.slides})
        io.failures(result.failed, total=len(result.slides))


def _totals(result: Any) -> dict[str, Any]:
    return {
        "store": result.store,
        "tiles": sum(result.tiles_by_split.values()),
        "tiles_by_split": result.tiles_by_split,
        "classes": result.classes,
        "resumed": result.resumed,
    }


def _summary(result: Any) -> list[str]:
    by_split = ", ".join(f"{part} {tiles}" for part, tiles in result.tiles_by_split.items()) or "none"
    lines = [f"tiles by split: {by_split}"]
    if result.classes:
        lines.append(f"classes: {', '.join(result.classes)}")
    for_objects = sum(r.tiles_kept_for_objects for r in result.slides)
    if for_objects:
        lines.append(f"{for_objects} tiles below --min-foreground were kept, since annotated objects lie on them")
    if result.resumed:
        lines.append(f"{result.resumed} slides were finished by an earlier run")
    lines.append(f"written to {result.store}; look at {result.store / 'overviews'}")
    if any(r.annotations_sha256 for r in result.slides):
        lines.append(f"next: cytopipe train --method supervised --labeled {result.store} --out run")
    return lines
