"""The results folder: what stands in it, who else can read it, and how damage is told."""

from __future__ import annotations

import json
import math

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from shapely import Polygon, box

from cytopipe.core.classes import class_named
from cytopipe.core.errors import UserError
from cytopipe.core.objects import JOINED, TRUNCATED, Objects, no_objects
from cytopipe.formats.qupath import read_qupath
from cytopipe.formats.results import (
    GEOJSON_NAME,
    TABLE_NAME,
    find_results,
    read_results,
    read_run_json,
    suspicion,
    write_results,
    write_run_json,
)

CLASSES = [class_named(name) for name in ("nucleus", "normal", "HSIL", "LSIL")]


def three_objects():
    """A triangle, a box without outline, and a cell with a hole that was joined and truncated; not in table order."""
    hole = box(100, 100, 120, 120).difference(box(105, 105, 110, 110))
    geometry = np.empty(3, dtype=object)
    geometry[:] = [hole, None, Polygon([(10, 5), (14, 5), (10, 8)])]
    return Objects(
        np.array([[100, 100, 120, 120], [30, 50, 34, 60], [10, 5, 14, 8]], dtype=np.float64),
        np.array([2, 1, 0], dtype=np.int32),
        np.array([0.75, 0.5, 0.25], dtype=np.float32),
        np.array([[0, 0.125, 0.75, 0.0625], [0, 0.5, 0.25, 0], [0.25, 0, 0, 0]], dtype=np.float32),
        geometry,
        np.array([JOINED | TRUNCATED, 0, TRUNCATED], dtype=np.uint8),
        np.array([4, 2, -1], dtype=np.int32),
    )


def test_what_is_written_is_read_back(tmp_path):
    written = write_results(tmp_path / "S", "S", three_objects(), CLASSES, mpp=(0.5, 0.25), bounds_offset=(7, 9))

    read = read_results(tmp_path / "S")

    expected = three_objects().take(np.array([2, 1, 0]))
    for name in ("xyxy", "class_index", "score", "class_scores", "flags", "window"):
        np.testing.assert_array_equal(getattr(read.objects, name), getattr(expected, name))
        assert getattr(read.objects, name).dtype == getattr(expected, name).dtype
    assert [g is None for g in read.objects.geometry] == [False, True, False]
    assert read.objects.geometry[2].equals(expected.geometry[2])
    assert read.object_ids == written.object_ids
    assert (read.slide_id, list(read.classes), read.mpp) == ("S", CLASSES, (0.5, 0.25))
    assert read.info.bounds_offset == (7, 9)


def test_sizes_are_those_of_the_outline_in_pixels_and_micrometres(tmp_path):
    write_results(tmp_path, "S", three_objects(), CLASSES, mpp=(0.5, 0.25))

    table = pq.read_table(tmp_path / TABLE_NAME).to_pylist()

    assert [row["area_px"] for row in table] == [6, 40, 375]
    assert [row["area_um2"] for row in table] == [0.75, 5, 46.875]  # times 0.5 · 0.25
    assert table[0]["equivalent_diameter_um"] == pytest.approx(2 * math.sqrt(0.75 / math.pi))
    assert (table[1]["centroid_x"], table[1]["centroid_y"]) == (32, 55)
    assert [row["flags"] for row in table] == ["truncated", "", "joined truncated"]
    assert [row["class"] for row in table] == ["nucleus", "normal", "HSIL"]
    assert [row["score_LSIL"] for row in table] == [0, 0, 0.0625]
    assert [row["suspicion"] for row in table] == [0, 0.25, 0.8125]


def test_without_resolution_there_are_no_micrometres(tmp_path):
    write_results(tmp_path, "S", three_objects(), CLASSES, mpp=None)

    table = pq.read_table(tmp_path / TABLE_NAME)
    features = json.loads((tmp_path / GEOJSON_NAME).read_text())["features"]

    assert table["area_um2"].null_count == table["equivalent_diameter_um"].null_count == 3
    assert table["area_um2"].type == pa.float64()
    assert not any("µm" in key for f in features for key in f["properties"]["measurements"])
    assert read_results(tmp_path).mpp is None


def test_geopandas_reads_the_table_and_a_box_is_a_rectangle_there(tmp_path):
    write_results(tmp_path, "S", three_objects(), CLASSES, mpp=None)

    frame = geopandas.read_parquet(tmp_path / TABLE_NAME)

    assert frame.crs is None
    assert frame.geometry.is_valid.all()
    assert frame.geometry[1].equals(box(30, 50, 34, 60))
    assert not frame["outlined"][1]


def test_the_metadata_is_geoparquet_1_1(tmp_path):
    write_results(tmp_path, "S", three_objects(), CLASSES, mpp=None)

    geo = json.loads(pq.read_schema(tmp_path / TABLE_NAME).metadata[b"geo"])

    assert (geo["version"], geo["primary_column"]) == ("1.1.0", "geometry")
    assert geo["columns"]["geometry"] == {
        "encoding": "WKB",
        "geometry_types": ["Polygon"],
        "crs": None,
        "bbox": [10, 5, 120, 120],
    }


def test_the_geojson_holds_a_detection_an_object_under_the_same_id_in_frame_bounds(tmp_path):
    results = write_results(tmp_path, "S", three_objects(), CLASSES, mpp=(0.5, 0.5), bounds_offset=(5, 3))

    features = json.loads((tmp_path / GEOJSON_NAME).read_text())["features"]
    annotations, lines = read_qupath(tmp_path / GEOJSON_NAME, bounds_offset=(5, 3))

    assert [f["id"] for f in features] == list(results.object_ids)
    assert {f["properties"]["objectType"] for f in features} == {"detection"}
    assert features[0]["properties"]["measurements"]["Score"] == 0.25
    assert features[2]["properties"]["measurements"]["Area µm^2"] == 93.75
    assert min(x for x, _ in features[0]["geometry"]["coordinates"][0]) == 10 - 5
    assert [a.geometry.area for a in annotations] == [6, 40, 375]
    assert lines == []


def test_a_slide_without_objects_is_a_result(tmp_path):
    write_results(tmp_path, "S", no_objects(4), CLASSES, mpp=(0.5, 0.5))

    assert len(read_results(tmp_path).objects) == 0
    assert len(geopandas.read_parquet(tmp_path / TABLE_NAME)) == 0
    assert read_qupath(tmp_path / GEOJSON_NAME) == ([], [])


def test_equal_objects_have_ids_of_their_own_and_the_same_objects_the_same_ids(tmp_path):
    twice = three_objects().take(np.array([0, 0, 1]))

    first = write_results(tmp_path / "a", "S", twice, CLASSES, mpp=None)
    again = write_results(tmp_path / "b", "S", twice, CLASSES, mpp=(1, 1))
    other = write_results(tmp_path / "c", "T", twice, CLASSES, mpp=None)

    assert len(set(first.object_ids)) == 3
    assert first.object_ids == again.object_ids
    assert not set(first.object_ids) & set(other.object_ids)


def test_an_id_survives_the_last_bits_of_a_coordinate(tmp_path):
    objects = three_objects().take(np.array([2]))
    shifted = Objects(*(getattr(objects, name) for name in Objects.__slots__))
    shifted.geometry[:] = [Polygon([(10, 8.0000001), (10, 5), (14, 5)])]  # also from another first point

    first = write_results(tmp_path / "a", "S", three_objects().take(np.array([2])), CLASSES, mpp=None)
    second = write_results(tmp_path / "b", "S", shifted, CLASSES, mpp=None)

    assert first.object_ids == second.object_ids


def test_suspicion_is_the_sum_over_suspicious_classes_and_the_score_without_any():
    scores = np.array([[0.1, 0.2, 0.5, 0.25]], dtype=np.float32)

    assert suspicion(scores, CLASSES, np.array([0.9], np.float32)) == pytest.approx(0.75)
    assert suspicion(scores[:, :2], CLASSES[:2], np.array([0.9], np.float32)) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("field", "value"),
    [("score", np.nan), ("class_scores", np.inf), ("xyxy", np.inf), ("class_index", 4), ("class_index", -1)],
)
def test_numbers_that_mean_nothing_are_never_written(tmp_path, field, value):
    objects = three_objects()
    getattr(objects, field)[..., -1] = value

    with pytest.raises(ValueError, match="write_results"):
        write_results(tmp_path / "S", "S", objects, CLASSES, mpp=None)

    assert not (tmp_path / "S").exists()


def test_two_classes_of_one_name_are_never_written(tmp_path):
    with pytest.raises(ValueError, match="two classes of one name"):
        write_results(tmp_path, "S", three_objects(), [*CLASSES[:3], CLASSES[0]], mpp=None)


def test_results_are_found_in_their_folder_and_below_one(tmp_path):
    for name in ("b", "a"):
        write_results(tmp_path / name, name, three_objects(), CLASSES, mpp=None)

    assert find_results(tmp_path) == [tmp_path / "a", tmp_path / "b"]
    assert find_results(tmp_path / "b") == [tmp_path / "b"]
    with pytest.raises(UserError, match=r"holds no objects\.parquet"):
        find_results(tmp_path / "c")


def damaged(path, change):
    """Rewrites a table with one change to it."""
    pq.write_table(change(pq.read_table(path)), path)


def without(name):
    return lambda table: table.drop_columns([name])


def with_facts(**changes):
    def change(table):
        facts = json.loads(table.schema.metadata[b"cytopipe"]) | changes
        return table.replace_schema_metadata({"cytopipe": json.dumps(facts)})

    return change


def with_column(name, values):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda table: table.replace_schema_metadata(None), "was not written by cytopipe"),
        (with_facts(schema_version=99), "has schema version 99, this cytopipe reads up to 2; update cytopipe"),
        (with_facts(slide_id=""), "its facts are damaged"),
        (without("score_HSIL"), "has no column score_HSIL"),
        (with_column("class", ["cat", "dog", "HSIL"]), "class 'cat' is not in its list"),
        (with_column("flags", ["", "", "melted"]), "unknown flag 'melted'"),
        (with_column("score", [0.5, None, 0.5]), "column score has empty values"),
        (with_column("geometry", [b"\x01\x02", b"", b""]), "is damaged"),
        (with_column("x0", [1e9, 0.0, 0.0]), "is damaged"),
    ],
)
def test_a_damaged_table_is_told_by_its_damage(tmp_path, change, complaint):
    write_results(tmp_path, "S", three_objects(), CLASSES, mpp=None)
    damaged(tmp_path / TABLE_NAME, change)

    with pytest.raises(UserError, match=complaint):
        read_results(tmp_path)


def test_a_missing_and_a_foreign_file_are_told_apart(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_results(tmp_path)
    (tmp_path / TABLE_NAME).write_bytes(b"not parquet at all")
    with pytest.raises(UserError, match="is not a Parquet file"):
        read_results(tmp_path)


def test_run_facts_are_read_back_and_damage_is_told(tmp_path):
    facts = {"command": "infer", "counts": {"HSIL": 3}, "mpp": None}

    write_run_json(tmp_path / "S", facts)

    assert read_run_json(tmp_path / "S") == facts
    with pytest.raises(UserError, match="no such file"):
        read_run_json(tmp_path)
    (tmp_path / "run.json").write_text("[1")
    with pytest.raises(UserError, match="is not JSON"):
        read_run_json(tmp_path)
    (tmp_path / "run.json").write_text("[1]")
    with pytest.raises(UserError, match="is not a JSON object"):
        read_run_json(tmp_path)
