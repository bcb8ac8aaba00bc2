"""One run from its parts: cytopipe's own engine, and around it what the table needs to know."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import torch

from cytopipe.core.files import write_json
from cytopipe.core.progress import unsaid
from cytopipe.core.seeds import seed_from
from cytopipe.data import Batches, ImagePool, LoaderSettings
from cytopipe.methods import find_method
from cytopipe.nets import Net, NetSpec, SegSpec, build_net, build_segnet, inference_state
from cytopipe.nets.bundle import load_state
from cytopipe.train.build import iterations_per_epoch, view_plan
from cytopipe.train.engine import CHECKPOINTS, Engine, Parts
from cytopipe.train.log import read_log
from cytopipe.train.tasks import check_method
from cytopipe.train.validate import validate
from tests.benchmarks.evidence.measure import Keeper, probed
from tests.benchmarks.evidence.pools import Pools, pools_of

if TYPE_CHECKING:
    from tests.benchmarks.evidence.run import Case

ALL = 10**9
PROBES = 20  # gradient norms are taken so often in a run


def train_and_test(case: Case, data: Path, work: Path, folder: Path, device: str) -> dict[str, Any]:
    """Everything that the JSON file says of a run beside what it is (`run.identity`)."""
    if device == "cpu":
        torch.set_num_threads(1)
    cv2.setNumThreads(1)
    clock = Stopwatch(folder / "seconds.json")
    pools = pools_of(case.of, data, work, case.labels, case.seed)
    parts, hashes = assemble(case, pools, torch.device(device))
    engine = Engine(parts, folder, clock.on_progress, unsaid)
    keeper = Keeper(folder / CHECKPOINTS, parts.validation, parts.settings, pools.unlabelled, case.of.hidden_images)
    engine.chooser = keeper
    progress = engine.run()
    clock.write()
    tested = Tested(pools.test)
    test = {"last_student": tested(engine.student)}
    if engine.teacher is not None:
        test["last_teacher"] = tested(engine.teacher.net)
    best: Net = engine.student
    for name in ("student", "teacher"):
        if keeper.own_file(name).exists():
            load_state(best, keeper.own_file(name))
            test[name] = tested(best)
    load_state(best, engine.best_state())
    test["chosen"] = tested(best)
    by_kind = {kind: validate(best, pool, ALL).metrics for kind, pool in pools.test_by_kind.items()}
    log = read_log(folder)
    return {
        "data_sha256": pools.digest,
        "counts": {
            "labelled": len(pools.labelled),
            "unlabelled": len(pools.unlabelled),
            "validation": len(pools.validation),
            "test": len(pools.test),
            "parameters": sum(p.numel() for p in engine.student.parameters()),
        },
        "chosen": {"network": progress.best_network, "iteration": progress.best_t, "validation": progress.best_value},
        "test": test,
        "test_by_kind": by_kind,
        "validation": [{"t": row["t"], **row["val"]} for row in log if "val" in row],
        "signals": _sampled([row for row in log if "losses" in row]),
        "warnings": [line for row in log for line in row.get("warnings", [])],
        "seconds": clock.total(),
        **hashes,
    }


def assemble(case: Case, pools: Pools, device: torch.device) -> tuple[Parts, dict[str, str]]:
    """The parts of a run; and hashes of the first weights and labelled batches, which rows of a table must share."""
    task = case.of
    settings = task.settings(task.rows[case.row], case.iterations)
    config = check_method(settings, has_unlabelled=True)
    student = network(task.spec(), case.seed)
    hashes = {"initial_weights_sha256": _hash(*student.state_dict().values())}
    kind = probed(find_method(settings.method), max(settings.iterations // PROBES, 1))
    method = kind(student.spec, config, seed=case.seed)
    method.attach(student)
    loader = LoaderSettings(
        case.seed, settings.crop_px, settings.batch_labelled, settings.batch_labelled * settings.ratio, settings.zoom
    )
    unlabelled: ImagePool | None = pools.unlabelled if method.uses_unlabelled else None
    batches = Batches(pools.labelled, unlabelled, view_plan(method, settings), student.spec, loader)
    views = [batches.batch(t).labelled.weak for t in (0, 1, settings.iterations - 1)]
    hashes["labelled_batches_sha256"] = _hash(*(view.image for view in views))
    epoch = iterations_per_epoch(settings, len(pools.labelled), len(pools.unlabelled))
    parts = Parts(
        student.to(memory_format=torch.channels_last),
        method,
        batches,
        pools.validation,
        settings,
        epoch,
        case.seed,
        device,
        0 if device.type == "cpu" else 8,
    )
    return parts, hashes


def network(spec: NetSpec | SegSpec, seed: int) -> Net:
    """The network with its first weights: they depend on the spec and the seed alone, as in `train`."""
    torch.manual_seed(seed_from(seed, "network"))
    return build_segnet(spec) if isinstance(spec, SegSpec) else build_net(spec)


class Tested:
    """Metrics on the test part; the same weights are not looked at twice."""

    def __init__(self, pool: ImagePool) -> None:
        self._pool, self._known = pool, dict[str, dict[str, float]]()

    def __call__(self, net: Net) -> dict[str, float]:
        key = _hash(*inference_state(net).values())
        if key not in self._known:
            self._known[key] = validate(net, self._pool, ALL).metrics
        return self._known[key]


@dataclass
class Stopwatch:
    """Wall and processor time of a run, over all processes that had a part in it, without what a kill undid."""

    path: Path
    pieces: dict[str, list[float]] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    start: int | None = None

    def on_progress(self, done: int, total: int, unit: str, status: str = "") -> None:
        """Called by the engine after each iteration."""
        if self.start is None:
            self.start = done - 1
            self.pieces = {k: v for k, v in self._read().items() if int(k) < self.start}
        self.pieces[str(self.start)] = [done, time.perf_counter() - self.began, time.process_time()]
        if done % 20 == 0 or done == total:
            self.write()

    def write(self) -> None:
        """Keep what was measured so far."""
        if self.pieces:
            write_json(self.path, self.pieces)

    def total(self) -> dict[str, float]:
        """wall, cpu: of training with its validations; wall_iteration, cpu_iteration: a step with its share of them."""
        pieces = self._read()
        if not pieces:
            return {}
        starts = sorted(map(int, pieces))
        wall, cpu, steps = 0.0, 0.0, 0
        for start, end in zip(starts, [*starts[1:], None], strict=True):
            done, seconds, processor = pieces[str(start)]
            kept = 1.0 if end is None else min((end - start) / (done - start), 1.0)
            wall, cpu, steps = wall + kept * seconds, cpu + kept * processor, steps + round(kept * (done - start))
        return {"wall": wall, "cpu": cpu, "wall_iteration": wall / steps, "cpu_iteration": cpu / steps}

    def _read(self) -> dict[str, list[float]]:
        return json.loads(self.path.read_text()) if self.path.exists() else {}


def _sampled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Losses, weights and signals of the iterations with gradient norms."""
    kept = [row for row in rows if "grad_supervised" in row["signals"]]
    return [{name: row[name] for name in ("t", "losses", "weights", "signals")} for row in kept]


def _hash(*tensors: torch.Tensor) -> str:
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
