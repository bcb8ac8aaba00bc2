"""`cytopipe tile` at the command line: what a user gets, and what happens when a slide, a disk or the power fails."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import shapely
import tifffile
from shapely import Point
from typer.testing import CliRunner

from cytopipe.cli.main import app
from cytopipe.formats.annotations import Annotation
from cytopipe.formats.qupath import QuPathWriter
from cytopipe.slides.writer import PyramidWriter
from cytopipe.tiles import TileStore
from tests.conftest import shared_data

WIDTH, HEIGHT, TILE_PX = 900, 700, 256
CELLS = {"a": (120, 130, "LSIL"), "b": (254, 300, "normal"), "c": (700, 520, "LSIL"), "d": (740, 540, "nucleus")}
RADIUS_PX = 24


def draw_slide(seed: int = 0) -> np.ndarray:
    """Pale glass with noise, and a stained disc at each of CELLS; the right third above y = 350 is empty."""
    noise = np.random.default_rng(seed).integers(-2, 3, (HEIGHT, WIDTH, 1))
    rgb = np.clip(238 + noise + np.zeros((1, 1, 3), int), 0, 255).astype(np.uint8)
    for x, y, _ in CELLS.values():
        cv2.circle(rgb, (x, y), RADIUS_PX, (190, 120, 180), -1)
    return rgb


def write_slide(path: Path, seed: int = 0, mpp: float = 0.5) -> Path:
    path.parent.mkdir(exist_ok=True)
    with PyramidWriter(path, WIDTH, HEIGHT, mpp=mpp, objective=20) as writer:
        writer.write_band(draw_slide(seed))
    return path


def write_annotations(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    with QuPathWriter(path) as writer:
        for name, (x, y, class_name) in CELLS.items():
            writer.add(Annotation(name, class_name, Point(x, y).buffer(RADIUS_PX)))
    return path


def write_list(path: Path, rows: list[dict[str, object]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def tile(*arguments: object, tile_px: int = TILE_PX):
    return CliRunner().invoke(app, ["tile", *map(str, arguments), "--tile-px", str(tile_px), "--workers", "2"])


def bytes_of(store: Path) -> dict[str, bytes]:
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def splits_of(store: Path) -> dict[str, str]:
    slides = TileStore(store).slides
    return dict(zip(slides["slide_id"].to_pylist(), slides["split"].to_pylist(), strict=True))


def test_a_slide_with_annotations_becomes_a_store_in_which_every_object_is_found(tmp_path):
    slide = write_slide(tmp_path / "S-1.svs")
    truth = write_annotations(tmp_path / "S-1.geojson")

    done = tile(slide, "--annotations", truth, "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    assert "next: cytopipe train --method supervised" in done.stdout
    assert "no split was asked for: all tiles are train" in done.stderr
    store = TileStore(tmp_path / "store")
    assert [c.name for c in store.info.classes] == ["LSIL", "normal", "nucleus"]
    assert set(store.objects["class"].to_pylist()) == {"LSIL", "normal", "nucleus"}
    pieces = [o.geometry for i in range(len(store)) for o in store.objects_of(i)]
    whole = shapely.union_all([Point(x, y).buffer(RADIUS_PX) for x, y, _ in CELLS.values()])
    # 0.2: what --min-visible may drop of one disc; QuPath's file rounds to 1/100 px
    assert shapely.union_all(pieces).area == pytest.approx(whole.area, rel=0.2 / len(CELLS))
    assert store.slides["objects_unseen"].to_pylist() == [0]
    assert store.tiles["labelled"].to_pylist() == [True] * len(store)
    assert 0 < store.slides["tiles_glass"].to_pylist()[0] < 12
    assert (tmp_path / "store/overviews/S-1.jpg").stat().st_size > 0


def test_a_png_tile_at_the_slides_own_resolution_holds_its_very_pixels(tmp_path):
    path = tmp_path / "smear.png"
    cv2.imwrite(str(path), draw_slide()[:, :, ::-1])

    done = tile(path, "--native", "--codec", "png", "--no-foreground", "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    store = TileStore(tmp_path / "store")
    assert len(store) == 4 * 3
    for i in range(len(store)):
        x0, y0, x1, y1 = map(int, store.tile_box(i))
        assert np.array_equal(store.read_image(i), draw_slide()[y0:y1, x0:x1])


def test_neighbours_overlap_by_the_pixels_asked_for(tmp_path):
    slide = write_slide(tmp_path / "S-1.svs")

    done = tile(slide, "--overlap-px", 64, "--edge", "pad", "--no-foreground", "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    xs = sorted(set(TileStore(tmp_path / "store").tiles["x0"].to_pylist()))
    assert xs == [0.0, 192.0, 384.0, 576.0, 768.0]


def test_an_overlap_that_looks_like_a_fraction_is_refused(tmp_path):
    done = tile(write_slide(tmp_path / "S-1.svs"), "--overlap-px", 0.25, "--out", tmp_path / "store")

    assert done.exit_code == 2
    assert "looks like a fraction" in done.stderr
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "7"], "--split"),
        (["--split", "7:1:2"], "1 patients give an empty part 'val'"),
        (["--overlap-px", "256"], "overlap_px 256 is not below tile_px 256"),
        (["--native", "--mpp", "0.5"], "--native and --mpp exclude each other"),
        (["--annotations", "nowhere"], "nowhere: does not exist"),
        (["--mpp", "0.1"], "coarser than the 0.1 asked by over 2x"),
        (["--reader", "image"], "no reader opens it"),
    ],
)
def test_a_wrong_argument_ends_with_exit_code_2_before_anything_is_written(arguments, message, tmp_path):
    done = tile(write_slide(tmp_path / "S-1.svs"), *arguments, "--out", tmp_path / "store")

    assert done.exit_code == 2
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert message in done.stderr
    assert not (tmp_path / "store").exists()


def test_a_folder_of_annotations_without_any_for_these_slides_is_refused(tmp_path):
    slide = write_slide(tmp_path / "S-1.svs")
    write_annotations(tmp_path / "truth/other.geojson")

    done = tile(slide, "--annotations", tmp_path / "truth", "--out", tmp_path / "store")

    assert done.exit_code == 2
    assert "no file in it is named after a slide; e.g. S-1.geojson is looked for" in done.stderr


def test_a_slide_without_resolution_needs_one_or_native(tmp_path):
    path = tmp_path / "smear.png"
    cv2.imwrite(str(path), draw_slide()[:, :, ::-1])

    refused = tile(path, "--out", tmp_path / "store")
    told = tile(path, "--mpp-override", 0.25, "--out", tmp_path / "store")

    assert refused.exit_code == 2
    assert "--mpp-override" in refused.stderr
    assert told.exit_code == 0, told.stderr
    assert set(TileStore(tmp_path / "store").tiles["x1"].to_pylist()) <= {512.0, 900.0}


@pytest.mark.parametrize("damage", ["no slide", "no annotations"])
def test_a_lone_input_that_cannot_be_read_ends_with_exit_code_2_and_writes_nothing(damage, tmp_path):
    slide, truth = write_slide(tmp_path / "S-1.svs"), write_annotations(tmp_path / "S-1.geojson")
    (slide if damage == "no slide" else truth).write_bytes(b"neither slide nor annotation")

    done = tile(slide, "--annotations", truth, "--out", tmp_path / "store")

    assert done.exit_code == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "store").exists()


def test_one_bad_slide_of_several_is_a_row_and_the_others_are_cut(tmp_path):
    for name in ("S-1", "S-3"):
        write_slide(tmp_path / f"slides/{name}.svs")
    (tmp_path / "slides/S-2.svs").write_bytes(b"no slide")

    done = tile(tmp_path / "slides", "--out", tmp_path / "store")

    assert done.exit_code == 1
    assert "error: 1 of 3 slides failed:" in done.stderr
    store = TileStore(tmp_path / "store")
    assert set(store.tiles["slide_id"].to_pylist()) == {"S-1", "S-3"}
    assert [bool(error) for error in store.slides["error"].to_pylist()] == [False, True, False]

    write_slide(tmp_path / "slides/S-2.svs")
    mended = tile(tmp_path / "slides", "--out", tmp_path / "store")

    assert mended.exit_code == 0, mended.stderr
    assert "2 slides were finished by an earlier run" in mended.stdout
    assert TileStore(tmp_path / "store").slides["error"].to_pylist() == [None] * 3


def test_tiles_that_cannot_be_decoded_are_counted_and_never_blank(tmp_path):
    slide = write_slide(tmp_path / "S-1.svs")
    with tifffile.TiffFile(slide) as file:
        page = file.pages[0]
        offset, size = page.dataoffsets[0], page.databytecounts[0]
    with slide.open("r+b") as file:
        file.seek(offset)
        file.write(b"\0" * size)

    done = tile(slide, "--native", "--no-foreground", "--out", tmp_path / "store")

    assert done.exit_code == 1
    assert "of 12 tiles cannot be decoded" in done.stderr
    store = TileStore(tmp_path / "store")
    assert store.slides["tiles_unreadable"].to_pylist() == [12 - len(store)]
    assert 0 < len(store) < 12
    assert "S-1/0/0" not in store.tiles["tile_id"].to_pylist()


def test_a_slide_of_bare_glass_is_an_error_and_can_be_cut_anyway(tmp_path):
    path = tmp_path / "glass.png"
    cv2.imwrite(str(path), np.full((400, 400, 3), 240, np.uint8))

    refused = tile(path, "--mpp-override", 0.5, "--out", tmp_path / "store")
    taken = tile(path, "--mpp-override", 0.5, "--no-foreground", "--out", tmp_path / "store")

    assert refused.exit_code == 1
    assert "no foreground was found; --no-foreground takes every tile" in refused.stderr
    assert taken.exit_code == 0, taken.stderr
    assert len(TileStore(tmp_path / "store")) == 4


def test_other_parameters_are_refused_with_the_difference_and_overwrite_starts_anew(tmp_path):
    slide = write_slide(tmp_path / "S-1.svs")
    tile(slide, "--out", tmp_path / "store")
    before = bytes_of(tmp_path / "store")

    refused = tile(slide, "--out", tmp_path / "store", tile_px=300)

    assert refused.exit_code == 2
    assert "tile_px 256 -> 300" in refused.stderr
    assert bytes_of(tmp_path / "store") == before

    anew = tile(slide, "--out", tmp_path / "store", "--overwrite", tile_px=300)

    assert anew.exit_code == 0, anew.stderr
    assert TileStore(tmp_path / "store").info.tile_px == 300


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/thesis.txt").write_text("years of work")

    done = tile(write_slide(tmp_path / "S-1.svs"), "--out", tmp_path / "store", "--overwrite")

    assert done.exit_code == 2
    assert bytes_of(tmp_path / "store") == {"thesis.txt": b"years of work"}


def test_patients_are_split_and_stay_where_they_are_when_the_list_grows(tmp_path):
    rows = []
    for i in range(8):
        write_slide(tmp_path / f"S-{i}.svs", seed=i)
        rows.append({"path": f"S-{i}.svs", "patient": f"P-{i // 2}"})
    small, large = write_list(tmp_path / "small.csv", rows[:6]), write_list(tmp_path / "large.csv", rows)

    first = tile(small, "--split", "1:1:1", "--out", tmp_path / "store")
    before = splits_of(tmp_path / "store")
    second = tile(large, "--split", "1:1:1", "--out", tmp_path / "store")
    after = splits_of(tmp_path / "store")

    assert (first.exit_code, second.exit_code) == (0, 0), first.stderr + second.stderr
    assert sorted(before[f"S-{i}"] for i in (0, 2, 4)) == ["test", "train", "val"]
    assert {name: after[name] for name in before} == before
    assert all(after[f"S-{i}"] == after[f"S-{i + 1}"] for i in (0, 2, 4, 6))


def test_the_lists_own_splits_stand_and_a_patient_in_two_of_them_is_refused(tmp_path):
    for i in range(3):
        write_slide(tmp_path / f"S-{i}.svs", seed=i)
    rows = [{"path": f"S-{i}.svs", "patient": f"P-{i}", "split": part} for i, part in enumerate(("train", "val", ""))]
    good = write_list(tmp_path / "good.csv", rows)
    bad = write_list(tmp_path / "bad.csv", [*rows[:2], {"path": "S-2.svs", "patient": "P-1", "split": "test"}])

    done = tile(good, "--out", tmp_path / "store")
    refused = tile(bad, "--out", tmp_path / "other")

    assert done.exit_code == 0, done.stderr
    assert splits_of(tmp_path / "store") == {"S-0": "train", "S-1": "val", "S-2": "train"}
    assert refused.exit_code == 2
    assert "patient 'P-1' is in two parts, val and test" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_one_file_under_two_patients_in_two_parts_is_a_leak_and_refused(tmp_path):
    for name in ("S-0", "copy"):
        write_slide(tmp_path / f"{name}.svs")
    rows = [
        {"path": f"{name}.svs", "patient": name, "split": part} for name, part in (("S-0", "train"), ("copy", "val"))
    ]

    done = tile(write_list(tmp_path / "slides.csv", rows), "--out", tmp_path / "store")

    assert done.exit_code == 2
    assert "slides 'S-0' and 'copy' are the same file, in two parts" in done.stderr
    assert not (tmp_path / "store").exists()


def test_the_split_is_stratified_by_the_column_asked_for(tmp_path):
    rows = []
    for i in range(8):
        write_slide(tmp_path / f"S-{i}.svs", seed=i)
        rows.append({"path": f"S-{i}.svs", "patient": f"P-{i}", "diagnosis": "LSIL" if i % 2 else "NILM"})
    listed = write_list(tmp_path / "slides.csv", rows)

    done = tile(listed, "--split", "1:1", "--stratify", "diagnosis", "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    parts = splits_of(tmp_path / "store")
    for stratum in (0, 1):
        assert sorted(parts[f"S-{i}"] for i in range(stratum, 8, 2)) == ["train", "train", "val", "val"]


def test_annotations_that_changed_are_taken_up(tmp_path):
    slide, truth = write_slide(tmp_path / "S-1.svs"), tmp_path / "S-1.geojson"
    tile(slide, "--out", tmp_path / "store")
    write_annotations(truth)

    done = tile(slide, "--annotations", truth, "--out", tmp_path / "store")

    assert done.exit_code == 0, done.stderr
    assert TileStore(tmp_path / "store").slides["objects_annotated"].to_pylist() == [4]


def test_json_is_one_document_on_stdout(tmp_path):
    done = tile(write_slide(tmp_path / "S-1.svs"), "--json", "--out", tmp_path / "store")

    document = json.loads(done.stdout)
    assert document["tiles"] == document["tiles_by_split"]["train"] == len(TileStore(tmp_path / "store"))
    assert document["slides"][0]["slide_id"] == "S-1"


def test_after_kill_9_the_same_command_ends_with_the_bytes_of_an_unbroken_run(tmp_path):
    for i in range(4):
        write_slide(tmp_path / f"slides/S-{i}.svs", seed=i)
        write_annotations(tmp_path / f"truth/S-{i}.geojson")
    arguments = [tmp_path / "slides", "--annotations", tmp_path / "truth", "--split", "2:1:1", "--codec", "png"]
    tile(*arguments, "--out", tmp_path / "unbroken", tile_px=64)
    command = [sys.executable, "-m", "cytopipe.cli.main", "tile", *arguments, "--tile-px", "64", "--workers", "1"]
    broken = tmp_path / "broken"
    process = subprocess.Popen([*map(str, command), "--out", str(broken)], stderr=subprocess.DEVNULL)
    while process.poll() is None and not (broken / "images/S-1").exists() and not _is_cutting(broken, "S-1"):
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    was_killed_midway = not (broken / "store.json").exists()
    done = tile(*arguments, "--out", broken, tile_px=64)

    assert was_killed_midway
    assert done.exit_code == 0, done.stderr
    assert "slides were finished by an earlier run" in done.stdout
    assert bytes_of(broken) == bytes_of(tmp_path / "unbroken")


@pytest.mark.parametrize("name", ["CMU-1-Small-Region.svs", "test3-DAPI-2-(387).ndpi"])
def test_a_real_slide_is_cut_at_the_usual_size(name, tmp_path):
    done = tile(shared_data("wsi") / name, "--out", tmp_path / "store", tile_px=1000)

    assert done.exit_code == 0, done.stderr
    store = TileStore(tmp_path / "store")
    assert len(store) > 0
    assert store.read_image(0).shape == (1000, 1000, 3)


def test_a_slide_far_coarser_than_asked_is_refused_in_one_line(tmp_path):
    (slide,) = (shared_data("wsi") / "camelyon_dicom").glob("*.dcm")

    done = tile(slide, "--out", tmp_path / "store", tile_px=1000)

    assert done.exit_code == 2
    assert "28.97" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def _is_cutting(store: Path, slide_id: str) -> bool:
    return (store / f"images/.{slide_id}.partial").exists()
