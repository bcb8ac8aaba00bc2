"""Laws of the streaming writer: neither batches nor the order among equals show in a byte, and ids are those of one
batch.
"""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import Polygon, box

from cytopipe.core.classes import class_named
from cytopipe.core.objects import Objects
from cytopipe.formats.results import ResultsWriter, read_results
from cytopipe.formats.results import writer as writer_module

CLASSES = [class_named("nucleus"), class_named("HSIL")]
FILES = ("objects.parquet", "objects.geojson", "objects.csv", "objects.coco.json")

GRID_PX = 1 / 64  # two corners nearer than half of it have one id


@st.composite
def tables(draw):
    """Up to 14 small objects by y0: equal ones, ones that only the id's grid makes equal, tall and low ones."""
    n = draw(st.integers(0, 14))
    rows = []
    for _ in range(n):
        x, y = draw(st.integers(0, 2)), draw(st.integers(0, 4))
        w, h = draw(st.sampled_from([(1, 1), (2, 1), (1, 30)]))
        noise = draw(st.sampled_from([0, 0, GRID_PX / 8, -GRID_PX / 8]))
        low = box(x, y + noise, x + w, y + h)
        rows.append((Polygon(low.exterior.coords[::-1]) if draw(st.booleans()) else low, draw(st.integers(0, 1))))
    outlined = [draw(st.booleans()) for _ in rows]
    boxes = np.array([shape.bounds for shape, _ in rows], dtype=np.float64).reshape(-1, 4)
    geometry = np.empty(n, dtype=object)
    geometry[:] = [shape if keep else None for (shape, _), keep in zip(rows, outlined, strict=True)]
    score = np.array([draw(st.integers(0, 2)) / 2 for _ in rows], dtype=np.float32)
    order = np.argsort(boxes[:, 1], kind="stable")
    return Objects(
        boxes,
        np.array([k for _, k in rows], dtype=np.int32),
        score,
        np.stack([score, 1 - score], axis=1),
        geometry,
        np.zeros(n, np.uint8),
        np.zeros(n, np.int32),
    ).take(order)


@given(objects=tables(), cuts=st.lists(st.integers(0, 14), max_size=6), rows=st.integers(1, 5), data=st.data())
@settings(max_examples=60, deadline=None)  # files are written: how long that takes is the disk's business
def test_batches_of_any_size_give_the_bytes_and_the_ids_of_one_batch(objects, cuts, rows, data):
    n = len(objects)
    edges = [0, *sorted(min(cut, n) for cut in cuts), n]
    shuffled = np.array(data.draw(st.permutations(range(n))), dtype=np.intp)
    among_equals = objects.take(shuffled[np.argsort(objects.xyxy[shuffled, 1], kind="stable")])

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(writer_module, "ROWS", rows):
        one, other = Path(folder) / "one", Path(folder) / "other"
        with ResultsWriter(one, "S", CLASSES, None, (0, 0), {"parquet", "geojson", "csv", "coco"}, (50, 50)) as out:
            out.add(objects)
        with ResultsWriter(other, "S", CLASSES, None, (0, 0), {"parquet", "geojson", "csv", "coco"}, (50, 50)) as out:
            for start, stop in pairwise(edges):
                out.add(among_equals.take(np.arange(start, stop)))

        assert len(set(read_results(one).object_ids)) == n
        for name in FILES:
            assert (one / name).read_bytes() == (other / name).read_bytes()


@given(objects=tables(), rows=st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_ids_do_not_depend_on_how_many_rows_are_written_at_a_time(objects, rows):
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for k, size in enumerate((rows, 1000)):
            with mock.patch.object(writer_module, "ROWS", size):
                with ResultsWriter(Path(folder) / str(k), "S", CLASSES, None, write={"parquet"}) as out:
                    out.add(objects)
                found.append(read_results(Path(folder) / str(k)).object_ids)

    assert found[0] == found[1]
