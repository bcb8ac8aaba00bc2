"""Real annotated smears, each on a field of its own glass: every annotated cell lies on tiles that foreground keeps."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from cytopipe.slides import find_foreground
from tests.array_slide import ArraySlide
from tests.conftest import shared_data
from tests.foreground_cases import covered, kept_tiles, on_glass, real_smears, without_objects

TILE_PX = 256  # small tiles are harder: more of them hold a cell's border only


@pytest.mark.parametrize(("name", "every"), [("pap_edf", 4), ("bccd", 30), ("ccagt7", 3)])
def test_every_annotated_cell_of_real_smears_lies_on_kept_tiles_and_their_glass_does_not(name, every):
    folder = shared_data(name).parent
    cells, dropped, glass = 0, 0, 0
    for _, image, rgb, boxes, mpp in islice(real_smears(folder, name), 0, None, every):
        field, (x, y) = on_glass(rgb, 2.5)
        foreground = find_foreground(ArraySlide(field, mpp=mpp), "light")
        kept = kept_tiles(foreground, (field.shape[1], field.shape[0]), TILE_PX)
        at = boxes + np.array([x, y, x, y])

        assert (covered(kept.union, at) == 1).all(), image
        outside = without_objects(kept.boxes, np.array([[x, y, x + rgb.shape[1], y + rgb.shape[0]]], float))
        cells += len(at)
        glass += int(outside.sum())
        dropped += int((outside & ~kept.is_kept).sum())

    assert cells > 60
    assert dropped > 0.85 * glass
