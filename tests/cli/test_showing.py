"""How slides are read, at the command line: `--icc`, `--z`, `--channels`, `--background`, `--mpp-override` and a list's
mpp."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner

from cytopipe.cli.main import app
from cytopipe.formats.results import read_run_json
from cytopipe.tiles import TileStore

SIDE = 320


@pytest.fixture(scope="module")
def stack(tmp_path_factory) -> Path:
    """Three planes and two channels of glass with discs, at 0.25 µm/px."""
    y, x = np.mgrid[:SIDE, :SIDE]
    samples = np.full((3, 2, SIDE, SIDE), 230, np.uint8)
    samples[:, :, (x - 100) ** 2 + (y - 120) ** 2 < 24**2] = 90
    samples[1, :, ::2, ::2] -= 20  # texture: the plane in focus
    path = tmp_path_factory.mktemp("stack") / "s.ome.tif"
    metadata = {"axes": "ZCYX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25, "Channel": {"Name": ["HE", "DAPI"]}}
    tifffile.imwrite(path, samples, photometric="minisblack", tile=(64, 64), ome=True, metadata=metadata)
    return path


def run(*arguments, code=0):
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == code, done.stderr
    return done


def test_info_shows_planes_and_channels_without_asking_for_a_choice(stack):
    shown = run("info", stack).stdout
    found = json.loads(run("info", stack, "--json").stdout)

    assert "3, from 0; looked at the middle one, 1; --z chooses" in shown
    assert "0 HE, 1 DAPI; --channels chooses" in shown
    assert (found["z_count"], found["z"], found["channels"], found["icc"]) == (3, "best", ["HE", "DAPI"], "off")
    assert json.loads(run("info", stack, "--json", "--z", 2, "--channels", "DAPI").stdout)["z"] == 2


def test_info_judges_the_background_unless_it_is_given(stack):
    assert json.loads(run("info", stack, "--json").stdout)["background"] == "light"
    assert json.loads(run("info", stack, "--json", "--background", "dark").stdout)["background"] == "dark"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), r"a stack of 3 planes and 2 channels (0 HE, 1 DAPI); choose a plane by --z 0 to 2 or --z best"),
        (("--z", 1), "2 channels (0 HE, 1 DAPI); give --channels"),
        (("--z", 3, "--channels", "HE"), "plane 3 of a stack of 3"),
        (("--z", "sharp"), "--z 'sharp'; give the number of a plane"),
        (("--channels", "a,b"), "names 2 channels"),
        (("--z", 0, "--channels", "Cy5"), "no channel 'Cy5' among 0 HE, 1 DAPI"),
    ],
)
@pytest.mark.parametrize("command", ["infer", "mine-unlabeled"])
def test_what_cannot_be_shown_is_refused_before_anything_is_written(stack, tmp_path, command, flags, said):
    done = run(command, stack, "--out", tmp_path / "out", *flags, code=2)

    assert said in done.stderr
    assert not (tmp_path / "out").exists()


def test_infer_records_how_slides_were_shown_and_refuses_to_mix_two_ways(stack, tmp_path):
    flags = ("--z", "best", "--channels", "HE", "--background", "dark")
    run("infer", stack, "--out", tmp_path / "out", *flags)

    facts = read_run_json(tmp_path / "out" / "s.ome")
    assert {key: facts["slide"][key] for key in ("z", "channels", "icc", "background")} == {
        "z": "best",
        "channels": "HE",
        "icc": "off",
        "background": "dark",
    }
    assert any("has a dark background" in warning for warning in facts["warnings"])
    run("infer", stack, "--out", tmp_path / "out", *flags)
    for other in (("--z", 1, *flags[2:]), (*flags, "--icc", "srgb"), flags[:4]):
        refused = run("infer", stack, "--out", tmp_path / "out", *other, code=2)
        assert "--overwrite" in refused.stderr


def test_infer_warns_that_a_profile_is_missing_or_not_used(stack, tmp_path):
    run("infer", stack, "--out", tmp_path / "out", "--z", 0, "--channels", "HE", "--icc", "srgb")

    warnings = read_run_json(tmp_path / "out" / "s.ome")["warnings"]
    assert "it has no ICC profile; its colours are shown as stored" in warnings


def test_mine_unlabeled_cuts_the_plane_that_was_asked_for(stack, tmp_path):
    flags = ("--z", 1, "--channels", "HE,DAPI,-", "--select", "random", "--tile-px", 128, "--mpp", 0.25)
    run("mine-unlabeled", stack, "--out", tmp_path / "out", *flags)

    store = TileStore(tmp_path / "out")
    assert len(store) > 0
    for index in range(len(store)):
        red, green, blue = np.median(store.read_image(index).reshape(-1, 3), axis=0)
        assert (min(red, green) > 180, blue < 20) == (True, True)  # blue shows nothing, but for JPEG
    refused = run("mine-unlabeled", stack, "--out", tmp_path / "out", "--z", 0, *flags[2:], code=2)
    assert "--overwrite" in refused.stderr


def test_the_mpp_of_a_list_counts_before_the_flag_and_the_flag_before_the_file(stack, tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.ome.tif").write_bytes(stack.read_bytes())
    (tmp_path / "list.csv").write_text("path,slide_id,mpp\na.ome.tif,a,0.5\nb.ome.tif,b,\n")

    flags = ("--z", 0, "--channels", "HE", "--tile-px", 64, "--mpp", 0.5, "--no-foreground")
    run("tile", tmp_path / "list.csv", "--mpp-override", 0.4, "--out", tmp_path / "flag", *flags)
    run("tile", tmp_path / "list.csv", "--out", tmp_path / "file", *flags)

    def told(folder: str) -> dict[str, tuple[float, str]]:
        rows = TileStore(tmp_path / folder).slides.to_pylist()
        return {row["slide_id"]: (row["mpp_x"], row["mpp_source"]) for row in rows}

    assert told("flag") == {"a": (0.5, "override"), "b": (0.4, "override")}
    assert told("file") == {"a": (0.5, "override"), "b": (0.25, "vendor field OME PhysicalSize")}


def test_a_store_records_the_plane_of_each_tile(stack, tmp_path):
    flags = ("--channels", "HE", "--tile-px", 128, "--mpp", 0.25, "--no-foreground")
    run("tile", stack, "--out", tmp_path / "best", "--z", "best", *flags)
    run("tile", stack, "--out", tmp_path / "two", "--z", 2, *flags)

    assert set(TileStore(tmp_path / "best").tiles.column("z").to_pylist()) == {1}
    assert set(TileStore(tmp_path / "two").tiles.column("z").to_pylist()) == {2}
