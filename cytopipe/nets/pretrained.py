"""Weights that a network starts from: `train --init imagenet | NAME | PATH`.

Enters: a network as `build_net` or `build_segnet` made it.  Leaves: the same network with what was loaded, its batch
norms frozen there, and a sentence of what was loaded and what still starts at random.

    imagenet   torchvision's official file of the trunk (IMAGENET1K_V1), with its hash checked
    NAME|DIR   a bundle, or the run folder of `train`; its hash is checked
    FILE       .safetensors, or a state dict of torch (read with weights_only=True: nothing in it is executed); by our
               names or torchvision's, of a whole network or of a classifier

Batch norm is a fixed affine map where its statistics were loaded (METHODS 1.7): of the trunk of a DetNet, and of the
encoder of a SegNet. A SegNet's decoder goes on training its own.
"""

from __future__ import annotations

import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError  # what torch raises for a file that is no plain state dict; nothing is unpickled

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import (
    DenseNet161_Weights,
    MobileNet_V2_Weights,
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
)

from cytopipe.core.errors import RunError, UserError
from cytopipe.core.files import disk_error, sha256_of
from cytopipe.nets.batch_norm import freeze
from cytopipe.nets.bundle import MODEL_FILE, WEIGHTS_FILE, Bundle, load_bundle
from cytopipe.nets.detnet import DetNet
from cytopipe.nets.foreign import own_names
from cytopipe.nets.net import Net
from cytopipe.nets.spec import NetSpec

IMAGENET = "imagenet"
_STATE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_OFFICIAL = {
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet34": ResNet34_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": ResNet101_Weights.IMAGENET1K_V1,
    "mobilenetv2": MobileNet_V2_Weights.IMAGENET1K_V1,
    "denseunet161": DenseNet161_Weights.IMAGENET1K_V1,
}
_CLASS_LAYERS = (
    "box_head.cls_score.",
    "box_head.bbox_pred.",
    "mask_head.layers.logits.",
    "body.logits.",
    "body.head.4.",
)
_RELATION_LAYERS = ("mask_relation.", "duplicates.")
_TRUNKS = ("trunk.stages.", "body.stem.", "body.blocks.", "body.transitions.", "body.norm.")
_ENCODERS = (*_TRUNKS, "body.down.")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `init_weights` did: a sentence for the user, and the tensors that still are as they were drawn."""

    sentence: str
    random: tuple[str, ...]


def init_weights(net: Net, source: str | Path) -> Loaded:
    """Load the weights of `source` into a network and freeze the batch norms whose statistics came with them.

    The layers that name the classes stay as they were drawn where the source has other classes; so do IR-Net's modules
    where it has none. `net.spec` says afterwards what is frozen and how images are normalised. Raises UserError for a
    source that is none, a hash or a shape that does not fit, by the tensor's name; RunError where the download fails.
    """
    if str(source) == IMAGENET:
        return _load(net, _imagenet_state(net), f"torchvision's ImageNet weights of {_trunk_name(net)}", "imagenet")
    path = Path(source)
    if path.is_file():
        return _load(net, read_state(path), path.name, str(path))
    if path.suffix in _STATE_SUFFIXES and not path.exists():
        raise UserError("no such file", where=str(path), fix="--init takes imagenet, a file of weights or a bundle")
    bundle = load_bundle(source)
    _same_network(net, bundle)
    weights = bundle.folder / WEIGHTS_FILE
    bundle.check_hash()
    state = read_state(weights)
    if bundle.spec.net.classes != net.spec.classes:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(_CLASS_LAYERS)}
    loaded = _load(net, state, f"the weights of {bundle.spec.name}", str(weights))
    net.spec = net.spec.model_copy(update={"mean": bundle.spec.net.mean, "std": bundle.spec.net.std})
    return loaded


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by our names: safetensors, or a state dict of torch, also one that a training script put
    under `model` or `state_dict`. Raises UserError where it is neither, or holds more than tensors.
    """
    if path.suffix == ".safetensors":
        try:
            return own_names(load_file(path))
        except (SafetensorError, OSError) as error:
            raise UserError(f"is not a readable safetensors file ({error})", where=str(path)) from error
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise UserError(
            "is no state dict of torch that holds tensors only",
            where=str(path),
            fix="save it with torch.save(model.state_dict(), ...), or as safetensors",
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            value = value[wrapper]
    if not isinstance(value, dict) or not value or not all(isinstance(t, Tensor) for t in value.values()):
        raise UserError("holds no state dict", where=str(path), fix="save model.state_dict(), not the model")
    return own_names(value)


def official_state(url: str, cache: Path) -> dict[str, Tensor]:
    """The state dict of one of torchvision's files: from the folder `cache`, or fetched into it. Its hash is checked
    either way. Raises UserError for another file under its name, RunError where it cannot be fetched.
    """
    path = cache / url.rsplit("/", 1)[1]
    if not path.is_file():
        _download(url, path)
    expected = path.stem.rsplit("-", 1)[1]  # torchvision names its files by the first digits of their SHA-256
    found = sha256_of(path)
    if not found.startswith(expected):
        raise UserError(
            f"is not torchvision's file (sha256 {found[:12]}… instead of {expected}…)",
            where=str(path),
            fix="delete it and run the same command again",
        )
    return read_state(path)


def load_matching(net: nn.Module, state: Mapping[str, Tensor], where: str) -> tuple[str, ...]:
    """Load tensors by name; returns the names that stay as drawn. Only the layers that name the classes, IR-Net's
    modules, or all but the trunk may be left; any other tensor that is missing, unknown or of another shape is refused
    with its name (UserError).
    """
    own = net.state_dict()
    state = {k: v for k, v in state.items() if k in own or not k.endswith("num_batches_tracked")}  # frozen ones lack it
    state = {k: v for k, v in state.items() if not (k.startswith(_CLASS_LAYERS) and _differ(k, v, own))}
    of_trunk = all(name.startswith(_TRUNKS) for name in state)
    unknown = [name for name in state if name not in own]
    if unknown:
        raise UserError(
            f"has a tensor {unknown[0]!r} that the network does not know",
            where=where,
            fix="the weights belong to another architecture",
        )
    left = []
    for name, tensor in own.items():
        if name not in state:
            may = name.startswith((*_CLASS_LAYERS, *_RELATION_LAYERS, "extra.")) or name.endswith("num_batches_tracked")
            if not may and not (of_trunk and not name.startswith(_TRUNKS)):
                raise UserError(
                    f"has no tensor {name!r}", where=where, fix="the weights belong to another architecture"
                )
            left.append(name)
        elif state[name].shape != tensor.shape:
            raise UserError(
                f"tensor {name!r} has shape {tuple(state[name].shape)}, the network needs {tuple(tensor.shape)}",
                where=where,
                fix="the weights belong to another architecture",
            )
    net.load_state_dict({**own, **state})
    return tuple(name for name in left if not name.endswith("num_batches_tracked"))


def freeze_batch_norm(net: Net) -> None:
    """Turn the trained batch norms of a DetNet's trunk or a SegNet's encoder into fixed affine maps with the same
    statistics, and say so in `net.spec`.
    """
    freeze(net, _ENCODERS)
    net.spec = net.spec.model_copy(update={"frozen_batch_norm": True})


def _load(net: Net, state: Mapping[str, Tensor], what: str, where: str) -> Loaded:
    left = load_matching(net, state, where)
    freeze_batch_norm(net)
    if any(not name.startswith((*_CLASS_LAYERS, *_RELATION_LAYERS)) for name in left):
        said = "all but the trunk starts at random"
    elif left:
        new = (("the layers that name the classes", _CLASS_LAYERS), ("the relation modules", _RELATION_LAYERS))
        named = [text for text, prefixes in new if any(name.startswith(prefixes) for name in left)]
        said = f"{' and '.join(named)} start at random"
    else:
        said = "nothing starts at random"
    return Loaded(f"starting from {what}; {said}; its batch norm is frozen", left)


def _differ(name: str, tensor: Tensor, own: Mapping[str, Tensor]) -> bool:
    return name in own and own[name].shape != tensor.shape


def _trunk_name(net: Net) -> str:
    return net.spec.backbone if isinstance(net, DetNet) else net.spec.architecture


def _imagenet_state(net: Net) -> dict[str, Tensor]:
    """torchvision's file for the trunk, by our names."""
    name = _trunk_name(net)
    own = "--init NAME or --init PATH starts from other weights"
    if name not in _OFFICIAL:
        raise UserError(f"there are no ImageNet weights for {name}", where="--init imagenet", fix=own)
    if isinstance(net.spec, NetSpec) and net.spec.width != 1:
        raise UserError(
            f"there are no ImageNet weights for {name} at width {net.spec.width:g}",
            where="--init imagenet",
            fix=f"choose a ResNet architecture; {own}",
        )
    return official_state(_OFFICIAL[name].url, Path(torch.hub.get_dir()) / "checkpoints")


def _download(url: str, path: Path) -> None:
    """Fetch a file whole or not at all. Raises RunError that says what to do on a machine without a network."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), progress=False)
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise RunError(
            f"could not be fetched ({getattr(error, 'reason', error)})",
            where=url,
            fix=f"without a network: copy that file to {path}, or give any weights you have with --init PATH",
        ) from error
    except OSError as error:
        raise disk_error(error, path) from error


def _same_network(net: Net, bundle: Bundle) -> None:
    """Refuse a bundle of another network by the first field that differs; classes and normalisation may differ."""
    own, other = net.spec.model_dump(), bundle.spec.net.model_dump()
    free = {"classes", "mean", "std", "frozen_batch_norm", "relations", "rois_per_image", "train_proposals", "dropout"}
    for field in own.keys() | other.keys() if own["architecture"] == other["architecture"] else ["architecture"]:
        if field not in free and own.get(field) != other.get(field):
            raise UserError(
                f"{field} is {other.get(field)}, the network's is {own.get(field)}",
                where=str(bundle.folder / MODEL_FILE),
                fix="give the recipe the same network",
            )
