"""`cytopipe info`: what is in a slide file, and what can be believed of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cytopipe.cli import options
from cytopipe.cli.console import Session, table

if TYPE_CHECKING:
    from cytopipe.steps.info import SlideInfo


def command(
    slide: Annotated[Path, typer.Argument(metavar="SLIDE", show_default=False, help="a slide file")],
    reader: options.Reader = "auto",
    icc: options.Icc = options.IccChoice.off,
    z: options.Z = None,
    channels: options.Channels = None,
    background: options.Background = options.BackgroundChoice.auto,
    mpp_override: options.MppOverride = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Show a slide's size, levels, resolution with its evidence, background and how much of it is foreground."""
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.slides import showing_of
        from cytopipe.steps.info import info

        found = info(
            slide,
            reader=reader,
            mpp_override=mpp_override,
            showing=showing_of(icc.value, z, channels),
            background=background.value,
            say=io.say,
        )
        io.result(_lines(found), found)


def _lines(found: SlideInfo) -> list[str]:
    size = f"{found.width} x {found.height} px"
    resolution = "none in the file; give --mpp-override, or a column mpp in the slide list"
    if found.mpp_x is not None and found.mpp_y is not None:
        size += f", {found.width * found.mpp_x / 1000:.2f} x {found.height * found.mpp_y / 1000:.2f} mm"
        sides = f"{found.mpp_x:.4g}" if found.mpp_x == found.mpp_y else f"{found.mpp_x:.5g} x {found.mpp_y:.5g}"
        resolution = f"{sides} µm/px, {'guessed ' if found.is_mpp_guessed else ''}from {found.mpp_evidence}"
    glass = " ".join(f"{value:.0f}" for value in found.glass)
    facts = [
        ("slide", found.path),
        ("reader", f"{found.reader} ({found.vendor})"),
        ("size", size),
        ("resolution", resolution),
        ("background", f"{found.background}, empty level {glass}"),
        ("foreground", f"{found.foreground_fraction:.0%}"),
        ("ICC profile", f"yes, {'applied' if found.icc == 'srgb' else 'not applied'}" if found.has_icc else "no"),
    ]
    if found.objective is not None:
        facts.insert(4, ("objective", f"{found.objective:g}x"))
    if found.z_count > 1:
        shown = f"the middle one, {found.z_count // 2}" if found.z == "best" else str(found.z)
        facts.append(("planes", f"{found.z_count}, from 0; looked at {shown}; --z chooses"))
    if found.channels:
        names = ", ".join(
            name if name == str(number) else f"{number} {name}" for number, name in enumerate(found.channels)
        )
        facts.append(("channels", f"{names}; --channels chooses"))
    if found.unreadable_fraction:
        facts.append(("unreadable", f"{found.unreadable_fraction:.2%} of the slide cannot be decoded"))
    if found.bounds_offset != (0, 0):
        facts.append(("bounds", f"begin at {found.bounds_offset[0]} {found.bounds_offset[1]} px"))
    facts += [("note", note) for note in found.notes]
    tiles = [f"{level.tile_px[0]} x {level.tile_px[1]}" if level.tile_px else None for level in found.levels]
    rows = [
        (index, level.width, level.height, level.downsample, level.mpp, tile)
        for index, (level, tile) in enumerate(zip(found.levels, tiles, strict=True))
    ]
    return [*table(("", ""), facts)[1:], "", *table(("level", "width", "height", "downsample", "µm/px", "tile"), rows)]
