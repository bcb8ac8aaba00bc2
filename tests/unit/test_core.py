"""The ground floor: boxes and their map, whole files, the lock and the journal of an output folder, seeds, errors."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytopipe.core.boxes import box_areas, box_iou, clip_boxes, slide_from_window, window_from_slide
from cytopipe.core.classes import class_named
from cytopipe.core.errors import CytopipeError, DiskError, RunError, UserError, nearest_fix, refuse_unknown
from cytopipe.core.files import FolderLock, atomic_path, disk_error, sha256_of, sweep_partials, write_json, write_text
from cytopipe.core.journal import JOURNAL_NAME, open_journal
from cytopipe.core.objects import Objects, concatenate, no_objects
from cytopipe.core.resources import shipped
from cytopipe.core.seeds import rng_from, seed_from

coordinates = st.integers(-200_000, 200_000)
sides = st.integers(0, 3_000)


@st.composite
def boxes(draw, least=0):
    rows = draw(st.lists(st.tuples(coordinates, coordinates, sides, sides), min_size=least, max_size=6))
    return np.array([[x, y, x + w, y + h] for x, y, w, h in rows], dtype=np.float64).reshape(-1, 4)


def slow_iou(a, b):
    """Intersection over union of two integer boxes, by the lengths of the common intervals."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union else 0.0


# Boxes


@given(a=boxes(), b=boxes())
def test_iou_of_boxes_equals_the_slow_one(a, b):
    found = box_iou(a, b)

    assert found.shape == (len(a), len(b))
    assert found.tolist() == [[slow_iou(p, q) for q in b] for p in a]


@given(a=boxes(least=1), frame=boxes(least=1))
def test_a_clipped_box_lies_in_the_frame_and_keeps_the_common_area(a, frame):
    clipped = clip_boxes(a, frame[0])

    common = [box_iou(box[None], frame[:1])[0, 0] > 0 for box in a]
    assert ((box_areas(clipped) > 0) == common).all()
    inside = clipped[common]
    assert (inside[:, :2] >= frame[0, :2]).all()
    assert (inside[:, 2:] <= frame[0, 2:]).all()


def test_a_box_outside_the_frame_has_no_area():
    outside = clip_boxes(np.array([[20.0, 0.0, 30.0, 10.0]]), np.array([0.0, 0.0, 10.0, 10.0]))

    assert box_areas(outside).tolist() == [0.0]


@given(xyxy=boxes(), origin=st.tuples(coordinates, coordinates), power=st.integers(-3, 5))
def test_window_and_slide_frames_are_inverse_exactly_for_scales_of_two(xyxy, origin, power):
    scale = (2.0**power, 2.0**power)

    there = slide_from_window(xyxy, origin, scale)

    assert (window_from_slide(there, origin, scale) == xyxy).all()


def test_the_slide_frame_scales_first_and_shifts_then():
    points = slide_from_window(np.array([[1.0, 2.0]]), (100.0, 200.0), (4.0, 2.0))

    assert points.tolist() == [[104.0, 204.0]]


# Files


def test_a_failed_write_leaves_the_old_file_and_no_partial(tmp_path):
    path = tmp_path / "result.json"
    write_text(path, "old")

    with pytest.raises(UnicodeEncodeError), atomic_path(path) as partial, partial.open("w", encoding="ascii") as file:
        file.writelines(["half", "ü"])

    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_a_partial_keeps_the_suffix_that_writers_look_at_and_lies_beside_the_file(tmp_path):
    with atomic_path(tmp_path / "slide.tif") as partial:
        partial.write_text("x")

        assert partial.parent == tmp_path
        assert ".tif" in partial.suffixes

    assert (tmp_path / "slide.tif").read_text() == "x"


def test_writing_into_a_missing_folder_is_a_run_error_that_names_the_file(tmp_path):
    with pytest.raises(RunError, match=r"absent/result\.json"):
        write_text(tmp_path / "absent" / "result.json", "x")


def test_nan_is_never_written_bare_into_json(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "run.json", {"ap": float("nan")})

    assert not list(tmp_path.iterdir())


def test_partials_of_a_killed_run_are_swept_and_nothing_else(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / ".tiles.parquet.0badcafe.partial").write_text("half")
    (tmp_path / "inner" / "tiles.parquet").write_text("whole")

    sweep_partials(tmp_path)

    assert [p.name for p in (tmp_path / "inner").iterdir()] == ["tiles.parquet"]


def test_the_hash_of_a_file_is_its_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")

    # FIPS 180-4, the one-block example
    assert sha256_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# The lock


HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
from cytopipe.core.files import FolderLock
with FolderLock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def lock_holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLD_THE_LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path, lock_holder):
    with pytest.raises(UserError, match=f"process {lock_holder.pid} on "), FolderLock(tmp_path):
        pass

    assert (tmp_path / ".lock").exists()


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, lock_holder):
    lock_holder.send_signal(signal.SIGKILL)
    lock_holder.wait()
    assert (tmp_path / ".lock").exists()

    with FolderLock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} ")

    assert not (tmp_path / ".lock").exists()


def test_the_lock_of_another_host_is_never_taken_over(tmp_path):
    (tmp_path / ".lock").write_text("1 elsewhere.example")

    with pytest.raises(UserError, match=r"elsewhere\.example"), FolderLock(tmp_path):
        pass


# The journal


def test_finished_units_are_known_to_the_next_run_of_the_same_command(tmp_path):
    open_journal(tmp_path, "tile", {"tile_px": 1024}).finish("S-1", tiles=7)

    resumed = open_journal(tmp_path, "tile", {"tile_px": 1024})

    assert resumed.is_done("S-1")
    assert resumed.facts("S-1") == {"tiles": 7}
    assert not resumed.is_done("S-2")


def test_a_line_cut_short_by_a_full_disk_does_not_spoil_the_next_one(tmp_path):
    journal = open_journal(tmp_path, "tile", {})
    journal.finish("S-1")
    size, limits = (tmp_path / JOURNAL_NAME).stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))  # ten bytes of the next line still fit
    try:
        with pytest.raises(DiskError, match="could not be written"):
            journal.finish("S-2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    journal.finish("S-3")

    again = open_journal(tmp_path, "tile", {})
    assert [again.is_done(unit) for unit in ("S-1", "S-2", "S-3")] == [True, False, True]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space left on the disk; free some space and run the same command again; it resumes"),
        (errno.EDQUOT, "the disk quota is used up; free some space and run the same command again; it resumes"),
        (errno.EROFS, "may not be written; choose another --out"),
    ],
)
def test_a_disk_that_takes_no_more_says_what_to_do(number, said, tmp_path):
    error = disk_error(OSError(number, os.strerror(number)), tmp_path / "store")

    assert isinstance(error, RunError)
    assert str(error) == f"{tmp_path / 'store'}: {said}"


def test_other_parameters_are_refused_with_the_difference_shown(tmp_path):
    open_journal(tmp_path, "tile", {"tile_px": 1024, "split": {"salt": "a"}})

    with pytest.raises(UserError, match=r"split\.salt a -> b, tile_px 1024 -> 1200"):
        open_journal(tmp_path, "tile", {"tile_px": 1200, "split": {"salt": "b"}})


def test_the_output_of_another_command_is_refused_by_its_name(tmp_path):
    open_journal(tmp_path, "tile", {})

    with pytest.raises(UserError, match="holds the output of `cytopipe tile`"):
        open_journal(tmp_path, "infer", {})


def test_overwrite_starts_anew_but_never_empties_a_folder_of_somebody_else(tmp_path):
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.mkdir()
    theirs.mkdir()
    open_journal(ours, "tile", {"tile_px": 1024}).finish("S-1")
    (theirs / "thesis.tex").write_text("years")

    fresh = open_journal(ours, "tile", {"tile_px": 1200}, overwrite=True)
    with pytest.raises(UserError, match="holds no run of cytopipe"):
        open_journal(theirs, "tile", {}, overwrite=True)

    assert not fresh.is_done("S-1")
    assert (theirs / "thesis.tex").read_text() == "years"


@given(cut=st.integers(1, 40))
def test_a_line_torn_by_a_kill_is_dropped_and_the_unit_done_again(tmp_path_factory, cut):
    folder = tmp_path_factory.mktemp("out")
    journal = open_journal(folder, "tile", {})
    journal.finish("S-1")
    whole = (folder / JOURNAL_NAME).read_bytes()
    journal.finish("S-2", note="x" * 40)
    torn = (folder / JOURNAL_NAME).read_bytes()
    (folder / JOURNAL_NAME).write_bytes(torn[: max(len(whole), len(torn) - cut)])

    resumed = open_journal(folder, "tile", {})
    resumed.finish("S-2")

    lines = [json.loads(line) for line in (folder / JOURNAL_NAME).read_text().splitlines()]
    assert [line.get("unit") for line in lines] == [None, "S-1", "S-2"]


# Seeds


@given(seed=st.integers(0, 2**63 - 1), names=st.lists(st.text(max_size=8), min_size=2, max_size=2, unique=True))
def test_streams_of_different_names_differ_and_the_same_name_repeats(seed, names):
    a, b = (rng_from(seed, name).integers(0, 2**63, 4) for name in names)

    assert (a != b).any()
    assert (rng_from(seed, names[0]).integers(0, 2**63, 4) == a).all()


def test_a_seed_tells_numbers_from_their_text_and_keeps_the_order():
    assert len({seed_from(1, 2), seed_from(2, 1), seed_from("1", 2), seed_from(12), seed_from("12")}) == 5


# Objects


def test_a_table_of_objects_refuses_rows_that_do_not_fit():
    empty = no_objects(2)

    with pytest.raises(ValueError, match=r"Objects\.score"):
        Objects(
            empty.xyxy, empty.class_index, np.ones(1, np.float32), *(getattr(empty, n) for n in Objects.__slots__[3:])
        )
    with pytest.raises(ValueError, match="NaN"):
        one_object(x0=float("nan"))


def test_tables_are_joined_in_the_given_order_and_rows_are_taken_by_index():
    joined = concatenate([one_object(x0=3.0), no_objects(2), one_object(x0=1.0)], classes=2)

    assert joined.xyxy[:, 0].tolist() == [3.0, 1.0]
    assert joined.take(np.array([1])).xyxy[:, 0].tolist() == [1.0]
    assert len(concatenate([], classes=2)) == 0


def one_object(x0: float) -> Objects:
    return Objects(
        np.array([[x0, 0.0, x0 + 10.0, 10.0]]),
        np.zeros(1, np.int32),
        np.ones(1, np.float32),
        np.ones((1, 2), np.float32),
        np.array([None], object),
        np.zeros(1, np.uint8),
        np.zeros(1, np.int32),
    )


# Classes


@pytest.mark.parametrize(
    ("name", "kind", "suspicious"),
    [("Nucleus", "nucleus", False), ("HSIL", "cell", True), ("asc-us", "cell", True), ("normal", "cell", False)],
)
def test_a_bare_class_name_means_what_the_bethesda_system_says(name, kind, suspicious):
    meant = class_named(name)

    assert (meant.name, meant.kind, meant.suspicious) == (name, kind, suspicious)


# Errors


@given(what=st.text(min_size=1), where=st.text(), fix=st.text())
def test_an_error_is_always_one_line(what, where, fix):
    text = str(CytopipeError(what, where=where, fix=fix))

    assert len(text.splitlines()) <= 1


def test_an_error_says_what_where_and_what_to_do():
    error = UserError("no resolution in the file", where="S-17.svs", fix="give --mpp-override")

    assert str(error) == "S-17.svs: no resolution in the file; give --mpp-override"
    assert (error.exit_code, RunError("x").exit_code) == (2, 1)


def test_an_unknown_key_names_the_nearest_known_one():
    with pytest.raises(UserError, match=r"recipe\.toml: unknown key 'titel_px'; did you mean 'tile_px'\?"):
        refuse_unknown(["mpp", "titel_px"], ["mpp", "tile_px"], "recipe.toml")

    assert nearest_fix("zzz", ["b", "a"], "known methods") == "known methods: a, b"


# Resources


def test_shipped_recipes_are_found_from_any_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert (shipped("pipelines") / "supervised.toml").is_file()
