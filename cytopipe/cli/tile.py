"""`cytopipe tile`: slides into a tile store."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from cytopipe.cli import options
from cytopipe.cli.console import Session, table
from cytopipe.cli.options import option


class Codec(StrEnum):
    """Codecs of the images."""

    jpeg = "jpeg"
    png = "png"
    zarr = "zarr"


class Edge(StrEnum):
    """What becomes of the last row and column."""

    shift = "shift"
    pad = "pad"


class Frame(StrEnum):
    """Frames of annotations."""

    bounds = "bounds"
    slide = "slide"


class Stratify(StrEnum):
    """Columns of the slide list that name strata."""

    stratum = "stratum"
    diagnosis = "diagnosis"
    none = "none"


PLACES, OBJECTS = "Which tiles", "Annotations"  # panels of --help

Roi = Annotated[
    str | None,
    option(
        "--roi", "only tiles that meet a region outlined with this class", panel=PLACES, metavar="CLASS", shown="off"
    ),
]
Random = Annotated[
    int | None,
    option(
        "--random",
        "no grid: so many windows of each slide, drawn over its foreground",
        panel=PLACES,
        metavar="N",
        min=1,
        shown="off",
    ),
]
AroundObjects = Annotated[
    bool, option("--around-objects", "no grid: a window around each annotated object", panel=PLACES)
]
Foreground = Annotated[bool, option("--foreground/--no-foreground", "drop tiles of bare glass", panel=PLACES)]
MinForeground = Annotated[
    float | None,
    option(
        "--min-foreground",
        "least share of foreground in a tile",
        panel=PLACES,
        metavar="F",
        min=0,
        max=1,
        shown="any",
    ),
]
Measure = Annotated[
    bool,
    option(
        "--measure/--no-measure",
        "record the sharpness and glass of each tile; without, tiles that can be copied are not even decoded",
        panel=PLACES,
    ),
]
MinSharpness = Annotated[
    float | None,
    option(
        "--min-sharpness", "drop tiles of smaller sharpness, as recorded", panel=PLACES, metavar="S", min=0, shown="off"
    ),
]
Annotations = Annotated[
    Path | None,
    option(
        "--annotations",
        "folder of files named after slides (GeoJSON, COCO, XML, CSV), or one file",
        panel=OBJECTS,
        metavar="DIR|FILE",
    ),
]
GivenFrame = Annotated[Frame, option("--frame", "frame of GeoJSON annotations: bounds is QuPath's", panel=OBJECTS)]
ClassMap = Annotated[
    list[str] | None,
    option("--class-map", "rename a class; may be given often", panel=OBJECTS, metavar="FROM=TO"),
]
Ignore = Annotated[
    list[str] | None, option("--ignore", "leave a class out; may be given often", panel=OBJECTS, metavar="CLASS")
]
LabelClass = Annotated[
    str | None,
    option("--label-class", "class of objects whose file names none: label images", panel=OBJECTS, metavar="CLASS"),
]
MinVisible = Annotated[
    float | None,
    option(
        "--min-visible",
        "least share of an object inside a tile",
        panel=OBJECTS,
        metavar="F",
        min=0,
        max=1,
        shown="0.2",
    ),
]
AnnotatedArea = Annotated[
    str | None,
    option(
        "--annotated-area",
        "only tiles wholly inside outlines of this class count as labelled",
        panel=OBJECTS,
        metavar="CLASS",
        shown="the whole slide",
    ),
]


def command(
    ctx: typer.Context,
    slides: options.Slides,
    out: options.Out,
    annotations: Annotations = None,
    recipe: options.Recipe = None,
    set_: options.Set = None,
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
    stratify: Annotated[
        Stratify, option("--stratify", "column of the slide list whose strata --split divides alike")
    ] = Stratify.stratum,
    codec: Annotated[Codec | None, option("--codec", "codec of the images", shown="jpeg")] = None,
    quality: Annotated[int | None, option("--quality", "JPEG quality", metavar="Q", min=1, max=100, shown="90")] = None,
    roi: Roi = None,
    random: Random = None,
    around_objects: AroundObjects = False,
    foreground: Foreground = True,
    min_foreground: MinForeground = None,
    min_sharpness: MinSharpness = None,
    measure: Measure = True,
    frame: GivenFrame = Frame.bounds,
    class_map: ClassMap = None,
    ignore: Ignore = None,
    label_class: LabelClass = None,
    min_visible: MinVisible = None,
    annotated_area: AnnotatedArea = None,
    mpp_override: options.MppOverride = None,
    reader: options.Reader = "auto",
    background: options.Background = options.BackgroundChoice.auto,
    icc: options.Icc = options.IccChoice.off,
    z: options.Z = None,
    channels: options.Channels = None,
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
        from cytopipe.formats.read import parse_class_map
        from cytopipe.slides import showing_of
        from cytopipe.steps.tile import tile
        from cytopipe.tiles import tile_config

        if native and mpp is not None:
            raise UserError("--native and --mpp exclude each other", fix="give one of them")
        given: dict[str, Any] = {
            "tile_px": tile_px,
            "mpp": mpp,
            "overlap_px": overlap_px,
            "edge": edge and edge.value,
            "roi": roi,
            "random": random,
            "around_objects": around_objects,
            "background": background.value,
            "min_foreground": min_foreground,
            "foreground": foreground,
            "min_sharpness": min_sharpness,
            "measure": measure,
            "min_visible": min_visible,
            "class_map": parse_class_map(class_map or ()),
            "ignore": ignore or (),
            "label_class": label_class,
            "annotated_area": annotated_area,
            "codec": codec and codec.value,
            "quality": quality,
        }
        recipe_hash = None
        if recipe is not None or set_:
            from cytopipe.recipes.load import load_recipe

            flags = {key: value for key, value in {**given, "split": split}.items() if _is_given(ctx, key)}
            resolved = load_recipe(recipe, set_ or (), {f"tile.{key}": value for key, value in flags.items()})
            recipe_hash, section = resolved.as_json()["hash"], resolved.recipe.tile.model_dump()
            split = section.pop("split")
            config = tile_config(section)
        else:
            config = tile_config(given)
        result = tile(
            slides,
            out,
            config=config.model_copy(update={"mpp": None}) if native else config,
            annotations=annotations,
            split=split,
            stratify=stratify.value,
            frame=frame.value,
            mpp_override=mpp_override,
            reader=reader,
            showing=showing_of(icc.value, z, channels),
            force=force,
            workers=workers,
            seed=seed,
            overwrite=overwrite,
            recipe_hash=recipe_hash,
            on_progress=io.progress,
            say=io.say,
        )
        io.result([*_table(result.slides), *_summary(result)], {**_totals(result), "slides": result.slides})
        io.failures(result.failed, total=len(result.slides))


def _is_given(ctx: typer.Context, name: str) -> bool:
    """Whether the flag stands on the command line: a default must not go before the recipe."""
    source = ctx.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


ALWAYS = {"tiles": "tiles_kept", "glass": "tiles_glass"}
WHERE_ANY = {
    "outside": "tiles_outside_roi",
    "blurred": "tiles_blurred",
    "unreadable": "tiles_unreadable",
    "objects": "objects_annotated",
    "unseen": "objects_unseen",
    "mended": "objects_mended",
    "refused": "objects_refused",
    "ignored": "objects_ignored",
}
"""Columns of the table -> fields of a slide's row; the second kind are shown where any slide has one."""


def _table(slides: Any) -> list[str]:
    """A row a slide: how it went, and what was kept and left out of it, by reason."""
    counts = ALWAYS | {name: field for name, field in WHERE_ANY.items() if any(getattr(row, field) for row in slides)}
    rows = [
        (row.slide_id, _state(row), row.split, *(getattr(row, field) for field in counts.values())) for row in slides
    ]
    return table(("slide", "state", "split", *counts), rows)


def _state(row: Any) -> str:
    if row.error is None:
        return "done"
    return "in part" if row.tiles_kept else "failed"


def _totals(result: Any) -> dict[str, Any]:
    return {
        "store": result.store,
        "page": result.page,
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
    copied = sum(r.tiles_copied for r in result.slides)
    if copied:
        lines.append(f"{copied} tiles are the slides' own compressed tiles, copied as they are")
    if any(r.objects_mended or r.objects_refused for r in result.slides):
        lines.append(f"annotated objects that were mended or refused: {result.store / 'problems.csv'}")
    if result.resumed:
        lines.append(f"{result.resumed} slides were finished by an earlier run")
    lines.append(f"written to {result.store}; look at {result.page}")
    if any(r.annotations_sha256 for r in result.slides):
        lines.append(f"next: cytopipe train --method supervised --labeled {result.store} --out run")
    return lines
