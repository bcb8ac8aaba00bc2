"""Codecs of a store: the same pixels through one interface, zarr arrays that any zarr library reads, damage by name."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, JpegImagePlugin

from cytopipe.core.errors import RunError
from cytopipe.slides import MppView
from cytopipe.tiles import LostTile, TileRow, TileStore, cut_windows, open_writer, zarr_images
from cytopipe.tiles.config import Codec
from cytopipe.tiles.images import decode_image, encode_image
from cytopipe.tiles.zarr_images import crc32c, tiles_per_shard
from tests.array_slide import ArraySlide
from tests.stores import TILE_PX, bytes_of, picture, slide_row, store_info, tile_row, write

INDEX_BYTES = 16  # of one tile in the index of a shard
TILES = 23


@pytest.fixture
def small_shards(monkeypatch):
    """Three tiles a shard, four shards an array."""
    monkeypatch.setattr(zarr_images, "SHARD_TILES", 3)
    monkeypatch.setattr(zarr_images, "SHARDS_PER_ARRAY", 4)


def one_slide(folder: Path, tiles: int = TILES) -> TileStore:
    write(folder, ("S-1",), tiles, "zarr")
    return TileStore(folder)


@pytest.mark.parametrize("codec", ["png", "zarr"])
def test_codecs_without_loss_give_the_pixels_that_were_cut(codec, tmp_path):
    write(tmp_path / "store", codec=codec)

    store = TileStore(tmp_path / "store")

    places = [(slide_id, x) for slide_id in ("S-1", "S-10", "S-2") for x in (0, 32, 64)]
    for i, place in enumerate(places):
        image = store.read_image(i)
        assert np.array_equal(image, picture(*place))
        assert image.flags.writeable


def test_a_jpeg_store_gives_what_its_files_hold(tmp_path):
    write(tmp_path / "store", codec="jpeg")

    store = TileStore(tmp_path / "store")

    path = tmp_path / "store/images/S-10/0/32.jpg"
    assert np.array_equal(store.read_image(4), imagecodecs.jpeg8_decode(path.read_bytes()))


@pytest.mark.parametrize(("quality", "sampling"), [(80, 2), (89, 2), (90, 0), (100, 0)])
def test_jpeg_colour_has_half_resolution_below_quality_90_and_full_from_there_on(quality, sampling):
    data = encode_image(picture("S", 0), "jpeg", quality)

    assert JpegImagePlugin.get_sampling(Image.open(io.BytesIO(data))) == sampling  # Pillow: 0 is 4:4:4, 2 is 4:2:0


@pytest.mark.parametrize("codec", ["jpeg", "png", "zarr"])
def test_bytes_do_not_depend_on_the_number_of_workers(codec, tmp_path, small_shards):
    pixels = np.random.default_rng(3).integers(0, 256, (5 * TILE_PX, 4 * TILE_PX, 3), dtype=np.uint8)
    origins = [(x, y) for y in range(0, 5 * TILE_PX, TILE_PX) for x in range(0, 4 * TILE_PX, TILE_PX)]

    def store(folder: Path, workers: int) -> dict[str, bytes]:
        with ArraySlide(pixels, mpp=0.5) as slide, open_writer(folder, store_info(codec), {}) as writer:
            cuts = cut_windows(MppView(slide, None), origins, TILE_PX, codec=codec, quality=90, workers=workers)
            rows = (
                tile_row("A", cut.x, cut.y, codec, image=cut.image) for cut in cuts if not isinstance(cut, LostTile)
            )
            writer.add_slide(slide_row("A"), rows, [], {})
            writer.finish()
        return bytes_of(folder)

    assert store(tmp_path / "one", 1) == store(tmp_path / "four", 4)


def test_zarr_python_reads_the_same_tiles_at_the_place_that_the_table_names(tmp_path, small_shards):
    store = one_slide(tmp_path / "store")

    group = zarr.open_group(tmp_path / "store/images.zarr", mode="r")
    for i, place in enumerate(store.column("path").to_pylist()):
        folder, row = place.split("#")
        array = group[folder.removeprefix("images.zarr/")]
        assert np.array_equal(np.asarray(array[int(row)]), picture("S-1", TILE_PX * i))
        assert np.array_equal(store.read_image(i), picture("S-1", TILE_PX * i))


def test_zarr_python_reads_whole_arrays_with_one_tile_a_chunk(tmp_path, small_shards):
    one_slide(tmp_path / "store")

    arrays = [zarr.open_array(tmp_path / f"store/images.zarr/S-1/{number}", mode="r") for number in range(2)]

    assert [array.shape for array in arrays] == [(12, TILE_PX, TILE_PX, 3), (11, TILE_PX, TILE_PX, 3)]
    assert {array.chunks for array in arrays} == {(1, TILE_PX, TILE_PX, 3)}
    assert {array.shards for array in arrays} == {(3, TILE_PX, TILE_PX, 3)}
    pixels = np.concatenate([array[:] for array in arrays])
    assert np.array_equal(pixels, [picture("S-1", TILE_PX * i) for i in range(TILES)])


def test_all_slides_are_found_by_walking_the_zarr_group(tmp_path):
    write(tmp_path / "store", codec="zarr")

    group = zarr.open_group(tmp_path / "store/images.zarr", mode="r")

    assert sorted(name for name, _ in group.members(max_depth=None)) == [
        "S-1",
        "S-1/0",
        "S-10",
        "S-10/0",
        "S-2",
        "S-2/0",
    ]


@pytest.mark.parametrize("tile_px", [16, 256, 1200, 8192])
def test_a_shard_is_no_larger_than_200_mb_or_one_tile(tile_px):
    tiles = tiles_per_shard(tile_px)

    assert tiles == 1 or tiles * 3 * tile_px**2 < 200e6
    assert INDEX_BYTES * tiles <= 65_536


def test_many_threads_read_one_zarr_store(tmp_path, small_shards, monkeypatch):
    monkeypatch.setattr(zarr_images, "KEPT_INDICES", 2)
    store = one_slide(tmp_path / "store")
    order = np.random.default_rng(1).integers(0, TILES, 200).tolist()

    with ThreadPoolExecutor(8) as pool:
        images = list(pool.map(store.read_image, order))

    assert all(np.array_equal(image, picture("S-1", TILE_PX * i)) for i, image in zip(order, images, strict=True))


def flipped(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def described(path: Path, change: Callable[[dict], object]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


SHARD, ARRAY = "c.0.0.0.0", "zarr.json"


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda array: (array / SHARD).unlink(), "cannot be read"),
        (lambda array: (array / SHARD).write_bytes(b""), "is damaged"),
        (lambda array: (array / SHARD).write_bytes((array / SHARD).read_bytes()[:-1]), "is damaged"),
        (lambda array: flipped(array / SHARD, -1), "is damaged"),
        (lambda array: flipped(array / SHARD, -4 - INDEX_BYTES * 3), "is damaged"),
        (lambda array: flipped(array / SHARD, 0), "is damaged"),
        (lambda array: (array / ARRAY).unlink(), "cannot be read"),
        (lambda array: (array / ARRAY).write_bytes(b"{"), "is damaged"),
        (lambda array: (array / ARRAY).write_bytes(b"[]"), "is damaged"),
        (
            lambda array: described(array / ARRAY, lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[0])),
            "is damaged",
        ),
    ],
    ids=[
        "no shard",
        "empty shard",
        "truncated shard",
        "flipped checksum",
        "flipped index",
        "flipped tile",
        "no description",
        "broken description",
        "another description",
        "absurd description",
    ],
)
def test_a_damaged_zarr_array_is_named_with_the_tile(damage, what, tmp_path, small_shards):
    store = one_slide(tmp_path / "store")
    damage(tmp_path / "store/images.zarr/S-1/0")

    with pytest.raises(RunError, match=rf"images\.zarr/S-1/0#0: a tile image {what}.*--overwrite"):
        store.read_image(0)


def test_a_tile_that_a_shard_does_not_hold_is_damage(tmp_path, small_shards):
    write(tmp_path / "store", ("S-1",), 2, "zarr")

    with pytest.raises(RunError, match="a tile image is damaged"):
        zarr_images.ZarrReader(tmp_path / "store").read("images.zarr/S-1/0#2")


@pytest.mark.parametrize("codec", ["jpeg", "png", "zarr"])
def test_half_an_image_is_an_error(codec):
    data = encode_image(picture("S", 0), codec, 90)

    with pytest.raises(RunError, match="is damaged"):
        decode_image(data[: len(data) // 2], codec)


@given(st.integers(16, 64), st.integers(0, 2**32 - 1))
def test_what_is_encoded_without_loss_is_decoded(side, seed):
    image = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)

    codecs: tuple[Codec, ...] = ("png", "zarr")
    assert all(np.array_equal(decode_image(encode_image(image, codec, 90), codec), image) for codec in codecs)


def test_the_checksum_of_an_index_is_crc_32c():
    # RFC 3720, appendix B.4: 32 bytes of zeros, of ones, ascending; and the check value of the CRC catalogue
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


def test_a_slide_without_tiles_is_an_empty_group(tmp_path):
    with open_writer(tmp_path / "store", store_info("zarr"), {}) as writer:
        no_tiles: list[TileRow] = []
        writer.add_slide(slide_row("A"), no_tiles, [], {})
        writer.finish()

    group = zarr.open_group(tmp_path / "store/images.zarr", mode="r")
    assert [name for name, _ in group.members(max_depth=None)] == ["A"]
    assert len(TileStore(tmp_path / "store")) == 0
