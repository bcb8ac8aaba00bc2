"""`evaluate` as a Python API: results folders and QuPath files against truths whose answer is known by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import shapely

from cytopipe._version import __version__
from cytopipe.core.classes import class_named
from cytopipe.core.errors import UserError
from cytopipe.core.objects import Objects, no_objects
from cytopipe.evaluate.area import INSIDE, ON_BORDER, OUTSIDE, closed_union, cut_by, placed
from cytopipe.formats.annotations import Annotation
from cytopipe.formats.qupath import QuPathWriter
from cytopipe.formats.results import write_results
from cytopipe.steps.evaluate import EvaluateResult, evaluate
from cytopipe.tiles import MadeBy, ObjectRow, SlideRow, StoreInfo, TileRow, open_writer

CLASSES = [class_named(name) for name in ("nucleus", "normal", "HSIL")]
NUCLEUS, NORMAL, HSIL = range(3)


def cell(x: float, y: float, side: float = 20.0) -> tuple[float, float, float, float]:
    return x, y, x + side, y + side


def write_found(
    folder: Path, found: list[tuple[tuple[float, ...], int, float]], offset: tuple[int, int] = (0, 0)
) -> Path:
    """A results folder of the slide named as the folder: (box, class index, score) an object."""
    n = len(found)
    class_scores = np.zeros((n, len(CLASSES)), np.float32)
    for i, (_, label, score) in enumerate(found):
        class_scores[i, label] = score
    objects = Objects(
        np.array([box for box, _, _ in found], np.float64).reshape(n, 4),
        np.array([label for _, label, _ in found], np.int32),
        np.array([score for _, _, score in found], np.float32),
        class_scores,
        np.full(n, None, object),
        np.zeros(n, np.uint8),
        np.full(n, -1, np.int32),
    )
    write_results(folder, folder.name, objects, CLASSES, mpp=(0.25, 0.25), bounds_offset=offset)
    return folder


def write_truth(path: Path, true: list[tuple[tuple[float, ...], str]], crowd: tuple[int, ...] = ()) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with QuPathWriter(path) as out:
        for i, (box, name) in enumerate(true):
            attributes = {"crowd": "true"} if i in crowd else {}
            out.add(Annotation(f"object-{i}", name, shapely.box(*box), attributes))
    return path


def rows(result: EvaluateResult) -> dict[str, tuple[int, int, int, int]]:
    """name -> (found, missed, doubled, false), classes and kinds."""
    tables = (*result.evaluation.classes, *result.evaluation.kinds)
    return {row.name: (row.found, row.missed, row.doubled, row.false) for row in tables}


def test_found_missed_doubled_and_false_are_counted_by_class_and_by_kind(tmp_path):
    found = [
        (cell(0, 0), NORMAL, 0.9),
        (cell(1, 1), NORMAL, 0.8),  # the same cell again
        (cell(100, 0), NORMAL, 0.7),  # truly HSIL
        (cell(300, 300), NUCLEUS, 0.6),  # nothing there
    ]
    true = [(cell(0, 0), "normal"), (cell(100, 0), "HSIL"), (cell(200, 0), "nucleus")]

    result = evaluate(write_found(tmp_path / "S-1", found), write_truth(tmp_path / "truth.geojson", true))

    assert rows(result) == {
        "nucleus": (0, 1, 0, 1),  # also the row of the kind: the class has its name
        "normal": (1, 0, 1, 1),
        "HSIL": (0, 1, 0, 0),
        "cell": (2, 0, 1, 0),
    }
    (kind,) = (row for row in result.evaluation.kinds if row.name == "cell")
    assert (kind.sensitivity, kind.precision) == (1.0, pytest.approx(2 / 3))
    assert result.evaluation.slides[0].truths == 3


def test_average_precision_is_one_for_perfect_results_and_undefined_for_a_class_without_truth(tmp_path):
    found = [(cell(0, 0), NORMAL, 0.9), (cell(100, 0), NUCLEUS, 0.4)]
    true = [(cell(0, 0), "normal"), (cell(100, 0), "nucleus")]

    tables = evaluate(write_found(tmp_path / "S-1", found), write_truth(tmp_path / "t.geojson", true)).evaluation

    ap = {row.name: row.ap for row in tables.classes}
    assert ap == {"nucleus": pytest.approx(1), "normal": pytest.approx(1), "HSIL": pytest.approx(np.nan, nan_ok=True)}
    assert (tables.map50, tables.map, tables.map10_70) == (pytest.approx(1),) * 3


def test_evaluation_json_holds_the_tables_with_null_for_undefined_and_what_they_depend_on(tmp_path):
    results = write_found(tmp_path / "S-1", [(cell(0, 0), NORMAL, 0.9)])

    result = evaluate(results, write_truth(tmp_path / "t.geojson", [(cell(0, 0), "normal")]), iou=0.4)

    assert result.out == results / "evaluation"
    document = json.loads((result.out / "evaluation.json").read_text())
    assert document["parameters"]["iou"] == 0.4
    assert [row["ap50"] for row in document["classes"]] == [None, pytest.approx(1), None]
    assert document["slides"][0]["covers"] == "the whole slide"


def test_other_parameters_in_the_same_folder_are_refused_until_overwrite(tmp_path):
    results = write_found(tmp_path / "S-1", [(cell(0, 0), NORMAL, 0.9)])
    truth = write_truth(tmp_path / "t.geojson", [(cell(0, 0), "normal")])
    evaluate(results, truth)
    evaluate(results, truth)

    with pytest.raises(UserError, match=r"iou 0\.5 -> 0\.4"):
        evaluate(results, truth, iou=0.4)
    assert evaluate(results, truth, iou=0.4, overwrite=True).parameters["iou"] == 0.4


def test_results_below_the_score_threshold_leave_the_counts_but_not_the_average_precision(tmp_path):
    found = [(cell(0, 0), NORMAL, 0.9), (cell(100, 0), NORMAL, 0.3)]
    true = [(cell(0, 0), "normal"), (cell(100, 0), "normal")]

    tables = evaluate(
        write_found(tmp_path / "S-1", found), write_truth(tmp_path / "t.geojson", true), score_threshold=0.5
    ).evaluation

    normal = tables.classes[NORMAL]
    assert (normal.found, normal.missed, normal.ap) == (1, 1, pytest.approx(1))


def test_a_truth_in_the_bounds_frame_is_shifted_by_the_offset_that_the_results_know(tmp_path):
    results = write_found(tmp_path / "S-1", [(cell(1000, 2000), NORMAL, 0.9)], offset=(1000, 2000))
    truth = write_truth(tmp_path / "t.geojson", [(cell(0, 0), "normal")])

    assert rows(evaluate(results, truth))["cell"] == (1, 0, 0, 0)
    assert rows(evaluate(results, truth, frame="slide", overwrite=True))["cell"] == (0, 1, 0, 1)


def test_slides_are_matched_with_truths_by_id_and_those_without_are_said(tmp_path):
    for slide in ("a", "b", "c"):
        write_found(tmp_path / "results" / slide, [(cell(0, 0), NORMAL, 0.9)])
    for slide in ("b", "a", "x"):
        write_truth(tmp_path / "truth" / f"{slide}.geojson", [(cell(0, 0), "normal"), (cell(50, 50), "normal")])
    said: list[str] = []

    result = evaluate(tmp_path / "results", tmp_path / "truth", say=said.append)

    assert [slide.slide_id for slide in result.evaluation.slides] == ["a", "b"]
    assert rows(result)["normal"] == (2, 2, 0, 0)
    assert "1 slides have results but no truth, left out: c" in said
    assert "1 slides have a truth but no results, left out: x" in said


def test_one_damaged_truth_of_several_is_listed_and_the_others_are_evaluated(tmp_path):
    for slide in ("a", "b"):
        write_found(tmp_path / "results" / slide, [(cell(0, 0), NORMAL, 0.9)])
    write_truth(tmp_path / "truth" / "a.geojson", [(cell(0, 0), "normal")])
    (tmp_path / "truth" / "b.geojson").write_text("{")

    result = evaluate(tmp_path / "results", tmp_path / "truth")

    assert [slide.slide_id for slide in result.evaluation.slides] == ["a"]
    ((name, reason),) = result.failed
    assert name == "b"
    assert "is not JSON" in reason


def test_only_what_lies_in_the_region_of_interest_counts_and_its_border_is_neutral(tmp_path):
    found = [
        (cell(10, 10), NORMAL, 0.9),
        (cell(500, 500), NORMAL, 0.9),  # outside: nobody looked there
        (cell(90, 50), NORMAL, 0.9),  # on the border, where a true one lies
        (cell(50, 95), NORMAL, 0.9),  # on the border, where none lies
    ]
    true = [((0, 0, 100, 100), "Region*"), (cell(10, 10), "normal"), (cell(92, 50), "normal"), (cell(30, 30), "normal")]
    truth = write_truth(tmp_path / "t.geojson", true)

    result = evaluate(write_found(tmp_path / "S-1", found), truth, roi="Region*")

    assert rows(result)["normal"] == (1, 1, 0, 0)
    assert result.evaluation.slides[0].covers == "1 annotations of class Region*"
    assert result.evaluation.classes[NORMAL].ap50 == pytest.approx(51 / 101)  # by hand: one of two, nothing false


def test_a_region_that_nobody_drew_is_refused_with_the_nearest_class(tmp_path):
    results = write_found(tmp_path / "S-1", [])
    truth = write_truth(tmp_path / "t.geojson", [((0, 0, 100, 100), "Region*"), (cell(1, 1), "normal")])

    with pytest.raises(UserError, match=r"no annotation of class 'region'.*'Region\*'"):
        evaluate(results, truth, roi="region")


def test_a_class_that_the_model_does_not_know_counts_by_kind_and_is_reported(tmp_path):
    results = write_found(tmp_path / "S-1", [(cell(0, 0), HSIL, 0.9)])
    truth = write_truth(tmp_path / "truth.geojson", [(cell(0, 0), "ASC-H"), (cell(60, 0), "Ignore*")])
    said: list[str] = []

    result = evaluate(results, truth, say=said.append)

    assert result.evaluation.unknown == {"ASC-H": 1}
    assert rows(result)["cell"] == (1, 0, 0, 0)
    assert rows(result)["HSIL"] == (0, 0, 0, 1)
    assert said == [
        "S-1: 1 annotations of class Ignore* left out: QuPath's star marks regions",
        "the truth covers the whole slide",
        "class 'ASC-H' of the truth (1 objects) is unknown to the model: counted by kind only",
        "average precision sees what the results hold: objects with a score of 0.9 and more",
    ]


def test_a_crowd_need_not_be_found_and_absorbs_what_lies_in_it(tmp_path):
    found = [(cell(0, 0), NORMAL, 0.9), (cell(30, 0), NORMAL, 0.9)]
    truth = write_truth(tmp_path / "t.geojson", [((0, 0, 60, 60), "normal")], crowd=(0,))

    assert rows(evaluate(write_found(tmp_path / "S-1", found), truth))["normal"] == (0, 0, 0, 0)


def test_a_qupath_file_without_scores_is_counted_and_its_average_precision_left_out(tmp_path):
    results = write_truth(tmp_path / "model" / "S-1.geojson", [(cell(0, 0), "normal"), (cell(90, 0), "normal")])
    truth = write_truth(tmp_path / "t.geojson", [(cell(0, 0), "normal")])
    said: list[str] = []

    result = evaluate(results, truth, say=said.append)

    assert rows(result)["normal"] == (1, 0, 0, 1)
    assert np.isnan(result.evaluation.map)
    assert "the results tell no scores: average precision is left out" in said
    assert result.out == tmp_path / "model" / "S-1-evaluation"


def write_store(folder: Path, split: dict[str, str], objects: dict[str, list[ObjectRow]]) -> Path:
    """Two tiles of 100 px side by side a slide, the first labelled row of a plane that goes on below."""
    info = StoreInfo(
        tile_px=100,
        mpp=0.25,
        overlap_px=0,
        edge="shift",
        codec="png",
        quality=90,
        made_by=MadeBy(command="tile", version=__version__),
    )
    facts = {"mpp": 0.25, "foreground": None, "sharpness": None, "glass": None, "labelled": True, "origin": "grid"}
    with open_writer(folder, info, {}) as writer:
        for slide_id, part in split.items():
            tiles = [TileRow(x, 0, float(x), 0.0, x + 100.0, 100.0, image=b"png", **facts) for x in (0, 100)]
            slide = SlideRow(slide_id, slide_id, part, f"{slide_id}.svs", classes=("normal",))
            writer.add_slide(slide, tiles, objects.get(slide_id, []), {})
        writer.finish()
    return folder


def piece(name: str, x: int, box: tuple[float, ...], truncated: bool = False) -> ObjectRow:
    return ObjectRow(name, x, 0, "normal", shapely.box(*box), truncated, False)


def test_a_tile_store_counts_on_its_labelled_tiles_and_joins_the_pieces_of_an_object(tmp_path):
    objects = [
        piece("whole", 0, (10, 10, 30, 30)),
        piece("across", 0, (90, 40, 100, 60), truncated=True),
        piece("across", 100, (100, 40, 110, 60), truncated=True),
        piece("cut", 0, (50, 90, 70, 100), truncated=True),
    ]
    store = write_store(tmp_path / "store", {"S-1": "train"}, {"S-1": objects})
    found = [
        (cell(10, 10), NORMAL, 0.9),
        (cell(90, 40), NORMAL, 0.9),
        (cell(50, 90), NORMAL, 0.9),  # goes on where no tile is
        (cell(400, 400), NORMAL, 0.9),  # no tile is there
    ]

    result = evaluate(write_found(tmp_path / "S-1", found), store)

    assert rows(result)["normal"] == (2, 0, 0, 0)
    assert result.evaluation.slides[0].covers == "2 labelled tiles"


def test_the_test_part_of_a_store_counts_unless_another_is_asked_for(tmp_path):
    objects = {name: [piece("one", 0, (10, 10, 30, 30))] for name in ("S-1", "S-2")}
    store = write_store(tmp_path / "store", {"S-1": "train", "S-2": "test"}, objects)
    for slide in ("S-1", "S-2"):
        write_found(tmp_path / "results" / slide, [(cell(10, 10), NORMAL, 0.9)])

    by_default = evaluate(tmp_path / "results", store)
    train = evaluate(tmp_path / "results", store, split="train", overwrite=True)

    assert [slide.slide_id for slide in by_default.evaluation.slides] == ["S-2"]
    assert [slide.slide_id for slide in train.evaluation.slides] == ["S-1"]
    with pytest.raises(UserError, match=r"no labelled tile in a part 'tets'.*did you mean 'test'"):
        evaluate(tmp_path / "results", store, split="tets")


def test_tiles_with_a_hairline_gap_are_one_area_whose_outer_border_stays_in_place():
    area = closed_union(np.array([[0, 0, 100, 100], [100 + 1e-7, 0, 200, 100]]))
    across, outside = shapely.box(90, 10, 110, 30), shapely.box(201, 10, 220, 30)
    at_border, sticking_out = shapely.box(180, 10, 200, 30), shapely.box(180, 10, 203, 30)
    shapes = np.array([across, outside, sticking_out], object)

    assert placed(shapes, area).tolist() == [INSIDE, OUTSIDE, ON_BORDER]
    assert cut_by(area, np.array([across, at_border], object)).tolist() == [False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"iou": 0.0}, "--iou 0"),
        ({"score_threshold": 1.5}, r"--score-threshold 1\.5"),
        ({"split": "test"}, "--split: belongs to a tile store"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, arguments, message):
    results = write_found(tmp_path / "S-1", [])
    truth = write_truth(tmp_path / "t.geojson", [(cell(0, 0), "normal")])

    with pytest.raises(UserError, match=message):
        evaluate(results, truth, **arguments)
    assert not (results / "evaluation").exists()


def test_results_of_models_with_different_classes_are_not_pooled(tmp_path):
    write_found(tmp_path / "results" / "a", [])
    write_results(tmp_path / "results" / "b", "b", no_objects(1), CLASSES[:1], mpp=None)
    for slide in ("a", "b"):
        write_truth(tmp_path / "truth" / f"{slide}.geojson", [(cell(0, 0), "normal")])

    with pytest.raises(UserError, match="models of different classes"):
        evaluate(tmp_path / "results", tmp_path / "truth")
