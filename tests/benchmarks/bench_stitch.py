"""Stitching against SAHI's mergers: time, memory, and how both grow, on a grid in which a quarter of the views repeat.

    python -m tests.benchmarks.bench_stitch [--largest 1000000] [--peer-size 100000] [--repetitions 3] [--points 32]

Cells lie anywhere on a square slide, 75 for each 10^6 px², 10 to 40 px wide. Each window of 1,024 px reports all that
it shows of them, each shifted by up to half a px as networks do, with what its edges leave of the cut ones: 100 views
of 75 cells. Ours takes them row of windows by row, as a run does, and they are made row by row, outside the clock; so
the peak is that of a stream, with Python, numpy and shapely in it. SAHI, if it is installed (or on PYTHONPATH, after
`pip install --no-deps --target DIR sahi tqdm`), gets the same boxes as a list of its own objects, made outside the
clock, and all at once: it has no other way. It uses numba if that is there; its compiling is not counted.
Each run is a process of its own on one thread. `cpu` decides where the machine is busy; the exponent is that of cpu
from 10^4 to the largest size. `cells` is what was found, of how many: the rule of DESIGN 6 finds each, SAHI does not.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version

import numpy as np
import shapely

from cytopipe.infer.stitching import Stitcher, Views
from cytopipe.infer.windows import GUARD_PX, Windows, plan_windows

WINDOW_PX, OVERLAP_PX = 1024, 113  # with cells of 25 px on average, each is shown 4/3 times
DENSITY = 75e-6  # cells per px²
SHIFT_PX = 0.5  # by which a view is off, per axis: equal views would be too easy for those who compare, or too hard
SIDE_PX = (10.0, 40.0)
STRIP_PX = 512  # cells are made in strips of this height, each from its own seed
CLASSES = 3
SMALLEST = 10_000
PEERS = ("GreedyNMMPostprocess", "NMSPostprocess")
WARM_UP = 20_000  # objects: enough that SAHI takes the way that it takes for many
SECONDS_A_RUN = 3_600  # a run that takes longer is given up


def slide_of(views: int) -> Windows:
    """The grid over a square slide whose windows report about so many views."""
    side_px = round(math.sqrt(0.75 * views / DENSITY))
    return plan_windows(side_px, side_px, WINDOW_PX, OVERLAP_PX)


def strip_of(windows: Windows, strip: int, points: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Cells whose upper edge lies in one strip of the slide: boxes, outlines (None without points), classes, scores."""
    rng = np.random.default_rng([7, strip])
    top, bottom = strip * STRIP_PX, min((strip + 1) * STRIP_PX, windows.height)
    n = round(DENSITY * (bottom - top) * windows.width)
    size = rng.uniform(*SIDE_PX, (n, 2))
    corner = rng.uniform([0, top], [windows.width, bottom], (n, 2))
    corner = np.minimum(corner, [windows.width, windows.height] - size)
    labels, scores = rng.integers(0, CLASSES, n).astype(np.int32), rng.uniform(0.3, 1, n).astype(np.float32)
    boxes, outlines = np.concatenate([corner, corner + size], axis=1), np.full(n, None, object)
    if points:
        turn = np.arange(points) / points * 2 * np.pi
        radius = 1 - 0.2 * rng.random((n, points))
        xy = corner[:, None] + size[:, None] / 2 * (1 + radius[..., None] * np.stack([np.cos(turn), np.sin(turn)], 1))
        outlines = shapely.polygons(xy)
        boxes = shapely.bounds(outlines)
    return boxes, outlines, labels, scores


def rows_of_views(windows: Windows, points: int) -> Iterator[tuple[int, dict[int, Views]]]:
    """For each row of windows what its windows report, and how many new cells it shows."""
    strips: dict[int, tuple] = {}
    last_strip = (windows.height - 1) // STRIP_PX
    for row, y0 in enumerate(windows.starts_y.tolist()):
        frames = windows.boxes[windows.of_row(row)]
        first = max(int(y0 - SIDE_PX[1]), 0) // STRIP_PX
        last = min((y0 + WINDOW_PX) // STRIP_PX, last_strip)
        fresh = [k for k in range(first, last + 1) if k not in strips]
        strips = {k: strips[k] if k in strips else strip_of(windows, k, points) for k in range(first, last + 1)}
        boxes, outlines, labels, scores = (np.concatenate(column) for column in zip(*strips.values(), strict=True))
        reports = {}
        for k, frame in zip(windows.of_row(row), frames, strict=True):
            seen = np.flatnonzero((boxes[:, :2] < frame[2:]).all(axis=1) & (boxes[:, 2:] > frame[:2]).all(axis=1))
            shift = np.random.default_rng([8, k]).uniform(-SHIFT_PX, SHIFT_PX, (len(seen), 2))
            box, outline = boxes[seen] + np.tile(shift, 2), outlines[seen]
            if points:
                outline = shapely.polygons(shapely.get_coordinates(outline).reshape(-1, points + 1, 2) + shift[:, None])
            cut = np.flatnonzero((box[:, :2] < frame[:2]).any(axis=1) | (box[:, 2:] > frame[2:]).any(axis=1))
            box = np.concatenate([np.maximum(box[:, :2], frame[:2]), np.minimum(box[:, 2:], frame[2:])], axis=1)
            if points:
                outline[cut] = shapely.intersection(outline[cut], shapely.box(*frame))
                box[cut] = shapely.bounds(outline[cut])
            shown = (box[:, 2:] > box[:, :2]).all(axis=1)  # False for NaN: nothing of the outline
            seen, box, outline = seen[shown], box[shown], outline[shown]
            certainty = np.eye(CLASSES, dtype=np.float32)[labels[seen]] * scores[seen, None]
            reports[k] = Views(box, labels[seen], scores[seen], certainty, outline)
        yield sum(len(strips[k][0]) for k in fresh), reports


def ours(views: int, points: int) -> dict[str, float]:
    """One run of the stitcher over a slide of about so many views."""
    windows = slide_of(views)
    stitcher, given, cells, found, wall, cpu = Stitcher(windows, GUARD_PX), 0, 0, 0, 0.0, 0.0
    for fresh, reports in rows_of_views(windows, points):
        cells += fresh
        given += sum(map(len, reports.values()))
        wall, cpu = wall - time.perf_counter(), cpu - time.process_time()
        for window, seen in reports.items():
            stitcher.add(window, seen)
        found += len(stitcher.completed())
        wall, cpu = wall + time.perf_counter(), cpu + time.process_time()
    found += len(stitcher.finish())
    return {"views": given, "cells": cells, "found": found, "wall": wall, "cpu": cpu, "peak": peak_mib()}


def peer(name: str, views: int) -> dict[str, float]:
    """One run of a SAHI merger, at the threshold of its own default and class by class, as its `get_sliced_prediction`
    is usually called."""
    from sahi.postprocess import combine
    from sahi.prediction import ObjectPrediction

    windows, objects, cells = slide_of(views), [], 0
    frame = [windows.height, windows.width]
    for fresh, reports in rows_of_views(windows, 0):
        cells += fresh
        for seen in reports.values():
            columns = (seen.xyxy.tolist(), seen.class_index.tolist(), seen.score.tolist())
            for box, label, score in zip(*columns, strict=True):
                objects.append(ObjectPrediction(bbox=box, category_id=label, score=score, full_shape=frame))
    merge = getattr(combine, name)(match_threshold=0.5, match_metric="IOS" if "NMM" in name else "IOU")
    merge.class_agnostic = False
    merge(objects[:WARM_UP])
    wall, cpu = time.perf_counter(), time.process_time()
    found = len(merge(objects))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"views": len(objects), "cells": cells, "found": found, "wall": wall, "cpu": cpu, "peak": peak_mib()}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def measured(what: str, views: int, points: int, repetitions: int) -> dict[str, float]:
    """Medians of some runs, each in a process of its own; printed as a row of the table."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_stitch", "--run", what]
    command += ["--largest", str(views), "--points", str(points)]
    env = {**os.environ, **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")}
    runs = []
    for _ in range(repetitions):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=SECONDS_A_RUN)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
    cpus, shape = [run["cpu"] for run in runs], f"{points} points" if points else "boxes"
    print(f"  {what:<21}{shape:<11}{middle['views']:>10.0f}{middle['wall']:>9.2f}{middle['cpu']:>9.2f}", end="")
    print(f"{f'{min(cpus):.2f} to {max(cpus):.2f}':>17}{middle['cpu'] / middle['views'] * 1e5:>9.2f}", end="")
    print(f"{middle['peak']:>9.0f}{middle['found']:>10.0f} of {middle['cells']:.0f}", flush=True)
    return middle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=1_000_000)
    parser.add_argument("--peer-size", type=int, default=100_000)
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--run", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        result = ours(args.largest, args.points) if args.run == "ours" else peer(args.run, args.largest)
        print(json.dumps(result))
        return
    versions = f"numpy {version('numpy')}, shapely {version('shapely')}"
    print(f"stitching, {platform.processor() or platform.machine()}, Python {platform.python_version()}, {versions}")
    print(f"  medians of {args.repetitions}; seconds, MiB")
    print(f"  {'what':<21}{'of':<11}{'views':>10}{'wall':>9}{'cpu':>9}{'cpu of runs':>17}{'/ 10^5':>9}", end="")
    print(f"{'peak':>9}{'cells':>10}")
    sizes = [SMALLEST * 10**k for k in range(10) if SMALLEST * 10**k <= args.largest]
    for points in (0, args.points):
        runs = {size: measured("ours", size, points, args.repetitions) for size in sizes}
        if len(runs) > 1:
            few, many = runs[sizes[0]], runs[sizes[-1]]
            exponent = math.log(many["cpu"] / few["cpu"]) / math.log(many["views"] / few["views"])
            print(f"  growth exponent from {sizes[0]} to {sizes[-1]} views: {exponent:.3f}")
    if importlib.util.find_spec("sahi") is None:
        print("  SAHI is not installed: no comparison")
        return
    mine = measured("ours", args.peer_size, 0, args.repetitions)
    for name in PEERS:
        theirs = measured(name, args.peer_size, 0, args.repetitions)
        ratio = theirs["cpu"] / mine["cpu"]
        print(f"  {name} takes {ratio:.1f} times as long as ours")


if __name__ == "__main__":
    main()
