"""Annotations written and read again are the same: COCO exactly, QuPath to 1/1000 px, and one after the other."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import MultiPolygon, Polygon, affinity

from cytopipe.formats.annotations import Annotation
from cytopipe.formats.coco import CocoImage, CocoWriter
from cytopipe.formats.qupath import QuPathWriter
from cytopipe.formats.read import read_annotations
from cytopipe.steps.convert import convert
from tests.strategies import cells

SIDE_PX = 200_000
ROUNDING_PX = 0.001  # what the GeoJSON writer promises; half of it on each axis, and float64 noise

words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8)
names = words.map(str.strip).filter(bool)
attributes = st.dictionaries(words.filter(lambda key: key not in ("object_id", "Score", "score")), words, max_size=3)


@st.composite
def outlines(draw):
    """Some cells, joined or apart, with some cut out of them, anywhere on a large slide: polygons and multipolygons."""
    added = draw(st.lists(cells(), min_size=1, max_size=4))
    removed = draw(st.lists(cells(), max_size=3))
    shape = shapely.difference(shapely.union_all(added), shapely.union_all(removed)) if removed else added[0]
    if len(added) > 1 and not removed:
        shape = shapely.union_all(added)
    parts = [part for part in shapely.get_parts(shape) if isinstance(part, Polygon) and part.area > 1]
    if not parts:
        parts = [added[0]]
    dx, dy = draw(st.tuples(st.floats(100, SIDE_PX - 500), st.floats(100, SIDE_PX - 500)))
    moved = [affinity.translate(part, dx, dy) for part in parts]
    whole = moved[0] if len(moved) == 1 else MultiPolygon(moved)
    return (
        whole
        if whole.is_valid and whole.bounds[0] >= 0 and whole.bounds[1] >= 0
        else shapely.box(dx, dy, dx + 9, dy + 7)
    )


@st.composite
def annotations(draw):
    """Up to five objects of any classes, ids and attributes; some stand for a group, some have a score."""
    ids = draw(st.lists(st.one_of(words, st.integers(1, 9).map(str), st.uuids().map(str)), max_size=5, unique=True))
    found = []
    for object_id in ids:
        facts = dict(draw(attributes))
        if draw(st.booleans()):
            facts["crowd"] = draw(st.sampled_from(["1", "true", "0"]))
        if draw(st.booleans()):
            facts["Score"] = draw(st.sampled_from(["0.25", "1", "0.123456"]))
        found.append(Annotation(object_id, draw(names), draw(outlines()), facts))
    return found


def write_qupath(path, written, **frame):
    with QuPathWriter(path, **frame) as out:
        for annotation in written:
            out.add(annotation)


def write_coco(path, written):
    classes = sorted({annotation.class_name for annotation in written})
    with CocoWriter(path, [CocoImage(1, "S-1.tif", SIDE_PX, SIDE_PX)], classes) as out:
        for annotation in written:
            out.add(1, annotation)


def facts_of(annotation):
    return annotation.object_id, annotation.class_name, dict(annotation.attributes), annotation.is_crowd


def is_same(one, other):
    return shapely.normalize(one.geometry) == shapely.normalize(other.geometry)


def is_close(one, other):
    """Equal but for rounding: as many parts and holes, and every vertex within 1/1000 px of the other's outline."""
    rings = [sorted(len(p.interiors) for p in shapely.get_parts(a.geometry)) for a in (one, other)]
    apart = shapely.hausdorff_distance(one.geometry.boundary, other.geometry.boundary)
    return rings[0] == rings[1] and apart <= ROUNDING_PX


@given(written=annotations())
@settings(deadline=None)  # files are written: how long that takes is the disk's business
def test_coco_gives_back_exactly_what_was_written(written):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.json"
        write_coco(path, written)
        read = read_annotations(path)

    assert read.problems == []
    assert list(map(facts_of, read.objects)) == list(map(facts_of, written))
    assert all(is_same(one, other) for one, other in zip(written, read.objects, strict=True))


@given(
    written=annotations(),
    offset=st.tuples(st.integers(-5000, 5000), st.integers(-5000, 5000)),
    frame=st.sampled_from(["bounds", "slide"]),
)
@settings(deadline=None)
def test_qupath_gives_back_what_was_written_to_a_thousandth_px_in_both_frames(written, offset, frame):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.geojson"
        write_qupath(path, written, frame=frame, bounds_offset=offset)
        read = read_annotations(path, frame=frame, bounds_offset=offset)

    assert read.problems == []
    assert list(map(facts_of, read.objects)) == list(map(facts_of, written))
    assert all(is_close(one, other) for one, other in zip(written, read.objects, strict=True))


@given(written=annotations(), offset=st.tuples(st.integers(0, 5000), st.integers(0, 5000)))
@settings(deadline=None, max_examples=50)
def test_from_qupath_to_coco_and_back_nothing_is_lost_and_the_second_time_no_byte_changes(written, offset):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_qupath(folder / "S-1.geojson", written, bounds_offset=offset)
        convert([folder / "S-1.geojson"], folder / "b.json", write="coco", bounds_offset=offset)
        convert([folder / "b.json"], folder / "c.geojson", write="geojson", bounds_offset=offset)
        convert([folder / "c.geojson"], folder / "d.json", write="coco", bounds_offset=offset)
        first, last = (read_annotations(folder / f, bounds_offset=offset) for f in ("S-1.geojson", "d.json"))
        once, twice = (json.loads((folder / f).read_text())["annotations"] for f in ("b.json", "d.json"))

    assert first.problems == last.problems == []
    assert list(map(facts_of, last.objects)) == list(map(facts_of, written))
    assert all(is_close(one, other) for one, other in zip(written, last.objects, strict=True))
    assert [a["id"] for a in once] == [a["id"] for a in twice]
    assert all(is_close(one, other) for one, other in zip(first.objects, last.objects, strict=True))


@given(written=annotations())
@settings(deadline=None, max_examples=25)
def test_the_same_annotations_give_the_same_bytes(written):
    with tempfile.TemporaryDirectory() as name:
        paths = [Path(name) / f"{k}.json" for k in range(2)]
        for path in paths:
            write_coco(path, written)

        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_holes_that_share_a_corner_with_the_outline_or_each_other_come_back_as_they_were():
    holes = [[(0, 0), (2, 1), (1, 2)], [(2, 1), (4, 1), (4, 3)], [(6, 6), (8, 6), (8, 8), (6, 8)]]
    outline = Polygon([(0, 0), (10, 0), (10, 10), (0, 10)], holes)
    written = [Annotation("a", "RBC", outline)]

    with tempfile.TemporaryDirectory() as folder:
        write_coco(Path(folder) / "a.json", written)
        read = read_annotations(Path(folder) / "a.json").objects

    assert outline.is_valid
    assert is_same(written[0], read[0])
    assert np.isclose(read[0].geometry.area, outline.area)
