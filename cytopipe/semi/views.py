"""The batch that a method receives (METHODS 1.6): views of images, with what is annotated in them.

A view is an image, the affine map from source to view px (pixel edges at integers), and a seed. How a view comes about
is the business of `presets`, `geometry` and `draw`; how something goes from one view to another, that of `mapping`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORE = 255  # the label of a pixel that no loss looks at [D: the value that masks of public data use]


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """What is annotated in one view.

    boxes   (n, 4) float32, x0 y0 x1 y1, view px
    labels  (n,) int64, 1..C (0 is background and never stands here)
    masks   (n, H, W) uint8 of 0 and 1, view px; None where only boxes are known
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.labels)
        if self.boxes.shape != (n, 4) or (self.masks is not None and len(self.masks) != n):
            masks = None if self.masks is None else tuple(self.masks.shape)
            raise ValueError(f"Targets: {n} labels, boxes {tuple(self.boxes.shape)}, masks {masks}")

    def to(self, device: torch.device) -> Targets:
        """The same on another device."""
        return Targets(self.boxes.to(device), self.labels.to(device), _moved(self.masks, device))


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One view of each image of a batch part.

    image    (B, 3, H, W) float32, normalised
    targets  one a image; empty for unlabelled images and for semantic labels
    affine   (B, 2, 3) float64, source px -> view px; stays on the CPU, where its values are looked at
    keys     (B,) int64, a seed for whatever is drawn from this image (RPN and RoI sampling); stays on the CPU
    labels   (B, H, W) int64, class map 0..C with 255 = ignore; semantic labelled views only
    valid    (B, H, W) bool, where the view shows its source image (not what lies beyond its border); None: everywhere
    """

    image: Tensor
    targets: tuple[Targets, ...]
    affine: Tensor
    keys: Tensor
    labels: Tensor | None = None
    valid: Tensor | None = None

    def __post_init__(self) -> None:
        expected = (len(self.image), *self.image.shape[-2:])
        for name, value in (("labels", self.labels), ("valid", self.valid)):
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(f"View: {name} {tuple(value.shape)}, images {tuple(self.image.shape)}")

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image, px."""
        height, width = self.image.shape[-2:]
        return [(height, width)] * len(self.image)

    def to(self, device: torch.device) -> View:
        """The same with images and what is annotated on another device; affine and keys stay on the CPU."""
        return View(
            self.image.to(device, non_blocking=True),
            tuple(targets.to(device) for targets in self.targets),
            self.affine,
            self.keys,
            _moved(self.labels, device),
            _moved(self.valid, device),
        )


@dataclass(frozen=True, slots=True, eq=False, init=False)
class Part:
    """The labelled or the unlabelled images of a batch, in the views that the method's plan asks for, by name.

    `Part(weak)` and `Part(weak, strong)` name the views of most methods; `Part({"weak": ..., "copy_1": ...})` any.
    Raises ValueError where there is no view, or where the views hold different numbers of images.
    """

    views: dict[str, View]

    def __init__(self, views: Mapping[str, View] | View, strong: View | None = None) -> None:
        named = {"weak": views} if isinstance(views, View) else dict(views)
        if strong is not None:
            named["strong"] = strong
        if len({len(view.image) for view in named.values()}) != 1:
            raise ValueError(f"Part: views of { ({name: len(view.image) for name, view in named.items()}) } images")
        object.__setattr__(self, "views", named)

    @property
    def weak(self) -> View:
        """The view named weak. Raises KeyError where the plan asks for none."""
        return self.views["weak"]

    @property
    def strong(self) -> View | None:
        """The view named strong, if the plan asks for it."""
        return self.views.get("strong")

    def to(self, device: torch.device) -> Part:
        """The same on another device."""
        return Part({name: view.to(device) for name, view in self.views.items()})


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one optimiser step sees. `unlabelled` is None where the method reads none."""

    labelled: Part
    unlabelled: Part | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on another device; itself where it is there already."""
        if next(iter(self.labelled.views.values())).image.device == device:
            return self
        return Batch(self.labelled.to(device), None if self.unlabelled is None else self.unlabelled.to(device))


def _moved(values: Tensor | None, device: torch.device) -> Tensor | None:
    return None if values is None else values.to(device, non_blocking=True)
