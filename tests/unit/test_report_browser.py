"""The pages in a real browser: what stands there, filters, keyboard and clipboard, and not a word on the console."""

from __future__ import annotations

import numpy as np
import pytest
import shapely

from cytopipe.core.classes import class_named
from cytopipe.core.objects import Objects
from cytopipe.report.index_page import IndexRow, write_index
from cytopipe.report.infer_page import write_infer_report
from cytopipe.report.summary import SlideSummary
from tests.chromium import Chromium

CLASSES = [class_named(name) for name in ("nucleus", "normal", "LSIL", "HSIL")]
OFFSET = (1000, 200)
SHOWN = "[...document.querySelectorAll('.gallery li:not([hidden]) .cell')]"
FOCUSED = "Number(document.activeElement.dataset.rank)"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("profile")) as browser:
        browser.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
        yield browser


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The report of a slide of 3000 cells: LSIL, HSIL and normal by turns, suspicion falling."""
    n = 3000
    size = (40_000, 20_000)
    rng = np.random.default_rng(0)
    corner = np.stack([rng.permutation(n) * 13.0, rng.uniform(0, 19_900, n).round()], axis=1)
    xyxy = np.concatenate([corner, corner + 60], axis=1)
    kind = (np.arange(n) % 3 + 1).astype(np.int32)
    scores = np.zeros((n, 4), np.float32)
    scores[:, 3] = 1 - np.arange(n) / n
    certainty = np.where(np.arange(n) % 2, 0.9, 0.4).astype(np.float32)
    geometry = np.array(shapely.box(*xyxy.T), dtype=object)
    summary = SlideSummary(CLASSES, (0.25, 0.25), size)
    none = np.zeros(n, np.int32)
    objects = Objects(xyxy, kind, certainty, scores, geometry, none.astype(np.uint8), none)
    summary.add(objects, [f"id-{k}" for k in range(n)])
    slide = rng.integers(60, 255, (128, 128, 3)).astype(np.uint8)
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_infer_report(
        path,
        slide_id="S-1 <b>",
        summary=summary,
        thumbnail=np.full((300, 600, 3), 235, np.uint8),
        crop=lambda area: np.tile(slide, (4, 4, 1))[: area[3] - area[1], : area[2] - area[0]],
        slide_facts={"reader": "tiff"},
        run_facts={"model": {"name": "small"}, "device": "cpu"},
        warnings=["blurred"],
        bounds_offset=OFFSET,
    )
    return path


@pytest.fixture
def page(chromium, report):
    """The report, freshly opened; whatever a test does with it, the browser must not complain or fetch anything."""
    chromium.open(report)
    yield chromium
    assert chromium.complaints() == []
    assert chromium.fetched() == []


def test_the_report_has_all_its_parts_and_every_image_of_it_can_be_seen(page):
    heads = page.look("[...document.querySelectorAll('h2')].map(e => e.textContent)")
    assert heads == ["1 warning", "Slide map", "Classes", "Scores", "Most suspicious", "Run", "Slide"]
    assert page.look("document.querySelectorAll('table.classes tbody tr').length") == 4
    assert page.look("document.querySelectorAll('svg.chart g rect').length") > 0
    assert page.look(f"{SHOWN}.length") == 200
    assert page.look("document.querySelectorAll('.map .dots a').length") == 200
    page.look("document.querySelectorAll('img').forEach(i => { i.loading = 'eager'; })")
    page.until("[...document.querySelectorAll('img')].every(i => i.complete && i.naturalWidth > 0)")
    assert page.look("[...document.querySelectorAll('.cell img')].every(i => i.naturalWidth === 96)")  # 60 px x 1.6


@pytest.mark.parametrize("width", [1400, 700, 380])
def test_the_report_fits_windows_of_any_width(chromium, report, width):
    chromium.open(report, width=width)

    assert chromium.look("document.documentElement.scrollWidth <= innerWidth")
    chromium.click(".cell")
    assert chromium.look("(b => b.left >= 0 && b.right <= innerWidth)(document.querySelector('dialog')"
                         ".getBoundingClientRect())")  # fmt: skip
    picture = "document.querySelector('dialog .crop').getBoundingClientRect()"
    about = "document.querySelector('dialog .about').getBoundingClientRect()"
    assert chromium.look(f"{picture}.right <= {about}.left + 1 || {picture}.bottom <= {about}.top + 1")


def test_a_class_and_a_least_score_filter_the_gallery_and_the_dots_together(page):
    page.click("[data-filter='HSIL']")

    assert set(page.look(f"{SHOWN}.map(e => e.dataset.class)")) == {"HSIL"}
    of_class = page.look(f"{SHOWN}.length")
    assert page.look("document.querySelector('[data-filter=HSIL]').getAttribute('aria-pressed')") == "true"
    assert page.look("document.querySelector('[data-filter=\"\"]').getAttribute('aria-pressed')") == "false"
    page.look("(e => { e.value = 0.5; e.dispatchEvent(new Event('input')); })(document.querySelector('.least'))")
    rest = page.look(f"{SHOWN}.map(e => e.dataset.score)")
    assert set(rest) == {"0.90"}
    assert 0 < len(rest) < of_class < 200
    assert page.look("document.querySelectorAll('.map .dots a:not([hidden])').length") == len(rest)
    assert page.look("document.querySelector('.shown').textContent") == f"{len(rest)} shown"
    page.look("(e => { e.value = 1; e.dispatchEvent(new Event('input')); })(document.querySelector('.least'))")
    assert page.look("getComputedStyle(document.querySelector('.none')).display") != "none"
    page.look("(e => { e.value = 0; e.dispatchEvent(new Event('input')); })(document.querySelector('.least'))")
    page.click("[data-filter='']")
    assert page.look(f"{SHOWN}.length") == 200


def test_a_click_shows_an_object_and_copies_its_place(page):
    place = page.look("(d => `${d.x}, ${d.y}`)(document.querySelectorAll('.cell')[2].dataset)")

    page.click("#cell-3 .cell")

    assert page.look("document.querySelector('dialog').open")
    page.until("document.querySelector('.toast').classList.contains('on')")
    assert page.look("document.querySelector('.toast').textContent") == f"Copied {place}"
    assert page.look("navigator.clipboard.readText()") == place
    rows = page.look("Object.fromEntries([...document.querySelectorAll('dialog dt')]"
                     ".map(e => [e.textContent, e.nextElementSibling.textContent]))")  # fmt: skip
    x, y = map(int, place.split(", "))
    assert rows["Level-0 px"] == place
    assert rows["QuPath px"] == f"{x - OFFSET[0]}, {y - OFFSET[1]}"
    assert rows["Id"] == "id-2"
    page.click(".copy-qupath")
    page.until(f"document.querySelector('.toast').textContent === 'Copied {rows['QuPath px']}'")
    assert page.look("navigator.clipboard.readText()") == rows["QuPath px"]


def test_without_a_clipboard_of_the_browser_the_old_way_of_copying_serves(page):
    page.look("Object.defineProperty(navigator, 'clipboard', {value: undefined}); 1")
    page.look("document.addEventListener('copy', e => { window.copied = String(document.activeElement.value); }); 1")

    page.click("#cell-5 .cell")

    place = page.look("(d => `${d.x}, ${d.y}`)(document.querySelectorAll('.cell')[4].dataset)")
    assert page.look("window.copied") == place
    assert page.look("document.querySelector('dialog').contains(document.activeElement)")


def test_the_gallery_is_walked_opened_and_left_with_the_keyboard_alone(page):
    columns = page.look("getComputedStyle(document.querySelector('.gallery')).gridTemplateColumns.split(' ').length")
    page.look("document.querySelector('.outline').focus()")
    page.press("Tab")
    assert page.look(FOCUSED) == 1
    page.press("ArrowRight")
    assert page.look(FOCUSED) == 2
    page.press("ArrowDown")
    assert page.look(FOCUSED) == 2 + columns
    assert page.look("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # the focus can be seen
    page.press("ArrowUp")
    page.press("ArrowLeft")
    assert page.look(FOCUSED) == 1
    page.press("ArrowLeft")
    assert page.look(FOCUSED) == 1  # there is nothing before the first
    page.press("End")
    assert page.look(FOCUSED) == 200
    page.press("Home")
    page.press("Enter")
    assert page.look("document.querySelector('dialog').open")
    page.press("ArrowRight")
    assert page.look("document.querySelector('dialog .rank').textContent") == "2 of 200"
    page.press("Escape")
    assert not page.look("document.querySelector('dialog').open")
    page.until(f"({FOCUSED}) === 2")  # back where one was, once the browser has told of the closing
    page.press("c")
    page.until("document.querySelector('.toast').classList.contains('on')")
    page.press("o")
    assert page.look("getComputedStyle(document.querySelector('.cell svg')).display") == "none"


def test_arrow_keys_step_over_what_is_filtered_away(page):
    page.click("[data-filter='normal']")
    page.look("document.querySelector('.outline').focus()")
    page.press("Tab")
    page.press("ArrowRight")

    ranks = page.look(f"{SHOWN}.map(e => Number(e.dataset.rank))")
    assert page.look(FOCUSED) == ranks[1]
    assert ranks[1] > ranks[0] + 1


def test_one_density_is_shown_at_a_time_or_none_and_the_dots_can_be_hidden(page):
    layers = "[...document.querySelectorAll('.map .layer')].filter(e => e.offsetParent).map(e => e.dataset.layer)"

    assert page.look(layers) == ["density"]
    page.click("[data-layer='suspicion']:not(img)")
    assert page.look(layers) == ["suspicion"]
    page.click("button[data-layer='']")
    assert page.look(layers) == []
    page.click(".dotted")
    assert page.look("getComputedStyle(document.querySelector('.map .dots')).display") == "none"


def test_a_dot_on_the_map_opens_its_object(page):
    page.click(".map .dots a[data-rank='1']")

    assert page.look("document.querySelector('dialog .rank').textContent") == "1 of 200"


def test_the_policy_of_a_page_refuses_scripts_that_are_not_its_own(chromium, report, tmp_path):
    changed = report.read_text(encoding="utf-8").replace("</body>", "<script>window.stranger = 1</script></body>")
    (tmp_path / "changed.html").write_text(changed, encoding="utf-8")

    chromium.open(tmp_path / "changed.html")

    assert chromium.look("window.stranger === undefined")
    assert any("Content Security Policy" in complaint for complaint in chromium.complaints())


def test_the_index_sorts_by_suspicion_at_first_and_by_a_column_on_a_click(chromium, tmp_path):
    rows = [
        IndexRow(f"S-{k}", "done", f"S-{k}/report.html", {"HSIL": count}, suspicion, count)
        for k, (suspicion, count) in enumerate([(0.1, 9), (0.9, 10), (0.5, 200), (0.7, 0)] * 4)
    ]
    rows.append(IndexRow("bad", "failed", error="no slide"))
    write_index(tmp_path / "index.html", rows, ["HSIL"], title="results", facts={"model": "small"})

    chromium.open(tmp_path / "index.html")

    def column(number):
        return chromium.look(
            f"[...document.querySelectorAll('#slides tbody tr')].map(e => e.cells[{number}].dataset.value)"
        )

    assert column(2) == ["0.900"] * 4 + ["0.700"] * 4 + ["0.500"] * 4 + ["0.100"] * 4 + [""]
    assert chromium.look("document.querySelector('#slides [aria-sort=descending]').textContent") == "suspicion"
    chromium.click("#slides th:nth-child(5) button")
    assert column(4) == ["200"] * 4 + ["10"] * 4 + ["9"] * 4 + ["0"] * 4 + [""]  # by number, not by digits
    chromium.click("#slides th:nth-child(5) button")
    assert column(4) == ["0"] * 4 + ["9"] * 4 + ["10"] * 4 + ["200"] * 4 + [""]  # what failed stays at the end
    chromium.click("#slides th:nth-child(1) button")
    assert column(0) == ["bad"] + [f"S-{k}" for k in range(16)]
    chromium.click("#slides th:nth-child(1) button")
    assert chromium.look("document.querySelectorAll('#slides [aria-sort=descending]').length") == 1
    assert column(0) == [f"S-{k}" for k in reversed(range(16))] + ["bad"]
    chromium.look("(e => { e.value = 's-1'; e.dispatchEvent(new Event('input')); })"
                  "(document.querySelector('#slide-filter'))")  # fmt: skip
    assert chromium.look("document.querySelectorAll('#slides tbody tr:not([hidden])').length") == 7  # 1, 10 to 15
    assert chromium.complaints() == []
    assert chromium.fetched() == []
