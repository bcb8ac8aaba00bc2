"""JPEG tiles of a TIFF: sizes are checked before anything is decoded, and a copied tile shows the same pixels."""

import imagecodecs
import numpy as np
import pytest
import tifffile

from cytopipe.slides import MppView, open_slide
from cytopipe.slides.jpeg_segment import JpegColours, colours_of, jpeg_decoder, jpeg_frame, standalone_jpeg

PX = 64


def _picture(seed=0, px=PX, samples=3):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (px // 8, px // 8, samples), dtype=np.uint8)
    return np.ascontiguousarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8)))


@pytest.mark.parametrize("photometric", ["rgb", "ycbcr"])
def test_a_copied_tile_is_a_jpeg_file_with_the_pixels_of_the_slide(tmp_path, photometric):
    path = tmp_path / "s.tif"
    tifffile.imwrite(
        path,
        _picture(px=4 * PX),
        tile=(PX, PX),
        photometric=photometric,
        compression="jpeg",
        compressionargs={"level": 90, "outcolorspace": photometric},
    )
    with open_slide(path, reader="tiff") as slide:
        view = MppView(slide, None)
        copied = view.copied_tile(PX, 2 * PX, PX, PX)
        assert copied is not None
        expected = view.read(PX, 2 * PX, PX, PX)
        assert np.array_equal(imagecodecs.jpeg8_decode(copied), expected)
        assert view.copied_tile(PX + 1, 0, PX, PX) is None
        assert view.copied_tile(0, 0, 2 * PX, PX) is None


def test_a_tile_that_hangs_over_the_slide_or_is_no_jpeg_is_not_copied(tmp_path):
    path = tmp_path / "s.tif"
    tifffile.imwrite(path, _picture(px=96), tile=(PX, PX), photometric="rgb", compression="jpeg")
    with open_slide(path, reader="tiff") as slide:
        assert slide.copied_tile(0, 0, 0, PX, PX) is not None
        assert slide.copied_tile(0, PX, 0, PX, PX) is None
    tifffile.imwrite(path, _picture(px=128), tile=(PX, PX), photometric="rgb", compression="deflate")
    with open_slide(path, reader="tiff") as slide:
        assert slide.copied_tile(0, 0, 0, PX, PX) is None


def test_common_tables_are_put_back_into_a_copied_tile():
    whole = imagecodecs.jpeg8_encode(_picture(), level=75)
    parts, at = {}, 2
    while whole[at + 1] != 0xDA:
        length = 2 + int.from_bytes(whole[at + 2 : at + 4], "big")
        parts.setdefault(whole[at + 1] in (0xDB, 0xC4), []).append(whole[at : at + length])
        at += length
    tables = b"\xff\xd8" + b"".join(parts[True]) + b"\xff\xd9"
    abbreviated = b"\xff\xd8" + b"".join(parts[False]) + whole[at:]
    with pytest.raises(imagecodecs.Jpeg8Error):
        imagecodecs.jpeg8_decode(abbreviated)
    copied = standalone_jpeg(abbreviated, tables, colours_of(6, 3, has_jfif=True))
    assert np.array_equal(imagecodecs.jpeg8_decode(copied), imagecodecs.jpeg8_decode(whole))


def test_the_decoder_writes_into_the_memory_it_is_given():
    data = imagecodecs.jpeg8_encode(_picture(), level=90)
    buffer = np.zeros((PX, PX, 3), np.uint8)
    assert jpeg_decoder(None, JpegColours(None, "RGB"), (PX, PX), 3)(data, buffer) is buffer
    assert np.array_equal(buffer, imagecodecs.jpeg8_decode(data))


def test_a_lower_last_strip_comes_in_memory_of_its_own():
    data = imagecodecs.jpeg8_encode(_picture()[:24], level=90)
    buffer = np.zeros((PX, PX, 3), np.uint8)
    pixels = jpeg_decoder(None, JpegColours(None, "RGB"), (PX, PX), 3)(data, buffer)
    assert pixels.shape == (24, PX, 3)
    assert not buffer.any()


@pytest.mark.parametrize(
    ("width", "height"), [(65500, 65500), (PX + 8, PX), (PX, PX + 8)], ids=["bomb", "wider", "higher"]
)
def test_a_stream_larger_than_its_place_is_refused_before_it_is_decoded(width, height):
    data = bytearray(imagecodecs.jpeg8_encode(_picture(), level=90))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    decode = jpeg_decoder(None, JpegColours(None, "RGB"), (PX, PX), 3)
    with pytest.raises(ValueError, match=f"{width} x {height} px"):
        decode(bytes(data), np.zeros((PX, PX, 3), np.uint8))


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"no jpeg at all", b"\xff\xd8\xff\xda\x00\x02", b"\xff\xd8\xff\xe0\x00\x00"]
)
def test_data_without_a_frame_header_is_refused(data):
    with pytest.raises(ValueError, match="JPEG"):
        jpeg_frame(data)


def test_a_stream_without_an_end_is_refused():
    data = imagecodecs.jpeg8_encode(_picture(), level=90)[:-2]
    with pytest.raises(ValueError, match="early"):
        jpeg_decoder(None, JpegColours(None, "RGB"), (PX, PX), 3)(data, np.zeros((PX, PX, 3), np.uint8))
