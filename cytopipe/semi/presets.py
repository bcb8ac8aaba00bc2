"""Named, complete sets of augmentations, and a method's plan of the views it asks for (METHODS 1.6)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class Erasing:
    """One rectangle filled with uniform noise, with probability p; aspect is height over width."""

    p: float
    area_fraction: tuple[float, float]
    aspect: tuple[float, float]


@dataclass(frozen=True, slots=True)
class ViewPreset:
    """A named, complete set of augmentations. Probabilities in [0, 1]; jitter as torchvision's ColorJitter has it.

    turns          a multiple of 90 degrees, each with 1/4
    blur_sigma_px  drawn uniformly
    """

    name: str
    hflip_p: float = 0.5
    vflip_p: float = 0.0
    turns: bool = False
    jitter_p: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey_p: float = 0.0
    blur_p: float = 0.0
    blur_sigma_px: tuple[float, float] = (0.1, 2.0)
    erasings: tuple[Erasing, ...] = ()


WEAK = ViewPreset("weak")

JITTERED = replace(WEAK, name="jittered", jitter_p=1.0, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
"""Flip and colour jitter: the one view of `dual-alignment` [P kinds, A values], and of what is compared with it."""

ROBUST = replace(
    JITTERED, name="robust", brightness=0.2, contrast=0.25, hue=0.06, grey_p=0.15, blur_p=0.25, blur_sigma_px=(0.1, 1.2)
)
"""Jitter, now and then grey or a little out of focus: for models that meet other stains, scanners, grey slides [D].
Brightness is milder than in JITTERED: glass is near white already, and pale cells must not drown in it."""

STRONG = replace(  # [C: Unbiased Teacher; P: CrossMatch table 5]
    JITTERED,
    name="strong",
    jitter_p=0.8,
    grey_p=0.2,
    blur_p=0.5,
    erasings=(
        Erasing(0.7, (0.05, 0.2), (0.3, 3.3)),
        Erasing(0.5, (0.02, 0.2), (0.1, 6.0)),
        Erasing(0.3, (0.02, 0.2), (0.05, 8.0)),
    ),
)

ViewName = Literal["weak", "strong"]
Flips = Literal["horizontal", "both", "both-and-turns"]


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """Which views of its images a method asks for. Weak and strong views of one image share their geometry."""

    labelled: tuple[ViewName, ...] = ("weak",)
    unlabelled: tuple[ViewName, ...] = ("weak",)
    weak: ViewPreset = WEAK
    strong: ViewPreset | None = None

    def __post_init__(self) -> None:
        if "strong" in (*self.labelled, *self.unlabelled) and self.strong is None:
            raise ValueError("ViewPlan: a strong view is asked for, and no preset given")

    def with_flips(self, flips: Flips) -> ViewPlan:
        """The plan with another geometry, for all methods of a comparison at once: cells have no up."""
        p, turns = (0.0 if flips == "horizontal" else 0.5), flips == "both-and-turns"
        strong = None if self.strong is None else replace(self.strong, vflip_p=p, turns=turns)
        return replace(self, weak=replace(self.weak, vflip_p=p, turns=turns), strong=strong)
