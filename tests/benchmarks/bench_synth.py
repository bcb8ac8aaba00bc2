"""How fast `cytopipe synth` writes a wide slide, and how much memory that takes.

    python tests/benchmarks/bench_synth.py [--size 100000 4000] [--cells-per-mm2 300] [--repeat 3] [--workers 2]

Each repetition is a process of its own, so that its peak memory is the command's. Beside it stands what the same slide
takes without anything to draw: `PyramidWriter` on ready pixels, the limit that tiling, JPEG and pyramid set.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

GOAL_MPX_PER_S, GOAL_MIB = 10, 1024  # on two cores, for a slide 100,000 px wide


def main() -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(100_000, 4_000), metavar=("W", "H"))
    parser.add_argument("--cells-per-mm2", type=float, default=300)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--one", choices=("synth", "writer"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one = write_synth if arguments.one == "synth" else write_only
        one(tuple(arguments.size), arguments.cells_per_mm2, arguments.workers)
        return

    megapixels = arguments.size[0] * arguments.size[1] / 1e6
    print(
        f"{arguments.size[0]} x {arguments.size[1]} px, {arguments.cells_per_mm2:g} cells/mm², "
        f"{arguments.workers} workers, {arguments.repeat} repetitions; {platform.machine()}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, numpy {np.__version__}"
    )
    print(f"{'what':8} {'median s':>9} {'spread s':>9} {'CPU s':>7} {'Mpx/s':>7} {'peak MiB':>9}")
    speeds = {}
    for what in ("writer", "synth"):
        seconds, cpu_seconds, peaks = zip(*(measured(what) for _ in range(arguments.repeat)), strict=True)
        speeds[what] = megapixels / statistics.median(seconds)
        spread = max(seconds) - min(seconds)
        print(
            f"{what:8} {statistics.median(seconds):9.1f} {spread:9.1f} {statistics.median(cpu_seconds):7.1f} "
            f"{speeds[what]:7.1f} {max(peaks):9.0f}"
        )
    ratio = speeds["synth"] / speeds["writer"]
    print(f"synth runs at {ratio:.2f} of the writer's speed; goal: {GOAL_MPX_PER_S} Mpx/s, {GOAL_MIB} MiB")


def measured(what: str) -> tuple[float, float, float]:
    """Wall time (s), CPU time (s) and peak resident memory (MiB) of one process that does `what`."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, __file__, *sys.argv[1:], "--one", what])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{what} ended with {os.waitstatus_to_exitcode(status)}")
    return time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def write_synth(size: tuple[int, int], cells_per_mm2: float, workers: int) -> None:
    """The command's step, whole: start, drawing, truth, tiles, pyramid."""
    from cytopipe.steps.synth import synth

    with tempfile.TemporaryDirectory() as folder:
        synth(Path(folder) / "out", size=size, cells_per_mm2=cells_per_mm2, workers=workers)


def write_only(size: tuple[int, int], cells_per_mm2: float, workers: int) -> None:
    """Noise on glass, the same band again and again, through the slide writer."""
    from cytopipe.slides.writer import PyramidWriter

    width, height = size
    band = np.random.default_rng(0).integers(230, 240, (256, width, 3), dtype=np.uint8)
    with (
        tempfile.TemporaryDirectory() as folder,
        PyramidWriter(Path(folder) / "a.tif", width, height, mpp=0.25, objective=40, workers=workers) as writer,
    ):
        for y in range(0, height, len(band)):
            writer.write_band(band[: height - y])


if __name__ == "__main__":
    main()
