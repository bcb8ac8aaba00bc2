"""What goes into a tile store, row by row. Columns and units: the docstring of `store.py`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from shapely.geometry.base import BaseGeometry

from cytopipe.slides import Foreground, Slide

# grid: of a regular grid; random: drawn over the foreground, also by `mine-unlabeled`; object: around an annotated
# object; mined: chosen by a model
Origin = Literal["grid", "random", "object", "mined"]


@dataclass(frozen=True, slots=True, eq=False)
class TileRow:
    """A tile with its encoded image; slide, patient, split and path are added by the writer.

    x, y         corner in px of the tile's own resolution; they name the tile
    x0 y0 x1 y1  its box in level-0 px of the slide
    image        from `encode_image`, or the bytes that a slide's file holds
    z            plane of a stack that the image shows, from 0; null: the slide has one plane
    copied       the image is the slide's own compressed tile
    """

    x: int
    y: int
    x0: float
    y0: float
    x1: float
    y1: float
    mpp: float | None
    foreground: float | None
    sharpness: float | None
    glass: float | None
    labelled: bool
    origin: Origin
    image: bytes
    score: float | None = None
    model: str | None = None
    z: int | None = None
    copied: bool = False


@dataclass(frozen=True, slots=True)
class LostTile:
    """A tile whose pixels cannot be decoded: it is counted and never stored. `reason` names the place in the slide."""

    x: int
    y: int
    reason: str


@dataclass(frozen=True, slots=True)
class BlurredTile:
    """A tile left out because its `sharpness` is below the one asked for: it is counted and not stored."""

    x: int
    y: int
    sharpness: float


@dataclass(frozen=True, slots=True, eq=False)
class ObjectRow:
    """An object on the tile at (x, y), px of the tile's own resolution; geometry in level-0 px, clipped to the tile."""

    object_id: str
    x: int
    y: int
    class_name: str
    geometry: BaseGeometry
    truncated: bool
    crowd: bool


@dataclass(frozen=True, slots=True)
class SlideRow:
    """A slide of a store, also one that failed: the columns of slides.parquet.

    path, annotations_sha256  the file as the user named it; the annotations it was cut with (null: nobody annotated it)
    fingerprint               of the slide's file (`fingerprint_of`)
    icc, z, channels          how its samples became RGB, as asked for on the command line; null: as stored
    classes                   names in its annotations, sorted, also of objects that no tile shows
    foreground_fraction       of the slide; null where no mask was made
    tiles_kept_for_objects    tiles below the foreground limit, stored since an annotated object lies on them
    tiles_copied              tiles stored as the slide's own compressed tiles
    tiles_glass, tiles_outside_roi, tiles_blurred, tiles_unreadable   tiles dropped, by reason
    objects_annotated, objects_unseen   objects read; those on no tile of the store
    objects_mended, objects_refused     objects of invalid geometry, each listed in problems.csv
    objects_ignored                     objects of classes that were to be ignored
    pieces_kept, pieces_dropped         rows of objects.parquet; those left out for being less visible than asked
    error                     why the slide gave no tiles, or which of its tiles are lost; null when all went well
    """

    slide_id: str
    patient: str
    split: str
    path: str
    stratum: str | None = None
    diagnosis: str | None = None
    width_px: int | None = None
    height_px: int | None = None
    mpp_x: float | None = None
    mpp_y: float | None = None
    mpp_source: str | None = None
    mpp_guessed: bool | None = None
    reader: str | None = None
    background: str | None = None
    icc: str | None = None
    z: str | None = None
    channels: str | None = None
    fingerprint: str | None = None
    annotations_sha256: str | None = None
    classes: tuple[str, ...] = ()
    foreground_fraction: float | None = None
    tiles_kept: int = 0
    tiles_kept_for_objects: int = 0
    tiles_copied: int = 0
    tiles_glass: int = 0
    tiles_outside_roi: int = 0
    tiles_blurred: int = 0
    tiles_unreadable: int = 0
    objects_annotated: int = 0
    objects_unseen: int = 0
    objects_mended: int = 0
    objects_refused: int = 0
    objects_ignored: int = 0
    pieces_kept: int = 0
    pieces_dropped: int = 0
    error: str | None = None

    def of_slide(self, slide: Slide, foreground: Foreground | None, fingerprint: str) -> SlideRow:
        """The row with what an opened slide says of itself. `foreground`: None where no mask was made."""
        resolution, showing = slide.resolution, slide.showing
        return replace(
            self,
            width_px=slide.dimensions[0],
            height_px=slide.dimensions[1],
            mpp_x=resolution.mpp_x if resolution else None,
            mpp_y=resolution.mpp_y if resolution else None,
            mpp_source=resolution.source if resolution else None,
            mpp_guessed=resolution.guessed if resolution else None,
            reader=slide.reader,
            background=foreground.background if foreground else None,
            icc=None if showing.icc == "off" else showing.icc,
            z=None if slide.z_count == 1 else str(slide.z),
            channels=showing.channels,
            fingerprint=fingerprint,
            foreground_fraction=foreground.kept_fraction if foreground else None,
        )
