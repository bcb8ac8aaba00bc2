"""`cytopipe convert`: what is written, what is counted and listed, and attacks in XML, at the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from faster_coco_eval import COCO
from PIL import Image
from typer.testing import CliRunner

from cytopipe.cli.main import app
from cytopipe.formats.read import read_annotations
from cytopipe.tiles import TileStore
from tests.conftest import shared_data


def run(*arguments, code=0):
    done = CliRunner().invoke(app, ["convert", *map(str, arguments)])
    assert done.exit_code == code, done.stderr
    return done


def refusal(*arguments):
    """The one line on stderr of a command that is refused with exit code 2."""
    lines = run(*arguments, "--quiet", code=2).stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


def result_of(*arguments):
    return json.loads(run(*arguments, "--json").stdout)


SQUARE = [[10, 10], [50, 10], [50, 50], [10, 50], [10, 10]]


def feature(name, ring, object_id):
    properties = {"objectType": "annotation", "classification": {"name": name}}
    geometry = {"type": "Polygon", "coordinates": [ring]}
    return {"type": "Feature", "id": object_id, "geometry": geometry, "properties": properties}


@pytest.fixture
def geojson(tmp_path):
    """A good object, one to mend, two to refuse, and one of a class to ignore."""
    path = tmp_path / "S-1.geojson"
    features = [
        feature("HSIL", SQUARE, "good"),
        feature("HSIL", [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]], "crossed"),
        feature("HSIL", [[0, 0], [10, 10], [0, 0]], "flat"),
        feature("HSIL", [], "empty"),
        feature("Ignore*", SQUARE, "region"),
    ]
    path.write_text(json.dumps(features))
    return path


def test_what_is_mended_refused_and_ignored_is_counted_and_listed(geojson, tmp_path):
    found = result_of(geojson, "--out", tmp_path / "a.json", "--ignore", "Ignore*", "--class-map", "HSIL=lesion")

    assert (found["result"]["objects"], found["result"]["classes"]) == (2, ["lesion"])
    assert [(p["object_id"], p["done"]) for p in found["problems"]] == [
        ("crossed", "mended"),
        ("flat", "refused"),
        ("empty", "refused"),
    ]
    image = found["result"]["images"][0]
    assert (image["objects"], image["mended"], image["refused"], image["ignored"]) == (2, 1, 2, {"Ignore*": 1})


def test_the_table_and_the_first_lines_of_the_list_are_shown(geojson, tmp_path):
    done = run(geojson, "--out", tmp_path / "a.json", "--ignore", "Ignore*")

    assert done.stdout.splitlines()[-1].endswith("a.json: 1 mended, 2 refused, 1 ignored")
    assert "S-1.geojson: crossed mended: self-intersection, the enclosed area is kept" in done.stderr
    assert "S-1.geojson: flat refused: has 2 points" in done.stderr


def test_the_frame_of_a_geojson_is_told_by_the_slide_or_by_the_flag(geojson, tmp_path):
    by_hand = tmp_path / "hand.json"
    run(geojson, "--out", by_hand, "--bounds-offset", "1000", "2000")
    back = tmp_path / "back.geojson"
    run(by_hand, "--out", back, "--write", "geojson", "--bounds-offset", "1000", "2000")
    in_slide = tmp_path / "slide.geojson"
    run(by_hand, "--out", in_slide, "--write", "geojson", "--frame", "slide")

    moved = {a.object_id: a.geometry.bounds for a in read_annotations(by_hand).objects}
    assert moved["good"] == (1010, 2010, 1050, 2050)
    assert read_annotations(back).objects[0].geometry.bounds == (10, 10, 50, 50)
    assert read_annotations(in_slide).objects[0].geometry.bounds == (1010, 2010, 1050, 2050)


def test_with_the_slide_objects_past_its_border_are_cut_off_or_refused(geojson, tmp_path):
    Image.new("RGB", (30, 40)).save(tmp_path / "slide.png")

    found = result_of(geojson, "--out", tmp_path / "a.json", "--slide", tmp_path / "slide.png")
    written = json.loads((tmp_path / "a.json").read_text())

    assert written["images"] == [{"id": 1, "file_name": "slide.png", "width": 30, "height": 40}]
    assert ("good", "mended") in [(p["object_id"], p["done"]) for p in found["problems"]]
    assert {a["object_id"]: a["bbox"] for a in written["annotations"]}["good"] == [10, 10, 20, 30]


def test_several_images_become_one_coco_file_or_a_geojson_each(tmp_path):
    for k in range(3):
        table = tmp_path / "in" / f"S-{k}.csv"
        table.parent.mkdir(exist_ok=True)
        table.write_text(f"class,x,y,w,h\nRBC,0,0,{k + 1},1\n")

    run(tmp_path / "in", "--out", tmp_path / "all.json")
    listed = result_of(tmp_path / "all.json", "--write", "geojson", "--out", tmp_path / "each")
    run(tmp_path / "all.json", "--write", "geojson", "--out", tmp_path / "one.geojson", "--image", "S-2")

    assert [image["image"] for image in listed["result"]["images"]] == ["S-0", "S-1", "S-2"]
    assert sorted(p.name for p in (tmp_path / "each").iterdir()) == [f"S-{k}.geojson" for k in range(3)]
    assert read_annotations(tmp_path / "one.geojson").objects[0].geometry.area == 3


def test_numbers_of_a_coco_file_stay_the_ids_of_its_annotations(tmp_path):
    annotations = [{"id": k, "image_id": 1, "category_id": 5, "bbox": [k, 0, 5, 5]} for k in (17, 4, 99)]
    document = {"images": [{"id": 1, "file_name": "a.png"}], "categories": [{"id": 5, "name": "c"}]}
    (tmp_path / "a.json").write_text(json.dumps({**document, "annotations": annotations}))

    run(tmp_path / "a.json", "--out", tmp_path / "b.json")

    written = json.loads((tmp_path / "b.json").read_text())["annotations"]
    assert [a["id"] for a in written] == [17, 4, 99]
    assert "object_id" not in written[0]


def test_what_is_written_is_read_by_the_loader_of_the_field_with_the_same_pixels(tmp_path):
    labels = np.zeros((60, 80), np.uint8)
    labels[5:40, 5:40] = 1
    labels[10:20, 10:20] = 0
    labels[50:55, 60:80] = 2
    Image.fromarray(labels).save(tmp_path / "S-1.png")

    run(tmp_path / "S-1.png", "--label-class", "nucleus", "--out", tmp_path / "a.json")
    loaded = COCO(str(tmp_path / "a.json"))

    assert [c["name"] for c in loaded.loadCats(loaded.getCatIds())] == ["nucleus"]
    for annotation in loaded.loadAnns(loaded.getAnnIds()):
        assert (loaded.annToMask(annotation) == (labels == annotation["id"])).all()


def test_a_tile_store_becomes_coco_with_its_images_beside_it(labelled_store, tmp_path):
    out = tmp_path / "coco" / "all.json"

    found = result_of(labelled_store, "--out", out)
    loaded, store = COCO(str(out)), TileStore(labelled_store)

    rows = store.rows(labelled=True)
    assert found["result"]["tiles"] == len(rows) == len(loaded.getImgIds()) > 0
    assert found["result"]["objects"] == len(loaded.getAnnIds()) == sum(len(store.objects_of(i)) for i in rows)
    for i, image in zip(rows, loaded.loadImgs(loaded.getImgIds()), strict=True):
        with Image.open(out.parent / image["file_name"]) as tile:
            assert tile.size == (image["width"], image["height"]) == (192, 192)
        x0, y0, x1, _ = store.tile_box(i)
        px = 192 / (x1 - x0)
        annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=[image["id"]]))
        for piece, annotation in zip(store.objects_of(i), annotations, strict=True):
            bounds = (np.array(piece.geometry.bounds) - [x0, y0, x0, y0]) * px
            x, y, w, h = annotation["bbox"]
            assert [x, y, x + w, y + h] == pytest.approx(bounds)
            assert annotation["area"] == pytest.approx(shapely.area(piece.geometry) * px**2)
            assert (
                annotation["attributes"].get("truncated") == ("1" if piece.truncated else None)
                if piece.truncated
                else True
            )
    read = read_annotations(out, image=loaded.imgs[loaded.getImgIds()[0]]["file_name"])
    assert read.problems == []


def test_one_part_of_a_store_is_written_on_request(labelled_store, tmp_path):
    found = result_of(labelled_store, "--out", tmp_path / "val.json", "--split", "val")

    images = json.loads((tmp_path / "val.json").read_text())["images"]
    assert {image["split"] for image in images} == {"val"}
    assert found["result"]["tiles"] == len(images)
    assert "did you mean 'val'?" in refusal(labelled_store, "--out", tmp_path / "x.json", "--split", "vla")


def test_arguments_that_do_not_fit_are_refused_before_anything_is_written(geojson, labelled_store, tmp_path):
    (tmp_path / "there.json").write_text("{}")
    (tmp_path / "none").mkdir()
    out, both = tmp_path / "out.json", [geojson, geojson]
    cases = {
        (geojson, "--out", tmp_path / "there.json"): "exists already; choose another --out, or give --replace",
        (tmp_path / "absent.json", "--out", out): "no such file",
        (tmp_path / "none", "--out", out): "holds no annotation file, and is no tile store",
        (*both, "--out", out): "are both of an image 'S-1'",
        (geojson, "--out", out, "--class-map", "HSIL"): "'HSIL' is not FROM=TO",
        (geojson, "--out", out, "--split", "val"): "belongs to a tile store",
        (labelled_store, "--out", out, "--write", "geojson"): "is a tile store",
        (labelled_store, "--out", out, "--label-class", "x"): "is a tile store",
    }

    for arguments, complaint in cases.items():
        assert complaint in refusal(*arguments)

    assert not out.exists()


# Attacks

HEADS = {"aperio": "Annotations", "asap": "ASAP_Annotations", "voc": "annotation"}
LOLS = "".join(f'<!ENTITY l{k} "{f"&l{k - 1};" * 10}">' for k in range(1, 10))
ATTACKS = {
    "entity bomb": f'<!DOCTYPE x [<!ENTITY l0 "lol">{LOLS}]>',
    "external entity": '<!DOCTYPE x [<!ENTITY l9 SYSTEM "file:///etc/passwd">]>',
    "parameter entity": '<!DOCTYPE x [<!ENTITY % p SYSTEM "http://localhost:1/x.dtd"> %p; <!ENTITY l9 "a">]>',
    "external DTD": '<!DOCTYPE x SYSTEM "http://localhost:1/x.dtd">',
    "quadratic bomb": f'<!DOCTYPE x [<!ENTITY l9 "{"a" * 50_000}">]>',
}  # fmt: skip


@pytest.mark.parametrize("root", HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("attack", ATTACKS)
def test_entity_bombs_and_external_entities_are_refused_in_one_line(tmp_path, root, attack):
    path = tmp_path / "a.xml"
    path.write_text(
        f'<?xml version="1.0"?>{ATTACKS[attack]}<{root}><object><name>{"&l9;" * 100}</name></object></{root}>'
    )

    line = refusal(path, "--out", tmp_path / "a.json")

    assert "a.xml: declares a document type or entities" in line
    assert "root:" not in line
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("root", HEADS.values(), ids=HEADS)
def test_entities_that_nobody_declared_and_endless_nesting_are_refused_in_one_line(tmp_path, root):
    (tmp_path / "a.xml").write_text(f"<{root}>&xxe;</{root}>")
    (tmp_path / "b.xml").write_text(f"<{root}>" + "<a>" * 100_000)

    assert "undefined entity" in refusal(tmp_path / "a.xml", "--out", tmp_path / "a.json")
    assert "nests deeper than 64 elements" in refusal(tmp_path / "b.xml", "--out", tmp_path / "a.json")


def test_xinclude_is_text_like_any_other(tmp_path):
    include = '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="file:///etc/passwd" parse="text"/>'
    (tmp_path / "a.xml").write_text(f"<annotation><filename>{include}</filename><object/></annotation>")

    found = result_of(tmp_path / "a.xml", "--out", tmp_path / "a.json")

    assert "root:" not in json.dumps(found)
    assert found["result"]["objects"] == 0


# Real data


def test_the_real_blood_smears_give_all_boxes_but_the_two_without_area(tmp_path):
    folder = shared_data("bccd") / "annotations"

    found = result_of(folder, "--out", tmp_path / "bccd.json")
    again = result_of(tmp_path / "bccd.json", "--out", tmp_path / "again.json")

    assert (len(found["result"]["images"]), found["result"]["objects"]) == (292, 3941)
    assert [(p["image"], p["done"]) for p in found["problems"]] == [
        ("BloodImage_00338.jpg", "refused"),
        ("BloodImage_00343.jpg", "refused"),
    ]
    assert again["problems"] == []
    assert (tmp_path / "bccd.json").read_bytes() == (tmp_path / "again.json").read_bytes()


def test_the_real_cells_in_silver_stain_keep_all_objects_and_every_vertex(tmp_path):
    source = shared_data("ccagt7") / "coco_detection.json"

    found = result_of(source, "--out", tmp_path / "cc.json")
    mapped = result_of(
        source,
        "--out",
        tmp_path / "m.json",
        "--class-map",
        "non-viable_nucleus=non_viable_nucleus",
        "--ignore",
        "Cluster",
    )
    original, written = (json.loads(path.read_text())["annotations"] for path in (source, tmp_path / "cc.json"))

    assert found["result"]["objects"] == 231
    assert found["problems"] == []
    by_id = {a["id"]: a["segmentation"][0] for a in written}
    assert all(by_id[a["id"]] == a["segmentation"][0][:-2] for a in original)  # the last point repeated the first
    assert "non_viable_nucleus" in mapped["result"]["classes"]
    clusters = sum(a["category_id"] == 2 for a in original)
    assert sum(image["ignored"].get("Cluster", 0) for image in mapped["result"]["images"]) == clusters > 0


def test_real_outlines_that_pass_the_border_are_cut_off_and_counted(tmp_path):
    total = refused = cut_off = 0
    for outlines in sorted((shared_data("monuseg_test") / "outlines").glob("*.json")):
        document = json.loads(outlines.read_text())
        path = tmp_path / f"{outlines.stem}.geojson"
        path.write_text(json.dumps([feature("nucleus", ring, f"n{k}") for k, ring in enumerate(document["outlines"])]))

        found = read_annotations(path, slide_size=(document["width"], document["height"]))

        total += len(found.objects)
        refused += found.refused
        past = {f"n{k}" for k, r in enumerate(document["outlines"]) if np.min(r) < 0 or np.max(r) > 1000}
        cut = {p.object_id for p in found.problems if "cut off" in p.what}
        assert cut <= past <= {p.object_id for p in found.problems}  # of some only a spike without area lay outside
        cut_off += len(cut)
        assert all(0 <= v <= 1000 for a in found.objects for v in a.geometry.bounds)

    assert total + refused == 5162
    assert cut_off > 0
