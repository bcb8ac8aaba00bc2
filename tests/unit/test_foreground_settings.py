"""Foreground on synthetic slides in every setting: cells are kept, empty glass and marks are not.

A reduced version of tests/benchmarks/foreground_recall.py; tiles are chosen by foreground alone.
"""

from __future__ import annotations

from functools import cache

import cv2
import numpy as np
import pytest

from cytopipe.slides import find_foreground
from cytopipe.synth import SETTING_NAMES, Renderer, Scene
from tests.array_slide import ArraySlide
from tests.foreground_cases import GRAIN_PX, covered, empty_glass, kept_tiles, mask_at

MPP, SIDE_PX = 0.5, 1536


@cache
def slide_of(setting: str, cells_per_mm2: float, seed: int):
    """The scene, its blocks and its slide with a pyramid, compressed as scanners do."""
    scene = Scene(
        SIDE_PX, SIDE_PX, mpp=MPP, seed=seed, cells_per_mm2=cells_per_mm2, lesion_fraction=0.06, setting=setting
    )
    bands, blocks = [], []
    for band, told in Renderer(scene).bands(1):
        bands.append(band.copy())
        blocks += told
    levels = [np.concatenate(bands)]
    for _ in range(3):
        levels.append(cv2.resize(levels[-1], None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))
    coded = [cv2.imdecode(cv2.imencode(".jpg", px, [cv2.IMWRITE_JPEG_QUALITY, 80])[1], -1) for px in levels]
    return scene, blocks, ArraySlide(*coded, mpp=MPP)


def boxes_of(outlines) -> np.ndarray:
    corners = [[*outline.min(axis=0), *outline.max(axis=0)] for outline in outlines]
    return np.clip(np.array(corners).reshape(-1, 4), 0, SIDE_PX)


def under_ink(scene: Scene, cells) -> np.ndarray:
    """Which cells touch a pen's stroke."""
    ink = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
    for stroke in scene.pen:
        cv2.polylines(ink, [np.round(stroke.line).astype(np.int32)], False, 1, round(stroke.width + stroke.softness))
    corners = boxes_of([cell.outline for cell in cells]).astype(int)
    return np.array([bool(ink[y0 : y1 + 1, x0 : x1 + 1].any()) for x0, y0, x1, y1 in corners])


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("setting", SETTING_NAMES)
def test_tiles_kept_by_foreground_alone_cover_the_cells_of_a_sparse_slide(setting, seed):
    scene, blocks, slide = slide_of(setting, 80.0, seed)
    cells = [cell for block in blocks for cell in block.cells]
    clear = ~under_ink(scene, cells)

    foreground = find_foreground(slide)

    nuclei = boxes_of([cell.nuclei[0].outline for cell in cells])
    assert clear.sum() >= 8
    assert foreground.background == ("dark" if setting == "dark" else "light")
    assert (foreground.fractions(nuclei)[clear] > 0.5).all()
    kept = kept_tiles(foreground, (SIDE_PX, SIDE_PX), 512)
    assert (covered(kept.union, boxes_of([cell.outline for cell in cells]))[clear] == 1).all()


@pytest.mark.parametrize(
    ("setting", "least"), [("light", 0.75), ("dark", 0.75), ("pale", 0.85), ("badly-lit", 0.6), ("marks", 0.65)]
)
def test_at_the_usual_density_most_empty_glass_between_the_cells_is_left_out(setting, least):
    scene, blocks, slide = slide_of(setting, 300.0, 5)
    glass = empty_glass(scene, blocks)

    foreground = find_foreground(slide)

    assert (~mask_at(foreground, glass.shape, GRAIN_PX))[glass].mean() >= least
