"""What decides the bytes of a tile store: one model, whose descriptions are also the text of `[tile]` in a recipe.

Defaults stand here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cytopipe.core.errors import UserError, refuse_unknown

USUAL_TILE_PX = (1000, 1200)  # DESIGN 4: sizes outside are allowed and said to be unusual

Codec = Literal["jpeg", "png"]
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
    # [D] one squamous cell of 40 µm is 0.35% of a 600 µm tile, a lymphocyte of 15 µm 0.05%: a single one keeps its tile
    min_foreground: float = Field(
        0.0005, ge=0, le=1, description="tiles with a smaller fraction of foreground are dropped as glass"
    )
    foreground: bool = Field(True, description="whether tiles of empty glass are dropped at all")
    # [D] below a fifth a cell is a rim without its nucleus: neither a fair target nor worth calling background
    min_visible: float = Field(
        0.2, ge=0, le=1, description="an object with a smaller fraction of its area inside a tile is left out of it"
    )
    codec: Codec = Field("jpeg", description="codec of the tile images")
    quality: int = Field(90, ge=1, le=100, description="JPEG quality; no meaning for PNG")

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


def tile_config(given: Mapping[str, Any]) -> TileConfig:
    """The configuration with what was given (None: the default). Raises UserError for the first wrong value."""
    refuse_unknown(given, TileConfig.model_fields, "tile")
    try:
        return TileConfig(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["tile", *map(str, first["loc"])])
        raise UserError(first["msg"].removeprefix("Value error, "), where=where) from error
