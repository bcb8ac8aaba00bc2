"""`cytopipe stitch` at the command line: another detector's windows and predictions in every form, and refusals."""

from __future__ import annotations

import csv
import json
import random

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely
from faster_coco_eval.core import mask as coco_mask
from typer.testing import CliRunner

from cytopipe.cli.main import app
from cytopipe.core.objects import JOINED, TRUNCATED
from cytopipe.formats.qupath import read_qupath
from cytopipe.formats.rasterise import label_image
from cytopipe.formats.results import read_results, read_run_json
from cytopipe.infer import Views, plan_windows, stitch
from cytopipe.steps.tile import tile
from cytopipe.tiles import TileConfig, TileStore
from tests.property.stitch_scenes import Cell, Scene, octagon, predict

WIDTH, HEIGHT, WINDOW_PX, OVERLAP_PX, GUARD_PX = 700, 600, 300, 100, 8
SIZE = ("--slide-size", WIDTH, HEIGHT)
NAMES = ("nucleus", "normal", "HSIL")


def run(*arguments, code=0):
    done = CliRunner().invoke(app, ["stitch", *map(str, arguments)])
    assert done.exit_code == code, done.stderr
    return done


def scene(*, with_masks: bool, seed: int = 3) -> Scene:
    """Forty cells of at most 84 px, by half px, crowded enough to overlap, under three by three windows or more."""
    rng = random.Random(seed)
    windows = plan_windows(WIDTH, HEIGHT, WINDOW_PX, OVERLAP_PX)
    cells = []
    for _ in range(40):
        w, h = rng.randint(20, 168) / 2, rng.randint(20, 168) / 2
        x, y = rng.randint(0, int(2 * (WIDTH - w))) / 2, rng.randint(0, int(2 * (HEIGHT - h))) / 2
        box = (x, y, x + w, y + h)
        score = rng.choice([0.5, 0.75, 0.875])
        cells.append(Cell(box, rng.randrange(3), score, octagon(*box) if with_masks else None))
    return Scene(windows, OVERLAP_PX, GUARD_PX, cells)


def window_rows(windows):
    return [(f"w{k}", *box) for k, box in enumerate(windows.boxes.tolist())]


def write_windows(path, rows, header=("window_id", "x0", "y0", "x1", "y1")):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def coco_of(views: dict[int, Views], windows, *, outlines=True, scale=1.0) -> list[dict]:
    """COCO results; categories from 1; px of the windows, `scale` level-0 px each."""
    detections = []
    for k, seen in views.items():
        corner = windows.boxes[k, :2]
        for box, label, score, polygon in zip(seen.xyxy, seen.class_index, seen.score, seen.geometry, strict=True):
            x0, y0, x1, y1 = (box - np.tile(corner, 2)) / scale
            entry = {"image_id": f"w{k}", "category_id": int(label) + 1, "score": float(score)}
            entry["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            if polygon is not None and outlines:
                parts = shapely.get_parts(polygon)
                rings = [(shapely.get_coordinates(p.exterior)[:-1] - corner) / scale for p in parts]
                entry["segmentation"] = [ring.ravel().tolist() for ring in rings]
            detections.append(entry)
    return detections


def write_json(path, value):
    path.write_text(json.dumps(value))
    return path


def parquet_of(views: dict[int, Views], windows) -> pa.Table:
    columns = {name: [] for name in ("window_id", "class", "score", "x0", "y0", "x1", "y1", "geometry")}
    for k, seen in views.items():
        corner = windows.boxes[k, :2]
        for box, label, score, polygon in zip(seen.xyxy, seen.class_index, seen.score, seen.geometry, strict=True):
            moved = shapely.transform(polygon, lambda xy, corner=corner: xy - corner)
            values = (f"w{k}", NAMES[label], float(score), *(box - np.tile(corner, 2)), shapely.to_wkb(moved))
            for name, value in zip(columns, values, strict=True):
                columns[name].append(value)
    return pa.table(columns)


def said(objects):
    """What a table of objects says, in an order of its own; outlines wherever their rings begin."""
    return sorted(
        (
            *np.round(objects.xyxy[k], 6).tolist(),
            int(objects.class_index[k]),
            float(objects.score[k]),
            "" if objects.geometry[k] is None else shapely.to_wkt(objects.geometry[k].normalize(), 6),
            int(objects.flags[k]),
            int(objects.window[k]),
        )
        for k in range(len(objects))
    )


@pytest.fixture
def files(tmp_path):
    """Windows as CSV, predictions as COCO with polygons, the scene and its views."""
    of = scene(with_masks=True)
    views = predict(of, random.Random(1), 0.25)
    windows = write_windows(tmp_path / "windows.csv", window_rows(of.windows))
    predictions = write_json(tmp_path / "predictions.json", coco_of(views, of.windows))
    return of, views, windows, predictions


@pytest.mark.parametrize("with_masks", [True, False])
def test_the_results_are_those_of_the_stitcher_that_infer_uses(with_masks, tmp_path):
    of = scene(with_masks=with_masks)
    views = predict(of, random.Random(1), 0.25)
    windows = write_windows(tmp_path / "windows.csv", window_rows(of.windows))
    predictions = write_json(tmp_path / "predictions.json", coco_of(views, of.windows))

    run(predictions, "--windows", windows, *SIZE, "--out", tmp_path / "out")

    results = read_results(tmp_path / "out" / "slide")
    expected = stitch(of.windows, views, GUARD_PX)
    assert said(results.objects) == said(expected)
    assert [c.name for c in results.classes] == ["1", "2", "3"]
    assert len(results.objects) == len(of.cells)  # overlapping ones as well, each once
    assert not results.objects.flags.any()


def test_the_folder_is_that_of_infer(files, tmp_path):
    _, _, windows, predictions = files

    done = run(predictions, "--windows", windows, *SIZE, "--mpp-override", 0.25, "--out", tmp_path / "out")

    folder = tmp_path / "out" / "slide"
    table = geopandas.read_parquet(folder / "objects.parquet")
    features = json.loads((folder / "objects.geojson").read_text())["features"]
    facts = read_run_json(folder)
    assert {path.name for path in folder.iterdir()} == {"objects.parquet", "objects.geojson", "report.html", "run.json"}
    assert len(table) == len(features) == facts["objects"] == 40
    assert table.area_um2.tolist() == pytest.approx((table.geometry.area * 0.0625).tolist())
    assert facts["command"] == "stitch"
    assert facts["slide"] == {"slide_id": "slide", "size_px": [WIDTH, HEIGHT], "mpp": [0.25, 0.25]}
    assert "40" in done.stdout
    assert str(tmp_path / "out") in done.stdout


def test_names_and_outlines_in_parquet_say_the_same_as_coco(files, tmp_path):
    of, views, _, predictions = files
    pq.write_table(parquet_of(views, of.windows), tmp_path / "predictions.parquet")
    columns = dict(zip(("window_id", "x0", "y0", "x1", "y1"), zip(*window_rows(of.windows), strict=True), strict=True))
    pq.write_table(pa.table({name: list(v) for name, v in columns.items()}), tmp_path / "windows.parquet")
    names = write_json(tmp_path / "names.json", {str(k + 1): name for k, name in enumerate(NAMES)})

    for given, out in ((predictions, "coco"), (tmp_path / "predictions.parquet", "parquet")):
        run(given, "--windows", tmp_path / "windows.parquet", *SIZE, "--classes", names, "--out", tmp_path / out)

    coco, parquet = (read_results(tmp_path / out / "slide") for out in ("coco", "parquet"))
    assert said(coco.objects) == said(parquet.objects)
    assert coco.object_ids == parquet.object_ids
    assert [(c.name, c.kind, c.suspicious) for c in parquet.classes] == [
        ("nucleus", "nucleus", False),
        ("normal", "cell", False),
        ("HSIL", "cell", True),
    ]


@pytest.mark.parametrize("as_text", [True, False])
def test_run_lengths_are_outlined_along_their_pixels(as_text, tmp_path):
    windows = plan_windows(160, 100, 100, 40)
    body = shapely.Point(80, 50).buffer(18).difference(shapely.Point(83, 50).buffer(6))  # both windows show it, whole
    pixels = label_image(np.array([body], object), (0, 0, 160, 100)).astype(np.uint8)
    detections = []
    for k, left in enumerate(windows.boxes[:, 0].astype(int)):
        runs = coco_mask.encode(np.asfortranarray(pixels[:, left : left + 100]))
        counts = runs["counts"].decode() if as_text else lengths(pixels[:, left : left + 100])
        segmentation = {"size": [100, 100], "counts": counts}
        detections.append({"image_id": k, "category_id": 7, "score": 0.9, "bbox": [], "segmentation": segmentation})
    rows = write_windows(tmp_path / "windows.csv", [(k, *box) for k, box in enumerate(windows.boxes.tolist())])

    run(
        write_json(tmp_path / "p.json", detections),
        "--windows",
        rows,
        "--slide-size",
        160,
        100,
        "--out",
        tmp_path / "o",
    )

    (outline,) = read_results(tmp_path / "o" / "slide").objects.geometry
    assert (label_image(np.array([outline], object), (0, 0, 160, 100)) == pixels).all()
    assert len(outline.interiors) == 1


def lengths(mask):
    """COCO's run lengths as numbers, background first, down the columns."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]])
    edges = np.flatnonzero(np.diff(flat))
    return np.diff(np.concatenate([[0], edges, [mask.size]])).tolist()


def test_windows_that_were_read_at_half_the_resolution_are_scaled_to_level_0(files, tmp_path):
    of, views, windows, _ = files
    halved = write_json(tmp_path / "halved.json", coco_of(views, of.windows, scale=2.0))

    run(halved, "--windows", windows, *SIZE, "--tile-px", 150, "--guard-px", 4, "--out", tmp_path / "out")

    objects = read_results(tmp_path / "out" / "slide").objects
    assert said(objects) == said(stitch(of.windows, views, GUARD_PX))


@pytest.fixture(scope="module")
def store(smears, tmp_path_factory):
    """Tiles of 192 px at 0.5 µm/px of two slides of 0.25 µm/px, which overlap by 80 px."""
    folder = tmp_path_factory.mktemp("store")
    config = TileConfig(tile_px=192, overlap_px=80)
    tile([slide.path for slide in smears.slides[:2]], folder / "tiles", config=config)
    return folder / "tiles"


def truth_on_tiles(smears, store, *, by_number):
    """Each true nucleus as each tile would report it, in px of the tile image; and the nuclei, level-0 px."""
    tiles, detections, nuclei = TileStore(store), [], {}
    for slide in smears.slides[:2]:
        found = [a for a in read_qupath(slide.annotations, frame="slide")[0] if a.class_name == "nucleus"]
        nuclei[slide.slide_id] = np.array([shapely.box(*a.geometry.bounds) for a in found], object)
    names, ids = tiles.column("slide_id").to_pylist(), tiles.column("tile_id").to_pylist()
    for k, (slide_id, tile_id) in enumerate(zip(names, ids, strict=True)):
        x0, y0, x1, y1 = tiles.tile_box(k)
        for nucleus in nuclei[slide_id]:
            seen = nucleus.intersection(shapely.box(x0, y0, x1, y1))
            if seen.area > 0:
                left, top, right, bottom = ((np.array(seen.bounds) - (x0, y0, x0, y0)) * 192 / (x1 - x0)).tolist()
                name = k + 1 if by_number else tile_id
                bbox = [left, top, right - left, bottom - top]
                detections.append({"image_id": name, "category_id": 1, "bbox": bbox, "score": 0.8})
    return detections, nuclei


@pytest.mark.parametrize("by_number", [True, False])
def test_a_tile_store_knows_slides_sizes_and_resolution(smears, store, by_number, tmp_path):
    detections, nuclei = truth_on_tiles(smears, store, by_number=by_number)
    predictions = write_json(tmp_path / "predictions.json", detections)
    names = write_json(tmp_path / "names.json", ["nucleus"])

    run(predictions, "--windows", store, "--classes", names, "--guard-px", 4, "--out", tmp_path / "out")

    for slide_id, expected in nuclei.items():
        results = read_results(tmp_path / "out" / slide_id)
        boxes = [tuple(np.round(box, 3)) for box in results.objects.xyxy.tolist()]
        small = [n for n in expected if max(n.bounds[2] - n.bounds[0], n.bounds[3] - n.bounds[1]) <= 2 * (80 - 2 * 4)]
        assert len(small) == len(expected) > 15
        assert sorted(boxes) == sorted(tuple(np.round(n.bounds, 3)) for n in expected)  # in level-0 px, none twice
        assert results.mpp == (0.25, 0.25)
        assert [c.name for c in results.classes] == ["nucleus"]


def test_a_slide_at_hand_gives_its_size_its_resolution_and_the_pictures(smears, tmp_path):
    slide = smears.slides[0]
    predictions, _, rows, *_ = one(tmp_path, detection(bbox=[20, 30, 60, 60]), windows=[(0, 0, 0, 1024, 1024)])
    bare = tmp_path / "bare"

    run(predictions, "--windows", rows, "--slides", slide.path, "--out", tmp_path / "out")
    run(predictions, "--windows", rows, "--slide-size", 1024, 1024, "--out", bare)

    results = read_results(tmp_path / "out" / "slide")
    assert results.mpp == (0.25, 0.25)
    assert read_run_json(tmp_path / "out" / "slide")["slide"]["size_px"] == [1024, 1024]
    pages = [len((out / "slide" / "report.html").read_bytes()) for out in (tmp_path / "out", bare)]
    assert pages[0] > pages[1] + 10_000  # the thumbnail of a smear, and not a drawn map


def test_the_classes_of_a_store_name_the_categories_as_convert_numbers_them(labelled_store, tmp_path):
    tiles = TileStore(labelled_store)
    known = [c.name for c in tiles.info.classes]
    tile_id = tiles.column("tile_id")[0].as_py()
    detections = [
        {"image_id": tile_id, "category_id": k, "bbox": [10 * k, 10, 8, 8], "score": 0.5}
        for k in range(1, len(known) + 1)
    ]

    run(write_json(tmp_path / "p.json", detections), "--windows", labelled_store, "--out", tmp_path / "out")

    results = read_results(tmp_path / "out" / tiles.column("slide_id")[0].as_py())
    left_to_right = np.argsort(results.objects.xyxy[:, 0])
    assert [results.classes[k].name for k in results.objects.class_index[left_to_right]] == known


def test_each_slide_of_a_table_has_its_folder_and_one_command_resumes_them(files, tmp_path):
    of, _, _, predictions = files
    half = [(*row, "A" if k % 2 else "B") for k, row in enumerate(window_rows(of.windows))]
    windows = write_windows(tmp_path / "two.csv", half, ("window_id", "x0", "y0", "x1", "y1", "slide_id"))
    arguments = (predictions, "--windows", windows, *SIZE, "--out", tmp_path / "out")

    run(*arguments)
    again = json.loads(run(*arguments, "--json").stdout)
    other = run(*arguments, "--iou", 0.6, code=2)

    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == ["A", "B"]
    assert [(row["slide_id"], row["status"]) for row in again["rows"]] == [("A", "skipped"), ("B", "skipped")]
    with (tmp_path / "out" / "slides.csv").open() as file:
        listed = {row["slide_id"]: int(row["objects"]) for row in csv.DictReader(file)}
    assert listed == {row["slide_id"]: row["objects"] for row in again["rows"]}
    assert (tmp_path / "out" / "index.html").is_file()
    assert again["rows"][0]["objects"] == len(read_results(tmp_path / "out" / "A").objects)
    assert "iou 0.5 -> 0.6" in other.stderr


def test_the_order_of_both_files_does_not_matter(files, tmp_path):
    of, _, windows, predictions = files
    rng = random.Random(5)
    rows, detections = window_rows(of.windows), json.loads(predictions.read_text())
    shuffled = write_windows(tmp_path / "shuffled.csv", rng.sample(rows, len(rows)))
    mixed = write_json(tmp_path / "mixed.json", rng.sample(detections, len(detections)))

    run(predictions, "--windows", windows, *SIZE, "--out", tmp_path / "a")
    run(mixed, "--windows", shuffled, *SIZE, "--out", tmp_path / "b")

    for name in ("objects.parquet", "objects.geojson"):
        assert (tmp_path / "a" / "slide" / name).read_bytes() == (tmp_path / "b" / "slide" / name).read_bytes()


def one(tmp_path, *detections, windows=((0, 0, 0, 100, 100), (1, 60, 0, 160, 100))):
    """Files of few windows on a slide of 160 x 100 px, and of detections."""
    rows = write_windows(tmp_path / "w.csv", windows)
    return write_json(tmp_path / "p.json", list(detections)), "--windows", rows, "--slide-size", 160, 100


def detection(**changes):
    return {"image_id": 0, "category_id": 1, "bbox": [10, 10, 20, 20], "score": 0.5} | changes


def test_what_sticks_out_of_its_window_is_cut_and_what_lies_outside_is_left_out_and_both_are_counted(tmp_path):
    files = one(
        tmp_path,
        detection(bbox=[-5, 10, 20, 20]),
        detection(bbox=[40, -30, 20, 20]),
        detection(bbox=[40, 40, 0, 20]),
        detection(bbox=[50, 90, 20, 20], segmentation=[[50, 90, 70, 90, 70, 110]]),
    )

    done = run(*files, "--out", tmp_path / "out")

    objects = read_results(tmp_path / "out" / "slide").objects
    facts = read_run_json(tmp_path / "out" / "slide")
    assert objects.xyxy.tolist() == [[0, 10, 15, 30], [50, 90, 70, 100]]
    assert objects.geometry[1].area == pytest.approx(150)  # the triangle without its tip
    assert (facts["detections"], facts["clipped"], facts["outside"]) == (4, 2, 2)
    assert "2 detections stuck out of their window and were cut; 2 lay outside" in done.stderr


def test_a_cell_too_large_for_the_overlap_is_joined_and_the_overlap_is_said_to_be_too_small(tmp_path):
    across = [detection(bbox=[40, 10, 60, 40]), detection(image_id=1, bbox=[0, 10, 50, 40])]  # 40 to 110
    cut = detection(bbox=[65, 60, 35, 30])  # the other window reports nothing of it

    done = run(*one(tmp_path, *across, cut), "--out", tmp_path / "out")

    objects = read_results(tmp_path / "out" / "slide").objects
    assert objects.xyxy.tolist() == [[40, 10, 110, 50], [65, 60, 100, 90]]
    assert objects.flags.tolist() == [JOINED, TRUNCATED]
    warning = "windows overlap by 40 px, less than the largest object with a guard band on both sides (70 + 2 x 8 px)"
    assert f"{warning}: 1 objects were joined from pieces, 1 are truncated" in done.stderr


def test_the_edge_towards_a_window_that_was_not_run_is_no_border(tmp_path):
    cut, whole = detection(bbox=[70, 10, 25, 20]), detection(bbox=[60, 50, 30, 20])  # 5 and 10 px from that edge

    lone = run(*one(tmp_path, cut, whole, windows=[(0, 0, 0, 100, 100)]), "--out", tmp_path / "out")

    objects = read_results(tmp_path / "out" / "slide").objects
    assert objects.flags.tolist() == [TRUNCATED, 0]
    assert "0 objects were joined from pieces, 1 are truncated where no window was run" in lone.stderr


def test_the_guard_band_is_measured_in_px_of_the_windows(tmp_path):
    near = detection(bbox=[30, 5, 15, 10])  # 5 px from the inner edge, of a window that was read at half the resolution
    alone = one(tmp_path, near, windows=[(0, 0, 0, 100, 100)])

    run(*alone, "--tile-px", 50, "--guard-px", 4, "--out", tmp_path / "narrow")
    run(*alone, "--tile-px", 50, "--guard-px", 6, "--out", tmp_path / "wide")

    narrow, wide = (read_results(tmp_path / out / "slide").objects for out in ("narrow", "wide"))
    assert narrow.xyxy.tolist() == wide.xyxy.tolist() == [[60, 10, 90, 30]]
    assert [narrow.flags.tolist(), wide.flags.tolist()] == [[0], [TRUNCATED]]


def test_the_overlap_from_which_two_reports_are_one_cell_can_be_set(tmp_path):
    pair = [detection(bbox=[70, 30, 20, 20]), detection(image_id=1, bbox=[16, 30, 20, 20])]  # 6 px apart: IoU 0.54

    same, apart = tmp_path / "same", tmp_path / "apart"
    run(*one(tmp_path, *pair), "--out", same)
    run(*one(tmp_path, *pair), "--iou", 0.6, "--out", apart)

    assert [len(read_results(out / "slide").objects) for out in (same, apart)] == [1, 2]


def test_a_mask_without_area_leaves_its_box_and_a_crossed_outline_is_mended(tmp_path):
    empty = detection(segmentation={"size": [100, 100], "counts": [10000]})
    crossed = detection(bbox=[50, 50, 20, 20], segmentation=[[50, 50, 70, 70, 70, 50, 50, 70]])

    done = run(*one(tmp_path, empty, crossed), "--out", tmp_path / "out")

    objects = read_results(tmp_path / "out" / "slide").objects
    assert objects.xyxy.tolist() == [[10, 10, 30, 30], [50, 50, 70, 70]]
    assert objects.geometry[0] is None
    assert objects.geometry[1].area == pytest.approx(200)
    assert "1 outlines were mended; 1 enclose no area" in done.stderr


def test_nothing_detected_is_a_result(tmp_path):
    done = run(*one(tmp_path), "--out", tmp_path / "out")

    assert len(read_results(tmp_path / "out" / "slide").objects) == 0
    assert (tmp_path / "out" / "slide" / "report.html").is_file()
    assert "no object on this slide" in done.stderr


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a", "b"], ["a", "b"]),  # numbered from 1, since there is no 0
        ({"1": "a", "2": "b", "9": "c"}, ["a", "b"]),
        ({"categories": [{"id": 2, "name": "b"}, {"id": 1, "name": "a"}]}, ["a", "b"]),
        ([{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], ["a", "b"]),
    ],
)
def test_categories_are_named_by_a_file(names, expected, tmp_path):
    files = one(tmp_path, detection(), detection(category_id=2, bbox=[50, 50, 20, 20]))

    run(*files, "--classes", write_json(tmp_path / "names.json", names), "--out", tmp_path / "out")

    results = read_results(tmp_path / "out" / "slide")
    assert [results.classes[k].name for k in results.objects.class_index] == expected


def test_a_list_of_names_counts_from_0_where_the_predictions_do(tmp_path):
    files = one(tmp_path, detection(category_id=0), detection(bbox=[50, 50, 20, 20]))

    done = run(*files, "--classes", write_json(tmp_path / "names.json", ["a", "b"]), "--out", tmp_path / "out")

    results = read_results(tmp_path / "out" / "slide")
    assert [results.classes[k].name for k in results.objects.class_index] == ["a", "b"]
    assert "categories are numbered from 0: 0 is a, 1 is b" in done.stderr


def test_a_coco_data_set_brings_its_own_names(tmp_path):
    predictions, *rest = one(tmp_path, detection())
    document = {"images": [], "annotations": [detection()], "categories": [{"id": 1, "name": "LSIL"}]}

    run(write_json(predictions, document), *rest, "--out", tmp_path / "out")

    assert [c.name for c in read_results(tmp_path / "out" / "slide").classes] == ["LSIL"]


NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"image_id": 7}, "1 detections are of windows that w.csv does not hold: '7'"),
        ({"image_id": None}, "detection 1: has no image_id"),
        ({"category_id": None}, "detection 1: has no category_id"),
        ({"score": NAN}, "detection 1: score nan is no number from 0 to 1"),
        ({"score": 1.5}, "detection 1: score 1.5 is no number from 0 to 1"),
        ({"score": None}, "detection 1: score None is no number"),
        ({"bbox": [10, 10, -20, 20]}, "detection 1: its bbox has a negative side: -20 x 20 px"),
        ({"bbox": [10, NAN, 20, 20]}, "detection 1: its bbox is no x, y, width and height in finite numbers"),
        ({"bbox": [10, 10, INFINITE, 20]}, "detection 1: its bbox is no x, y, width and height in finite numbers"),
        ({"bbox": [10, 20]}, "detection 1: its bbox is no x, y, width and height"),
        ({"bbox": [500, 500, 20, 20]}, "none of 1 detections lies in its window; say how large"),
        (
            {"segmentation": {"size": [50, 50], "counts": [5, 2495]}},
            "its mask is of 50 x 50 px, and its window has 100 x",
        ),
        (
            {"segmentation": {"size": [50, 50], "counts": [5, 20]}},
            "detection 1: its run lengths do not fill 50 x 50 px",
        ),
        ({"segmentation": [[1, 2, 3]]}, "detection 1: its segmentation is no list of x y pairs"),
        ({"segmentation": [[1, 2, 3, NAN, 5, 6]]}, "detection 1: a coordinate is not a finite number"),
    ],
)
def test_a_detection_that_cannot_be_meant_is_refused_in_one_line_and_nothing_is_written(changes, line, tmp_path):
    done = run(*one(tmp_path, detection(**changes)), "--out", tmp_path / "out", code=2)

    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("windows", "line"),
    [
        ([(0, 0, 0, 100, 100), (0, 60, 0, 160, 100)], "rows 1 and 2 are both window '0'"),
        ([(0, 0, 0, 100, 100), (1, 160, 0, 260, 100)], "window '1' (160, 0 to 260, 100) lies outside of slide 'slide'"),
        ([(0, 0, 0, 100, 100), (1, 90, 0, 60, 100)], "row 2: window '1' has no area: 90, 0 to 60, 100"),
        ([(0, 0, 0, 100, 100), (1, "nan", 0, 60, 100)], "row 2: x0 nan is no finite number"),
        ([(0, 0, 0, 100, 100), (1, "", 0, 60, 100)], "row 2: x0 is empty"),
        ([(0, 0, 0, 100, 100), (1, "left", 0, 60, 100)], "cannot be read as a table"),
        ([], "holds no window"),
    ],
)
def test_windows_that_cannot_be_meant_are_refused_in_one_line(windows, line, tmp_path):
    done = run(*one(tmp_path, detection(), windows=windows), "--out", tmp_path / "out", code=2)

    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("column", "value", "line"),
    [
        ("score", NAN, "row 1: score nan is no finite number"),
        ("score", 2.0, "row 1: score 2 is not from 0 to 1"),
        ("x1", -5.0, "row 1: box has a negative side"),
        ("y0", INFINITE, "row 1: y0 inf is no finite number"),
        ("window_id", None, "row 1: window_id is empty"),
        ("window_id", 77, "of windows that w.csv does not hold: '77'"),
        ("class", "LSIL", "class 'LSIL' has no name; did you mean 'HSIL'?; --classes names them"),
        ("geometry", shapely.to_wkb(shapely.Point(1, 1)), "row 1: geometry is a Point, and only outlines are read"),
        ("geometry", b"no outline", "column geometry holds what is no WKB"),
    ],
)
def test_a_row_of_parquet_that_cannot_be_meant_is_refused_in_one_line(column, value, line, tmp_path):
    row = {"window_id": 0, "class": "HSIL", "score": 0.5, "x0": 10.0, "y0": 10.0, "x1": 30.0, "y1": 30.0}
    _, *rest = one(tmp_path)
    pq.write_table(pa.Table.from_pylist([row | {column: value}]), tmp_path / "p.parquet")
    names = write_json(tmp_path / "names.json", ["HSIL"])

    done = run(tmp_path / "p.parquet", *rest, "--classes", names, "--out", tmp_path / "out", code=2)

    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_is_missing_is_said_with_its_remedy(files, tmp_path):
    _, _, windows, predictions = files
    odd = write_windows(tmp_path / "odd.csv", [(0, 0, 0, 9)], ("window_id", "left", "y0", "x1"))

    size = run(predictions, "--windows", windows, "--out", tmp_path / "out", code=2)
    column = run(predictions, "--windows", odd, *SIZE, "--out", tmp_path / "out", code=2)
    absent = run(tmp_path / "none.json", "--windows", windows, *SIZE, "--out", tmp_path / "out", code=2)
    text = run(windows, "--windows", windows, *SIZE, "--out", tmp_path / "out", code=2)
    folder = run(predictions, "--windows", tmp_path, *SIZE, "--out", tmp_path / "out", code=2)

    assert "the size of slide 'slide' is not known; give --slide-size W H" in size.stderr
    assert "has no column x0, y1" in column.stderr
    assert "none.json: no such file" in absent.stderr
    assert "is not JSON" in text.stderr
    assert "is no tile store" in folder.stderr
