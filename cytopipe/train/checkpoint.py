"""A checkpoint: everything that the next iteration depends on, as safetensors and JSON. No file of it is a pickle.

    RUN/checkpoints/T.safetensors   student.*, teacher.*, method.*, optimiser.<index>.<name>, after T iterations (eight
                                    digits)
    RUN/checkpoints/T.json          t, the best validation so far with its network, the loss scale of fp16; written
                                    second: a pair is whole when it is there

Batches, schedules and torch's random stream are functions of (seed, t), so they need no state.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from cytopipe.core.errors import RunError
from cytopipe.core.files import write_bytes, write_json


@dataclass(slots=True)
class Progress:
    """Where a run stands: t iterations done; the best validation so far (value, at which t, which network); and the
    loss scale (train/precision.py).
    """

    t: int = 0
    best_value: float | None = None
    best_t: int = 0
    best_network: str = "student"
    scale: dict[str, float] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write the state of iteration `progress.t`, under a name of its own, then forget the older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors.update({f"{name}.{key}": value for key, value in module.state_dict().items()})
    for index, state in optimiser.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"optimiser.{index}.{key}"] = torch.as_tensor(value)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in sorted(tensors.items())}
    path = folder / f"{progress.t:08d}.safetensors"
    write_bytes(path, save(tensors))
    write_json(path.with_suffix(".json"), asdict(progress))
    for old in folder.iterdir():
        if old.stem.isdigit() and int(old.stem) != progress.t:
            old.unlink()


def load_checkpoint(folder: Path, modules: dict[str, nn.Module], optimiser: torch.optim.Optimizer) -> Progress | None:
    """Restore the newest whole checkpoint of the folder; None where there is none. Raises RunError for one that cannot
    be read.
    """
    whole = (
        sorted(p for p in folder.glob("*.json") if p.with_suffix(".safetensors").exists()) if folder.is_dir() else []
    )
    if not whole:
        return None
    path = whole[-1].with_suffix(".safetensors")
    try:
        facts: dict[str, Any] = json.loads(whole[-1].read_text())
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"cannot be read ({error})", where=str(path), fix="--overwrite starts the run anew") from error
    for name, module in modules.items():
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        module.load_state_dict(own)
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".", 2)
            state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return Progress(**facts)
