"""Tile images into zarr arrays: cytopipe's own shards beside zarr-python's, and beside the codec alone.

    python tests/benchmarks/bench_zarr_images.py [--tiles 128] [--tile-px 1024] [--threads 2] [--repetitions 5]

Each row takes the same tiles (smoothed noise over a gradient, about as compressible as a stained smear) to the same
codec, zstd, and the same shards, into a temporary folder, flushed to the disk at the end. `codec alone` compresses each
tile once in as many threads and writes nothing: the limit. Reading is one tile at a time, in random order.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import imagecodecs
import numpy as np
import zarr
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from zarr.codecs import ZstdCodec

from cytopipe.tiles.cut import map_in_order
from cytopipe.tiles.images import ZSTD_LEVEL, encode_image
from cytopipe.tiles.zarr_images import ZarrImages, ZarrReader, tiles_per_shard

U8 = NDArray[np.uint8]
DIFFERENT = 16  # tiles in memory; more are these again


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiles", type=int, default=128)
    parser.add_argument("--tile-px", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    pictures = [picture(rng, given.tile_px) for _ in range(min(DIFFERENT, given.tiles))]
    tiles = [pictures[i % len(pictures)] for i in range(given.tiles)]
    megapixels = given.tiles * given.tile_px**2 / 1e6
    zarr.config.set({"threading.max_workers": given.threads, "async.concurrency": given.threads})
    print(
        f"{given.tiles} tiles of {given.tile_px} px, {given.threads} threads, {given.repetitions} repetitions; "
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, python "
        f"{platform.python_version()}, zarr {zarr.__version__}, imagecodecs {imagecodecs.__version__}"
    )
    ways: dict[str, Callable[[Path], None]] = {
        "codec alone": lambda folder: codec_alone(tiles, given.threads),
        "cytopipe": lambda folder: write_cytopipe(folder, tiles, given.threads),
        "zarr-python": lambda folder: write_zarr_python(folder, tiles),
    }
    limit = 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for name, write in ways.items():
            times = [timed(write, Path(scratch, "array")) for _ in range(given.repetitions)]
            median = statistics.median(times)
            limit = limit or median
            print(
                f"write {name:12} {median:6.2f} s  {min(times):.2f} to {max(times):.2f}  {megapixels / median:6.0f} "
                f"Mpx/s  {limit / median:.2f} of the limit"
            )
        store = Path(scratch, "store")
        write_cytopipe(store, tiles, given.threads)
        order = rng.permutation(given.tiles).tolist()
        reader, array = ZarrReader(store.parent), zarr.open_array(store / "0", mode="r")
        readers: dict[str, Callable[[int], U8]] = {
            "cytopipe": lambda i: reader.read(f"{store.name}/0#{i}"),
            "zarr-python": lambda i: np.asarray(array[i]),
        }
        for name, read in readers.items():
            assert all(np.array_equal(read(i), tiles[i]) for i in order[:8])
            start = time.perf_counter()
            for i in order:
                read(i)
            each_ms = (time.perf_counter() - start) / len(order) * 1e3
            print(f"read  {name:12} {each_ms:6.2f} ms a tile")


def picture(rng: np.random.Generator, tile_px: int) -> U8:
    noise = gaussian_filter(rng.normal(0, 60, (tile_px, tile_px, 3)), (1.5, 1.5, 0))
    return np.clip(200 + noise + np.linspace(-20, 20, tile_px)[:, None, None], 0, 255).astype(np.uint8)


def timed(write: Callable[[Path], None], folder: Path) -> float:
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    write(folder)
    return time.perf_counter() - start


def codec_alone(tiles: list[U8], threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(lambda rgb: imagecodecs.zstd_encode(rgb, level=ZSTD_LEVEL), tiles):
            pass


def write_cytopipe(folder: Path, tiles: list[U8], threads: int) -> None:
    """As `StoreWriter` does: tiles are compressed where they are cut, and written behind."""
    folder.mkdir()
    images = ZarrImages(folder, tiles[0].shape[0])
    encode = partial(encode_image, codec="zarr", quality=90)
    for i, image in enumerate(map_in_order(encode, tiles, threads)):
        images.add(i, 0, image)
    images.finish()
    images.close()


def write_zarr_python(folder: Path, tiles: list[U8]) -> None:
    """Shard by shard, so that each is written once."""
    tile_px = tiles[0].shape[0]
    step = tiles_per_shard(tile_px)
    array = zarr.create_array(
        folder,
        shape=(len(tiles), tile_px, tile_px, 3),
        dtype="uint8",
        chunks=(1, tile_px, tile_px, 3),
        shards=(step, tile_px, tile_px, 3),
        compressors=ZstdCodec(level=ZSTD_LEVEL),
    )
    for start in range(0, len(tiles), step):
        array[start : start + step] = np.stack(tiles[start : start + step])
    for path in folder.rglob("c/*/*/*/*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())


if __name__ == "__main__":
    main()
