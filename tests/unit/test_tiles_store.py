"""The tile store: what was written is read, whole slides or nothing, and the same bytes after any break."""

from __future__ import annotations

import errno
import hashlib
import json
from itertools import permutations
from pathlib import Path

import geopandas
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from shapely import box

from cytopipe.core.errors import RunError, UserError
from cytopipe.tiles import LostTile, MadeBy, ObjectRow, SlideRow, StoreInfo, TileRow, TileStore, open_writer
from cytopipe.tiles.images import encode_image
from cytopipe.tiles.store import folder_name

TILE_PX = 32
INFO = StoreInfo(
    tile_px=TILE_PX,
    mpp=0.5,
    overlap_px=0,
    edge="shift",
    codec="png",
    quality=90,
    made_by=MadeBy(command="tile", version="0"),
)
SLIDES = ("S-2", "S-10", "S-1")


def picture(slide_id: str, x: int) -> np.ndarray:
    seed = int.from_bytes(hashlib.sha256(f"{slide_id}{x}".encode()).digest()[:4], "big")
    return np.random.default_rng(seed).integers(0, 256, (TILE_PX, TILE_PX, 3), dtype=np.uint8)


def tile_row(slide_id: str, x: int, **changes: object) -> TileRow:
    values = {
        "mpp": 0.5,
        "foreground": 0.25,
        "sharpness": 1.5,
        "glass": 0.75,
        "labelled": True,
        "origin": "grid",
        "image": encode_image(picture(slide_id, x), "png", 90),
    }
    return TileRow(x, 0, 2.0 * x, 0.0, 2.0 * (x + TILE_PX), 2.0 * TILE_PX, **{**values, **changes})


def slide_row(slide_id: str, **changes: object) -> SlideRow:
    return SlideRow(slide_id, f"patient of {slide_id}", "train", f"{slide_id}.svs", classes=("LSIL",), **changes)


def object_rows() -> list[ObjectRow]:
    return [
        ObjectRow("b", TILE_PX, 0, "LSIL", box(70, 5, 90, 20), False, False),
        ObjectRow("c", 0, 0, "LSIL", box(50, 5, 64, 20), True, False),
        ObjectRow("a", TILE_PX, 0, "nucleus", box(75, 8, 80, 12), False, True),
    ]


def write(folder: Path, slides: tuple[str, ...] = SLIDES, tiles: int = 3) -> None:
    with open_writer(folder, INFO, {"tile_px": TILE_PX}) as writer:
        for slide_id in slides:
            if not writer.is_done(slide_id, {"fingerprint": slide_id}):
                rows = (tile_row(slide_id, TILE_PX * i) for i in range(tiles))
                writer.add_slide(slide_row(slide_id), rows, object_rows(), {"fingerprint": slide_id})
        writer.finish()


def bytes_of(folder: Path) -> dict[str, bytes]:
    """All that a store consists of; the journal tells the order of the work, which may differ."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "run.jsonl"
    }


def test_what_was_written_is_read(tmp_path):
    write(tmp_path / "store")

    store = TileStore(tmp_path / "store")

    assert len(store) == 9
    assert store.tiles["slide_id"].to_pylist() == ["S-1"] * 3 + ["S-10"] * 3 + ["S-2"] * 3
    assert store.tiles["tile_id"].to_pylist()[:2] == ["S-1/0/0", "S-1/0/32"]
    assert store.tile_box(1) == (64.0, 0.0, 128.0, 64.0)
    assert np.array_equal(store.read_image(4), picture("S-10", TILE_PX))
    assert [(o.object_id, o.class_name, o.truncated, o.crowd) for o in store.objects_of(1)] == [
        ("a", "nucleus", False, True),
        ("b", "LSIL", False, False),
    ]
    assert store.objects_of(0)[0].geometry.equals(box(50, 5, 64, 20))
    assert store.objects_of(2) == []
    assert [(c.name, c.suspicious) for c in store.info.classes] == [("LSIL", True)]


def test_rows_are_found_by_split_and_by_being_labelled(tmp_path):
    with open_writer(tmp_path / "store", INFO, {}) as writer:
        writer.add_slide(slide_row("A"), [tile_row("A", 0), tile_row("A", 32, labelled=False)], [], {})
        writer.add_slide(SlideRow("B", "Q", "val", "B.svs"), [tile_row("B", 0)], [], {})
        writer.finish()

    store = TileStore(tmp_path / "store")

    assert store.rows().tolist() == [0, 1, 2]
    assert store.rows(split="train").tolist() == [0, 1]
    assert store.rows(split="train", labelled=True).tolist() == [0]
    assert store.rows(labelled=False).tolist() == [1]
    assert store.rows(split="test").tolist() == []


@pytest.mark.parametrize("order", list(permutations(SLIDES))[1:], ids=" ".join)
def test_the_order_of_the_slides_does_not_change_a_byte(order, tmp_path):
    write(tmp_path / "first")

    write(tmp_path / "second", order)

    assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")


@pytest.mark.parametrize("broken_at", [0, 1, 4, 8])
def test_a_run_that_breaks_anywhere_ends_with_the_bytes_of_an_unbroken_one(broken_at, tmp_path):
    write(tmp_path / "unbroken")
    budget = iter(range(broken_at))

    def interrupted(slide_id: str):
        for i in range(3):
            if next(budget, None) is None:
                raise KeyboardInterrupt
            yield tile_row(slide_id, TILE_PX * i)

    def break_off():
        with open_writer(tmp_path / "broken", INFO, {"tile_px": TILE_PX}) as writer:
            for slide_id in SLIDES:
                writer.add_slide(slide_row(slide_id), interrupted(slide_id), object_rows(), {"fingerprint": slide_id})

    with pytest.raises(KeyboardInterrupt):
        break_off()
    write(tmp_path / "broken")

    assert bytes_of(tmp_path / "broken") == bytes_of(tmp_path / "unbroken")


def test_new_slides_join_a_finished_store(tmp_path):
    write(tmp_path / "at once")
    write(tmp_path / "grown", SLIDES[:1])

    write(tmp_path / "grown")

    assert bytes_of(tmp_path / "grown") == bytes_of(tmp_path / "at once")


def test_a_slide_whose_facts_changed_is_cut_again_and_leaves_nothing_behind(tmp_path):
    write(tmp_path / "store", ("A",), tiles=3)

    with open_writer(tmp_path / "store", INFO, {"tile_px": TILE_PX}) as writer:
        was_done = writer.is_done("A", {"fingerprint": "other"})
        writer.add_slide(slide_row("A"), [tile_row("A", 0)], [], {"fingerprint": "other"})
        writer.finish()

    assert not was_done
    assert len(TileStore(tmp_path / "store")) == 1
    assert [path.name for path in (tmp_path / "store/images/A/0").iterdir()] == ["0.png"]


def test_a_failed_slide_has_a_row_and_no_tiles(tmp_path):
    with open_writer(tmp_path / "store", INFO, {}) as writer:
        writer.fail_slide(slide_row("A", error="cannot be read"))
        writer.add_slide(slide_row("B"), [tile_row("B", 0)], [], {})
        writer.finish()

    store = TileStore(tmp_path / "store")

    assert store.slides.select(["slide_id", "tiles_kept", "error"]).to_pylist() == [
        {"slide_id": "A", "tiles_kept": 0, "error": "cannot be read"},
        {"slide_id": "B", "tiles_kept": 1, "error": None},
    ]


def test_a_slide_that_was_finished_and_fails_now_gives_no_tiles(tmp_path):
    write(tmp_path / "store", ("A", "B"))

    with open_writer(tmp_path / "store", INFO, {"tile_px": TILE_PX}) as writer:
        writer.fail_slide(slide_row("A", error="is gone"))
        writer.finish()

    store = TileStore(tmp_path / "store")
    assert set(store.tiles["slide_id"].to_pylist()) == {"B"}
    assert store.slides["error"].to_pylist() == ["is gone", None]


def test_lost_tiles_are_counted_and_take_their_objects_with_them(tmp_path):
    with open_writer(tmp_path / "store", INFO, {}) as writer:
        tiles = [tile_row("A", 0), LostTile(TILE_PX, 0, "A.svs: level 0, x 64, y 0: damaged JPEG")]
        row = writer.add_slide(slide_row("A"), tiles, object_rows(), {})
        writer.finish()

    assert (row.tiles_kept, row.tiles_unreadable, row.pieces_kept) == (1, 1, 1)
    assert row.error == "1 of 2 tiles cannot be decoded, the first: A.svs: level 0, x 64, y 0: damaged JPEG"
    assert TileStore(tmp_path / "store").objects["object_id"].to_pylist() == ["c"]


def test_a_slide_without_any_readable_tile_is_absent(tmp_path):
    with open_writer(tmp_path / "store", INFO, {}) as writer:
        with pytest.raises(RunError, match="none of 1 tiles can be decoded: damaged"):
            writer.add_slide(slide_row("A"), [LostTile(0, 0, "damaged")], [], {})

        assert not writer.is_done("A", {})
        assert not any((tmp_path / "store/images").iterdir())


def test_a_slide_that_cannot_be_read_is_not_taken_for_a_full_disk(tmp_path):
    def vanishing():
        yield tile_row("A", 0)
        raise OSError(errno.EIO, "the share is gone")

    with (
        open_writer(tmp_path / "store", INFO, {}) as writer,
        pytest.raises(OSError, match="the share is gone"),
    ):
        writer.add_slide(slide_row("A"), vanishing(), [], {})


def test_a_run_that_finished_nothing_leaves_an_empty_folder(tmp_path):
    with open_writer(tmp_path / "store", INFO, {"foreground": True}) as writer:
        writer.keep_parts_of_patients({"P": "train"})

    assert list((tmp_path / "store").iterdir()) == []


def test_what_another_command_keeps_in_the_folder_keeps_the_run(tmp_path):
    with open_writer(tmp_path / "store", INFO, {"tile_px": 1}):
        (tmp_path / "store/candidates").mkdir()

    with pytest.raises(UserError, match="tile_px 1 -> 2"), open_writer(tmp_path / "store", INFO, {"tile_px": 2}):
        pass


def test_geopandas_reads_the_objects_as_polygons_without_a_place_on_earth(tmp_path):
    write(tmp_path / "store", ("A",))

    frame = geopandas.read_parquet(tmp_path / "store/objects.parquet")

    assert frame.crs is None
    assert frame.geometry.area.tolist() == [210.0, 20.0, 300.0]
    assert frame["class"].tolist() == ["LSIL", "nucleus", "LSIL"]


@example("..", ".")
@example("a/b", "a%2Fb")
@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_a_slide_id_names_one_folder_and_no_other_id_names_it_too(one, other):
    name = folder_name(one)

    assert Path(name).name == name
    assert not name.startswith(".")
    assert (folder_name(other) == name) == (other == one)


def test_a_folder_without_a_store_is_refused_with_what_makes_one(tmp_path):
    with pytest.raises(UserError, match=r"is no tile store: no store\.json in it; `cytopipe tile"):
        TileStore(tmp_path)


def test_an_unfinished_store_is_refused_as_such(tmp_path):
    with open_writer(tmp_path / "store", INFO, {}) as writer:
        writer.add_slide(slide_row("A"), [tile_row("A", 0)], [], {})

    with pytest.raises(UserError, match="is an unfinished tile store"):
        TileStore(tmp_path / "store")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: {**info, "schema_version": 99}, "has schema version 99, this cytopipe reads 1"),
        (lambda info: {**info, "tile_px": -1}, "tile_px: Input should be greater than 0"),
        (lambda info: {**info, "colour": 1}, "colour: Extra inputs are not permitted"),
    ],
)
def test_a_store_json_of_another_make_is_refused_by_key(change, message, tmp_path):
    write(tmp_path / "store", ("A",))
    path = tmp_path / "store/store.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))

    with pytest.raises(UserError, match=message):
        TileStore(tmp_path / "store")


def test_a_damaged_table_is_named(tmp_path):
    write(tmp_path / "store", ("A",))
    (tmp_path / "store/tiles.parquet").write_bytes(b"PAR1")

    with pytest.raises(UserError, match=r"tiles\.parquet: is missing or damaged"):
        TileStore(tmp_path / "store")


@pytest.mark.parametrize("data", [b"", b"\xff\xd8\xff", None])
def test_a_missing_or_damaged_image_is_named(data, tmp_path):
    write(tmp_path / "store", ("A",))
    path = tmp_path / "store/images/A/0/0.png"
    path.unlink() if data is None else path.write_bytes(data)

    with pytest.raises(RunError, match=r"0\.png: a tile image"):
        TileStore(tmp_path / "store").read_image(0)
