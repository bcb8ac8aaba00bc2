"""The tables of a store: read when asked for and no further, in row groups of one size, older versions too."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from cytopipe.core.errors import UserError
from cytopipe.tiles import TileStore, tables
from tests.stores import picture, write

NEW_TILE_COLUMNS = ("z", "objects")
OLD_SLIDE_COLUMNS = (
    *("slide_id", "patient", "split", "path", "stratum", "diagnosis", "width_px", "height_px", "mpp_x", "mpp_y"),
    *("mpp_source", "mpp_guessed", "reader", "background", "fingerprint", "annotations_sha256", "classes"),
    *("foreground_fraction", "tiles_kept", "tiles_kept_for_objects", "tiles_glass", "tiles_unreadable"),
    *("objects_annotated", "objects_unseen", "pieces_kept", "pieces_dropped", "error"),
)


def as_version_1(folder: Path) -> None:
    """Make a finished store what the first version wrote: columns, a row group a slide, no new fields."""
    tiles = pq.read_table(folder / "tiles.parquet").drop_columns(list(NEW_TILE_COLUMNS))
    with pq.ParquetWriter(folder / "tiles.parquet", tiles.schema, compression="zstd") as file:
        for slide_id in tiles["slide_id"].unique().to_pylist():
            file.write_table(tiles.filter(pa.compute.equal(tiles["slide_id"], slide_id)))
    slides = pq.read_table(folder / "slides.parquet").select(list(OLD_SLIDE_COLUMNS))
    pq.write_table(slides, folder / "slides.parquet", compression="zstd")
    document = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**document, "schema_version": 1}))


def test_a_store_of_version_1_is_read_like_one_of_today(tmp_path):
    write(tmp_path / "store")
    new = TileStore(tmp_path / "store")
    expected = (new.tiles, new.objects, new.slides, [new.objects_of(i) for i in range(len(new))])
    as_version_1(tmp_path / "store")

    old = TileStore(tmp_path / "store")

    assert old.info.schema_version == 1
    assert old.tiles.drop_columns("objects").equals(expected[0].drop_columns("objects"))
    assert old.objects.equals(expected[1])
    assert old.slides.equals(expected[2])
    found = [old.objects_of(i) for i in range(len(old))]
    assert [[o.object_id for o in tile] for tile in found] == [[o.object_id for o in tile] for tile in expected[3]]
    assert np.array_equal(old.read_image(4), picture("S-10", 32))


def test_a_store_of_today_without_todays_columns_is_refused(tmp_path):
    write(tmp_path / "store")
    as_version_1(tmp_path / "store")
    path = tmp_path / "store/store.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 2}))

    with pytest.raises(UserError, match=r"tiles\.parquet: lacks the column 'z'"):
        TileStore(tmp_path / "store")


@pytest.mark.parametrize("name", ["tiles", "objects", "slides"])
def test_opening_a_store_reads_no_rows_and_damage_among_them_is_named_when_they_are_read(name, tmp_path):
    write(tmp_path / "store")
    path = tmp_path / f"store/{name}.parquet"
    data = bytearray(path.read_bytes())
    footer = int.from_bytes(data[-8:-4], "little") + 8
    data[4:-footer] = random.Random(0).randbytes(len(data) - 4 - footer)
    path.write_bytes(data)

    store = TileStore(tmp_path / "store")

    assert len(store) == 9
    with pytest.raises(UserError, match=rf"{name}\.parquet: is missing or damaged"):
        getattr(store, name)


def test_a_row_group_holds_rows_of_many_slides(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "GROUP_ROWS", 4)

    write(tmp_path / "store")

    file = pq.ParquetFile(tmp_path / "store/tiles.parquet")
    assert [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)] == [4, 4, 1]
    assert TileStore(tmp_path / "store").column("tile_id").to_pylist() == [
        f"{slide_id}/0/{x}" for slide_id in ("S-1", "S-10", "S-2") for x in (0, 32, 64)
    ]


@pytest.mark.parametrize("rows_a_group", [1, 2, 3, 4, 100])
@pytest.mark.parametrize("kept", [1, 3])
def test_a_large_table_of_objects_is_read_by_groups_and_gives_the_same_objects(
    rows_a_group, kept, tmp_path, monkeypatch
):
    monkeypatch.setattr(tables, "GROUP_OBJECTS", rows_a_group)
    monkeypatch.setattr(tables, "KEPT_GROUPS", kept)
    write(tmp_path / "store")
    whole = TileStore(tmp_path / "store")
    expected = [[(o.object_id, shapely.to_wkt(o.geometry)) for o in whole.objects_of(i)] for i in range(len(whole))]
    monkeypatch.setattr(tables, "WHOLE_BYTES", 0)

    store = TileStore(tmp_path / "store")

    order = [4, 0, 8, 4, 7, 3, 1, 2, 5, 6]
    found = {i: [(o.object_id, shapely.to_wkt(o.geometry)) for o in store.objects_of(i)] for i in order}
    assert [found[i] for i in range(len(store))] == expected


def test_tables_that_do_not_belong_together_are_refused(tmp_path):
    write(tmp_path / "store")
    write(tmp_path / "other", ("S-1",))
    (tmp_path / "store/objects.parquet").write_bytes((tmp_path / "other/objects.parquet").read_bytes())

    with pytest.raises(UserError, match=r"objects\.parquet: has 3 rows, and the tiles count 9 objects"):
        TileStore(tmp_path / "store").objects_of(0)


def test_a_folder_named_like_a_column_does_not_become_one(tmp_path):
    write(tmp_path / "split=val/store")

    assert set(TileStore(tmp_path / "split=val/store").column("split").to_pylist()) == {"train"}


def test_repeated_words_are_stored_once(tmp_path):
    write(tmp_path / "store")

    group = pq.ParquetFile(tmp_path / "store/tiles.parquet").metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {name for name, column in columns.items() if column.has_dictionary_page} == {
        *("slide_id", "patient", "split", "origin", "model")
    }
