"""`cytopipe tile --annotations`: every format, one file for many slides, classes mapped and ignored, problems."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from shapely import Point

from cytopipe.formats.annotations import Annotation
from cytopipe.formats.qupath import QuPathWriter
from cytopipe.tiles import TileStore
from tests.cli.test_tile import CELLS, HEIGHT, RADIUS_PX, WIDTH, tile, write_annotations, write_slide

CIRCLES = {name: Point(x, y).buffer(RADIUS_PX) for name, (x, y, _) in CELLS.items()}


def write_coco(path: Path, *images: str) -> Path:
    """The drawn slide's cells, on each of the images."""
    classes = sorted({class_name for *_, class_name in CELLS.values()})
    annotations = [
        {
            "id": len(CELLS) * i + k,
            "image_id": i,
            "category_id": classes.index(class_name),
            "segmentation": [np.array(CIRCLES[name].exterior.coords[:-1]).ravel().tolist()],
            "iscrowd": 0,
        }
        for i in range(len(images))
        for k, (name, (_, _, class_name)) in enumerate(CELLS.items())
    ]
    document = {
        "images": [{"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(images)],
        "categories": [{"id": k, "name": name} for k, name in enumerate(classes)],
        "annotations": annotations,
    }
    path.write_text(json.dumps(document))
    return path


def write_table(path: Path) -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("x0", "y0", "x1", "y1", "class"))
        rows.writerows((*CIRCLES[name].bounds, class_name) for name, (_, _, class_name) in CELLS.items())
    return path


def write_voc(path: Path) -> Path:
    def element(name: str, class_name: str) -> str:
        x0, y0, x1, y1 = map(round, CIRCLES[name].bounds)
        corners = {"xmin": x0 + 1, "ymin": y0 + 1, "xmax": x1, "ymax": y1}  # VOC counts px from 1, the last included
        box = "".join(f"<{side}>{value}</{side}>" for side, value in corners.items())
        return f"<object><name>{class_name}</name><bndbox>{box}</bndbox></object>"

    objects = "".join(element(name, class_name) for name, (_, _, class_name) in CELLS.items())
    path.write_text(f"<annotation><filename>S-1.png</filename>{objects}</annotation>")
    return path


def write_aperio(path: Path) -> Path:
    def region(number: int, name: str) -> str:
        points = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in CIRCLES[name].exterior.coords)
        return f'<Region Id="{number}" Type="0"><Vertices>{points}</Vertices></Region>'

    def layer(number: int, class_name: str) -> str:
        regions = "".join(region(i, name) for i, (name, (_, _, c)) in enumerate(CELLS.items(), 1) if c == class_name)
        return f'<Annotation Id="{number}" Name="{class_name}"><Regions>{regions}</Regions></Annotation>'

    layers = "".join(layer(i, name) for i, name in enumerate(sorted({c for *_, c in CELLS.values()}), 1))
    path.write_text(f'<Annotations MicronsPerPixel="0.5">{layers}</Annotations>')
    return path


def write_asap(path: Path) -> Path:
    def annotation(name: str, class_name: str) -> str:
        points = enumerate(CIRCLES[name].exterior.coords[:-1])
        corners = "".join(f'<Coordinate Order="{i}" X="{x}" Y="{y}"/>' for i, (x, y) in points)
        given = f'Name="{name}" Type="Polygon" PartOfGroup="{class_name}"'
        return f"<Annotation {given}><Coordinates>{corners}</Coordinates></Annotation>"

    outlines = "".join(annotation(name, class_name) for name, (_, _, class_name) in CELLS.items())
    groups = "".join(f'<Group Name="{name}"/>' for name in sorted({c for *_, c in CELLS.values()}))
    path.write_text(
        f"<ASAP_Annotations><Annotations>{outlines}</Annotations>"
        f"<AnnotationGroups>{groups}</AnnotationGroups></ASAP_Annotations>"
    )
    return path


def write_labels(path: Path) -> Path:
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    for number, (x, y, _) in enumerate(CELLS.values(), 1):
        cv2.circle(labels, (x, y), RADIUS_PX, number, -1)
    cv2.imwrite(str(path), labels)
    return path


FORMATS = {
    "geojson": (".geojson", write_annotations),
    "coco": (".json", lambda path: write_coco(path, "S-1.svs")),
    "aperio": (".xml", write_aperio),
    "asap": (".xml", write_asap),
    "voc": (".xml", write_voc),
    "csv": (".csv", write_table),
    "labels": (".png", write_labels),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("place", ["folder", "file"])
def test_annotations_of_every_format_are_found_by_the_slides_name_and_read(name, place, tmp_path):
    slide = write_slide(tmp_path / "slides/S-1.svs")
    suffix, write = FORMATS[name]
    (tmp_path / "truth").mkdir()
    truth = write(tmp_path / f"truth/S-1{suffix}")
    given = truth.parent if place == "folder" else truth
    label_class = ["--label-class", "nucleus"] if name == "labels" else []

    done = tile(slide, "--annotations", given, *label_class, "--out", tmp_path / "store", tile_px=900)

    assert done.exit_code == 0, done.stderr
    store = TileStore(tmp_path / "store")
    expected = ["nucleus"] * 4 if label_class else ["LSIL", "normal", "LSIL", "nucleus"]
    assert store.slides["objects_annotated"].to_pylist() == [4]
    assert sorted(set(store.objects["class"].to_pylist())) == sorted(set(expected))
    found = {o.object_id: o.geometry for i in range(len(store)) for o in store.objects_of(i) if not o.truncated}
    for circle in CIRCLES.values():
        # boxes are 4/pi of their circle, and a drawn disc is a px wider than its outline
        fitting = [g for g in found.values() if g.centroid.distance(circle.centroid) < 1]
        assert len(fitting) == 1
        assert fitting[0].area == pytest.approx(circle.area, rel=0.3)


def test_one_coco_file_serves_many_slides_and_those_it_does_not_name_are_not_annotated(tmp_path):
    for i in range(3):
        write_slide(tmp_path / f"slides/S-{i}.svs", seed=i)
    truth = write_coco(tmp_path / "truth.json", "S-0.svs", "elsewhere/S-2.svs", "S-9.svs")

    done = tile(tmp_path / "slides", "--annotations", truth, "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    slides = TileStore(tmp_path / "store").slides
    assert slides["objects_annotated"].to_pylist() == [4, 0, 4]
    assert [sha is None for sha in slides["annotations_sha256"].to_pylist()] == [False, True, False]
    labelled = TileStore(tmp_path / "store").tiles.group_by("slide_id").aggregate([("labelled", "any")]).to_pylist()
    assert {row["slide_id"]: row["labelled_any"] for row in labelled} == {"S-0": True, "S-1": False, "S-2": True}


@pytest.mark.parametrize("kind", ["geojson", "coco"])
def test_one_file_that_names_none_of_many_slides_is_refused(kind, tmp_path):
    for i in range(2):
        write_slide(tmp_path / f"slides/S-{i}.svs", seed=i)
    truth = tmp_path / f"truth.{kind}"
    write_annotations(truth) if kind == "geojson" else write_coco(truth, "other.svs")

    done = tile(tmp_path / "slides", "--annotations", truth, "--out", tmp_path / "store")

    assert done.exit_code == 2
    assert "is one file for 2 slides" in done.stderr
    assert not (tmp_path / "store").exists()


def test_two_files_that_may_be_a_slides_annotations_are_refused_and_both_named(tmp_path):
    slide = write_slide(tmp_path / "S-1.svs")
    write_annotations(tmp_path / "truth/S-1.geojson")
    write_voc(tmp_path / "truth/S-1.xml")

    done = tile(slide, "--annotations", tmp_path / "truth", "--out", tmp_path / "store")

    assert done.exit_code == 2
    assert "two files may be the annotations of 'S-1': S-1.geojson and S-1.xml; keep one of them" in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_slide_beside_its_annotations_is_not_taken_for_a_label_image(tmp_path):
    slide = write_slide(tmp_path / "S-1.tif")
    write_annotations(tmp_path / "S-1.geojson")

    done = tile(slide, "--annotations", tmp_path, "--label-class", "nucleus", "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    assert TileStore(tmp_path / "store").slides["objects_annotated"].to_pylist() == [4]


def test_a_picture_beside_a_slide_is_no_label_image_unless_a_label_class_says_so(tmp_path):
    slide = write_slide(tmp_path / "slides/S-1.svs")
    write_annotations(tmp_path / "truth/S-1.geojson")
    write_labels(tmp_path / "truth/S-1.png")

    without = tile(slide, "--annotations", tmp_path / "truth", "--out", tmp_path / "store")
    with_class = tile(
        slide, "--annotations", tmp_path / "truth", "--label-class", "nucleus", "--out", tmp_path / "other"
    )

    assert without.exit_code == 0, without.stderr
    assert with_class.exit_code == 2
    assert "S-1.geojson and S-1.png" in with_class.stderr


def test_classes_are_mapped_then_ignored_and_the_ignored_are_counted_and_said(tmp_path):
    slide, truth = write_slide(tmp_path / "S-1.svs"), write_annotations(tmp_path / "S-1.geojson")
    flags = ["--class-map", "LSIL=lesion", "--class-map", "normal=cell", "--ignore", "cell", "--ignore", "other"]

    done = tile(slide, "--annotations", truth, *flags, "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    store = TileStore(tmp_path / "store")
    assert set(store.objects["class"].to_pylist()) == {"lesion", "nucleus"}
    assert [c.name for c in store.info.classes] == ["lesion", "nucleus"]
    assert store.slides["objects_annotated"].to_pylist() == [3]
    assert store.slides["objects_ignored"].to_pylist() == [1]
    assert "S-1.geojson: 1 objects of class 'cell' are ignored" in done.stderr
    assert "ignored" in done.stdout.splitlines()[0]


def test_objects_that_are_mended_or_refused_are_counted_said_and_listed(tmp_path):
    slide, truth = write_slide(tmp_path / "S-1.svs"), tmp_path / "S-1.geojson"
    with QuPathWriter(truth) as writer:
        for i in range(14):
            writer.add(Annotation(f"outside-{i}", "LSIL", Point(5000 + i, 5000).buffer(10)))
        writer.add(Annotation("at-the-border", "LSIL", Point(5, 300).buffer(20)))
        writer.add(Annotation("inside", "LSIL", Point(300, 300).buffer(20)))

    done = tile(slide, "--annotations", truth, "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    store = TileStore(tmp_path / "store")
    assert store.slides["objects_refused"].to_pylist() == [14]
    assert store.slides["objects_mended"].to_pylist() == [1]
    assert store.slides["objects_annotated"].to_pylist() == [2]
    with (tmp_path / "store/problems.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["done"] for row in rows] == ["refused"] * 14 + ["mended"]
    assert {row["slide_id"] for row in rows} == {"S-1"}
    assert sum(line.startswith("S-1.geojson: outside-") for line in done.stderr.splitlines()) == 10
    assert "S-1.geojson: and 5 more objects mended or refused; problems.csv in the store lists all" in done.stderr
    assert f"annotated objects that were mended or refused: {tmp_path / 'store/problems.csv'}" in done.stdout


def test_min_visible_decides_how_much_of_an_object_a_tile_must_see(tmp_path):
    slide, truth = write_slide(tmp_path / "S-1.svs"), write_annotations(tmp_path / "S-1.geojson")

    pieces = {}
    for share in (0, 0.5, 1):
        out = tmp_path / f"store-{share}"
        done = tile(slide, "--annotations", truth, "--min-visible", share, "--no-foreground", "--out", out)
        assert done.exit_code == 0, done.stderr
        store = TileStore(out)
        pieces[share] = sum(o.object_id == "b" for i in range(len(store)) for o in store.objects_of(i))
        assert shapely.area(shapely.from_wkb(store.objects["geometry"].to_pylist())).min() > 0

    # the cell "b" lies across x = 256, a little more of it on the left
    assert pieces == {0: 2, 0.5: 1, 1: 0}
    assert TileStore(tmp_path / "store-1").slides["objects_unseen"].to_pylist() == [1]
