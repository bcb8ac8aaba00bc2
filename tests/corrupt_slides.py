"""Slides broken on purpose, each written from scratch: what a failing disk, a cut transfer or an attacker makes of one.

`BROKEN` names them: how each is written, and what the one line about it must say. `BOMBS` are those that ask for far
more memory than they are bytes long.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from tests.ome_zarr import write_ome_zarr

WIDTH, HEIGHT, TILE_PX = 320, 192, 64
COLUMNS, TILES = 5, 15
STRIP_OFFSETS, TILE_WIDTH, TILE_OFFSETS, TILE_BYTES, IMAGE_WIDTH, X_RESOLUTION, DESCRIPTION, SUB_IFDS = (
    273, 322, 324, 325, 256, 282, 270, 330,
)  # fmt: skip


@dataclass(frozen=True)
class Broken:
    """write(folder) -> the slide; `says` must be in the error line; `exit_code` of `tile --no-foreground`."""

    write: Callable[[Path], Path]
    says: str
    exit_code: int


def picture() -> np.ndarray:
    """(192, 320, 3): bright, with a darker square and noise."""
    rgb = np.random.default_rng(3).normal(228, 3, (HEIGHT, WIDTH, 3))
    rgb[60:130, 80:200] -= 80
    return rgb.clip(0, 255).astype(np.uint8)


def sound(folder: Path, compression: str | None = "jpeg", **options: object) -> Path:
    """A tiled TIFF of one level that is as it should be."""
    path = folder / "s.tif"
    resolution = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    settings = {"tile": (TILE_PX, TILE_PX), "photometric": "rgb", "metadata": None, **resolution, **options}
    tifffile.imwrite(path, picture(), compression=compression, **settings)
    return path


def tile_span(path: Path, index: int) -> tuple[int, int]:
    """Offset and length of a tile's data."""
    with tifffile.TiffFile(path) as tiff:
        return tiff.pages[0].dataoffsets[index], tiff.pages[0].databytecounts[index]


def patch(path: Path, at: int, data: bytes) -> Path:
    """The file with other bytes at one place."""
    whole = bytearray(path.read_bytes())
    whole[at : at + len(data)] = data
    path.write_bytes(whole)
    return path


def replace_tile(path: Path, index: int, data: bytes) -> Path:
    """The file with a tile's data replaced by others, put at its end."""
    at = path.stat().st_size
    with path.open("ab") as file:
        file.write(data)
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[0].tags
        places = [(tags[code].valueoffset, int(tags[code].dtype)) for code in (TILE_OFFSETS, TILE_BYTES)]
    for (place, kind), value in zip(places, (at, len(data)), strict=True):
        size, code = {3: (2, "H"), 4: (4, "I")}[kind]
        patch(path, place + index * size, struct.pack(f"<{code}", value))
    return path


def set_entry(path: Path, code: int, *, count: int | None = None, value: int | None = None) -> Path:
    """The file with the count or value of a tag of its first directory changed (classic TIFF, little endian)."""
    with tifffile.TiffFile(path) as tiff:
        at = tiff.pages[0].tags[code].offset
    if count is not None:
        patch(path, at + 4, struct.pack("<I", count))
    if value is not None:
        patch(path, at + 2, struct.pack("<H", 4))  # a LONG
        patch(path, at + 8, struct.pack("<I", value))
    return path


def _empty(folder: Path) -> Path:
    (folder / "s.svs").write_bytes(b"")
    return folder / "s.svs"


def _cut(folder: Path, keep_fraction: float) -> Path:
    path = sound(folder)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep_fraction)])
    return path


def _hole_in_each_tile(folder: Path) -> Path:
    path = sound(folder)
    for index in range(TILES):
        offset, size = tile_span(path, index)
        patch(path, offset + size - 200, bytes(120))
    return path


def _flipped(folder: Path, compression: str) -> Path:
    path = sound(folder, compression)
    for index in range(TILES):
        offset, size = tile_span(path, index)
        data = path.read_bytes()[offset : offset + size]
        middle = size // 2
        patch(path, offset + middle, bytes(255 - byte for byte in data[middle : middle + 8]))
    return path


def _no_data(folder: Path) -> Path:
    path = sound(folder)
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[0].tags[TILE_BYTES]
        place, size = tag.valueoffset, 2 * TILES if int(tag.dtype) == 3 else 4 * TILES
    return patch(path, place, bytes(size))


def _circle(folder: Path) -> Path:
    path = sound(folder)
    with tifffile.TiffFile(path) as tiff:
        first = tiff.pages[0]
        end = first.offset + 2 + 12 * len(first.tags)
        return patch(path, end, struct.pack("<I", first.offset))


def _no_resolution(folder: Path) -> Path:
    path = sound(folder)
    with tifffile.TiffFile(path) as tiff:
        places = [tiff.pages[0].tags[code].valueoffset for code in (X_RESOLUTION, X_RESOLUTION + 1)]
    for place in places:
        patch(path, place, bytes(8))
    return path


def _many_directories(folder: Path) -> Path:
    """A chain of 70,000 directories of one entry each."""
    entry = struct.pack("<HHII", 254, 4, 1, 0)
    size = 2 + len(entry) + 4
    ends = (8 + size * (number + 1) for number in range(70_000))
    path = folder / "s.tif"
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + b"".join(b"\1\0" + entry + struct.pack("<I", e) for e in ends))
    return path


def _bomb_tile(folder: Path, compression: str, data: bytes) -> Path:
    path = sound(folder, compression)
    for index in range(TILES):
        replace_tile(path, index, data)
    return path


ZEROS_MB = 1500
"""What most bombs unpack to."""


def _deflated_zeros(wbits: int) -> bytes:
    """A stream of zeros without an end: the same flushed block over and over. Its checksum comes too late to matter."""
    packer = zlib.compressobj(9, zlib.DEFLATED, wbits)
    first = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + block * ZEROS_MB


def _zstd_zeros() -> bytes:
    """A frame of run-length blocks of 128 KiB (RFC 8878 section 3.1.1.2)."""
    size = 128 * 1024
    blocks = [struct.pack("<I", size << 3 | 1 << 1)[:3] + b"\0"] * (8 * ZEROS_MB)
    blocks[-1] = struct.pack("<I", size << 3 | 1 << 1 | 1)[:3] + b"\0"
    return b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size * len(blocks)) + b"".join(blocks)


def _deflate_bomb(folder: Path) -> Path:
    return _bomb_tile(folder, "deflate", _deflated_zeros(15))


def _zstd_bomb(folder: Path) -> Path:
    return _bomb_tile(folder, "zstd", _zstd_zeros())


def _packbits_bomb(folder: Path) -> Path:
    return _bomb_tile(folder, "packbits", b"\x81\x00" * 100_000)


def _jpeg_bomb(folder: Path) -> Path:
    data = bytearray(imagecodecs.jpeg8_encode(picture()[:TILE_PX, :TILE_PX]))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    return _bomb_tile(folder, "jpeg", bytes(data))


def _jpeg2000_bomb(folder: Path) -> Path:
    data = bytearray(imagecodecs.jpeg2k_encode(picture()[:TILE_PX, :TILE_PX], codecformat="j2k"))
    size = data.index(b"\xff\x4f\xff\x51")
    for place in (8, 12, 24, 28):  # the picture, and its only tile
        data[size + place : size + place + 4] = struct.pack(">I", 60_000)
    return _bomb_tile(folder, "jpeg2000", bytes(data))


def _webp_bomb(folder: Path) -> Path:
    data = bytearray(imagecodecs.webp_encode(picture()[:TILE_PX, :TILE_PX], lossless=True))
    start = data.index(b"VP8L") + 9
    bits = int.from_bytes(data[start : start + 4], "little") & ~0xFFF_FFFF | 0xFFF_FFFF  # both sides 16384
    data[start : start + 4] = bits.to_bytes(4, "little")
    return _bomb_tile(folder, "webp", bytes(data))


def _scans_bomb(folder: Path) -> Path:
    """A progressive picture with 2,000 scans more."""
    buffer = io.BytesIO()
    Image.fromarray(picture()[:TILE_PX, :TILE_PX]).save(buffer, "jpeg", progressive=True)
    data = buffer.getvalue()
    last = data.rindex(b"\xff\xda")
    return _bomb_tile(folder, "jpeg", data[:last] + data[last:-2] * 2_000 + data[-2:])


def _png_bomb(folder: Path) -> Path:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    path = folder / "s.png"
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1 << 26), 9)), (b"IEND", b"")]
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def _jpeg_file_bomb(folder: Path) -> Path:
    path = folder / "s.jpg"
    Image.fromarray(picture()).save(path)
    data = path.read_bytes()
    return patch(path, data.index(b"\xff\xc0") + 5, struct.pack(">HH", 65_000, 65_000))


def _zarr_bomb(folder: Path, codec: str) -> Path:
    options = {"zstd": {}, "gzip": {"codec": "gzip"}, "blosc": {"version": "0.4"}, "sharded": {"shard_chunks": 2}}
    planes = np.ascontiguousarray(np.moveaxis(picture(), 2, 0))
    path = write_ome_zarr(folder / "s.zarr", [planes], mpp=0.5, **options[codec])
    bomb = _deflated_zeros(31) if codec == "gzip" else _zstd_zeros()
    if codec == "blosc":
        bomb = struct.pack("<BBBBIII", 2, 1, 0x22, 1, 2**31 - 64, 2**31 - 64, 16)
    chunks = [p for p in (path / "0").rglob("*") if p.is_file() and not p.name.startswith((".z", "zarr"))]
    for chunk in chunks:
        if codec == "sharded":
            chunk.write_bytes(_shard_of(bomb, 4))
        else:
            chunk.write_bytes(bomb)
    return path


def _shard_of(chunk: bytes, count: int) -> bytes:
    """A shard whose index leads to the same chunk everywhere (zarr v3, index at the end, crc32c)."""
    index = struct.pack("<QQ", 0, len(chunk)) * count
    return chunk + index + struct.pack("<I", _crc32c(index))


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


FIRST_TILE = ", level 0, at x 0 y 0: "

BROKEN: dict[str, Broken] = {
    "a file of no bytes": Broken(_empty, "s.svs: an empty file", 2),
    "a file cut in its header": Broken(lambda f: _cut(f, 0.004), "s.tif", 2),
    "a file cut after its tables": Broken(lambda f: _cut(f, 0.05), "the file ends", 1),
    "holes in all JPEG tiles": Broken(_hole_in_each_tile, FIRST_TILE, 1),
    "flipped bytes in deflate tiles": Broken(lambda f: _flipped(f, "deflate"), FIRST_TILE, 1),
    "no tile has data": Broken(_no_data, "none of its 15 tiles holds data", 2),
    "a table of too few tiles": Broken(
        lambda f: set_entry(set_entry(sound(f), TILE_OFFSETS, count=7), TILE_BYTES, count=7), "7 tiles", 2
    ),
    "a table of too many tiles": Broken(lambda f: set_entry(sound(f), TILE_BYTES, count=2**31), "s.tif", 2),
    "tiles of no width": Broken(lambda f: set_entry(sound(f), TILE_WIDTH, value=0), "s.tif", 2),
    "a width of 2^31": Broken(lambda f: set_entry(sound(f), IMAGE_WIDTH, value=2**31), "s.tif", 2),
    "a width of 2^31 in tiles of 2^31": Broken(
        lambda f: set_entry(set_entry(sound(f), IMAGE_WIDTH, value=2**31 - 1), TILE_WIDTH, value=2**31 - 16), "s.tif", 2
    ),
    "directories in a circle": Broken(_circle, "circle", 2),
    "directories without end": Broken(_many_directories, "s.tif", 2),
    "a resolution of 0/0": Broken(_no_resolution, "no resolution in the file", 2),
}
"""By what is broken. `tile` is asked for 0.5 µm/px."""

BOMBS: dict[str, Broken] = {
    "deflate": Broken(_deflate_bomb, FIRST_TILE, 1),
    "Zstandard": Broken(_zstd_bomb, FIRST_TILE, 1),
    "packbits": Broken(_packbits_bomb, FIRST_TILE, 1),
    "JPEG": Broken(_jpeg_bomb, FIRST_TILE, 1),
    "JPEG 2000": Broken(_jpeg2000_bomb, FIRST_TILE, 1),
    "WebP": Broken(_webp_bomb, FIRST_TILE, 1),
    "JPEG scans": Broken(_scans_bomb, FIRST_TILE, 1),
    "PNG file": Broken(_png_bomb, "60000 x 60000 px are too many", 2),
    "JPEG file": Broken(_jpeg_file_bomb, "65000 x 65000 px are too many", 2),
    "zarr, zstd": Broken(lambda f: _zarr_bomb(f, "zstd"), FIRST_TILE, 1),
    "zarr, gzip": Broken(lambda f: _zarr_bomb(f, "gzip"), FIRST_TILE, 1),
    "zarr, blosc": Broken(lambda f: _zarr_bomb(f, "blosc"), FIRST_TILE, 1),
    "zarr, sharded": Broken(lambda f: _zarr_bomb(f, "sharded"), FIRST_TILE, 1),
}
