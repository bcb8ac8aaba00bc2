"""The batch that a method receives (METHODS 1.6): views of images, with what is annotated in them.

A view is an image, the affine map from source to view px (pixel edges at integers), and a seed. How a view comes about
is the business of `presets`, `geometry` and `draw`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """One view of each image of a batch part.

    image    (B, 3, H, W) float32, normalised
    targets  one a image; empty for unlabelled images
    affine   (B, 2, 3) float64, source px -> view px
    keys     (B,) int64, a seed for whatever is drawn from this image (RPN and RoI sampling)
    """

    image: Tensor
    targets: tuple[Targets, ...]
    affine: Tensor
    keys: Tensor

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(height, width) of each image, px."""
        height, width = self.image.shape[-2:]
        return [(height, width)] * len(self.image)


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """The labelled or the unlabelled images of a batch, in the views that the method's plan asks for."""

    weak: View
    strong: View | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one optimiser step sees. `unlabelled` is None where the method reads none."""

    labelled: Part
    unlabelled: Part | None = None
