"""Damage that readers must see before a codec does, and damage that a codec passes over."""

from __future__ import annotations

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from cytopipe.core.errors import RunError, UserError
from cytopipe.slides import find_foreground, open_slide
from cytopipe.slides.codec_headers import check_size
from cytopipe.slides.jpeg_damage import check_end, check_scan, check_tables
from cytopipe.slides.tiff_chain import MAX_PAGES, MAX_SEGMENTS
from cytopipe.slides.zarr_bounds import check_claim
from tests.corrupt_slides import (
    DESCRIPTION,
    SUB_IFDS,
    TILE_OFFSETS,
    TILE_PX,
    TILES,
    patch,
    picture,
    replace_tile,
    set_entry,
    sound,
    tile_span,
)

JPEG_KINDS = {
    "standard tables": {},
    "tables of its own": {"optimize": True},
    "full chroma": {"subsampling": "444"},
}


def noise(height: int = 128, width: int = 192) -> np.ndarray:
    """Waves with camera noise, so that no block is flat."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([200 + 25 * np.sin(x / 9 + k) * np.cos(y / 13) for k in range(3)], axis=2)
    return (waves + np.random.default_rng(1).normal(0, 3, waves.shape)).clip(0, 255).astype(np.uint8)


def look(data: bytes) -> np.ndarray:
    """Decoded with all checks, as tiles are."""
    scan = check_scan(data)
    decoded = imagecodecs.jpeg8_decode(data)
    if scan is not None:
        check_end(scan, data, decoded, imagecodecs.jpeg8_decode, _grey if decoded.ndim == 3 else None)
    return decoded


def _grey(data: bytes) -> np.ndarray:
    return imagecodecs.jpeg8_decode(data, outcolorspace="GRAYSCALE")


def encode(rgb: np.ndarray, **options: object) -> bytes:
    return imagecodecs.jpeg8_encode(rgb, level=85, **options)


def start_of(data: bytes) -> int:
    return check_scan(data).start


@pytest.mark.parametrize("kind", JPEG_KINDS)
@pytest.mark.parametrize("shown", ["noise", "white", "black", "white below noise", "noise below white"])
def test_sound_jpeg_data_pass_however_flat_the_picture(kind, shown):
    rgb = noise()
    rgb[{"noise": slice(0, 0), "white below noise": slice(50, None), "noise below white": slice(0, 100)}.get(
        shown, slice(None)
    )] = 0 if shown == "black" else 255  # fmt: skip

    decoded = look(encode(rgb, **JPEG_KINDS[kind]))

    assert decoded.shape == rgb.shape


def test_sound_jpeg_files_of_other_encoders_pass():
    for options in (
        {"progressive": True},
        {"restart_marker_blocks": 3},
        {"restart_marker_rows": 1},
        {"optimize": True},
    ):
        for image in (Image.fromarray(noise()), Image.fromarray(noise()).convert("L")):
            buffer = io.BytesIO()
            image.save(buffer, "jpeg", **options)

            assert look(buffer.getvalue()).shape[:2] == (128, 192)


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_a_hole_of_zeros_in_jpeg_data_is_seen_wherever_it_is(kind):
    data = encode(noise(), **JPEG_KINDS[kind])
    begin = start_of(data)

    for at in range(begin + 40, len(data) - 260, (len(data) - begin) // 12):
        with pytest.raises(ValueError, match="JPEG data are damaged"):
            look(data[:at] + bytes(200) + data[at + 200 :])


@pytest.mark.parametrize("kind", JPEG_KINDS)
def test_jpeg_data_of_which_a_part_is_missing_are_seen_and_their_rest_is_not_made_up(kind):
    data = encode(noise(), **JPEG_KINDS[kind])
    begin = start_of(data)

    for at in range(begin + 40, len(data) - 200, (len(data) - begin) // 12):
        with pytest.raises(ValueError, match="JPEG data are damaged"):
            look(data[:at] + data[at + 100 :])


def test_markers_inside_a_scan_and_missing_restart_markers_are_seen():
    data = encode(noise())
    buffer = io.BytesIO()
    Image.fromarray(noise()).save(buffer, "jpeg", restart_marker_blocks=4)
    restarted = buffer.getvalue()
    begin = start_of(data)

    with pytest.raises(ValueError, match="1 markers instead of 0"):
        look(data[: begin + 300] + b"\xff\xc4" + data[begin + 302 :])
    with pytest.raises(ValueError, match="22 markers instead of 23"):
        look(restarted.replace(b"\xff\xd3", b"\x12\x34", 1))


def test_tables_that_no_encoder_writes_are_seen():
    data = encode(noise())
    check_tables(data)

    quantisation, huffman = data.index(b"\xff\xdb"), data.index(b"\xff\xc4")
    with pytest.raises(ValueError, match="a quantisation table with zeros"):
        look(data[: quantisation + 30] + bytes(8) + data[quantisation + 38 :])
    with pytest.raises(ValueError, match="a Huffman table"):
        look(data[: huffman + 22] + bytes(8) + data[huffman + 30 :])


@pytest.mark.parametrize("compression", ["webp", "jpeg2000", "jpeg"])
def test_a_tile_of_another_size_than_its_place_is_an_error_and_not_decoded(tmp_path, compression):
    slide = sound(tmp_path, compression)
    large = np.repeat(np.repeat(picture()[:TILE_PX, :TILE_PX], 4, axis=0), 4, axis=1)
    encoder = {"webp": imagecodecs.webp_encode, "jpeg2000": imagecodecs.jpeg2k_encode, "jpeg": encode}[compression]
    replace_tile(slide, 0, encoder(np.ascontiguousarray(large)))

    with open_slide(slide) as opened, pytest.raises(RunError, match=f"{4 * TILE_PX} x {4 * TILE_PX} px"):
        opened.read(0, 0, 0, 10, 10)


def test_the_headers_of_tiles_are_read_right():
    rgb = np.ascontiguousarray(picture()[:48, :80])
    for compression, data in (
        (50001, imagecodecs.webp_encode(rgb, lossless=True)),
        (50001, imagecodecs.webp_encode(rgb, lossless=False, level=80)),
        (34712, imagecodecs.jpeg2k_encode(rgb, codecformat="j2k")),
        (34712, imagecodecs.jpeg2k_encode(rgb, codecformat="jp2")),
    ):
        check_size(data, compression, (80, 48), 3)
        for place in ((79, 48), (80, 47)):
            with pytest.raises(ValueError, match="80 x 48 px"):
                check_size(data, compression, place, 3)


@pytest.mark.parametrize(
    ("packed", "compressor"),
    [
        (lambda raw: imagecodecs.zstd_encode(raw), "zstd"),
        (lambda raw: imagecodecs.blosc_encode(raw), "blosc"),
        (lambda raw: zlib.compress(raw), "zlib"),
        (lambda raw: imagecodecs.gzip_encode(raw), "gzip"),
        (lambda raw: imagecodecs.bz2_encode(raw), "bz2"),
        (lambda raw: imagecodecs.lzma_encode(raw), "lzma"),
        (lambda raw: struct.pack("<I", len(raw)) + imagecodecs.lz4_encode(raw), "lz4"),
    ],
)
def test_a_packed_chunk_may_be_as_large_as_a_chunk_and_no_larger(packed, compressor):
    for size in (1, 200, 4096, 100_000):
        data = packed(bytes(range(256)) * (size // 256) + bytes(size % 256))

        check_claim(compressor, data, size)
        with pytest.raises((ValueError, RuntimeError)):
            check_claim(compressor, data, size - 1)


def test_tables_and_texts_beyond_any_slide_are_refused_before_a_library_reads_them(tmp_path):
    slide = sound(tmp_path, description="x" * 5000)
    with tifffile.TiffFile(slide) as tiff:
        patch(slide, tiff.pages[0].tags["Software"].offset, struct.pack("<H", SUB_IFDS))

    for code, count, said in (
        (DESCRIPTION, 2**27, "in field 270"),
        (TILE_OFFSETS, MAX_SEGMENTS + 1, f"claims {MAX_SEGMENTS + 1} tiles or strips"),
        (SUB_IFDS, MAX_PAGES + 1, f"claims {MAX_PAGES + 1} pages below it"),
    ):
        whole = slide.read_bytes()
        with pytest.raises(UserError, match=said):
            open_slide(set_entry(slide, code, count=count))
        slide.write_bytes(whole)


def test_a_tile_that_claims_more_bytes_than_the_file_has_costs_no_memory(tmp_path):
    slide = sound(tmp_path)
    with tifffile.TiffFile(slide) as tiff:
        tag = tiff.pages[0].tags[325]
    width = 2 if int(tag.dtype) == 3 else 4
    patch(slide, tag.valueoffset, b"\xff" * width)

    with open_slide(slide) as opened, pytest.raises(RunError, match="the file ends"):
        opened.read(0, 0, 0, 10, 10)


def test_a_slide_with_one_bad_tile_is_still_judged_by_the_others(tmp_path):
    slide = sound(tmp_path)
    offset, size = tile_span(slide, 0)
    patch(slide, offset + size - 200, bytes(120))

    with open_slide(slide) as opened:
        assert opened.background == "light"
        assert 0 < find_foreground(opened).unreadable_fraction < 1


def test_a_jpeg_or_png_file_damaged_in_its_middle_is_an_error_and_not_half_grey(tmp_path):
    for name in ("s.jpg", "s.png"):
        path = tmp_path / name
        Image.fromarray(noise()).save(path)
        data = path.read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + data[middle + 100 :])

        with open_slide(path) as slide, pytest.raises(RunError, match=rf"{name}, level 0, at x 0 y 0: image cannot be"):
            slide.read(0, 0, 0, 10, 10)


def test_an_error_line_shows_no_control_characters():
    assert str(UserError("a\x00b\x1b[31m", where="s.svs")) == "s.svs: a\ufffdb\ufffd[31m"


def test_every_tile_of_a_slide_is_decoded_as_it_was_before_the_checks(tmp_path):
    with open_slide(sound(tmp_path)) as slide:
        shown = slide.read(0, 0, 0, *slide.dimensions)

    assert TILES == 15
    np.testing.assert_array_equal(shown, tifffile.imread(tmp_path / "s.tif"))
