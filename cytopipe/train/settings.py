"""What decides a training run besides its method and its data: one model, also `[train]` of a recipe. Defaults stand
here and nowhere else.

Pydantic only: recipes and commands may import this without loading torch.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cytopipe.tiles.fractions import LabelUnit

Task = Literal["detection", "instance", "semantic"]
ValMetric = Literal[
    "auto",
    "map_50",
    "map_10_70",
    "map_coco",
    "mask_map_50",
    "mask_map_coco",
    "aji",
    "aji50",
    "pq",
    "dice",
    "jaccard",
    "acc",
    "sp",
    "se",
]
DEFAULT_METRIC: dict[Task, str] = {"detection": "map_50", "instance": "mask_map_50", "semantic": "dice"}
SEMANTIC = ("unet", "denseunet161")  # nets.SEMANTIC_ARCHITECTURES, which cannot be imported without torch


LabelledView = Literal[  # semi.PRESETS, which cannot be imported without torch
    "weak", "jittered", "robust", "strong", "psm", "psm-labelled", "cdcl-weak", "cdcl-strong", "mspa"
]


class TrainSettings(BaseModel):
    """The settings of one run. Lengths are px at the store's mpp; schedules count optimiser steps (iterations)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    method: str = Field("supervised", description="training method, as `cytopipe methods` lists it")
    architecture: str = Field(
        "mask-rcnn-mobilenetv2-fpn",
        description="network; `faster-rcnn-…` for boxes, `mask-rcnn-…` for masks too, `unet` or `denseunet161` for a "
        "class a pixel",
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

    label_class: str | None = Field(
        None,
        description="class of what masks and label maps mark, for images in files; several, separated by commas: of "
        "the numbers 1, 2, ... in masks",
    )
    resize_px: int | None = Field(
        None, ge=64, description="side of the square to which images in files are resized; not given: as they are"
    )
    labelled_view: LabelledView | None = Field(
        None,
        description="augmentation of labelled images, alike for every method of a comparison; not given: the method's "
        "own, which is weak unless its settings say another",
    )

    iterations: int = Field(1000, gt=0, description="T, optimiser steps of the whole run")
    batch_labelled: int = Field(4, gt=0, description="B_l, labelled images a step")
    ratio: int = Field(1, gt=0, description="unlabelled images for each labelled one, for methods that read them")
    crop_px: int = Field(
        512,
        ge=64,
        multiple_of=32,
        description="side of the square that training sees of a tile, a multiple of 64 px (of 32 px for semantic "
        "networks)",
    )
    mpp: float | None = Field(
        None, gt=0, description="µm/px of images in files, which do not say it; not given: the model claims 1"
    )
    relations: bool = Field(False, description="IR-Net's relation modules (experimental; METHODS 5.2)")
    frozen_batch_norm: bool = Field(
        False,
        description="normalise by fixed statistics throughout; those that came with --init are fixed in any case "
        "(METHODS 1.7)",
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
    poly_power: float = Field(0.9, gt=0, description="exponent of `poly`")
    warmup_iterations: int = Field(0, ge=0, description="linear warm-up from lr / 1000")
    accumulate: int = Field(
        1, gt=0, description="parts that a step's batch is computed in, one after the other: memory falls, data stay"
    )
    grad_clip_norm: float | None = Field(None, gt=0, description="largest norm of the gradient; not given: unlimited")
    amp: Literal["off", "bf16", "fp16"] = Field(
        "off", description="mixed precision in the forward pass; fp16 with a loss scale that follows the gradients"
    )

    val_every: int = Field(500, gt=0, description="iterations between validations; a checkpoint is written with each")
    val_tiles: int = Field(200, gt=0, description="most tiles that a validation reads, evenly chosen")
    val_metric: ValMetric = Field(
        "auto",
        description="what chooses checkpoint and network; auto: map_50 for boxes, mask_map_50 for masks, dice for "
        "semantic networks",
    )
    monitor_every: int = Field(50, gt=0, description="iterations between two looks of the collapse detector")
    window_px: int = Field(
        1024, ge=128, multiple_of=64, description="side of the bundle's inference window, a multiple of 64 px"
    )

    @model_validator(mode="after")
    def _whole_strides(self) -> TrainSettings:
        if self.task != "semantic" and self.crop_px % 64:
            raise ValueError(f"crop_px {self.crop_px}: a multiple of 64 is expected for {self.architecture}")
        return self

    @field_validator("zoom")
    @classmethod
    def _a_range(cls, zoom: tuple[float, float]) -> tuple[float, float]:
        if not 0 < zoom[0] <= zoom[1] < math.inf:
            raise ValueError("a least and a greatest factor are expected, both above 0")
        return zoom

    @field_validator("classes")
    @classmethod
    def _each_once(cls, classes: list[str] | None) -> list[str] | None:
        if classes is not None and len(set(classes)) < len(classes):
            raise ValueError("each class is named once")
        return classes

    @property
    def task(self) -> Task:
        """What the network learns to answer with."""
        if self.architecture in SEMANTIC:
            return "semantic"
        return "instance" if self.architecture.startswith("mask-rcnn") else "detection"

    @property
    def metric(self) -> str:
        """The validation metric that chooses: `val_metric`, or the task's own."""
        return DEFAULT_METRIC[self.task] if self.val_metric == "auto" else self.val_metric

    def lr_factor(self, t: int) -> float:
        """Factor of the learning rate at iteration t: a pure function of t, so that nothing has to be saved."""
        warm = 1.0 if t >= self.warmup_iterations else 1e-3 + (1 - 1e-3) * t / self.warmup_iterations
        if self.schedule == "step":
            return warm * self.lr_gamma ** sum(t >= step for step in self.lr_steps)
        if self.schedule == "cosine":
            return warm * (1 + math.cos(math.pi * t / self.iterations)) / 2
        if self.schedule == "poly":
            return warm * float((1 - t / self.iterations) ** self.poly_power)
        return warm
