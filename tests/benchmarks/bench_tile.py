"""How fast and in how much memory slides are tiled: beside the codec's limit, an OpenSlide + Pillow loop, and libvips.

    python -m tests.benchmarks.bench_tile [--cases jpeg zarr png passthrough mpp ndpi dicom memory] [--repeat 5]
                                          [--slides FOLDER] [--size 16384] [--cores 2] [--tile-px 1024]

Both sides run in turns on the same cores, after one run of each that is not counted; medians are compared. Slides come
from build_slides.py and are in the page cache; `sync` is called before each run.

    ours       `cytopipe.steps.tile.tile` in a process that has imported it: opens the slide, plans, cuts, measures
               sharpness and glass, writes tiles, overview, tables and page, and syncs them to disk. Excluded: the start
               of Python and imports. Included: everything else
    limit      imagecodecs alone in as many threads: each native tile decoded once from memory, each tile encoded once
               from pixels that lie ready, both dropped; no file, no copy, no measurement
    openslide  as many processes, started before the clock, each of which opens the slide, then read_region,
               convert("RGB"), save(quality=80) tile by tile; tables, overview, measurements and sync: none
    vips       `vips dzsave --depth one` of a plain TIFF with the same compressed tiles; its time on a tiny image is
               subtracted as start-up; no sync

Foreground is off where a limit or a peer is compared, so that both sides do the same tiles; `foreground` rows say what
it costs. Ratio is the peer's time over ours, for a limit too: 1 is the limit, 0.85 means 85% of its speed. CPU s
counts all threads and processes of a side, and tells more than seconds on a machine that does other work.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from cytopipe.slides import find_foreground, open_slide
from cytopipe.steps.tile import TileResult, tile
from cytopipe.tiles import TileConfig
from cytopipe.tiles.config import Codec
from tests.benchmarks.build_slides import DICOM_FILE, MPP, SIDE_PX, WSI, native_tiles, slide
from tests.benchmarks.tile_peers import (
    QUALITY,
    TASK_TILES,
    Limit,
    Took,
    Windows,
    cpu_seconds,
    has_tool,
    has_vips,
    loop_with_openslide,
    run_vips,
    started,
)

NDPI_COPIES, DICOM_COPIES = 4, 16  # of one small slide: what a run does once weighs less
NDPI_FILE = "test3-DAPI-2-(387).ndpi"
PEAK_MIB, TIME_GROWTH, FOREGROUND_SHARE = 1024, 1.10, 0.03


@dataclass
class Bench:
    """What all cases share, and the rows of the table."""

    slides: Path
    scratch: Path
    size: int
    tile_px: int
    repeat: int
    cores: int
    pool: ProcessPoolExecutor
    missed: list[str] = field(default_factory=list)

    def slide(self, kind: str) -> Path:
        """A built slide, its bytes in the page cache."""
        path = slide(kind, self.slides, size=self.size)
        path.read_bytes()
        return path

    def config(self, codec: Codec = "jpeg", mpp: float | None = MPP, foreground: bool = False) -> TileConfig:
        """As the cases cut."""
        return TileConfig(tile_px=self.tile_px, mpp=mpp, codec=codec, quality=QUALITY, foreground=foreground)

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """An empty place for output, gone afterwards; earlier output is on disk, so that it does not slow this run."""
        os.sync()
        path = Path(tempfile.mkdtemp(dir=self.scratch))
        try:
            yield path
        finally:
            shutil.rmtree(path)

    def compare(
        self, case: str, megapixels: float, ours: Callable[[], Took], peers: dict[str, tuple[Callable[[], Took], float]]
    ) -> list[Took]:
        """Run all sides in turns and print a row a peer: (run, least ratio). Returns our runs."""
        sides = {"ours": ours, **{name: run for name, (run, _) in peers.items()}}
        took: dict[str, list[Took]] = {name: [] for name in sides}
        for turn in range(self.repeat + 1):
            for name, run in sides.items():
                one = run()
                if turn:  # the first one warms up
                    took[name].append(one)
        mine = middle(took["ours"])
        for name, (_, target) in peers.items():
            other = middle(took[name])
            verdict = self.judged(f"{case} {name}", other[0] / mine[0] >= target)
            print(
                f"{case:12} {name:10} {mine[0]:8.2f} {spread(took['ours']):7.2f} {mine[1]:8.2f} {other[0]:8.2f} "
                f"{spread(took[name]):7.2f} {other[1]:8.2f} {other[0] / mine[0]:7.2f} {other[1] / mine[1]:7.2f} "
                f"{target:7.2f} {verdict:5} {megapixels / mine[0]:7.1f}",
                flush=True,
            )
        return took["ours"]

    def judged(self, what: str, good: bool) -> str:
        """The word for the table; what misses is remembered."""
        if not good:
            self.missed.append(what)
        return "pass" if good else "MISS"

    def ours(self, inputs: Sequence[Path], config: TileConfig, results: list[TileResult] | None = None) -> Took:
        """One run of the step into an empty folder. Raises SystemExit when a slide failed: its time means nothing."""
        with self.folder() as folder:
            cpu, start = cpu_seconds(), time.perf_counter()
            result = tile(inputs, folder / "store", config=config, workers=self.cores)
            seconds = time.perf_counter() - start, cpu_seconds() - cpu
        if result.failed:
            sys.exit(f"{result.failed[0][0]}: {result.failed[0][1]}")
        if results is not None:
            results.append(result)
        return seconds

    def openslide(self, paths: Sequence[Path], windows: Windows, side_px: int, reduce: int = 1) -> Took:
        """The plain loop over all windows of each slide, `reduce` times smaller."""
        with self.folder() as folder:
            for number in range(len(paths)):
                (folder / str(number)).mkdir()
            tasks = [
                (f"{folder}/{number}", path, windows[first : first + TASK_TILES], side_px, reduce)
                for number, path in enumerate(paths)
                for first in range(0, len(windows), TASK_TILES)
            ]
            start = time.perf_counter()
            cpu = sum(self.pool.map(loop_with_openslide, tasks))
            return time.perf_counter() - start, cpu

    def vips(self, path: Path) -> Took:
        """One `vips dzsave` into an empty folder, its start included."""
        with self.folder() as folder:
            return run_vips(path, folder / "tiles", self.tile_px, self.cores)


def jpeg(bench: Bench) -> None:
    """256 px native tiles to 1024 px JPEG: limit, OpenSlide loop, vips; then what foreground costs."""
    path, megapixels = bench.slide("16k"), bench.size**2 / 1e6
    windows = grid(bench.size, bench.size, bench.tile_px)
    limit = Limit(path, bench.tile_px, "jpeg", bench.cores)
    peers = {
        "limit": (limit.run, 0.85),
        "openslide": (lambda: bench.openslide([path], windows, bench.tile_px), 3.5),
    }
    plain = bench.slide("generic")
    is_timed = has_vips(plain)
    if is_timed:
        tiny = slide("generic", bench.slides, size=1024)
        start_seconds, start_cpu = middle([bench.vips(tiny) for _ in range(5)])

        def vips() -> Took:
            seconds, cpu = bench.vips(plain)
            return seconds - start_seconds, cpu - start_cpu

        peers["vips"] = (vips, 2.0)
    bench.compare("jpeg", megapixels, lambda: bench.ours([path], bench.config()), peers)
    decode = statistics.median(limit.decode_seconds[1:])
    print(f"  limit: decoding {decode:.2f} s, the rest is encoding")
    if is_timed:
        print(f"  vips: {start_seconds:.2f} s for 1024 x 1024 px count as its start and are subtracted")

    results: list[TileResult] = []
    with_foreground = [bench.ours([path], bench.config(foreground=True), results) for _ in range(bench.repeat)]
    alone = middle([foreground_alone(path) for _ in range(bench.repeat)])
    whole = middle(with_foreground)
    row = results[0].slides[0]
    share = alone[0] / whole[0]
    print(
        f"{'jpeg':12} {'foreground':10} {whole[0]:8.2f} {spread(with_foreground):7.2f} {whole[1]:8.2f}; found alone in "
        f"{alone[0]:.3f} s (CPU {alone[1]:.3f}), {share:.1%} of the run, limit {FOREGROUND_SHARE:.0%}: "
        f"{bench.judged('foreground share', share < FOREGROUND_SHARE)}; {row.tiles_kept} tiles kept, "
        f"{row.tiles_glass} dropped",
        flush=True,
    )


def zarr(bench: Bench) -> None:
    """To a zarr store, beside the limit of its compressor."""
    _to_codec(bench, "zarr")


def png(bench: Bench) -> None:
    """To PNG files, beside the limit."""
    _to_codec(bench, "png")


def _to_codec(bench: Bench, codec: Codec) -> None:
    path = bench.slide("16k")
    limit = Limit(path, bench.tile_px, codec, bench.cores)
    config = bench.config(codec)
    bench.compare(codec, bench.size**2 / 1e6, lambda: bench.ours([path], config), {"limit": (limit.run, 0.8)})


def passthrough(bench: Bench) -> None:
    """Native tiles of 1024 px that become tiles as they are, beside the plain loop on the same slide."""
    path, results = bench.slide("native1024"), []
    windows = grid(bench.size, bench.size, bench.tile_px)
    loop = (lambda: bench.openslide([path], windows, bench.tile_px), 10.0)
    bench.compare(
        "passthrough",
        bench.size**2 / 1e6,
        lambda: bench.ours([path], bench.config(), results),
        {"openslide": loop},
    )
    unmeasured = bench.config().model_copy(update={"measure": False})
    bench.compare("unmeasured", bench.size**2 / 1e6, lambda: bench.ours([path], unmeasured), {"openslide": loop})
    row = results[-1].slides[0]
    print(f"  {row.tiles_copied} of {row.tiles_kept} tiles were copied; unmeasured: not even decoded (--no-measure)")


def mpp(bench: Bench) -> None:
    """0.25 to 0.5 µm/px: the plain loop reads level 0 and reduces by 2 in Pillow."""
    path = bench.slide("16k")
    step = 2 * bench.tile_px
    windows = [(2 * x, 2 * y) for x, y in grid(bench.size // 2, bench.size // 2, bench.tile_px)]
    loop = (lambda: bench.openslide([path], windows, bench.tile_px, reduce=step // bench.tile_px), 2.5)
    config = bench.config(mpp=2 * MPP)
    bench.compare("mpp 0.5", bench.size**2 / 1e6, lambda: bench.ours([path], config), {"openslide": loop})


def ndpi(bench: Bench) -> None:
    """A real NDPI through OpenSlide, several times in one run; each side opens it each time, on the clock."""
    _through_openslide(bench, "ndpi", WSI / NDPI_FILE, NDPI_COPIES)


def dicom(bench: Bench) -> None:
    """DICOM through OpenSlide, opened on the clock: a large slide of real frames, and the small real one as it is."""
    try:
        path = slide("dicom", bench.slides)
    except FileNotFoundError as error:
        print(f"dicom        skipped: {error.filename} is absent")
        return
    _through_openslide(bench, "dicom", path, 1)
    _through_openslide(bench, "dicom real", WSI / DICOM_FILE, DICOM_COPIES)


def _through_openslide(bench: Bench, case: str, path: Path, copies: int) -> None:
    if not path.is_file():
        print(f"{case:12} skipped: {path} is absent")
        return
    path.read_bytes()
    with open_slide(path) as opened:
        width, height = opened.dimensions
        reader = opened.reader
    listed = bench.scratch / f"{case.replace(' ', '-')}.csv"
    with listed.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "slide_id"))
        rows.writerows((path, f"slide-{number}") for number in range(copies))
    windows, config = grid(width, height, bench.tile_px), bench.config(mpp=None)
    megapixels = copies * len(windows) * bench.tile_px**2 / 1e6
    loop = (lambda: bench.openslide([path] * copies, windows, bench.tile_px), 1.0)
    bench.compare(case, megapixels, lambda: bench.ours([listed], config), {"openslide": loop})
    print(f"  {path.name}: {width} x {height} px, {copies} times, reader {reader}")


def memory(bench: Bench) -> None:
    """Peak memory and time per pixel of 100,000 px against 16,384 px, each in a process of its own; foreground on."""
    small, large = bench.slide("16k"), bench.slide("100k")
    side = native_tiles(large).width
    need_mb, free_mb = side**2 * 0.2 / 1e6, shutil.disk_usage(bench.scratch).free / 1e6
    if free_mb < need_mb:
        print(f"memory       skipped: {free_mb:.0f} MB are free, up to {need_mb:.0f} MB are written")
        return
    runs: dict[Path, list[dict[str, float]]] = {small: [], large: []}
    for _ in range(bench.repeat):
        for path, done in runs.items():
            done.append(bench_in_child(bench, path))
    per_pixel = {}
    for path, done in runs.items():
        size = native_tiles(path).width
        seconds = statistics.median(one["seconds"] for one in done)
        cpu = statistics.median(one["cpu"] for one in done)
        found = statistics.median(one["foreground"] for one in done)
        peak = max(one["peak_mib"] for one in done)
        per_pixel[path] = seconds / size**2
        print(
            f"{'memory':12} {size:>7} px {seconds:8.2f} s, CPU {cpu:.2f} s, {size**2 / 1e6 / seconds:.1f} Mpx/s; "
            f"{done[0]['kept']:.0f} tiles kept, {done[0]['dropped']:.0f} dropped; foreground {found / seconds:.1%} of "
            f"the run: {bench.judged(f'foreground share {size}', found / seconds < FOREGROUND_SHARE)}; peak "
            f"{peak:.0f} MiB of {PEAK_MIB}: {bench.judged(f'peak {size}', peak < PEAK_MIB)}",
            flush=True,
        )
    growth = per_pixel[large] / per_pixel[small]
    print(f"  time per pixel {growth:.2f} times, limit {TIME_GROWTH}: {bench.judged('growth', growth <= TIME_GROWTH)}")


def bench_in_child(bench: Bench, path: Path) -> dict[str, float]:
    """`one_run` in a fresh process."""
    with bench.folder() as folder:
        tiny = slide("16k", bench.slides, size=1024)
        command = [sys.executable, "-m", "tests.benchmarks.bench_tile", "--one", tiny, path, folder]
        command += ["--tile-px", str(bench.tile_px), "--cores", str(bench.cores)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


def one_run(tiny: Path, path: Path, folder: Path, tile_px: int, workers: int) -> None:
    """Tile one slide and print seconds, CPU, peak memory and the time of foreground alone, as JSON. A tiny slide goes
    before, uncounted: what is imported late is not the slide's time.
    """
    config = TileConfig(tile_px=tile_px, mpp=MPP, quality=QUALITY)
    tile([tiny], folder / "tiny", config=config, workers=workers)
    cpu, start = cpu_seconds(), time.perf_counter()
    result = tile([path], folder / "store", config=config, workers=workers)
    seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
    peak_mib = own_peak_mib()
    (row,) = result.slides
    found, _ = foreground_alone(path)
    facts = {"seconds": seconds, "cpu": cpu, "peak_mib": peak_mib, "foreground": found}
    print(json.dumps({**facts, "kept": row.tiles_kept, "dropped": row.tiles_glass}))


def own_peak_mib() -> float:
    """Peak resident memory of this process. Not ru_maxrss: that one begins with the peak of who started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def foreground_alone(path: Path) -> Took:
    """Seconds to find the foreground of a slide that is just opened."""
    with open_slide(path) as opened:
        cpu, start = cpu_seconds(), time.perf_counter()
        find_foreground(opened)
        return time.perf_counter() - start, cpu_seconds() - cpu


def grid(width: int, height: int, tile_px: int) -> Windows:
    """Corners of windows without overlap, the last ones shifted inwards, as `tile` has them."""
    xs, ys = ([*range(0, max(1, side - tile_px), tile_px), max(0, side - tile_px)] for side in (width, height))
    return [(x, y) for y in unique(ys) for x in unique(xs)]


def unique(starts: list[int]) -> list[int]:
    """Ascending numbers without repetition."""
    return [starts[0], *(b for a, b in pairwise(starts) if b > a)]


def middle(took: Sequence[Took]) -> Took:
    """Medians of seconds and of CPU seconds."""
    return statistics.median(t[0] for t in took), statistics.median(t[1] for t in took)


def spread(took: Sequence[Took]) -> float:
    """Largest less smallest seconds."""
    return max(t[0] for t in took) - min(t[0] for t in took)


CASES: dict[str, Callable[[Bench], None]] = {
    "jpeg": jpeg,
    "zarr": zarr,
    "png": png,
    "passthrough": passthrough,
    "mpp": mpp,
    "ndpi": ndpi,
    "dicom": dicom,
    "memory": memory,
}


def main() -> None:
    """Measure the cases and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=("all", *CASES), default=["all"])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--slides", type=Path, help="folder of built slides, kept; not given: built and thrown away")
    parser.add_argument("--scratch", type=Path, help="folder for output, which is removed; not given: the system's")
    parser.add_argument("--size", type=int, default=SIDE_PX)
    parser.add_argument("--tile-px", type=int, default=1024)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--one", type=Path, nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # processes and threads started from here on inherit it
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    if arguments.one:
        one_run(*arguments.one, arguments.tile_px, arguments.cores)
        return

    cases = [run for case, run in CASES.items() if {"all", case} & set(arguments.cases)]
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch,
        ProcessPoolExecutor(arguments.cores, mp_context=context) as pool,
    ):
        slides = arguments.slides or Path(scratch) / "slides"
        list(pool.map(started, range(arguments.cores)))
        bench = Bench(slides, Path(scratch), arguments.size, arguments.tile_px, arguments.repeat, arguments.cores, pool)
        print_head(bench)
        for run in cases:
            run(bench)
    print("missed: " + (", ".join(bench.missed) or "nothing"))


def print_head(bench: Bench) -> None:
    """Machine, versions and columns."""
    path = bench.slide("16k")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("imagecodecs", "openslide-bin", "pillow", "numpy"))
    vips = subprocess.run(["vips", "--version"], capture_output=True, text=True).stdout.strip() if has_tool() else "-"
    print(
        f"{bench.size} x {bench.size} px, {path.stat().st_size / bench.size**2:.3f} bytes a px, tiles of "
        f"{bench.tile_px} px, quality {QUALITY}, {bench.repeat} repetitions, {bench.cores} cores of {os.cpu_count()}; "
        f"{platform.machine()}, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}, {libraries}, {vips}"
    )
    print(
        f"{'case':12} {'peer':10} {'ours s':>8} {'spread':>7} {'CPU s':>8} {'peer s':>8} {'spread':>7} {'CPU s':>8} "
        f"{'ratio':>7} {'of CPU':>7} {'target':>7} {'':5} {'Mpx/s':>7}",
        flush=True,
    )


if __name__ == "__main__":
    main()
