"""Pictures: outlines lie where the objects are, tiles are framed where they were cut, bars are as long as they tell."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image
from shapely import MultiPolygon, box

from cytopipe.formats.colours import colour_of
from cytopipe.report.charts import line_chart, stacked_histogram
from cytopipe.report.density import density_picture
from cytopipe.report.encode import fit, jpeg_within, number, plain
from cytopipe.report.overview import write_overview
from cytopipe.report.picture import INK, draw_objects, write_picture
from cytopipe.report.scale import bar_length_um, length_text

GREY = np.full((60, 80, 3), 128, np.uint8)


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_an_outline_runs_along_the_edge_of_its_object_and_leaves_the_inside_alone():
    drawn = draw_objects(GREY, [box(20, 10, 60, 50)], [(255, 0, 0)], line_px=1)

    change = np.abs(drawn.astype(float) - 128).sum(axis=2)[30]  # along x, through the middle
    x = np.arange(80) + 0.5  # centres of pixels
    assert np.average(x[:40], weights=change[:40]) == pytest.approx(20, abs=0.1)
    assert np.average(x[40:], weights=change[40:]) == pytest.approx(60, abs=0.1)
    assert (drawn[15:45, 25:55] == 128).all()
    assert (GREY == 128).all()  # the image given is not written to


def test_every_part_of_an_object_is_outlined_and_what_lies_outside_is_cut_off():
    two = MultiPolygon([box(5, 5, 15, 15), box(70, 50, 200, 200)])

    drawn = draw_objects(GREY, [two], [(255, 0, 0)])

    assert drawn.shape == GREY.shape
    assert (drawn[5:15, 5:15] != 128).any()
    assert (drawn[50:, 70:] != 128).any()


def test_a_picture_gets_a_legend_in_the_colours_of_its_classes_and_a_bar_of_the_true_length(tmp_path):
    image = np.full((200, 600, 3), 128, np.uint8)

    write_picture(tmp_path / "p.png", image, [box(20, 10, 60, 50)], ["HSIL"], mpp=0.5)

    picture = pixels(tmp_path / "p.png")
    strip = picture[200:]
    assert picture.shape[1] == 600
    assert (strip == colour_of("HSIL")).all(axis=2).any()
    rows = ["".join("#" if inked else " " for inked in row) for row in (strip == INK).all(axis=2)]
    longest = max(len(run) for row in rows for run in row.split())
    assert longest == pytest.approx(100, abs=1)  # 50 µm at 0.5 µm/px, and a fifth of 600 px holds no more


def test_the_overview_frames_what_was_kept_and_pales_what_was_dropped(tmp_path):
    thumbnail = np.full((450, 900, 3), 100, np.uint8)
    kept, dropped = np.array([[0.0, 0, 3000, 3000]]), np.array([[6000.0, 0, 9000, 3000]])

    write_overview(tmp_path / "o.jpg", thumbnail, kept, dropped, (10.0, 10.0), 0.25)

    picture = pixels(tmp_path / "o.jpg").astype(int)
    assert (picture[0, 50:250, 0] < 60).all()  # KEPT has no red; JPEG blurs the single line of the frame
    assert (picture[150, 50:250, 0] > 80).all()  # inside is a tint only
    assert np.abs(picture[150, 450] - 100).max() < 5  # in neither
    assert (picture[150, 750] > 150).all()  # veiled


def test_an_overview_without_tiles_or_resolution_is_a_picture_too(tmp_path):
    none = np.zeros((0, 4))

    write_overview(tmp_path / "o.jpg", np.full((20, 30, 3), 100, np.uint8), none, none, (10.0, 10.0), None)

    assert pixels(tmp_path / "o.jpg").shape[1] == 900


def test_the_density_is_highest_where_most_points_lie_and_clear_where_none_do():
    counts = np.zeros((100, 200))
    counts[20, 20], counts[80, 150] = 50, 1

    picture = density_picture(counts)

    alpha = picture[..., 3]
    assert picture.shape == (100, 200, 4)
    assert alpha[20, 20] > alpha[80, 150] > 0
    assert alpha[5, 195] == 0


def test_a_slide_without_points_has_a_clear_density():
    assert not density_picture(np.zeros((20, 30)))[..., 3].any()


def test_the_bars_of_a_histogram_are_as_tall_as_their_counts():
    chart = stacked_histogram({"a": np.array([0.1, 0.1, 0.9], np.float32)}, {"a": "#123456"})

    heights = [float(part.split('"')[0]) for part in chart.split("<rect")[1:] for part in [part.split('height="')[1]]]
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.02)
    assert len(heights) == 2


def test_charts_of_nothing_are_empty():
    assert stacked_histogram({"a": np.zeros(0, np.float32)}, {"a": "#000"}) == ""
    assert line_chart("a", {"": [(0.0, float("nan"))]}) == ""


def test_a_chart_of_one_value_has_an_axis_around_it():
    chart = line_chart("lr", {"": [(0.0, 0.005), (1.0, 0.005)]})

    assert "nan" not in chart
    assert ">0.005<" in chart.replace("<b>0.005</b>", "")


@pytest.mark.parametrize(
    ("max_um", "length", "text"),
    [(99, 50, "50 µm"), (100, 100, "100 µm"), (4999, 2000, "2 mm"), (0.7, 0.5, "0.5 µm"), (1, 1, "1 µm")],
)
def test_scale_bars_have_round_lengths(max_um, length, text):
    assert bar_length_um(max_um) == pytest.approx(length)
    assert length_text(bar_length_um(max_um)) == text


def test_a_scale_bar_of_no_length_is_refused():
    with pytest.raises(ValueError, match="bar_length_um"):
        bar_length_um(0)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (1234567, "1\u2009234\u2009567"), (0.5, "0.5"), (12.3456, "12.3"), (0.00012, "0.00012"),
     (999.6, "1000"), (float("nan"), "–"), (-3.0, "-3")],
)  # fmt: skip
def test_numbers_are_told_as_people_write_them(value, text):
    assert number(value) == text


def test_facts_of_any_kind_become_plain_text():
    assert plain([1, 2.5, None, True]) == "1, 2.5, –, yes"
    assert plain({"HSIL": 3, "normal": 4}) == "HSIL 3, normal 4"
    assert plain("a < b") == "a < b"


def test_a_jpeg_keeps_to_its_bytes_and_gives_up_quality_before_pixels():
    noise = np.random.default_rng(0).integers(0, 256, (200, 100, 3)).astype(np.uint8)

    sizes = {}
    for limit in (60_000, 12_000, 4_000):
        uri, scale = jpeg_within(noise, limit)
        data = base64.b64decode(uri.partition(",")[2])
        assert len(data) <= limit
        sizes[limit] = scale
        with Image.open(io.BytesIO(data)) as image:
            assert image.height == pytest.approx(200 * scale)

    assert sizes == {60_000: 1, 12_000: 1, 4_000: 0.5}


def test_an_image_is_shrunk_and_never_enlarged():
    assert fit(GREY, 40).shape == (30, 40, 3)
    assert fit(GREY, 500) is GREY
    assert fit(np.zeros((1, 1000, 3), np.uint8), 10).shape == (1, 10, 3)
