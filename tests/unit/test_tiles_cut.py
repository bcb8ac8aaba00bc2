"""Cutting: the slide's pixels, in order, in bounded memory; and which tiles are chosen."""

from __future__ import annotations

import threading
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely import box

from cytopipe.core.errors import RunError, UserError
from cytopipe.formats.annotations import Annotation
from cytopipe.slides import Foreground, MppView, open_slide
from cytopipe.tiles import TileConfig, cut_windows, plan_tiles, tile_config
from cytopipe.tiles.cut import QUEUE_PER_WORKER, STRETCH_PX, map_in_order, stretches
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

    assert not [thread for thread in threading.enumerate() if thread.name.startswith("encode")]


@given(st.lists(st.integers(0, 60_000), min_size=1, unique=True).map(sorted), st.integers(1, 20_000))
def test_stretches_hold_every_window_once_without_gaps_and_not_too_long(xs, tile_px):
    groups = list(stretches(xs, tile_px))

    assert [x for group in groups for x in group] == xs
    for group in groups:
        assert len(group) == 1 or group[-1] + tile_px - group[0] <= STRETCH_PX
        assert all(b - a <= tile_px for a, b in pairwise(group))


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
        ({"codec": "webp"}, "tile.codec: Input should be 'jpeg' or 'png'"),
    ],
)
def test_a_wrong_setting_is_refused_with_what_was_expected(given_values, message):
    with pytest.raises(UserError, match=message):
        tile_config(given_values)


def test_what_is_not_given_keeps_its_default():
    assert tile_config({"tile_px": None, "codec": "png"}) == TileConfig(codec="png")
