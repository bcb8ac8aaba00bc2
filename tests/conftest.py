"""What all tests share: where real data are, if they are there at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # before torch starts its threads: two workers of two threads each wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# The suite draws the same cases each time, so that a change that is red is red for its own reason. Others are looked
# for with `pytest --hypothesis-profile search`.
settings.register_profile("same", derandomize=True)
settings.register_profile("search")
settings.load_profile("same")

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_data(name: str) -> Path:
    """The folder of one real data set beside the checkout; the test that asks for an absent one is skipped."""
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"needs ../shared/data/{name}")
    return folder


@pytest.fixture(scope="session")
def smears(tmp_path_factory):
    """Four small synthetic slides of 1024 px (256 µm) with their truth, one a patient; nobody writes into them."""
    from cytopipe.steps.synth import synth

    folder = tmp_path_factory.mktemp("smears")
    return synth(folder, slides=4, size=(1024, 1024), cells_per_mm2=500.0, lesion_fraction=0.3, seed=7)


@pytest.fixture(scope="session")
def labelled_store(smears, tmp_path_factory):
    """Tiles of 192 px at 0.5 µm/px of three of them, two patients for training and one for validation."""
    import csv

    from cytopipe.steps.tile import tile
    from cytopipe.tiles import TileConfig

    folder = tmp_path_factory.mktemp("labelled")
    with (folder / "slides.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(("path", "slide_id", "patient", "split", "annotations"))
        for slide, part in zip(smears.slides[:3], ("train", "train", "val"), strict=True):
            rows.writerow((slide.path, slide.slide_id, slide.patient, part, slide.annotations))
    tile([folder / "slides.csv"], folder / "store", config=TileConfig(tile_px=192))
    return folder / "store"
