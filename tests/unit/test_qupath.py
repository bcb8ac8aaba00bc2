"""QuPath's GeoJSON: what is read, what is left out with a reason, and what stands in the files we write."""

from __future__ import annotations

import json
import uuid

import pytest
from shapely import MultiPolygon, Polygon, box

from cytopipe.core.errors import UserError
from cytopipe.formats.annotations import Annotation
from cytopipe.formats.colours import OTHERS, class_colours, colour_of, hex_of
from cytopipe.formats.qupath import QuPathWriter, read_qupath

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]


def polygon(*rings):
    return {"type": "Polygon", "coordinates": list(rings)}


def feature(geometry, name="HSIL", **members):
    properties = {"objectType": "annotation", "classification": {"name": name, "color": [200, 0, 0]}}
    return {"type": "Feature", "id": "cell-1", "geometry": geometry, "properties": properties, **members}


@pytest.fixture
def read(tmp_path):
    """Writes a document to a file and reads it as annotations."""

    def read_document(document, **options):
        path = tmp_path / "annotations.geojson"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return read_qupath(path, **options)

    return read_document


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: {"type": "FeatureCollection", "features": [f]},
        lambda f: [f],
        lambda f: f,
        lambda f: "\ufeff" + json.dumps(f),
    ],
    ids=["collection", "bare list", "single feature", "with a byte order mark"],
)
def test_every_wrapping_of_features_is_read(read, wrap):
    annotations, lines = read(wrap(feature(polygon(SQUARE))))

    assert [(a.object_id, a.class_name, a.geometry.area) for a in annotations] == [("cell-1", "HSIL", 100)]
    assert lines == []


def test_annotations_in_frame_bounds_are_moved_into_frame_slide(read):
    document = [feature(polygon(SQUARE))]

    in_bounds, _ = read(document, bounds_offset=(100, 2000))
    in_slide, _ = read(document, frame="slide", bounds_offset=(100, 2000))

    assert in_bounds[0].geometry.bounds == (100, 2000, 110, 2010)
    assert in_slide[0].geometry.bounds == (0, 0, 10, 10)


def test_a_cell_of_qupath_gives_the_cell_and_its_nucleus_with_one_cell_id(read):
    cell = feature(polygon(SQUARE), nucleusGeometry=polygon([[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]]))
    cell["properties"] = {"objectType": "cell"}

    annotations, lines = read([cell])

    assert [(a.class_name, a.geometry.area, a.attributes["cell_id"]) for a in annotations] == [
        ("cell", 100, "cell-1"),
        ("nucleus", 4, "cell-1"),
    ]
    assert len({a.object_id for a in annotations}) == 2
    assert lines == []


def test_ids_of_old_exports_which_name_a_java_class_do_not_collide(read):
    documents = [feature(polygon(SQUARE), id="PathAnnotationObject") for _ in range(3)]

    annotations, lines = read(documents)

    assert len({a.object_id for a in annotations}) == 3
    assert lines == []


def test_an_id_used_twice_is_made_unique_and_said(read):
    annotations, lines = read([feature(polygon(SQUARE)), feature(polygon(SQUARE))])

    assert [a.object_id for a in annotations] == ["cell-1", "cell-1-2"]
    assert lines == ["cell-1-2 mended: id cell-1 is used twice, read as cell-1-2"]


def test_derived_classes_and_metadata_are_kept(read):
    named = feature(polygon(SQUARE))
    named["properties"] = {
        "classification": {"names": ["LSIL", "koilocyte"]},
        "metadata": {"cell_id": "7"},
        "patient": 12,
    }

    annotations, _ = read([named])

    assert annotations[0].class_name == "LSIL: koilocyte"
    assert annotations[0].attributes == {"cell_id": "7", "patient": "12"}


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (feature({"type": "Point", "coordinates": [1, 2]}), "is a Point, only outlined objects are read"),
        (feature({"type": "LineString", "coordinates": SQUARE}), "is a LineString, only outlined objects are read"),
        (feature(None), "has no geometry"),
        (feature(polygon(SQUARE), name=None), "has no class"),
        (feature(polygon(SQUARE), name="  "), "has no class"),
        (feature(polygon()), "its geometry has no rings"),
        (feature(polygon([])), "its coordinates are not pairs of numbers"),
        (feature(polygon([[0, 0], [1], [2, 2], [0, 0]])), "its coordinates are not pairs of numbers"),
        (
            feature(polygon([["0", "0"], ["1", "0"], ["1", "1"], ["0", "0"]])),
            "its coordinates are not pairs of numbers",
        ),
        (feature(polygon([[0, 0], [5, 5], [0, 0]])), "has 2 points"),
        (feature(polygon([[0, 0], [5, 5], [9, 9], [0, 0]])), "encloses no area"),
        (feature(polygon([[0, 0], [1, float("nan")], [1, 1], [0, 0]])), "a coordinate is not a finite number"),
        (feature(polygon([[0, 0], [1e300, 0], [1, 1], [0, 0]])), "a coordinate of 1e+300 px lies outside of any slide"),
        ({"type": "Feature", "id": "PathRootObject", "properties": {}}, "is of QuPath's type PathRootObject"),
        ("cell", "is not a GeoJSON feature"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason_and_the_rest_is_read(read, broken, reason):
    annotations, lines = read([broken, feature(polygon(SQUARE))])

    assert [a.geometry.area for a in annotations] == [100]
    assert len(lines) == 1
    place = broken["id"] if isinstance(broken, dict) else "feature-1"
    assert lines[0].startswith(f"{place} refused: {reason}")


def test_an_outline_that_crosses_itself_keeps_the_area_that_it_encloses(read):
    bow_tie = [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]

    annotations, lines = read([feature(polygon(bow_tie))])

    assert annotations[0].geometry.is_valid
    assert annotations[0].geometry.area == 50
    assert lines == ["cell-1 mended: self-intersection, the enclosed area is kept"]


def test_an_open_ring_is_closed_and_said(read):
    annotations, lines = read([feature(polygon(SQUARE[:-1]))])

    assert annotations[0].geometry.area == 100
    assert lines == ["cell-1 mended: a ring is not closed"]


def test_holes_and_a_third_coordinate_are_understood(read):
    hole = [[2, 2, 0], [4, 2, 0], [4, 4, 0], [2, 4, 0], [2, 2, 0]]

    annotations, _ = read([feature(polygon([[x, y, 5] for x, y in SQUARE], hole))])

    assert annotations[0].geometry.area == 96
    assert not annotations[0].geometry.has_z


def test_a_geometry_collection_gives_its_polygons(read):
    far = polygon([[50, 0], [60, 0], [60, 10], [50, 10], [50, 0]])
    collection = {"type": "GeometryCollection", "geometries": [polygon(SQUARE), far]}

    annotations, _ = read([feature(collection)])

    assert isinstance(annotations[0].geometry, MultiPolygon)
    assert annotations[0].geometry.area == 200


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ("\udcff", "is not JSON"),
        ("{}", "no GeoJSON features"),
        ('{"type": "FeatureCollection", "features": 3}', "no GeoJSON features"),
        ("3", "no GeoJSON features"),
    ],
)
def test_a_file_that_is_no_geojson_is_refused_by_name(tmp_path, text, complaint):
    path = tmp_path / "broken.geojson"
    path.write_bytes(text.encode(errors="surrogateescape"))

    with pytest.raises(UserError, match=complaint) as caught:
        read_qupath(path)

    assert "broken.geojson" in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"absent\.geojson: no such file"):
        read_qupath(tmp_path / "absent.geojson")


def strict(path):
    """The document of a file, with bare NaN and Infinity refused as the standard does."""

    def refuse(word):
        raise AssertionError(f"{word} in {path.name}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_what_is_written_carries_what_qupath_reads(tmp_path):
    path = tmp_path / "out.geojson"
    name = "HSIL \u00e9"

    with QuPathWriter(path, bounds_offset=(100, 200)) as out:
        out.add(
            Annotation("cell-1", name, box(110, 220, 130, 240), {"cell_id": "1"}),
            object_type="detection",
            measurements={"Score": 0.75, "Area": float("nan"), "Ratio": float("inf")},
            colour=(1, 2, 3),
        )

    written = strict(path)["features"][0]
    assert str(uuid.UUID(written["id"])) == written["id"]
    assert written["properties"] == {
        "objectType": "detection",
        "classification": {"name": name, "color": [1, 2, 3]},
        "measurements": {"Score": 0.75},
        "metadata": {"cell_id": "1", "object_id": "cell-1"},
    }
    assert Polygon(written["geometry"]["coordinates"][0]).bounds == (10, 20, 30, 40)


def test_a_uuid_stays_the_id_of_its_object(tmp_path):
    path, own = tmp_path / "out.geojson", "0b7c1c6e-5a52-4f0e-8d10-6a7f2f4b3c11"

    with QuPathWriter(path) as out:
        out.add(Annotation(own, "HSIL", box(0, 0, 1, 1)))

    assert strict(path)["features"][0]["id"] == own
    assert read_qupath(path)[0][0].object_id == own


def test_a_file_without_features_is_a_collection_too(tmp_path):
    with QuPathWriter(tmp_path / "empty.geojson"):
        pass

    assert read_qupath(tmp_path / "empty.geojson") == ([], [])


def test_an_interrupted_writer_leaves_no_file(tmp_path):
    def interrupted():
        with QuPathWriter(tmp_path / "out.geojson") as out:
            out.add(Annotation("a", "HSIL", box(0, 0, 1, 1)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert list(tmp_path.iterdir()) == []


def test_a_coordinate_that_is_not_finite_is_never_written(tmp_path):
    broken = Polygon([(0, 0), (float("inf"), 0), (1, 1)])

    with pytest.raises(ValueError, match="not JSON compliant"), QuPathWriter(tmp_path / "out.geojson") as out:
        out.add(Annotation("a", "HSIL", broken))


def test_an_annotation_without_class_or_outline_cannot_be_made():
    with pytest.raises(ValueError, match="empty"):
        Annotation("a", "", box(0, 0, 1, 1))
    with pytest.raises(ValueError, match="expected Polygon"):
        Annotation("a", "HSIL", box(0, 0, 1, 1).boundary)


def test_classes_of_one_list_get_colours_of_their_own():
    names = ["nucleus", "normal", "ASC-US", "ASC-H", "LSIL", "HSIL", "SCC", "AGC", "RBC", "WBC", "Platelets", "x", "y"]

    colours = class_colours(names)

    assert len(set(colours.values())) == len(names)
    assert colours["HSIL"] == colour_of("hsil")
    assert colour_of("RBC") in OTHERS
    assert hex_of((0, 96, 176)) == "#0060b0"
