"""The model bundle: a folder that `infer`, `mine-unlabeled` and `train --init` take by name or path. This module alone
reads and writes it.

    NAME/model.toml            the fields of `BundleSpec`, schema version 1
    NAME/weights.safetensors   the state of the network, float32; its SHA-256 stands in model.toml
    NAME/CARD.md               what it is for and what not, data and licences, metrics

Shipped bundles stand under models/ and are found by name; a run folder of `train` is itself a bundle. No file of it is
a pickle.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from cytopipe.core.errors import UserError, nearest_fix
from cytopipe.core.files import sha256_of, write_bytes, write_text
from cytopipe.core.resources import shipped
from cytopipe.nets.detnet import DetNet, build_net
from cytopipe.nets.receptive import receptive_radius_px
from cytopipe.nets.segnet import SegNet, build_segnet
from cytopipe.nets.spec import OBJECTS, SEMANTIC, AnySpec, NetSpec, SegSpec

SCHEMA_VERSION = 1
MODEL_FILE, WEIGHTS_FILE, CARD_FILE = "model.toml", "weights.safetensors", "CARD.md"
DEFAULT_MODEL = "pap-light"

AnyNet = TypeVar("AnyNet", bound=nn.Module)


class Thresholds(BaseModel):
    """Where a detection counts as found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    score: dict[str, float] = Field(
        default_factory=dict,
        description="least score by kind, chosen on validation by the best F1 at box IoU 0.5; none for semantic models",
    )
    nms_iou: float = Field(
        0.5, gt=0, le=1, description="box IoU above which detections of one kind in one window suppress each other"
    )
    max_detections: int = Field(1000, gt=0, description="most detections a window")


class BundleSpec(BaseModel):
    """model.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = Field(SCHEMA_VERSION, description="of this file")
    name: str = Field(description="of the bundle")
    net: AnySpec
    mpp: float = Field(gt=0, description="µm/px at which the network sees")
    tile_px: int = Field(gt=0, description="side of the inference window in px at that mpp; a multiple of 64")
    max_object_px: float = Field(
        0.0,
        ge=0,
        description="99.9th percentile of the longer side of the training objects, px at that mpp; 0 if semantic",
    )
    receptive_field_px: int = Field(
        gt=0,
        description="theoretical radius of what a feature (semantic: a pixel's logits) depends on, px at that mpp",
    )
    background: str = Field("light", description="light (bright field) or dark (fluorescence): what it was trained on")
    stain_glass: tuple[float, float, float] | None = Field(
        None, description="grey level of empty glass of its training slides, per channel"
    )
    stain_density: tuple[float, float, float] | None = Field(
        None, description="mean optical density of their stained px, per channel, against that glass"
    )
    thresholds: Thresholds = Field(default_factory=Thresholds)
    training: dict[str, str] = Field(default_factory=dict, description="data, licences, command, seed, iterations")
    metrics: dict[str, float] = Field(default_factory=dict, description="on validation data, by name")
    weights_sha256: str = Field(description="of weights.safetensors")

    @model_validator(mode="after")
    def _fits_its_task(self) -> BundleSpec:
        if isinstance(self.net, SegSpec):
            radius_px = receptive_radius_px(self.net)
            if self.receptive_field_px < radius_px:  # windows would be blended too near to their edges
                raise ValueError(
                    f"receptive_field_px {self.receptive_field_px}: {self.net.architecture} looks {radius_px} px far"
                )
        elif self.max_object_px <= 0:
            raise ValueError("max_object_px is missing, or not above 0")
        return self

    @property
    def task(self) -> Literal["detection", "instance", "semantic"]:
        """What the model answers with."""
        return self.net.task


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle that was read: its description and where it lies."""

    spec: BundleSpec
    folder: Path

    def build(self) -> DetNet:
        """The detector with its weights, in eval mode on the CPU. Raises UserError where hash or shapes do not fit, by
        name, and for a semantic model.
        """
        if not isinstance(self.spec.net, NetSpec):
            raise UserError(
                f"model {self.spec.name} is a semantic one, and a detection or instance model is needed",
                where=str(self.folder / MODEL_FILE),
            )
        return self._loaded(build_net(self.spec.net))

    def build_segnet(self) -> SegNet:
        """The semantic network with its weights, in eval mode on the CPU. Raises UserError as `build`, and for a model
        of another task.
        """
        if not isinstance(self.spec.net, SegSpec):
            raise UserError(
                f"model {self.spec.name} is one for {self.spec.task}, and a semantic model is needed",
                where=str(self.folder / MODEL_FILE),
            )
        return self._loaded(build_segnet(self.spec.net))

    def check_hash(self) -> None:
        """Raise UserError where the weights are not the file that model.toml describes."""
        path = self.folder / WEIGHTS_FILE
        found = sha256_of(path)
        if found != self.spec.weights_sha256:
            raise UserError(
                f"is not the file that model.toml describes (sha256 {found[:12]}… instead of "
                f"{self.spec.weights_sha256[:12]}…)",
                where=str(path),
            )

    def _loaded(self, net: AnyNet) -> AnyNet:
        self.check_hash()
        load_state(net, self.folder / WEIGHTS_FILE)
        return net.eval()


def load_state(net: nn.Module, path: Path) -> None:
    """Load a safetensors state into a network, exactly. Raises UserError naming the first tensor that is missing,
    unknown or of another shape.
    """
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"is not a readable safetensors file ({error})", where=str(path)) from error
    own = net.state_dict()
    for name, tensor in own.items():
        if name not in state:
            raise UserError(
                f"has no tensor {name!r}", where=str(path), fix="the weights belong to another architecture"
            )
        if state[name].shape != tensor.shape:
            raise UserError(
                f"tensor {name!r} has shape {tuple(state[name].shape)}, the network needs {tuple(tensor.shape)}",
                where=str(path),
                fix="classes or architecture differ",
            )
    extra = [name for name in state if name not in own]
    if extra:
        raise UserError(f"has a tensor {extra[0]!r} that the network does not know", where=str(path))
    net.load_state_dict(state)


def save_state(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically; order and bytes depend on the values only."""
    write_bytes(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in sorted(state.items())}))


def inference_state(net: nn.Module) -> dict[str, Tensor]:
    """The state a bundle ships: everything but what a method attached for training."""
    return {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("extra.")}


def save_bundle(folder: Path, spec: BundleSpec, state: Mapping[str, Tensor], card: str) -> Bundle:
    """Write weights, card and model.toml (last, so that a torn bundle has none); the hash is filled in."""
    folder.mkdir(parents=True, exist_ok=True)
    save_state(folder / WEIGHTS_FILE, state)
    spec = spec.model_copy(update={"weights_sha256": sha256_of(folder / WEIGHTS_FILE)})
    write_text(folder / CARD_FILE, card)
    write_text(folder / MODEL_FILE, _toml(json.loads(spec.model_dump_json())))
    return Bundle(spec, folder)


def load_bundle(name: str | Path) -> Bundle:
    """A bundle by the name of a shipped one or by its folder. Raises UserError for an unknown name (naming the nearest)
    or a broken model.toml.
    """
    folder = Path(name)
    if not (folder / MODEL_FILE).is_file():
        named = shipped("models") / str(name)
        if folder.exists() and not (named / MODEL_FILE).is_file():
            raise UserError(
                f"holds no {MODEL_FILE}, so it is no model bundle",
                where=str(folder),
                fix="give a run folder of `cytopipe train`, or a name that `cytopipe models` lists",
            )
        folder = named
    path = folder / MODEL_FILE
    if not path.is_file():
        raise UserError(f"unknown model {str(name)!r}", fix=nearest_fix(str(name), list_bundles(), "shipped models"))
    try:
        spec = BundleSpec.model_validate(tomllib.loads(path.read_text()))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        first = error.errors()[0] if isinstance(error, ValidationError) else None
        what = (
            f"{'.'.join(str(p) for p in first['loc'] if p not in (OBJECTS, SEMANTIC))}: {first['msg']}"
            if first
            else str(error)
        )
        raise UserError(f"is no model description ({what})", where=str(path)) from error
    return Bundle(spec, folder)


def list_bundles() -> list[str]:
    """Names of the shipped bundles, sorted."""
    root = shipped("models")
    return sorted(p.parent.name for p in root.glob(f"*/{MODEL_FILE}"))


def _toml(value: dict[str, Any]) -> str:
    """A nested dict of JSON values as TOML: scalars first, then tables; lists of dicts as inline tables. None is left
    out.
    """
    lines: list[str] = []

    def write(table: dict[str, Any], prefix: str) -> None:
        items = [(k, v) for k, v in table.items() if v is not None]
        for key, item in items:
            if not isinstance(item, dict):
                lines.append(f"{_key(key)} = {_scalar(item)}")
        for key, item in items:
            if isinstance(item, dict):
                lines.append(f"\n[{prefix}{_key(key)}]")
                write(item, f"{prefix}{_key(key)}.")

    write(value, "")
    return "\n".join(lines) + "\n"


def _key(key: str) -> str:
    return key if key.replace("-", "").replace("_", "").isalnum() and key.isascii() else json.dumps(key)


def _scalar(value: Any) -> str:
    if isinstance(value, list):
        inner = ",\n  ".join(_scalar(v) for v in value)
        return (
            f"[\n  {inner},\n]"
            if any(isinstance(v, dict) for v in value)
            else "[" + ", ".join(_scalar(v) for v in value) + "]"
        )
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(k)} = {_scalar(v)}" for k, v in value.items()) + " }"
    return json.dumps(value, ensure_ascii=False)
