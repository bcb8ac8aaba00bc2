"""`methods`, `models` and `doctor`: what is installed, and whether it works."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from cytopipe.cli.main import app
from cytopipe.methods import METHODS
from cytopipe.nets import list_bundles


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [str(a) for a in arguments])
    assert done.exit_code == code, done.stderr
    return done


def test_every_method_is_listed_with_its_paper():
    listed = json.loads(run("methods", "--json").stdout)

    assert [row["name"] for row in listed] == list(METHODS)
    assert all(row["paper"] and row["tasks"] for row in listed)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_shows_what_its_paper_says_and_a_sentence_for_each_setting(name):
    shown = json.loads(run("methods", name, "--json").stdout)

    assert any(line.startswith("Differs") for line in shown["text"])
    assert all(setting["meaning"] for setting in shown["settings"])


def test_every_shipped_model_is_listed_with_its_facts_and_has_a_card():
    listed = json.loads(run("models", "--json").stdout)

    assert [row["name"] for row in listed] == list_bundles()
    assert all(row["card"] and row["classes"] and row["mpp"] > 0 for row in listed)


def test_a_model_shows_its_card_as_text():
    name = list_bundles()[0]

    shown = run("models", name).stdout

    assert shown.startswith(f"{name}: ")
    assert "Not for" in shown


def test_the_doctor_finds_this_installation_well(tmp_path):
    done = run("doctor", "--folder", tmp_path, "--quiet")

    checks = done.stdout.splitlines()[1:]
    assert [line for line in checks if " ok " not in line] == []
    assert {f"model {name}" for name in list_bundles()} == {line[:19].strip() for line in checks if "model" in line[:6]}
    assert done.stderr == ""


def test_the_doctor_says_which_folder_cannot_be_written_and_exits_with_1(tmp_path):
    done = run("doctor", "--folder", tmp_path / "absent", "--quiet", code=1)

    failing = [line for line in done.stdout.splitlines() if "FAILS" in line]
    assert [line.startswith("output folder") for line in failing] == [True]
    assert "absent" in done.stderr
