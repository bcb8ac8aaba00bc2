"""`info`: what cytopipe knows of one slide before it works on it: size, levels, resolution and its evidence,
foreground.

Enters: a path.  Leaves: a `SlideInfo`. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cytopipe.core.progress import Say, unsaid
from cytopipe.slides import Slide, find_foreground, open_slide

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
    """What `info` found. Level-0 µm/px `mpp_x`, `mpp_y` are None where the file says nothing that can be believed."""

    path: Path
    reader: str
    vendor: str
    width: int
    height: int
    mpp_x: float | None
    mpp_y: float | None
    mpp_evidence: str
    is_mpp_guessed: bool
    levels: tuple[LevelInfo, ...]
    background: str
    foreground_fraction: float
    glass: tuple[float, float, float]
    unreadable_fraction: float
    bounds_offset: tuple[int, int]
    has_icc: bool
    properties: Mapping[str, str]
    notes: tuple[str, ...]


def info(path: Path | str, *, reader: str = "auto", mpp_override: float | None = None, say: Say = unsaid) -> SlideInfo:
    """Open a slide and look at it once. Raises UserError for a file that no reader opens, RunError where none of its
    pixels can be decoded."""
    with open_slide(path, reader=reader, mpp_override=mpp_override) as slide:
        say(f"{slide.path.name}: looking for foreground on {slide.dimensions[0]} x {slide.dimensions[1]} px")
        return _looked_at(slide)


def _looked_at(slide: Slide) -> SlideInfo:
    foreground = find_foreground(slide)
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
        levels=levels,
        background=slide.background,
        foreground_fraction=foreground.kept_fraction,
        glass=foreground.glass,
        unreadable_fraction=foreground.unreadable_fraction,
        bounds_offset=slide.bounds_offset,
        has_icc=slide.icc is not None,
        properties=dict(slide.properties),
        notes=slide.notes,
    )
