"""The loop: batches in, optimiser steps, an EMA teacher if the method has one, validation, checkpoints. It knows no
word of any method's mathematics, and one loop serves all tasks.

Every iteration is a function of the state after the one before and of (seed, t): the batch, the schedules and torch's
random stream are all derived from them. Hence a run that was killed goes on from its checkpoint and ends with the
weights and the log of an unbroken one.

Several processes (ranks) may run the same loop, each on its part of the global batch: gradients, losses and signals are
averaged after each backward pass, and the first rank alone validates and writes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cytopipe.core.errors import RunError
from cytopipe.core.progress import OnProgress, Say
from cytopipe.core.seeds import seed_from
from cytopipe.data import Batches, ImagePool, prefetch
from cytopipe.methods import Method
from cytopipe.nets import Net, ranks
from cytopipe.semi import Batch, Clock, EmaTeacher, Weighted
from cytopipe.semi.signals import labelled_signals
from cytopipe.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from cytopipe.train.choose import Chooser
from cytopipe.train.collapse import CollapseDetector, CollapseSettings, not_finite
from cytopipe.train.feed import parts_of
from cytopipe.train.log import RunLog, read_log
from cytopipe.train.optimiser import Optimiser
from cytopipe.train.precision import Precision
from cytopipe.train.reduce import (
    average,
    average_gradients,
    joined_signals,
    over_parts,
    same_on_all,
    wait_for_all,
    with_shared_statistics,
)
from cytopipe.train.settings import TrainSettings
from cytopipe.train.status import StatusLine

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """What a run is made of; `build.assemble` makes it."""

    student: Net
    method: Method
    batches: Batches
    validation: ImagePool
    settings: TrainSettings
    iterations_per_epoch: int
    seed: int
    device: torch.device
    loader_threads: int


class Engine:
    """One run in one folder."""

    def __init__(self, parts: Parts, folder: Path, on_progress: OnProgress, say: Say) -> None:
        self.parts, self.folder, self._on_progress, self._say = parts, folder, on_progress, say
        self.is_first = ranks.rank() == 0
        self.student = with_shared_statistics(parts.student.to(parts.device))
        self.method = parts.method.to(parts.device)
        same_on_all((self.student, self.method))
        rule = self.method.teacher()
        self.teacher = EmaTeacher(self.student, rule) if rule is not None else None
        self.optimiser = Optimiser(self.student, self.method, parts.settings)
        self.precision = Precision(parts.settings.amp, parts.device)
        self.progress = Progress()
        self.chooser = Chooser(folder / CHECKPOINTS, parts.validation, parts.settings)
        self._status = StatusLine(_images_of_a_step(parts), parts.settings.metric)
        self._names = [item.name for item in parts.student.spec.classes]
        self._detector = CollapseDetector(
            CollapseSettings(
                parts.settings.iterations,
                parts.settings.metric,
                parts.settings.monitor_every,
                rule.start if rule is not None else 0,
                parts.settings.batch_labelled,
                self.method.config.model_dump(),
            )
        )

    def run(self) -> Progress:
        """Train to the end from wherever the folder stands; returns where the best validation was.

        Raises RunError for a loss or a weight that is not finite; the last checkpoint is kept.
        """
        self._resume()
        if not self.is_first:
            self._loop(None)
            return self.progress
        with RunLog(self.folder, self.progress.t) as log:
            self._detector.replay(read_log(self.folder))
            self._loop(log)
        return self.progress

    def best_state(self) -> Path:
        """The weights of the network that validated best."""
        return self.chooser.file(self.progress.best_network)

    def _loop(self, log: RunLog | None) -> None:
        """All iterations that are left; only the first rank has a log, validates and saves."""
        settings, first = self.parts.settings, self.progress.t
        self._train_mode()
        upcoming = prefetch(self.parts.batches, first, settings.iterations, self.parts.loader_threads)
        for t, batch in enumerate(upcoming, start=first):
            row = self._step(t, batch)
            self.progress.t = t + 1
            if log is not None:
                log.write(self._judged(row))
            if self.progress.t % settings.val_every == 0 or self.progress.t == settings.iterations:
                same_on_all(self._modules().values())  # running statistics, where each rank has its own
                if log is not None:
                    self._refuse_broken_weights()
                    log.write(self._judged(self._validate()))
                    log.sync()
                    self._save()
                wait_for_all()
            self._on_progress(self.progress.t, settings.iterations, "iterations", self._status.text())

    def _step(self, t: int, batch: Batch) -> dict[str, Any]:
        """One optimiser step; `losses` is the engine's only contact with the method. Returns the line of the log."""
        started = time.perf_counter()
        settings = self.parts.settings
        clock = Clock(t, settings.iterations, self.parts.iterations_per_epoch)
        _seed(seed_from(self.parts.seed, "step", t), self.parts.device)
        lr = self.optimiser.set_rate(t)
        if self.teacher is not None and t == self.teacher.rule.start:
            self.teacher.copy(self.student)
        self.optimiser.torch.zero_grad(set_to_none=True)
        sums: Tensor | float = 0.0
        signals: list[Mapping[str, float]] = []
        parts = parts_of(batch, settings.accumulate)
        for part in parts:
            if signals:
                self.method.after_step(clock)  # of the part before; the last one's follows the optimiser step
            terms = self._forward(part, clock)
            total = _weighted_sum(terms) / len(parts)
            self.precision.backward(total)
            sums = sums + torch.stack([total.detach(), *(term.value.detach() / len(parts) for term in terms.values())])
            first_view = next(iter(part.labelled.views.values()))
            signals.append(self.method.signals() | _floats(labelled_signals(first_view, self._names)))
        average_gradients(self.optimiser.parameters)
        total_value, *values = average(torch.as_tensor(sums).float()).tolist()  # the step's one wait for the device
        losses = dict(zip(terms, values, strict=True))
        self._refuse_not_finite(total_value, losses, t)
        norm = self.precision.step(self.optimiser.torch, self.optimiser.parameters, settings.grad_clip_norm)
        alpha = None
        if self.teacher is not None and t >= self.teacher.rule.start:
            alpha = self.teacher.follow(self.student)
        self.method.after_step(clock)
        row = {
            "t": t,
            "losses": losses,
            "weights": {name: term.weight for name, term in terms.items()},
            "total": total_value,
            "lr": lr,
            "signals": joined_signals(over_parts(signals), self.parts.device),
            "seconds": round(time.perf_counter() - started, 3),
        }
        extra = {"alpha": alpha, "grad_norm": norm, "loss_scale": self.precision.scale}
        return row | {name: value for name, value in extra.items() if value is not None and math.isfinite(value)}

    def _forward(self, part: Batch, clock: Clock) -> dict[str, Weighted]:
        with self.precision.forward():
            return self.method.losses(
                part.to(self.parts.device), self.student, self.teacher and self.teacher.net, clock
            )

    def _train_mode(self) -> None:
        self.student.train()
        if self.parts.settings.frozen_batch_norm:
            for module in self.student.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _judged(self, row: dict[str, Any]) -> dict[str, Any]:
        """The row with what the collapse detector says of it; also said aloud."""
        self._status.after(row)
        warnings = self._detector.look(row["t"], row.get("losses", {}), row.get("signals", {}), row.get("val"))
        for line in warnings:
            self._say(f"warning, iteration {row['t']}: {line}")
        return row | {"warnings": warnings} if warnings else row

    def _validate(self) -> dict[str, Any]:
        """Metrics of student and teacher; the better one is kept if it beats every validation before."""
        started = time.perf_counter()
        networks: dict[str, Net] = {"student": self.student}
        if self.teacher is not None and self.progress.t > self.teacher.rule.start:
            networks["teacher"] = self.teacher.net
        results = self.chooser.look(networks, self.progress)
        shown = ", ".join(f"{name} {self.chooser.value(result):.3f}" for name, result in results.items())
        self._train_mode()  # a validation leaves every module in train mode
        self._say(f"iteration {self.progress.t}: validation {self.parts.settings.metric} {shown}")
        return {
            "t": self.progress.t,
            "val": {name: result.metrics for name, result in results.items()},
            "seconds": round(time.perf_counter() - started, 3),
        }

    def _resume(self) -> None:
        folder = self.folder / CHECKPOINTS
        folder.mkdir(exist_ok=True)
        restored = load_checkpoint(folder, self._modules(), self.optimiser.torch)
        if restored is not None:
            self.progress = restored
            self.precision.restore(restored.scale)
            self._say(f"resuming after iteration {restored.t} of {self.parts.settings.iterations}")
        wait_for_all()  # nobody writes a new checkpoint while another rank still reads this one

    def _save(self) -> None:
        self.progress.scale = self.precision.state()
        save_checkpoint(self.folder / CHECKPOINTS, self._modules(), self.optimiser.torch, self.progress)

    def _refuse_not_finite(self, total: float, losses: dict[str, float], t: int) -> None:
        if not math.isfinite(total) or not all(map(math.isfinite, losses.values())):
            raise RunError(not_finite(t, losses | {"the sum of the losses": total}), where=str(self.folder))

    def _refuse_broken_weights(self) -> None:
        """A gradient can overflow where its loss did not: such weights must not replace a good checkpoint."""
        broken = [name for name, p in self.student.named_parameters() if not bool(torch.isfinite(p).all())]
        if broken:
            raise RunError(
                f"weights are not finite after iteration {self.progress.t}",
                where=f"{broken[0]} and {len(broken) - 1} more in {self.folder}",
                fix="lower train.lr or give train.grad_clip_norm; the last checkpoint is kept",
            )

    def _modules(self) -> dict[str, nn.Module]:
        return {"student": self.student, "method": self.method} | (
            {"teacher": self.teacher} if self.teacher is not None else {}
        )


def _images_of_a_step(parts: Parts) -> int:
    unlabelled = parts.settings.ratio if parts.batches.unlabelled is not None else 0
    return parts.settings.batch_labelled * (1 + unlabelled)


def _seed(seed: int, device: torch.device) -> None:
    """Seed what a step may draw from: torch's own generator, and the device's."""
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)  # manual_seed takes 0.5 ms: it keeps a stack for the GPU to come
    else:
        torch.manual_seed(seed)


def _weighted_sum(terms: Mapping[str, Weighted]) -> Tensor:
    return torch.stack([term.weight * term.value.float() for term in terms.values()]).sum()


def _floats(signals: Mapping[str, Tensor]) -> dict[str, float]:
    if not signals:
        return {}
    return dict(zip(signals, torch.stack([value.float() for value in signals.values()]).tolist(), strict=True))
