"""Whether a slide of a million cells streams through `infer` in bounded memory, and no slower at its end.

    python -m tests.benchmarks.bench_stream [--side 100000] [--objects 1000000] [--write parquet,geojson] [--keep DIR]

The slide is a function of the place: each block of 64 px of the model's view is painted with its own number, so that a
predictor which reads the number knows where its window lies, and a window read from the wrong place shows. The
predictor draws the cells of that place from a fixed random field with their 28 x 28 masks; everything else is the real
path: reading, `Detector.locate`, outlines, measures, stitching, `ResultsWriter`, the summary. Neighbours see the cells
of their overlap twice.

Printed: objects, seconds, peak memory (of the whole process, VmHWM), seconds per 10^5 objects in each tenth of the
slide and the ratio of the last tenth to the first. CPU seconds stand beside: they tell more on a machine that does
other work.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import RunError
from cytopipe.formats.results import ResultsWriter
from cytopipe.infer.located import Located
from cytopipe.infer.predict import Detector
from cytopipe.nets import load_bundle
from cytopipe.nets.bundle import DEFAULT_MODEL
from cytopipe.report.summary import SlideSummary
from cytopipe.slides import MppView
from cytopipe.slides.opened import OpenedSlide
from cytopipe.slides.resolution import Evidence

MPP = 0.25
BLOCK_PX = 64  # of the view; windows start at its multiples
CELL_PX = (20, 60)  # sides, px of the view
LIMIT_GIB, LIMIT_GROWTH = 2.0, 0.15


class NumberedSlide(OpenedSlide):
    """A slide without a file whose blocks show column and row: red and green the low bytes, blue the high ones."""

    reader = "numbered"

    def __init__(self, side_px: int) -> None:
        super().__init__(
            Path("numbered.svs"),
            vendor="numbered",
            sizes=[(side_px, side_px)],
            evidence=Evidence(vendor=(MPP, MPP), vendor_field="numbered"),
            mpp_override=None,
            properties={},
            icc=None,
        )

    def native_tiles(self, level: int) -> tuple[int, int] | None:
        return None

    def _pixels(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        column, row = np.arange(x, x + w) // (2 * BLOCK_PX), np.arange(y, y + h) // (2 * BLOCK_PX)
        out = np.empty((h, w, 3), np.uint8)
        out[..., 0], out[..., 1] = column & 255, (row & 255)[:, None]
        out[..., 2] = (column >> 8) | ((row >> 8) << 4)[:, None]
        return out

    def _close(self) -> None:
        pass


class Field:
    """Cells by place: a predictor. Each block of the view holds the corners of so many cells on average."""

    def __init__(self, per_block: float, classes: int, window_px: int) -> None:
        self._per_block, self._classes, self._window_px = per_block, classes, window_px
        y, x = np.mgrid[-1:1:28j, -1:1:28j]
        self._masks = np.stack([np.clip(1.5 - (x**2 + (y * s) ** 2), 0, 1) for s in (1.0, 1.15, 1.3)]).astype(
            np.float32
        )
        self._kept: dict[tuple[int, int], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}

    def __call__(self, images: Sequence[NDArray[np.uint8]]) -> list[Located]:
        return [self._window(image) for image in images]

    def _window(self, image: NDArray[np.uint8]) -> Located:
        red, green, blue = (int(value) for value in image[0, 0])
        column, row = red | (blue & 15) << 8, green | (blue >> 4) << 8
        blocks = -(-self._window_px // BLOCK_PX)
        if (image[-1, -1] != 255).any():  # a window that hangs over the border ends on padding
            last = (int(image[-1, -1, 0]) | (int(image[-1, -1, 2]) & 15) << 8) - column
            if last != blocks - 1:
                raise RunError(f"a window shows {last + 1} blocks, not {blocks}: it was read from the wrong place")
        boxes, drawn = [], []
        for r in range(row - 1, row + blocks):
            for c in range(column - 1, column + blocks):
                found, numbers = self._block(c, r)
                boxes.append(found)
                drawn.append(numbers)
        at, numbers = np.concatenate(boxes), np.concatenate(drawn)
        at = at - np.tile((column * BLOCK_PX, row * BLOCK_PX), 2)
        inside = (at[:, :2] >= 0).all(axis=1) & (at[:, 2:] <= self._window_px).all(axis=1)
        at, numbers = at[inside], numbers[inside]
        labels = 1 + (numbers[:, 0] * self._classes).astype(np.int64)
        scores = (0.5 + numbers[:, 1] / 2).astype(np.float32)
        spread = np.zeros((len(at), self._classes), np.float32)
        spread[np.arange(len(at)), labels - 1] = scores
        order = np.argsort(-scores, kind="stable")
        masks = self._masks[(numbers[:, 2] * len(self._masks)).astype(int)]
        return Located(at[order], scores[order], labels[order], spread[order], masks[order])

    def _block(self, column: int, row: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The cells whose corner lies in a block: boxes in px of the view, and three random numbers each."""
        key = (column, row)
        if key not in self._kept:
            if len(self._kept) > 1 << 16:
                self._kept.clear()
            rng = np.random.default_rng((7, column + 1, row + 1))
            count = rng.poisson(self._per_block) if min(column, row) >= 0 else 0
            corner = np.array(key) * BLOCK_PX + rng.uniform(0, BLOCK_PX, (count, 2))
            self._kept[key] = (
                np.concatenate([corner, corner + rng.uniform(*CELL_PX, (count, 2))], axis=1),
                rng.random((count, 3)),
            )
        return self._kept[key]


def main() -> None:
    """Stream one slide and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--side", type=int, default=100_000, help="of the slide, level-0 px")
    arguments.add_argument("--objects", type=int, default=1_000_000, help="about so many on the slide")
    arguments.add_argument("--write", default="parquet,geojson")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--keep", type=Path, help="write here and keep the files")
    given = arguments.parse_args()
    folder = given.keep or Path(tempfile.mkdtemp(prefix="stream-"))
    bundle = load_bundle(DEFAULT_MODEL)
    spec = bundle.spec
    blocks = (given.side * MPP / spec.mpp / BLOCK_PX) ** 2
    field = Field(given.objects / blocks, len(spec.net.classes), spec.tile_px)
    detector = Detector(bundle, device="cpu", score_threshold=0.1, threads=given.threads, predictor=field)
    slide = NumberedSlide(given.side)
    summary = SlideSummary(spec.net.classes, (MPP, MPP), slide.dimensions)
    began, cpu = time.perf_counter(), time.process_time()
    marks: list[tuple[int, float, float, float]] = []  # windows done, objects found, s, CPU s

    def on_progress(done: int, total: int, unit: str) -> None:
        if unit == "objects":
            marks.append((len(marks) + 1, done, time.perf_counter() - began, time.process_time() - cpu))

    with (
        slide,
        ResultsWriter(
            folder,
            "numbered",
            spec.net.classes,
            (MPP, MPP),
            (0, 0),
            frozenset(given.write.split(",")),
            slide.dimensions,
            on_group=lambda group: summary.add(group.objects, group.object_ids),
        ) as writer,
    ):
        found = detector.locate(slide, MppView(slide, spec.mpp), sink=writer.add, on_progress=on_progress)
    wall, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    peak_gib = _peak_gib()
    sizes = {path.name: path.stat().st_size / 1e6 for path in sorted(folder.iterdir()) if path.is_file()}
    print(
        f"machine   {platform.machine()}, {platform.python_version()}, numpy {np.__version__}, {given.threads} threads"
    )
    print(f"slide     {given.side} x {given.side} px at {MPP} µm/px, {found.windows} windows of {spec.tile_px} px")
    print(f"objects   {found.count} of {summary.total} counted in; files in MB: {sizes}")
    print(f"seconds   {wall:.1f} ({cpu_s:.1f} CPU), by stage, which overlap: {found.seconds}")
    print(f"peak      {peak_gib:.2f} GiB (limit {LIMIT_GIB:g}): {'met' if peak_gib < LIMIT_GIB else 'MISSED'}")
    tenths = _tenths(marks)
    print("tenth     " + "  ".join(f"{k + 1:>6d}" for k in range(len(tenths))))
    print("s/1e5     " + "  ".join(f"{wall_s:6.2f}" for wall_s, _ in tenths))
    print("CPU s/1e5 " + "  ".join(f"{cpu_each:6.2f}" for _, cpu_each in tenths))
    for name, k in (("s", 0), ("CPU s", 1)):
        growth = tenths[-1][k] / tenths[0][k] - 1
        print(
            f"growth    {name}: {growth:+.1%} (limit {LIMIT_GROWTH:.0%}): "
            f"{'met' if growth < LIMIT_GROWTH else 'MISSED'}"
        )
    if given.keep is None:
        shutil.rmtree(folder)


def _tenths(marks: list[tuple[int, float, float, float]]) -> list[tuple[float, float]]:
    """Seconds and CPU seconds per 10^5 objects in each tenth of the windows.

    Objects of a tenth are the slide's by its share of windows: what is handed on comes in steps of a row of windows.
    """
    count, objects = len(marks), marks[-1][1]
    ends = [marks[round(k * (count - 1) / 10)] for k in range(11)]
    per = objects / 10 / 1e5
    return [((b[2] - a[2]) / per, (b[3] - a[3]) / per) for a, b in pairwise(ends)]


def _peak_gib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 2**20


if __name__ == "__main__":
    main()
