"""The embedded colour profile: off and said so, applied on request, pixel by pixel."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from cytopipe.core.errors import UserError
from cytopipe.slides import MppView, Showing, open_slide
from tests.array_slide import ArraySlide

SRGB = Showing(icc="srgb")


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def profile(kind: str = "sRGB") -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()


def swapped() -> bytes:
    """sRGB with its red and blue primaries exchanged: what it calls red is blue. The names of two tags trade places."""
    data = bytearray(profile())
    table = data[128 : 128 + 4 + 12 * 20]
    red, blue = table.index(b"rXYZ"), table.index(b"bXYZ")
    data[128 + red : 128 + red + 4], data[128 + blue : 128 + blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data)


def write_tiff(path: Path, pixels: np.ndarray, icc: bytes | None) -> Path:
    options = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, pixels, compression="deflate", iccprofile=icc, **options)
    return path


def test_off_is_the_default_and_a_profile_that_is_not_used_is_noted_once(tmp_path):
    pixels = noise(200, 150)
    path = write_tiff(tmp_path / "s.tif", pixels, swapped())

    for reader in ("tiff", "openslide"):
        with open_slide(path, reader=reader) as slide:
            assert slide.notes == ("its ICC profile is not applied; --icc srgb applies it",)
            assert slide.icc == swapped()
            np.testing.assert_array_equal(slide.read(0, 0, 0, 200, 150), pixels)


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_on_request_colours_are_those_that_the_profile_means(tmp_path, reader):
    pixels = noise(200, 150)
    path = write_tiff(tmp_path / "s.tif", pixels, swapped())

    with open_slide(path, reader=reader, showing=SRGB) as slide:
        read = slide.read(0, 0, 0, 200, 150)
        assert slide.notes == ()
    assert np.abs(read.astype(int) - pixels[..., ::-1]).max() <= 2  # rounding inside the colour engine


def test_an_image_has_its_profile_applied_too(tmp_path):
    Image.fromarray(noise(80, 70)).save(tmp_path / "s.png", icc_profile=swapped())

    with open_slide(tmp_path / "s.png", showing=SRGB) as slide:
        assert np.abs(slide.read(0, 0, 0, 80, 70).astype(int) - noise(80, 70)[..., ::-1]).max() <= 2


def test_white_black_and_grey_stay_what_they_are(tmp_path):
    greys = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    path = write_tiff(tmp_path / "s.tif", greys, profile())

    with open_slide(path, showing=SRGB) as slide:
        assert np.abs(slide.read(0, 0, 0, 256, 1).astype(int) - greys).max() <= 1


def test_windows_agree_and_so_do_threads(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(300, 200), swapped())

    with open_slide(path, showing=SRGB) as slide, ThreadPoolExecutor(4) as pool:
        whole = slide.read(0, 0, 0, 300, 200)
        places = np.random.default_rng(1).integers(0, 140, (60, 2)).tolist()
        parts = pool.map(lambda place: slide.read(0, *place, 60, 50), places)
        for (x, y), part in zip(places, parts, strict=True):
            np.testing.assert_array_equal(part, whole[y : y + 50, x : x + 60])
        view = MppView(slide, None)
        np.testing.assert_array_equal(view.read(10, 20, 30, 40), whole[20:60, 10:40])


def test_a_slide_without_a_profile_says_so_and_is_shown_as_stored(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(100, 90), None)

    with open_slide(path, showing=SRGB) as slide:
        assert slide.notes == ("it has no ICC profile; its colours are shown as stored",)
        np.testing.assert_array_equal(slide.read(0, 0, 0, 100, 90), noise(100, 90))


@pytest.mark.parametrize(
    ("icc", "said"), [(b"icc!", "damaged"), (b"\0" * 200, "damaged"), (profile()[:300], "damaged"), (None, "Lab")]
)
def test_a_profile_that_cannot_be_used_is_refused_when_it_is_asked_for(tmp_path, icc, said):
    path = write_tiff(tmp_path / "s.tif", noise(100, 90), profile("LAB") if icc is None else icc)

    with pytest.raises(UserError, match=rf"s\.tif: its ICC profile .*{said}.*; leave --icc off"):
        open_slide(path, showing=SRGB)
    with open_slide(path) as slide:
        slide.read(0, 0, 0, 10, 10)


def test_a_gap_is_background_and_no_colour_of_the_profile():
    rgba = np.full((60, 60, 4), (200, 100, 50, 255), np.uint8)
    rgba[:10] = 0
    slide = ArraySlide(rgba, icc=swapped(), showing=SRGB)

    read = slide.read(0, 0, 0, 60, 60)

    assert tuple(read[0, 0]) == (255, 255, 255)
    assert np.abs(read[30, 30].astype(int) - (50, 100, 200)).max() <= 2


def test_a_compressed_tile_is_not_copied_past_the_profile(tmp_path):
    pixels = np.full((128, 128, 3), (200, 120, 90), np.uint8)
    options = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    tifffile.imwrite(tmp_path / "s.tif", pixels, compression="jpeg", iccprofile=swapped(), **options)

    with open_slide(tmp_path / "s.tif") as stored, open_slide(tmp_path / "s.tif", showing=SRGB) as shown:
        assert Image.open(io.BytesIO(stored.copied_tile(0, 64, 0, 64, 64))).size == (64, 64)
        assert shown.copied_tile(0, 64, 0, 64, 64) is None
