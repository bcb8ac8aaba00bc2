"""Two readers of one file say and show the same: on every kind of pyramid that both open, written here."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile

from cytopipe.core.errors import UserError
from cytopipe.slides import open_slide
from cytopipe.slides.writer import PyramidWriter
from tests.agreement import agree

APERIO = "Aperio Image Library v12\r\n901x702 [0,0 901x702] (64x64) JPEG/RGB Q=90|AppMag = 40|MPP = 0.2520"
LOSSY = 2
"""Grey levels by which two JPEG decoders may differ: rounding in the inverse transform and in the colours."""


def picture(width: int, height: int) -> np.ndarray:
    """Colours in slow waves with sharp edges among them, so that a shift of a part of a pixel is seen."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = np.stack([np.sin(x / 23), np.cos(y / 31), np.sin((x + y) / 41)], axis=2)
    edges = ((x // 37 + y // 29) % 2)[..., None] * 60
    return (120 + 60 * waves + edges).astype(np.uint8)


def write(path: Path, *, sizes: list[tuple[int, int]], description: str | None = None, **options) -> Path:
    """Each level in tiles of 64 px; the description on all of them, as Aperio does."""
    whole = picture(*sizes[0])
    grey = options.get("photometric") == "minisblack"
    form = {"bigtiff": options.pop("bigtiff", False), "byteorder": options.pop("byteorder", "<")}
    options = {"tile": (64, 64), "photometric": "rgb", "metadata": None, "resolutionunit": "CENTIMETER"} | options
    with tifffile.TiffWriter(path, **form) as tiff:
        for k, size in enumerate(sizes):
            level = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
            tiff.write(
                level[..., 0] if grey else level,
                subfiletype=1 if k and description is None else 0,
                description=description,
                resolution=(40_000 / 2**k, 40_000 / 2**k),
                **options,
            )
    return path


EVEN = [(896, 704), (448, 352), (224, 176)]
ODD = [(1901, 1503), (950, 751), (475, 375), (237, 187)]
"""Rounded down at each level: downsamples of OpenSlide are no whole numbers."""


def kind(**options) -> dict:
    return options


KINDS = {
    "deflate": (kind(sizes=EVEN, compression="deflate"), 0),
    "deflate, rounded levels": (kind(sizes=ODD, compression="deflate"), 0),
    "predictor": (kind(sizes=EVEN, compression="deflate", predictor=True), 0),
    "LZW": (kind(sizes=EVEN, compression="lzw"), 0),
    "uncompressed": (kind(sizes=EVEN, compression=None), 0),
    "Zstandard": (kind(sizes=EVEN, compression="zstd"), 0),
    "BigTIFF": (kind(sizes=EVEN, compression="deflate", bigtiff=True), 0),
    "grey": (kind(sizes=EVEN, compression="deflate", photometric="minisblack"), 0),
    "oblong tiles": (kind(sizes=EVEN, compression="deflate", tile=(32, 128)), 0),
    "JPEG 4:2:0": (kind(sizes=EVEN, compression="jpeg", photometric="ycbcr", subsampling=(2, 2)), LOSSY),
    "JPEG 4:4:4": (kind(sizes=EVEN, compression="jpeg", photometric="ycbcr", subsampling=(1, 1)), LOSSY),
    "JPEG in RGB": (kind(sizes=EVEN, compression="jpeg"), LOSSY),
    "JPEG in grey": (kind(sizes=EVEN, compression="jpeg", photometric="minisblack"), LOSSY),
    "Aperio JPEG, rounded levels": (kind(sizes=ODD, compression="jpeg", description=APERIO), LOSSY),
    "Aperio JPEG 2000, lossless": (
        kind(sizes=EVEN, compression="aperio_jp2000_rgb", description=APERIO, compressionargs={"level": 0}), 0
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_both_readers_say_and_show_the_same_of_a_written_pyramid(tmp_path, name):
    options, tolerance = KINDS[name]
    path = write(tmp_path / "s.tif", **options)

    with open_slide(path, reader="tiff") as tiff, open_slide(path, reader="openslide") as openslide:
        agree(tiff, openslide, tolerance)
        assert tiff.vendor == ("aperio" if "description" in options else "generic-tiff")
        assert len(tiff.levels) == len(options["sizes"])


def test_both_readers_agree_on_what_the_product_writes(tmp_path):
    rgb, path = picture(1500, 1100), tmp_path / "s.svs"
    with PyramidWriter(path, 1500, 1100, mpp=0.25, objective=40, quality=80) as writer:
        writer.write_band(rgb)

    with (
        open_slide(tmp_path / "s.svs", reader="tiff") as tiff,
        open_slide(tmp_path / "s.svs", reader="openslide") as other,
    ):
        agree(tiff, other, LOSSY)
        assert (tiff.objective, tiff.resolution.mpp) == (40, 0.25)


def test_aperios_jpeg_2000_in_ycbcr_is_read_in_its_colours_by_openslide(tmp_path):
    y, x = np.mgrid[:128, :192]
    rgb = np.stack([60 + x, 80 + y, 200 - (x + y) // 2], axis=2).astype(np.uint8)
    ycbcr = cv2.cvtColor(rgb, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    tifffile.imwrite(
        tmp_path / "s.svs",
        np.ascontiguousarray(ycbcr),
        tile=(64, 64),
        photometric="rgb",
        compression="aperio_jp2000_ycbc",
        compressionargs={"level": 0, "mct": False},
        description=APERIO,
        metadata=None,
    )

    with pytest.raises(UserError, match="compression 33003 is not decoded"):
        open_slide(tmp_path / "s.svs", reader="tiff")
    with open_slide(tmp_path / "s.svs") as slide:
        assert (slide.reader, slide.vendor, slide.resolution.mpp) == ("openslide", "aperio", 0.252)
        assert np.abs(slide.read(0, 0, 0, 192, 128).astype(int) - rgb).max() <= 3  # 8-bit YCbCr rounds twice


def test_plain_jpeg_2000_is_read_by_the_tiff_reader(tmp_path):
    rgb = picture(200, 150)
    options = {"tile": (64, 64), "photometric": "rgb", "compressionargs": {"level": 0}, "metadata": None}
    tifffile.imwrite(tmp_path / "s.tif", rgb, compression="jpeg2000", **options)

    with open_slide(tmp_path / "s.tif") as slide:
        assert slide.reader == "tiff"
        np.testing.assert_array_equal(slide.read(0, 0, 0, 200, 150), rgb)


@pytest.mark.parametrize("kind", ["ome", "subifds"])
def test_openslide_leaves_pyramids_of_which_it_sees_one_level(tmp_path, kind):
    with tifffile.TiffWriter(tmp_path / "s.tif", ome=kind == "ome") as tiff:
        options = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate"}
        tiff.write(picture(256, 192), subifds=1, metadata={"axes": "YXS"} if kind == "ome" else None, **options)
        tiff.write(picture(128, 96), subfiletype=1, metadata=None, **options)

    with open_slide(tmp_path / "s.tif") as slide:
        assert [level.width for level in slide.levels] == [256, 128]
    with pytest.raises(UserError, match="OpenSlide would show only a part"):
        open_slide(tmp_path / "s.tif", reader="openslide")
