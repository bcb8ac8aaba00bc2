"""Cutting: the slide's pixels, in order, in bounded memory; and which tiles are chosen."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shapely import box

from cytopipe.core.errors import RunError, UserError
from cytopipe.formats.annotations import Annotation
from cytopipe.slides import Foreground, MppView, open_slide
from cytopipe.slides.tiff_reader import TiffSlide
from cytopipe.tiles import LostTile, TileConfig, cut_windows, plan_tiles, tile_config
from cytopipe.tiles.cut import QUEUE_PER_WORKER, map_in_order
from cytopipe.tiles.grid import plan_grid
from cytopipe.tiles.images import encode_image

SIZE = WIDTH, HEIGHT = 150, 90
NOISE = np.random.default_rng(7).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture
def view(tmp_path: Path):
    path = tmp_path / "noise.png"
    cv2.imwrite(str(path), NOISE[:, :, ::-1])
    with open_slide(path) as slide:
        yield MppView(slide, None)


def decoded(image: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def mask(*columns: int) -> Foreground:
    """A foreground of 30 px wide columns of the slide."""
    cells = np.zeros((3, 5), dtype=bool)
    cells[:, list(columns)] = True
    return Foreground(cells, (30.0, 30.0), "light", (240.0, 240.0, 240.0))


def test_tiles_hold_the_slides_pixels_by_rows_whatever_the_order_asked_for(view):
    origins = [(100, 40), (0, 40), (3, 0), (40, 40)]

    tiles = list(cut_windows(view, origins, 50, codec="png", quality=90, workers=2))

    assert [(tile.x, tile.y) for tile in tiles] == [(3, 0), (0, 40), (40, 40), (100, 40)]
    for tile in tiles:
        assert np.array_equal(decoded(tile.image), NOISE[tile.y : tile.y + 50, tile.x : tile.x + 50])


def test_what_hangs_over_the_slide_is_background(tmp_path):
    path = tmp_path / "pale.png"
    cv2.imwrite(str(path), np.full((40, 40, 3), 230, np.uint8))

    with open_slide(path) as slide:
        (tile,) = cut_windows(MppView(slide, None), [(0, 0)], 64, codec="png", quality=90, workers=1)

    pixels = decoded(tile.image)
    assert (pixels[:40, :40] == 230).all()
    assert (pixels[40:] == 255).all()
    assert (pixels[:, 40:] == 255).all()


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_a_byte(view, workers):
    origins = [(x, y) for y in (0, 40) for x in (0, 30, 60, 90)]

    tiles = cut_windows(view, origins, 50, codec="jpeg", quality=90, workers=workers)

    expected = [encode_image(np.ascontiguousarray(NOISE[y : y + 50, x : x + 50]), "jpeg", 90) for x, y in origins]
    assert [tile.image for tile in tiles] == expected


def test_a_slow_consumer_keeps_the_queue_short():
    taken = 0

    def source():
        nonlocal taken
        for i in range(100):
            taken += 1
            yield i

    results = map_in_order(lambda i: i * i, source(), workers=2)
    first = next(results)

    assert first == 0
    assert taken == 2 * QUEUE_PER_WORKER
    assert list(results) == [i * i for i in range(1, 100)]


def test_a_consumer_that_leaves_ends_the_threads():
    results = map_in_order(lambda i: i, iter(range(100)), workers=2)
    next(results)

    results.close()

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("cut")]


@pytest.fixture(scope="module")
def tiled(tmp_path_factory):
    """A JPEG-tiled slide of noise, 300 x 220 px in tiles of 32 px."""
    path = tmp_path_factory.mktemp("tiled") / "s.tif"
    rng = np.random.default_rng(3)
    pixels = np.kron(rng.integers(0, 256, (55, 75, 3), dtype=np.uint8), np.ones((4, 4, 1), np.uint8))
    tifffile.imwrite(path, pixels, tile=(32, 32), photometric="rgb", compression="jpeg")
    return path


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(16, 120), st.integers(0, 15), st.sampled_from(["shift", "pad"]), st.sampled_from([1, 2, 1.5]))
def test_each_native_tile_is_decoded_once_whatever_the_grid(tiled, monkeypatch, tile_px, overlap_px, edge, mpp):
    decoded_at: Counter[int] = Counter()
    whole = TiffSlide._decoded

    def counted(self, plane, index, buffer):
        decoded_at[index] += 1
        return whole(self, plane, index, buffer)

    with monkeypatch.context() as patch, open_slide(tiled, mpp_override=1.0) as slide:
        _ = slide.background  # judged from the pixels, before it is counted
        slide._cache.clear()
        patch.setattr(TiffSlide, "_decoded", counted)
        view = MppView(slide, mpp)
        grid = plan_grid(view.width, view.height, tile_px, overlap_px, edge)
        tiles = list(cut_windows(view, grid.origins(), tile_px, codec="png", quality=90, workers=3))
        left = slide._cache._held
    assert len(tiles) == len(grid)
    assert set(decoded_at.values()) == {1}
    assert len(decoded_at) == 10 * 7
    assert not left  # nothing is kept after the last window


def test_a_window_that_is_a_compressed_tile_of_the_slide_is_copied_and_shows_the_same_pixels(tiled):
    with open_slide(tiled) as slide:
        view = MppView(slide, None)
        copied = list(cut_windows(view, [(0, 0), (64, 32), (288, 0)], 32, codec="jpeg", quality=90, workers=2))
        other = list(cut_windows(view, [(0, 0), (64, 32), (288, 0)], 32, codec="png", quality=90, workers=2))
    assert [tile.is_copied for tile in copied] == [True, False, True]  # (288, 0) hangs over the border
    assert not any(tile.is_copied for tile in other)
    for one, same in zip(copied, other, strict=True):
        if one.is_copied:
            assert np.array_equal(imagecodecs.jpeg8_decode(one.image), decoded(same.image))
            assert one.sharpness == same.sharpness


def test_without_measuring_a_copied_window_is_not_decoded_and_others_are_stored_alike(tiled, monkeypatch):
    origins = [(0, 0), (64, 32), (40, 40)]
    with open_slide(tiled) as slide:
        view = MppView(slide, None)
        measured = list(cut_windows(view, origins, 32, codec="jpeg", quality=90, workers=2, glass=(240.0,) * 3))
        read = []
        whole = MppView.read_with_z
        monkeypatch.setattr(MppView, "read_with_z", lambda self, *window: read.append(window) or whole(self, *window))
        bare = list(cut_windows(view, origins, 32, codec="jpeg", quality=90, workers=1, measure=False))
    assert read == [(40, 40, 32, 32)]
    assert [tile.image for tile in bare] == [tile.image for tile in measured]
    assert all(tile.sharpness is not None and tile.glass is not None for tile in measured)
    assert all(tile.sharpness is None and tile.glass is None for tile in bare)


def test_a_window_that_cannot_be_decoded_costs_itself_alone(tiled, tmp_path):
    broken = tmp_path / "broken.tif"
    data = bytearray(tiled.read_bytes())
    with tifffile.TiffFile(tiled) as tiff:
        offset = tiff.pages[0].dataoffsets[11]
    data[offset : offset + 2] = b"no"
    broken.write_bytes(data)
    with open_slide(broken) as slide:
        origins = [(x, y) for y in range(0, 160, 40) for x in range(0, 240, 40)]
        tiles = list(cut_windows(MppView(slide, None), origins, 40, codec="png", quality=90, workers=2))
    lost = [tile for tile in tiles if isinstance(tile, LostTile)]
    assert [(tile.x, tile.y) for tile in lost] == [(0, 0), (40, 0), (0, 40), (40, 40)]  # native tile 11: x 32, y 32
    assert all("level 0, at x 32 y 32: tile cannot be decoded" in tile.reason for tile in lost)


def test_tiles_of_glass_are_dropped(view):
    config = TileConfig(tile_px=30, mpp=None, min_foreground=0.5)

    plan = plan_tiles(view, SIZE, [], mask(1, 3), config)

    assert {plan.origins[i][0] for i in np.flatnonzero(plan.kept)} == {30, 90}
    assert not plan.for_objects.any()


def test_a_tile_of_glass_is_kept_where_somebody_outlined_an_object(view):
    config = TileConfig(tile_px=30, mpp=None)
    cell = Annotation("c", "LSIL", box(125, 5, 145, 25))

    plan = plan_tiles(view, SIZE, [cell], mask(1), config)

    assert [plan.origins[i] for i in np.flatnonzero(plan.for_objects)] == [(120, 0)]
    assert plan.kept.sum() == 4
    assert [(row.object_id, row.x, row.y, row.truncated) for row in plan.objects] == [("c", 120, 0, False)]


def test_a_slide_without_foreground_is_an_error(view):
    with pytest.raises(RunError, match="no foreground was found; --no-foreground takes every tile"):
        plan_tiles(view, SIZE, [], mask(), TileConfig(tile_px=30, mpp=None, min_foreground=0))


def test_without_a_mask_every_tile_is_taken(view):
    plan = plan_tiles(view, SIZE, [], None, TileConfig(tile_px=30, mpp=None))

    assert plan.kept.all()
    assert len(plan.kept) == 15


def test_what_an_outline_has_beyond_the_slide_is_on_no_tile_not_even_on_a_padded_one(view):
    cell = Annotation("c", "LSIL", box(130, 70, 160, 100))

    plan = plan_tiles(view, SIZE, [cell], None, TileConfig(tile_px=100, mpp=None, edge="pad"))

    (row,) = plan.objects
    assert row.geometry.bounds == (130, 70, WIDTH, HEIGHT)
    assert row.truncated


def test_an_object_that_stands_for_a_group_is_marked(view):
    crowd = Annotation("g", "LSIL", box(5, 5, 25, 25), {"crowd": "True"})

    plan = plan_tiles(view, SIZE, [crowd], None, TileConfig(tile_px=30, mpp=None))

    assert [row.crowd for row in plan.objects] == [True]


@pytest.mark.parametrize(
    ("given_values", "message"),
    [
        ({"overlap_px": 0.25}, "tile.overlap_px: 0.25 looks like a fraction; give pixels, e.g. 300"),
        ({"overlap_px": 100, "tile_px": 100}, "overlap_px 100 is not below tile_px 100"),
        ({"tile_px": 4}, "tile.tile_px: Input should be greater than or equal to 16"),
        ({"til_px": 4}, "unknown key 'til_px'; did you mean 'tile_px'"),
        ({"codec": "webp"}, "tile.codec: Input should be 'jpeg', 'png' or 'zarr'"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_was_expected(given_values, message):
    with pytest.raises(UserError, match=message):
        tile_config(given_values)


def test_what_is_not_given_keeps_its_default():
    assert tile_config({"tile_px": None, "codec": "png"}) == TileConfig(codec="png")
