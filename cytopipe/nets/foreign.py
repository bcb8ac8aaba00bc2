"""torchvision's names of weights, translated into ours. No tensor is changed.

Enters: a state dict of torchvision's Faster or Mask R-CNN with a ResNet and a pyramid, of a classifier (ResNet,
MobileNetV2, DenseNet-161), or of a network of ours.  Leaves: the same tensors by our names. What we have no place for
(a classifier's last layer) is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# First block of each stage. `features.18`, the 1x1 convolution to 1280 channels, has no place: the pyramid takes the
# map before it.
_MOBILENET_STARTS, _MOBILENET_END = (0, 4, 7, 14), 18

_LAYER = re.compile(r"^layer([1-4])\.(.*)$")
_DENSE_OLD = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")  # names of torchvision's oldest DenseNet files

# (pattern, replacement): the first that matches says our name. Twice where torchvision renamed its own layers.
_DETECTOR = (
    (re.compile(r"^backbone\.fpn\.((?:inner|layer)_blocks\.\d)\.(weight|bias)$"), r"trunk.pyramid.\1.0.\2"),
    (re.compile(r"^backbone\.fpn\.(.*)$"), r"trunk.pyramid.\1"),
    (re.compile(r"^rpn\.head\.conv\.(weight|bias)$"), r"rpn.head.conv.0.0.\1"),
    (re.compile(r"^(rpn\.head\..*)$"), r"\1"),
    (re.compile(r"^roi_heads\.box_head\.(.*)$"), r"box_head.\1"),
    (re.compile(r"^roi_heads\.box_predictor\.(.*)$"), r"box_head.\1"),
    (re.compile(r"^roi_heads\.mask_head\.mask_fcn([1-4])\.(weight|bias)$"), r"mask_head.layers.conv\1.\2"),
    (re.compile(r"^roi_heads\.mask_predictor\.conv5_mask\.(.*)$"), r"mask_head.layers.up.\1"),
    (re.compile(r"^roi_heads\.mask_predictor\.mask_fcn_logits\.(.*)$"), r"mask_head.layers.logits.\1"),
)
_MASK_LAYER = re.compile(r"^roi_heads\.mask_head\.([0-3])\.0\.(weight|bias)$")


def own_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by our names. Names that are nobody's are kept as they are, for the one who checks to complain of."""
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}  # DataParallel's prefix
    if any(name.startswith("backbone.body.") for name in plain):
        rename = _detector
    elif "features.conv0.weight" in plain:
        rename = _densenet
    elif "features.0.0.weight" in plain:
        rename = _mobilenet
    elif "conv1.weight" in plain and "layer1.0.conv1.weight" in plain:
        rename = _resnet
    else:
        return plain
    named = ((rename(name), tensor) for name, tensor in plain.items())
    return {name: tensor for name, tensor in named if name is not None}


def _detector(name: str) -> str | None:
    if name.startswith("backbone.body."):
        return _resnet(name.removeprefix("backbone.body."))
    if layer := _MASK_LAYER.match(name):
        return f"mask_head.layers.conv{int(layer[1]) + 1}.{layer[2]}"
    for pattern, replacement in _DETECTOR:
        if pattern.match(name):
            return pattern.sub(replacement, name)
    return name


def _resnet(name: str) -> str | None:
    if name.startswith("fc."):
        return None
    layer = _LAYER.match(name)
    if layer is None or layer[1] == "1":
        return f"trunk.stages.0.{name}"
    return f"trunk.stages.{int(layer[1]) - 1}.{layer[2]}"


def _mobilenet(name: str) -> str | None:
    if not name.startswith("features."):
        return None
    block = int(name.split(".", 2)[1])
    if block >= _MOBILENET_END:
        return None
    stage = sum(start <= block for start in _MOBILENET_STARTS) - 1
    return f"trunk.stages.{stage}.{name.removeprefix('features.')}"  # a slice of torchvision's list keeps its numbers


def _densenet(name: str) -> str | None:
    if not name.startswith("features."):
        return None
    part, rest = _DENSE_OLD.sub(r"\1\2.", name.removeprefix("features.")).split(".", 1)
    if part in ("conv0", "norm0"):
        return f"body.stem.{('conv0', 'norm0').index(part)}.{rest}"
    if part == "norm5":
        return f"body.norm.{rest}"
    kind = "blocks" if part.startswith("denseblock") else "transitions"
    return f"body.{kind}.{int(part[-1]) - 1}.{rest}"
