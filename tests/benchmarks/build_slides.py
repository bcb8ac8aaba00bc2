"""Slides to measure tiling on, written once into a folder and found there again.

    python -m tests.benchmarks.build_slides KIND FOLDER [--size 16384] [--cells-per-mm2 300]

    16k         synthetic smear, JPEG tiles of 256 px (quality 80, 4:2:0), downsamples 1, 4, 16, as Aperio writes it
    generic     the same compressed tiles of level 0 in a plain TIFF: libvips reads it by itself, not through OpenSlide
    native1024  the same smear in tiles of 1024 px: its compressed tiles can be copied
    100k        100,000 x 100,000 px (downsamples 1, 4, 16, 64) that repeat the tiles of `16k`: each tile is stored
                once and many offsets point to it, so that the file is hardly larger than that of `16k`
    dicom       frames of a real DICOM slide (`wsi/camelyon_dicom` of the test data) repeated to 8192 x 8192 px, with
                downsamples 4 and 16 made of them, said to be 0.25 µm/px
    all         all of them

`--size` is the side of `16k` and of what is made from it; `100k` then has 6.1 times that side.
"""

from __future__ import annotations

import argparse
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray

from cytopipe.core.files import atomic_path
from cytopipe.core.resources import cores
from cytopipe.slides.writer import PyramidWriter
from cytopipe.synth import Renderer, Scene

SIDE_PX, NATIVE_PX, WIDE_NATIVE_PX = 16_384, 256, 1024
MPP, OBJECTIVE, QUALITY = 0.25, 40, 80
CELLS_PER_MM2 = 300.0  # what `cytopipe synth` draws by default
SEED = 0
LARGE_TIMES = 100_000 / SIDE_PX  # side of `100k` over side of `16k`
REDUCTION = 4  # between levels, as PyramidWriter makes them
DICOM_FRAMES = 32  # a side
DICOM_FULL = (4, 2)  # columns and rows of the real slide's frames that lie wholly inside it
DICOM_FILE = "camelyon_dicom/multiframe_camelyon_challenge_image.dcm"
FRAME_PX = 256
WSI = Path(__file__).resolve().parents[3] / "shared" / "data" / "wsi"  # beside the checkout
KINDS = ("16k", "generic", "native1024", "100k", "dicom")


@dataclass(frozen=True, eq=False)
class Level:
    """One level of a TIFF: distinct compressed tiles, and which of them stands where, (rows, columns)."""

    width: int
    height: int
    tile_px: int
    tiles: Sequence[bytes]
    place: NDArray[np.intp]


def slide(kind: str, folder: Path, *, size: int = SIDE_PX, cells_per_mm2: float = CELLS_PER_MM2) -> Path:
    """The slide of that kind in `folder`, built if it is not there.

    Raises FileNotFoundError for `dicom` where the test data are absent, ValueError for a size that the kinds cannot
    be made of.
    """
    if size < 1024 or size % 1024:
        raise ValueError(f"slide: a size of {size} px is no multiple of 1024 px")
    if kind == "dicom":
        path = folder / "dicom" / "frames.dcm"  # alone in its folder: OpenSlide looks at the neighbours
    else:
        path = folder / f"{kind}-{size}-{cells_per_mm2:g}.{'tif' if kind == 'generic' else 'svs'}"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "dicom":
        _write_dicom(path)
    elif kind == "16k":
        _write_smear(path, size, cells_per_mm2, NATIVE_PX)
    elif kind == "native1024":
        _write_smear(path, size, cells_per_mm2, WIDE_NATIVE_PX)
    else:
        small = _levels_of(slide("16k", folder, size=size, cells_per_mm2=cells_per_mm2))
        if kind == "generic":
            _write_tiff(path, small[:1], None)
        elif kind == "100k":
            _write_tiff(path, _repeated(small, round(size * LARGE_TIMES)), "cytopipe benchmark")
        else:
            raise ValueError(f"slide: kind {kind!r}")
    return path


def native_tiles(path: Path) -> Level:
    """Level 0 of a tiled TIFF, compressed as it is."""
    return _levels_of(path)[0]


def _write_smear(path: Path, size: int, cells_per_mm2: float, native_px: int) -> None:
    scene = Scene(size, size, mpp=MPP, seed=SEED, cells_per_mm2=cells_per_mm2, lesion_fraction=0.06)
    with PyramidWriter(
        path, size, size, mpp=MPP, objective=OBJECTIVE, quality=QUALITY, tile_px=native_px, workers=cores()
    ) as writer:
        for band, _ in Renderer(scene).bands(cores()):
            writer.write_band(band)


def _levels_of(path: Path) -> list[Level]:
    """The tiled levels, largest first. Raises ValueError where tiles lack what a JPEG stream needs."""
    levels = []
    with tifffile.TiffFile(path) as file:
        for page in file.pages:
            if not page.is_tiled:
                continue
            if page.jpegtables is not None:
                raise ValueError(f"{path.name}: its JPEG tiles share tables")
            tiles = []
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                file.filehandle.seek(offset)
                tiles.append(file.filehandle.read(count))
            across = -(-page.imagewidth // page.tilewidth)
            place = np.arange(len(tiles)).reshape(-1, across)
            levels.append(Level(page.imagewidth, page.imagelength, page.tilewidth, tiles, place))
    return levels


def _repeated(levels: Sequence[Level], side: int) -> list[Level]:
    """The same levels and a smaller one over a square of `side` px at level 0, their tiles repeated without end."""
    many, smallest = [], levels[-1]
    for level in [*levels, _reduced(smallest)]:
        width = side * level.width // levels[0].width
        count = -(-width // level.tile_px)
        rows, columns = level.place.shape
        index = np.arange(count)
        many.append(Level(width, width, level.tile_px, level.tiles, level.place[index % rows][:, index % columns]))
    return many


def _reduced(level: Level) -> Level:
    """The next smaller level, of whole tiles: where it would not fill one, it is repeated until it does."""
    rows = [np.hstack([imagecodecs.jpeg8_decode(level.tiles[i]) for i in row]) for row in level.place]
    image = np.vstack(rows)[: level.height, : level.width]
    width, height, side = level.width // REDUCTION, level.height // REDUCTION, level.tile_px
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    image = np.tile(image, (max(1, side // height), max(1, side // width), 1))
    places = np.arange(image.shape[0] // side * (image.shape[1] // side)).reshape(image.shape[0] // side, -1)
    tiles = [
        bytes(
            imagecodecs.jpeg8_encode(
                np.ascontiguousarray(image[y : y + side, x : x + side]), level=QUALITY, subsampling="420"
            )
        )
        for y in range(0, places.shape[0] * side, side)
        for x in range(0, places.shape[1] * side, side)
    ]
    return Level(width, height, side, tiles, places)


def _write_tiff(path: Path, levels: Sequence[Level], description: str | None) -> None:
    """A tiled BigTIFF, each distinct tile once. With a description it is Aperio's to readers, without one nobody's."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0))
        directories = []
        for level in levels:
            sizes = np.array([len(tile) for tile in level.tiles])
            offsets = file.tell() + np.cumsum(sizes) - sizes
            file.writelines(level.tiles)
            directories.append(_fields(level, levels[0], offsets, sizes, description))
        link = 8
        for fields in directories:
            file.write(b"\0" * (-file.tell() % 8))
            start = file.tell()
            file.seek(link)
            file.write(struct.pack("<Q", start))
            file.seek(start)
            link = start + 8 + 20 * len(fields)
            tail = link + 8
            entries, values = [struct.pack("<Q", len(fields))], []
            for tag, kind, count, data in fields:
                if len(data) > 8:
                    padded = data + b"\0" * (-len(data) % 8)
                    values.append(padded)
                    data, tail = struct.pack("<Q", tail), tail + len(padded)
                entries.append(struct.pack("<HHQ", tag, kind, count) + data.ljust(8, b"\0"))
            file.write(b"".join(entries) + struct.pack("<Q", 0) + b"".join(values))


def _fields(
    level: Level, first: Level, offsets: NDArray[np.int64], sizes: NDArray[np.int64], description: str | None
) -> list[tuple[int, int, int, bytes]]:
    """Tag, type, count and bytes of a directory's fields (TIFF 6.0), by tag."""

    def shorts(tag: int, *values: int) -> tuple[int, int, int, bytes]:
        return tag, 3, len(values), struct.pack(f"<{len(values)}H", *values)

    def long8s(tag: int, values: NDArray[np.int64]) -> tuple[int, int, int, bytes]:
        return tag, 16, values.size, values.astype("<u8").tobytes()

    def rational(tag: int, value: float) -> tuple[int, int, int, bytes]:
        return tag, 5, 1, struct.pack("<II", round(value * 100), 100)

    place = level.place.ravel()
    fields = [
        long8s(256, np.array([level.width])),
        long8s(257, np.array([level.height])),
        shorts(258, 8, 8, 8),
        shorts(259, 7),  # JPEG, each tile a whole stream
        shorts(262, 6),  # YCbCr
        shorts(277, 3),
        rational(282, 1e4 / MPP * level.width / first.width),  # px a cm
        rational(283, 1e4 / MPP * level.width / first.width),
        shorts(284, 1),
        shorts(296, 3),
        shorts(322, level.tile_px),
        shorts(323, level.tile_px),
        long8s(324, offsets[place]),
        long8s(325, sizes[place]),
        shorts(530, 2, 2),
    ]
    if description is not None:
        size = f"{first.width}x{first.height} ({level.tile_px}x{level.tile_px})"
        text = f"Aperio Image Library ({description})\r\n{size} JPEG/RGB Q={QUALITY}|AppMag = {OBJECTIVE}|MPP = {MPP}"
        fields.insert(5, (270, 2, len(text) + 1, text.encode("ascii") + b"\0"))
    return fields


def _write_dicom(path: Path) -> None:
    """The real slide's whole frames again and again, and their reduced levels as further instances of the series.

    Its header is kept but for the sizes and the resolution: the real one is a reduced level at 29 µm/px.
    """
    data = (WSI / DICOM_FILE).read_bytes()
    pixels = data.index(_element(0x7FE0, 0x0010, b"OB") + b"\0\0\xff\xff\xff\xff")
    frames, at = [], pixels + 12
    while True:
        group, element, length = struct.unpack_from("<HHI", data, at)
        if (group, element) == (0xFFFE, 0xE0DD):  # the sequence ends
            break
        frames.append(data[at + 8 : at + 8 + length])
        at += 8 + length
    frames = frames[1:]  # the first item is the table of offsets, empty here
    across = -(-_unsigned(data, 0x0048, 0x0006) // FRAME_PX)
    columns, rows = DICOM_FULL
    places = (np.arange(rows)[:, None] * across + np.arange(columns)).astype(np.intp)
    level = Level(columns * FRAME_PX, rows * FRAME_PX, FRAME_PX, frames, places)
    side = DICOM_FRAMES
    for number, name in enumerate((path, path.with_name("level1.dcm"), path.with_name("level2.dcm"))):
        header = _dicom_header(data[:pixels], number, side)
        with atomic_path(name) as partial, partial.open("wb") as file:
            file.write(header + data[pixels : pixels + 12] + struct.pack("<HHI", 0xFFFE, 0xE000, 0))
            for row in range(side):
                for column in range(side):
                    frame = level.tiles[level.place[row % level.place.shape[0], column % level.place.shape[1]]]
                    frame += b"\0" * (len(frame) % 2)  # of even length (PS3.5 A.4)
                    file.write(struct.pack("<HHI", 0xFFFE, 0xE000, len(frame)) + frame)
            file.write(struct.pack("<HHI", 0xFFFE, 0xE0DD, 0))
        level, side = _reduced(level), side // REDUCTION


def _dicom_header(header: bytes, number: int, frames: int) -> bytes:
    """The header of level `number`, with `frames` x `frames` of them; every value but one keeps its length."""
    for element in (0x0006, 0x0007):
        at = header.index(_element(0x0048, element, b"UL"))
        header = header[: at + 8] + struct.pack("<I", frames * FRAME_PX) + header[at + 12 :]
    for group, element in ((0x0002, 0x0003), (0x0008, 0x0018)):  # the instance's own name, twice
        at = header.index(_element(group, element, b"UI"))
        (length,) = struct.unpack_from("<H", header, at + 6)
        name = header[at + 8 : at + 8 + length].rstrip(b"\0")
        header = header[: at + 8] + (name[:-1] + str(number).encode()).ljust(length, b"\0") + header[at + 8 + length :]
    at = header.index(_element(0x0028, 0x0030, b"DS"))  # PixelSpacing, mm
    (length,) = struct.unpack_from("<H", header, at + 6)
    spacing = f"{MPP * REDUCTION**number / 1000:.6f}"
    header = header[: at + 8] + f"{spacing}\\{spacing}".encode().ljust(length) + header[at + 8 + length :]
    at = header.index(_element(0x0028, 0x0008, b"IS"))
    (length,) = struct.unpack_from("<H", header, at + 6)
    count = str(frames**2).encode()
    count += b" " * (len(count) % 2)
    return header[: at + 6] + struct.pack("<H", len(count)) + count + header[at + 8 + length :]


def _element(group: int, element: int, kind: bytes) -> bytes:
    """The first bytes of an element, explicit little endian (PS3.5 7.1.2)."""
    return struct.pack("<HH", group, element) + kind


def _unsigned(data: bytes, group: int, element: int) -> int:
    """The value of an element of type UL, explicit little endian."""
    at = data.index(_element(group, element, b"UL"))
    return int(struct.unpack_from("<I", data, at + 8)[0])


def main() -> None:
    """Build what is asked for and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=(*KINDS, "all"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=SIDE_PX)
    parser.add_argument("--cells-per-mm2", type=float, default=CELLS_PER_MM2)
    arguments = parser.parse_args()
    for kind in KINDS if arguments.kind == "all" else (arguments.kind,):
        path = slide(kind, arguments.folder, size=arguments.size, cells_per_mm2=arguments.cells_per_mm2)
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
