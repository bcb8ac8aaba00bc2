"""Whatever stands in an annotation file: what is read is valid, and everything else is a refusal in one line."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cytopipe.core.errors import UserError
from cytopipe.formats.read import images_in, read_annotations

LABELS = np.kron(np.array([[1, 0, 2], [1, 3, 2], [0, 3, 0]], np.uint16), np.ones((8, 8), np.uint16))

VERTICES = '<Vertex X="1" Y="1"/><Vertex X="50" Y="1"/><Vertex X="30" Y="40"/>'
POINTS = '<Coordinate Order="0" X="1" Y="1"/><Coordinate Order="1" X="50" Y="1"/><Coordinate Order="2" X="3" Y="40"/>'
BOX = "<bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"


def png():
    buffer = io.BytesIO()
    Image.fromarray(LABELS).save(buffer, "PNG")
    return buffer.getvalue()


def tiff():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, LABELS, tile=(16, 16), compression="zlib")
    return buffer.getvalue()


RING = [[1, 1], [50, 1], [30, 40], [1, 1]]
FEATURE = {"geometry": {"type": "Polygon", "coordinates": [RING]}, "properties": {"classification": {"name": "A"}}}
OF_IMAGE = {"image_id": 1, "category_id": 1}
COCO = {
    "images": [{"id": 1, "file_name": "S-1.png", "width": 100, "height": 90}],
    "categories": [{"id": 1, "name": "A"}],
    "annotations": [
        {**OF_IMAGE, "id": 1, "segmentation": [[1, 1, 50, 1, 30, 40]], "score": 0.5},
        {**OF_IMAGE, "id": 2, "segmentation": {"size": [90, 100], "counts": [95, 10, 8895]}},
        {**OF_IMAGE, "id": 3, "bbox": [1, 2, 30, 40], "iscrowd": 1},
    ],
}
REGIONS = "".join(
    f'<Region Id="{k}" {facts}><Vertices>{VERTICES}</Vertices></Region>'
    for k, facts in enumerate(('Type="0"', 'Type="2"', 'NegativeROA="1"'))
)
ASAP = f'<Annotation Name="a" Type="Polygon" PartOfGroup="A"><Coordinates>{POINTS}</Coordinates></Annotation>'
VOC = f"<size><width>90</width><height>80</height></size><object><name>A</name>{BOX}</object>"
GOOD = {
    "geojson": json.dumps([{"id": "a", **FEATURE}]),
    "coco.json": json.dumps(COCO),
    "aperio.xml": f'<Annotations><Annotation Name="A"><Regions>{REGIONS}</Regions></Annotation></Annotations>',
    "asap.xml": f"<ASAP_Annotations><Annotations>{ASAP}</Annotations></ASAP_Annotations>",
    "voc.xml": f"<annotation>{VOC}</annotation>",
    "csv": 'class,x0,y0,x1,y1,wkt\nA,1,2,30,40,\nA,,,,,"POLYGON ((1 1, 50 1, 30 40, 1 1))"\n',
    "png": png(),
    "tif": tiff(),
}


def read(content, name):
    """The file's objects, checked; None where it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"hostile.{name}"
        path.write_bytes(content)
        try:
            images_in(path)
            found = read_annotations(path, label_class="cell", slide_size=None)
        except UserError:
            return None
    assert all(a.geometry.is_valid and a.geometry.area > 0 for a in found.objects)
    assert len({a.object_id for a in found.objects}) == len(found.objects)
    return found


@pytest.mark.parametrize("name", GOOD)
def test_the_files_that_are_damaged_below_are_read_while_they_are_whole(name):
    content = GOOD[name]

    found = read(content if isinstance(content, bytes) else content.encode(), name)

    assert found is not None
    assert found.objects or found.problems


@given(data=st.data())
@settings(deadline=None, max_examples=400)
def test_damaged_bytes_are_read_or_refused_and_nothing_else(data):
    name = data.draw(st.sampled_from(sorted(GOOD)))
    content = GOOD[name]
    raw = bytearray(content if isinstance(content, bytes) else content.encode())
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(raw) - 1))
        action = data.draw(st.sampled_from(["flip", "cut", "insert"]))
        if action == "flip":
            raw[place] = data.draw(st.integers(0, 255))
        elif action == "cut":
            del raw[place : place + data.draw(st.integers(1, 20))]
        else:
            raw[place:place] = data.draw(
                st.sampled_from([b"9" * 12, b"-", b"e9", b"nan", b"\0", b"<", b"}", b'"', b"&x;"])
            )
        if not raw:
            break

    read(bytes(raw), name)


numbers = st.one_of(
    st.integers(-5, 120), st.just(10**400), st.just(-(10**400)), st.floats(), st.integers(-(2**70), 2**70)
)
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=4)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=3)),
    max_leaves=8,
)
counts = st.one_of(values, st.lists(st.integers(0, 60), max_size=5), st.text("0123:<o?P", max_size=8))
runs = st.fixed_dictionaries({"size": st.one_of(values, st.just([9, 10])), "counts": counts})
flat = st.lists(numbers, max_size=12)
coco_annotations = st.fixed_dictionaries(
    {"image_id": st.just(1), "category_id": st.one_of(st.just(1), values)},
    optional={
        "id": values,
        "bbox": st.one_of(values, st.lists(numbers, min_size=4, max_size=4)),
        "segmentation": st.one_of(values, st.lists(flat, max_size=3), runs),
        "score": values,
        "iscrowd": values,
        "attributes": values,
    },
)


@given(
    annotations=st.lists(st.one_of(values, coco_annotations), max_size=4),
    images=st.one_of(values, st.just([{"id": 1}])),
)
@settings(deadline=None, max_examples=200)
def test_whatever_coco_is_read_gives_valid_outlines_or_a_refusal(annotations, images):
    document = {"images": images, "categories": [{"id": 1, "name": "A"}], "annotations": annotations}

    read(json.dumps(document).encode(), "json")


@given(text=st.text(max_size=60), columns=st.sampled_from(["class,x0,y0,x1,y1", "class;wkt", "x,y,w,h,label,slide_id"]))
@settings(deadline=None, max_examples=150)
def test_whatever_table_is_read_gives_valid_outlines_or_a_refusal(text, columns):
    read(f"{columns}\n{text}".encode(), "csv")
