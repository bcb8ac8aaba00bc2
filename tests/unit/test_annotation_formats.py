"""Every annotation format: what is read of it, in which frame, and which objects are refused with which words.

The files are written here, after each format's own documents: no real Aperio or ASAP file was at hand.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from faster_coco_eval.core import mask as coco_mask
from shapely import Polygon, box

from cytopipe.core.errors import UserError
from cytopipe.formats.read import images_in, parse_class_map, read_annotations

SQUARE_XY = [0, 0, 10, 0, 10, 10, 0, 10]


def objects(path, **options):
    return {a.object_id: a for a in read_annotations(path, **options).objects}


def problems(path, **options):
    return [str(problem) for problem in read_annotations(path, **options).problems]


# COCO


def coco(*annotations, images=({"id": 1, "file_name": "a.png", "width": 100, "height": 80},), **more):
    entries = [{"id": k, "image_id": 1, "category_id": 7, **a} for k, a in enumerate(annotations, start=1)]
    categories = [{"id": 7, "name": "RBC"}, {"id": 8, "name": "WBC"}]
    return {"images": list(images), "categories": categories, "annotations": entries, **more}


@pytest.fixture
def write(tmp_path):
    """Writes a document or text to a file of the given name and returns its path."""

    def write_file(content, name="file.json"):
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write_file


def test_coco_gives_polygons_parts_boxes_and_crowds(write):
    path = write(
        coco(
            {"segmentation": [SQUARE_XY]},
            {"segmentation": [SQUARE_XY, [v + 20 for v in SQUARE_XY]], "score": 0.5},
            {"bbox": [5, 6, 7, 8], "segmentation": [], "iscrowd": 1, "attributes": {"stain": "pale", "n": 3}},
            {"bbox": [5, 6, 7, 8], "category_id": 8, "object_id": "mine", "occluded": True},
        )
    )

    found = objects(path)

    assert {k: (a.class_name, a.geometry.area) for k, a in found.items()} == {
        "1": ("RBC", 100),
        "2": ("RBC", 200),
        "3": ("RBC", 56),
        "mine": ("WBC", 56),
    }
    assert found["3"].geometry.bounds == (5, 6, 12, 14)
    assert found["3"].is_crowd
    assert found["3"].attributes == {"stain": "pale", "n": "3", "crowd": "1"}
    assert found["2"].attributes == {"Score": "0.5"}
    assert found["mine"].attributes == {"occluded": "True"}


@pytest.mark.parametrize("compressed", [True, False])
def test_run_lengths_of_coco_are_the_same_pixels_along_their_edges(write, compressed):
    pixels = np.zeros((80, 100), np.uint8)
    pixels[10:30, 20:60] = 1
    pixels[15:20, 30:40] = 0  # a hole
    pixels[0, 0] = pixels[79, 99] = 1  # and both corners
    runs = coco_mask.encode(np.asfortranarray(pixels))
    if compressed:
        counts = runs["counts"].decode()
    else:
        flat = np.concatenate([[0], pixels.ravel(order="F"), [1 - pixels[-1, -1]]])
        edges = np.flatnonzero(np.diff(flat))
        counts = np.diff(np.concatenate([[0], edges])).tolist()

    found = objects(write(coco({"segmentation": {"size": [80, 100], "counts": counts}, "iscrowd": 1})))["1"]

    y, x = np.mgrid[:80, :100] + 0.5
    assert found.geometry.area == pixels.sum()
    assert (shapely.contains_xy(found.geometry, x, y) == pixels).all()
    assert found.is_crowd


@pytest.mark.parametrize(
    ("annotation", "reason"),
    [
        ({"bbox": [5, 5, 0, 3]}, "encloses no area: its box is 0 x 3 px"),
        ({"bbox": [5, 5, 3]}, "has neither segmentation nor box"),
        ({"bbox": ["a", 5, 3, 1]}, "has neither segmentation nor box"),
        ({}, "has neither segmentation nor box"),
        ({"segmentation": [[1, 2, 3, 4]]}, "has 2 points"),
        ({"segmentation": [[1, 2, 3, 4, 5]]}, "is no list of x y pairs"),
        ({"segmentation": "none"}, "neither polygons nor run lengths"),
        ({"segmentation": {"size": [80, 100], "counts": [5, 5]}}, "do not fill 100 x 80 px"),
        ({"segmentation": {"size": [80, 100], "counts": [8000]}}, "encloses no area"),
        ({"segmentation": {"size": [80, 100], "counts": [10, -20, 8010]}}, "neither numbers nor text"),
        ({"segmentation": {"size": [80, 100], "counts": "\u00e9\u00e9"}}, "no text of COCO"),
        ({"segmentation": {"size": [80, 100], "counts": "oooo"}}, "end in the middle"),
        ({"segmentation": {"size": [2**40, 2**40], "counts": [5, 5]}}, "have no size"),
        ({"segmentation": {"size": [2**30, 2**30], "counts": [0, 2**60]}}, "span 1073741824 columns"),
        ({"segmentation": {"counts": [5, 5]}}, "have no size"),
        ({"bbox": [1, 1, 5, 5], "category_id": 99}, "its category 99 is not in the file"),
        ({"bbox": [500, 500, 5, 5]}, "lies outside of the slide of 100 x 80 px"),
    ],
)
def test_a_coco_annotation_that_is_no_object_is_refused_and_the_rest_is_read(write, annotation, reason):
    path = write(coco(annotation, {"bbox": [5, 6, 7, 8]}))

    assert list(objects(path)) == ["2"]
    assert problems(path)[0].startswith("1 refused: ")
    assert reason in problems(path)[0]


MANY = [
    {"id": 11, "file_name": "day1/S-1.tif"},
    {"id": 12, "file_name": "day2/S-2.tif"},
    {"id": 13, "file_name": "S.3.svs"},
]


@pytest.mark.parametrize(
    ("image", "expected"),
    [("S-1", "a"), ("day1/S-1.tif", "a"), ("S-1.tif", "a"), ("day2/S-2", "b"), ("S.3", "c"), ("12", "b")],
)
def test_an_image_of_many_is_chosen_by_name_stem_or_id(write, image, expected):
    path = write(
        coco(*({"image_id": 11 + k, "bbox": [0, 0, 1, 1], "object_id": "abc"[k]} for k in range(3)), images=MANY)
    )

    assert list(objects(path, image=image)) == [expected]
    assert images_in(path) == [entry["file_name"] for entry in MANY]


def test_a_file_of_many_images_wants_to_know_which_and_one_of_a_single_image_does_not(write):
    many, single = write(coco(images=MANY)), write(coco({"bbox": [0, 0, 1, 1]}), "single.json")

    with pytest.raises(UserError, match=r"holds 3 images: day1/S-1\.tif, .*; give --image NAME"):
        read_annotations(many)
    with pytest.raises(UserError, match=r"holds no image 'S-4'; did you mean 'S-\d'\?"):
        read_annotations(many, image="S-4")
    assert len(objects(single, image="another")) == 1
    with pytest.raises(UserError, match="holds no image 'another'"):
        read_annotations(single, image="another", only_named=True)


def test_two_images_of_one_name_are_not_guessed_between(write):
    images = [{"id": 1, "file_name": "a/S.png"}, {"id": 2, "file_name": "b/S.png"}]

    with pytest.raises(UserError, match=r"holds 2 images called 'S': a/S\.png, b/S\.png"):
        read_annotations(write(coco(images=images)), image="S")


def test_a_changed_coco_file_is_read_anew(write):
    first = objects(write(coco({"image_id": 11, "bbox": [0, 0, 1, 1]}, images=MANY)), image="S-1")
    second = objects(write(coco({"image_id": 11, "bbox": [0, 0, 200, 1]}, images=MANY)), image="S-1")

    assert [a.geometry.area for a in (first["1"], second["1"])] == [1, 200]


# Aperio


def aperio(*regions, name="HSIL", attributes=""):
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<Annotations MicronsPerPixel="0.25"><Annotation Id="3" Name="{name}" '
        f'Type="4">{attributes}<Regions><RegionAttributeHeaders/>{"".join(regions)}</Regions></Annotation></Annotations>'
    )


def region(number, points, *, kind=0, negative=0, text=""):
    vertices = "".join(f'<Vertex X="{x}" Y="{y}" Z="0"/>' for x, y in points)
    facts = f'Id="{number}" Type="{kind}" NegativeROA="{negative}" Text="{text}"'
    return f"<Region {facts}><Attributes/><Vertices>{vertices}</Vertices></Region>"


CORNERS = [(0, 0), (100, 0), (100, 60), (0, 60)]


def test_aperio_gives_polygons_rectangles_and_ellipses_by_layer(write):
    path = write(
        aperio(
            region(1, CORNERS, text="look"),
            region(2, [(10, 20), (110, 80)], kind=1),
            region(3, [(10, 20), (110, 80)], kind=2),
        ),
        "a.xml",
    )

    found = objects(path)

    assert {a.class_name for a in found.values()} == {"HSIL"}
    assert found["3-1"].geometry.equals(box(0, 0, 100, 60))
    assert found["3-1"].attributes == {"text": "look"}
    assert found["3-2"].geometry.equals(box(10, 20, 110, 80))
    assert found["3-3"].geometry.bounds == pytest.approx((10, 20, 110, 80))
    assert found["3-3"].geometry.area == pytest.approx(np.pi * 50 * 30, rel=2e-3)


def test_negative_regions_of_aperio_are_holes_of_what_they_meet(write):
    path = write(
        aperio(
            region(1, CORNERS),
            region(2, [(x + 500, y) for x, y in CORNERS]),
            region(3, [(10, 10), (20, 10), (20, 20), (10, 20)], negative=1),
            region(4, [(590, 10), (610, 10), (610, 20), (590, 20)], negative=1),
            region(5, [(900, 10), (910, 10), (910, 20), (900, 20)], negative=1),
            region(6, [(100, 10), (110, 10), (110, 20), (100, 20)], negative=1),  # touches region 1, takes nothing
        ),
        "a.xml",
    )

    found = objects(path)

    assert {k: a.geometry.area for k, a in found.items()} == {"3-1": 5900, "3-2": 5900}
    assert len(found["3-1"].geometry.interiors) == 1
    lines = problems(path)
    for hole in ("3-5", "3-6"):
        assert f"{hole} refused: is a negative region that meets no other of its layer" in lines


def test_the_class_of_an_aperio_layer_without_name_is_its_attribute_or_the_text_of_the_region(write):
    by_attribute = '<Attributes><Attribute Name="Description" Id="0" Value="LSIL"/></Attributes>'

    described = objects(write(aperio(region(1, CORNERS), name="", attributes=by_attribute), "a.xml"))
    by_text = write(aperio(region(1, CORNERS, text="SCC"), region(2, CORNERS), name=""), "b.xml")

    assert described["3-1"].class_name == "LSIL"
    assert objects(by_text)["3-1"].class_name == "SCC"
    assert problems(by_text) == ["3-2 refused: has no class"]


def test_arrows_rulers_and_numbers_that_are_none_are_refused(write):
    path = write(
        aperio(
            region(1, CORNERS, kind=3),
            region(2, [("x", 1), *CORNERS]),
            region(3, []),
            region(4, [(1, 1), (5, 1)], kind=1),
        ),
        "a.xml",
    )

    assert problems(path) == [
        "3-1 refused: is of type 3, only outlined objects are read",
        "3-2 refused: a coordinate is not a finite number",
        "3-3 refused: its geometry has no rings",
        "3-4 refused: has 2 points",
    ]


# ASAP


def asap(*annotations):
    return f"<ASAP_Annotations><Annotations>{''.join(annotations)}</Annotations><AnnotationGroups/></ASAP_Annotations>"


def asap_annotation(name, points, *, kind="Polygon", group="_0"):
    coordinates = "".join(f'<Coordinate Order="{k}" X="{x}" Y="{y}"/>' for k, (x, y) in points)
    facts = f'Name="{name}" Type="{kind}" PartOfGroup="{group}" Color="#F4FA58"'
    return f"<Annotation {facts}><Coordinates>{coordinates}</Coordinates></Annotation>"


def test_asap_gives_outlines_by_group_in_the_order_that_the_points_state(write):
    shuffled = [(2, (100, 60)), (0, (0, 0)), (3, (0, 60)), (1, (100, 0))]
    path = write(
        asap(
            asap_annotation("Annotation 0", shuffled),
            asap_annotation("Annotation 1", list(enumerate(CORNERS)), kind="Spline", group="Tumor"),
            asap_annotation("Annotation 2", list(enumerate(CORNERS)), kind="Rectangle", group="None"),
            asap_annotation("Annotation 3", [(0, (5, 5))], kind="Dot"),
            asap_annotation("Annotation 4", []),
        ),
        "a.xml",
    )

    found = objects(path, class_map={"_0": "tumour"})

    assert {k: (a.class_name, a.geometry.area) for k, a in found.items()} == {
        "Annotation 0": ("tumour", 6000),
        "Annotation 1": ("Tumor", 6000),
    }
    assert problems(path) == [
        "Annotation 2 refused: has no class",
        "Annotation 3 refused: is a Dot, only outlined objects are read",
        "Annotation 4 refused: its geometry has no rings",
    ]


# VOC


def voc(*boxes, size=(640, 480)):
    sides = ("xmin", "ymin", "xmax", "ymax")
    found = "".join(
        f"<object><name>RBC</name><difficult>1</difficult><bndbox>"
        f"{''.join(f'<{side}>{value}</{side}>' for side, value in zip(sides, values, strict=True))}</bndbox></object>"
        for values in boxes
    )
    width, height = size
    stated = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>B_1.jpg</filename>{stated}{found}<object><name>RBC</name></object></annotation>"


def test_voc_boxes_count_pixels_from_one_and_include_the_last(write):
    path = write(voc((1, 1, 640, 480), (10, 20, 11, 22.5)), "a.xml")

    found = read_annotations(path)

    assert [a.geometry.bounds for a in found.objects] == [(0, 0, 640, 480), (9, 19, 11, 22.5)]
    assert found.objects[0].attributes == {"difficult": "1"}
    assert (found.image, found.size) == ("B_1.jpg", (640, 480))


def test_voc_boxes_without_area_or_number_are_refused(write):
    path = write(voc((504, 337, 504, 337), (9, 9, 5, 20), ("", 1, 5, 5), (700, 500, 710, 510)), "a.xml")

    assert problems(path) == [
        "object-1 refused: encloses no area: its box is 504, 337 to 504, 337",
        "object-2 refused: encloses no area: its box is 9, 9 to 5, 20",
        "object-3 refused: a coordinate is not a finite number",
        "object-4 refused: lies outside of the slide of 640 x 480 px",
        "object-5 refused: has no box",
    ]


def test_a_voc_file_that_states_no_size_fits_every_slide(write):
    path = write(voc((1, 1, 20, 20), size=(0, 0)), "a.xml")

    assert read_annotations(path, slide_size=(50, 60)).objects[0].geometry.area == 400


# CSV


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("x0,y0,x1,y1,class\n1,2,11,22,RBC\n", (1, 2, 11, 22)),
        ("X;Y;Width;Height;Label\n1;2;10;20;RBC\n", (1, 2, 11, 22)),
        ("xmin\tymin\txmax\tymax\tname\n1.5\t2\t11\t22\tRBC\n", (1.5, 2, 11, 22)),
        ('\ufeffclass,geometry\nRBC,"POLYGON ((0 0, 4 0, 4 4, 0 0))"\n', (0, 0, 4, 4)),
        ('class,wkt\r\nRBC,"MULTIPOLYGON (((0 0, 4 0, 4 4, 0 0)), ((5 5, 6 5, 6 6, 5 5)))"\r\n\r\n', (0, 0, 6, 6)),
    ],
    ids=["corners", "sides", "tabs", "WKT", "WKT of parts"],
)
def test_csv_boxes_and_outlines_are_read(write, text, bounds):
    found = objects(write(text, "a.csv"))

    assert [(a.class_name, a.geometry.bounds) for a in found.values()] == [("RBC", bounds)]
    assert list(found) == ["row-1"]


def test_csv_columns_give_id_slide_and_attributes(write):
    text = "slide_id,object_id,class,x,y,w,h,reader\nS-1,a,RBC,0,0,5,5,anna\nS-2,b,RBC,0,0,6,6,\nS-1,c,,0,0,7,7,\n"
    path = write(text, "a.csv")

    found = objects(path, image="S-1", label_class="cell")

    assert {k: (a.class_name, a.geometry.area, dict(a.attributes)) for k, a in found.items()} == {
        "a": ("RBC", 25, {"reader": "anna"}),
        "c": ("cell", 49, {}),
    }
    assert images_in(path) == ["S-1", "S-2"]
    with pytest.raises(UserError, match="holds 2 images"):
        read_annotations(path)


def test_csv_rows_that_are_no_object_are_refused(write):
    rows = [
        "RBC,1,1,1,5,",
        "RBC,a,1,3,5,",
        "RBC,1,1,3,inf,",
        "RBC,,,,,POINT (1 2)",
        "RBC,,,,,POLYGON ((0 0",
        "RBC,1,1,3,5,",
    ]
    path = write("class,x0,y0,x1,y1,wkt\n" + "\n".join(rows), "a.csv")

    assert list(objects(path)) == ["row-6"]
    assert [p.split(" refused: ")[1].split(" (")[0] for p in problems(path)] == [
        "encloses no area: its box is 1, 1 to 1, 5",
        "a coordinate is not a finite number",
        "a coordinate is not a finite number",
        "is a POINT, only outlined objects are read",
        "its WKT cannot be read",
    ]


def test_an_outline_of_a_hundred_thousand_points_fits_into_a_csv_field(write):
    turns = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    outline = Polygon(np.stack([1e4 + 9e3 * np.cos(turns), 1e4 + 9e3 * np.sin(turns)], axis=1))

    found = objects(write(f'class,wkt\nRegion,"{outline.wkt}"\n', "a.csv"))

    assert found["row-1"].geometry.area == pytest.approx(outline.area)


# The dispatcher


@pytest.mark.parametrize(
    ("content", "name", "complaint"),
    [
        (b"", "a.csv", "is empty"),
        (b"", "a.xml", "is not well-formed XML"),
        (b"", "a.geojson", "is not JSON"),
        (b"\xff\xd8\xff\xe0", "a.png", "is a JPEG"),
        (b"PK\x03\x04", "a.geojson", "is a ZIP archive"),
        (b"\x1f\x8b\x08", "a.json", "is compressed with gzip"),
        (b"{}", "a.json", "neither GeoJSON features nor COCO"),
        (b"<html></html>", "a.xml", "XML of another kind \\(<html>\\)"),
        (b"<annotation>", "a.xml", "is not well-formed XML"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "a.xml", "is not well-formed XML|encoding"),
        (b"a,b,c\n1,2,3\n", "a.csv", "has no columns of a box \\(its columns: a, b, c\\)"),
        (b"x,y,w,h,x\n", "a.csv", "has two columns 'x'"),
        (b"x,y,w,h\n1,2,3,4,5\n", "a.csv", "line 2 has 5 fields, the header 4"),
        (b"\xfe\xed\xfa\xce\x00\x80", "a.bin", "is neither text nor an annotation file"),
        (b"not an image", "a.png", "is no PNG or TIFF inside"),
        (b'[{"image_id": 1, "category_id": 2, "bbox": [1, 2, 3, 4]}]', "a.json", "a bare list of COCO detections"),
        (b'{"images": [], "annotations": []}', "a.json", "holds no image"),
        (b'{"images": [], "annotations": [{"segments_info": []}]}', "a.json", "is COCO panoptic"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_annotation_file_is_refused_by_name(write, content, name, complaint):
    path = write(content, name)

    with pytest.raises(UserError, match=complaint) as caught:
        read_annotations(path, label_class="cell")

    assert str(caught.value).startswith(str(path))


def test_a_missing_file_or_a_folder_is_refused_by_name(tmp_path):
    for path in (tmp_path / "absent.json", tmp_path):
        with pytest.raises(UserError, match="no such file"):
            read_annotations(path)


def test_content_decides_and_not_the_suffix(write):
    misnamed = write(voc((1, 1, 20, 20)), "a.json")
    wide = write(aperio(region(1, CORNERS)).replace("UTF-8", "UTF-16").encode("utf-16"), "b.csv")

    assert list(objects(misnamed)) == ["object-1"]
    assert list(objects(wide)) == ["3-1"]


def test_only_a_geojson_is_in_frame_bounds(write):
    feature = {"type": "Polygon", "coordinates": [[[0, 0], [10, 0], [10, 10], [0, 0]]]}
    geojson = write([{"geometry": feature, "properties": {"classification": {"name": "RBC"}}}], "a.geojson")
    others = [
        write(coco({"bbox": [0, 0, 10, 10]})),
        write(voc((1, 1, 10, 10)), "a.xml"),
        write("x,y,w,h,class\n0,0,10,10,RBC\n", "a.csv"),
    ]

    in_bounds = [read_annotations(path, bounds_offset=(3, 4)).objects[0].geometry.bounds for path in (geojson, *others)]

    assert in_bounds == [(3, 4, 13, 14), *[(0, 0, 10, 10)] * 3]


def test_a_class_map_is_told_by_pairs():
    assert parse_class_map(["a=b", " c = d e ", "x=y=z"]) == {"a": "b", "c": "d e", "x": "y=z"}
    assert parse_class_map([]) == {}
    for pairs in (["a"], ["=b"], ["a="], ["a=b", "a=c"]):
        with pytest.raises(UserError, match=r"^--class-map: "):
            parse_class_map(pairs)
