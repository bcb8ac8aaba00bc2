"""What `info` and `tile` say about broken slides: one clear line, nothing half written, bounded memory."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import pytest
import tifffile
from typer.testing import CliRunner

from cytopipe.cli.main import app
from cytopipe.tiles import TileStore
from tests.corrupt_slides import BOMBS, BROKEN, TILE_BYTES, patch, sound, tile_span

TILE_FLAGS = ["--tile-px", "64", "--mpp", "0.5", "--no-foreground", "--workers", "1", "--quiet"]
MEMORY_KB = 1024 * 1024
CPU_S = 10


def run(arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def error_line(done):
    """The only line on stderr, which must be an error that is no fault of cytopipe's own."""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "a mistake in cytopipe" not in lines[0]
    assert "Traceback" not in done.stdout + done.stderr
    return lines[0]


@pytest.mark.parametrize("name", BROKEN)
def test_tile_says_in_one_line_what_is_broken_and_leaves_nothing_half_written(name, tmp_path):
    broken = BROKEN[name]
    slide = broken.write(tmp_path)

    done = run(["tile", slide, "--out", tmp_path / "out", *TILE_FLAGS])

    line = error_line(done)
    assert done.exit_code == broken.exit_code
    assert slide.name in line
    assert broken.says in line
    assert done.stdout == ""
    assert [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".jpg", ".parquet", ".tmp")] == []


@pytest.mark.parametrize("name", [name for name in BROKEN if name != "a resolution of 0/0"])
def test_info_says_in_one_line_what_is_broken(name, tmp_path):
    slide = BROKEN[name].write(tmp_path)

    done = run(["info", slide, "--quiet"])

    line = error_line(done)
    assert done.exit_code == BROKEN[name].exit_code
    assert slide.name in line
    assert BROKEN[name].says in line


def test_one_bad_tile_costs_itself_alone_and_is_named_with_its_place(tmp_path):
    slide = sound(tmp_path)
    offset, size = tile_span(slide, 7)  # the third column of the second row
    patch(slide, offset + size - 200, bytes(120))

    done = run(["tile", slide, "--out", tmp_path / "out", *TILE_FLAGS])

    assert done.exit_code == 1
    assert "1 of 15 tiles cannot be decoded, the first: s.tif, level 0, at x 128 y 64" in done.stderr
    assert len(TileStore(tmp_path / "out")) == 14


def test_tiles_that_were_never_scanned_are_counted_aloud(tmp_path):
    slide = sound(tmp_path)
    with tifffile.TiffFile(slide) as tiff:
        tag = tiff.pages[0].tags[TILE_BYTES]
    patch(slide, tag.valueoffset, bytes(3 * (2 if int(tag.dtype) == 3 else 4)))

    told = run(["info", slide]).stdout
    done = run(["tile", slide, "--out", tmp_path / "out", *[flag for flag in TILE_FLAGS if flag != "--quiet"]])

    assert "3 of 15 tiles hold no data" in told
    assert "warning: s.tif: 3 of 15 tiles hold no data; they are shown as background" in done.stderr


def test_a_broken_slide_among_others_is_listed_and_the_others_are_cut(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    broken = BROKEN["directories in a circle"].write(tmp_path / "b").rename(tmp_path / "b" / "t.tif")

    done = run(["tile", sound(tmp_path / "a"), broken, "--out", tmp_path / "out", *TILE_FLAGS])

    assert done.exit_code == 1
    assert done.stderr.splitlines()[0] == "error: 1 of 2 slides failed:"
    assert "circle" in done.stderr.splitlines()[1]
    assert len(TileStore(tmp_path / "out")) == 15


MEASURED = """
import json, resource, sys
from typer.testing import CliRunner
from cytopipe.cli.main import app
done = CliRunner().invoke(app, sys.argv[1:])
peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"code": done.exit_code, "stderr": done.stderr, "stdout": done.stdout, "peak_kb": peak_kb}))
"""


def within_limits():
    """In the child: processor time ends a hang, and address space an allocation that the machine could not give."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (4 * 1024**3, 4 * 1024**3))


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_one_line_within_a_gibibyte_and_ten_seconds(name, tmp_path):
    slide = BOMBS[name].write(tmp_path)
    arguments = ["tile", str(slide), "--out", str(tmp_path / "out"), "--mpp-override", "0.5", *TILE_FLAGS]

    ended = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, preexec_fn=within_limits
    )

    assert ended.returncode == 0, ended.stderr
    said = json.loads(ended.stdout)
    lines = said["stderr"].splitlines()
    assert (said["code"], len(lines)) == (BOMBS[name].exit_code, 1), said
    assert slide.name in lines[0]
    assert BOMBS[name].says in lines[0]
    assert said["peak_kb"] < MEMORY_KB
