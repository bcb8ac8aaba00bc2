"""How large a stored zarr chunk becomes, asked before zarr decodes it: its codecs believe the chunk's own header, and a
chunk of 50 kB can ask for gigabytes.

Enters: an opened array and where a read begins.  Leaves: nothing, or a ValueError. Chunks that are not stored are the
fill value and cost nothing.
"""

from __future__ import annotations

import bz2
import lzma
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagecodecs

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
SIZE_PRESERVING = frozenset(("bytes", "crc32c", "transpose", "endian"))
"""Codecs of zarr v3 after which a chunk is as long as before, but for a checksum."""
METADATA_NAMES = (".zarray", ".zattrs", "zarr.json")
ABSENT = 2**64 - 1
"""Offset and length of a chunk that a shard does not hold (zarr v3, sharding codec)."""


class Bounds:
    """The chunks of one array under `root`, the folder of the whole store. Raises ValueError for codecs whose output
    cannot be bounded."""

    def __init__(self, array: Any, root: Path) -> None:
        self._folder = root / array.path
        self._key_of = array.metadata.encode_chunk_key
        self._shape, self._chunks = tuple(array.shape), tuple(array.chunks)
        self._shards = tuple(array.shards) if array.shards is not None else None
        self._limit = math.prod(self._chunks) * array.dtype.itemsize
        self._index_at_end, self._index_tail = True, 0
        if array.metadata.zarr_format == 2:
            compressor = array.metadata.compressor
            names = [] if compressor is None else [str(compressor.get_config()["id"])]
        else:
            said = [codec.to_dict() for codec in array.metadata.codecs]
            if self._shards is not None:
                said = self._inner_codecs(said)
            names = [str(codec["name"]).removeprefix("numcodecs.") for codec in said]
        compressors = [name for name in names if name not in SIZE_PRESERVING]
        if len(compressors) > 1 or not set(compressors) <= KNOWN:
            raise ValueError(f"chunks packed by {' and '.join(compressors)} are not read")
        self._compressor = compressors[0] if compressors else None

    def check(self, start: Sequence[int]) -> None:
        """Raise ValueError where the chunk that holds the sample at `start` would become larger than a chunk is."""
        if self._compressor is None:
            return
        data = self._stored(start)
        if data is not None:
            check_claim(self._compressor, data, self._limit)

    def stored(self) -> tuple[int, int]:
        """How many chunks (or shards) of the array are stored, and how many it has."""
        whole = math.prod(
            -(-side // size) for side, size in zip(self._shape, self._shards or self._chunks, strict=True)
        )
        found = sum(len(names) for _, _, names in os.walk(self._folder))
        own = sum((self._folder / name).is_file() for name in METADATA_NAMES)
        return min(found - own, whole), whole

    def _inner_codecs(self, said: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The codecs of the chunks inside a shard; where its index is, and the bytes of its checksum."""
        if len(said) != 1 or said[0]["name"] != "sharding_indexed":
            raise ValueError("shards that are packed again are not read")
        configuration = said[0]["configuration"]
        index = [codec["name"] for codec in configuration["index_codecs"]]
        if index not in (["bytes"], ["bytes", "crc32c"]):
            raise ValueError(f"shards with an index packed by {' and '.join(index)} are not read")
        self._index_tail = 4 * (len(index) - 1)
        self._index_at_end = configuration.get("index_location", "end") == "end"
        return list(configuration["codecs"])

    def _stored(self, start: Sequence[int]) -> bytes | None:
        """The compressed bytes of a chunk; None where it is not stored."""
        outer = self._shards or self._chunks
        path: Path = self._folder / self._key_of(tuple(at // size for at, size in zip(start, outer, strict=True)))
        if not path.is_file():
            return None
        if self._shards is None:
            return path.read_bytes()
        counts = [shard // chunk for shard, chunk in zip(self._shards, self._chunks, strict=True)]
        number = 0
        for at, shard, chunk, count in zip(start, self._shards, self._chunks, counts, strict=True):
            number = number * count + at % shard // chunk
        index_bytes = 16 * math.prod(counts) + self._index_tail
        begin = path.stat().st_size - index_bytes if self._index_at_end else 0
        if begin < 0:
            raise ValueError("a shard shorter than its index")
        with path.open("rb") as file:
            file.seek(begin + 16 * number)
            offset, length = struct.unpack("<QQ", file.read(16))
            if offset == ABSENT and length == ABSENT:
                return None
            if offset + length > path.stat().st_size:
                raise ValueError("a chunk that reaches past the end of its shard")
            file.seek(offset)
            return file.read(length)


def check_claim(compressor: str, data: bytes, limit: int) -> None:
    """Raise ValueError, or what the codec raises, where compressed data hold more than `limit` bytes."""
    claimed = _claimed(compressor, data, limit)
    if claimed > limit:
        raise ValueError(f"a chunk that unpacks to {claimed} bytes or more where {limit} belong")


def _claimed(compressor: str, data: bytes, limit: int) -> int:
    """The unpacked size as the header says it; where no header does, it is unpacked up to one byte above the limit."""
    if compressor == "blosc":
        return int.from_bytes(data[4:8], "little")
    if compressor == "lz4":
        return int.from_bytes(data[:4], "little")
    if compressor == "zstd":
        return _zstd_size(data, limit)
    if compressor == "bz2":
        return len(bz2.BZ2Decompressor().decompress(data, limit + 1))
    if compressor == "lzma":
        return len(lzma.LZMADecompressor().decompress(data, limit + 1))
    unpacker = zlib.decompressobj(wbits=47)  # gzip or zlib, told from the header
    size = len(unpacker.decompress(data, limit + 1))
    if unpacker.unused_data.strip(b"\0"):
        raise ValueError("a chunk of several packed members")
    return size


def _zstd_size(data: bytes, limit: int) -> int:
    """Source: RFC 8878 section 3.1.1.1, the frame header."""
    if data[:4] != ZSTD_MAGIC or len(data) < 9:
        raise ValueError("no Zstandard data")
    is_single, flag = data[4] >> 5 & 1, data[4] >> 6
    at = 6 - is_single + (0, 1, 2, 4)[data[4] & 3]
    size = (is_single, 2, 4, 8)[flag]
    if not size:
        return len(imagecodecs.zstd_decode(data, out=limit))
    return int.from_bytes(data[at : at + size], "little") + (256 if size == 2 else 0)


KNOWN = frozenset(("blosc", "lz4", "zstd", "bz2", "lzma", "gzip", "zlib"))
