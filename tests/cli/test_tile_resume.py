"""`cytopipe tile` left alone for a night: killed at any moment, run twice at once, or out of disk, it ends with the
bytes of an unbroken run.

Real processes and real SIGKILLs (tests/forked.py).
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from shapely import Point

from cytopipe.formats.annotations import Annotation
from cytopipe.formats.qupath import QuPathWriter
from cytopipe.slides.writer import PyramidWriter
from cytopipe.tiles import TileStore
from tests.forked import Ended, run, start

KILLS = 25
SIDE_PX, TILE_PX, SLIDES = 512, 128, 4


def command(*arguments: object) -> list[str]:
    return ["tile", *map(str, arguments), "--tile-px", str(TILE_PX), "--workers", "2"]


def write_slide(path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rgb = np.clip(238 + rng.integers(-2, 3, (SIDE_PX, SIDE_PX, 3)), 0, 255).astype(np.uint8)
    cells = rng.integers(30, SIDE_PX - 30, (25, 2)).tolist()
    with QuPathWriter(path.with_suffix(".geojson")) as truth:
        for k, (x, y) in enumerate(cells):
            cv2.circle(rgb, (x, y), 22, (190, 120, 180), -1)
            truth.add(Annotation(f"{k}", ("LSIL", "normal")[k % 2], Point(x, y).buffer(22)))
    with PyramidWriter(path, SIDE_PX, SIDE_PX, mpp=0.5, objective=20) as writer:
        writer.write_band(rgb)


@pytest.fixture(scope="module")
def slides(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for k in range(SLIDES):
        write_slide(folder / f"S-{k}.svs", seed=k)
    return folder


def arguments_for(slides: Path, codec: str = "jpeg") -> list[str]:
    return command(slides, "--annotations", slides, "--split", "2:1:1", "--codec", codec)


def bytes_of(store: Path) -> dict[str, bytes]:
    """Every file of a store. Nothing is left out: no file of a tile store holds a clock time."""
    return {str(p.relative_to(store)): p.read_bytes() for p in sorted(store.rglob("*")) if p.is_file()}


def unbroken(slides: Path, folder: Path, codec: str = "jpeg") -> tuple[dict[str, bytes], float]:
    """The store of a run that nothing disturbs, and how long the run takes, s."""
    run([*arguments_for(slides, codec), "--out", str(folder / "first")], folder / "said")  # files are in the cache
    started = time.perf_counter()
    done = run([*arguments_for(slides, codec), "--out", str(folder / "unbroken")], folder / "said")
    seconds = time.perf_counter() - started
    assert done.code == 0, done.said
    assert len(TileStore(folder / "unbroken")) > 30
    return bytes_of(folder / "unbroken"), seconds


def finished_slides(store: Path) -> int:
    journal = store / "run.jsonl"
    return journal.read_text().count('"kind": "done"') if journal.exists() else 0


def test_after_kill_9_at_any_of_25_moments_the_same_command_ends_with_the_bytes_of_an_unbroken_run(slides, tmp_path):
    expected, seconds = unbroken(slides, tmp_path)
    moment = random.Random(20)
    store, arguments = tmp_path / "store", [*arguments_for(slides), "--out", str(tmp_path / "store")]
    kills, found = 0, []
    for _ in range(4 * KILLS):
        shutil.rmtree(store, ignore_errors=True)
        process = start(arguments, tmp_path / "said")
        process.join(moment.uniform(0, seconds))
        process.kill()
        process.join()
        if process.exitcode == 0:
            continue  # a machine that was slower before: this run was done already
        assert process.exitcode == -9
        kills += 1
        found.append((finished_slides(store), (store / "store.json").exists()))

        resumed = run(arguments, tmp_path / "said")

        assert resumed.code == 0, resumed.said
        assert bytes_of(store) == expected, f"killed with {found[-1]}"
        if kills == KILLS:
            break
    assert kills == KILLS
    assert len({slides_done for slides_done, _ in found}) > 2, f"the kills fell into too few phases: {found}"


@pytest.mark.parametrize("codec", ["jpeg", "png", "zarr"])
def test_a_run_that_is_killed_again_and_again_gets_done_with_the_same_bytes(codec, slides, tmp_path):
    expected, seconds = unbroken(slides, tmp_path, codec)
    moment = random.Random(codec)
    arguments = [*arguments_for(slides, codec), "--out", str(tmp_path / "store")]
    kills = 0
    while True:
        process = start(arguments, tmp_path / "said")
        if kills < 12:  # then it may end, so that a machine that has become slow is not killed for ever
            process.join(moment.uniform(0.05, 0.35) * seconds)
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -9, (tmp_path / "said").read_text()
        kills += 1

    assert kills > 1
    assert bytes_of(tmp_path / "store") == expected


def test_a_second_run_on_one_folder_is_refused_with_pid_and_host_of_the_first(slides, tmp_path):
    store = tmp_path / "store"
    first = start([*arguments_for(slides), "--out", str(store)], tmp_path / "first said")
    deadline = time.monotonic() + 30
    while not (store / "run.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(first.pid, 19)  # SIGSTOP: it stays in the folder as long as the second one looks
    try:
        second = run([*arguments_for(slides), "--out", str(store)], tmp_path / "second said")
    finally:
        os.kill(first.pid, 18)  # SIGCONT
        first.join(120)

    assert second.code == 2
    last = second.said.strip().splitlines()[-1]
    assert f"process {first.pid} on {socket.gethostname()} is writing to this folder" in last
    assert first.exitcode == 0, "the refused run disturbed the first"
    assert len(TileStore(store)) > 30


def test_a_disk_that_is_full_from_any_write_on_gives_one_line_and_the_same_command_resumes(slides, tmp_path):
    expected, _ = unbroken(slides, tmp_path)
    store, arguments = tmp_path / "store", [*arguments_for(slides), "--out", str(tmp_path / "store")]
    full = 0
    for writes in (0, 1, 2, 9, 30, 70):
        shutil.rmtree(store, ignore_errors=True)
        broken = run(arguments, tmp_path / "said", writes)
        if broken.code == 0:
            break
        full += 1
        assert_says_full(broken)

        resumed = run(arguments, tmp_path / "said")

        assert resumed.code == 0, resumed.said
        assert bytes_of(store) == expected, f"full after {writes} writes"
    assert full > 4


def test_a_finished_store_stays_whole_when_the_disk_fills_while_slides_are_added(slides, tmp_path):
    store, few = tmp_path / "store", sorted(slides.glob("*.svs"))[:2]
    grown = [*command(slides), "--out", str(store)]
    first = run([*command(*few), "--out", str(store)], tmp_path / "said")
    assert first.code == 0, first.said
    tiles = len(TileStore(store))

    broken = run(grown, tmp_path / "said", writes=5)

    assert_says_full(broken)
    after = TileStore(store)
    assert after.slides["slide_id"].to_pylist() == [path.stem for path in few]
    assert [after.read_image(i).shape for i in range(len(after))] == [(TILE_PX, TILE_PX, 3)] * tiles
    assert run(grown, tmp_path / "said").code == 0
    assert len(TileStore(store).slides) == SLIDES


def assert_says_full(ended: Ended) -> None:
    assert ended.code == 1, ended.said
    last = ended.said.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "no space left on the disk; free some space and run the same command again; it resumes" in last
    assert "Traceback" not in ended.said


# Runs inside its own mount namespace: a tmpfs that others do not see, gone with the process.
ON_SMALL_DISK = """
import subprocess, sys, pathlib
disk, out, python, free, *arguments = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], check=True)
tile = [python, "-m", "cytopipe.cli.main", *arguments, "--out", disk + "/store"]
ballast = pathlib.Path(disk, "ballast")
filled = subprocess.run(["dd", "if=/dev/zero", "of=" + str(ballast), "bs=4096"], capture_output=True)
assert filled.returncode == 1, filled.stderr
with ballast.open("r+b") as file:
    file.truncate(ballast.stat().st_size - int(free))
broken = subprocess.run(tile, capture_output=True, text=True)
pathlib.Path(out, "code").write_text(str(broken.returncode))
pathlib.Path(out, "stderr").write_text(broken.stderr)
ballast.unlink()
resumed = subprocess.run(tile, capture_output=True, text=True)
pathlib.Path(out, "resumed").write_text(f"{resumed.returncode} {resumed.stderr}")
subprocess.run(["cp", "-a", disk + "/store", out + "/store"], check=True)
"""


def own_mounts() -> list[str]:
    """The words before a command that may mount; the test is skipped where nobody may."""
    for words in (["unshare", "-rm"], ["unshare", "-m"]):
        if shutil.which("unshare") is None:
            break
        probe = subprocess.run(
            [*words, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False, timeout=20
        )
        if probe.returncode == 0:
            return words
    pytest.skip("needs the right to mount a tmpfs in a namespace of its own (unshare -rm)")


@pytest.mark.parametrize(("codec", "share"), [("jpeg", 0.9), ("png", 0.5), ("zarr", 0.6)])
def test_a_full_tmpfs_gives_one_line_and_with_space_again_the_bytes_of_an_unbroken_run(codec, share, slides, tmp_path):
    expected, _ = unbroken(slides, tmp_path, codec)
    free = int(share * sum(-(-len(data) // 4096) * 4096 for data in expected.values()))  # a tmpfs gives whole pages
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    script = [sys.executable, "-c", ON_SMALL_DISK, tmp_path / "disk", tmp_path / "out", sys.executable, free]

    subprocess.run([str(w) for w in (*own_mounts(), *script, *arguments_for(slides, codec))], check=True, timeout=240)

    out = tmp_path / "out"
    assert_says_full(Ended(int((out / "code").read_text()), (out / "stderr").read_text()))
    assert (out / "resumed").read_text().startswith("0 "), (out / "resumed").read_text()
    assert bytes_of(out / "store") == expected
