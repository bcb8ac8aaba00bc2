"""Real slides and the edge files of other projects: opened rightly, or refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import find_objects

from cytopipe.core.errors import RunError, UserError
from cytopipe.slides import MppView, Showing, Slide, find_foreground, list_slides, open_slide, thumbnail
from cytopipe.steps.info import info
from tests.agreement import agree
from tests.conftest import shared_data

NDPI, SVS = "test3-DAPI-2-(387).ndpi", "CMU-1-Small-Region.svs"
DICOM = "camelyon_dicom/multiframe_camelyon_challenge_image.dcm"

OPENED = {
    "boxes.tiff": ("tiff", (300, 250), 4),
    "small.svs": ("tiff", (16, 16), 1),
    "dicom_boxes/boxes_0.dcm": ("openslide", (16, 16), 1),
    "dicom_boxes/boxes_1.dcm": ("openslide", (16, 16), 1),
    "small_la.tiff": ("openslide", (2, 1), 1),
    "grey10kx5k.tif": ("tiff", (10000, 5000), 1),
    "yb10kx5k.zstd.tiff": ("tiff", (10000, 5000), 5),
    "unreadable.svs": ("tiff", (16, 16), 1),
    **{f"test_orient{number}.tif": ("tiff", (120, 180), 3) for number in range(9)},
}
REFUSED = {
    "broken.svs": "tiff: not a TIFF",
    "unopenable.tiff": "compression 52479",
    "zero_gi.tif": "a page of 2 x 0 px",
    "dicom_concatenation/test_wsi.dcm": "Found associated image as a concatenation member",
    "4D-series.ome.tiff": "a time series of 7 frames",
    "multi-channel-z-series.ome.tif": "a stack of 5 planes and 3 channels (0, 1, 2); choose a plane by --z 0 to 4",
}


@pytest.mark.parametrize("name", OPENED)
def test_an_edge_file_opens_with_the_reader_size_and_levels_that_it_has(name):
    reader, size, levels = OPENED[name]

    with open_slide(shared_data("edge_slides") / name) as slide:
        assert (slide.reader, slide.dimensions, len(slide.levels)) == (reader, size, levels)
        if name.endswith((".tif", ".tiff")):
            assert slide.resolution is None  # 72 dpi and the like
            assert "not believed" in slide.notes[0]


@pytest.mark.parametrize("name", REFUSED)
def test_an_edge_file_that_cannot_be_shown_is_refused_in_one_line_that_says_why(name):
    with pytest.raises(UserError) as refusal:
        open_slide(shared_data("edge_slides") / name)

    assert REFUSED[name] in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_every_edge_file_is_either_opened_or_refused():
    folder = shared_data("edge_slides")
    files = {
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != "SOURCE.txt"
    }

    assert files == set(OPENED) | set(REFUSED)


@pytest.mark.parametrize("name", sorted(set(OPENED) - {"unreadable.svs"}))
def test_every_level_of_an_edge_file_can_be_read_and_looked_at(name):
    with open_slide(shared_data("edge_slides") / name) as slide:
        for index, level in enumerate(slide.levels):
            assert slide.read(index, 0, 0, min(level.width, 300), min(level.height, 300)).dtype == np.uint8
        assert max(thumbnail(slide, 64).shape) <= max(64, *slide.dimensions)
        assert 0 <= find_foreground(slide).kept_fraction <= 1


@pytest.mark.parametrize("reader", ["tiff", "openslide"])
def test_a_slide_whose_tiles_are_damaged_is_an_error_with_the_place_and_never_blank(reader):
    with open_slide(shared_data("edge_slides") / "unreadable.svs", reader=reader) as slide:
        for look in (
            lambda: slide.read(0, 0, 0, 16, 16),
            lambda: slide.background,
            lambda: find_foreground(slide, "light"),
        ):
            with pytest.raises(RunError, match=r"unreadable\.svs, level 0, at x 0 y 0"):
                look()


@pytest.mark.parametrize(
    "name", ["boxes.tiff", "small.svs", "yb10kx5k.zstd.tiff", "test_orient0.tif", "test_orient1.tif"]
)
def test_both_readers_say_and_show_the_same_of_an_edge_file(name):
    path = shared_data("edge_slides") / name
    with open_slide(path, reader="tiff") as slide, open_slide(path, reader="openslide") as peer:
        agree(slide, peer, 0)


@pytest.mark.parametrize("number", range(9))
def test_an_orientation_tag_leaves_the_pixels_as_they_are_stored(number):
    # Not compared with OpenSlide: it lets libtiff turn each tile by itself, and so shuffles the picture.
    folder = shared_data("edge_slides")
    with open_slide(folder / f"test_orient{number}.tif") as slide, open_slide(folder / "test_orient1.tif") as plain:
        np.testing.assert_array_equal(slide.read(0, 0, 0, 120, 180), plain.read(0, 0, 0, 120, 180))


def test_both_readers_say_and_show_the_same_of_a_real_svs():
    path = shared_data("wsi") / SVS
    with open_slide(path, reader="tiff") as tiff, open_slide(path, reader="openslide") as openslide:
        agree(tiff, openslide, 2)  # JPEG: two decoders
        assert (tiff.vendor, tiff.dimensions) == ("aperio", (2220, 2967))
        assert (tiff.objective, tiff.resolution.mpp) == (20, 0.499)


def test_a_stack_with_channels_is_read_as_tifffile_reads_it():
    path = shared_data("edge_slides") / "multi-channel-z-series.ome.tif"
    stored = tifffile.imread(path).astype(int)  # (3, 5, 167, 439) int8

    for z in range(5):
        with open_slide(path, showing=Showing(z=z, channels="2,-,0")) as slide:
            assert (slide.dimensions, slide.z_count, slide.channels) == ((439, 167), 5, ("0", "1", "2"))
            read = slide.read(0, 0, 0, 439, 167)
        np.testing.assert_array_equal(read[..., 0], stored[2, z] + 128)
        np.testing.assert_array_equal(read[..., 2], stored[0, z] + 128)
        assert (read[..., 1] == 0).all()


def test_the_objective_of_each_real_slide_is_what_its_file_says():
    for name, power in ((SVS, 20.0), (NDPI, 40.0), (DICOM, None)):
        with open_slide(shared_data("wsi") / name) as slide:
            assert slide.objective == power


@pytest.mark.parametrize("name", [SVS, NDPI, DICOM])
def test_a_colour_profile_of_a_real_slide_is_applied_on_request_only(name):
    path = shared_data("wsi") / name
    with open_slide(path) as stored, open_slide(path, showing=Showing(icc="srgb")) as shown:
        window = (0, *(side // 3 for side in stored.dimensions), 200, 150)
        said = "its ICC profile is not applied; --icc srgb applies it"
        assert (said in stored.notes) == (stored.icc is not None)
        assert ("it has no ICC profile; its colours are shown as stored" in shown.notes) == (stored.icc is None)
        if stored.icc is None:
            np.testing.assert_array_equal(stored.read(*window), shown.read(*window))
        whole = shown.read(*window)
        x, y = window[1] + 40, window[2] + 30
        np.testing.assert_array_equal(shown.read(0, x, y, 100, 90), whole[30:120, 40:140])


def test_the_resolution_of_each_real_slide_is_the_vendors():
    folder = shared_data("wsi")
    found = {}
    for name in (SVS, NDPI, DICOM):
        with open_slide(folder / name) as slide:
            assert slide.resolution.source.startswith("vendor field")
            found[name] = (slide.reader, round(slide.resolution.mpp_x, 4), slide.background)

    assert found == {
        SVS: ("tiff", 0.499, "light"),
        NDPI: ("openslide", 0.2282, "dark"),
        DICOM: ("openslide", 28.969, "light"),
    }


def test_brackets_in_the_name_of_a_slide_are_no_glob():
    folder = shared_data("wsi")

    assert [entry.slide_id for entry in list_slides([folder / NDPI])] == ["test3-DAPI-2-(387)"]
    assert [entry.path.name for entry in list_slides([folder])] == [SVS, NDPI]


def test_the_instances_of_a_dicom_slide_are_listed_as_one():
    assert len(list_slides([shared_data("edge_slides") / "dicom_boxes"])) == 1


def test_a_slide_far_coarser_than_the_target_is_refused_unless_forced():
    with open_slide(shared_data("wsi") / DICOM) as slide:
        with pytest.raises(UserError, match=r"finest level is 28\.97 µm/px, coarser than the 0\.5 asked by over 2x"):
            MppView(slide, 0.5)
        assert MppView(slide, 0.5, force=True).warning is not None
        assert MppView(slide, None).mpp == pytest.approx(28.9685)


@pytest.mark.parametrize(("name", "mpp"), [(SVS, 1.3), (SVS, 0.4), (NDPI, 0.5), (NDPI, 0.25), (DICOM, 100.0)])
def test_a_real_slide_at_a_target_mpp_is_the_same_through_any_window(name, mpp):
    random = np.random.default_rng(1)
    with open_slide(shared_data("wsi") / name) as slide:
        view = MppView(slide, mpp)
        x0, y0 = view.width // 3, view.height // 3
        w, h = min(300, view.width - x0), min(300, view.height - y0)
        whole = view.read(x0, y0, w, h)
        for _ in range(5):
            x, y = int(random.integers(0, w - 9)), int(random.integers(0, h - 9))
            np.testing.assert_array_equal(view.read(x0 + x, y0 + y, w - x, h - y), whole[y:, x:])


def test_the_foreground_of_real_slides_holds_what_is_dark_on_glass_and_bright_on_black():
    for name in (SVS, NDPI):
        with open_slide(shared_data("wsi") / name) as slide:
            foreground = find_foreground(slide)
            small = thumbnail(slide, 512)
            scale_y, scale_x = slide.dimensions[1] / small.shape[0], slide.dimensions[0] / small.shape[1]
            seen = small.min(axis=2) < 200 if slide.background == "light" else small.max(axis=2) > 60
            places = np.argwhere(seen)[::97]
            kept = [
                foreground.fraction(x * scale_x, y * scale_y, (x + 1) * scale_x, (y + 1) * scale_y) for y, x in places
            ]
            # all but flecks under the mask's own grain: one of 4 µm lies alone on the glass of the first slide
            assert np.mean(np.array(kept) > 0.99) > 0.995
            assert foreground.kept_fraction < 0.8  # both have large empty parts


def test_the_foreground_of_real_pap_smears_loses_less_than_1_nucleus_in_100_and_saves_glass():
    folder = shared_data("pap_edf")
    kept, nuclei, saved = 0, 0, []
    for path in sorted((folder / "images").glob("*.png")):
        with open_slide(path) as slide:
            foreground = find_foreground(slide)
        labels = np.asarray(Image.open(folder / "labels" / path.name))
        for rows, columns in find_objects(labels):
            kept += foreground.fraction(columns.start, rows.start, columns.stop, rows.stop) >= 0.5
            nuclei += 1
        saved.append(1 - foreground.kept_fraction)

    assert nuclei == 876
    assert kept >= 0.99 * nuclei
    assert np.mean(saved) > 0.25


@pytest.mark.parametrize("name", [SVS, NDPI, DICOM])
def test_nothing_that_names_people_or_times_reaches_the_properties(name):
    with open_slide(shared_data("wsi") / name) as slide:
        _assert_nothing_personal(slide)
    with open_slide(shared_data("wsi") / name, reader="openslide") as slide:
        _assert_nothing_personal(slide)


def _assert_nothing_personal(slide: Slide) -> None:
    told = " ".join([*slide.properties, *slide.properties.values(), *slide.notes]).lower()
    for word in ("patient", "label", "macro", "user", "date", "barcode", "filename", "comment", "serial", "scanscope"):
        assert word not in told, word
    for value in ("b414003d", "12/29/09", "09:59", "2011/05", "2017", "dapi", "congo red"):  # user, dates, slide names
        assert value not in told, value


def test_info_tells_the_facts_of_a_real_slide():
    found = info(shared_data("wsi") / NDPI)

    assert (found.reader, found.vendor, found.width, found.height) == ("openslide", "hamamatsu", 3968, 4864)
    assert [level.width for level in found.levels] == [3968, 1984, 992, 496, 248, 124, 62]
    assert found.levels[1].mpp == pytest.approx(0.4564, abs=1e-4)
    assert (found.background, found.is_mpp_guessed, found.has_icc, found.unreadable_fraction) == (
        "dark",
        False,
        False,
        0,
    )
    assert 0.5 < found.foreground_fraction < 0.8
