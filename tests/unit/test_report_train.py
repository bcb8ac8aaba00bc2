"""The page of a training run in a real browser: all of it there, for all three tasks, and not a word on the console."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from cytopipe.report.panels import Layer, Sample
from cytopipe.report.train_page import write_train_report
from tests.chromium import Chromium

ITERATIONS = 400


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


def rows():
    """A log as train/log.py keeps it, with a burn-in, a ramp, a teacher, two classes and a warning."""
    for t in range(ITERATIONS):
        row = {
            "t": t,
            "losses": {"roi_cls": 2 / (t + 1), "L'_pml": 0.5},
            "weights": {"roi_cls": 1.0, "L'_pml": t / ITERATIONS},
            "total": 2 / (t + 1),
            "lr": 0.01 * (1 - t / ITERATIONS),
            "seconds": 0.2,
            "signals": {"labelled[LSIL]": 3.0, "labelled[HSIL]": 1.0},
        }
        if t >= 100:
            row["alpha"] = 1 - 1 / (t - 98)
            row["signals"] |= {
                "pseudo_labels_per_image": 5.0,
                "pseudo_labels[LSIL]": 8.0,
                "pseudo_labels[HSIL]": 2.0,
                "images_without_pseudo_label_fraction": 0.1,
            }
        yield row
        if (t + 1) % 100 == 0:
            values = {"map_50": t / ITERATIONS, "ap_50/LSIL": 0.5, "ap_50/HSIL": 0.25}
            yield {"t": t + 1, "val": {"student": values, "teacher": values}, "seconds": 9.0}
    yield {"t": ITERATIONS - 1, "warnings": ["pseudo-labels vanish: 0.1 an image; lower the bar"]}


def samples_of(task):
    """(validation samples, unlabelled samples) with three panels each."""
    rng = np.random.default_rng(0)
    image = rng.integers(90, 230, (96, 128, 3)).astype(np.uint8)
    names = ["LSIL", "HSIL"]
    if task == "semantic":
        labels = np.zeros((96, 128), np.uint8)
        labels[20:60, 30:80] = 1
        labels[50:90, 90:120] = 2

        def layer(title):
            return Layer(title, class_map=labels, class_names=names)
    else:
        shapes = [shapely.box(20, 20, 60, 70), shapely.box(70, 30, 110, 60)]
        if task == "instance":
            shapes = [shapely.Point(40, 45).buffer(20), shapely.Point(90, 45).buffer(15)]

        def layer(title):
            return Layer(title, shapes, names, None if title == "Truth" else [0.9, 0.6], remark="2 found")

    networks = [layer("Student"), layer("Teacher")]
    sample = Sample(image, [layer("Truth"), *networks], "tile <1>")
    return [sample, sample], [Sample(image, [layer("Pseudo-labels"), *networks])]


@pytest.fixture(params=["detection", "instance", "semantic"])
def page(request, chromium, tmp_path):
    """A finished run's report, opened; the browser must not complain or fetch anything."""
    samples, pseudo = samples_of(request.param)
    path = tmp_path / "report.html"
    write_train_report(
        path,
        title=f"mean-teacher {request.param}",
        metrics=list(rows()),
        samples=samples,
        pseudo_samples=pseudo,
        key_figures=[("map_50", "0.412", "teacher")],
        facts={"seed": 1, "settings": {"lr": 0.01}},
    )
    chromium.open(path)
    yield chromium
    assert chromium.complaints() == []
    assert chromium.fetched() == []


def test_the_page_has_all_its_parts_in_order(page):
    assert page.look("[...document.querySelectorAll('h2')].map(e => e.textContent)") == [
        "1 warning",
        "Validation",
        "Losses",
        "Pseudo-labels",
        "Weights of the losses, EMA of the teacher, learning rate",
        "Validation by class",
        "Pace and gradients",
        "Validation images",
        "Unlabelled images",
        "Run",
    ]
    charts = page.look("[...document.querySelectorAll('.plot svg')].map(e => e.getAttribute('aria-label'))")
    assert {"map_50", "roi_cls", "L'_pml", "pseudo-labels an image", "pseudo-labels by class", "α of the teacher",
            "learning rate", "ap_50/HSIL"} <= set(charts)  # fmt: skip
    assert page.look("document.querySelectorAll('.plot .line').length") >= len(charts)
    assert page.look("[...document.querySelectorAll('table.classes tbody th')].map(e => e.textContent)") == [
        "LSIL",
        "HSIL",
    ]


def test_every_panel_shows_the_image_and_what_is_drawn_over_it(page):
    titles = page.look("[...document.querySelectorAll('.panel figcaption')].map(e => e.firstChild.textContent.trim())")
    assert titles == ["Truth", "Student", "Teacher"] * 2 + ["Pseudo-labels", "Student", "Teacher"]
    # a <use> has the box of the image that it repeats: 0 where its target is missing
    boxes = page.look(
        "[...document.querySelectorAll('.panel svg > image, .panel svg > use')].map(e => e.getBBox().width)"
    )
    assert boxes == [128.0] * 9
    assert page.look(
        "[...document.querySelectorAll('.panel .overlay')].every(e => e.getBoundingClientRect().width > 10)"
    )
    page.click("[data-toggle='overlays']")
    assert page.look("getComputedStyle(document.querySelector('.panel .overlay')).display") == "none"
    assert page.look("document.querySelector('[data-toggle=overlays]').getAttribute('aria-pressed')") == "false"


@pytest.mark.parametrize("width", [1400, 700, 380])
def test_the_page_fits_windows_of_any_width(chromium, tmp_path, width):
    samples, pseudo = samples_of("instance")
    metrics = list(rows())
    write_train_report(
        tmp_path / "r.html", title="x" * 60, metrics=metrics, samples=samples, pseudo_samples=pseudo, facts={"a": 1}
    )

    chromium.open(tmp_path / "r.html", width=width)

    assert chromium.look("document.documentElement.scrollWidth <= innerWidth")
    assert chromium.complaints() == []


def test_the_value_under_the_pointer_is_read_off_a_curve(page):
    middle = page.look(
        "(b => [b.left + b.width / 2, b.top + b.height / 2])"
        "(document.querySelector('.plot svg').getBoundingClientRect())"
    )
    page.look(
        "document.querySelector('.plot svg').dispatchEvent(new PointerEvent('pointermove', "
        f"{{clientX: {middle[0]}, clientY: {middle[1]}}}))"
    )

    assert "iteration" in page.look("document.querySelector('.plot h3').textContent")
    assert page.look("document.querySelectorAll('.plot .readout circle').length") == 2  # student and teacher
