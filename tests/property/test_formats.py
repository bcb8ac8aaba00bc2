"""Laws of the file formats: round trips, order, and that nothing in a file can do more than be refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon

from cytopipe.core.classes import class_named
from cytopipe.core.errors import UserError
from cytopipe.core.objects import Objects
from cytopipe.formats.annotations import Annotation
from cytopipe.formats.qupath import QuPathWriter, read_qupath
from cytopipe.formats.results import GEOJSON_NAME, TABLE_NAME, read_results, write_results

ROUNDING_PX = 0.001  # what the GeoJSON writer promises; half of it on each axis, and float64 noise

CLASSES = [class_named("nucleus"), class_named("HSIL")]


@st.composite
def stars(draw):
    """Star-shaped outlines of 3 to 12 points anywhere on a large slide, some with a hole around the centre."""
    count = draw(st.integers(3, 12))
    radii = draw(st.lists(st.floats(2, 300), min_size=count, max_size=count))
    centre = np.array(draw(st.tuples(st.floats(400, 150_000), st.floats(400, 150_000))))
    turns = 2 * np.pi * np.arange(count) / count
    outer = centre + np.stack([np.cos(turns), np.sin(turns)], axis=1) * np.array(radii)[:, None]
    holes = [centre + (outer - centre) / 3] if draw(st.booleans()) else []
    return Polygon(outer, holes)


@given(
    outlines=st.lists(stars(), max_size=4),
    offset=st.tuples(st.integers(-5000, 5000), st.integers(-5000, 5000)),
    frame=st.sampled_from(["bounds", "slide"]),
)
@settings(deadline=None)  # files are written: how long that takes is the disk's business
def test_annotations_come_back_as_they_were_written_in_either_frame(outlines, offset, frame):
    written = [Annotation(f"id {i}", "ASC-H", outline, {"cell_id": str(i)}) for i, outline in enumerate(outlines)]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.geojson"
        with QuPathWriter(path, frame=frame, bounds_offset=offset) as out:
            for annotation in written:
                out.add(annotation)
        read, lines = read_qupath(path, frame=frame, bounds_offset=offset)

    assert lines == []
    assert [(a.object_id, a.class_name, a.attributes) for a in read] == [
        (a.object_id, a.class_name, a.attributes) for a in written
    ]
    for one, other in zip(written, read, strict=True):
        assert len(one.geometry.interiors) == len(other.geometry.interiors)
        assert shapely.hausdorff_distance(one.geometry, other.geometry) <= ROUNDING_PX


numbers = st.one_of(st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, 1, 1.5, 10]))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=12,
)
rings = st.lists(st.one_of(st.tuples(numbers, numbers), values), max_size=6)
geometries = st.one_of(
    values,
    st.fixed_dictionaries({"type": st.just("Polygon"), "coordinates": st.one_of(values, st.lists(rings, max_size=3))}),
    st.fixed_dictionaries(
        {"type": st.just("MultiPolygon"), "coordinates": st.lists(st.lists(rings, max_size=2), max_size=2)}
    ),
)
features = st.one_of(
    values,
    st.fixed_dictionaries(
        {},
        optional={
            "type": st.just("Feature"),
            "id": values,
            "geometry": geometries,
            "nucleusGeometry": geometries,
            "properties": st.one_of(
                values,
                st.fixed_dictionaries(
                    {},
                    optional={
                        "objectType": st.sampled_from(["cell", "annotation", 3]),
                        "classification": st.one_of(values, st.just({"name": "HSIL"}), st.just({"names": ["a", 1]})),
                        "metadata": values,
                    },
                ),
            ),
        },
    ),
)


@given(
    document=st.one_of(values, st.lists(features, max_size=4), st.fixed_dictionaries({"features": st.lists(features)}))
)
@settings(max_examples=150, deadline=None)
def test_whatever_json_is_read_gives_valid_outlines_or_a_refusal(document):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "hostile.geojson"
        path.write_text(json.dumps(document))
        try:
            read, lines = read_qupath(path)
        except UserError:
            return

    assert all(a.geometry.is_valid and a.geometry.area > 0 for a in read)
    assert len({a.object_id for a in read}) == len(read)
    assert all(" refused: " in line or " mended: " in line for line in lines)


grid_points = st.tuples(st.integers(0, 4), st.integers(0, 4))
grid_rings = st.lists(grid_points, min_size=3, max_size=8)


@given(
    drawn=st.lists(st.tuples(st.sampled_from(["a", "a-2"]), st.lists(grid_rings, min_size=1, max_size=3)), max_size=5)
)
@settings(max_examples=100, deadline=None)
def test_rings_that_cross_touch_or_repeat_become_valid_outlines_with_ids_of_their_own(drawn):
    features = [
        {"id": i, "geometry": {"type": "Polygon", "coordinates": r}, "properties": {"classification": {"name": "HSIL"}}}
        for i, r in drawn
    ]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rings.geojson"
        path.write_text(json.dumps(features))
        read, lines = read_qupath(path)

    assert all(a.geometry.is_valid and a.geometry.area > 0 for a in read)
    assert len({a.object_id for a in read}) == len(read)
    assert len(read) + sum(" refused: " in line for line in lines) == len(features)


@st.composite
def tables(draw):
    """Up to six objects, outlines and bare boxes, with repeats: equal rows are what an order may not depend on."""
    some = draw(
        st.lists(st.tuples(stars(), st.booleans(), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=4)
    )
    picked = draw(st.lists(st.sampled_from(some), max_size=6))
    geometry = np.empty(len(picked), dtype=object)
    geometry[:] = [outline if outlined else None for outline, outlined, _, _ in picked]
    quarter = np.array([k for *_, k in picked], dtype=np.float32) / 4
    return Objects(
        np.array([outline.bounds for outline, *_ in picked], dtype=np.float64).reshape(-1, 4),
        np.array([c for _, _, c, _ in picked], dtype=np.int32),
        quarter,
        np.stack([quarter, 1 - quarter], axis=1),
        geometry,
        np.zeros(len(picked), dtype=np.uint8),
        np.arange(len(picked), dtype=np.int32) % 2,
    )


@given(objects=tables(), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_the_bytes_of_a_results_folder_do_not_depend_on_the_order_of_its_objects(objects, seed):
    order = np.random.default_rng(seed).permutation(len(objects))

    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "one", Path(folder) / "other"
        write_results(one, "S", objects, CLASSES, mpp=(0.25, 0.25))
        write_results(other, "S", objects.take(order), CLASSES, mpp=(0.25, 0.25))

        for name in (TABLE_NAME, GEOJSON_NAME):
            assert (one / name).read_bytes() == (other / name).read_bytes()


@given(objects=tables())
@settings(max_examples=40, deadline=None)
def test_results_written_again_from_what_was_read_are_the_same_bytes(objects):
    with tempfile.TemporaryDirectory() as folder:
        one, other = Path(folder) / "one", Path(folder) / "other"
        write_results(one, "S", objects, CLASSES, mpp=None)
        read = read_results(one)
        write_results(other, "S", read.objects, read.classes, mpp=read.mpp)

        assert len(set(read.object_ids)) == len(objects)
        for name in (TABLE_NAME, GEOJSON_NAME):
            assert (one / name).read_bytes() == (other / name).read_bytes()
