"""What decides a training run besides its method and its data: one model, also `[train]` of a recipe. Defaults stand
here and nowhere else.

Pydantic only: recipes and commands may import this without loading torch.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cytopipe.tiles.fractions import LabelUnit


class TrainSettings(BaseModel):
    """The settings of one run. Lengths are px at the store's mpp; schedules count optimiser steps (iterations)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field("supervised", description="training method, as `cytopipe methods` lists it")
    architecture: str = Field(
        "mask-rcnn-mobilenetv2-fpn", description="network; `faster-rcnn-…` for boxes, `mask-rcnn-…` for masks too"
    )
    classes: list[str] | None = Field(
        None, min_length=1, description="classes to learn, in order; not given: all of the store"
    )
    config: dict[str, Any] = Field(
        default_factory=dict, description="the method's own settings, by the symbols of its paper"
    )

    label_fraction: str | float | None = Field(
        None, description="share of the labelled training tiles that is used, e.g. 1/8; not given: all"
    )
    label_unit: LabelUnit = Field(
        "tile", description="what that share is a share of: tiles, or patients with all their tiles"
    )

    iterations: int = Field(1000, gt=0, description="T, optimiser steps of the whole run")
    batch_labelled: int = Field(4, gt=0, description="B_l, labelled images a step")
    ratio: int = Field(1, gt=0, description="unlabelled images for each labelled one, for methods that read them")
    crop_px: int = Field(
        512, ge=64, multiple_of=64, description="side of the square that training sees of a tile, a multiple of 64 px"
    )
    zoom: tuple[float, float] = Field((1.0, 1.0), description="range of a random rescaling of the crop; 1, 1: none")
    flips: Literal["horizontal", "both", "both-and-turns"] = Field(
        "horizontal", description="geometry of the weak view (METHODS 1.6)"
    )

    optimiser: Literal["sgd", "adam"] = Field("sgd", description="of the network's own parameters")
    lr: float = Field(0.005, gt=0, description="learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(1e-4, ge=0, description="of the network's own parameters")
    schedule: Literal["constant", "step", "cosine", "poly"] = Field("step", description="of the learning rate")
    lr_steps: list[int] = Field(default_factory=list, description="iterations at which `step` multiplies by lr_gamma")
    lr_gamma: float = Field(0.1, gt=0, le=1, description="factor of `step`")
    warmup_iterations: int = Field(0, ge=0, description="linear warm-up from lr / 1000")
    grad_clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient; not given: unlimited")
    amp: Literal["off", "bf16"] = Field("off", description="bf16: mixed precision in the forward pass")

    val_every: int = Field(500, gt=0, description="iterations between validations; a checkpoint is written with each")
    val_tiles: int = Field(200, gt=0, description="most tiles that a validation reads, evenly chosen")
    val_metric: Literal["map_50", "map_10_70", "map_coco"] = Field(
        "map_50", description="what chooses checkpoint and network"
    )
    window_px: int = Field(
        1024, ge=128, multiple_of=64, description="side of the bundle's inference window, a multiple of 64 px"
    )

    def lr_factor(self, t: int) -> float:
        """Factor of the learning rate at iteration t: a pure function of t, so that nothing has to be saved."""
        warm = 1.0 if t >= self.warmup_iterations else 1e-3 + (1 - 1e-3) * t / self.warmup_iterations
        if self.schedule == "step":
            return warm * self.lr_gamma ** sum(t >= step for step in self.lr_steps)
        if self.schedule == "cosine":
            return warm * (1 + math.cos(math.pi * t / self.iterations)) / 2
        if self.schedule == "poly":
            return warm * float((1 - t / self.iterations) ** 0.9)
        return warm
