"""Tile images as zarr v3 arrays, sharded: a few large files a slide, which any zarr library opens.

    images.zarr/SLIDE/N         array (tiles, tile_px, tile_px, 3) uint8, tiles in the order of the store; SLIDE and
                                images.zarr are groups
    images.zarr/SLIDE/N/c.I.0.0.0   shard I of array N: compressed tiles one after the other, then the index

A chunk is one tile: reading a tile reads its bytes and no others. A tile's place in a store's tables is
"images.zarr/SLIDE/N#K", row K of array N.

Shards are written and read here byte by byte, since the format is simple and zarr-python costs more than the codec:
figures from tests/benchmarks/bench_zarr_images.py. Compressed tiles come from the threads that cut them, so that a
writer holds no pixels.

Source  zarr core specification v3, and its codecs `sharding_indexed` 1.0, `zstd`, `crc32c`.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections import OrderedDict
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import RunError
from cytopipe.core.files import write_json
from cytopipe.tiles.images import DAMAGED_FIX, ZSTD_LEVEL, decode_image
from cytopipe.tiles.places import MAX_ENTRIES
from cytopipe.tiles.sinks import Behind, disk, flush

ROOT = "images.zarr"
ZARR_JSON = "zarr.json"
GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}

# [D] pixels of a shard: 31 tiles of 1200 px. Who reads a shard at once, as zarr-python's writers do, has the room
SHARD_BYTES = 128 << 20
SHARD_TILES = 4096  # [D] and no more tiles however small, so that the index, read first, stays under 64 KiB
SHARDS_PER_ARRAY = MAX_ENTRIES - 1  # beside zarr.json
KEPT_INDICES = 256  # [D] of the shards read last: at most 16 MB

ABSENT = (1 << 64) - 1  # offset and length of a chunk that a shard does not hold
CRC_BYTES = 4


def tiles_per_shard(tile_px: int) -> int:
    """How many tiles a shard takes."""
    return max(1, min(SHARD_BYTES // (3 * tile_px**2), SHARD_TILES))


def make_group(folder: Path) -> None:
    """Make `folder`, which exists, a zarr group if it is none. Raises RunError when the disk fails."""
    if not (folder / ZARR_JSON).exists():
        write_json(folder / ZARR_JSON, GROUP)


class ZarrImages:
    """A `sinks.ImageSink` that fills the group of one slide: a folder that exists and is empty.

    Tiles are zstd frames of `encode_image`.
    """

    def __init__(self, folder: Path, tile_px: int) -> None:
        self._folder, self._tile_px = folder, tile_px
        self._shard_tiles = tiles_per_shard(tile_px)
        self._array_tiles = self._shard_tiles * SHARDS_PER_ARRAY
        self._tiles = 0
        self._shard: _Shard | None = None
        self._behind = Behind(1)  # one thread: tiles lie in their order
        self._flushing = Behind(1)  # another: 100 MB of a shard take a while, and tiles must not wait for them

    def add(self, x: int, y: int, image: bytes) -> str:
        """Append the tile behind the caller; returns "N#K", its array and row there. `x` and `y` name nothing here."""
        array, row = divmod(self._tiles, self._array_tiles)
        self._tiles += 1
        self._behind.put(self._append, array, row, image)
        return f"{array}#{row}"

    def finish(self) -> None:
        """Close the last shard and describe the arrays."""
        self._behind.put(self._end_shard)
        self._behind.finish()
        self._flushing.finish()
        for start in range(0, self._tiles, self._array_tiles):
            array = self._folder / str(start // self._array_tiles)
            write_json(array / ZARR_JSON, _array_json(min(self._tiles - start, self._array_tiles), self._tile_px))
        make_group(self._folder)

    def close(self) -> None:
        """Stop writing."""
        self._behind.close()
        self._flushing.close()
        if self._shard is not None:
            with contextlib.suppress(OSError):  # what is still buffered does not fit either: said already
                self._shard.file.close()

    def _append(self, array: int, row: int, image: bytes) -> None:
        number, place = divmod(row, self._shard_tiles)
        if place == 0:
            self._end_shard()
            folder = self._folder / str(array)
            path = folder / f"c.{number}.0.0.0"
            with disk(path):
                folder.mkdir(exist_ok=True)
                self._shard = _Shard(path, path.open("wb"), [])
        if self._shard is not None:
            with disk(self._shard.path):
                self._shard.append(image)

    def _end_shard(self) -> None:
        if self._shard is not None:
            with disk(self._shard.path):
                self._shard.end(self._shard_tiles)
            self._flushing.put(flush, self._shard.path)
            self._shard = None


@dataclass(slots=True)
class _Shard:
    """A shard that is being written; `lengths` of the tiles that it holds."""

    path: Path
    file: BufferedWriter
    lengths: list[int]

    def append(self, image: bytes) -> None:
        self.file.write(image)
        self.lengths.append(len(image))

    def end(self, tiles: int) -> None:
        index = np.full((tiles, 2), ABSENT, dtype="<u8")
        index[: len(self.lengths), 1] = self.lengths
        index[: len(self.lengths), 0] = np.cumsum([0, *self.lengths[:-1]])
        data = index.tobytes()
        self.file.write(data + struct.pack("<I", crc32c(data)))
        self.file.close()


class ZarrReader:
    """Reads single tiles of the arrays of a store. Safe to share between threads, and to send to workers: it keeps
    indices of shards, and no open files.
    """

    def __init__(self, store: Path) -> None:
        self._store = store
        self._kept: OrderedDict[Path, NDArray[np.uint64]] = OrderedDict()
        self._shard_tiles: dict[Path, int] = {}
        self._lock = Lock()

    def __reduce__(self) -> tuple[type[ZarrReader], tuple[Path]]:
        return ZarrReader, (self._store,)

    def read(self, place: str) -> NDArray[np.uint8]:
        """The tile at "images.zarr/SLIDE/N#K", uint8 (tile_px, tile_px, 3) RGB. Raises RunError when it is missing or
        damaged.
        """
        name, _, row = place.rpartition("#")
        array = self._store / name
        try:
            number, k = divmod(int(row), self._tiles_of(array))
            shard = array / f"c.{number}.0.0.0"
            offset, length = self._index_of(shard)[k].tolist()
            if offset == ABSENT:
                raise ValueError("a tile that the shard does not hold")
            with shard.open("rb") as file:
                file.seek(offset)
                return decode_image(file.read(length), "zarr")
        except OSError as error:
            what = f"a tile image cannot be read ({error.strerror})"
            raise RunError(what, where=str(self._store / place), fix=DAMAGED_FIX) from error
        except (RunError, ValueError, KeyError, TypeError) as error:
            raise RunError("a tile image is damaged", where=str(self._store / place), fix=DAMAGED_FIX) from error

    def _tiles_of(self, array: Path) -> int:
        """Tiles a shard, as the array was written; it is what a later version may have changed."""
        with self._lock:
            if array in self._shard_tiles:
                return self._shard_tiles[array]
        document = json.loads((array / ZARR_JSON).read_bytes())
        tiles = int(document["chunk_grid"]["configuration"]["chunk_shape"][0])
        if tiles < 1:
            raise ValueError("shards without a tile")
        with self._lock:
            self._shard_tiles[array] = tiles
        return tiles

    def _index_of(self, shard: Path) -> NDArray[np.uint64]:
        """(tiles, 2) offset and length in bytes."""
        with self._lock:
            if shard in self._kept:
                self._kept.move_to_end(shard)
                return self._kept[shard]
        index = _read_index(shard, self._tiles_of(shard.parent))
        with self._lock:
            self._kept[shard] = index
            if len(self._kept) > KEPT_INDICES:
                self._kept.popitem(last=False)
        return index


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4), of the few kilobytes of an index."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC_TABLE = _crc_table()


def _read_index(shard: Path, tiles: int) -> NDArray[np.uint64]:
    """Raises OSError, and ValueError when the shard is damaged."""
    size = 16 * tiles
    with shard.open("rb") as file:
        start = file.seek(0, os.SEEK_END) - size - CRC_BYTES
        if start < 0:
            raise ValueError("the shard is shorter than its index")
        file.seek(start)
        data = file.read()
    if struct.unpack("<I", data[size:])[0] != crc32c(data[:size]):
        raise ValueError("the index of the shard does not match its checksum")
    return np.frombuffer(data[:size], dtype="<u8").astype(np.uint64).reshape(tiles, 2)


def _array_json(tiles: int, tile_px: int) -> dict[str, Any]:
    image = [tile_px, tile_px, 3]
    sharding = {
        "chunk_shape": [1, *image],
        "codecs": [{"name": "bytes"}, {"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}],
        "index_codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "index_location": "end",
    }
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [tiles, *image],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [tiles_per_shard(tile_px), *image]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": 0,
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
        "attributes": {},
        "dimension_names": ["tile", "y", "x", "rgb"],
    }
