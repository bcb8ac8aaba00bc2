"""`mine_unlabeled` on drawn slides; the model is a function of pixels: dark discs, the darker the more suspicious."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from cytopipe._version import __version__
from cytopipe.core.classes import ObjectClass
from cytopipe.core.errors import RunError, UserError
from cytopipe.core.objects import Objects
from cytopipe.mine import Finder, MineConfig, mine_config
from cytopipe.steps.mine import MineResult, mine_unlabeled
from cytopipe.tiles import MadeBy, SlideRow, StoreInfo, TileRow, TileStore, fingerprint_of, open_writer

CLASSES = (
    ObjectClass(name="normal", kind="cell", suspicious=False),
    ObjectClass(name="HSIL", kind="cell", suspicious=True),
)
DISCS = {(150, 150): 200, (600, 150): 120, (620, 600): 20, (1000, 700): 90}  # centre px -> grey level
SIZE = (1200, 800)


def draw_slide(path: Path, discs: dict[tuple[int, int], int] = DISCS) -> Path:
    """A white slide with discs of 40 px, as PNG."""
    picture = Image.new("RGB", SIZE, (245, 245, 245))
    for (x, y), grey in discs.items():
        ImageDraw.Draw(picture).ellipse((x - 20, y - 20, x + 19, y + 19), fill=(grey, grey, grey))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)
    return path


class DarkDiscs:
    """The stub model: connected dark px of the view; `looks` counts the slides it was asked about."""

    def __init__(self) -> None:
        self.looks = 0

    def __call__(self, slide, view, foreground, on_progress):
        self.looks += 1
        image = view.read(0, 0, view.width, view.height)[..., 0]
        _, _, stats, _ = cv2.connectedComponentsWithStats((image < 225).astype(np.uint8))
        x, y, w, h = stats[1:, :4].T.astype(np.float64)
        scale = np.array(view.slide_px_per_px * 2)
        dark = np.array([1 - image[int(b + d / 2), int(a + c / 2)] / 255 for a, b, c, d in stats[1:, :4]], np.float32)
        n = len(x)
        objects = Objects(
            np.stack([x, y, x + w, y + h], axis=1) * scale,
            np.ones(n, np.int32),
            np.ones(n, np.float32),
            np.stack([1 - dark, dark], axis=1).reshape(n, 2),
            np.full(n, None, object),
            np.zeros(n, np.uint8),
            np.zeros(n, np.int32),
        )
        return objects, ()


def finder_with(locate) -> Finder:
    return Finder("dark-discs", "a" * 64, 0.5, 200, CLASSES, locate)


def mine(slides: list[Path], out: Path, **changes) -> MineResult:
    settings = {"config": mine_config({"budget_per_slide": 2}), "finder": finder_with(DarkDiscs()), "mpp_override": 0.5}
    return mine_unlabeled(slides, out, **{**settings, **changes})


def boxes_of(store: TileStore) -> list[tuple[float, ...]]:
    return [store.tile_box(i) for i in range(len(store))]


def bytes_of(folder: Path) -> dict[str, bytes]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "run.jsonl")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_the_most_suspicious_places_become_an_unlabelled_store(tmp_path):
    result = mine([draw_slide(tmp_path / "a.png")], tmp_path / "mined")

    store = TileStore(tmp_path / "mined")
    assert boxes_of(store) == [(520, 500, 720, 700), (900, 600, 1100, 800)]  # centred on the two darkest discs
    assert store.tiles["score"].to_pylist() == pytest.approx([1 - 20 / 255, 1 - 90 / 255])
    assert store.tiles["origin"].to_pylist() == ["mined", "mined"]
    assert store.tiles["model"].to_pylist() == ["a" * 64] * 2
    assert store.tiles["labelled"].to_pylist() == [False, False]
    assert store.read_image(0)[100, 100].tolist() == pytest.approx([20] * 3, abs=3)  # JPEG
    assert store.info.made_by.command == "mine-unlabeled"
    assert result.picked == {"score": 2}


def test_windows_lie_on_the_grid_when_asked(tmp_path):
    mine(
        [draw_slide(tmp_path / "a.png")],
        tmp_path / "mined",
        config=mine_config({"budget_per_slide": 2, "place": "grid"}),
    )

    assert boxes_of(TileStore(tmp_path / "mined")) == [(600, 600, 800, 800), (1000, 600, 1200, 800)]


def test_windows_are_cut_at_the_resolution_asked_for_and_boxes_are_level_0_px(tmp_path):
    mine(
        [draw_slide(tmp_path / "a.png")],
        tmp_path / "mined",
        config=mine_config({"budget_per_slide": 1, "mpp": 1.0, "tile_px": 150}),
    )

    store = TileStore(tmp_path / "mined")
    assert boxes_of(store) == [(470, 450, 770, 750)]
    assert store.tiles["mpp"].to_pylist() == pytest.approx([1.0])
    assert store.read_image(0).shape == (150, 150, 3)


def test_random_windows_lie_on_the_grid_and_say_so(tmp_path):
    config = mine_config({"select": "score=0.5,random=0.5", "budget_per_slide": 4, "min_foreground": 0.0})

    mine([draw_slide(tmp_path / "a.png")], tmp_path / "mined", config=config)

    store = TileStore(tmp_path / "mined")
    origins = store.tiles["origin"].to_pylist()
    assert sorted(origins) == ["mined", "mined", "random", "random"]
    at_random = [box for box, origin in zip(boxes_of(store), origins, strict=True) if origin == "random"]
    assert all(x % 200 == 0 and y % 200 == 0 for x, y, _, _ in at_random)


def test_a_total_budget_does_not_depend_on_the_order_of_the_slides(tmp_path):
    a = draw_slide(tmp_path / "a.png")
    b = draw_slide(tmp_path / "b.png", {(400, 400): 60, (900, 300): 10})
    config = mine_config({"budget": 3})

    mine([a, b], tmp_path / "ab", config=config)
    mine([b, a], tmp_path / "ba", config=config)

    scores = TileStore(tmp_path / "ab").tiles["score"].to_pylist()  # the slides' darkest discs: one of a, two of b
    assert scores == pytest.approx([1 - 20 / 255, 1 - 10 / 255, 1 - 60 / 255])
    assert bytes_of(tmp_path / "ab") == bytes_of(tmp_path / "ba")


def test_the_same_command_again_looks_at_no_slide_twice_and_takes_up_new_ones(tmp_path):
    a, b = draw_slide(tmp_path / "a.png"), draw_slide(tmp_path / "b.png", {(400, 400): 60})
    model = DarkDiscs()
    mine([a], tmp_path / "grown", finder=finder_with(model))

    again = mine([a, b], tmp_path / "grown", finder=finder_with(model))
    mine([a, b], tmp_path / "fresh")

    assert model.looks == 2
    assert again.resumed == 1
    assert bytes_of(tmp_path / "grown") == bytes_of(tmp_path / "fresh")


def test_a_run_that_broke_off_between_looking_and_cutting_goes_on_to_the_same_store(tmp_path):
    slides = [draw_slide(tmp_path / "a.png"), draw_slide(tmp_path / "b.png", {(400, 400): 60})]
    model = DarkDiscs()

    def interrupted(slide, view, foreground, on_progress):
        if model.looks == 1:
            raise KeyboardInterrupt
        return model(slide, view, foreground, on_progress)

    with pytest.raises(KeyboardInterrupt):
        mine(slides, tmp_path / "broken", finder=finder_with(interrupted))
    result = mine(slides, tmp_path / "broken")
    mine(slides, tmp_path / "whole")

    assert result.resumed == 1
    assert bytes_of(tmp_path / "broken") == bytes_of(tmp_path / "whole")


def test_other_parameters_in_the_same_folder_are_refused(tmp_path):
    slide = draw_slide(tmp_path / "a.png")
    mine([slide], tmp_path / "mined")

    with pytest.raises(UserError, match="budget_per_slide 2 -> 1"):
        mine([slide], tmp_path / "mined", config=mine_config({"budget_per_slide": 1}))


def test_one_failing_slide_of_several_is_a_row_and_the_others_are_mined(tmp_path):
    good, bad = draw_slide(tmp_path / "a.png"), tmp_path / "b.png"
    bad.write_bytes(good.read_bytes()[:200])

    result = mine([good, bad], tmp_path / "mined")

    ((name, reason),) = result.failed
    assert name == "b"
    assert reason.startswith("b.png, level 0, at x 0 y 0: image cannot be decoded")
    store = TileStore(tmp_path / "mined")
    assert len(store) == 2
    assert store.slides["error"].to_pylist() == [None, reason]


def test_a_lone_slide_that_cannot_be_read_is_refused_and_nothing_is_written(tmp_path):
    bad = tmp_path / "b.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n broken")

    with pytest.raises(UserError, match=r"b\.png"):
        mine([bad], tmp_path / "mined")
    assert not (tmp_path / "mined").exists()


def test_no_window_at_all_is_an_error_and_not_an_empty_store(tmp_path):
    blank = draw_slide(tmp_path / "a.png", {})

    with pytest.raises(RunError, match="no window of 1 slides qualifies for --select score"):
        mine([blank], tmp_path / "mined")


def write_labelled(folder: Path, slide: Path, patient: str, split: str) -> Path:
    info = StoreInfo(
        tile_px=10,
        mpp=0.5,
        overlap_px=0,
        edge="shift",
        codec="png",
        quality=90,
        made_by=MadeBy(command="tile", version=__version__),
    )
    facts = {"mpp": 0.5, "foreground": None, "sharpness": None, "glass": None, "labelled": True, "origin": "grid"}
    row = SlideRow("labelled-" + slide.stem, patient, split, str(slide), fingerprint=fingerprint_of(slide))
    with open_writer(folder, info, {}) as writer:
        writer.add_slide(row, [TileRow(0, 0, 0.0, 0.0, 10.0, 10.0, image=b"png", **facts)], [], {})
        writer.finish()
    return folder


def test_slides_of_the_labelled_store_are_kept_out_listed_and_said(tmp_path):
    a, b = draw_slide(tmp_path / "a.png"), draw_slide(tmp_path / "b.png", {(400, 400): 60})
    labelled = write_labelled(tmp_path / "labelled", a, "P-1", "test")
    said: list[str] = []

    result = mine([a, b], tmp_path / "mined", exclude=labelled, say=said.append)

    reason = "its file is in the labelled store (test)"
    assert result.skipped == (("a", reason),)
    assert f"a is kept out: {reason}" in said
    assert any("the patients of 1 slides are unknown" in line for line in said)
    store = TileStore(tmp_path / "mined")
    assert store.tiles["slide_id"].unique().to_pylist() == ["b"]
    assert store.slides["error"].to_pylist() == [f"kept out: {reason}", None]


def test_a_slide_that_was_labelled_after_it_was_mined_leaves_the_store(tmp_path):
    a, b = draw_slide(tmp_path / "a.png"), draw_slide(tmp_path / "b.png", {(400, 400): 60})
    other = draw_slide(tmp_path / "other" / "c.png", {(500, 500): 30})
    labelled = write_labelled(tmp_path / "labelled", other, "P-9", "test")
    mine([a, b], tmp_path / "mined", exclude=labelled)
    assert set(TileStore(tmp_path / "mined").tiles["slide_id"].to_pylist()) == {"a", "b"}
    with open_writer(labelled, TileStore(labelled).info, {}) as writer:
        writer.add_slide(SlideRow("a", "P-1", "test", "a.png"), [], [], {})
        writer.finish()

    mine([a, b], tmp_path / "mined", exclude=labelled)

    assert set(TileStore(tmp_path / "mined").tiles["slide_id"].to_pylist()) == {"b"}


def test_train_patients_are_admitted_when_asked_and_no_slide_left_is_an_error(tmp_path):
    a = draw_slide(tmp_path / "a.png")
    labelled = write_labelled(tmp_path / "labelled", a, "P-1", "train")

    with pytest.raises(UserError, match="no slide is left: 1 are kept out"):
        mine([a], tmp_path / "mined", exclude=labelled)
    assert len(mine([a], tmp_path / "mined", exclude=labelled, allow_train_patients=True).slides) == 1


def test_a_setting_out_of_bounds_is_named_with_its_value():
    with pytest.raises(UserError, match=r"mine\.max_overlap_fraction: 1.5"):
        mine_config({"max_overlap_fraction": 1.5})
    with pytest.raises(UserError, match=r"unknown key 'bugdet'.*did you mean 'budget'"):
        mine_config({"bugdet": 3})
    assert mine_config({"budget": None}) == MineConfig.model_validate({})
