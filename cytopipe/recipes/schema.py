"""What a recipe may say: one section a stage, and the figures that the paper printed.

A section whose stage has a settings model of its own is that model: defaults and sentences stand with their owner
(`tiles.TileConfig`, `mine.MineConfig`, `train.TrainSettings`). Elsewhere a key that is not given has the command's own
default.
Pydantic only: nothing here loads torch.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cytopipe.mine.config import MineConfig
from cytopipe.tiles.config import TileConfig
from cytopipe.train.settings import TrainSettings

Switch = bool | int | float | str
Metric = Literal[
    "map_50",
    "map_10_70",
    "map_coco",
    "mask_map_50",
    "mask_map_coco",
    "aji50",
    "aji",
    "pq",
    "dice",
    "jaccard",
    "acc",
    "sp",
    "se",
    "ap",
]


class TileSection(TileConfig):
    """`[tile]`: how slides are cut, and patients divided."""

    split: str | None = Field(
        None, description="ratio of patients in train, validation and test, e.g. 7:1:2; not given: all tiles are train"
    )


class InferSection(BaseModel):
    """`[infer]`: how objects are located."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    score_threshold: float | None = Field(
        None, ge=0, le=1, description="least score of an object; not given: the model's"
    )


class EvaluateSection(BaseModel):
    """`[evaluate]`: how results are compared with truth."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    iou: float | None = Field(None, gt=0, le=1, description="box IoU at which a result reaches a true object")
    score_threshold: float | None = Field(
        None, ge=0, le=1, description="results below it are left out of the counts (not of the average precision)"
    )


class ExpectedRow(BaseModel):
    """One row of `[[expected]]`: what a paper printed, in percent, and the switches that make our run of it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    row: str = Field(min_length=1, description="the row's name in the paper's table")
    recipe: str | None = Field(None, description="recipe of the row; not given: this one")
    switches: dict[str, Switch] = Field(
        default_factory=dict, description="recipe keys that differ, dotted: 'train.config.margin' = 0.5"
    )
    label_fraction: float = Field(1.0, gt=0, le=1, description="part of the labelled tiles that is used")
    metric: Metric = Field(description="what the figures are")
    mean_percent: float = Field(ge=0, le=100, description="mean over classes")
    class_percent: dict[str, float] = Field(default_factory=dict, description="by class name")


# A section that is left out. Frozen values, hence safe to share; by model_validate, since a type checker does not see
# that fields written Field(default, ...) have one.
_DEFAULT_TILE = TileSection.model_validate({})
_DEFAULT_MINE = MineConfig.model_validate({})
_DEFAULT_TRAIN = TrainSettings.model_validate({})
_DEFAULT_INFER = InferSection.model_validate({})
_DEFAULT_EVALUATE = EvaluateSection.model_validate({})


class Recipe(BaseModel):
    """A paper, end to end. Every section may be left out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(1, description="of this file")
    title: str = Field("", description="what it is, in a sentence")
    paper: str = Field("", description="authors, title, venue")
    tile: TileSection = Field(_DEFAULT_TILE, description="how slides are cut")
    mine: MineConfig = Field(_DEFAULT_MINE, description="which windows of unlabelled slides are kept")
    train: TrainSettings = Field(_DEFAULT_TRAIN, description="how a model is trained")
    infer: InferSection = Field(_DEFAULT_INFER, description="how objects are located")
    evaluate: EvaluateSection = Field(_DEFAULT_EVALUATE, description="how results are compared with truth")
    expected: list[ExpectedRow] = Field(default_factory=list, description="what the paper printed")
