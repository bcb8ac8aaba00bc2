"""A small tile store for tests: three slides of three tiles of noise, three objects on each slide."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from shapely import box

from cytopipe.tiles import MadeBy, ObjectRow, SlideRow, StoreInfo, TileRow, open_writer
from cytopipe.tiles.config import Codec
from cytopipe.tiles.images import encode_image

TILE_PX = 32
QUALITY = 90
SLIDES = ("S-2", "S-10", "S-1")


def store_info(codec: Codec = "png") -> StoreInfo:
    return StoreInfo(
        tile_px=TILE_PX,
        mpp=0.5,
        overlap_px=0,
        edge="shift",
        codec=codec,
        quality=QUALITY,
        made_by=MadeBy(command="tile", version="0"),
    )


def picture(slide_id: str, x: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(f"{slide_id}{x}".encode()).digest()[:4], "big")
    return np.random.default_rng(seed).integers(0, 256, (TILE_PX, TILE_PX, 3), dtype=np.uint8)


def tile_row(slide_id: str, x: int, y: int = 0, codec: Codec = "png", **changes: object) -> TileRow:
    values = {
        "mpp": 0.5,
        "foreground": 0.25,
        "sharpness": 1.5,
        "glass": 0.75,
        "labelled": True,
        "origin": "grid",
        "image": encode_image(picture(slide_id, x), codec, QUALITY),
    }
    return TileRow(x, y, 2.0 * x, 2.0 * y, 2.0 * (x + TILE_PX), 2.0 * (y + TILE_PX), **{**values, **changes})


def slide_row(slide_id: str, **changes: object) -> SlideRow:
    return SlideRow(slide_id, f"patient of {slide_id}", "train", f"{slide_id}.svs", classes=("LSIL",), **changes)


def object_rows() -> list[ObjectRow]:
    return [
        ObjectRow("b", TILE_PX, 0, "LSIL", box(70, 5, 90, 20), False, False),
        ObjectRow("c", 0, 0, "LSIL", box(50, 5, 64, 20), True, False),
        ObjectRow("a", TILE_PX, 0, "nucleus", box(75, 8, 80, 12), False, True),
    ]


def write(folder: Path, slides: tuple[str, ...] = SLIDES, tiles: int = 3, codec: Codec = "png") -> None:
    """A finished store, or what was missing of one."""
    with open_writer(folder, store_info(codec), {"tile_px": TILE_PX}) as writer:
        for slide_id in slides:
            if not writer.is_done(slide_id, {"fingerprint": slide_id}):
                rows = (tile_row(slide_id, TILE_PX * i, codec=codec) for i in range(tiles))
                writer.add_slide(slide_row(slide_id), rows, object_rows(), {"fingerprint": slide_id})
        writer.finish()


def break_off(folder: Path, tiles: int, codec: Codec = "png") -> None:
    """As `write`, with an interrupt (raised) when so many tiles are cut."""
    budget = iter(range(tiles))

    def interrupted(slide_id: str) -> Iterator[TileRow]:
        for i in range(3):
            if next(budget, None) is None:
                raise KeyboardInterrupt
            yield tile_row(slide_id, TILE_PX * i, codec=codec)

    with open_writer(folder, store_info(codec), {"tile_px": TILE_PX}) as writer:
        for slide_id in SLIDES:
            writer.add_slide(slide_row(slide_id), interrupted(slide_id), object_rows(), {"fingerprint": slide_id})


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All that a store consists of; the journal tells the order of the work, which may differ."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.jsonl"
    }
