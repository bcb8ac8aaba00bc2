"""The pixels of a synthetic slide: the same for any number of threads, without seams, and where the truth says."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from cytopipe.synth import Renderer, Scene
from cytopipe.synth.render import BAND_PX, WINDOW_PX


def scene_of(width, height, *, seed=4, cells_per_mm2=400.0, lesion_fraction=0.3):
    return Scene(width, height, mpp=0.25, seed=seed, cells_per_mm2=cells_per_mm2, lesion_fraction=lesion_fraction)


def rendered(scene, workers=2):
    bands, blocks = [], []
    for band, told in Renderer(scene).bands(workers):
        bands.append(band.copy())
        blocks += told
    return np.concatenate(bands), blocks


def mask_of(outline, shape):
    mask = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round((outline - 0.5) * 16).astype(np.int32)], 1, shift=4)
    return mask.astype(bool)


@pytest.fixture(scope="module")
def slide():
    """A slide of two windows by three bands, and what lies on it."""
    scene = scene_of(WINDOW_PX + 300, 2 * BAND_PX + 100)
    pixels, blocks = rendered(scene)
    return scene, pixels, blocks


def test_the_pixels_do_not_depend_on_the_number_of_threads(slide):
    scene, pixels, _ = slide

    alone, _ = rendered(scene, workers=1)

    assert pixels.shape == (scene.height, scene.width, 3)
    assert np.array_equal(pixels, alone)


def test_every_block_is_told_once(slide):
    scene, _, blocks = slide
    ids = [cell.cell_id for block in blocks for cell in block.cells]
    expected = [c.cell_id for r in range(scene.rows) for k in range(scene.columns) for c in scene.block(r, k).cells]

    assert ids == expected


@pytest.mark.parametrize("seed", [0, 3])
def test_windows_and_bands_meet_without_a_seam(seed):
    # Large groups, and an mpp at which blocks do not end where windows do: what reaches far into a window is there.
    size = WINDOW_PX + 300, 2 * BAND_PX + 100
    scene = Scene(*size, mpp=0.3, seed=seed, cells_per_mm2=900, lesion_fraction=0.7)
    grey = rendered(scene)[0].astype(np.float32).mean(axis=2)

    for axis, seams in ((0, (BAND_PX, 2 * BAND_PX)), (1, (WINDOW_PX,))):
        steps = np.abs(np.diff(grey, axis=axis)).mean(axis=1 - axis)

        # Steps of whole rows and columns spread up to twice their median; a reach of 60 px made seams of 3 and 6.
        assert all(steps[seam - 1] < 2 * np.median(steps) for seam in seams)


def test_nuclei_are_darker_than_the_cytoplasm_around_them(slide):
    _, pixels, blocks = slide
    grey = pixels.astype(np.float32).mean(axis=2)
    differences = []
    for cell in (cell for block in blocks for cell in block.cells):
        inside = mask_of(cell.nuclei[0].outline, grey.shape)
        around = cv2.dilate(inside.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool) & ~inside
        differences.append(grey[around].mean() - grey[inside].mean())

    # Not all: leucocytes and other nuclei may lie around one.
    assert np.mean(np.array(differences) > 8) > 0.95


def test_the_border_of_a_cell_on_glass_is_where_the_truth_says():
    scene = scene_of(3000, 2400, cells_per_mm2=60, lesion_fraction=0, seed=9)
    pixels, blocks = rendered(scene)
    grey = cv2.GaussianBlur(pixels, (0, 0), 1).astype(np.float32).mean(axis=2)
    glass = float(np.median(grey))
    cells = [cell for block in blocks for cell in block.cells if cell.defocus_um == 0]
    checked = 0
    for cell in cells:
        outline = mask_of(cell.outline, grey.shape).astype(np.uint8)
        inner = (cv2.erode(outline, np.ones((3, 3))) - cv2.erode(outline, np.ones((7, 7)))) > 0  # 1 to 3 px inside
        outer = (cv2.dilate(outline, np.ones((9, 9))) - cv2.dilate(outline, np.ones((5, 5)))) > 0  # 2 to 4 px outside
        if np.percentile(grey[outer], 5) > glass - 8:  # nothing else lies beside it
            checked += 1
            assert np.percentile(grey[inner], 98) < glass - 4

    assert checked >= 5


def test_an_empty_slide_is_bright_glass_and_nearly_nothing_else():
    pixels, _ = rendered(scene_of(700, 600, cells_per_mm2=0, seed=12))

    assert 215 < np.median(pixels) <= 252
    assert pixels.std() < 25


def test_slides_differ_in_stain():
    glass = [tuple(scene_of(100, 100, seed=seed).stain.glass) for seed in range(5)]
    dyes = [tuple(scene_of(100, 100, seed=seed).stain.eosin) for seed in range(5)]

    assert len(set(glass)) == len(set(dyes)) == 5
