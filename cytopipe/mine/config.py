"""How windows are mined: `[mine]` of a recipe, and the flags of `cytopipe mine-unlabeled`. Defaults stand here only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cytopipe.core.errors import UserError, refuse_unknown
from cytopipe.tiles.config import Codec

Place = Literal["centred", "grid"]


class MineConfig(BaseModel):
    """What decides which windows are stored, and how."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    select: str = Field("score", description="score, threshold, random, or shares such as score=0.7,random=0.3")
    # [D] a pap slide of 200 mm² has about 550 tiles of 1200 px at 0.5 µm/px: a fifth of it
    budget_per_slide: int = Field(100, ge=1, description="most windows of a slide")
    budget: int | None = Field(None, ge=1, description="most windows of all slides together; none: no limit")
    min_suspicion: float = Field(0.5, ge=0, le=1, description="least suspicion of a window chosen by threshold")
    place: Place = Field("centred", description="windows by suspicion are centred on a finding, or lie on the grid")
    max_overlap_fraction: float = Field(0.25, ge=0, lt=1, description="most area that two chosen windows share")
    min_foreground: float = Field(0.05, ge=0, le=1, description="least foreground of a window chosen at random")
    tile_px: int | None = Field(None, ge=16, le=8192, description="side of a window, px; none: the model's")
    mpp: float | None = Field(None, gt=0, le=100, description="resolution of the windows, µm/px; none: the model's")
    codec: Codec = Field("jpeg", description="codec of the tile images")
    quality: int = Field(90, ge=1, le=100, description="JPEG quality; no meaning for PNG")


def mine_config(given: Mapping[str, Any]) -> MineConfig:
    """The configuration with what was given (None: the default). Raises UserError for the first wrong value."""
    refuse_unknown(given, MineConfig.model_fields, "mine")
    try:
        return MineConfig(**{key: value for key, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["mine", *map(str, first["loc"])])
        raise UserError(f"{first['input']!r}: {first['msg']}", where=where) from error
