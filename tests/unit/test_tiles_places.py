"""Places in a store: no folder with more entries than promised, however many slides and tiles, in whatever order."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cytopipe.tiles import TileStore, open_writer, places, writer, zarr_images
from cytopipe.tiles.places import FLAT_SLIDES, MAX_ENTRIES, ROOM, TilePlaces, bucket_of, folder_name
from tests.stores import TILE_PX, bytes_of, picture, slide_row, store_info, tile_row

SLIDES = tuple(f"S-{number}" for number in range(5))


@pytest.fixture
def little_room(monkeypatch):
    """Six entries a folder, three slides without buckets."""
    monkeypatch.setattr(places, "ROOM", 3)
    monkeypatch.setattr(zarr_images, "SHARDS_PER_ARRAY", 5)
    monkeypatch.setattr(zarr_images, "SHARD_TILES", 1)
    monkeypatch.setattr(writer, "FLAT_SLIDES", 3)


def write(folder: Path, slide_ids: tuple[str, ...], slides: int | None, codec: str = "png", tiles: int = 2) -> None:
    with open_writer(folder, store_info(codec), {}, slides=slides) as store:
        for slide_id in slide_ids:
            if not store.is_done(slide_id, {}):
                store.overview_path(slide_id).write_bytes(b"a picture")
                rows = [tile_row(slide_id, TILE_PX * i, codec=codec) for i in range(tiles)]
                store.add_slide(slide_row(slide_id), rows, [], {})
        store.finish()


def most_entries(folder: Path) -> int:
    return max(sum(1 for _ in path.iterdir()) for path in (folder, *folder.rglob("*")) if path.is_dir())


@pytest.mark.parametrize("codec", ["jpeg", "png", "zarr"])
@pytest.mark.parametrize(
    "corners",
    [[(x, 0) for x in range(12)], [(0, y) for y in range(12)], [(x, y) for y in range(4) for x in range(4)]],
    ids=["one row", "one column", "a grid"],
)
def test_no_folder_of_a_slides_images_overflows_and_every_tile_is_found(corners, codec, tmp_path, little_room):
    with open_writer(tmp_path / "store", store_info(codec), {}) as store:
        rows = [tile_row("A", TILE_PX * x, TILE_PX * y, codec) for x, y in corners]
        store.add_slide(slide_row("A"), rows, [], {})
        store.finish()

    images = tmp_path / "store" / ("images.zarr" if codec == "zarr" else "images")
    assert most_entries(images) <= 6
    found = TileStore(tmp_path / "store")
    assert len(set(found.column("path").to_pylist())) == len(corners)
    if codec != "jpeg":
        assert all(np.array_equal(found.read_image(i), picture("A", TILE_PX * x)) for i, (x, _) in enumerate(corners))


def test_images_of_a_usual_slide_lie_at_y_and_x(tmp_path):
    write(tmp_path / "store", ("A",), 1)

    assert TileStore(tmp_path / "store").column("path").to_pylist() == ["images/A/0/0.png", "images/A/0/32.png"]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), unique=True, max_size=200), st.integers(1, 8))
def test_tiles_of_a_slide_have_places_of_their_own_in_folders_that_do_not_overflow(corners, room):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "ROOM", room)
        chosen = TilePlaces()
        paths = [chosen.place(x, y, ".png") for x, y in corners]

    assert len(set(paths)) == len(corners)
    entries: dict[Path, set[str]] = {}
    for path in map(Path, paths):
        for part in (path, *path.parents[:-1]):
            entries.setdefault(part.parent, set()).add(part.name)
    overflows = -(-len(corners) // room)
    assert max((len(names) for names in entries.values()), default=0) <= room + overflows


def test_a_slide_has_room_for_ten_million_tiles_in_one_row():
    assert ROOM + 10_000_000 // ROOM <= MAX_ENTRIES
    assert 2 * FLAT_SLIDES + 256 <= MAX_ENTRIES  # twice: a list on top of another; 256 buckets when it turns to them


@pytest.mark.parametrize("codec", ["png", "zarr"])
def test_slides_of_a_long_list_lie_in_buckets_with_their_overviews(codec, tmp_path, little_room):
    write(tmp_path / "store", SLIDES, len(SLIDES), codec)

    store = TileStore(tmp_path / "store")
    root = "images.zarr" if codec == "zarr" else "images"
    for i, slide_id in enumerate(SLIDES):
        assert store.column("path")[2 * i].as_py().startswith(f"{root}/{bucket_of(slide_id)}/{slide_id}/")
        assert store.overview_path(slide_id) == tmp_path / "store/overviews" / bucket_of(slide_id) / f"{slide_id}.jpg"
        assert np.array_equal(store.read_image(2 * i + 1), picture(slide_id, TILE_PX))


@pytest.mark.parametrize("order", list(permutations(SLIDES))[1::40], ids=" ".join)
def test_the_order_of_a_long_list_does_not_change_a_byte(order, tmp_path, little_room):
    write(tmp_path / "first", SLIDES, len(SLIDES))

    write(tmp_path / "second", order, len(SLIDES))

    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")


def test_a_short_list_lies_without_buckets(tmp_path, little_room):
    write(tmp_path / "store", SLIDES[:3], 3)

    store = TileStore(tmp_path / "store")
    assert {path.split("/")[1] for path in store.column("path").to_pylist()} == set(SLIDES[:3])
    assert store.overview_path("S-0") == tmp_path / "store/overviews/S-0.jpg"
    assert store.overview_path("S-4") is None


@pytest.mark.parametrize("slides", [5, None], ids=["announced", "not announced"])
def test_a_store_that_grows_long_keeps_what_it_had_and_goes_on_in_buckets(slides, tmp_path, little_room):
    write(tmp_path / "store", SLIDES[:3], 3)

    write(tmp_path / "store", (*SLIDES, "S-5"), slides)

    store = TileStore(tmp_path / "store")
    assert store.column("path")[0].as_py() == "images/S-0/0/0.png"
    assert store.column("path")[10].as_py() == f"images/{bucket_of('S-5')}/S-5/0/0.png"
    assert all(
        np.array_equal(store.read_image(2 * i), picture(slide_id, 0)) for i, slide_id in enumerate((*SLIDES, "S-5"))
    )


def test_a_slide_that_moves_into_a_bucket_leaves_nothing_behind(tmp_path, little_room):
    write(tmp_path / "store", SLIDES[:1], 1)

    with open_writer(tmp_path / "store", store_info(), {}, slides=5) as store:
        store.add_slide(slide_row("S-0"), [tile_row("S-0", 0)], [], {"fingerprint": "another"})
        store.finish()

    files = sorted(path.relative_to(tmp_path) for path in (tmp_path / "store/images").rglob("*.png"))
    assert files == [Path("store/images", bucket_of("S-0"), "S-0/0/0.png")]


@example("..", ".")
@example("+3f", "%2B3f")
@example("a/b", "a%2Fb")
@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_a_slide_id_names_one_folder_and_no_other_id_names_it_too(one, other):
    name = folder_name(one)

    assert Path(name).name == name
    assert not name.startswith((".", "+"))
    assert (folder_name(other) == name) == (other == one)


def test_a_slide_named_like_a_bucket_is_kept_apart_from_it(tmp_path, little_room):
    bucket = bucket_of("S-0")
    write(tmp_path / "store", (bucket,), 1)
    write(tmp_path / "store", ("S-0",), 5)

    with open_writer(tmp_path / "store", store_info(), {}, slides=1) as store:
        store.add_slide(slide_row(bucket), [tile_row(bucket, 0)], [], {"fingerprint": "another"})
        store.finish()

    images = TileStore(tmp_path / "store")
    assert np.array_equal(images.read_image(0), picture(bucket, 0))
    assert np.array_equal(images.read_image(2), picture("S-0", TILE_PX))
