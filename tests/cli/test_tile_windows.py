"""`cytopipe tile` beyond the plain grid: regions, random windows, windows around objects, sharpness; what is said."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
from shapely import Point, box

from cytopipe.formats.annotations import Annotation
from cytopipe.formats.qupath import QuPathWriter
from cytopipe.slides.writer import PyramidWriter
from cytopipe.tiles import TileStore
from tests.cli.test_tile import (
    CELLS,
    HEIGHT,
    RADIUS_PX,
    TILE_PX,
    WIDTH,
    bytes_of,
    draw_slide,
    tile,
    write_annotations,
    write_slide,
)

SMALL_PX = 96


def write_outlines(path: Path, *outlines: tuple[str, shapely.Geometry]) -> Path:
    """QuPath annotations: the cells of the drawn slide, and these outlines by class."""
    cells = [(class_name, Point(x, y).buffer(RADIUS_PX)) for x, y, class_name in CELLS.values()]
    path.parent.mkdir(exist_ok=True)
    with QuPathWriter(path) as writer:
        for i, (class_name, outline) in enumerate([*cells, *outlines]):
            writer.add(Annotation(f"outline-{i}", class_name, outline))
    return path


def write_blurred(path: Path) -> Path:
    """The drawn slide, its left half out of focus."""
    rgb = draw_slide()
    rgb[:, : WIDTH // 2] = cv2.GaussianBlur(rgb, (0, 0), 8)[:, : WIDTH // 2]
    with PyramidWriter(path, WIDTH, HEIGHT, mpp=0.5, objective=20) as writer:
        writer.write_band(rgb)
    return path


# Random windows


def test_random_windows_are_as_many_as_asked_for_on_every_slide_and_lie_on_foreground(tmp_path):
    slides = [write_slide(tmp_path / f"slides/S-{i}.svs", seed=i) for i in range(2)]

    done = tile(*slides, "--random", 40, "--out", tmp_path / "store", tile_px=SMALL_PX)

    assert done.exit_code == 0, done.stderr
    store = TileStore(tmp_path / "store")
    assert store.slides["tiles_kept"].to_pylist() == [40, 40]
    assert set(store.tiles["origin"].to_pylist()) == {"random"}
    assert len(set(store.tiles["tile_id"].to_pylist())) == 80
    assert min(store.tiles["foreground"].to_pylist()) > 0
    places = [
        {name.split("/", 1)[1] for name in store.tiles["tile_id"].to_pylist() if name.startswith(slide)}
        for slide in ("S-0", "S-1")
    ]
    assert places[0] != places[1]


def test_random_windows_depend_on_the_seed_and_on_neither_workers_nor_the_order_of_slides(tmp_path):
    slides = [write_slide(tmp_path / f"slides/S-{i}.svs", seed=i) for i in range(2)]

    def tiles(name: str, *arguments: object) -> list[str]:
        done = tile(*arguments, "--random", 20, "--out", tmp_path / name, tile_px=SMALL_PX)
        assert done.exit_code == 0, done.stderr
        return TileStore(tmp_path / name).tiles["tile_id"].to_pylist()

    first = tiles("first", *slides)

    assert tiles("second", *reversed(slides), "--workers", 1) == first
    assert tiles("alone", slides[1]) == [name for name in first if name.startswith("S-1")]
    assert tiles("seeded", *slides, "--seed", 1) != first


def test_too_few_places_for_the_random_windows_are_said(tmp_path):
    path = tmp_path / "smear.png"
    cv2.imwrite(str(path), draw_slide()[:100, :100, ::-1])

    done = tile(path, "--native", "--no-foreground", "--random", 500, "--out", tmp_path / "store", tile_px=SMALL_PX)

    assert done.exit_code == 0, done.stderr
    assert len(TileStore(tmp_path / "store")) == 25  # 100 - 96 px leave 5 places along each side
    assert "smear: the slide has places for 25 of the 500 random windows only" in done.stderr


# Around objects


def test_every_annotated_object_has_a_window_centred_on_it_and_inside_the_slide(tmp_path):
    slide, truth = write_slide(tmp_path / "S-1.svs"), write_annotations(tmp_path / "S-1.geojson")

    done = tile(slide, "--annotations", truth, "--around-objects", "--out", tmp_path / "store", tile_px=SMALL_PX)

    assert done.exit_code == 0, done.stderr
    store = TileStore(tmp_path / "store")
    assert set(store.tiles["origin"].to_pylist()) == {"object"}
    centres = {((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in (store.tile_box(i) for i in range(len(store)))}
    assert centres == {(x, y) for x, y, _ in CELLS.values()}
    assert store.slides["objects_unseen"].to_pylist() == [0]
    seen = [{o.object_id for o in store.objects_of(i) if not o.truncated} for i in range(len(store))]
    assert seen == [{"a"}, {"b"}, {"c"}, {"d"}]


def test_around_objects_needs_an_object(tmp_path):
    slide = write_slide(tmp_path / "S-1.svs")
    with QuPathWriter(tmp_path / "S-1.geojson"):
        pass

    bare = tile(slide, "--around-objects", "--out", tmp_path / "store")
    empty = tile(slide, "--around-objects", "--annotations", tmp_path / "S-1.geojson", "--out", tmp_path / "store")

    assert bare.exit_code == 2
    assert "around_objects is asked for, and no slide has annotations; give --annotations" in bare.stderr
    assert empty.exit_code == 1
    assert "no object is annotated, and windows are wanted around objects only" in empty.stderr


# Regions


def test_only_tiles_that_meet_the_region_are_cut_and_the_region_is_no_object(tmp_path):
    slide = write_slide(tmp_path / "S-1.svs")
    truth = write_outlines(tmp_path / "S-1.geojson", ("scanned", box(100, 100, 300, 400)), ("scanned", box(5, 5, 9, 9)))

    done = tile(slide, "--annotations", truth, "--roi", "scanned", "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    store = TileStore(tmp_path / "store")
    # of twelve tiles four meet the regions; one of these is glass
    assert store.tiles["tile_id"].to_pylist() == ["S-1/0/0", "S-1/256/0", "S-1/256/256"]
    assert store.slides["tiles_outside_roi"].to_pylist() == [8]
    assert store.slides["objects_annotated"].to_pylist() == [4]
    assert store.slides["objects_unseen"].to_pylist() == [2]
    assert set(store.objects["class"].to_pylist()) == {"LSIL", "normal"}
    assert [c.name for c in store.info.classes] == ["LSIL", "normal", "nucleus"]
    header, row = done.stdout.splitlines()[:2]
    assert dict(zip(header.split(), row.split(), strict=True)) == {
        "slide": "S-1", "state": "done", "split": "train", "tiles": "3", "glass": "1", "outside": "8", "objects": "4",
        "unseen": "2",
    }  # fmt: skip


def test_a_lone_slide_without_the_region_is_refused_and_one_of_several_is_a_row(tmp_path):
    slides = [write_slide(tmp_path / f"slides/S-{i}.svs", seed=i) for i in range(3)]
    write_outlines(tmp_path / "truth/S-0.geojson", ("scanned", box(100, 100, 300, 400)))
    write_annotations(tmp_path / "truth/S-1.geojson")
    arguments = ["--annotations", tmp_path / "truth", "--roi", "scanned"]

    alone = tile(slides[1], *arguments, "--out", tmp_path / "alone")
    several = tile(tmp_path / "slides", *arguments, "--out", tmp_path / "store")

    assert alone.exit_code == 2
    assert (
        "no region of interest 'scanned' is outlined on the slide; its classes: LSIL, normal, nucleus" in alone.stderr
    )
    assert not (tmp_path / "alone").exists()
    assert several.exit_code == 1
    assert "error: 2 of 3 slides failed:" in several.stderr
    assert [line.split()[:2] for line in several.stdout.splitlines()[1:4]] == [
        ["S-0", "done"], ["S-1", "failed"], ["S-2", "failed"],
    ]  # fmt: skip
    errors = TileStore(tmp_path / "store").slides["error"].to_pylist()
    assert errors[0] is None
    assert errors[2] == "no region of interest 'scanned' is outlined on the slide; it has no annotations"


def test_only_tiles_inside_the_annotated_area_are_labelled(tmp_path):
    slide = write_slide(tmp_path / "S-1.svs")
    truth = write_outlines(tmp_path / "S-1.geojson", ("looked at", box(0, 0, 600, 512)))
    arguments = ["--annotations", truth, "--annotated-area", "looked at", "--no-foreground"]

    done = tile(slide, *arguments, "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    store = TileStore(tmp_path / "store")
    labelled = {store.tile_box(i)[:2] for i in store.rows(labelled=True)}
    assert len(store) == 12
    assert labelled == {(0, 0), (256, 0), (0, 256), (256, 256)}
    assert "looked at" not in store.objects["class"].to_pylist()


# Sharpness, glass, background


def test_sharpness_glass_and_foreground_are_recorded_for_every_tile_and_none_is_dropped_as_blurred(tmp_path):
    path = write_blurred(tmp_path / "S-1.svs")

    done = tile(path, "--no-foreground", "--out", tmp_path / "store", tile_px=SMALL_PX)

    assert done.exit_code == 0, done.stderr
    tiles = TileStore(tmp_path / "store").tiles
    assert len(tiles) == 10 * 8
    assert None not in tiles["sharpness"].to_pylist() + tiles["glass"].to_pylist() + tiles["foreground"].to_pylist()
    glass = np.array(tiles["glass"].to_pylist())
    assert glass.max() == 1
    assert glass.min() < 0.9


def test_blurred_tiles_are_dropped_on_request_counted_and_drawn_as_dropped(tmp_path):
    path, truth = write_blurred(tmp_path / "S-1.svs"), write_annotations(tmp_path / "S-1.geojson")
    arguments = [path, "--annotations", truth]
    tile(*arguments, "--out", tmp_path / "all", tile_px=SMALL_PX)
    everything = TileStore(tmp_path / "all")
    sharpness = np.array(everything.tiles["sharpness"].to_pylist())
    is_left = np.array(everything.tiles["x1"].to_pylist()) < WIDTH // 2 - 24  # three sigmas of the blur
    limit = float(sharpness[is_left].max()) + 1
    assert limit < sharpness.max()

    done = tile(*arguments, "--min-sharpness", limit, "--out", tmp_path / "store", tile_px=SMALL_PX)

    assert done.exit_code == 0, done.stderr
    store = TileStore(tmp_path / "store")
    sharp = [t for t, s in zip(everything.tiles["tile_id"].to_pylist(), sharpness, strict=True) if s >= limit]
    assert store.tiles["tile_id"].to_pylist() == sharp
    assert store.slides["tiles_blurred"].to_pylist() == [len(everything) - len(sharp)]
    seen = set(store.objects["object_id"].to_pylist())
    assert store.slides["objects_unseen"].to_pylist() == [len(CELLS) - len(seen)]
    assert seen == {"c", "d"}
    pictures = [next((tmp_path / name / "overviews").rglob("*.jpg")).read_bytes() for name in ("all", "store")]
    assert pictures[0] != pictures[1]
    assert "blurred" in done.stdout.splitlines()[0]


def test_a_slide_that_is_blurred_as_a_whole_is_an_error(tmp_path):
    done = tile(write_slide(tmp_path / "S-1.svs"), "--min-sharpness", 1e6, "--out", tmp_path / "store")

    assert done.exit_code == 1
    assert "is as sharp as asked for" in done.stderr


def test_a_slides_background_is_what_the_flag_says_whatever_its_pixels(tmp_path):
    path = tmp_path / "smear.png"
    cv2.imwrite(str(path), 255 - draw_slide()[:, :, ::-1])

    judged = {}
    for asked in ("auto", "light", "dark"):
        out = tmp_path / asked
        done = tile(path, "--mpp-override", 0.5, "--background", asked, "--out", out)
        assert done.exit_code == 0, done.stderr
        (judged[asked],) = TileStore(out).slides["background"].to_pylist()

    assert judged == {"auto": "dark", "light": "light", "dark": "dark"}


# Settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--random", "5", "--overlap-px", "16"], "overlap_px is of the grid, and random takes windows instead of it"),
        (["--around-objects", "--edge", "pad"], "edge 'pad' is of the grid, and around_objects takes windows inside"),
        (["--roi", "scanned"], "roi is asked for, and no slide has annotations; give --annotations"),
        (["--annotated-area", "seen"], "annotated_area is asked for, and no slide has annotations"),
        (["--random", "0"], "--random"),
        (["--quality", "101"], "--quality"),
        (["--min-sharpness", "-1"], "--min-sharpness"),
        (["--background", "grey"], "--background"),
        (["--class-map", "LSIL"], "'LSIL' is not FROM=TO"),
        (["--icc", "adobe"], "--icc"),
        (["--z", "sharp"], "--z"),
    ],
)
def test_settings_that_make_no_sense_end_with_exit_code_2_in_a_line(arguments, message, tmp_path):
    done = tile(write_slide(tmp_path / "S-1.svs"), *arguments, "--out", tmp_path / "store")

    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "difference"),
    [
        (["--random", "4"], "random None -> 4"),
        (["--min-sharpness", "1"], "min_sharpness None -> 1.0"),
        (["--background", "light"], "background auto -> light"),
        (["--quality", "80"], "quality 90 -> 80"),
        (["--codec", "zarr"], "codec jpeg -> zarr"),
        (["--ignore", "LSIL"], "ignore [] -> ['LSIL']"),
        (["--icc", "srgb"], "showing.icc off -> srgb"),
    ],
)
def test_every_setting_that_decides_the_bytes_is_a_parameter_of_the_store(arguments, difference, tmp_path):
    slide = write_slide(tmp_path / "S-1.svs")
    assert tile(slide, "--out", tmp_path / "store").exit_code == 0
    before = bytes_of(tmp_path / "store")

    other = tile(slide, *arguments, "--out", tmp_path / "store")

    assert other.exit_code == 2
    assert difference in other.stderr
    assert bytes_of(tmp_path / "store") == before


@pytest.mark.parametrize("codec", ["png", "zarr"])
def test_codecs_without_loss_hold_the_slides_pixels(codec, tmp_path):
    path = tmp_path / "smear.png"
    cv2.imwrite(str(path), draw_slide()[:, :, ::-1])

    done = tile(path, "--native", "--codec", codec, "--no-foreground", "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    store = TileStore(tmp_path / "store")
    for i in range(len(store)):
        x0, y0, x1, y1 = map(int, store.tile_box(i))
        assert np.array_equal(store.read_image(i), draw_slide()[y0:y1, x0:x1])


def test_a_lower_quality_takes_less_room(tmp_path):
    slide = write_slide(tmp_path / "S-1.svs")

    sizes = []
    for quality in (60, 95):
        done = tile(slide, "--quality", quality, "--out", tmp_path / f"q{quality}")
        assert done.exit_code == 0, done.stderr
        sizes.append(sum(path.stat().st_size for path in (tmp_path / f"q{quality}/images").rglob("*.jpg")))

    assert sizes[0] < sizes[1] / 2


def test_a_finished_store_has_a_page_and_names_it(tmp_path):
    done = tile(write_slide(tmp_path / "S-1.svs"), "--out", tmp_path / "store")

    assert f"written to {tmp_path / 'store'}; look at {tmp_path / 'store/index.html'}" in done.stdout
    assert "S-1" in (tmp_path / "store/index.html").read_text()


def test_a_note_about_many_slides_is_said_once(tmp_path):
    slides = [write_slide(tmp_path / f"slides/S-{i}.svs", seed=i, mpp=0.8) for i in range(3)]

    done = tile(*slides, "--mpp", 0.5, "--out", tmp_path / "store", tile_px=TILE_PX)

    assert done.exit_code == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "upsampled" in line]
    assert line.startswith("warning: S-0.svs (and 2 more slides): upsampled 1.60x, from 0.8 to 0.5 µm/px")
