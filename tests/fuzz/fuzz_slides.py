"""Breaks small slides in many ways and looks whether cytopipe stands it.

    python -m tests.fuzz.fuzz_slides --mutants 2000 --seed 0 --workers 2 ../shared/data/wsi ../shared/data/edge_slides

Each mutant is one slide with one damage, in its headers or in its pixels, examined in a process of its own: opened,
described, its foreground found, every level read; one in twenty goes through `cytopipe tile`. It must be read, or
refused or reported by a CytopipeError of one line that names the file. A failure is: any other exception, a process
that crashes, more than 10 s of processor time or six times that by the clock, more than 1 GiB of memory, a library
that writes to the terminal, blocks of 64 px gone blank without a word.

Prints a table, keeps the failing mutants, exits with 1 if there is one. `--only N` repeats one of them.
"""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.fuzz.examine import Verdict, blank_blocks, examine, examine_command
from tests.fuzz.mutations import mutate
from tests.fuzz.sources import Source, real_sources, written_sources

LIMIT_S = 10.0
CLOCK_LIMIT_S = 6 * LIMIT_S
"""By the clock a process may be late because the machine is busy; processor time tells."""
LIMIT_KB = 1024 * 1024
FORK_LOCK = threading.Lock()
LARGE_BYTES, LARGE_WEIGHT = 100_000, 4
"""A slide of more bytes is taken so many times as often: it has more places to be broken at."""
SAID = ("hold no data", "are not stored")
"""The notes that make blank pixels no secret: of tiles, and of zarr chunks."""
TILE_SHARE = 20
"""One mutant in so many goes through the command."""


@dataclass
class Trial:
    """One mutant and what became of it. `change`: what its pixels are against the unbroken slide's."""

    number: int
    source: str
    where: str
    how: str
    verdict: Verdict
    change: str
    cpu_s: float
    peak_kb: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, and return the exit code."""
    given = _parsed(arguments)
    home = Path(tempfile.mkdtemp(prefix="fuzz-slides-"))
    try:
        (home / "written").mkdir()
        sources = [source for folder in given.folders for source in real_sources(folder)]
        sources += _in_child(lambda: list(written_sources(home / "written")))[0]  # zarr starts a thread: not here
        if given.match:
            sources = [source for source in sources if given.match in source.name]
        numbers = [given.only] if given.only is not None else list(range(given.mutants))
        start = time.monotonic()
        trials = _run_all(numbers, sources, given, home)
        failed = [trial for trial in trials if trial.verdict.fault]
        _print_table(trials)
        _print_failures(failed, given, sources)
        print(f"{len(trials)} mutants of {len(sources)} slides in {time.monotonic() - start:.0f} s, seed {given.seed}")
        slowest, largest = max(trials, key=lambda t: t.cpu_s), max(trials, key=lambda t: t.peak_kb)
        print(f"slowest {slowest.cpu_s:.1f} s of processor time ({slowest.number}); ", end="")
        print(f"largest {largest.peak_kb // 1024} MiB ({largest.number}); {len(failed)} failed")
        return 1 if failed else 0
    finally:
        shutil.rmtree(home)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="folders of small slides, beside those written here")
    parser.add_argument("--mutants", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="folder for failing mutants")
    parser.add_argument("--only", type=int, help="the number of one mutant to repeat")
    parser.add_argument("--match", default="", help="only slides whose name has this text")
    parser.add_argument("--verbose", action="store_true", help="a line for each mutant")
    return parser.parse_args(arguments)


def _run_all(numbers: list[int], sources: list[Source], given: argparse.Namespace, home: Path) -> list[Trial]:
    """Every trial, in order; the unbroken slides' pixels are kept in files for comparison."""
    import cytopipe.cli.main
    import cytopipe.slides.image_reader
    import cytopipe.slides.openslide_reader
    import cytopipe.slides.tiff_reader
    import cytopipe.slides.zarr_reader
    import cytopipe.steps.tile  # noqa: F401  loaded once, before the first fork

    for index, source in enumerate(sources):
        folder = home / "unbroken" / str(index)
        _write(source, {}, folder)
        verdict = _in_child(lambda f=folder, s=source: examine(f / s.opened))[0]
        if verdict.fault:
            print(f"unbroken {source.name}: {verdict.fault}")
        with (home / f"pixels-{index}").open("wb") as file:
            pickle.dump(verdict.pixels, file)

    def one(number: int) -> Trial:
        trial = _trial(number, sources, given.seed, home, tiled=number % TILE_SHARE == 0)
        if given.verbose or given.only is not None:
            v = trial.verdict
            print(
                f"{number} {trial.source}, {trial.where}, {trial.how}: {v.outcome} {trial.change} {v.fault or v.said}"
            )
        return trial

    with ThreadPoolExecutor(given.workers) as pool:
        return list(pool.map(one, numbers))


def _broken(number: int, sources: list[Source], seed: int) -> tuple[int, str, str, dict[str, bytes]]:
    """Mutant `number`: the slide's index, where and how it is broken, and the changed files."""
    random = np.random.default_rng((seed, number))
    weights = np.array([LARGE_WEIGHT if len(s.parts[0].data) > LARGE_BYTES else 1 for s in sources], dtype=np.float64)
    index = int(random.choice(len(sources), p=weights / weights.sum()))
    parts = sources[index].parts
    wanted = "header" if random.random() < 0.5 else "pixels"
    fit = [part for part in parts if (part.headers if wanted == "header" else part.pixels)]
    if not fit:
        wanted = "pixels" if wanted == "header" else "header"
        fit = [part for part in parts if part.headers or part.pixels]
    is_main = len(parts) > 1 and fit[0] is parts[0] and random.random() < 0.7
    part = fit[0] if is_main else fit[int(random.integers(len(fit)))]
    data, how = mutate(part, wanted, random)
    return index, wanted, how, {part.name: data}


def _trial(number: int, sources: list[Source], seed: int, home: Path, *, tiled: bool) -> Trial:
    index, where, how, changed = _broken(number, sources, seed)
    source = sources[index]
    folder = home / f"mutant-{number}"
    _write(source, changed, folder)

    def work() -> tuple[Verdict, str]:
        verdict = examine(folder / source.opened, seed=number)
        with (home / f"pixels-{index}").open("rb") as file:
            before = pickle.load(file)
        change = _change(verdict, before)
        if change == "blank" and not any(words in verdict.notes for words in SAID):
            verdict.fault = verdict.fault or "pixels went blank without a word"
        if tiled and not verdict.fault:
            verdict.fault = examine_command(folder / source.opened, home / f"tiles-{number}").fault
        verdict.pixels = []
        return verdict, change

    (verdict, change), cpu_s, peak_kb = _in_child(work, default=lambda v: (v, ""))
    shutil.rmtree(folder)
    shutil.rmtree(home / f"tiles-{number}", ignore_errors=True)
    if not verdict.fault and cpu_s > LIMIT_S:
        verdict.fault = f"{cpu_s:.1f} s of processor time"
    if not verdict.fault and peak_kb > LIMIT_KB:
        verdict.fault = f"{peak_kb // 1024} MiB of memory"
    return Trial(number, source.name, where, how, verdict, change, cpu_s, peak_kb)


def _change(verdict: Verdict, before: list[np.ndarray | None]) -> str:
    """same, differs, blank, or other shape: the mutant's pixels against the unbroken slide's, where both were read."""
    if verdict.outcome == "refused":
        return ""
    if len(before) != len(verdict.pixels):
        return "other shape"
    pairs = [(a, b) for a, b in zip(before, verdict.pixels, strict=True) if a is not None and b is not None]
    if any(a.shape != b.shape for a, b in pairs):
        return "other shape"
    if any(blank_blocks(a, b) for a, b in pairs):
        return "blank"
    return "same" if all(np.array_equal(a, b) for a, b in pairs) else "differs"


def _write(source: Source, changed: dict[str, bytes], folder: Path) -> None:
    for part in source.parts:
        path = folder / part.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(changed.get(part.name, part.data))


def _in_child(work, default=lambda verdict: verdict):
    """work() in a forked process -> (its result, processor seconds, peak memory in KiB); a crash becomes a verdict."""
    with FORK_LOCK:  # or the child of another thread would hold this pipe open
        reading, writing = os.pipe()
        child = os.fork()
        if child:
            os.close(writing)
    if child == 0:
        os.close(reading)
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_CPU, (int(2 * LIMIT_S), int(2 * LIMIT_S) + 1))
        resource.setrlimit(resource.RLIMIT_AS, (8 * 1024**3, 8 * 1024**3))  # the machine's own safety
        code = 1
        try:
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(work(), pipe)
            code = 0
        finally:
            os._exit(code)
    received, is_late = _receive(reading)
    if is_late:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    cpu_s = usage.ru_utime + usage.ru_stime
    if is_late:
        return default(Verdict("killed", fault=f"still at work after {CLOCK_LIMIT_S:.0f} s")), cpu_s, usage.ru_maxrss
    if status or not received:
        signal_ = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        what = signal.Signals(signal_).name if signal_ else f"exit code {os.waitstatus_to_exitcode(status)}"
        return default(Verdict("killed", fault=f"the process ended by {what}")), cpu_s, usage.ru_maxrss
    return pickle.loads(received), cpu_s, usage.ru_maxrss


def _receive(reading: int) -> tuple[bytes, bool]:
    received: list[bytes] = []
    end_s = time.monotonic() + CLOCK_LIMIT_S
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while True:
            left_s = end_s - time.monotonic()
            if left_s <= 0 or not select.select([pipe], [], [], left_s)[0]:
                return b"", True
            chunk = pipe.read(1 << 20)
            if not chunk:
                return b"".join(received), False
            received.append(chunk)


def _print_table(trials: list[Trial]) -> None:
    columns = ("mutants", "refused", "reported", "read", "same", "differs", "blank", "other shape", "failed")
    print(f"{'slide':42} {'where':7}" + "".join(f"{name:>12}" for name in columns))
    rows: dict[tuple[str, str], Counter[str]] = {}
    for trial in trials:
        for key in ((trial.source, trial.where), ("all", trial.where)):
            row = rows.setdefault(key, Counter())
            row.update(["mutants", trial.verdict.outcome])
            row.update([trial.change] if trial.verdict.outcome == "read" else [])
            row.update(["failed"] if trial.verdict.fault else [])
    for (source, where), row in sorted(rows.items(), key=lambda item: (item[0][0] == "all", item[0])):
        print(f"{source[-42:]:42} {where:7}" + "".join(f"{row[name]:12}" for name in columns))


def _print_failures(failed: list[Trial], given: argparse.Namespace, sources: list[Source]) -> None:
    if not failed:
        return
    keep = given.keep or Path(tempfile.mkdtemp(prefix="fuzz-failures-"))
    for trial in failed:
        print(f"FAILED {trial.number}: {trial.source}, {trial.where}, {trial.how}: {trial.verdict.fault}")
        index, _, _, changed = _broken(trial.number, sources, given.seed)
        _write(sources[index], changed, keep / str(trial.number))
    print(f"the failing mutants are in {keep}")


if __name__ == "__main__":
    sys.exit(main())
