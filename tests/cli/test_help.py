"""`--help`: quick, complete, and with an example that works as pasted."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from cytopipe.cli.main import COMMANDS, app

NAMES = [command.name for command in COMMANDS]
HEAVY = ("torch", "zarr", "dask", "geopandas", "numpy", "cv2", "shapely", "pyarrow")

WITH_MODULES_LISTED = f"""
import atexit, sys
atexit.register(lambda: print("heavy:", *[m for m in {HEAVY} if m in sys.modules], file=sys.stderr))
from cytopipe.cli.main import app
app(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], [], *([name, "--help"] for name in NAMES)], ids=" ".join
)
def test_help_and_version_answer_without_importing_anything_heavy(arguments):
    done = subprocess.run(
        [sys.executable, "-c", WITH_MODULES_LISTED, *arguments], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert done.stderr == "heavy:\n"


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_the_help_of_a_command_ends_with_its_example_on_one_line(command):
    shown = CliRunner().invoke(app, [command.name, "--help"])

    lines = [line.strip() for line in shown.stdout.splitlines() if line.strip()]
    assert shown.exit_code == 0
    assert lines[-1] == f"Example:  {command.example}"


@pytest.mark.parametrize("command", COMMANDS, ids=NAMES)
def test_the_example_of_a_command_is_accepted_by_its_parser(command):
    program, name, *arguments = shlex.split(command.example)
    group = get_command(app)

    with group.commands[name].make_context(name, arguments) as context:
        assert (program, name) == ("cytopipe", command.name)
        assert context.params


def test_the_listing_shows_every_command_once():
    shown = CliRunner().invoke(app, ["--help"])

    for name in NAMES:
        assert sum(line.strip("│ ").split(" ")[0] == name for line in shown.stdout.splitlines()) == 1


def test_an_option_means_the_same_in_every_command():
    options: dict[str, set[str]] = {}
    for command in get_command(app).commands.values():
        for parameter in command.params:
            for flag in parameter.opts:
                meaning = getattr(parameter, "help", "").partition(";")[0]  # what follows may be the command's own
                options.setdefault(flag, set()).add(meaning)

    shared = [
        "--out",
        "--recipe",
        "--mpp",
        "--tile-px",
        "--overlap-px",
        "--device",
        "--workers",
        "--seed",
        "--overwrite",
    ]
    shared += ["--json", "--quiet", "--debug", "--mpp-override", "--reader", "--model"]
    assert {flag: texts for flag, texts in options.items() if flag in shared and len(texts) > 1} == {}


@pytest.mark.parametrize("name", NAMES)
def test_every_command_can_be_machine_read_silenced_and_debugged(name):
    flags = {flag for parameter in get_command(app).commands[name].params for flag in parameter.opts}

    assert {"--json", "--quiet", "--debug"} <= flags
