"""The tile store: what was written is read, whole slides or nothing, and the same bytes after any break."""

from __future__ import annotations

import errno
import json
import pickle
import shutil
from itertools import permutations

import geopandas
import numpy as np
import pytest
from shapely import box

from cytopipe.core.errors import RunError, UserError
from cytopipe.formats.annotations import Problem
from cytopipe.tiles import BlurredTile, LostTile, SlideRow, TileStore, open_writer
from tests.stores import (
    SLIDES,
    TILE_PX,
    break_off,
    bytes_of,
    object_rows,
    picture,
    slide_row,
    store_info,
    tile_row,
    write,
)

INFO = store_info()


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


@pytest.mark.parametrize("codec", ["jpeg", "png", "zarr"])
@pytest.mark.parametrize("broken_at", [0, 1, 4, 8])
def test_a_run_that_breaks_anywhere_ends_with_the_bytes_of_an_unbroken_one(broken_at, codec, tmp_path):
    write(tmp_path / "unbroken", codec=codec)

    with pytest.raises(KeyboardInterrupt):
        break_off(tmp_path / "broken", broken_at, codec)
    write(tmp_path / "broken", codec=codec)

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


def test_blurred_and_copied_tiles_are_counted(tmp_path):
    with open_writer(tmp_path / "store", INFO, {}) as writer:
        tiles = [tile_row("A", 0, copied=True), BlurredTile(32, 0, 0.1), tile_row("A", 64, z=2)]
        row = writer.add_slide(slide_row("A"), tiles, object_rows(), {})
        writer.finish()

    store = TileStore(tmp_path / "store")
    assert (row.tiles_kept, row.tiles_blurred, row.tiles_copied, row.pieces_kept) == (2, 1, 1, 1)
    assert store.column("z").to_pylist() == [None, 2]
    assert store.column("objects").to_pylist() == [1, 0]


def test_a_slide_of_which_no_tile_is_sharp_enough_is_absent(tmp_path):
    with (
        open_writer(tmp_path / "store", INFO, {}) as writer,
        pytest.raises(RunError, match="none of 1 tiles is as sharp as asked for"),
    ):
        writer.add_slide(slide_row("A"), [BlurredTile(0, 0, 0.1)], [], {})


def test_problems_of_annotations_are_listed_by_slide_until_they_are_gone(tmp_path):
    twisted = Problem("7", 'crosses "itself", twice', "mended")
    with open_writer(tmp_path / "store", INFO, {}) as writer:
        writer.add_slide(
            slide_row("B"), [tile_row("B", 0)], [], {}, [twisted, Problem("feature-3", "empty", "refused")]
        )
        writer.add_slide(slide_row("A,1"), [tile_row("A,1", 0)], [], {}, [twisted])
        writer.finish()
        listed = (tmp_path / "store/problems.csv").read_text()
        for slide_id in ("B", "A,1"):
            writer.add_slide(slide_row(slide_id), [tile_row(slide_id, 0)], [], {"annotations": "mended by hand"})
        writer.finish()

    assert listed == (
        "slide_id,object_id,what,done\n"
        '"A,1",7,"crosses ""itself"", twice",mended\n'
        'B,7,"crosses ""itself"", twice",mended\n'
        "B,feature-3,empty,refused\n"
    )
    assert not (tmp_path / "store/problems.csv").exists()


@pytest.mark.parametrize("codec", ["jpeg", "png", "zarr"])
def test_a_disk_that_fails_behind_the_cutting_is_said_and_leaves_nothing(codec, tmp_path):
    def tiles():
        for i in range(100):
            if i == 1:  # what a disk that is gone looks like to who writes to it
                (partial,) = (tmp_path / "store").glob("images*/.A.partial")
                partial.rename(tmp_path / "gone")
            yield tile_row("A", TILE_PX * i, TILE_PX * i, codec=codec)

    with open_writer(tmp_path / "store", store_info(codec), {}) as writer:
        with pytest.raises(RunError, match=r"\.A\.partial.* could not be written \(No such file or directory\)"):
            writer.add_slide(slide_row("A"), tiles(), [], {})

        assert not writer.is_done("A", {})
    assert list((tmp_path / "store").iterdir()) == []


def test_a_store_goes_to_workers_and_is_read_there(tmp_path):
    write(tmp_path / "store")

    store = pickle.loads(pickle.dumps(TileStore(tmp_path / "store")))

    assert np.array_equal(store.read_image(4), picture("S-10", TILE_PX))


def test_rows_of_a_slide_that_an_older_version_kept_elsewhere_are_cut_again(tmp_path):
    write(tmp_path / "store", ("A",))
    shutil.rmtree(tmp_path / "store/.parts")

    with open_writer(tmp_path / "store", INFO, {"tile_px": TILE_PX}) as writer:
        is_done = writer.is_done("A", {"fingerprint": "A"})

    assert not is_done


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
        (lambda info: {**info, "schema_version": 99}, "has schema version 99, this cytopipe reads 1 and 2"),
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
