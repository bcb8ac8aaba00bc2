"""Options that several commands share, each said once: the same name, type, check and sentence everywhere.

Flags say where and which; recipes say how. A default of None means "the recipe's, else the step's own default".
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

WORK, RUN = "What and where", "How it runs and is shown"  # panels of --help


class IccChoice(StrEnum):
    """Whether an embedded colour profile is applied."""

    off = "off"
    srgb = "srgb"


class BackgroundChoice(StrEnum):
    """What stands behind the cells."""

    auto = "auto"
    light = "light"
    dark = "dark"


def option(flag: str, text: str, *, panel: str = WORK, shown: bool | str = True, **checks: Any) -> Any:
    """An option with its sentence; `shown` stands for a default of None; `checks` are typer's (min, max, parser)."""
    return typer.Option(*flag.split(), help=text, rich_help_panel=panel, show_default=shown, **checks)


def _pixels(text: str) -> int:
    """Whole pixels. A value between 0 and 1 was meant as a fraction: cut to 0 px it would give no overlap at all."""
    try:
        value = float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number of pixels") from None
    if 0 < value < 1:
        raise typer.BadParameter(f"{text} looks like a fraction; lengths are in pixels, for example 256")
    if value < 0 or not value.is_integer():
        raise typer.BadParameter(f"{text} is not a whole number of pixels from 0 up")
    return int(value)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a number") from None
    if not 0 < value < float("inf"):
        raise typer.BadParameter(f"{text} is not greater than 0")
    return value


def _device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", text):
        raise typer.BadParameter(f"{text!r} is none of auto, cpu, cuda, cuda:0, mps")
    return text


def mpp_option(default: bool | str) -> Any:
    """`--mpp`, with what stands for its default: commands agree on its meaning, not on its default."""
    return option("--mpp", "resolution to work at, in µm per pixel", metavar="UM", parser=_positive, shown=default)


def tile_px_option(default: bool | str) -> Any:
    """`--tile-px`, with what stands for its default."""
    return option("--tile-px", "side of a tile, in px at --mpp", metavar="PX", parser=_pixels, shown=default)


# What to work on
Slides = Annotated[
    list[str],
    typer.Argument(metavar="SLIDES", show_default=False, help="slides, folders, globs, or a CSV with a column path"),
]
Out = Annotated[Path, option("--out", "folder to write; the same command again resumes there", metavar="DIR")]
Model = Annotated[
    str | None, option("--model", "model bundle, by name or path", metavar="NAME|DIR", shown="the shipped one")
]
Recipe = Annotated[
    str | None, option("--recipe", "a recipe by name (see pipelines/), or a TOML file", metavar="NAME|FILE")
]
Set = Annotated[
    list[str] | None, option("--set", "change one key of the recipe; may be given often", metavar="KEY=VALUE")
]
Overwrite = Annotated[bool, option("--overwrite", "empty the output folder first and start anew")]

# Lengths and resolution
Mpp = Annotated[float | None, mpp_option("0.5")]
TilePx = Annotated[int | None, tile_px_option("1200")]
OverlapPx = Annotated[
    int | None,
    option("--overlap-px", "overlap of neighbours, in px at --mpp", metavar="PX", parser=_pixels, shown="0"),
]

# How slides are read
MppOverride = Annotated[
    float | None,
    option(
        "--mpp-override",
        "the slides' true µm per pixel, where the files lack it or are wrong",
        metavar="UM",
        parser=_positive,
    ),
]
Reader = Annotated[str, option("--reader", "auto (by content), tiff, openslide, zarr or image", metavar="NAME")]
Icc = Annotated[IccChoice, option("--icc", "srgb: apply the slides' ICC colour profile; off: colours as stored")]
Z = Annotated[
    str | None,
    option("--z", "plane of a stack, from 0; or best, the sharpest of each window", metavar="N|best", shown="no stack"),
]
Channels = Annotated[
    str | None,
    option(
        "--channels",
        "channels shown as red,green,blue, by name or number, '-' for none; or one, in grey; NAME@LOW:HIGH sets the "
        "range shown as 0 to 255",
        metavar="R,G,B",
        shown="the file's RGB or grey",
    ),
]
Background = Annotated[
    BackgroundChoice, option("--background", "light (transmitted light) or dark (fluorescence); auto: by its pixels")
]
Force = Annotated[bool, option("--force", "go on where a slide is coarser than half the resolution asked for")]

# The machine
Device = Annotated[str, option("--device", "auto, cpu, cuda, cuda:1 or mps", panel=RUN, metavar="NAME", parser=_device)]
Workers = Annotated[
    int | None,
    option("--workers", "threads that decode and encode", panel=RUN, metavar="N", min=1, shown="the machine's cores"),
]
Seed = Annotated[int, option("--seed", "seed of all that is random", panel=RUN, metavar="N", min=0)]

# Voices
Json = Annotated[bool, option("--json", "print one JSON document on stdout, and nothing else there", panel=RUN)]
Quiet = Annotated[bool, option("--quiet -q", "no progress and no messages; errors remain", panel=RUN)]
Debug = Annotated[bool, option("--debug", "show tracebacks and the log", panel=RUN)]
