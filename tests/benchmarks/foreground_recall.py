"""How many annotated cells foreground keeps, and how much glass it drops: 20 synthetic slides a setting, and real
smears on glass of their own.

    python tests/benchmarks/foreground_recall.py --slides FOLDER [--data ../shared/data] [--seeds 20]

FOLDER keeps the synthetic slides (3072 px at 0.5 µm/px, JPEG pyramids), about 1 GB; a second run finds them there.
Tiles are chosen by foreground alone. A cell is kept if kept tiles cover all of its box ("box"); looser: any of it
("any"); stricter, and apart from tiles: the mask itself covers at least half of its nucleus' box ("mask").
Glass is counted three ways: tiles without an annotated object ("w/o": leucocytes, debris and red cells may lie there)
that are dropped; tiles on which nothing at all lies ("empty") that are dropped; and, apart from tiles, the area where
nothing at all lies that the mask leaves out ("off mask"). Time is that of `find_foreground`, CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from cytopipe.core.seeds import seed_from
from cytopipe.formats.qupath import read_qupath
from cytopipe.slides import find_foreground, open_slide
from cytopipe.steps.synth import synth
from cytopipe.synth import SETTING_NAMES, Scene
from tests.array_slide import ArraySlide
from tests.foreground_cases import (
    GRAIN_PX,
    bare,
    covered,
    empty_glass,
    kept_tiles,
    mask_at,
    on_glass,
    real_smears,
    without_objects,
)

SIDE_PX, MPP = 3072, 0.5
DENSITIES = {"default": 300.0, "sparse": 15.0}  # cells per mm²
TILES_PX = (1024, 256)


def synthetic(folder: Path, seeds: int, densities: list[str], settings: list[str]) -> None:
    """Both tables of the synthetic slides."""
    for density in densities:
        rows = defaultdict(list)
        for setting in settings:
            per_mm2 = DENSITIES[density]
            made = synth(
                folder / f"{setting}-{per_mm2:g}",
                slides=seeds,
                size=(SIDE_PX, SIDE_PX),
                mpp=MPP,
                cells_per_mm2=per_mm2,
                setting=setting,
                workers=1,
            )
            for number, entry in enumerate(made.slides):
                scene = Scene(
                    SIDE_PX,
                    SIDE_PX,
                    mpp=MPP,
                    seed=seed_from(0, "synth", number),
                    cells_per_mm2=per_mm2,
                    lesion_fraction=0.06,
                    setting=setting,
                )
                for tile_px, facts in measured(entry.path, entry.annotations, scene).items():
                    rows[setting, tile_px].append(facts)
        for tile_px in TILES_PX:
            print(f"\n{density} density, {DENSITIES[density]:g} cells per mm², {seeds} slides, tiles of {tile_px} px")
            print(
                f"{'setting':10} {'cells':>7} {'lost':>5} {'box %':>8} {'any %':>8} {'mask %':>8} "
                f"{'w/o':>6} {'dropped %':>9} {'empty':>6} {'dropped %':>9} {'glass off mask %':>16} {'CPU ms':>7}"
            )
            for setting in settings:
                facts = {key: sum(f[key] for f in rows[setting, tile_px]) for key in rows[setting, tile_px][0]}
                print(table_row(setting, facts, seeds))


def real(data: Path) -> None:
    """The table of the real smears."""
    sums: dict[tuple[str, int], Counter[str]] = defaultdict(Counter)
    for name, _, rgb, boxes, mpp in real_smears(data):
        field, (x, y) = on_glass(rgb)
        start = time.process_time()
        foreground = find_foreground(ArraySlide(field, mpp=mpp), "light")
        seconds = time.process_time() - start
        at = boxes + np.array([x, y, x, y])
        within = [np.array([x, y, x + rgb.shape[1], y + rgb.shape[0]])]
        for tile_px in TILES_PX:
            kept = kept_tiles(foreground, (field.shape[1], field.shape[0]), tile_px)
            share, outside = covered(kept.union, at), without_objects(kept.boxes, np.array(within, float))
            sums[name, tile_px].update(
                images=1,
                cells=len(at),
                box=int((share == 1).sum()),
                mask=int((foreground.fractions(at) >= 0.5).sum()),
                outside=int(outside.sum()),
                dropped=int((outside & ~kept.is_kept).sum()),
                microseconds=round(seconds * 1e6),
            )
    print("\nreal smears, each picture on three times its size of its own glass; tiles of level-0 px")
    print(
        f"{'set':10} {'tile':>5} {'images':>6} {'cells':>6} {'box %':>8} {'mask %':>8} "
        f"{'glass tiles':>11} {'dropped %':>9} {'CPU ms':>7}"
    )
    for (name, tile_px), f in sums.items():
        dropped = f"{100 * f['dropped'] / f['outside']:.1f}" if f["outside"] else "-"
        print(
            f"{name:10} {tile_px:5} {f['images']:6} {f['cells']:6} {100 * f['box'] / f['cells']:8.3f} "
            f"{100 * f['mask'] / f['cells']:8.3f} {f['outside']:11} {dropped:>9} "
            f"{f['microseconds'] / 1000 / f['images']:7.1f}"
        )


def table_row(name: str, f: dict[str, float], slides: int) -> str:
    """One line of a table, from sums over slides."""
    lost = f["cells"] - f["box"]
    share = {key: 100 * f[key] / max(1, f["cells"]) for key in ("box", "any", "mask")}
    dropped, dropped_empty = (
        f"{100 * f[part] / f[whole]:.1f}" if f[whole] else "-"
        for part, whole in (("dropped", "without"), ("dropped_empty", "empty"))
    )
    off_mask = 100 * f["glass_off"] / max(1, f["glass"])
    return (
        f"{name:10} {f['cells']:7.0f} {lost:5.0f} {share['box']:8.3f} {share['any']:8.3f} {share['mask']:8.3f} "
        f"{f['without']:6.0f} {dropped:>9} {f['empty']:6.0f} {dropped_empty:>9} {off_mask:16.1f} "
        f"{1000 * f['seconds'] / slides:7.1f}"
    )


def measured(path: Path, annotations: Path, scene: Scene) -> dict[int, dict[str, float]]:
    """The counts of one slide for each tile size."""
    objects, _ = read_qupath(annotations)
    cells = np.array([a.geometry.bounds for a in objects if a.class_name != "nucleus"]).reshape(-1, 4)
    nuclei = np.array([a.geometry.bounds for a in objects if a.class_name == "nucleus"]).reshape(-1, 4)
    with open_slide(path) as slide:
        _ = slide.background
        start = time.process_time()
        foreground = find_foreground(slide)
        seconds = time.process_time() - start
    blocks = [scene.block(row, column) for row in range(scene.rows) for column in range(scene.columns)]
    glass = empty_glass(scene, blocks)
    off = glass & ~mask_at(foreground, glass.shape, GRAIN_PX)
    facts = {}
    for tile_px in TILES_PX:
        kept = kept_tiles(foreground, (scene.width, scene.height), tile_px)
        share, empty = covered(kept.union, cells), without_objects(kept.boxes, cells)
        is_bare = bare(kept.boxes, glass)
        facts[tile_px] = {
            "cells": len(cells),
            "box": int((share == 1).sum()),
            "any": int((share > 0).sum()),
            "mask": int((foreground.fractions(nuclei) >= 0.5).sum()) * len(cells) / max(1, len(nuclei)),
            "without": int(empty.sum()),
            "dropped": int((empty & ~kept.is_kept).sum()),
            "empty": int(is_bare.sum()),
            "dropped_empty": int((is_bare & ~kept.is_kept).sum()),
            "glass": int(glass.sum()),
            "glass_off": int(off.sum()),
            "seconds": seconds,
        }
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the real smears, each set a folder; left out where it is missing")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--density", choices=list(DENSITIES), action="append")
    parser.add_argument("--setting", choices=SETTING_NAMES, action="append")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    if given.data is not None and given.data.is_dir():
        real(given.data)
    synthetic(given.slides, given.seeds, given.density or list(DENSITIES), given.setting or list(SETTING_NAMES))


if __name__ == "__main__":
    main()
