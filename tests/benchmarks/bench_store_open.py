"""How long a tile store of a million tiles takes to open, and to give its first tile and objects.

    python tests/benchmarks/bench_store_open.py [--tiles 1000000] [--slides 1000] [--objects 3] [--repetitions 5]

The store consists of its tables and of one image that the tile read shows; it is written into a temporary folder. Each
repetition is a process of its own, so that nothing is in its memory; the files are in the page cache. Columns: the time
to import, to open (`TileStore(...)`), to the first image, to the first objects, to the rows of a part, and the peak of
memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import shapely

from cytopipe.core.files import write_json
from cytopipe.tiles import MadeBy, StoreInfo
from cytopipe.tiles.images import encode_image
from cytopipe.tiles.rows import SlideRow
from cytopipe.tiles.tables import OBJECTS, SLIDES, TILES, slides_table, write_table

TILE_PX = 1200
COLUMNS = 32  # tiles a row of the grid

READ = """
import json, resource, sys, time
start = time.perf_counter()
from cytopipe.tiles import TileStore
imported = time.perf_counter()
store = TileStore(sys.argv[1])
opened = time.perf_counter()
i = len(store) // 2
image = store.read_image(i)
read = time.perf_counter()
found = len(store.objects_of(i))
objects = time.perf_counter()
rows = len(store.rows(split="train", labelled=True))
selected = time.perf_counter()
times = dict(zip(("import", "open", "image", "objects", "rows"), (
    imported - start, opened - imported, read - opened, objects - read, selected - objects)))
print(json.dumps(times | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "tiles": len(store),
                          "found": found, "selected": rows}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=int, default=1_000_000)
    parser.add_argument("--slides", type=int, default=1000)
    parser.add_argument("--objects", type=int, default=3, help="objects on each tile")
    parser.add_argument("--repetitions", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder, "store")
        write_store(store, given.tiles, given.slides, given.objects)
        runs = [one_run(store) for _ in range(given.repetitions)]
        sizes = {path.name: path.stat().st_size / 1e6 for path in sorted(store.glob("*.parquet"))}
    print(f"{platform.machine()}, python {platform.python_version()}, pyarrow {pa.__version__}, numpy {np.__version__}")
    print(
        f"{given.tiles} tiles of {given.slides} slides, {given.objects} objects a tile; {given.repetitions} processes"
    )
    print("  ".join(f"{name} {size:.1f} MB" for name, size in sizes.items()))
    for name in ("import", "open", "image", "objects", "rows"):
        times = sorted(run[name] for run in runs)
        print(f"{name:8} {statistics.median(times):7.3f} s   {times[0]:.3f} to {times[-1]:.3f}")
    print(f"peak     {max(run['peak'] for run in runs):7.0f} MiB")


def one_run(store: Path) -> dict[str, float]:
    done = subprocess.run([sys.executable, "-c", READ, str(store)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def write_store(folder: Path, tiles: int, slides: int, objects: int) -> None:
    """The tables of a store; the image of tile tiles // 2 alone is there."""
    folder.mkdir()
    each = -(-tiles // slides)
    ids = [f"S-{number:06}" for number in range(slides)]
    counts = [min(each, tiles - each * number) for number in range(slides)]
    outline = shapely.get_coordinates(shapely.Point(5000, 5000).buffer(40))

    def tiles_of(slide_id: str, count: int) -> pa.Table:
        y, x = np.divmod(np.arange(count), COLUMNS)
        y, x = y * TILE_PX, x * TILE_PX
        part = ("train", "train", "val", "test")[int(slide_id[2:]) % 4]
        names = [f"{slide_id}/{b}/{a}" for a, b in zip(x.tolist(), y.tolist(), strict=True)]
        paths = [f"images/{name}.jpg" for name in names]
        columns = {
            "tile_id": names,
            "slide_id": [slide_id] * count,
            "patient": [f"P-{slide_id}"] * count,
            "split": [part] * count,
            "x0": 2.0 * x,
            "y0": 2.0 * y,
            "x1": 2.0 * (x + TILE_PX),
            "y1": 2.0 * (y + TILE_PX),
            "mpp": np.full(count, 0.5),
            "z": pa.nulls(count, pa.int32()),
            "foreground": np.linspace(0, 1, count, dtype=np.float32),
            "sharpness": np.sqrt(np.arange(count, dtype=np.float32)),
            "glass": np.linspace(1, 0, count, dtype=np.float32),
            "labelled": np.full(count, int(slide_id[2:]) % 2 == 0),
            "origin": ["grid"] * count,
            "score": pa.nulls(count, pa.float32()),
            "model": pa.nulls(count, pa.string()),
            "objects": np.full(count, objects, np.int32),
            "path": paths,
        }
        return pa.table(columns, schema=TILES)

    def objects_of(slide_id: str, count: int) -> pa.Table:
        y, x = np.divmod(np.repeat(np.arange(count), objects), COLUMNS)
        total = count * objects
        columns = {
            "object_id": [f"{number:036}" for number in range(total)],
            "tile_id": [f"{slide_id}/{b * TILE_PX}/{a * TILE_PX}" for a, b in zip(x.tolist(), y.tolist(), strict=True)],
            "class": ["LSIL"] * total,
            "geometry": list(shapely.to_wkb(shapely.polygons(outline + np.arange(total)[:, None, None]))),
            "truncated": np.zeros(total, bool),
            "crowd": np.zeros(total, bool),
        }
        return pa.table(columns, schema=OBJECTS)

    per_slide = list(zip(ids, counts, strict=True))
    write_table(folder / "tiles.parquet", (tiles_of(*slide) for slide in per_slide), TILES)
    write_table(folder / "objects.parquet", (objects_of(*slide) for slide in per_slide), OBJECTS)
    rows = [SlideRow(slide_id, f"P-{slide_id}", "train", f"{slide_id}.svs") for slide_id in ids]
    write_table(folder / "slides.parquet", [slides_table(rows)], SLIDES)
    info = StoreInfo(
        tile_px=TILE_PX,
        mpp=0.5,
        overlap_px=0,
        edge="shift",
        codec="jpeg",
        quality=90,
        made_by=MadeBy(command="tile", version="0"),
    )
    write_json(folder / "store.json", info.model_dump(mode="json"))
    number, k = divmod(tiles // 2, each)
    y, x = divmod(k, COLUMNS)
    path = folder / "images" / ids[number] / str(y * TILE_PX) / f"{x * TILE_PX}.jpg"
    path.parent.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (TILE_PX, TILE_PX, 3), dtype=np.uint8)
    path.write_bytes(encode_image(noise, "jpeg", 90))


if __name__ == "__main__":
    main()
