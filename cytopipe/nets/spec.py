"""What a network is: its parts and their sizes, as a value that stands in model.toml and in recipes.

Enters: names and numbers.  Leaves: a checked `NetSpec` (detection, instances) or `SegSpec` (semantic); `nets.build_net`
and `nets.build_segnet` make the networks from them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from cytopipe.core.classes import ObjectClass

Backbone = Literal["mobilenetv2", "resnet18", "resnet34", "resnet50", "resnet101"]
ARCHITECTURES = tuple(
    f"{family}-{trunk}-fpn"
    for family in ("faster-rcnn", "mask-rcnn")
    for trunk in ("mobilenetv2", "resnet18", "resnet34", "resnet50", "resnet101")
)

SEMANTIC_ARCHITECTURES = ("denseunet161", "unet")

# Sizes that differ between the papers' networks (torchvision's) and the light one, which must train and run on two
# cores.
_FULL = {
    "fpn_channels": 256,
    "head_dim": 1024,
    "mask_channels": 256,
    "anchor_px": (32, 64, 128, 256, 512),
    "canonical_px": 224.0,
    "rois_per_image": 512,
    "train_proposals": 2000,
}
_LIGHT = {
    "width": 0.5,
    "fpn_channels": 64,
    "head_dim": 256,
    "mask_channels": 48,
    "anchor_px": (16, 32, 64, 128, 256),
    "canonical_px": 112.0,
    "rois_per_image": 128,
    "train_proposals": 300,
}


class _Net(BaseModel):
    """What all networks have. Lengths are px of the network's input."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: str
    classes: tuple[ObjectClass, ...] = Field(
        min_length=1, description="foreground classes; label i + 1 in the network is classes[i]"
    )
    mean: tuple[float, float, float] = Field(
        (0.485, 0.456, 0.406), description="of RGB in [0, 1], subtracted (ImageNet)"
    )
    std: tuple[float, float, float] = Field(
        (0.229, 0.224, 0.225), description="of RGB in [0, 1], divided by (ImageNet)"
    )

    @property
    def kinds(self) -> tuple[tuple[int, ...], ...]:
        """Class indices by kind, in order of first appearance: within a group, detections suppress each other."""
        groups: dict[str, list[int]] = {}
        for index, item in enumerate(self.classes):
            groups.setdefault(item.kind, []).append(index)
        return tuple(tuple(group) for group in groups.values())


class NetSpec(_Net):
    """A DetNet (METHODS 1.7). Lengths are px of the network's input."""

    architecture: str = Field(description=f"one of {', '.join(ARCHITECTURES)}; mask-rcnn adds the mask head")
    width: float = Field(1.0, gt=0, le=1, description="multiplier of MobileNetV2's channels; 1 for the other trunks")
    fpn_channels: int = Field(256, gt=0, description="channels of P2 to P6")
    head_dim: int = Field(1024, gt=0, description="width of the two-layer box head, the length of H")
    mask_channels: int = Field(256, gt=0, description="channels of the mask head")
    anchor_px: tuple[int, int, int, int, int] = Field((32, 64, 128, 256, 512), description="anchor side on P2 to P6")
    canonical_px: float = Field(
        224.0, gt=0, description="side of a box that is pooled from P4 (level rule of FPN, equation 1)"
    )
    rois_per_image: int = Field(
        512, gt=0, description="RoIs sampled an image in training, a quarter of them foreground"
    )
    train_proposals: int = Field(
        2000,
        gt=0,
        description="proposals a level before, and an image after suppression, of which RoIs are sampled in training",
    )
    frozen_batch_norm: bool = Field(
        False, description="batch norm is a fixed affine map: for loaded weights (METHODS 1.7)"
    )
    relations: bool = Field(
        False,
        description="IR-Net's modules (experimental): instances of a window see each other before the mask head, and a "
        "learnt removal of duplicates takes the place of suppression; answers then depend on the whole window",
    )

    @model_validator(mode="before")
    @classmethod
    def _sizes_of_the_family(cls, values: dict[str, object]) -> dict[str, object]:
        light = "mobilenetv2" in str(values.get("architecture", ""))
        return {**(_LIGHT if light else _FULL), **values}

    @model_validator(mode="after")
    def _known(self) -> NetSpec:
        if self.architecture not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {self.architecture!r}; known: {', '.join(ARCHITECTURES)}")
        return self

    @property
    def task(self) -> Literal["detection", "instance"]:
        """What the network answers with: boxes, or boxes and masks."""
        return "instance" if self.architecture.startswith("mask-rcnn") else "detection"

    @property
    def backbone(self) -> str:
        """The trunk below the feature pyramid."""
        return self.architecture.removeprefix("mask-rcnn-").removeprefix("faster-rcnn-").removesuffix("-fpn")

    @property
    def stride_px(self) -> int:
        """Largest stride of a feature map: the network is shift-invariant by multiples of it."""
        return 64


class SegSpec(_Net):
    """A SegNet (METHODS 1.8). Lengths are px of the network's input. Label 0 of its logits is background."""

    architecture: str = Field(description=f"one of {', '.join(SEMANTIC_ARCHITECTURES)}")
    widths: tuple[int, ...] = Field(
        (16, 32, 64, 128, 256),
        min_length=3,
        description="channels of the unet at strides 1, 2, 4, ...; denseunet161 has its own",
    )
    head_channels: int = Field(64, gt=0, description="channels between denseunet161's features and its logits")
    frozen_batch_norm: bool = Field(
        False, description="batch norm of the encoder is a fixed affine map: for loaded weights (METHODS 1.7)"
    )
    dropout: float = Field(0.3, ge=0, lt=1, description="of whole channels, before denseunet161's logits, in training")

    @model_validator(mode="after")
    def _known(self) -> SegSpec:
        if self.architecture not in SEMANTIC_ARCHITECTURES:
            raise ValueError(f"unknown architecture {self.architecture!r}; known: {', '.join(SEMANTIC_ARCHITECTURES)}")
        if min(self.widths) < 1:
            raise ValueError(f"widths {self.widths}: a level without channels")
        return self

    @property
    def task(self) -> Literal["semantic"]:
        """What the network answers with: a class a pixel."""
        return "semantic"

    @property
    def stride_px(self) -> int:
        """Largest stride of a feature map: the network is shift-invariant by multiples of it."""
        return 32 if self.architecture == "denseunet161" else 2 ** (len(self.widths) - 1)

    @property
    def feature_stride(self) -> int:
        """Stride of the features F that methods look at."""
        return 4

    @property
    def feature_dim(self) -> int:
        """D, channels of F."""
        return 256 if self.architecture == "denseunet161" else self.widths[2]

    @property
    def logits_stride(self) -> int:
        """Stride of the logits before `upsample`."""
        return 4 if self.architecture == "denseunet161" else 1


OBJECTS, SEMANTIC = "objects", "semantic"  # the two kinds of spec, in pydantic's places of errors


def _kind_of_spec(value: Any) -> str | None:
    name = value.get("architecture") if isinstance(value, dict) else getattr(value, "architecture", None)
    if name in SEMANTIC_ARCHITECTURES:
        return SEMANTIC
    return OBJECTS if name in ARCHITECTURES else None


AnySpec = Annotated[
    Annotated[NetSpec, Tag(OBJECTS)] | Annotated[SegSpec, Tag(SEMANTIC)],
    Discriminator(
        _kind_of_spec,
        custom_error_type="architecture",
        custom_error_message=f"unknown architecture; known: {', '.join((*ARCHITECTURES, *SEMANTIC_ARCHITECTURES))}",
    ),
]
"""The spec of a network of any task, told apart by its architecture."""
