"""How many tiles of 1200 px one core decodes and augments, and how many loader threads keep a GPU at 8 images/s busy.

    python -m tests.benchmarks.bench_loader [--images 12] [--tile-px 1200] [--rate 8] [--threads 1 2] [--json FILE]

Synthetic smears are cut into JPEG and PNG tiles, which stay in the page cache; every tile is decoded anew each time,
as in a set that does not fit into memory. Crops are whole tiles. Seconds are CPU seconds of all threads, OpenCV's own
switched off: they say what a core does also while it does other work beside. `workers` is what 8 images/s need at
that cost, rounded up.

    decode   read_image alone
    labelled an image with what is annotated in it: one view (two for `weak + strong`), normalised, as a batch of one
    weak + strong   both views of an unlabelled image

`threads` rows are wall clock: images/s of `prefetch` with so many threads, to be read on an idle machine only.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from cytopipe.core.classes import class_named
from cytopipe.data import Batches, LoaderSettings, TilePool, prefetch
from cytopipe.nets import NetSpec, SegSpec
from cytopipe.semi import CDCL_WEAK, JITTERED, MSPA, PSM, STRONG, WEAK, ViewPlan
from cytopipe.steps.synth import synth
from cytopipe.steps.tile import tile
from cytopipe.tiles import TileConfig, TileStore

MPP = 0.5
CLASSES = (class_named("nucleus"), class_named("normal"))
BOXES = NetSpec.model_validate({"architecture": "faster-rcnn-mobilenetv2-fpn", "classes": CLASSES})
MASKS = NetSpec.model_validate({"architecture": "mask-rcnn-mobilenetv2-fpn", "classes": CLASSES})
PIXELS = SegSpec(architecture="unet", classes=CLASSES)


class Decoding(TilePool):
    """Tiles that are decoded each time; what is annotated is read once, as in training."""

    def image(self, index: int) -> np.ndarray:
        return self._read_image(index)


def main() -> None:
    how = _arguments()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = _measured(Path(folder), how)
    facts = {"machine": platform.processor() or platform.machine(), "cv2": cv2.__version__, "torch": torch.__version__}
    if how.json is not None:
        how.json.write_text(json.dumps({"tile_px": how.tile_px, "rate": how.rate, **facts, "rows": rows}, indent=1))
    print(f"{how.tile_px} px tiles, CPU seconds of one core; OpenCV {cv2.__version__}, {facts['machine']}")
    print(
        f"{'case':<34} {'images/s a core':>16} {'ms an image':>12} {'workers for ' + format(how.rate, 'g') + '/s':>18}"
    )
    for row in rows:
        rate = row["images_per_second"]
        workers = "" if row["wall"] else str(math.ceil(how.rate / rate))
        print(f"{row['case']:<34} {rate:>16.1f} {1000 / rate:>12.0f} {workers:>18}")


def _measured(folder: Path, how: argparse.Namespace) -> list[dict[str, Any]]:
    stores = _stores(folder, how.tile_px)
    rows = []
    for codec, store in stores.items():
        pool = Decoding(store, store.rows(), CLASSES)
        rows.append(_row(f"decode, {codec}", how.images, lambda n, pool=pool: pool.image(n % len(pool))))
    store = stores["jpeg"]
    pool = Decoding(store, store.rows(), CLASSES)
    for n in range(len(pool)):  # objects and class maps are read once in a run, too
        pool.objects(n), pool.class_map(n)
    plans = {
        "labelled boxes, weak": (BOXES, ViewPlan({"weak": WEAK}, {})),
        "labelled boxes, jittered": (BOXES, ViewPlan({"weak": JITTERED}, {})),
        "labelled boxes, weak + strong": (BOXES, ViewPlan({"weak": WEAK, "strong": STRONG}, {})),
        "labelled masks, weak": (MASKS, ViewPlan({"weak": WEAK}, {})),
        "labelled masks, psm": (MASKS, ViewPlan({"weak": PSM}, {})),
        "labelled pixels, cdcl-weak": (PIXELS, ViewPlan({"weak": CDCL_WEAK}, {})),
        "labelled pixels, mspa": (PIXELS, ViewPlan({"weak": MSPA}, {})),
    }
    for name, (spec, plan) in plans.items():
        batches = Batches(pool, None, plan, spec, LoaderSettings(0, how.tile_px, 1, 1))
        rows.append(_row(name, how.images, batches.batch))
    both = ViewPlan({"weak": WEAK}, {"weak": WEAK, "strong": STRONG})
    batches = Batches(pool, pool, both, BOXES, LoaderSettings(0, how.tile_px, 1, 1))
    rows.append(_row("a labelled and an unlabelled one", how.images, batches.batch, images_each=2))
    for threads in how.threads:
        started = time.perf_counter()
        for _ in prefetch(batches, 0, how.images, threads):
            pass
        seconds = time.perf_counter() - started
        rows.append(
            {"case": f"  the same, {threads} threads", "images_per_second": 2 * how.images / seconds, "wall": True}
        )
    return rows


def _row(case: str, images: int, make: Callable[[int], Any], images_each: int = 1) -> dict[str, Any]:
    make(0)  # not counted: imports, tables, first allocation
    started = time.process_time()
    for n in range(images):
        make(n)
    seconds = time.process_time() - started
    return {"case": case, "images_per_second": images * images_each / seconds, "wall": False}


def _stores(folder: Path, tile_px: int) -> dict[str, TileStore]:
    side = 4 * tile_px  # two tiles by two, the slide's px being half as large
    made = synth(folder / "smears", slides=1, size=(side, side), cells_per_mm2=500.0, lesion_fraction=0.3, seed=7)
    (folder / "slides.csv").write_text(f"path,annotations\n{made.slides[0].path},{made.slides[0].annotations}\n")
    stores = {}
    for codec in ("jpeg", "png"):
        config = TileConfig(tile_px=tile_px, mpp=MPP, codec=codec)
        tile([folder / "slides.csv"], folder / codec, config=config)
        stores[codec] = TileStore(folder / codec)
    return stores


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=int, default=12, help="measured in each case")
    parser.add_argument("--tile-px", type=int, default=1200)
    parser.add_argument("--rate", type=float, default=8.0, help="images/s that a GPU takes")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
