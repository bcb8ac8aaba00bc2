"""What the fuzz run mutates: small slides, each as the files it consists of, with the ranges that hold pixels.

Real ones are taken from folders that the caller names; the others are written here, one for each codec and layout that
a reader decodes, so that the run means something where no real slide is at hand.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from tests.ome_zarr import write_ome_zarr

Span = tuple[int, int]

TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
DICOM_PIXELS = b"\xe0\x7f\x10\x00"
"""Tag 7FE0,0010 (Pixel Data), little endian."""
IMAGE_HEADER_BYTES = 640
"""What counts as the header of a PNG or JPEG file: its quantisation and Huffman tables end about there."""
META_NAMES = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")
MAX_REAL_BYTES = 8_000_000
"""Larger files are left out: a mutant is written for each trial."""


@dataclass(frozen=True)
class Part:
    """One file of a slide: its path below the slide's folder, its bytes, [start, stop) of its pixels and of all else.

    entries  [start, stop) of each entry of a TIFF's directories; empty where it is no TIFF
    """

    name: str
    data: bytes
    pixels: tuple[Span, ...]
    headers: tuple[Span, ...]
    entries: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Source:
    """A slide: what to open (a path below its folder) and the files that it consists of."""

    name: str
    opened: str
    parts: tuple[Part, ...]


def real_sources(folder: Path) -> Iterator[Source]:
    """Every file of a folder that is small enough; files of one subfolder belong to one slide."""
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".txt" or not path.is_file() or path.stat().st_size > MAX_REAL_BYTES:
            continue
        beside = sorted(p for p in path.parent.iterdir() if p.is_file()) if path.parent != folder else [path]
        parts = tuple(_part(p.name, p.read_bytes()) for p in beside)
        own = tuple(sorted(parts, key=lambda part: part.name != path.name))
        yield Source(str(path.relative_to(folder)), path.name, own)


def written_sources(folder: Path) -> Iterator[Source]:
    """Slides written into `folder`, one for each codec and layout."""
    picture = _picture()
    tiled = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    for name, options in {
        "raw": {"compression": None},
        "deflate": {"compression": "deflate", "predictor": True},
        "lzw": {"compression": "lzw"},
        "packbits": {"compression": "packbits"},
        "zstd": {"compression": "zstd"},
        "webp": {"compression": "webp"},
        "jpeg2000": {"compression": "jpeg2000"},
        "jpeg": {"compression": "jpeg", "compressionargs": {"level": 85}},
        "bigtiff": {"compression": "jpeg", "bigtiff": True, "byteorder": ">"},
    }.items():
        path = folder / f"{name}.tif"
        _write_pyramid(path, picture, tiled | options)
        yield _source_of(path)
    tifffile.imwrite(
        folder / "strips.tif", picture, photometric="rgb", metadata=None, compression="deflate", rowsperstrip=16
    )
    tifffile.imwrite(folder / "strip.tif", picture, photometric="rgb", metadata=None)
    with tifffile.TiffWriter(folder / "pyramid.ome.tif", ome=True) as tiff:
        options = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate"}
        tiff.write(picture, subifds=1, metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}, **options)
        tiff.write(picture[::2, ::2].copy(), subfiletype=1, **options)
    Image.fromarray(picture).save(folder / "image.png")
    Image.fromarray(picture).save(folder / "baseline.jpg", quality=90)
    Image.fromarray(picture).save(folder / "progressive.jpg", quality=90, progressive=True)
    for name in ("strips.tif", "strip.tif", "pyramid.ome.tif", "image.png", "baseline.jpg", "progressive.jpg"):
        yield _source_of(folder / name)
    planes = np.ascontiguousarray(np.moveaxis(picture, 2, 0))
    for name, options in {
        "zarr2": {"version": "0.4"},
        "gzip": {"codec": "gzip"},
        "zstd": {},
        "sharded": {"shard_chunks": 2},
    }.items():
        levels = (planes, np.ascontiguousarray(planes[:, ::2, ::2]))
        yield _zarr_source(write_ome_zarr(folder / f"{name}.zarr", levels, **options))


def _picture() -> np.ndarray:
    """(200, 300, 3): bright glass with darker grains and camera noise, so that no block of it is uniform."""
    random = np.random.default_rng(5)
    y, x = np.mgrid[:200, :300]
    waves = [205 + 25 * np.sin(x / 11 + k) * np.cos(y / (9 + k)) for k in range(3)]
    return (np.stack(waves, axis=2) + random.normal(0, 4, (200, 300, 3))).clip(0, 255).astype(np.uint8)


def _write_pyramid(path: Path, picture: np.ndarray, options: dict[str, object]) -> None:
    file = {key: options.pop(key) for key in ("bigtiff", "byteorder") if key in options}
    with tifffile.TiffWriter(path, **file) as tiff:
        tiff.write(picture, **options)
        tiff.write(picture[::2, ::2].copy(), subfiletype=1, **options)


def _source_of(path: Path) -> Source:
    return Source(path.name, path.name, (_part(path.name, path.read_bytes()),))


def _zarr_source(folder: Path) -> Source:
    parts = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data, is_meta = path.read_bytes(), path.name in META_NAMES
        whole = ((0, len(data)),)
        name = f"{folder.name}/{path.relative_to(folder)}"
        parts.append(Part(name, data, () if is_meta else whole, whole if is_meta else ()))
    return Source(folder.name, folder.name, tuple(parts))


def _part(name: str, data: bytes) -> Part:
    if data.startswith(TIFF_STARTS):
        pixels, entries = _tiff_spans(data)
    elif DICOM_PIXELS in data:
        pixels, entries = ((data.rindex(DICOM_PIXELS) + 20, len(data)),), ()
    else:
        pixels, entries = ((min(IMAGE_HEADER_BYTES, len(data) // 2), len(data)),), ()
    return Part(name, data, pixels, _rest(pixels, len(data)), entries)


def _tiff_spans(data: bytes) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Where the segments of a TIFF lie, and its directory entries. A file that is broken already has none."""
    order = "<" if data[:1] == b"I" else ">"
    is_big = data[2:4] in (b"+\0", b"\0+")
    head, size, count_format, word = (16, 20, "Q", "Q") if is_big else (8, 12, "H", "I")
    pixels: set[Span] = set()
    entries: list[Span] = []
    start = struct.unpack_from(order + word, data, head - struct.calcsize(word))[0]
    while 0 < start < len(data) - 8 and len(entries) < 1000:
        count = struct.unpack_from(order + count_format, data, start)[0]
        first = start + struct.calcsize(count_format)
        after = first + count * size
        if after + struct.calcsize(word) > len(data):
            break
        entries += [(first + i * size, first + (i + 1) * size) for i in range(count)]
        start = struct.unpack_from(order + word, data, after)[0]
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            for page in tiff.pages:
                spans = zip(page.dataoffsets, page.databytecounts, strict=False)
                pixels |= {(at, at + size) for at, size in spans if size and at + size <= len(data)}
                for child in page.pages or ():
                    spans = zip(child.dataoffsets, child.databytecounts, strict=False)
                    pixels |= {(at, at + size) for at, size in spans if size and at + size <= len(data)}
    except (tifffile.TiffFileError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error):
        pixels = set()
    return tuple(sorted(pixels)), tuple(entries)


def _rest(pixels: tuple[Span, ...], length: int) -> tuple[Span, ...]:
    """The complement of the spans."""
    rest: list[Span] = []
    at = 0
    for start, stop in sorted(pixels):
        if start > at:
            rest.append((at, start))
        at = max(at, stop)
    if at < length:
        rest.append((at, length))
    return tuple(rest)
