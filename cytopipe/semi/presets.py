"""Named, complete sets of augmentations, and a method's plan of the views it asks for (METHODS 1.6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Range = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Erasing:
    """Rectangles filled with something else. Each is tried so many times as drawn, and done with probability p.

    area_fraction  of the image, drawn uniformly
    aspect         height over width, drawn log-uniformly, or uniformly where `aspect_scale` is linear
    attempts       smallest and largest number of rectangles, each number as likely
    """

    p: float
    area_fraction: Range
    aspect: Range
    aspect_scale: Literal["log", "linear"] = "log"
    attempts: tuple[int, int] = (1, 1)


@dataclass(frozen=True, slots=True)
class ViewPreset:
    """A named, complete set of augmentations. Probabilities in [0, 1]; jitter as torchvision's ColorJitter has it.

    turns          a multiple of 90 degrees, each with 1/4
    rotate_deg     r: an angle U(-r, r) about the centre, after flips and turns; images bilinear, labels nearest
    rescale        a factor U(a, b) about the centre, with the rotation
    own_hflip_p    a last horizontal flip of this view alone; all else of the geometry is shared by an image's views
    jitter_p       of all four together: factors U(1 - x, 1 + x) for x = brightness, contrast, saturation; hue U(-x, x)
                   of the whole circle
    blur_sigma_px  drawn uniformly
    erase_fill     uniform noise in each pixel, or the mean colour of the image
    """

    name: str
    hflip_p: float = 0.5
    vflip_p: float = 0.0
    turns: bool = False
    rotate_deg: float = 0.0
    rescale: Range = (1.0, 1.0)
    own_hflip_p: float = 0.0
    jitter_p: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    grey_p: float = 0.0
    blur_p: float = 0.0
    blur_sigma_px: Range = (0.1, 2.0)
    erasings: tuple[Erasing, ...] = ()
    erase_fill: Literal["noise", "mean"] = "noise"


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

PSM = ViewPreset(
    "psm",
    jitter_p=1.0,
    brightness=0.15,
    contrast=0.15,
    hue=0.05,
    erasings=(Erasing(0.9, (0.001, 0.004), (0.2, 5.0), "linear", (0, 10)),),
)
"""Augmentor A of `mmt-psm` (METHODS 5.2) [P kinds, C values] for one colour copy. Its flip of half of the copies is an
explicit twin of each (5.2 (d)) or `own_hflip_p`; the geometry here is that of the crop."""

PSM_LABELLED = replace(PSM, name="psm-labelled", erasings=(replace(PSM.erasings[0], p=0.7),))
"""Augmentor A for labelled images [C]."""

CDCL_WEAK = replace(WEAK, name="cdcl-weak", rotate_deg=15.0)
"""Geometry of `cdcl` [P]: random flip and rotation; the crop is the loader's."""

CDCL_STRONG = replace(STRONG, name="cdcl-strong", rotate_deg=15.0, erasings=())
"""Blur, colour jitter and random grey on the same geometry [P kinds, A values: those of STRONG without erasing]."""

MSPA = replace(JITTERED, name="mspa", vflip_p=0.5, rescale=(0.8, 1.2))
"""The one view of `mspa` [P kinds, A values of the colours]: rescale, flips, colour distortion."""

PRESETS = {
    preset.name: preset for preset in (WEAK, JITTERED, ROBUST, STRONG, PSM, PSM_LABELLED, CDCL_WEAK, CDCL_STRONG, MSPA)
}
"""All presets by the name under which a recipe asks for them."""

Flips = Literal["horizontal", "both", "both-and-turns"]


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """Which views of its images a method asks for: name of the view -> preset, for labelled and unlabelled images.

    All views of an image share the geometry drawn from the first preset of its part; `own_hflip_p` excepted.
    The labelled view named weak is WEAK for every method, so that a comparison sees the same labelled batches
    (METHODS 2.2); where a paper has another, the recipe gives it to all methods at once (`with_labelled`).
    Raises ValueError where no labelled view is asked for.
    """

    labelled: Mapping[str, ViewPreset] = field(default_factory=lambda: {"weak": WEAK})
    unlabelled: Mapping[str, ViewPreset] = field(default_factory=lambda: {"weak": WEAK})

    def __post_init__(self) -> None:
        if not self.labelled:
            raise ValueError("ViewPlan: no labelled view")

    def with_flips(self, flips: Flips) -> ViewPlan:
        """The plan with other flips, for all methods of a comparison at once: cells have no up.

        `horizontal` leaves the presets as they are; the others switch vertical flips, and quarter turns, on.
        """
        if flips == "horizontal":
            return self
        turns = flips == "both-and-turns"

        def turned(views: Mapping[str, ViewPreset]) -> dict[str, ViewPreset]:
            return {name: replace(preset, vflip_p=0.5, turns=turns) for name, preset in views.items()}

        return ViewPlan(turned(self.labelled), turned(self.unlabelled))

    def with_labelled(self, preset: ViewPreset) -> ViewPlan:
        """The plan with another preset for the labelled view named weak, for all methods of a comparison at once."""
        return replace(self, labelled={**self.labelled, "weak": preset})
