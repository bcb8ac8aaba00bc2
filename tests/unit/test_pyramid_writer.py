"""The slide writer: what readers find in its files, and what it refuses."""

from __future__ import annotations

import cv2
import numpy as np
import openslide
import pytest
import tifffile

from cytopipe.slides.writer import PyramidWriter

JPEG_TOLERANCE = 3.0  # mean grey levels; smooth pictures at quality 80 stay within 1.3


def smooth_picture(width: int, height: int) -> np.ndarray:
    """A colourful picture without fine detail, which JPEG keeps."""
    rows, columns = height // 200 + 2, width // 200 + 2
    coarse = np.random.default_rng(1).integers(0, 255, (rows, columns, 3), dtype=np.uint8)
    large = cv2.resize(coarse, (200 * columns, 200 * rows), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(large[:height, :width])


def write(path, picture, *, rows=100, **options):
    height, width = picture.shape[:2]
    with PyramidWriter(path, width, height, mpp=0.25, objective=40, **options) as writer:
        for y in range(0, height, rows):
            writer.write_band(picture[y : y + rows])
    return path


def difference(a, b):
    return float(np.abs(np.asarray(a, np.int32) - np.asarray(b, np.int32)).mean())


def test_openslide_takes_the_file_for_an_aperio_slide_and_finds_its_resolution(tmp_path):
    path = write(tmp_path / "a.tif", smooth_picture(2600, 1300))

    with openslide.OpenSlide(path) as slide:
        assert slide.properties["openslide.vendor"] == "aperio"
        assert float(slide.properties["openslide.mpp-x"]) == 0.25
        assert slide.properties["aperio.AppMag"] == "40"
        assert slide.properties["tiff.ImageDescription"].startswith("Aperio Image Library")
        assert slide.level_dimensions == ((2600, 1300), (650, 325))
        assert list(slide.associated_images) == ["thumbnail"]


@pytest.mark.parametrize("size", [(2600, 1300), (1029, 771), (256, 512), (40, 30), (1, 1), (4100, 37)])
@pytest.mark.parametrize("big", [False, True])
def test_every_level_shows_the_picture_whatever_the_size(tmp_path, size, big):
    picture = smooth_picture(*size)
    path = write(tmp_path / "a.tif", picture, big=big)

    with openslide.OpenSlide(path) as slide:
        for level, (width, height) in enumerate(slide.level_dimensions):
            shown = slide.read_region((0, 0), level, (width, height)).convert("RGB")
            factor = 4**level
            whole = picture[: height * factor, : width * factor]
            expected = cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA)
            assert difference(shown, expected) < JPEG_TOLERANCE
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_bigtiff == big
        assert difference(tiff.series[0].asarray(), picture) < JPEG_TOLERANCE


def test_the_bytes_depend_neither_on_the_bands_nor_on_the_threads(tmp_path):
    picture = smooth_picture(1500, 900)

    one = write(tmp_path / "one.tif", picture, rows=900, workers=1).read_bytes()
    other = write(tmp_path / "other.tif", picture, rows=37, workers=3).read_bytes()

    assert one == other


def test_the_pixels_of_a_coarser_jpeg_take_fewer_bytes(tmp_path):
    picture = smooth_picture(600, 600)

    fine = write(tmp_path / "fine.tif", picture, quality=95)
    coarse = write(tmp_path / "coarse.tif", picture, quality=40)

    assert coarse.stat().st_size < fine.stat().st_size


def test_nothing_appears_when_writing_breaks_off(tmp_path):
    def interrupted():
        with PyramidWriter(tmp_path / "a.tif", 300, 300, mpp=0.25, objective=40) as writer:
            writer.write_band(smooth_picture(300, 200))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert list(tmp_path.iterdir()) == []


def test_missing_rows_are_an_error_and_leave_no_file(tmp_path):
    with (
        pytest.raises(ValueError, match="200 of 300 rows"),
        PyramidWriter(tmp_path / "a.tif", 300, 300, mpp=0.25, objective=40) as writer,
    ):
        writer.write_band(smooth_picture(300, 200))

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "band",
    [np.zeros((10, 301, 3), np.uint8), np.zeros((10, 300, 3), np.float32), np.zeros((301, 300, 3), np.uint8)],
    ids=["too wide", "not uint8", "too many rows"],
)
def test_a_band_that_does_not_fit_is_refused(tmp_path, band):
    with PyramidWriter(tmp_path / "a.tif", 300, 300, mpp=0.25, objective=40) as writer:
        with pytest.raises(ValueError, match="write_band"):
            writer.write_band(band)
        writer.write_band(smooth_picture(300, 300))

    assert (tmp_path / "a.tif").exists()


@pytest.mark.parametrize("arguments", [(0, 5), (5, -1)])
def test_a_slide_without_pixels_is_refused(tmp_path, arguments):
    with pytest.raises(ValueError, match="PyramidWriter"):
        PyramidWriter(tmp_path / "a.tif", *arguments, mpp=0.25, objective=40)
