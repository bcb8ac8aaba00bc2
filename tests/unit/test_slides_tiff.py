"""The TIFF reader on files written here: layouts, colours, gaps, damage."""

from __future__ import annotations

import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from cytopipe.core.errors import RunError
from cytopipe.slides import open_slide
from cytopipe.slides.tiff_reader import TiffSlide

APERIO = (
    "Aperio Image Library v12\r\n300x200 [0,0 300x200] JPEG/RGB Q=90|AppMag = 20|MPP = 0.4990"
    "|User = jane|Date = 12/29/09|Filename = smith"
)


@pytest.fixture
def picture() -> np.ndarray:
    """A smooth colour picture (200, 300, 3), so that JPEG changes little."""
    y, x = np.mgrid[:200, :300]
    return np.stack([x * 255 // 300, y * 255 // 200, (x + y) * 255 // 500], axis=2).astype(np.uint8)


def write_pyramid(path: Path, picture: np.ndarray, *, levels: int = 3, reduced: bool = True, **options) -> Path:
    """A TIFF with each level half the one above; rounding down, as most writers do."""
    options = {"tile": (64, 64), "photometric": "rgb", "metadata": None} | options
    with tifffile.TiffWriter(path) as tiff:
        for k in range(levels):
            level = cv2.resize(picture, (picture.shape[1] >> k, picture.shape[0] >> k), interpolation=cv2.INTER_AREA)
            tiff.write(level, subfiletype=1 if k and reduced else 0, **options)
    return path


def byte_of_tile(path: Path, index: int, page: int = 0) -> tuple[int, int]:
    """Offset and length of a tile's data in the file."""
    with tifffile.TiffFile(path) as tiff:
        return tiff.pages[page].dataoffsets[index], tiff.pages[page].databytecounts[index]


@pytest.mark.parametrize(
    "options",
    [
        {"compression": None},
        {"compression": "deflate", "predictor": True},
        {"compression": "lzw"},
        {"compression": "zstd"},
        {"compression": "webp", "compressionargs": {"lossless": True}},
        {"compression": "deflate", "tile": None, "rowsperstrip": 7},
        {"compression": None, "tile": None, "rowsperstrip": 200},
        {"compression": "deflate", "bigtiff": True},
        {"compression": "deflate", "byteorder": ">"},
    ],
)
def test_lossless_pyramids_are_read_exactly_at_each_level(tmp_path, picture, options):
    writer = {key: options.pop(key) for key in ("bigtiff", "byteorder") if key in options}
    options = {"tile": (64, 64), "photometric": "rgb", "metadata": None} | options
    with tifffile.TiffWriter(tmp_path / "s.tif", **writer) as tiff:
        tiff.write(picture, **options)
        tiff.write(picture[::2, ::2].copy(), subfiletype=1, **options)

    with open_slide(tmp_path / "s.tif") as slide:
        assert (slide.reader, slide.dimensions, [level.downsample for level in slide.levels]) == (
            "tiff",
            (300, 200),
            [1, 2],
        )
        np.testing.assert_array_equal(slide.read(0, 0, 0, 300, 200), picture)
        np.testing.assert_array_equal(slide.read(0, 61, 5, 70, 190), picture[5:195, 61:131])
        np.testing.assert_array_equal(slide.read(1, 10, 20, 30, 40), picture[::2, ::2][20:60, 10:40])


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_jpeg_tiles_show_the_colours_that_were_written(tmp_path, picture, photometric, subsampling):
    whole_tiles = picture[:192, :256]  # the encoder pads border tiles with black, which bleeds into coarse chroma
    written = whole_tiles
    if photometric == "ycbcr":  # tifffile takes the samples as they are to be stored
        written = np.ascontiguousarray(cv2.cvtColor(whole_tiles, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]])
    options = {"tile": (64, 64), "compression": "jpeg", "compressionargs": {"level": 95}, "subsampling": subsampling}
    tifffile.imwrite(tmp_path / "s.tif", written, photometric=photometric, metadata=None, **options)

    with open_slide(tmp_path / "s.tif") as slide:
        assert (slide.reader, slide.native_tiles(0)) == ("tiff", (64, 64))
        assert np.abs(slide.read(0, 0, 0, 256, 192).astype(int) - whole_tiles).max() <= 8  # JPEG at quality 95


def test_grey_is_read_as_equal_channels_and_min_is_white_is_turned_round(tmp_path, picture):
    grey = np.ascontiguousarray(picture[..., 0])
    for kind, expected in (("minisblack", grey), ("miniswhite", 255 - grey)):
        tifffile.imwrite(
            tmp_path / "s.tif", grey, photometric=kind, compression="deflate", tile=(64, 64), metadata=None
        )
        with open_slide(tmp_path / "s.tif") as slide:
            np.testing.assert_array_equal(slide.read(0, 0, 0, 300, 200), np.repeat(expected[..., None], 3, axis=2))


def test_levels_rounded_down_by_their_writer_keep_whole_downsamples(tmp_path):
    path = write_pyramid(tmp_path / "s.tif", np.zeros((205, 333, 3), np.uint8), levels=4, compression="deflate")

    with open_slide(path) as slide:
        assert [(level.width, level.downsample) for level in slide.levels] == [(333, 1), (166, 2), (83, 4), (41, 8)]


def test_an_aperio_file_gives_its_tiled_levels_only_and_none_of_its_names_and_dates(tmp_path, picture):
    label = np.full((30, 40, 3), 7, np.uint8)
    with tifffile.TiffWriter(tmp_path / "s.svs") as tiff:
        tiff.write(picture, tile=(64, 64), photometric="rgb", compression="deflate", description=APERIO, metadata=None)
        tiff.write(picture[::4, ::4].copy(), photometric="rgb", compression="deflate", metadata=None)  # thumbnail
        tiff.write(picture[::2, ::2].copy(), tile=(64, 64), photometric="rgb", compression="deflate", metadata=None)
        tiff.write(label, photometric="rgb", subfiletype=1, metadata=None)
        tiff.write(label, photometric="rgb", subfiletype=9, metadata=None)

    with open_slide(tmp_path / "s.svs") as slide:
        assert (slide.reader, slide.vendor) == ("tiff", "aperio")
        assert [(level.width, level.height) for level in slide.levels] == [(300, 200), (150, 100)]
        assert (slide.resolution.mpp, slide.resolution.source) == (0.499, "vendor field aperio.MPP")
        assert slide.properties["aperio.AppMag"] == "20"
        assert not any(word in f"{slide.properties}{slide.notes}" for word in ("jane", "smith", "12/29"))


def test_an_ome_tiff_takes_its_levels_from_subifds_and_its_resolution_from_physical_size(tmp_path, picture):
    with tifffile.TiffWriter(tmp_path / "s.ome.tif", ome=True) as tiff:
        metadata = {
            "axes": "YXS",
            "PhysicalSizeX": 250.0,
            "PhysicalSizeXUnit": "nm",
            "PhysicalSizeY": 0.26,
            "PhysicalSizeYUnit": "µm",
        }
        options = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate"}
        tiff.write(picture, subifds=1, metadata=metadata, **options)
        tiff.write(picture[::2, ::2].copy(), subfiletype=1, **options)

    with open_slide(tmp_path / "s.ome.tif") as slide:
        assert (slide.reader, slide.vendor, len(slide.levels)) == ("tiff", "ome-tiff", 2)
        assert (slide.resolution.mpp_x, slide.resolution.mpp_y) == (pytest.approx(0.25), 0.26)
        np.testing.assert_array_equal(slide.read(1, 0, 0, 150, 100), picture[::2, ::2])


@pytest.mark.parametrize("damage", ["zeros", "cut short", "no jpeg"])
def test_a_damaged_tile_is_an_error_with_its_place_and_the_other_tiles_stay_readable(tmp_path, picture, damage):
    path = write_pyramid(tmp_path / "s.tif", picture, compression="jpeg")
    offset, size = byte_of_tile(path, 6)  # the second column of the second row of 5 columns
    data = bytearray(path.read_bytes())
    tile = bytes(data[offset : offset + size])
    data[offset : offset + size] = {
        "zeros": bytes(size),
        "cut short": tile[: size // 2] + bytes(size - size // 2),
        "no jpeg": b"\x00\x01\x02" * (size // 3) + bytes(size % 3),
    }[damage]
    path.write_bytes(data)

    with open_slide(path) as slide:
        with pytest.raises(RunError, match=r"s\.tif, level 0, at x 64 y 64: tile cannot be decoded"):
            slide.read(0, 100, 100, 10, 10)
        assert np.abs(slide.read(0, 0, 0, 64, 192).astype(int) - picture[:192, :64]).max() <= 12  # JPEG
        assert slide.background == "light"


def test_a_tile_past_the_end_of_the_file_is_an_error_and_not_a_blank(tmp_path, picture):
    path = write_pyramid(tmp_path / "s.tif", picture, levels=1, compression="deflate")
    whole = path.read_bytes()
    offset, size = byte_of_tile(path, 19)
    path.write_bytes(whole[: offset + size // 2])

    with open_slide(path) as slide, pytest.raises(RunError, match=r"the file ends \d+ bytes early"):
        slide.read(0, 256, 192, 44, 8)


def test_a_tile_that_was_never_scanned_shows_the_background(tmp_path):
    for value, background in ((200, 255), (9, 0)):
        path = write_pyramid(tmp_path / "s.tif", np.full((200, 300, 3), value, np.uint8), levels=1, compression=None)
        _drop_tile(path, 6)
        with open_slide(path) as slide:
            read = slide.read(0, 60, 60, 80, 80)
        assert (read[4:68, 4:68] == background).all()
        assert (read[:4] == value).all()
        assert (read[68:] == value).all()


def _drop_tile(path: Path, index: int) -> None:
    """Set the byte count of a tile to 0, as sparse writers do."""
    with tifffile.TiffFile(path) as tiff:
        tag = tiff.pages[0].tags["TileByteCounts"]
        place, size = tag.valueoffset, {3: 2, 4: 4, 16: 8}[int(tag.dtype)]
    data = bytearray(path.read_bytes())
    struct.pack_into("<" + {2: "H", 4: "I", 8: "Q"}[size], data, place + index * size, 0)
    path.write_bytes(data)


def test_threads_that_read_at_once_see_what_one_thread_sees(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), dtype=np.uint8)
    path = write_pyramid(tmp_path / "s.tif", noise, levels=1, compression="deflate")
    corners = [(x, y) for y in range(0, 250, 23) for x in range(0, 450, 29)]

    with open_slide(path) as slide, ThreadPoolExecutor(4) as pool:
        windows = list(pool.map(lambda corner: slide.read(0, *corner, 50, 50), corners))

    for (x, y), window in zip(corners, windows, strict=True):
        np.testing.assert_array_equal(window, noise[y : y + 50, x : x + 50])


@pytest.mark.parametrize(
    "window",
    [(0, 0, 0, 10, 0), (0, -1, 0, 5, 5), (0, 290, 0, 11, 5), (0, 0, 199, 1, 2), (3, 0, 0, 1, 1), (-1, 0, 0, 1, 1)],
)
def test_a_window_that_is_not_inside_the_level_is_our_own_mistake(tmp_path, picture, window):
    with (
        open_slide(write_pyramid(tmp_path / "s.tif", picture, compression="deflate")) as slide,
        pytest.raises(ValueError, match="read:"),
    ):
        slide.read(*window)


def test_a_colour_profile_and_an_orientation_are_reported_and_not_applied(tmp_path, picture):
    extra = [(274, 3, 1, 3, False), (34675, 7, 4, b"icc!", False)]
    path = write_pyramid(tmp_path / "s.tif", picture, levels=1, compression="deflate", extratags=extra)

    with TiffSlide(path) as slide:
        assert slide.icc == b"icc!"
        assert slide.notes == (
            "orientation tag 3 is not applied",
            "its ICC profile is not applied; --icc srgb applies it",
        )
        np.testing.assert_array_equal(slide.read(0, 0, 0, 300, 200), picture)
