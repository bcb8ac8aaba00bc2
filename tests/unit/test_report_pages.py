"""The pages: whole by themselves, well formed, honest about nothing, and deaf to what names try to smuggle in."""

from __future__ import annotations

import base64
import csv
import re
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest
from shapely import Polygon, box

from cytopipe.core.classes import ObjectClass, class_named
from cytopipe.core.objects import JOINED, Objects, no_objects
from cytopipe.formats.results import write_results
from cytopipe.report.gallery import MAX_CROP_PX, USUAL_CROP_PX
from cytopipe.report.index_page import IndexRow, write_index, write_slides_csv
from cytopipe.report.infer_page import write_infer_report
from cytopipe.report.panels import Layer, Sample, map_picture
from cytopipe.report.summary import SlideSummary, summarise
from cytopipe.report.train_page import write_train_report

CLASSES = [class_named(name) for name in ("nucleus", "normal", "HSIL")]
VOID = {"meta", "img", "input", "br", "hr", "link"}
SHAPES = {"path", "rect", "circle", "image", "use"}  # of SVG, written with or without a closing slash


class Page(HTMLParser):
    """A page taken apart; raises where an element is closed that is not open, or the other way round."""

    def __init__(self, path):
        super().__init__()
        self.html = path.read_text(encoding="utf-8")
        self.elements, self.text, self._open = [], [], []
        self.feed(self.html)
        self.close()
        assert self._open == [], self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        assert tag in SHAPES

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f"{tag} closed at {self.getpos()}"

    def handle_data(self, data):
        if not self._open or self._open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag, **wanted):
        return [a for t, a in self.elements if t == tag and all(a.get(k) == v for k, v in wanted.items())]

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def some_objects(count=6):
    """Cells in a row, 20 px apart, ever more suspicious to the right, every other one a nucleus."""
    corners = np.array([[20.0 * i, 10, 20.0 * i + 10, 20] for i in range(count)])
    geometry = np.empty(count, dtype=object)
    geometry[:] = [box(*corner) for corner in corners]
    kind = np.array([0 if i % 2 else 2 for i in range(count)], dtype=np.int32)
    scores = np.zeros((count, 3), np.float32)
    scores[np.arange(count), kind] = (np.arange(count) + 1) / count
    return Objects(
        corners, kind, scores.max(axis=1), scores, geometry, np.full(count, JOINED, np.uint8), np.zeros(count, np.int32)
    )


def slide_crop(asked):
    """A stand-in for a slide: notes what is asked and answers with a plain picture of that size."""

    def crop(area):
        asked.append(area)
        x0, y0, x1, y1 = area
        return np.full((y1 - y0, x1 - x0, 3), 200, np.uint8)

    return crop


def infer_page(folder, objects, *, classes=CLASSES, mpp=(0.5, 0.5), slide_id="S-1", asked=None, **options):
    results = write_results(folder / "results", slide_id, objects, classes, mpp=mpp)
    arguments = {"slide_facts": {"reader": "tiff"}, "run_facts": {"model": {"name": "small"}}, "warnings": []} | options
    write_infer_report(
        folder / "report.html",
        slide_id=slide_id,
        summary=summarise(results, (1000, 500)),
        thumbnail=np.full((50, 100, 3), 240, np.uint8),
        crop=slide_crop(asked if asked is not None else []),
        **arguments,
    )
    return Page(folder / "report.html")


def test_the_gallery_shows_the_most_suspicious_first_with_their_places(tmp_path):
    page = infer_page(tmp_path, some_objects())

    cells = page.all("button", **{"class": "cell"})
    assert [(c["data-x"], c["data-y"], c["data-suspicion"]) for c in cells] == [
        ("85", "15", "0.83"),
        ("45", "15", "0.50"),
        ("5", "15", "0.17"),
    ]
    assert {c["data-class"] for c in cells} == {"HSIL"}
    assert [c["tabindex"] for c in cells] == ["0", "-1", "-1"]


def test_places_are_told_in_both_frames_where_they_differ(tmp_path):
    same = infer_page(tmp_path, some_objects())
    moved = infer_page(tmp_path, some_objects(), bounds_offset=(100, 7))

    assert [c.get("data-qupath") for c in same.all("button", **{"class": "cell"})] == [None] * 3
    assert [c["data-qupath"] for c in moved.all("button", **{"class": "cell"})] == ["-15, 8", "-55, 8", "-95, 8"]
    assert [c["data-x"] for c in moved.all("button", **{"class": "cell"})] == ["85", "45", "5"]


def test_without_suspicious_classes_the_gallery_goes_by_score(tmp_path):
    calm = [class_named(name) for name in ("nucleus", "normal", "other")]

    page = infer_page(tmp_path, some_objects(), classes=calm)

    assert [c["data-x"] for c in page.all("button", **{"class": "cell"})] == ["105", "85", "65", "45", "25", "5"]
    assert "Highest scores" in page.words


def test_the_gallery_is_as_long_as_asked(tmp_path):
    page = infer_page(tmp_path, some_objects(), gallery_count=2)

    assert len(page.all("button", **{"class": "cell"})) == 2


def test_each_crop_is_a_square_around_its_object_even_past_the_border_of_the_slide(tmp_path):
    asked = []

    infer_page(tmp_path, some_objects(), asked=asked)

    assert [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in asked] == [(85, 15), (45, 15), (5, 15)]
    assert {(x1 - x0, y1 - y0) for x0, y0, x1, y1 in asked} == {(16, 16)}
    assert min(x0 for x0, *_ in asked) == -3


def test_the_outline_lies_over_its_object_in_the_crop(tmp_path):
    page = infer_page(tmp_path, some_objects())

    path = next(a["d"] for a in page.all("path") if a.get("class") == "rim")
    numbers = [float(v) for v in re.findall(r"[\d.]+", path)]
    assert (min(numbers), max(numbers)) == (18.8, 81.2)  # 10 px in the middle of 16: 3/16 and 13/16 of 100


def test_an_object_larger_than_most_is_shown_whole(tmp_path):
    objects = some_objects(12)
    objects.xyxy[10] = [200, 10, 290, 100]
    objects.geometry[10] = box(200, 10, 290, 100)
    asked = []

    infer_page(tmp_path, objects, asked=asked)

    x0, y0, x1, y1 = asked[0]
    assert x0 < 200
    assert y0 < 10
    assert x1 > 290
    assert y1 > 100


def crops_of(page):
    """Each crop's words and its width in px."""
    images = [a["src"] for a in page.all("img") if a["src"].startswith("data:image/jpeg")][1:]  # the first: thumbnail
    data = [np.frombuffer(base64.b64decode(src.partition(",")[2]), np.uint8) for src in images]
    widths = [cv2.imdecode(d, cv2.IMREAD_COLOR).shape[1] for d in data]
    return list(zip([c["data-picture"] for c in page.all("button", **{"class": "cell"})], widths, strict=True))


def test_crops_have_a_px_for_each_px_of_the_slide_and_what_is_shrunk_says_so(tmp_path):
    objects = some_objects(6)
    for row, side in ((0, 300), (2, 600), (4, 1200)):
        objects.xyxy[row] = [0, 0, side, side]
        objects.geometry[row] = box(0, 0, side, side)

    page = infer_page(tmp_path, objects)

    assert crops_of(page) == [
        ("1380 px of level 0, shrunk to 56%", MAX_CROP_PX),  # 1200 px and a margin of 15%
        ("690 px of level 0, native resolution", 690),
        ("384 px of level 0, native resolution", USUAL_CROP_PX),
    ]


def test_counts_and_areas_are_told_for_each_class(tmp_path):
    page = infer_page(tmp_path, some_objects())

    assert "nucleus 3 25 75 0.67" in page.words  # 10 x 10 px at 0.5 µm/px; scores 2/6, 4/6, 6/6
    assert "normal 0 – – –" in page.words
    assert "mean area, µm² area together, µm²" in page.words


def test_large_areas_are_told_in_square_millimetres(tmp_path):
    objects = some_objects(6)
    objects.geometry[0] = box(0, 10, 1000, 1010)

    page = infer_page(tmp_path, objects)

    assert "area together, mm²" in page.words
    assert "HSIL 3 83 350 0.25 0.50" in page.words  # (1000² + 2 x 10²) px² of 0.25 µm²


def test_objects_that_no_window_saw_whole_are_counted(tmp_path):
    page = infer_page(tmp_path, some_objects())

    assert "6 joined of pieces that several windows saw." in page.words


def test_without_resolution_the_page_speaks_of_pixels(tmp_path):
    page = infer_page(tmp_path, some_objects(), mpp=None)

    assert "mean area, px²" in page.words
    assert "µm" not in page.words
    assert page.all("span", **{"class": "bar"}) == []


def test_a_slide_without_objects_gets_a_page_that_says_so(tmp_path):
    page = infer_page(tmp_path, no_objects(3))

    assert "No object was found on this slide." in page.words
    assert page.all("button", **{"class": "cell"}) == []
    assert page.all("img", **{"class": "layer"}) == []


def test_a_slide_without_any_suspicion_gets_a_page_that_says_so(tmp_path):
    page = infer_page(tmp_path, some_objects().take(np.array([1, 3])))

    assert "No object has any suspicion." in page.words
    assert "nucleus 2" in page.words


def test_a_warning_that_came_twice_is_shown_once_with_its_count(tmp_path):
    page = infer_page(tmp_path, no_objects(3), warnings=["blurred", "blurred", "coarse"])

    assert "2 warnings blurred × 2 coarse" in page.words


HOSTILE = "<script>alert('1')</script>\"'&x"


def test_names_from_outside_are_text_and_never_markup(tmp_path):
    classes = [ObjectClass(name=HOSTILE, kind="cell", suspicious=True), *CLASSES[1:]]
    objects = some_objects()

    page = infer_page(
        tmp_path,
        objects.take(np.argsort(objects.class_index, kind="stable")),
        classes=classes,
        slide_id=HOSTILE,
        slide_facts={HOSTILE: HOSTILE},
        run_facts={HOSTILE: {HOSTILE: [HOSTILE]}},
        warnings=[HOSTILE],
    )

    assert len(page.all("script")) == 1  # the page's own
    assert HOSTILE in page.words
    assert any(a.get("data-class") == HOSTILE for a in page.all("button"))


def train_rows():
    losses = [
        {"t": t, "losses": {"roi_cls": 2 / (t + 1)}, "weights": {"roi_cls": 1.0, "pseudo": t / 9}} for t in range(9)
    ]
    return [*losses, {"t": 8, "val": {"student": {"map_50": 0.25}, "teacher": {"map_50": 0.5}}, "seconds": 20.0}]


def test_student_and_teacher_share_a_chart_of_each_metric(tmp_path):
    write_train_report(tmp_path / "r.html", title="run", metrics=train_rows(), facts={})

    page = Page(tmp_path / "r.html")
    validation = page.html[page.html.index("<h2>Validation") : page.html.index("<h2>Losses")]
    assert validation.count("<figure") == 1
    assert "student <b>0.25</b>" in validation
    assert "teacher <b>0.5</b>" in validation


def test_weights_that_never_change_are_told_in_a_line(tmp_path):
    write_train_report(tmp_path / "r.html", title="run", metrics=train_rows(), facts={})

    page = Page(tmp_path / "r.html")
    assert "Constant: roi_cls 1." in page.words
    assert page.html.count('aria-label="pseudo"') == 1


def test_losses_that_are_not_finite_leave_a_gap_and_do_not_stop_the_page(tmp_path):
    values = [1.0, float("nan"), None, float("inf"), 0.5, 0.25]
    rows = [{"t": t, "losses/roi": value} for t, value in enumerate(values)]

    write_train_report(tmp_path / "r.html", title="run", metrics=rows, facts={})

    line = next(a["d"] for a in Page(tmp_path / "r.html").all("path") if a.get("class") == "line")
    assert line.count("M") == 2
    assert "nan" not in line


def test_a_run_that_logged_nothing_gets_a_page_that_says_so(tmp_path):
    write_train_report(tmp_path / "r.html", title="run", metrics=[], facts={})

    assert "Nothing was logged yet." in Page(tmp_path / "r.html").words


def found_layer(title="Student", names=(HOSTILE,)):
    return Layer(title, [box(1.5, 2, 5, 8)], list(names), [0.75], remark="1 found")


def test_samples_show_the_truth_and_what_each_network_found_and_hold_their_image_once(tmp_path):
    truth = Layer("Truth", [box(1, 2, 5, 8), box(6, 6, 9, 9)], ["normal", "HSIL"], remark="2 annotated")
    sample = Sample(np.zeros((20, 30, 3), np.uint8), [truth, found_layer(), found_layer("Teacher")], "tile <3>")

    write_train_report(tmp_path / "r.html", title="run", metrics=[], samples=[sample], facts={})

    page = Page(tmp_path / "r.html")
    assert next(a["d"] for a in page.all("path") if "stroke" in a) == "M5 2L5 8L1 8L1 2Z"
    assert len(page.all("path", **{"class": "rim"})) == 4
    for words in ("tile <3>", "Truth 2 annotated", "Student 1 found", "Teacher 1 found", f"{HOSTILE} 0.75"):
        assert words in page.words
    assert [a["href"][:16] for a in page.all("image")] == ["data:image/jpeg;"]
    assert [a["href"] for a in page.all("use")] == ["#validation-images-0"] * 2
    assert len(page.all("script")) == 1


def test_a_class_map_is_a_veil_with_borders_that_leaves_the_background_clear():
    labels = np.zeros((6, 8), np.uint8)
    labels[1:5, 1:7] = 2
    labels[0, 7] = 255
    layer = Layer("Truth", class_map=labels, class_names=["a", "b"])

    veil = map_picture(layer, {"b": (10, 20, 30)})

    assert layer.shown_names == ["b"]
    assert veil.shape == (6, 8, 4)
    assert veil[2, 3].tolist() == [10, 20, 30, 102]  # inside: 0.4 opaque
    assert veil[1, 1].tolist() == [10, 20, 30, 255]  # the border
    assert veil[0, 0, 3] == veil[5, 7, 3] == 0
    assert veil[0, 7, 3] > 0  # what has no label is shown to have none


def test_a_layer_whose_outlines_names_and_scores_do_not_match_cannot_be_made():
    with pytest.raises(ValueError, match="1 geometries, 0 names"):
        Layer("Truth", [box(0, 0, 1, 1)])
    with pytest.raises(ValueError, match="1 names, 2 scores"):
        Layer("Student", [box(0, 0, 1, 1)], ["a"], [0.5, 0.5])
    with pytest.raises(ValueError, match="no class map"):
        map_picture(found_layer(), {})


def test_pseudo_labels_of_all_classes_share_a_chart_and_are_counted_beside_the_labels(tmp_path):
    rows = [
        {
            "t": t,
            "signals": {"pseudo_labels[a/b]": 30.0, "pseudo_labels[c]": 10.0, "labelled[a/b]": 1.0, "bank_rows": t},
        }
        for t in range(10)
    ]

    write_train_report(tmp_path / "r.html", title="run", metrics=rows, facts={})

    page = Page(tmp_path / "r.html")
    assert page.html.count('aria-label="pseudo-labels by class"') == 1
    assert "a/b 60 75.0% 100.0%" in page.words  # the last two rows
    assert "c 20 25.0% 0.0%" in page.words
    pseudo = page.html[page.html.index("<h2>Pseudo-labels") : page.html.index("<h2>Further signals")]
    assert "bank_rows" not in pseudo


def test_what_the_collapse_detector_said_stands_at_the_top_with_its_iteration(tmp_path):
    rows = [*train_rows(), {"t": 9, "warnings": ["pseudo-labels <vanish>"]}]

    write_train_report(tmp_path / "r.html", title="run", metrics=rows, facts={})

    assert "1 warning Iteration 9: pseudo-labels <vanish>" in Page(tmp_path / "r.html").words


@pytest.mark.parametrize("kind", ["infer", "train"])
def test_a_page_needs_no_network_and_forbids_it(tmp_path, kind):
    if kind == "infer":
        page = infer_page(tmp_path, some_objects())
    else:
        write_train_report(tmp_path / "r.html", title="run", metrics=train_rows(), facts={})
        page = Page(tmp_path / "r.html")

    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none'")
    links = [value for _, attrs in page.elements for key, value in attrs.items() if key in ("src", "href")]
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert "url(" not in page.html
    assert "@import" not in page.html


def test_the_images_of_a_page_can_be_decoded(tmp_path):
    page = infer_page(tmp_path, some_objects())

    for image in page.all("img"):
        data = np.frombuffer(base64.b64decode(image["src"].partition(",")[2]), np.uint8)
        assert cv2.imdecode(data, cv2.IMREAD_UNCHANGED) is not None


def test_the_same_objects_give_the_same_page(tmp_path):
    first = infer_page(tmp_path, some_objects()).html
    second = infer_page(tmp_path, some_objects().take(np.array([3, 1, 0, 5, 4, 2]))).html

    assert first == second


def test_an_outline_with_a_hole_is_drawn_with_the_hole(tmp_path):
    objects = some_objects(1)
    objects.geometry[0] = Polygon(box(0, 10, 10, 20).exterior, [box(4, 14, 6, 16).exterior.coords])

    page = infer_page(tmp_path, objects)

    path = next(a["d"] for a in page.all("path") if a.get("class") == "rim")
    assert path.count("M") == path.count("Z") == 2


def batch():
    return [
        IndexRow("S 1", "done", "S 1/report.html", {"HSIL": 1234}, 0.25, 7, warnings=2),
        IndexRow(HOSTILE, "failed", error="cannot be read <at all>"),
        IndexRow("S 3", "done", "S 3/report.html", {"HSIL": 2, "normal": 5}, 0.875, 1),
        IndexRow("S 2", "done", "S 2/report.html", {"HSIL": 3}, 0.2500001, 9),
    ]


def test_the_index_shows_the_most_suspicious_slide_first_and_links_to_its_report(tmp_path):
    write_index(tmp_path / "index.html", batch(), ["normal", "HSIL"], title="results", facts={"model": "small"})

    page = Page(tmp_path / "index.html")
    assert [a["href"] for a in page.all("a")] == ["S%203/report.html", "S%202/report.html", "S%201/report.html"]
    assert "S 1 done 0.250 7 1 234 0 1 234 2" in page.words
    assert "failed – – – – – 0" in page.words
    assert page.words.index("Failed slides") < page.words.index("cannot be read <at all>")
    assert len(page.all("script")) == 2  # its own


def test_slides_csv_has_the_rows_and_the_figures_of_the_index(tmp_path):
    write_slides_csv(tmp_path / "slides.csv", batch(), ["normal", "HSIL"])

    with (tmp_path / "slides.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["slide_id", "status", "suspicion", "suspicious", "objects", "normal", "HSIL", "warnings", "error"],
            ["S 3", "done", "0.875", "1", "7", "5", "2", "0", ""],
            ["S 2", "done", "0.250", "9", "3", "0", "3", "0", ""],
            ["S 1", "done", "0.250", "7", "1234", "0", "1234", "2", ""],
            [HOSTILE, "failed", "", "", "", "", "", "0", "cannot be read <at all>"],
        ]


def test_the_page_of_a_hundred_thousand_cells_stays_below_15_mb_though_every_crop_is_noise(tmp_path):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (1200, 1200, 3)).astype(np.uint8)
    summary = SlideSummary(CLASSES, (0.25, 0.25), (90_000, 60_000))
    for _ in range(10):
        corner = rng.uniform(0, 1, (10_000, 2)) * (89_000, 59_000)
        xyxy = np.concatenate([corner, corner + rng.uniform(20, 300, (10_000, 2))], axis=1)
        scores = rng.uniform(0, 1, (10_000, 3)).astype(np.float32)
        geometry = np.array(box(*xyxy.T), dtype=object)
        kind, none = scores.argmax(axis=1).astype(np.int32), np.zeros(10_000, np.int32)
        summary.add(Objects(xyxy, kind, scores.max(axis=1), scores, geometry, none.astype(np.uint8), none))

    write_infer_report(
        tmp_path / "report.html",
        slide_id="S-1",
        summary=summary,
        thumbnail=noise,
        crop=lambda area: noise[: area[3] - area[1], : area[2] - area[0]],
        slide_facts={},
        run_facts={},
    )

    page = Page(tmp_path / "report.html")
    assert len(page.all("button", **{"class": "cell"})) == 200
    assert "200 of 100 000 objects" in page.words
    assert (tmp_path / "report.html").stat().st_size < 15e6
