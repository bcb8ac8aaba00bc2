"""Writing a results folder against the fastest writers of its formats, which are handed what ours has to work out.

    pip install orjson
    python tests/benchmarks/bench_results.py [--objects 1000000] [--points 32] [--repetitions 3]

Ours: `ResultsWriter` from outlines in memory to GeoJSON, to GeoParquet, and to both: ids, sizes, shape, text, file.
File alone: the same features and columns, ids, sizes and shape known before the clock starts: what the peers are given,
though still as outlines and arrays, not as text or WKB.
Peers: orjson (else json, which the table then says) writing the same features as dictionaries already built, and
pyarrow writing the same table as columns already built, with the same compression and rows a group. Each run is a
process of its own; the peer's building is not counted. `cpu` counts the threads of the process together: on a busy
machine compare these. Peak memory of ours includes the outlines that the benchmark holds, which `held` says.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as pq
import shapely

from cytopipe.core.classes import class_named
from cytopipe.core.objects import Objects
from cytopipe.formats.results import GEOJSON_NAME, TABLE_NAME, ResultsWriter
from cytopipe.formats.results.geojson import FeatureWriter
from cytopipe.formats.results.identity import IdMaker, canonical_order
from cytopipe.formats.results.schema import SCHEMA_VERSION, Group, ResultsInfo, shapes_of
from cytopipe.formats.results.table import TableWriter
from cytopipe.formats.results.writer import ROWS

NAMES = ("nucleus", "normal", "ASC-US", "LSIL", "HSIL", "AGC")
SIDE_PX = 100_000
BATCH = 5_000  # objects that a row of windows gives at once
TASKS = {
    "geojson": ("ours", "file alone", "orjson"),
    "parquet": ("ours", "file alone", "pyarrow"),
    "both": ("ours",),
}


def cells(n: int, points: int) -> Objects:
    """Wavy outlines anywhere on a slide of 100,000 px, by y0."""
    rng = np.random.default_rng(1)
    centre = rng.uniform(50, SIDE_PX - 50, (n, 2, 1))
    turn = np.arange(points) / points * 2 * np.pi
    radius = rng.uniform(10, 20, (n, 1)) * (1 + 0.2 * rng.uniform(-1, 1, (n, points)))
    x, y = centre[:, 0] + radius * np.cos(turn), centre[:, 1] + radius * np.sin(turn)
    geometry = shapely.polygons(np.stack([x, y], axis=2))
    score = rng.random((n, len(NAMES))).astype(np.float32)
    objects = Objects(
        shapely.bounds(geometry),
        score.argmax(axis=1).astype(np.int32),
        score.max(axis=1),
        score,
        geometry,
        np.zeros(n, np.uint8),
        np.zeros(n, np.int32),
        rng.random((n, 2)).astype(np.float32),
    )
    return objects.take(np.argsort(objects.xyxy[:, 1], kind="stable"))


def write(folder: Path, objects: Objects, parts: set[str]) -> None:
    """Ours, in batches as they come from a run."""
    classes = [class_named(name) for name in NAMES]
    with ResultsWriter(folder, "S", classes, (0.25, 0.25), write=parts, size=(SIDE_PX, SIDE_PX)) as out:
        for start in range(0, len(objects), BATCH):
            out.add(objects.take(np.arange(start, min(start + BATCH, len(objects)))))


def known_groups(objects: Objects) -> list[Group]:
    """The groups that `ResultsWriter` makes, with all that several files need of them worked out."""
    classes = [class_named(name) for name in NAMES]
    info = ResultsInfo(
        schema_version=SCHEMA_VERSION,
        slide_id="S",
        classes=tuple(classes),
        mpp=(0.25, 0.25),
        bounds_offset=(0, 0),
        size=(SIDE_PX, SIDE_PX),
    )
    objects = objects.take(canonical_order(objects))
    ids, groups = IdMaker("S", info.names), []
    for first in range(0, len(objects), ROWS):
        some = objects.take(np.arange(first, min(first + ROWS, len(objects))))
        group = Group(info, first, some, ids.ids(some, shapes_of(some)))
        group.know(group.measure())
        groups.append(group)
    return groups


def measure(task: str, who: str, folder: Path, n: int, points: int) -> dict[str, float | str]:
    """One run in this process: seconds of wall and CPU, MiB held before and at the peak."""
    used = who
    if who == "ours":
        objects = cells(n, points)
        parts = {"geojson", "parquet"} if task == "both" else {task}

        def work() -> None:
            write(folder / "new", objects, parts)

    elif who == "file alone":
        groups = known_groups(cells(n, points))

        def work() -> None:
            path = folder / "alone" / (GEOJSON_NAME if task == "geojson" else TABLE_NAME)
            path.parent.mkdir(exist_ok=True)
            kind = FeatureWriter if task == "geojson" else TableWriter
            with kind(path, groups[0].info) as out:
                for group in groups:
                    out.add(group)

    elif task == "geojson":
        try:
            from orjson import dumps
        except ImportError:
            used = "json"

            def dumps(document: object) -> bytes:
                return json.dumps(document).encode()

        document = json.loads((folder / GEOJSON_NAME).read_bytes())

        def work() -> None:
            with (folder / "peer.geojson").open("wb") as file:
                file.write(dumps(document))
                os.fsync(file.fileno())

    else:
        table = pq.read_table(folder / TABLE_NAME).combine_chunks()

        def work() -> None:
            pq.write_table(table, folder / "peer.parquet", compression="zstd", row_group_size=ROWS)
            with (folder / "peer.parquet").open("rb") as file:
                os.fsync(file.fileno())

    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"who": used, "wall": wall, "cpu": cpu, "held": held, "peak": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1_000_000)
    parser.add_argument("--points", type=int, default=32, help="vertices of an outline")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("TASK", "WHO", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        task, who, folder = given.one
        print(json.dumps(measure(task, who, Path(folder), given.objects, given.points)))
        return
    print(
        f"{given.objects} outlines of {given.points} points, {given.repetitions} repetitions; {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, shapely {shapely.__version__}, pyarrow {pyarrow.__version__}"
    )
    print(f"{'files':8} {'writer':10} {'wall s':>16} {'cpu s':>16} {'held MiB':>9} {'peak MiB':>9}  ratio wall, cpu")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, cells(given.objects, given.points), {"geojson", "parquet"})
        for task, writers in TASKS.items():
            runs: dict[str, list[dict[str, float | str]]] = {who: [] for who in writers}
            for _ in range(given.repetitions):
                for who in writers:
                    command = [sys.executable, __file__, "--objects", str(given.objects), "--points", str(given.points)]
                    done = subprocess.run(
                        [*command, "--one", task, who, name], capture_output=True, text=True, check=True
                    )
                    runs[who].append(json.loads(done.stdout))
            for who in writers:
                print(row(task, runs[who], runs[writers[-1]]))


def row(task: str, runs: list[dict[str, float | str]], peer: list[dict[str, float | str]]) -> str:
    """Median and range of a writer's runs, and the ratio of its medians to the peer's."""

    def median(some: list[dict[str, float | str]], key: str) -> float:
        return statistics.median(float(run[key]) for run in some)

    def spread(key: str) -> str:
        values = [float(run[key]) for run in runs]
        return f"{median(runs, key):.2f} ({min(values):.2f}-{max(values):.2f})"

    ratio = " ".join(f"{median(runs, key) / median(peer, key):.2f}" for key in ("wall", "cpu"))
    memory = f"{median(runs, 'held'):9.0f} {median(runs, 'peak'):9.0f}"
    return f"{task:8} {runs[0]['who']!s:10} {spread('wall'):>16} {spread('cpu'):>16} {memory}  {ratio}"


if __name__ == "__main__":
    main()
