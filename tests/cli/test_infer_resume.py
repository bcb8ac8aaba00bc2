"""`cytopipe infer` left alone for a night: killed at any moment, out of disk, or with a slide that goes bad, it ends
with the bytes of an unbroken run. Real processes and real SIGKILLs.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from cytopipe.slides.writer import PyramidWriter
from tests.forked import run, start
from tests.tiny_model import write_tiny_model

KILLS = 15
SLIDES, SIDE_PX = 3, 224


def write_slide(path: Path, seed: int, side_px: int = SIDE_PX) -> Path:
    rng = np.random.default_rng(seed)
    rgb = np.clip(238 + rng.integers(-2, 3, (side_px, side_px, 3)), 0, 255).astype(np.uint8)
    for x, y in rng.integers(20, side_px - 20, (8, 2)).tolist():
        cv2.circle(rgb, (x, y), 16, (190, 120, 180), -1)
    with PyramidWriter(path, side_px, side_px, mpp=0.5, objective=20) as writer:
        writer.write_band(rgb)
    return path


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for k in range(SLIDES):
        write_slide(folder / f"S-{k}.tif", seed=k)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def unbroken(slides, model, tmp_path_factory):
    """What a run leaves that nothing disturbs, and how long it takes, s."""
    folder = tmp_path_factory.mktemp("unbroken")
    run(command(slides, model, folder / "first"), folder / "said")  # files are in the cache
    started = time.perf_counter()
    done = run(command(slides, model, folder / "out"), folder / "said")
    seconds = time.perf_counter() - started
    assert done.code == 0, done.said
    return bytes_of(folder / "out"), seconds


def command(slides: Path, model: Path, out: Path, *more: object) -> list[str]:
    write = ["--write", "parquet,geojson,csv"]
    return ["infer", str(slides), "--model", str(model), "--out", str(out), *write, *map(str, more)]


def bytes_of(out: Path) -> dict[str, bytes]:
    """Every file, without the clock times of run.json; titles that name the folder are made alike."""
    found = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    for name in [name for name in found if name.endswith("run.json")]:
        facts = json.loads(found[name])
        del facts["seconds"]
        found[name] = json.dumps(facts).encode()
    found["index.html"] = re.sub(rb"<(title|h1)[^>]*>[^<]*</\1>", b"", found["index.html"])
    return found


def finished_slides(out: Path) -> int:
    journal = out / "run.jsonl"
    return journal.read_text().count('"kind": "done"') if journal.exists() else 0


def test_after_kill_9_at_any_of_15_moments_the_same_command_ends_with_the_bytes_of_an_unbroken_run(
    slides, model, unbroken, tmp_path
):
    expected, seconds = unbroken
    moment = random.Random(5)
    kills, found, out, patience = 0, set(), tmp_path / "out", 1.0
    while kills < KILLS:
        before = finished_slides(out)
        process = start(command(slides, model, out), tmp_path / "said")
        process.join(moment.uniform(0.1, 0.9) * seconds * patience)
        process.kill()
        process.join()
        if process.exitcode != 0:
            assert process.exitcode == -9, (tmp_path / "said").read_text()
            kills += 1
        found.add(finished_slides(out))
        patience = 1.0 if finished_slides(out) != before else min(8.0, patience * 1.4)  # a machine may slow down
        if finished_slides(out) == SLIDES or process.exitcode == 0:  # done, or all but its last lines
            assert run(command(slides, model, out), tmp_path / "said").code == 0
            assert bytes_of(out) == expected
            shutil.rmtree(out)

    ended = run(command(slides, model, out), tmp_path / "said")

    assert ended.code == 0, ended.said
    assert bytes_of(out) == expected
    assert len(found) > 1, f"the kills fell into too few phases: {found}"


def test_no_byte_depends_on_the_number_of_workers(slides, model, unbroken, tmp_path):
    expected, _ = unbroken

    for workers in (1, 4):
        ended = run(command(slides, model, tmp_path / str(workers), "--workers", workers), tmp_path / "said")

        assert ended.code == 0, ended.said
        assert bytes_of(tmp_path / str(workers)) == expected


def test_a_disk_that_fills_up_ends_the_run_in_one_line_and_the_same_command_goes_on(slides, model, unbroken, tmp_path):
    expected, _ = unbroken
    out = tmp_path / "out"

    full = run(command(slides, model, out), tmp_path / "said", writes=8)
    resumed = run(command(slides, model, out), tmp_path / "said")

    assert full.code == 1
    assert "no space left on the disk" in full.said.splitlines()[-1]
    assert "Traceback" not in full.said
    assert resumed.code == 0, resumed.said
    assert bytes_of(out) == expected


def test_a_slide_that_was_replaced_is_searched_again_and_the_others_are_not(slides, model, tmp_path):
    own = tmp_path / "slides"
    shutil.copytree(slides, own)
    out = tmp_path / "out"
    assert run(command(own, model, out), tmp_path / "said").code == 0
    before = bytes_of(out)
    write_slide(own / "S-1.tif", seed=77)

    again = run(command(own, model, out, "--json"), tmp_path / "said")

    assert again.code == 0, again.said
    statuses = re.findall(r'"status": "(\w+)"', again.said)
    assert statuses == ["skipped", "done", "skipped"]
    assert bytes_of(out)["S-1/objects.parquet"] != before["S-1/objects.parquet"]
    assert bytes_of(out)["S-0/objects.parquet"] == before["S-0/objects.parquet"]


def test_a_corrupt_tile_is_a_warning_with_its_place_in_report_and_run_json(model, tmp_path):
    import tifffile

    path = write_slide(tmp_path / "torn.tif", seed=9, side_px=640)
    with tifffile.TiffFile(path) as tif:
        page = tif.pages[0]
        last, size = page.dataoffsets[-1], page.databytecounts[-1]
        corner = (page.imagewidth // page.tilewidth * page.tilewidth, page.imagelength // page.tilelength)
    with path.open("r+b") as file:
        file.seek(last)
        file.write(b"\x00" * size)

    ended = run(command(path, model, tmp_path / "out", "--no-foreground"), tmp_path / "said")

    facts = json.loads((tmp_path / "out" / "torn" / "run.json").read_text())
    page_text = (tmp_path / "out" / "torn" / "report.html").read_text()
    places = [line for line in facts["warnings"] if "could not be read" in line]
    assert ended.code == 0, ended.said
    assert 0 < facts["windows"]["unreadable"] == len(places) < facts["windows"]["run"]
    x1 = [int(re.search(r"level-0 px \d+ to (\d+)", line).group(1)) for line in places]
    assert all(x > corner[0] for x in x1), "a window that does not meet the torn tile is named"
    assert all(re.search(r"level-0 px \d+ to \d+, \d+ to \d+", line).group(0) in page_text for line in places)
    assert facts["objects"] > 0
