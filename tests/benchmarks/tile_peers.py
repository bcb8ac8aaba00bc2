"""What tiling is measured against by bench_tile.py: the codec alone, a plain loop over OpenSlide and Pillow, libvips.

Each side gives seconds by the clock and seconds of CPU, all its threads and processes.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
from numpy.typing import NDArray

from cytopipe.tiles.config import Codec
from cytopipe.tiles.images import encode_image
from tests.benchmarks.build_slides import native_tiles

QUALITY = 80
TASK_TILES = 4  # of the OpenSlide loop: small, so that its processes end together

Took = tuple[float, float]  # seconds by the clock, seconds of CPU
Windows = list[tuple[int, int]]  # corners, px of what is cut


class Limit:
    """The codec's own time for a slide whose windows are whole native tiles: decode once, encode once, in threads."""

    def __init__(self, path: Path, tile_px: int, codec: Codec, cores: int) -> None:
        level = native_tiles(path)
        per_side = tile_px // level.tile_px
        if tile_px % level.tile_px or level.width % tile_px:
            raise ValueError(f"windows of {tile_px} px are no whole tiles of {path.name}")
        self._encode = ENCODERS[codec]
        self._cores = cores
        self._native = [
            [level.tiles[i] for i in level.place[y : y + per_side, x : x + per_side].ravel()]
            for y in range(0, level.place.shape[0], per_side)
            for x in range(0, level.place.shape[1], per_side)
        ]
        with ThreadPoolExecutor(cores) as pool:
            self._windows = list(pool.map(_assembled, self._native))
        if bytes(self._encode(self._windows[0])) != encode_image(self._windows[0], codec, QUALITY):
            raise ValueError(f"the product encodes {codec} in another way than the limit here")
        self.decode_seconds: list[float] = []

    def run(self) -> Took:
        """Seconds of both, nothing between them counted."""
        with ThreadPoolExecutor(self._cores) as pool:
            list(pool.map(bool, range(self._cores)))  # threads are up
            cpu, start = cpu_seconds(), time.perf_counter()
            list(pool.map(_decode_all, self._native))
            decoded = time.perf_counter()
            list(pool.map(self._drop, self._windows))
            end = time.perf_counter()
            self.decode_seconds.append(decoded - start)
            return end - start, cpu_seconds() - cpu

    def _drop(self, window: NDArray[np.uint8]) -> None:
        self._encode(window)


# the settings of cytopipe/tiles/images.py at quality 80, spelled out: the limit is another's time, not our function's
ENCODERS: dict[str, Callable[[NDArray[np.uint8]], bytes]] = {
    "jpeg": lambda rgb: imagecodecs.jpeg8_encode(
        rgb, level=QUALITY, colorspace="RGB", outcolorspace="YCBCR", subsampling="420"
    ),
    "png": lambda rgb: imagecodecs.png_encode(rgb, level=3, filter=16),
    "zarr": lambda rgb: imagecodecs.zstd_encode(rgb, level=1),
}


_opened: dict[tuple[str, Path], object] = {}  # in a process of the plain loop: the slide of the present run


def loop_with_openslide(task: tuple[str, Path, Windows, int, int]) -> float:
    """Some windows of a slide as OpenSlide's and Pillow's manuals show it; returns CPU seconds. Runs in a process."""
    import openslide

    cpu = time.process_time()
    folder, path, windows, side_px, reduce = task
    source = _opened.get((folder, path))
    if source is None:  # once a run and process, on the clock
        _opened.clear()
        source = _opened[folder, path] = openslide.OpenSlide(path)
    for x, y in windows:
        image = source.read_region((x, y), 0, (side_px * reduce, side_px * reduce)).convert("RGB")
        if reduce > 1:
            image = image.reduce(reduce)  # Pillow's box filter, the fastest it has
        image.save(f"{folder}/{y}_{x}.jpg", quality=QUALITY)
    return time.process_time() - cpu


def started(_: int) -> None:
    """Have a process of the plain loop up, with its imports done."""
    import openslide  # noqa: F401
    import PIL.JpegImagePlugin  # noqa: F401

    time.sleep(0.2)  # so that each process takes one


def run_vips(path: Path, out: Path, tile_px: int, cores: int) -> Took:
    """One `vips dzsave` of level 0, its start included."""
    command = ["vips", "dzsave", path, out, "--depth", "one", "--tile-size", str(tile_px)]
    command += ["--overlap", "0", "--suffix", f".jpg[Q={QUALITY}]"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "VIPS_CONCURRENCY": str(cores)})
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def has_vips(path: Path) -> bool:
    """Whether vips is installed and reads the slide by itself; says so if not."""
    if not has_tool():
        print("vips         skipped: not installed (Debian: libvips-tools)")
        return False
    asked = subprocess.run(["vipsheader", "-f", "vips-loader", path], check=True, capture_output=True, text=True)
    if asked.stdout.strip() != "tiffload":
        print(f"vips         skipped: it reads {path.name} by {asked.stdout.strip()}")
        return False
    return True


def has_tool() -> bool:
    """Whether vips is on the path."""
    return shutil.which("vips") is not None


def cpu_seconds() -> float:
    """CPU of this process, all threads."""
    return time.process_time()


def _decode_all(tiles: Sequence[bytes]) -> None:
    for data in tiles:
        imagecodecs.jpeg8_decode(data)


def _assembled(tiles: Sequence[bytes]) -> NDArray[np.uint8]:
    decoded = [imagecodecs.jpeg8_decode(data) for data in tiles]
    per_side = round(len(decoded) ** 0.5)
    rows = [np.hstack(decoded[i : i + per_side]) for i in range(0, len(decoded), per_side)]
    return np.ascontiguousarray(np.vstack(rows))
