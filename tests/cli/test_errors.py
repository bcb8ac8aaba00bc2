"""What a user reads when something is wrong: one line on stderr that starts with `error: `, and an exit code."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cytopipe.cli.console import Meter, Session, duration, json_value, table
from cytopipe.cli.main import app
from cytopipe.core.errors import RunError, UserError
from cytopipe.core.journal import open_journal
from tests.conftest import DATA, shared_data

SLIDE_COMMANDS = ("info", "tile", "infer", "mine-unlabeled")
EDGE = DATA / "edge_slides"
EDGE_FILES = sorted(
    str(p.relative_to(EDGE)) for p in EDGE.rglob("*") if p.is_file() and p.suffix != ".txt"
) or ["(absent)"]  # fmt: skip


def run(arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def refusal(arguments, code=2):
    """The one line that a command says when it is refused; checks that it is one line, and that stdout is empty."""
    done = run([*arguments, "--quiet"])

    lines = done.stderr.splitlines()
    assert (done.exit_code, len(lines)) == (code, 1), done.stderr
    assert lines[0].startswith("error: ")
    assert "a mistake in cytopipe" not in lines[0]
    assert done.stdout == ""
    return lines[0]


def work_on(command, slide, out):
    """The arguments of a command that reads slides."""
    return [command, slide] if command == "info" else [command, slide, "--out", out]


def save_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    grain = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(grain).save(path)
    return path


@pytest.fixture
def image(tmp_path):
    """A slide of one level that says no resolution."""
    return save_image(tmp_path / "slides" / "plain.png")


# Slides


@pytest.mark.parametrize("command", SLIDE_COMMANDS)
def test_a_missing_file_is_named(command, tmp_path):
    line = refusal(work_on(command, tmp_path / "absent.svs", tmp_path / "out"))

    assert "absent.svs: no such file" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [c for c in SLIDE_COMMANDS if c != "info"])
def test_a_folder_without_slides_is_named_and_nothing_is_written(command, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("nothing")

    line = refusal(work_on(command, tmp_path / "empty", tmp_path / "out"))

    assert str(tmp_path / "empty") in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", SLIDE_COMMANDS)
def test_a_text_file_named_svs_is_refused_with_what_each_reader_said(command, tmp_path):
    (tmp_path / "fake.svs").write_text("this is no slide")

    line = refusal(work_on(command, tmp_path / "fake.svs", tmp_path / "out"))

    assert "fake.svs" in line
    assert all(reader in line for reader in ("tiff", "openslide", "image"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [c for c in SLIDE_COMMANDS if c != "info"])
def test_a_slide_without_resolution_is_refused_and_the_flag_is_named(command, image, tmp_path):
    line = refusal(work_on(command, image, tmp_path / "out"))

    assert "plain.png" in line
    assert "--mpp-override" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [c for c in SLIDE_COMMANDS if c != "info"])
def test_two_slides_with_one_id_are_refused_with_both_paths(command, tmp_path):
    first, second = save_image(tmp_path / "a" / "S-1.png"), save_image(tmp_path / "b" / "S-1.png")

    line = refusal([*work_on(command, first, tmp_path / "out"), second])

    assert str(first) in line
    assert str(second) in line


@pytest.mark.parametrize("name", EDGE_FILES)
@pytest.mark.parametrize("command", ["info", "tile"])
def test_every_file_that_a_reader_may_meet_is_read_or_refused_in_one_line(command, name, tmp_path):
    slide = shared_data("edge_slides") / name

    done = run([*work_on(command, slide, tmp_path / "out"), "--quiet"])

    if done.exit_code == 0:
        assert done.stdout
    else:
        first, *_ = lines = done.stderr.splitlines()
        assert done.exit_code in (1, 2)
        assert first.startswith("error: ")
        assert [line for line in lines if "Traceback" in line or "a mistake in cytopipe" in line] == []
        assert done.exit_code == 1 or len(lines) == 1


def test_no_library_writes_to_the_terminal_beside_the_error_line(tmp_path):
    (tmp_path / "fake.svs").write_bytes(b"II*\0" + bytes(100))  # a TIFF header that leads nowhere

    done = subprocess.run(
        [sys.executable, "-m", "cytopipe.cli.main", "info", str(tmp_path / "fake.svs")], capture_output=True, text=True
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert [line.split(" ")[0] for line in done.stderr.splitlines()] == ["error:"]


# Flags and names


@pytest.mark.parametrize("given", ["0.25", "-1", "12.5", "many"])
def test_an_overlap_that_is_no_number_of_pixels_is_refused(given, image, tmp_path):
    line = refusal(["tile", image, "--out", tmp_path / "out", "--overlap-px", given])

    assert given in line
    assert "pixels" in line


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["tile", "x.svs"], "missing option '--out'"),
        (["tile", "x.svs", "--out", "tiles", "--mpp", "0"], "0 is not greater than 0"),
        (["infer", "x.svs", "--device", "gpu"], "'gpu' is none of"),
        (["infer", "x.svs", "--score-threshold", "2"], "invalid value for '--score-threshold'"),
        (["doctor", "--jsno"], "no such option: --jsno"),
        (["tiel"], "no such command 'tiel'"),
    ],
)
def test_a_usage_error_is_one_line_that_points_to_the_help(arguments, fragment):
    done = run(arguments)

    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert fragment in done.stderr
    assert "--help`" in done.stderr


def test_an_unknown_model_names_the_nearest_or_all(tmp_path):
    from cytopipe.nets import list_bundles

    known = list_bundles()[0]
    line = refusal(["infer", tmp_path / "x.svs", "--model", known[:-1]])

    assert f"did you mean {known!r}?" in line


def test_an_unknown_method_names_the_nearest(tmp_path):
    shown = refusal(["methods", "dual-aligment"])
    trained = refusal(["train", "--method", "dual-aligment", "--labeled", tmp_path, "--out", tmp_path / "run"])

    assert "did you mean 'dual-alignment'?" in shown
    assert "did you mean 'dual-alignment'?" in trained
    assert not (tmp_path / "run").exists()


def test_an_unknown_recipe_key_names_the_nearest(tmp_path):
    arguments = ["train", "--method", "supervised", "--labeled", tmp_path, "--out", tmp_path / "run"]

    line = refusal([*arguments, "--set", "train.itertions=5"])

    assert "itertions" in line
    assert "iterations" in line


# Output folders


@pytest.mark.parametrize("command", ["tile", "infer", "mine-unlabeled"])
def test_the_output_of_another_command_is_refused_and_left_alone(command, image, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    open_journal(out, "synth", {"size": [64, 64]})
    before = (out / "run.jsonl").read_bytes()

    line = refusal([*work_on(command, image, out), "--mpp-override", "0.5"])

    assert "holds the output of `cytopipe synth`" in line
    assert (out / "run.jsonl").read_bytes() == before


@pytest.mark.parametrize("command", ["tile", "infer", "mine-unlabeled"])
def test_a_folder_of_somebody_else_is_refused_even_with_overwrite(command, image, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years")

    line = refusal([*work_on(command, image, out), "--mpp-override", "0.5", "--overwrite"])

    assert str(out) in line
    assert [p.name for p in out.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("command", ["tile", "infer", "mine-unlabeled"])
def test_an_output_folder_that_cannot_be_made_is_a_failure_at_run_time(command, image, tmp_path):
    (tmp_path / "file").write_text("in the way")

    line = refusal([*work_on(command, image, tmp_path / "file" / "out"), "--mpp-override", "0.5"], code=1)

    assert str(tmp_path / "file") in line
    assert "written" in line


# Sessions


def test_without_debug_an_error_is_one_line_and_with_it_a_traceback_comes_first(capsys):
    for debug in (False, True):
        with pytest.raises(SystemExit, match="2"), Session(debug=debug):
            raise UserError("no resolution", where="S-17.svs")

    plain, *trace = capsys.readouterr().err.splitlines()
    assert plain == "error: S-17.svs: no resolution"
    assert trace[0].startswith("Traceback")
    assert trace[-1] == plain


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (RunError("disk full"), 1, "error: disk full"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on where this one stopped"),
        (PermissionError(13, "Permission denied", "out"), 1, "error: out: may not be written; choose another --out"),
        (
            IndexError("list index\nout of range"),
            1,
            "error: a mistake in cytopipe itself (IndexError: list index out of",
        ),
    ],
)
def test_every_error_ends_in_one_line_and_its_exit_code(error, code, text, capsys):
    with pytest.raises(SystemExit) as exit_, Session():
        raise error

    assert exit_.value.code == code
    shown = capsys.readouterr().err
    assert shown.startswith(text)
    assert shown.count("\n") == 1


def test_with_json_an_error_is_a_document_too(capsys):
    with pytest.raises(SystemExit), Session(json=True):
        raise UserError("no resolution")

    assert json.loads(capsys.readouterr().out) == {"error": "no resolution", "exit_code": 2}


def test_failures_are_listed_and_the_command_exits_with_1(capsys):
    io = Session(quiet=True)

    with pytest.raises(SystemExit, match="1"), io:
        io.failures([("S-1", "no\nresolution"), ("S-23", "broken")], total=5)

    lines = capsys.readouterr().err.splitlines()
    assert lines == ["error: 2 of 5 slides failed:", "  S-1   no resolution", "  S-23  broken"]


def test_quiet_silences_messages_and_progress_but_no_result(capsys):
    with Session(quiet=True) as io:
        io.say("this may take a while")
        io.progress(1, 2, "tiles")
        io.result(["done"], {})

    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("done\n", "")


def test_without_a_terminal_progress_is_a_line_every_thirty_seconds(capsys):
    now_s = [0.0]
    meter = Meter(clock=lambda: now_s[0])

    for done in range(0, 70, 10):  # ten tiles in ten seconds, a minute long
        now_s[0] = float(done)
        meter.update(done, 100, "tiles")

    assert capsys.readouterr().err.splitlines() == [
        "tiles: 30 of 100, 1 per s, 1 min 10 s left",
        "tiles: 60 of 100, 1 per s, 40 s left",
    ]


def test_how_the_work_goes_follows_the_count_in_the_plain_line(capsys):
    now_s = [0.0]
    meter = Meter(clock=lambda: now_s[0])

    for done in (0, 30):
        now_s[0] = float(done)
        meter.update(done, 100, "iterations", "loss 1.23 (ce 1.23) · 8 images/s")

    said = capsys.readouterr().err.splitlines()
    assert said == ["iterations: 30 of 100, 1 per s, 1 min 10 s left; loss 1.23 (ce 1.23) · 8 images/s"]


def test_on_a_terminal_how_the_work_goes_stands_below_the_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    meter = Meter()

    meter.update(30, 100, "iterations", "loss 1.23 ([ce] 1.23) · 8 images/s")
    meter.close()

    lines = screen.getvalue().splitlines()
    bar = next(number for number, line in enumerate(lines) if "30/100" in line)
    assert "loss 1.23 ([ce] 1.23) · 8 images/s" in lines[bar + 1]


class Terminal(StringIO):
    """A screen that remembers what was drawn on it."""

    def isatty(self) -> bool:
        return True


def test_progress_without_a_known_end_is_a_count_with_its_rate(capsys):
    now_s = [0.0]
    meter = Meter(clock=lambda: now_s[0])

    for done in (0, 400, 900):
        now_s[0] = done / 20
        meter.update(done, 0, "objects")

    assert capsys.readouterr().err.splitlines() == ["objects: 900, 20 per s"]


def test_json_holds_numbers_where_numpy_had_them_and_null_where_nothing_is_defined():
    value = {
        "ap": np.float32(0.5),
        "n": np.int64(3),
        "boxes": np.ones((1, 2)),
        "path": Path("a/b"),
        "undefined": np.nan,
    }

    assert json_value(value) == {"ap": 0.5, "n": 3, "boxes": [[1.0, 1.0]], "path": "a/b", "undefined": None}


def test_a_table_is_aligned_with_numbers_to_the_right():
    assert table(("slide", "n"), [("a", 7), ("long", 1234), ("none", None)]) == [
        "slide  n",
        "a      7",
        "long   1234",
        "none   -",
    ]
    assert table(("slide", "n"), iter([("a", 7), ("b", 1234)])) == ["slide     n", "a         7", "b      1234"]
    assert table(("slide", "n"), []) == ["slide  n"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(8.4, "8 s"), (59.7, "1 min 00 s"), (125, "2 min 05 s"), (12_000, "3 h 20 min")]
)
def test_a_time_span_is_said_in_two_units_at_most(seconds, text):
    assert duration(seconds) == text


INTERRUPTED_AT_WORK = """
import time
from cytopipe.cli.console import Session
with Session() as io:
    print("ready", flush=True)
    time.sleep(60)
"""


def test_ctrl_c_exits_with_130_and_one_line():
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_AT_WORK],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts what runs behind it with Ctrl-C ignored, and the tests may run there
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout.readline() == "ready\n"
        os.kill(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=30)

    assert process.returncode == 130
    assert err == "interrupted; the same command goes on where this one stopped\n"


def test_a_reader_that_leaves_the_pipe_is_no_error():
    """Only the parent holds the reading end, and closes it before the program prints."""
    with subprocess.Popen(
        [sys.executable, "-m", "cytopipe.cli.main", "--version"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        err = process.stderr.read()

    assert err == ""
