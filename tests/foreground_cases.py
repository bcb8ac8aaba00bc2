"""What foreground is judged by: annotated cells on kept tiles, and glass on dropped ones.

Tiles are chosen by foreground alone, as `tile` would if nobody had annotated anything. All boxes are level-0 px,
x0 y0 x1 y1.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import find_objects

from cytopipe.slides import Foreground
from cytopipe.slides.glass import glass_level
from cytopipe.synth.cells import Cell
from cytopipe.synth.matter import Blob, Smudge
from cytopipe.synth.scene import Block, Scene
from cytopipe.tiles.config import TileConfig
from cytopipe.tiles.grid import plan_grid

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
Mask = NDArray[np.bool_]

GRAIN_PX = 4
"""Empty glass is drawn in px of so many level-0 px."""
MARGIN_UM = 2.0
"""So far around everything that lies on the slide glass is not called empty: defocus and soft borders."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The tiles of a grid that foreground alone keeps."""

    boxes: F64
    is_kept: Mask
    union: Mask  # (h, w) level-0 px on a kept tile


def kept_tiles(foreground: Foreground, size: tuple[int, int], tile_px: int) -> Kept:
    """The grid of `tile` over a slide of that size (width, height) at its own resolution, default settings."""
    least = TileConfig().min_foreground
    origins = np.array(list(plan_grid(*size, tile_px, 0, "shift").origins()), dtype=np.float64)
    boxes = np.hstack([origins, origins + tile_px])
    share = foreground.fractions(boxes)
    is_kept = (share >= least) & (share > 0)
    union = np.zeros((size[1], size[0]), np.bool_)
    for x0, y0, x1, y1 in boxes[is_kept].astype(int):
        union[y0:y1, x0:x1] = True
    return Kept(boxes, is_kept, union)


def covered(union: Mask, boxes: F64) -> F64:
    """The share of each box (N, 4) that lies on kept tiles; 1.0 only if all of it does."""
    shares = []
    for box in boxes:
        x0, y0 = np.floor(box[:2]).astype(int)
        x1, y1 = np.ceil(box[2:]).astype(int)
        shares.append(union[max(0, y0) : max(y1, y0 + 1), max(0, x0) : max(x1, x0 + 1)].mean())
    return np.array(shares)


def without_objects(tiles: F64, objects: F64) -> Mask:
    """Which tiles (T, 4) no object's box (N, 4) touches."""
    touched = (tiles[:, None, :2] < objects[None, :, 2:]).all(2) & (tiles[:, None, 2:] > objects[None, :, :2]).all(2)
    return np.asarray(~touched.any(axis=1))


def bare(tiles: F64, glass: Mask) -> Mask:
    """Which tiles (T, 4) hold nothing but the empty glass of `empty_glass`."""
    cells = np.round(tiles / GRAIN_PX).astype(int)
    return np.array([glass[y0:y1, x0:x1].all() for x0, y0, x1, y1 in cells], dtype=np.bool_)


def empty_glass(scene: Scene, blocks: Iterable[Block]) -> Mask:
    """Where on a synthetic slide there is nothing at all, px of `GRAIN_PX` level-0 px: no cell, leucocyte, red cell,
    debris, mucus. Pen, lines and the frame are glass here: they are no foreground."""
    size = -(-scene.width // GRAIN_PX), -(-scene.height // GRAIN_PX)
    busy = np.zeros((size[1], size[0]), np.uint8)
    for block in blocks:
        for thing in (*block.cells, *block.matter):
            if isinstance(thing, Smudge):
                place = tuple(int(v) for v in thing.centre / GRAIN_PX)
                cv2.circle(busy, place, int(np.ceil(1.2 * thing.radius / GRAIN_PX)), 1, -1)
            elif isinstance(thing, (Cell, Blob)):
                outlines = (thing.outline,) if isinstance(thing, Cell) else thing.outlines
                for outline in outlines:
                    cv2.fillPoly(busy, [np.round(outline / GRAIN_PX).astype(np.int32)], 1)
            else:
                points = np.round(thing.line / GRAIN_PX).astype(np.int32)
                cv2.polylines(busy, [points], False, 1, max(1, int(np.ceil((thing.width + thing.softness) / GRAIN_PX))))
    reach = int(np.ceil(MARGIN_UM / scene.mpp / GRAIN_PX))
    return np.asarray(cv2.dilate(busy, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) == 0)


def mask_at(foreground: Foreground, shape: tuple[int, int], px: int) -> Mask:
    """The mask in px of `px` level-0 px, by nearest neighbour."""
    rows = np.minimum((np.arange(shape[0]) + 0.5) * px / foreground.slide_px_per_px[1], foreground.mask.shape[0] - 1)
    columns = np.minimum((np.arange(shape[1]) + 0.5) * px / foreground.slide_px_per_px[0], foreground.mask.shape[1] - 1)
    return np.asarray(foreground.mask[np.ix_(rows.astype(int), columns.astype(int))])


def on_glass(rgb: U8, times: float = 3.0, seed: int = 0) -> tuple[U8, tuple[int, int]]:
    """A picture in the middle of a field so many times as large of the glass that itself shows: its colour, its noise.
    Returns the field and where the picture's corner lies."""
    height, width = rgb.shape[:2]
    smooth = cv2.resize(rgb, None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA)
    squares = cv2.resize(rgb.astype(np.float32) ** 2, None, fx=1 / 16, fy=1 / 16, interpolation=cv2.INTER_AREA)
    spread = np.sqrt(np.maximum(squares - smooth.astype(np.float32) ** 2, 0)).mean(axis=2)
    glass = glass_level(smooth.reshape(-1, 3), spread.reshape(-1), "light")
    is_glass = (np.abs(smooth.astype(np.float64) - glass).max(axis=2) < 8).ravel()
    noise = float(np.quantile(spread.ravel()[is_glass], 0.25)) if is_glass.any() else 1.0
    size = (round(height * times), round(width * times))
    grain = np.random.default_rng(seed).standard_normal((*size, 1), dtype=np.float32) * np.float32(noise)
    field = np.clip(grain + np.float32(glass), 0, 255).astype(np.uint8)
    x, y = (size[1] - width) // 2 + 37, (size[0] - height) // 2 + 53  # on no grid
    field[y : y + height, x : x + width] = rgb
    return field, (x, y)


def real_smears(data: Path, only: str | None = None) -> Iterator[tuple[str, str, U8, F64, float | None]]:
    """Each annotated picture: its set, its name, RGB (h, w, 3), boxes (N, 4) with an area, and its µm/px.

    `only`: of one set. What is missing is left out.
    """
    for name, pictures in (("pap_edf", _pap_edf), ("bccd", _bccd), ("ccagt7", _ccagt7)):
        if only in (None, name) and (data / name).is_dir():
            yield from pictures(data / name)


def _pap_edf(folder: Path) -> Iterator[tuple[str, str, U8, F64, float | None]]:
    for path in sorted((folder / "images").glob("*.png")):
        labels = np.asarray(Image.open(folder / "labels" / path.name))
        slices = [found for found in find_objects(labels) if found is not None]
        boxes = [(c.start, r.start, c.stop, r.stop) for r, c in slices]
        yield "pap_edf", path.stem, np.asarray(Image.open(path).convert("RGB")), np.array(boxes, float), None


def _bccd(folder: Path) -> Iterator[tuple[str, str, U8, F64, float | None]]:
    for path in sorted((folder / "images").glob("*.jpg")):
        tree = ElementTree.parse(folder / "annotations" / f"{path.stem}.xml")
        boxes = [
            [float(box.findtext(key, "")) for key in ("xmin", "ymin", "xmax", "ymax")] for box in tree.iter("bndbox")
        ]
        array = np.array(boxes, float).reshape(-1, 4) - (1, 1, 0, 0)  # counted from 1, last px included
        array = array[(array[:, 2:] - array[:, :2] > 1).all(axis=1)]  # two boxes of the set have no area
        yield "bccd", path.stem, np.asarray(Image.open(path).convert("RGB")), array, None


def _ccagt7(folder: Path) -> Iterator[tuple[str, str, U8, F64, float | None]]:
    document = json.loads((folder / "coco_detection.json").read_text())
    for image in document["images"]:
        found = [a["bbox"] for a in document["annotations"] if a["image_id"] == image["id"]]
        array = np.array(found, float).reshape(-1, 4)
        array[:, 2:] += array[:, :2]
        path = folder / "images" / f"{Path(image['file_name']).stem}.jpg"
        yield "ccagt7", path.stem, np.asarray(Image.open(path).convert("RGB")), array, 0.111
