"""Which reader opens a file, what refusals say, and the readers of OpenSlide and of images."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from cytopipe.core.errors import CytopipeError, RunError, UserError
from cytopipe.slides import open_slide, require_mpp
from cytopipe.slides.opened import compose
from tests.array_slide import ArraySlide

READERS = ("auto", "tiff", "openslide", "image")


def noise(width: int, height: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def write_tiff(path: Path, pixels: np.ndarray, **options) -> Path:
    tifffile.imwrite(
        path, pixels, **({"tile": (64, 64), "photometric": "rgb", "compression": "deflate", "metadata": None} | options)
    )
    return path


def test_content_decides_and_not_the_suffix(tmp_path):
    write_tiff(tmp_path / "tiff.png", noise(80, 70))
    Image.fromarray(noise(80, 70)).save(tmp_path / "image.svs", format="PNG")

    with open_slide(tmp_path / "tiff.png") as tiff, open_slide(str(tmp_path / "image.svs")) as image:
        assert (tiff.reader, image.reader, image.vendor) == ("tiff", "image", "png")


def test_a_named_reader_is_the_only_one_asked(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(80, 70))

    with open_slide(path, reader="openslide") as slide:
        assert slide.reader == "openslide"
    with pytest.raises(UserError, match=r"no reader opens it \(image: neither PNG nor JPEG\)"):
        open_slide(path, reader="image")
    with pytest.raises(UserError, match="unknown reader 'opensilde'; did you mean 'openslide'"):
        open_slide(path, reader="opensilde")


def test_what_no_reader_opens_is_refused_in_one_line_with_the_word_of_each(tmp_path):
    (tmp_path / "s.svs").write_bytes(b"IJrE" * 100)

    with pytest.raises(UserError) as refusal:
        open_slide(tmp_path / "s.svs")

    line = str(refusal.value)
    assert "\n" not in line
    assert "tiff: not a TIFF; openslide: a format that OpenSlide does not know; image: neither PNG nor JPEG" in line


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        open_slide(tmp_path / "absent.svs")
    with pytest.raises(UserError, match="a folder, not a slide"):
        open_slide(tmp_path)


def test_an_override_is_the_resolution_and_without_one_the_way_out_is_said(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(80, 70), resolution=(72, 72), resolutionunit="INCH")

    with open_slide(path, mpp_override=0.3) as slide:
        assert require_mpp(slide) == 0.3
    for reader in ("tiff", "openslide"):
        with (
            open_slide(path, reader=reader) as slide,
            pytest.raises(UserError, match=r"352\.8 µm/px.*give --mpp-override"),
        ):
            require_mpp(slide)


def test_openslide_reads_the_same_pixels_as_the_tiff_reader(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(200, 150))

    with open_slide(path) as tiff, open_slide(path, reader="openslide") as openslide:
        np.testing.assert_array_equal(tiff.read(0, 33, 21, 120, 100), openslide.read(0, 33, 21, 120, 100))


def test_a_level_with_a_broken_downsample_is_the_same_through_any_window(tmp_path):
    with tifffile.TiffWriter(tmp_path / "s.tif") as tiff:
        options = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate", "metadata": None}
        tiff.write(noise(301, 203), **options)
        tiff.write(noise(131, 88), subfiletype=1, **options)

    with open_slide(tmp_path / "s.tif", reader="openslide") as slide:
        assert not slide.levels[1].downsample.is_integer()
        whole = slide.read(1, 0, 0, 131, 88)
        for x, y in ((1, 1), (17, 30), (64, 7)):
            np.testing.assert_array_equal(slide.read(1, x, y, 60, 50), whole[y : y + 50, x : x + 60])


def test_after_a_damaged_tile_openslide_goes_on_with_a_new_handle(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(200, 150))
    with tifffile.TiffFile(path) as tiff:
        offset, size = tiff.pages[0].dataoffsets[5], tiff.pages[0].databytecounts[5]
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = b"\xff" * size
    path.write_bytes(data)

    with open_slide(path, reader="openslide") as slide:
        for _ in range(2):
            with pytest.raises(
                RunError, match=r"s\.tif, level 0, at x 70 y 70: window of 10 x 10 px cannot be decoded"
            ):
                slide.read(0, 70, 70, 10, 10)
            np.testing.assert_array_equal(slide.read(0, 0, 0, 60, 60), noise(200, 150)[:60, :60])


@pytest.mark.parametrize(
    ("mode", "suffix"), [("RGB", "png"), ("L", "png"), ("RGB", "jpg"), ("P", "png"), ("RGBA", "png")]
)
def test_an_image_is_a_slide_of_one_level(tmp_path, mode, suffix):
    image = Image.fromarray(np.full((70, 80, 3), 180, np.uint8)).convert(mode)
    image.save(tmp_path / f"s.{suffix}")

    with open_slide(tmp_path / f"s.{suffix}") as slide:
        assert (slide.reader, slide.dimensions, len(slide.levels), slide.native_tiles(0)) == (
            "image",
            (80, 70),
            1,
            None,
        )
        assert (slide.resolution, slide.background) == (None, "light")
        np.testing.assert_array_equal(slide.read(0, 5, 6, 7, 8), np.asarray(image.convert("RGB"))[6:14, 5:12])


def test_an_image_that_would_fill_the_memory_is_refused_by_its_header(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    (tmp_path / "s.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b""))

    with pytest.raises(
        UserError, match="60000 x 60000 px are too many for a PNG file; save it as a tiled pyramidal TIFF"
    ):
        open_slide(tmp_path / "s.png")


def test_an_image_of_16_bits_is_refused(tmp_path):
    Image.fromarray(np.zeros((20, 20), np.uint16)).save(tmp_path / "s.png")

    with pytest.raises(UserError, match="only 8-bit"):
        open_slide(tmp_path / "s.png")


def test_an_image_that_ends_early_is_an_error_when_it_is_read(tmp_path):
    Image.fromarray(noise(80, 70)).save(tmp_path / "s.png")
    (tmp_path / "s.png").write_bytes((tmp_path / "s.png").read_bytes()[:5000])

    with open_slide(tmp_path / "s.png") as slide, pytest.raises(RunError, match=r"s\.png, level 0.*cannot be decoded"):
        slide.read(0, 0, 0, 10, 10)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["tif", "png", "jpg"])
def test_files_with_damaged_bytes_end_in_our_own_errors_or_in_pixels(tmp_path, kind, reader):
    if kind == "tif":
        write_tiff(tmp_path / "whole", noise(100, 90), description="Aperio |MPP = 0.5", compression="jpeg")
    else:
        Image.fromarray(noise(60, 50)).save(tmp_path / "whole", format="PNG" if kind == "png" else "JPEG")
    whole = (tmp_path / "whole").read_bytes()
    random = np.random.default_rng(7)

    for _ in range(60):
        data = bytearray(whole[: random.integers(1, len(whole))] if random.random() < 0.2 else whole)
        for place in random.integers(0, len(data), 4):
            data[place] = random.integers(0, 256)
        data[random.integers(0, min(300, len(data)))] = random.integers(0, 256)
        (tmp_path / "s").write_bytes(data)
        outcome = _read_or_error(tmp_path / "s", reader)
        assert isinstance(outcome, np.ndarray) or "\n" not in str(outcome)


def _read_or_error(path: Path, reader: str) -> np.ndarray | CytopipeError:
    try:
        with open_slide(path, reader=reader) as slide:
            return slide.read(0, 0, 0, min(50, slide.dimensions[0]), min(50, slide.dimensions[1]))
    except CytopipeError as error:
        return error


def test_see_through_pixels_lie_on_the_background_of_the_slide():
    rgba = np.full((60, 60, 4), (200, 100, 50, 255), np.uint8)
    rgba[:10] = 0
    rgba[10:20, :, 3] = 51  # a fifth

    read = ArraySlide(rgba).read(0, 0, 0, 60, 60)

    assert [tuple(read[y, 0]) for y in (0, 15, 30)] == [(255, 255, 255), (244, 224, 214), (200, 100, 50)]
    assert tuple(ArraySlide(rgba // np.array([8, 8, 8, 1], np.uint8)).read(0, 0, 0, 60, 60)[0, 0]) == (0, 0, 0)


def test_composing_keeps_opaque_pixels_bit_for_bit():
    rgba = np.dstack([noise(30, 20), np.full((20, 30), 255, np.uint8)])

    np.testing.assert_array_equal(compose(rgba, 0), rgba[..., :3])
