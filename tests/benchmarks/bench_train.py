"""What the training engine costs: its time an iteration and its peak memory, against a loop written by hand.

    python -m tests.benchmarks.bench_train [--cases boxes pixels] [--rounds 5] [--iterations 6] [--threads 2]
        [--views ready made memory] [--device cpu] [--json FILE]

The loop (`Loop`) is what one would write for the same work: forward, sum of the losses, backward, clipping, optimiser
step. It has the engine's network with the same first weights, losses, optimiser, schedule and batches, and neither log
nor checks. The engine is the real one, with its folder, log, TensorBoard, live line and collapse detector; method
`supervised`. Images are synthetic and lie decoded in memory.

    ready    batches are made beforehand for both: what the engine itself costs
    made     both make every batch: the engine in its loader threads, the loop inline. The row `made / ready`, which is
             not judged, sets the same turns of the engine beside a loop on ready batches: what prefetching leaves over
    memory   peak memory (VmHWM; on a GPU also the largest allocation) of each side in a process of its own, which makes
             its batches; the median of three processes

Both sides work in turns of `--iterations` in one process, after a turn that does not count. A turn of the engine ends
when its loader threads have nothing left to do. Ratios are medians over the rounds of engine / loop of one round.
Validations and checkpoints are no part of it: the engine has one of each at its very end, after the last turn.
On a machine with other work, judge by CPU seconds (all threads of the process): wall seconds then are chance.
`same work` is the largest difference of the total loss between the sides, over all iterations.

Limits: 1.05 for time, 1.10 for memory. Exit code 1 where one is broken.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import shapely
import torch
import torch.nn.functional as F
from torch import nn

from cytopipe.core.classes import class_named
from cytopipe.data import Batches, LoaderSettings, TileObjects
from cytopipe.data.pool import CachedPool
from cytopipe.nets import Net, NetSpec, SegSpec, build_net, build_segnet
from cytopipe.semi import JITTERED, Batch, ViewPlan

TIME_LIMIT, MEMORY_LIMIT = 1.05, 1.10
MEMORY_PROCESSES = 3
CLASSES = (class_named("nucleus"),)
SEED = 0
BATCH = 4
LR, CLIP_NORM = 1e-3, 10.0
CASES: dict[str, tuple[dict[str, Any], int]] = {  # network and crop, px
    "boxes": ({"architecture": "faster-rcnn-mobilenetv2-fpn"}, 256),
    "masks": ({"architecture": "mask-rcnn-mobilenetv2-fpn"}, 256),
    "pixels": ({"architecture": "unet"}, 192),
}


class Nuclei(CachedPool):
    """Dark ellipses on a bright ground, (side_px)² each, with their outlines."""

    def __init__(self, images: int, side_px: int, per_image: int = 60) -> None:
        super().__init__(images, CLASSES, 0.5)
        self._side_px, self._per_image = side_px, per_image

    def name(self, index: int) -> str:
        return f"image-{index}"

    def _read_image(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        image = rng.integers(200, 240, (self._side_px, self._side_px, 3)).astype(np.uint8)
        for outline in self._outlines(index):
            cv2.fillPoly(image, [np.round(outline).astype(np.int32)], (110, 60, 140))
        return cv2.GaussianBlur(image, (5, 5), 0)

    def _read_objects(self, index: int) -> TileObjects:
        shapes = np.array([shapely.Polygon(outline) for outline in self._outlines(index)], object)
        return TileObjects(np.ones(len(shapes), np.int64), shapes, np.ones(len(shapes), bool))

    def _outlines(self, index: int) -> list[np.ndarray]:
        rng = np.random.default_rng(1000 + index)
        angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        found = []
        for _ in range(self._per_image):
            centre, radii = rng.uniform(20, self._side_px - 20, 2), rng.uniform(6, 18, 2)
            found.append(centre + radii * np.stack([np.cos(angle), np.sin(angle)], axis=1))
        return found


class Counting:
    """Batches that count how many were made; `ready` ones were made before."""

    def __init__(self, batches: Batches, ready: list[Batch] | None = None) -> None:
        self._batches, self._ready, self.made = batches, ready, 0
        self.labelled, self.unlabelled, self.spec = batches.labelled, None, batches.spec

    def batch(self, t: int) -> Batch:
        made = self._batches.batch(t) if self._ready is None else self._ready[t % len(self._ready)]
        self.made += 1
        return made


class Loop:
    """The loop written by hand."""

    def __init__(self, net: Net, device: torch.device, iterations: int) -> None:
        self.net, self.device = net.to(device).train(), device
        self.optimiser = torch.optim.Adam(net.parameters(), lr=LR)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda t: 1 - t / iterations)
        self.losses: list[torch.Tensor] = []  # not read before the end

    def step(self, batch: Batch) -> None:
        batch = batch.to(self.device)
        view = batch.labelled.weak
        self.optimiser.zero_grad(set_to_none=True)
        if view.labels is not None:
            loss = F.cross_entropy(self.net(view.image), view.labels, ignore_index=255)
        else:
            feats = self.net.extract(view.image)
            loss = sum(self.net.losses(feats, view.targets, view.sizes, view.keys).terms.values())
        loss.backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), CLIP_NORM)
        self.optimiser.step()
        self.schedule.step()
        self.losses.append(loss.detach())


@dataclass(frozen=True)
class Work:
    """One case: what both sides work on."""

    case: str
    device: torch.device
    threads: int
    iterations: int

    @property
    def spec(self) -> NetSpec | SegSpec:
        net, _ = CASES[self.case]
        return (SegSpec if self.case == "pixels" else NetSpec).model_validate({**net, "classes": CLASSES})

    def net(self) -> Net:
        torch.manual_seed(SEED)
        net: Net = build_segnet(self.spec) if isinstance(self.spec, SegSpec) else build_net(self.spec)
        return net.to(memory_format=torch.channels_last)  # as `train` does

    def batches(self) -> Batches:
        _, crop_px = CASES[self.case]
        pool = Nuclei(16, 2 * crop_px)
        for i in range(len(pool)):  # everything decoded before anything is measured
            pool.image(i), pool.objects(i), pool.class_map(i)
        plan = ViewPlan({"weak": JITTERED}, {}).with_flips("both-and-turns")
        return Batches(pool, None, plan, self.spec, LoaderSettings(SEED, crop_px, BATCH, BATCH))

    def run_engine(self, batches: Any, folder: Path, on_progress: Callable[..., None]) -> None:
        """The real engine from its first iteration to its last; a copy of `Loop` in all that it computes."""
        from cytopipe.core.progress import unsaid  # the engine's rooms are no part of the loop's memory
        from cytopipe.methods.supervised import Supervised
        from cytopipe.train.engine import Engine, Parts
        from cytopipe.train.settings import TrainSettings

        net, crop_px = CASES[self.case]
        settings = TrainSettings.model_validate(
            {
                "architecture": net["architecture"],
                "iterations": self.iterations,
                "batch_labelled": BATCH,
                "crop_px": crop_px,
                "optimiser": "adam",
                "lr": LR,
                "weight_decay": 0.0,
                "schedule": "poly",
                "poly_power": 1.0,
                "grad_clip_norm": CLIP_NORM,
                "val_every": self.iterations,
                "val_tiles": 1,
            }
        )
        method = Supervised(self.spec, Supervised.Config(), seed=SEED)
        student = self.net()
        parts = Parts(student, method, batches, Nuclei(1, crop_px), settings, 10, SEED, self.device, self.threads)
        Engine(parts, folder, on_progress, unsaid).run()


class Turns:
    """The engine's progress callback, which gives the loops their turns.

    Every `each` iterations the engine stands still: the loops do the same iterations.
    """

    def __init__(self, work: Work, batches: Counting, loops: dict[str, tuple[Loop, Callable[[int], Batch]]], each: int):
        self._work, self._batches, self._loops, self._each = work, batches, loops, each
        self._began = (0.0, 0.0)
        self.seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ("engine", *loops)}  # wall, CPU

    def __call__(self, done: int, total: int, unit: str, status: str = "") -> None:
        if done % self._each or done == total:
            return
        while self._batches.made < min(done - 1 + 2 * self._work.threads, total):
            time.sleep(0.001)  # the loader threads are at it
        self._note("engine", done)
        for name, (loop, batch_of) in self._loops.items():
            self._begin()
            for t in range(done - self._each, done):
                loop.step(batch_of(t))
            self._note(name, done)
        self._begin()

    def _begin(self) -> None:
        gc.collect()
        _wait(self._work.device)
        self._began = (time.perf_counter(), time.process_time())

    def _note(self, name: str, done: int) -> None:
        _wait(self._work.device)
        if done > self._each:  # the first turn warms up
            began = self._began
            self.seconds[name].append((time.perf_counter() - began[0], time.process_time() - began[1]))


def timed(case: str, view: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """The rows of a case: engine against loop, wall and CPU."""
    each = given.iterations
    work = Work(case, torch.device(given.device), given.threads, (given.rounds + 1) * each + 1)
    real = work.batches()
    ready = [real.batch(t) for t in range(work.iterations if view == "made" else min(work.iterations, 8))]
    at_hand = Counting(real, ready)
    engines = Counting(real, ready if view == "ready" else None)
    loops = {"loop": (Loop(work.net(), work.device, work.iterations), at_hand.batch if view == "ready" else real.batch)}
    if view == "made":
        loops["loop, ready batches"] = (Loop(work.net(), work.device, work.iterations), at_hand.batch)
    turns = Turns(work, engines, loops, each)
    with tempfile.TemporaryDirectory() as folder:
        work.run_engine(engines, Path(folder), turns)
        log = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    totals = [row["total"] for row in map(json.loads, log) if "total" in row]
    engine, rows = np.array(turns.seconds["engine"]) / each, []
    for name, (loop, _) in loops.items():
        theirs = np.array(turns.seconds[name]) / each
        ratios = engine / theirs
        rows.append(
            {
                "case": case,
                "view": view if name == "loop" else f"{view} / ready",
                "engine_wall_s": float(np.median(engine[:, 0])),
                "loop_wall_s": float(np.median(theirs[:, 0])),
                "wall": float(np.median(ratios[:, 0])),
                "engine_cpu_s": float(np.median(engine[:, 1])),
                "loop_cpu_s": float(np.median(theirs[:, 1])),
                "cpu": float(np.median(ratios[:, 1])),
                "cpu_of_rounds": [round(float(r), 3) for r in ratios[:, 1]],
                "loss_difference": max(abs(a - float(b)) for a, b in zip(totals, loop.losses, strict=False)),
                "judged": name == "loop",
            }
        )
    return rows


def alone(case: str, side: str, given: argparse.Namespace) -> None:
    """One side in this process, batches made as it makes them; prints its peak memory in MiB."""
    work = Work(case, torch.device(given.device), given.threads, 3 * given.iterations)
    batches, before = work.batches(), _resident("VmRSS")
    peak: dict[str, float] = {}

    def look(done: int, total: int, unit: str = "", status: str = "") -> None:
        if done == total - 1:  # before the validation at the end
            peak.update(process=_resident("VmHWM"), before=before)
            if work.device.type == "cuda":
                peak["gpu"] = torch.cuda.max_memory_allocated() / 2**20

    if side == "engine":
        with tempfile.TemporaryDirectory() as folder:
            work.run_engine(batches, Path(folder), look)
    else:
        loop = Loop(work.net(), work.device, work.iterations)
        for t in range(work.iterations):
            loop.step(batches.batch(t))
            look(t + 1, work.iterations)
    print(json.dumps(peak))


def memory(case: str, given: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of both sides."""
    peaks: dict[str, dict[str, float]] = {}
    for side in ("engine", "loop"):
        command = [sys.executable, "-m", "tests.benchmarks.bench_train", "--cases", case, "--alone", side]
        command += ["--iterations", str(given.iterations), "--threads", str(given.threads), "--device", given.device]
        printed = [
            json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            for _ in range(MEMORY_PROCESSES)
        ]
        peaks[side] = {key: statistics.median(one[key] for one in printed) for key in printed[0]}
    ratios = {key: peaks["engine"][key] / peaks["loop"][key] for key in ("process", "gpu") if key in peaks["loop"]}
    return {"case": case, "peak_mib": peaks, "ratios": ratios}


def main() -> None:
    given = _arguments()
    cv2.setNumThreads(1)
    torch.set_num_threads(given.torch_threads)
    if given.alone is not None:
        alone(given.cases[0], given.alone, given)
        return
    facts = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}"
    print(
        f"{BATCH} images a step, {given.torch_threads} torch and {given.threads} loader threads, {given.device}; "
        f"medians of {given.rounds} rounds of {given.iterations} iterations; {facts}"
    )
    head = ("engine wall", "loop wall", "ratio", "engine CPU", "loop CPU", "ratio", "rounds", "same work")
    print(f"{'case':<8}{'view':<15}" + "".join(f"{name:>13}" for name in head[:6]) + f"  {head[6]:<40}{head[7]}")
    clock = "wall" if given.device == "cuda" else "cpu"
    found: dict[str, Any] = {"time": [], "memory": []}
    broken = False
    for case in given.cases:
        for row in [row for view in ("ready", "made") if view in given.views for row in timed(case, view, given)]:
            found["time"].append(row)
            cells = [1000 * row["engine_wall_s"], 1000 * row["loop_wall_s"], row["wall"]]
            cells += [1000 * row["engine_cpu_s"], 1000 * row["loop_cpu_s"], row["cpu"]]
            text = "".join(f"{cell:>13.3f}" if k % 3 == 2 else f"{cell:>10.1f} ms" for k, cell in enumerate(cells))
            rounds = " ".join(map(str, row["cpu_of_rounds"]))
            print(f"{row['case']:<8}{row['view']:<15}{text}  {rounds:<40}{row['loss_difference']:.1e}", flush=True)
            broken |= row["judged"] and row[clock] > TIME_LIMIT
    for case in given.cases if "memory" in given.views else ():
        one = memory(case, given)
        found["memory"].append(one)
        for key, ratio in one["ratios"].items():
            engine, loop = (one["peak_mib"][side] for side in ("engine", "loop"))
            print(
                f"{case:<8}peak memory, {key}: engine {engine[key]:.0f} MiB, loop {loop[key]:.0f} MiB "
                f"(imports and data {loop['before']:.0f}), ratio {ratio:.3f}",
                flush=True,
            )
            broken |= ratio > MEMORY_LIMIT
    if given.json is not None:
        given.json.write_text(json.dumps({"machine": facts, **found}, indent=1))
    print(f"limits: time {TIME_LIMIT} ({clock}), memory {MEMORY_LIMIT}: {'BROKEN' if broken else 'kept'}")
    sys.exit(int(broken))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=["boxes", "pixels"])
    parser.add_argument("--views", nargs="+", choices=("ready", "made", "memory"), default=["ready", "made", "memory"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=6, help="of a turn")
    parser.add_argument("--threads", type=int, default=2, help="loader threads of the engine")
    parser.add_argument("--torch-threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--alone", choices=("engine", "loop"), help=argparse.SUPPRESS)
    return parser.parse_args()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _resident(name: str) -> float:
    """VmRSS or VmHWM of this process, MiB (ru_maxrss would also remember the process that started it)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


if __name__ == "__main__":
    main()
