"""How near `infer` comes to the network alone, end to end, and where the rest goes.

    python -m tests.benchmarks.bench_infer [--side 12000] [--repeat 3] [--threads 2] [--model NAME] [--slide FILE]
                                           [--cells 300] [--device cpu]

    infer    `cytopipe.steps.infer.infer` on one slide at 0.25 µm/px, in a process that has imported it: opens the
             slide, loads the model, estimates, finds foreground, reads, predicts, outlines, measures, stitches, writes
             objects.parquet, objects.geojson, report.html and run.json, and syncs them. Excluded: the start of Python,
             imports, and one run on a slide of four windows before the clock starts
    ceiling  the same windows, read before the clock starts, through the same network alone, in the same batches and as
             many threads: from uint8 pixels to boxes, scores and masks in numpy
    rest     the stages of run.json. Those of the search go on beside the network

Both in turns in one process; medians are compared. `share` is the ceiling's time over infer's: 1 would be the network's
own speed, the goal is 0.90 on a CPU. CPU seconds of all threads stand beside, and the share by them: it is what a
machine that does other work can tell.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cytopipe.infer.predict import Detector
from cytopipe.nets import load_bundle
from cytopipe.nets.bundle import DEFAULT_MODEL
from cytopipe.slides import MppView, find_foreground, open_slide
from cytopipe.steps.infer import infer
from cytopipe.steps.synth import synth

GOAL = 0.90


def main() -> None:
    """Run both sides in turns and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--side", type=int, default=12_000, help="of the slide, level-0 px")
    arguments.add_argument("--cells", type=float, default=300.0, help="per mm²")
    arguments.add_argument("--slide", type=Path, help="a slide of your own")
    arguments.add_argument("--model", default=DEFAULT_MODEL)
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--repeat", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=2)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    scratch = Path(tempfile.mkdtemp(prefix="bench-infer-"))
    size = (given.side, given.side)
    path = given.slide or synth(scratch / "slide", size=size, cells_per_mm2=given.cells, seed=11).slides[0].path
    small = synth(scratch / "small", size=(2500, 2500), cells_per_mm2=given.cells, seed=12).slides[0].path
    bundle = load_bundle(given.model)
    detector = Detector(bundle, device=given.device)
    with open_slide(path) as slide:
        view = MppView(slide, bundle.spec.mpp)
        windows = detector.plan(view)
        wanted = detector.wanted(windows, view, find_foreground(slide))
        side = windows.window_px
        pixels = [view.read(int(windows.x0[i]), int(windows.y0[i]), side, side) for i in wanted]

    def ceiling() -> None:
        for start in range(0, len(pixels), detector.batch_windows):
            detector.predict(pixels[start : start + detector.batch_windows])

    def whole(what: Path = path) -> None:
        shutil.rmtree(scratch / "out", ignore_errors=True)
        infer([what], scratch / "out", model=given.model, device=given.device, workers=given.threads)

    whole(small)
    detector.predict(pixels[: detector.batch_windows])
    sides: dict[str, list[tuple[float, float]]] = {"ceiling": [], "infer": []}
    for _ in range(given.repeat):
        sides["ceiling"].append(_took(ceiling))
        sides["infer"].append(_took(whole))
    facts = json.loads(next((scratch / "out").glob("*/run.json")).read_text())
    print(
        f"machine  {platform.processor() or platform.machine()}, torch {torch.__version__}, {given.threads} threads, "
        f"{detector.device}"
    )
    print(
        f"slide    {path.name}, {view.width} x {view.height} px of the view, {len(wanted)} of {len(windows)} windows "
        f"of {side} px, {facts['objects']} objects, model {bundle.spec.name}, batches of {detector.batch_windows}"
    )
    print(f"{'side':9s}{'median s':>10s}{'spread s':>16s}{'CPU s':>9s}")
    for name, runs in sides.items():
        seconds = [s for s, _ in runs]
        spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
        print(f"{name:9s}{_median(runs, 0):10.2f}{spread:>16s}{_median(runs, 1):9.2f}")
    for k, what in ((0, "wall"), (1, "CPU")):
        share = _median(sides["ceiling"], k) / _median(sides["infer"], k)
        print(f"share    {share:.3f} by {what} time (goal {GOAL:.2f} by wall time)")
    print(f"rest     {facts['seconds']}")
    print(f"peak     {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB, windows in memory included")
    shutil.rmtree(scratch)


def _took(work: Callable[[], None]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def _median(runs: list[tuple[float, float]], k: int) -> float:
    return statistics.median(run[k] for run in runs)


if __name__ == "__main__":
    main()
