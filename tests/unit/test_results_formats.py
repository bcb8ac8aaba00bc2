"""The files beside the table: each is opened by a program or library of its field, and says what the table says."""

from __future__ import annotations

import gzip
import json
import math

import geopandas
import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import shapely
import zarr
from faster_coco_eval import COCO
from shapely import MultiPolygon, Polygon, box

from cytopipe.core.classes import class_named
from cytopipe.core.errors import UserError
from cytopipe.core.objects import TRUNCATED, Objects
from cytopipe.formats.qupath import read_qupath
from cytopipe.formats.rasterise import label_image
from cytopipe.formats.results import ResultsWriter, WriteOptions, iter_results, read_results
from cytopipe.formats.results import writer as writer_module

CLASSES = [class_named(name) for name in ("nucleus", "HSIL", 'a "b" µ')]
SIZE = (1300, 1100)


def blob(x, y, radius, points=24, wave=0.25):
    """A wavy outline, star-shaped."""
    turn = np.arange(points) / points * 2 * np.pi
    r = radius * (1 + wave * np.cos(5 * turn))
    return Polygon(np.stack([x + r * np.cos(turn), y + r * np.sin(turn)], axis=1))


def table(geometry, measures=None):
    """Objects of these outlines, by y0; the class goes round."""
    shapes = np.empty(len(geometry), dtype=object)
    shapes[:] = geometry
    boxes = shapely.bounds(shapes).reshape(-1, 4)
    order = np.lexsort((boxes[:, 0], boxes[:, 1]))
    n = len(order)
    score = (np.arange(n) % 7 / 7).astype(np.float32)
    more = () if measures is None else (measures,)
    return Objects(
        boxes[order],
        (np.arange(n) % 3).astype(np.int32),
        score,
        np.stack([score, score / 2, 1 - score], axis=1),
        shapes[order],
        np.where(np.arange(n) % 4 == 0, TRUNCATED, 0).astype(np.uint8),
        np.arange(n, dtype=np.int32),
        *more,
    )


@pytest.fixture(scope="module")
def cells():
    """300 outlines, overlapping and past the borders; some with a hole, of two parts, or with the clock."""
    rng = np.random.default_rng(5)
    found = []
    for k, (x, y) in enumerate(rng.uniform(-5, (SIZE[0] + 5, SIZE[1] + 5), (300, 2))):
        cell = blob(x, y, rng.uniform(3, 40))
        if k % 10 == 1:
            cell = cell.difference(box(x - 1, y - 1, x + 1.3, y + 1))
        if k % 10 == 2:
            cell = MultiPolygon([cell, blob(x + 120, y, 8)])
        found.append(cell.reverse() if k % 3 else cell)
    return table(found)


def written(folder, objects, *write, mpp=(0.25, 0.25), bounds_offset=(0, 0), **options):
    with ResultsWriter(
        folder, "S", CLASSES, mpp, bounds_offset, set(write), SIZE, options=WriteOptions(**options)
    ) as out:
        out.add(objects)
    return folder


def features_of(path):
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    document = json.loads(text, parse_constant=pytest.fail)
    assert document["type"] == "FeatureCollection"
    return document["features"]


# GeoJSON


def assert_valid_geojson(feature):
    """RFC 7946: members, closed rings of at least four positions, outlines against the clock and holes with it."""
    assert set(feature) == {"type", "id", "geometry", "properties"}
    assert feature["type"] == "Feature"
    geometry = feature["geometry"]
    assert geometry["type"] in ("Polygon", "MultiPolygon")
    polygons = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
    for rings in polygons:
        for k, ring in enumerate(rings):
            assert len(ring) >= 4
            assert ring[0] == ring[-1]
            assert all(len(p) == 2 and all(isinstance(v, (int, float)) for v in p) for p in ring)
            assert shapely.LinearRing(ring).is_ccw == (k == 0)


@pytest.mark.parametrize(("frame", "shift"), [("bounds", (400, 300)), ("slide", (0, 0))])
def test_the_geojson_is_valid_and_its_outlines_are_the_tables_to_a_thousandth(tmp_path, cells, frame, shift):
    written(tmp_path, cells, "parquet", "geojson", frame=frame, bounds_offset=(400, 300))

    features = features_of(tmp_path / "objects.geojson")
    frame_of_features = geopandas.read_file(tmp_path / "objects.geojson", engine="pyogrio")
    results = read_results(tmp_path)

    for feature in features:
        assert_valid_geojson(feature)
    assert [f["id"] for f in features] == list(results.object_ids)
    assert len(frame_of_features) == len(features)
    assert frame_of_features.geometry.is_valid.all()
    for feature, exact in zip(features, results.objects.geometry, strict=True):
        shape = shapely.geometry.shape(feature["geometry"])
        assert shape.geom_type == exact.geom_type
        moved = shapely.transform(exact, lambda points: points - np.array(shift))
        assert shapely.hausdorff_distance(shape, moved) <= 0.001
        assert shapely.get_num_coordinates(shape) == shapely.get_num_coordinates(moved)
        assert shape.symmetric_difference(moved).area <= 0.001 * moved.length


def test_a_feature_says_what_the_table_says_and_leaves_out_what_nobody_knows(tmp_path):
    measures = np.array([[0.5, np.nan], [np.nan, np.inf]], np.float32)
    geometry = [blob(100, 100, 20), blob(200, 300, 10)]
    written(tmp_path, table(geometry, measures), "parquet", "geojson")

    first, second = features_of(tmp_path / "objects.geojson")
    rows = pq.read_table(tmp_path / "objects.parquet").to_pylist()

    found = first["properties"]["measurements"]
    assert found["Area px^2"] == pytest.approx(rows[0]["area_px"], abs=0.0006)
    assert found["Eccentricity"] == pytest.approx(rows[0]["eccentricity"], abs=0.00006)
    assert found["Solidity"] == pytest.approx(rows[0]["solidity"], abs=0.00006)
    assert found['Score: a "b" µ'] == 1
    assert found["Mean optical density"] == rows[0]["mean_optical_density"] == 0.5
    assert "Nucleus cytoplasm ratio" not in {**found, **second["properties"]["measurements"]}
    assert "Mean optical density" not in second["properties"]["measurements"]
    assert rows[0]["nucleus_cytoplasm_ratio"] is rows[1]["mean_optical_density"] is None
    assert first["properties"]["metadata"] == {"flags": "truncated"}
    assert "metadata" not in second["properties"]
    assert second["properties"]["classification"]["name"] == "HSIL"


def test_an_outline_that_rounding_would_break_is_written_as_it_is(tmp_path):
    sliver = Polygon([(10, 10), (30, 10), (30, 10.0004), (20, 10.0002), (15, 10.00035), (10, 10.0004)])
    far = box(3e9, 50, 3e9 + 2.5, 60)  # more digits than any slide needs
    written(tmp_path, table([sliver, far]), "geojson")

    shapes = [shapely.geometry.shape(f["geometry"]) for f in features_of(tmp_path / "objects.geojson")]

    assert shapes[0].is_valid
    assert shapes[0].equals(sliver)
    assert shapes[1].equals(far)


def test_packed_and_split_files_are_whole_collections_below_their_size_with_equal_bytes_each_time(tmp_path, cells):
    written(tmp_path / "one", cells, "geojson")
    for name in ("a", "b"):
        written(tmp_path / name, cells, "geojson", geojson_gz=True, split_mb=0.05)

    whole = features_of(tmp_path / "one" / "objects.geojson")
    parts = sorted((tmp_path / "a").iterdir())

    assert len(parts) > 3
    assert [p.name for p in parts[:2]] == ["objects-0001.geojson.gz", "objects-0002.geojson.gz"]
    assert [f for part in parts for f in features_of(part)] == whole
    sizes = [len(gzip.decompress(part.read_bytes())) for part in parts]
    assert 0.04 < min(sizes[:-1]) / 1e6 <= max(sizes) / 1e6 <= 0.05
    assert [p.read_bytes() for p in parts] == [p.read_bytes() for p in sorted((tmp_path / "b").iterdir())]


def test_files_that_would_hold_the_same_objects_under_another_name_are_removed(tmp_path, cells):
    written(tmp_path, cells, "geojson", split_mb=0.05)
    written(tmp_path, cells, "geojson")

    assert [p.name for p in tmp_path.iterdir()] == ["objects.geojson"]
    assert len(read_qupath(tmp_path / "objects.geojson")[0]) == len(cells)


# Table and CSV


def test_geopandas_and_pyarrow_read_the_table_in_groups_of_rows(tmp_path, cells, monkeypatch):
    monkeypatch.setattr(writer_module, "ROWS", 64)
    written(tmp_path, cells, "parquet")

    frame = geopandas.read_parquet(tmp_path / "objects.parquet")
    file = pq.ParquetFile(tmp_path / "objects.parquet")

    assert file.metadata.num_row_groups == math.ceil(len(cells) / 64)
    assert set(frame.geometry.geom_type) == {"Polygon", "MultiPolygon"}
    assert json.loads(file.schema_arrow.metadata[b"geo"])["columns"]["geometry"]["bbox"] == list(frame.total_bounds)
    assert [len(group.objects) for group in iter_results(tmp_path)] == [64] * 4 + [44]


def test_a_folder_of_the_first_version_is_still_read(tmp_path, cells):
    written(tmp_path, cells, "parquet")
    path = tmp_path / "objects.parquet"
    old = pq.read_table(path)
    facts = json.loads(old.schema.metadata[b"cytopipe"])
    facts = {key: value for key, value in facts.items() if key != "size"} | {"schema_version": 1}
    new = ["eccentricity", "solidity", "mean_optical_density", "nucleus_cytoplasm_ratio"]
    pq.write_table(old.drop_columns(new).replace_schema_metadata({"cytopipe": json.dumps(facts)}), path)

    results = read_results(tmp_path)

    assert len(results.objects) == len(cells)
    assert np.isnan(results.objects.measures).all()
    assert results.info.size is None


def test_the_csv_holds_the_columns_of_the_table_but_the_geometry(tmp_path, cells):
    written(tmp_path, cells, "parquet", "csv", mpp=None)

    read = pyarrow.csv.read_csv(tmp_path / "objects.csv")
    rows = pq.read_table(tmp_path / "objects.parquet").drop_columns(["geometry"])

    assert read.column_names == rows.column_names
    for name in ("object_id", "class", "x0", "centroid_y", "solidity", "window", "outlined"):
        assert read[name].to_pylist() == rows[name].to_pylist()
    assert read["area_um2"].null_count == len(cells)


# COCO


def test_the_coco_loader_of_the_field_finds_the_pixels_of_the_label_image(tmp_path, cells):
    written(tmp_path, cells, "coco", "parquet")

    loaded = COCO(str(tmp_path / "objects.coco.json"))
    results = read_results(tmp_path)
    annotations = loaded.loadAnns(loaded.getAnnIds())

    assert (loaded.imgs[1]["width"], loaded.imgs[1]["height"]) == SIZE
    assert [a["object_id"] for a in annotations] == list(results.object_ids)
    assert isinstance(annotations[0]["segmentation"]["counts"], (str, bytes))
    for i, annotation in enumerate(annotations):
        expected = label_image(results.objects.geometry[i : i + 1], (0, 0, *SIZE))
        assert (loaded.annToMask(annotation) == expected).all()
        assert annotation["area"] == expected.sum()


def test_run_lengths_hold_at_the_borders_where_columns_meet_and_for_what_has_no_pixel(tmp_path):
    geometry = [box(0, 0, 3, SIZE[1]), box(5.6, 5.6, 5.9, 5.9), box(SIZE[0] - 2, 10, SIZE[0] + 5, SIZE[1] + 9)]
    written(tmp_path, table(geometry), "coco")

    loaded = COCO(str(tmp_path / "objects.coco.json"))
    sums = [int(loaded.annToMask(a).sum()) for a in loaded.loadAnns(loaded.getAnnIds())]

    assert sums == [3 * SIZE[1], 0, 2 * (SIZE[1] - 10)]


def test_a_slide_beyond_32_bits_of_pixels_has_polygons_in_coco(tmp_path):
    with ResultsWriter(tmp_path, "S", CLASSES, None, (0, 0), {"coco"}, (100_000, 100_000)) as out:
        out.add(table([blob(90_000, 90_000, 20)]))

    annotation = COCO(str(tmp_path / "objects.coco.json")).anns[1]

    assert shapely.Polygon(np.reshape(annotation["segmentation"][0], (-1, 2))).equals_exact(
        blob(90_000, 90_000, 20), 1e-9
    )


# OME-Zarr


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_the_label_images_hold_each_object_whole_in_one_layer(tmp_path, cells, version):
    written(tmp_path, cells, "zarr", "parquet", zarr_version=version)

    group = zarr.open_group(tmp_path / "labels.zarr", mode="r")
    facts = dict(group.attrs) if version == "0.4" else group.attrs["ome"]
    layers = [group[name] for name in facts["labels"]]
    results = read_results(tmp_path)

    assert group.metadata.zarr_format == (2 if version == "0.4" else 3)
    assert len(layers) >= 2  # some cells overlap
    finest = [layer["0"][:] for layer in layers]
    for i in range(len(cells)):
        expected = label_image(results.objects.geometry[i : i + 1], (0, 0, *SIZE)) == 1
        holding = [layer == i + 1 for layer in finest if (layer == i + 1).any()]
        assert len(holding) == int(expected.any())
        assert all((found == expected).all() for found in holding)
    ids = ["".join(f"{b:02x}" for b in row) for row in group["object_ids"][:]]
    assert ids == [i.replace("-", "") for i in results.object_ids]
    assert group["class_index"][:].tolist() == results.objects.class_index.tolist()


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_the_metadata_of_label_images_are_those_of_the_specification(tmp_path, cells, version):
    written(tmp_path, cells, "zarr", zarr_version=version, zarr_mpp=0.3, mpp=(0.25, 0.2))

    group = zarr.open_group(tmp_path / "labels.zarr", mode="r")
    layer = group["objects-1"]
    facts = dict(layer.attrs) if version == "0.4" else layer.attrs["ome"]
    (scales,) = facts["multiscales"]

    assert facts["image-label"] == ({"version": "0.4"} if version == "0.4" else {})
    assert (scales if version == "0.4" else facts)["version"] == version
    assert scales["axes"] == [{"name": name, "type": "space", "unit": "micrometer"} for name in "yx"]
    shapes = [layer[d["path"]].shape for d in scales["datasets"]]
    assert shapes[0] == (math.ceil(1100 * 0.2 / 0.3), math.ceil(1300 * 0.25 / 0.3))
    for level, dataset in enumerate(scales["datasets"]):
        (scale,) = dataset["coordinateTransformations"]
        assert scale == {"type": "scale", "scale": pytest.approx([0.3 * 2**level] * 2)}
        assert layer[dataset["path"]].dtype == np.uint32
    assert max(shapes[-1]) <= 512 < max(shapes[-2])
    for finer, coarser in zip(scales["datasets"], scales["datasets"][1:], strict=False):
        assert (layer[coarser["path"]][:] == layer[finer["path"]][:][::2, ::2]).all()


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_ome_zarr_py_reads_the_label_images(tmp_path, cells, version):
    reader = pytest.importorskip("ome_zarr.reader")
    from ome_zarr.io import parse_url

    written(tmp_path, cells, "zarr", zarr_version=version)
    nodes = list(reader.Reader(parse_url(str(tmp_path / "labels.zarr")))())

    images = [node for node in nodes if node.data]
    assert images[0].data[0].shape == SIZE[::-1]
    assert {int(v) for node in images for v in np.unique(np.asarray(node.data[0]))} <= set(range(len(cells) + 1))


def test_a_pile_deeper_than_the_layers_is_counted_and_the_rest_is_there(tmp_path, monkeypatch):
    from cytopipe.formats.results import labels

    monkeypatch.setattr(labels, "MAX_LAYERS", 3)
    written(tmp_path, table([box(10, 10, 20, 20)] * 5), "zarr")

    group = zarr.open_group(tmp_path / "labels.zarr", mode="r")

    assert group.attrs["ome"]["labels"] == ["objects-1", "objects-2", "objects-3"]
    assert group.attrs["cytopipe"]["left_out"] == 2


def test_label_images_finer_than_the_slide_or_without_its_resolution_are_refused_and_nothing_is_made(tmp_path, cells):
    with pytest.raises(UserError, match="finer than level 0"):
        written(tmp_path / "S", cells, "zarr", zarr_mpp=0.1)
    with pytest.raises(UserError, match="has no resolution"):
        written(tmp_path / "S", cells, "zarr", zarr_mpp=0.5, mpp=None)

    assert not (tmp_path / "S").exists()


# The writer


def test_a_block_that_ends_with_an_error_leaves_the_old_files_and_no_others(tmp_path, cells):
    everything = ("parquet", "geojson", "coco", "zarr", "csv")
    written(tmp_path, cells.take(np.arange(3)), *everything)
    before = sorted(path.name for path in tmp_path.iterdir())
    old = (tmp_path / "objects.parquet").read_bytes()

    def stop_half_way():
        with ResultsWriter(tmp_path, "S", CLASSES, None, (0, 0), set(everything), SIZE) as out:
            out.add(cells)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        stop_half_way()

    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert (tmp_path / "objects.parquet").read_bytes() == old


def test_objects_out_of_order_or_far_from_their_boxes_are_refused(tmp_path, cells):
    def add(*tables):
        with ResultsWriter(tmp_path, "S", CLASSES, None) as out:
            for one in tables:
                out.add(one)

    with pytest.raises(ValueError, match="start above earlier ones"):
        add(cells.take(np.arange(10, 20)), cells.take(np.arange(5)))
    cut = cells.take(np.arange(1))
    moved = Objects(cut.xyxy + 1000, *(getattr(cut, name) for name in Objects.__slots__[1:]))
    with pytest.raises(ValueError, match="does not lie in its box"):
        add(moved)

    assert list(tmp_path.iterdir()) == []
