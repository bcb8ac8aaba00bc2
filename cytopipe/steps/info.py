"""`info`: what cytopipe knows of one slide before it works on it: size, levels, resolution and its evidence,
foreground.

Enters: a path.  Leaves: a `SlideInfo`. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cytopipe.core.progress import Say, unsaid
from cytopipe.slides import AS_STORED, Showing, Slide, find_foreground, open_slide
from cytopipe.slides.showing import ANY_CHANNELS

NO_RESOLUTION = "none in the file"


@dataclass(frozen=True, slots=True)
class LevelInfo:
    """One level: its size in its own px, level-0 px per px of it, µm/px (None where unknown), native tile (w, h) or
    None."""

    width: int
    height: int
    downsample: float
    mpp: float | None
    tile_px: tuple[int, int] | None


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """What `info` found. Level-0 µm/px `mpp_x`, `mpp_y` are None where the file says nothing that can be believed.

    icc       what was done with the profile, where there is one
    z_count   planes of focus; `z` the one looked at, "best" for the middle one
    channels  names where there are several to choose from
    """

    path: Path
    reader: str
    vendor: str
    width: int
    height: int
    mpp_x: float | None
    mpp_y: float | None
    mpp_evidence: str
    is_mpp_guessed: bool
    objective: float | None
    levels: tuple[LevelInfo, ...]
    background: str
    foreground_fraction: float
    glass: tuple[float, float, float]
    unreadable_fraction: float
    bounds_offset: tuple[int, int]
    has_icc: bool
    icc: Literal["off", "srgb"]
    z_count: int
    z: int | Literal["best"]
    channels: tuple[str, ...]
    properties: Mapping[str, str]
    notes: tuple[str, ...]


def info(
    path: Path | str,
    *,
    reader: str = "auto",
    mpp_override: float | None = None,
    showing: Showing = AS_STORED,
    background: Literal["auto", "light", "dark"] = "auto",
    say: Say = unsaid,
) -> SlideInfo:
    """Open a slide and look at it once: a stack at its middle plane and first channel, unless `showing` says else.

    Raises UserError for a file that no reader opens, RunError where none of its pixels can be decoded.
    """
    look = replace(
        showing,
        z="best" if showing.z is None else showing.z,
        channels=ANY_CHANNELS if showing.channels is None else showing.channels,
    )
    with open_slide(path, reader=reader, mpp_override=mpp_override, showing=look) as slide:
        say(f"{slide.path.name}: looking for foreground on {slide.dimensions[0]} x {slide.dimensions[1]} px")
        return _looked_at(slide, slide.background if background == "auto" else background)


def _looked_at(slide: Slide, background: Literal["light", "dark"]) -> SlideInfo:
    foreground = find_foreground(slide, background)
    resolution = slide.resolution
    levels = tuple(
        LevelInfo(
            level.width,
            level.height,
            level.downsample,
            None if resolution is None else resolution.mpp * level.downsample,
            slide.native_tiles(index),
        )
        for index, level in enumerate(slide.levels)
    )
    return SlideInfo(
        path=slide.path,
        reader=slide.reader,
        vendor=slide.vendor,
        width=slide.dimensions[0],
        height=slide.dimensions[1],
        mpp_x=None if resolution is None else resolution.mpp_x,
        mpp_y=None if resolution is None else resolution.mpp_y,
        mpp_evidence=NO_RESOLUTION if resolution is None else resolution.source,
        is_mpp_guessed=resolution is not None and resolution.guessed,
        objective=slide.objective,
        levels=levels,
        background=background,
        foreground_fraction=foreground.kept_fraction,
        glass=foreground.glass,
        unreadable_fraction=foreground.unreadable_fraction,
        bounds_offset=slide.bounds_offset,
        has_icc=slide.icc is not None,
        icc=slide.showing.icc,
        z_count=slide.z_count,
        z=slide.z,
        channels=slide.channels,
        properties=dict(slide.properties),
        notes=slide.notes,
    )
