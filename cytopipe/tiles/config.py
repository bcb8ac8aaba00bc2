"""What decides the bytes of a tile store: one model, whose descriptions are also the text of `[tile]` in a recipe.

Defaults stand here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cytopipe.core.errors import UserError, refuse_unknown

USUAL_TILE_PX = (1000, 1200)  # DESIGN 4: sizes outside are allowed and said to be unusual

Codec = Literal["jpeg", "png", "zarr"]
Edge = Literal["shift", "pad"]


class TileConfig(BaseModel):
    """How slides are cut: `[tile]` of a recipe, and the flags of `cytopipe tile`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tile_px: int = Field(1200, ge=16, le=8192, description="side of a tile, px at the target mpp")
    mpp: float | None = Field(0.5, gt=0, le=100, description="target resolution, µm/px; none: level 0 as it is")
    overlap_px: int = Field(0, ge=0, description="least overlap of neighbouring tiles, px at the target mpp")
    edge: Edge = Field(
        "shift", description="last row and column: shifted inwards, or hanging over and padded with background"
    )
    roi: str | None = Field(
        None, min_length=1, description="only tiles that meet a region outlined with this class; it is then no object"
    )
    random: int | None = Field(
        None,
        ge=1,
        description="instead of the grid: so many windows of each slide, at random over its foreground",
    )
    around_objects: bool = Field(
        False, description="instead of the grid: a window around each annotated object; with random, beside its windows"
    )
    background: Literal["auto", "light", "dark"] = Field(
        "auto", description="what empty slide looks like: light (stained smears), dark (fluorescence); auto: judged"
    )
    # [D] none: every foreground px lies on a kept tile. A limit of 0.0005 dropped no tile more on synthetic slides of 3
    # cells per mm², and it grows with the tile: a lone lymphocyte is 0.05% of 600 µm, and 0.012% of 1.2 mm
    min_foreground: float = Field(
        0.0,
        ge=0,
        le=1,
        description="tiles with a smaller fraction of foreground are dropped as glass; those with none always are",
    )
    foreground: bool = Field(True, description="whether tiles of empty glass are dropped at all")
    min_sharpness: float | None = Field(
        None, ge=0, description="tiles of smaller sharpness (as recorded) are dropped as blurred; not given: none"
    )
    measure: bool = Field(
        True,
        description="whether sharpness and glass of each tile are measured; without, tiles that can be copied out of "
        "the slide are not decoded at all",
    )
    # [D] below a fifth a cell is a rim without its nucleus: neither a fair target nor worth calling background
    min_visible: float = Field(
        0.2, ge=0, le=1, description="an object with a smaller fraction of its area inside a tile is left out of it"
    )
    class_map: dict[str, str] = Field(
        default_factory=dict, description="annotated class -> the class that is stored; others keep their names"
    )
    ignore: tuple[str, ...] = Field((), description="classes, as class_map names them, that are left out")
    label_class: str | None = Field(
        None, min_length=1, description="class of objects whose file names none, such as a label image's"
    )
    annotated_area: str | None = Field(
        None,
        min_length=1,
        description="only tiles wholly inside outlines of this class count as labelled; it is then no object",
    )
    codec: Codec = Field("jpeg", description="images as JPEG or PNG files, or one zarr array without loss")
    quality: int = Field(90, ge=1, le=100, description="JPEG quality; no meaning for PNG and zarr")

    @property
    def is_grid(self) -> bool:
        """Whether tiles form a grid, not windows placed one by one."""
        return self.random is None and not self.around_objects

    @property
    def area_classes(self) -> tuple[str, ...]:
        """Classes whose outlines are areas of the slide, and never objects."""
        return tuple(sorted({name for name in (self.roi, self.annotated_area) if name is not None}))

    @field_validator("overlap_px", mode="before")
    @classmethod
    def _overlap_is_no_fraction(cls, value: object) -> object:
        if isinstance(value, float) and 0 < value < 1:
            raise ValueError(f"{value:g} looks like a fraction; give pixels, e.g. {round(value * 1200)}")
        return value

    @model_validator(mode="after")
    def _tiles_advance(self) -> TileConfig:
        if self.overlap_px >= self.tile_px:
            raise ValueError(f"overlap_px {self.overlap_px} is not below tile_px {self.tile_px}")
        return self

    @model_validator(mode="after")
    def _settings_agree(self) -> TileConfig:
        if not self.is_grid:
            placed = "random" if self.random is not None else "around_objects"
            if self.overlap_px:
                raise ValueError(f"overlap_px is of the grid, and {placed} takes windows instead of it")
            if self.edge == "pad":
                raise ValueError(f"edge 'pad' is of the grid, and {placed} takes windows inside the slide")
        if self.min_sharpness is not None and not self.measure:
            raise ValueError("min_sharpness needs what measure=false leaves out")
        for name in self.area_classes:
            if name in self.ignore:
                raise ValueError(f"class {name!r} is to be ignored, and outlines an area (roi, annotated_area)")
        return self


def tile_config(given: Mapping[str, Any]) -> TileConfig:
    """The configuration with what was given (None: the default). Raises UserError for the first wrong value."""
    refuse_unknown(given, TileConfig.model_fields, "tile")
    try:
        return TileConfig(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["tile", *map(str, first["loc"])])
        raise UserError(first["msg"].removeprefix("Value error, "), where=where) from error
