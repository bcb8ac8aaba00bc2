"""The stitcher against the oracle and against the truth, on many hard random cases; and its speed on one large slide.

    python -m tests.benchmarks.stitch_cases [--cases 100000] [--seed 0] [--jitter 0] [--workers 2] [--cells 100000]

Without jitter half of the cases are of mode "clip", half of mode "drop". Printed: cases; cells within the size bound
(both sides <= O - 2g) and how many of them are missed or doubled, pieces too many, larger cells that vanish, all as the
oracle's `judge` counts them; and the cases in which the stitcher's result differs from the oracle's, which should be 0.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.metadata import version
from statistics import median

import numpy as np

from cytopipe.infer.stitching import Stitcher, Views, no_views, stitch
from cytopipe.infer.windows import GUARD_PX, Windows, plan_windows
from tests.property import stitch_reference as oracle
from tests.property.stitch_cases import draw_case, results_of, results_of_oracle, views_of, windows_of
from tests.property.stitch_scenes import octagon

REPEATS = 3
ROWS = ("cases", "small", "missed", "doubled", "extra", "large", "vanished", "differ", "seeds_without_a_case")


def count(seed: int, jitter: int) -> Counter:
    """One seed's case: what the oracle's judge says of the oracle's result, and whether ours is the same."""
    drawn = draw_case(seed, "clip" if jitter or seed % 2 else "drop", jitter)
    if drawn is None:
        return Counter(seeds_without_a_case=1)
    case, views = drawn
    size, windows, _, guard_px, _, kind = case
    with_masks = kind == "ellipse" or seed % 3 == 0
    ours = stitch(windows_of(case), views_of(case, views, with_masks), guard_px)
    expected = oracle.stitch(windows, views, guard_px)
    same = results_of(ours, size, with_masks) == results_of_oracle(expected, size, with_masks)
    return oracle.judge(case, views, expected, jitter) + Counter(differ=int(not same))


def large_slide(cells: int, with_masks: bool) -> tuple[Windows, dict[int, Views]]:
    """A slide as wide as real ones at 0.5 µm/px, cells of 10 to 60 px, each reported where it is settled."""
    rng, (width, height) = np.random.default_rng(0), (40_000, 20_000)
    windows = plan_windows(width, height, 1200, 120, 32)
    corner = rng.uniform(0, [width - 60, height - 60], (cells, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 60, (cells, 2))], axis=1)
    shapes = np.full(cells, None, object)
    if with_masks:
        shapes[:] = [octagon(*box) for box in boxes]
    score = rng.random(cells).astype(np.float32)
    column0, row0, column1, row1 = windows.span_at_distance(boxes, GUARD_PX / 2).T
    views = {}
    for k in range(len(windows)):
        row, column = divmod(k, windows.columns)
        seen = (column0 <= column) & (column < column1) & (row0 <= row) & (row < row1)
        if not seen.any():
            views[k] = no_views(1)
            continue
        labels = np.zeros(int(seen.sum()), np.int32)
        views[k] = Views(boxes[seen], labels, score[seen], score[seen, None], shapes[seen])
    return windows, views


def seconds(windows: Windows, views: dict[int, Views]) -> tuple[float, int, int]:
    """Seconds to stitch row by row, objects found, and the most of them that one row gave."""
    start, stitcher, found, most_a_row = time.perf_counter(), Stitcher(windows, GUARD_PX), 0, 0
    for row in range(windows.rows):
        for k in windows.of_row(row):
            stitcher.add(k, views[k])
        done = len(stitcher.completed())
        found += done
        most_a_row = max(most_a_row, done)
    found += len(stitcher.finish())
    return time.perf_counter() - start, found, most_a_row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jitter", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--cells", type=int, default=100_000)
    args = parser.parse_args()
    print(f"stitching, Python {platform.python_version()}, numpy {version('numpy')}, shapely {version('shapely')}")
    total: Counter = Counter()
    with ProcessPoolExecutor(args.workers) as pool:
        seeds = range(args.seed, args.seed + args.cases)
        for counted in pool.map(partial(count, jitter=args.jitter), seeds, chunksize=100):
            total.update(counted)
    for name in ROWS:
        print(f"  {name:<22}{total[name]:>10}")
    for with_masks in (False, True):
        windows, views = large_slide(args.cells, with_masks)
        runs = [seconds(windows, views) for _ in range(REPEATS)]
        took = [run[0] for run in runs]
        seen, kind = sum(map(len, views.values())), "with masks" if with_masks else "boxes alone"
        print(f"  {len(windows)} windows, {seen} views, {kind}: {runs[0][1]} of {args.cells} cells, ", end="")
        print(f"{median(took):.2f} s ({min(took):.2f} to {max(took):.2f} of {REPEATS}), at most {runs[0][2]} a row")
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(f"  peak memory {peak_mib:.0f} MiB, the slide's views included")
    sys.exit(1 if total["differ"] else 0)


if __name__ == "__main__":
    main()
