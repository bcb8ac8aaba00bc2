"""The loop: batches in, optimiser steps, an EMA teacher if the method has one, validation, checkpoints. It knows no
word of any method's mathematics.

Every iteration is a function of the state after the one before and of (seed, t): the batch, the schedules and torch's
random stream are all derived from
them. Hence a run that was killed goes on from its checkpoint and ends with the weights of an unbroken one.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cytopipe.core.errors import RunError
from cytopipe.core.progress import OnProgress, Say
from cytopipe.core.seeds import seed_from
from cytopipe.data import Batches, TilePool, prefetch
from cytopipe.methods import Method
from cytopipe.nets import DetNet, inference_state
from cytopipe.nets.bundle import save_state
from cytopipe.semi import Batch, Clock, EmaTeacher, Part, Targets, View
from cytopipe.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from cytopipe.train.log import RunLog
from cytopipe.train.settings import TrainSettings
from cytopipe.train.validate import Validation, validate

CHECKPOINTS = "checkpoints"
BEST_FILE = "best-{network}.safetensors"  # the better network's inference state at the best validation so far


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a run is made of; `build.assemble` makes it."""

    student: DetNet
    method: Method
    batches: Batches
    validation: TilePool
    settings: TrainSettings
    iterations_per_epoch: int
    seed: int
    device: torch.device
    loader_threads: int


class Engine:
    """One run in one folder."""

    def __init__(self, parts: Parts, folder: Path, on_progress: OnProgress, say: Say) -> None:
        self.parts, self.folder, self._on_progress, self._say = parts, folder, on_progress, say
        self.student = parts.student.to(parts.device)
        self.method = parts.method.to(parts.device)
        rule = self.method.teacher()
        self.teacher = EmaTeacher(self.student, rule) if rule is not None else None
        self.optimiser, self._base_lr = _optimiser(self.student, self.method, parts.settings)
        self.progress = Progress()

    def run(self) -> Progress:
        """Train to the end from wherever the folder stands; returns where the best validation was."""
        settings = self.parts.settings
        (self.folder / CHECKPOINTS).mkdir(exist_ok=True)
        restored = load_checkpoint(self.folder / CHECKPOINTS, self._modules(), self.optimiser)
        if restored is not None:
            self.progress = restored
            self._say(f"resuming after iteration {restored.t} of {settings.iterations}")
        log = RunLog(self.folder, self.progress.t)
        self.student.train()
        first = self.progress.t
        for t, batch in enumerate(
            prefetch(self.parts.batches, first, settings.iterations, self.parts.loader_threads), start=first
        ):
            log.write(self._step(t, batch))
            self.progress.t = t + 1
            if self.progress.t % settings.val_every == 0 or self.progress.t == settings.iterations:
                log.write(self._validate())
                log.sync()
                save_checkpoint(self.folder / CHECKPOINTS, self._modules(), self.optimiser, self.progress)
            self._on_progress(self.progress.t, settings.iterations, "iterations")
        return self.progress

    def best_state(self) -> Path:
        """The weights of the network that validated best."""
        return self.folder / CHECKPOINTS / BEST_FILE.format(network=self.progress.best_network)

    def _step(self, t: int, batch: Batch) -> dict[str, Any]:
        """One optimiser step; `losses` is the engine's only contact with the method. Returns the line of the log."""
        started = time.perf_counter()
        settings = self.parts.settings
        clock = Clock(t, settings.iterations, self.parts.iterations_per_epoch)
        torch.manual_seed(seed_from(self.parts.seed, "step", t))
        factor = settings.lr_factor(t)
        for group, base in zip(self.optimiser.param_groups, self._base_lr, strict=True):
            group["lr"] = base * factor
        with self._precision():
            terms = self.method.losses(
                _on_device(batch, self.parts.device), self.student, self.teacher and self.teacher.net, clock
            )
        total: Tensor = sum(
            (term.weight * term.value for term in terms.values()), start=torch.zeros((), device=self.parts.device)
        )
        values = {name: float(term.value.detach()) for name, term in terms.items()}
        self._refuse_not_finite(total, values, t)
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        if settings.grad_clip_norm is not None:
            nn.utils.clip_grad_norm_(
                [p for g in self.optimiser.param_groups for p in g["params"]], settings.grad_clip_norm
            )
        self.optimiser.step()
        if self.teacher is not None:
            self.teacher.follow(self.student)
        self.method.after_step(clock)
        return {
            "t": t,
            "losses": values,
            "weights": {name: term.weight for name, term in terms.items()},
            "total": float(total.detach()),
            "lr": settings.lr * factor,
            "signals": self.method.signals(),
            "seconds": round(time.perf_counter() - started, 3),
        }

    def _validate(self) -> dict[str, Any]:
        """Metrics of student and teacher; keeps the weights of the better one if it beats every validation before."""
        started = time.perf_counter()
        networks = {"student": self.student} | ({"teacher": self.teacher.net} if self.teacher is not None else {})
        results: dict[str, Validation] = {}
        for name, net in networks.items():
            results[name] = validate(net, self.parts.validation, self.parts.settings.val_tiles)
            value = results[name].metrics.get(self.parts.settings.val_metric, 0.0)
            if self.progress.best_value is None or value > self.progress.best_value:
                self.progress.best_value, self.progress.best_t, self.progress.best_network = (
                    value,
                    self.progress.t,
                    name,
                )
                save_state(self.folder / CHECKPOINTS / BEST_FILE.format(network=name), inference_state(net))
        shown = ", ".join(f"{n} {r.metrics.get(self.parts.settings.val_metric, 0.0):.3f}" for n, r in results.items())
        self._say(f"iteration {self.progress.t}: validation {self.parts.settings.val_metric} {shown}")
        return {
            "t": self.progress.t,
            "val": {n: r.metrics for n, r in results.items()},
            "seconds": round(time.perf_counter() - started, 3),
        }

    def _refuse_not_finite(self, total: Tensor, values: dict[str, float], t: int) -> None:
        if not torch.isfinite(total):
            bad = [name for name, value in values.items() if not torch.isfinite(torch.tensor(value))]
            raise RunError(
                f"the loss is not finite at iteration {t}",
                where=f"{', '.join(bad) or 'sum of the losses'} in {self.folder}",
                fix="lower train.lr or give train.grad_clip_norm; the last checkpoint is kept",
            )

    def _modules(self) -> dict[str, nn.Module]:
        return {"student": self.student, "method": self.method} | (
            {"teacher": self.teacher} if self.teacher is not None else {}
        )

    def _precision(self) -> AbstractContextManager[Any]:
        if self.parts.settings.amp == "bf16":
            return torch.autocast(self.parts.device.type, dtype=torch.bfloat16)
        return nullcontext()


def _optimiser(student: DetNet, method: Method, settings: TrainSettings) -> tuple[torch.optim.Optimizer, list[float]]:
    """One optimiser: the student's parameters by the recipe, then the method's own groups; and the start learning rate
    of each group.
    """
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in student.parameters() if p.requires_grad],
            "lr": settings.lr,
            "weight_decay": settings.weight_decay,
        }
    ]
    if settings.optimiser == "sgd":
        groups[0]["momentum"] = settings.momentum
    for group in method.groups():
        extra = {"momentum": group.momentum} if settings.optimiser == "sgd" else {}
        groups.append({"params": list(group.parameters), "lr": group.lr, "weight_decay": group.weight_decay, **extra})
    kind = torch.optim.SGD if settings.optimiser == "sgd" else torch.optim.Adam
    return kind(groups, lr=settings.lr), [g["lr"] for g in groups]


def _on_device(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch

    def view(v: View | None) -> View | None:
        if v is None:
            return None
        targets = tuple(
            Targets(t.boxes.to(device), t.labels.to(device), None if t.masks is None else t.masks.to(device))
            for t in v.targets
        )
        return View(v.image.to(device, non_blocking=True), targets, v.affine, v.keys)

    def part(p: Part) -> Part:
        weak = view(p.weak)
        if weak is None:
            raise ValueError("a part of a batch has no weak view")
        return Part(weak, view(p.strong))

    return Batch(part(batch.labelled), None if batch.unlabelled is None else part(batch.unlabelled))
