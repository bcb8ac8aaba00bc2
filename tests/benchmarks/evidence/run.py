"""Runs of the evidence tables: one run = (task, row, labels, seed) -> one JSON file.

    python -m tests.benchmarks.evidence.run --task semantic --methods supervised cdcl --labels 1/32 --seeds 0 1 2 \\
        --workers 2

A run that has its file is not run again; one that was killed goes on from its last checkpoint and ends with the same
weights. Each worker is a process with one torch thread. `--iterations N` makes a pilot, which lands in the work folder
and in no table. `--scale paper` takes the papers' networks and lengths: for a GPU (`--device cuda`).
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.evidence.tasks import TASKS, Task, at_scale

REPOSITORY = Path(__file__).resolve().parents[3]
RESULTS = Path(__file__).with_name("results")
ROOMS = ("core", "nets", "semi", "data", "methods", "metrics", "infer", "train")  # whose code decides a run's numbers


@dataclass(frozen=True)
class Case:
    """One run."""

    task: str
    row: str
    labels: str
    seed: int
    scale: str = "cpu"
    iterations: int | None = None

    @property
    def key(self) -> str:
        """Its name among files."""
        parts = [self.task, self.row, self.labels.replace("/", "of").replace("%", "pc"), f"s{self.seed}"]
        parts += [self.scale] * (self.scale != "cpu") + [f"T{self.iterations}"] * (self.iterations is not None)
        return "_".join(parts)

    @property
    def of(self) -> Task:
        """Its task, at its scale."""
        return at_scale(TASKS[self.task], self.scale)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--methods", nargs="*", help="rows of the task; default: all but remedies")
    parser.add_argument("--labels", help="fraction of the labels, or all; default: that of the task's main table")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--iterations", type=int, help="a pilot of so many iterations")
    parser.add_argument("--scale", choices=("cpu", "paper"), default="cpu")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "cytopipe-evidence")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--in-process", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    task = TASKS[given.task]
    rows = given.methods or [name for name, row in task.rows.items() if row.remedy_of is None]
    unknown = sorted(set(rows) - set(task.rows))
    if unknown:
        parser.error(f"{unknown[0]} is no row of {task.name}; rows: {', '.join(task.rows)}")
    cases = [
        Case(task.name, row, given.labels or task.few, seed, given.scale, given.iterations)
        for seed in given.seeds
        for row in rows
    ]
    results = given.results if given.iterations is None else given.work / "pilots"
    if given.in_process:
        for case in cases:
            run_case(case, given.data, given.work, results, given.device)
        return
    common = ["--data", given.data, "--work", given.work, "--results", given.results, "--device", given.device]
    run_all(cases, [str(x) for x in common], results, given.workers)


def run_all(cases: list[Case], common: list[str], results: Path, workers: int) -> None:
    """Each case in a process of its own, `workers` at a time. Exits with 1 if one failed."""
    waiting = [case for case in cases if not _done(case, results)]
    print(f"{len(cases)} runs, {len(cases) - len(waiting)} of them done before", flush=True)
    running: dict[subprocess.Popen[bytes], tuple[Case, float]] = {}
    failed: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a stopped parent stops its runs, too
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                case = waiting.pop(0)
                running[_start(case, common)] = case, time.monotonic()
            time.sleep(0.5)
            for process in [p for p in running if p.poll() is not None]:
                case, began = running.pop(process)
                failed += [case.key] * (process.returncode != 0)
                print(
                    f"{case.key}: {'done' if process.returncode == 0 else f'FAILED ({process.returncode})'} after "
                    f"{time.monotonic() - began:.0f} s; {len(waiting) + len(running)} to go",
                    flush=True,
                )
    finally:
        for process in running:
            process.terminate()
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run_case(case: Case, data: Path, work: Path, results: Path, device: str) -> None:
    """Train, test once, write the JSON file. Goes on where a killed run of the same settings and code stopped."""
    folder = work / "runs" / case.key
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{case.key}: another process is at it", flush=True)
            return
        if not _done(case, results):
            from tests.benchmarks.evidence.one_run import train_and_test

            _same_or_anew(folder, case)
            facts = train_and_test(case, data, work, folder, device)
            results.mkdir(parents=True, exist_ok=True)
            from cytopipe.core.files import write_json

            write_json(results / f"{case.key}.json", {**identity(case), **facts, **_machine()})
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def identity(case: Case) -> dict[str, Any]:
    """What a run is, as JSON: a file with another identity is a run of other settings."""
    task = case.of
    row = task.rows[case.row]
    return {
        "key": case.key,
        "task": case.task,
        "row": case.row,
        "labels": case.labels,
        "seed": case.seed,
        "scale": case.scale,
        "net": task.spec().model_dump(mode="json"),
        "settings": task.settings(row, case.iterations).model_dump(mode="json"),
        "images": {"shrink": task.shrink, "resize_px": task.resize_px},
    }


def code_version() -> dict[str, str]:
    """The commit, and a digest of the rooms whose code decides the numbers (also of what is not committed)."""
    found = hashlib.sha256()
    for room in ROOMS:
        for path in sorted((REPOSITORY / "cytopipe" / room).rglob("*.py")):
            found.update(f"{path.relative_to(REPOSITORY)}\n".encode() + path.read_bytes())
    commit = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {"commit": commit, "code_sha256": found.hexdigest()}


def _done(case: Case, results: Path) -> bool:
    path = results / f"{case.key}.json"
    if not path.exists():
        return False
    there, wanted = json.loads(path.read_text()), identity(case)
    if all(there.get(name) == json.loads(json.dumps(value)) for name, value in wanted.items()):
        return True
    print(f"{case.key}: its file is of other settings, and is made anew", flush=True)
    return False


def _same_or_anew(folder: Path, case: Case) -> None:
    """Clear the folder unless what lies there is of the same settings and code."""
    wanted = json.loads(json.dumps({**identity(case), **code_version()}))
    path = folder / "identity.json"
    if path.exists() and json.loads(path.read_text()) == wanted:
        return
    for old in folder.iterdir():
        if old.name != "lock":
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    path.write_text(json.dumps(wanted))


def _start(case: Case, common: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.benchmarks.evidence.run", "--in-process", "--task", case.task]
    command += ["--methods", case.row, "--labels", case.labels, "--seeds", str(case.seed), "--scale", case.scale]
    command += [] if case.iterations is None else ["--iterations", str(case.iterations)]
    one_thread = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return subprocess.Popen([*command, *common], cwd=REPOSITORY, env={**os.environ, **one_thread})


def _machine() -> dict[str, Any]:
    import torch
    import torchvision

    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        **code_version(),
        "machine": {"cpu": cpu or platform.processor(), "cores": os.cpu_count(), "gpu": gpu, "threads_a_run": 1},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


if __name__ == "__main__":
    main()
