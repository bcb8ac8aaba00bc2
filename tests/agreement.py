"""What it means that two readers agree on a slide."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from cytopipe.slides import Slide


def agree(ours: Slide, theirs: Slide, tolerance: int) -> None:
    """Facts are equal, and pixels within `tolerance` grey levels at corners, edges, and 200 random places."""
    assert (ours.vendor, ours.dimensions, ours.levels, ours.objective, ours.background, ours.icc) == (
        theirs.vendor,
        theirs.dimensions,
        theirs.levels,
        theirs.objective,
        theirs.background,
        theirs.icc,
    )
    assert (ours.resolution is None) == (theirs.resolution is None)
    if ours.resolution is not None and theirs.resolution is not None:
        assert ours.resolution.guessed == theirs.resolution.guessed
        assert ours.resolution.mpp_x == pytest.approx(theirs.resolution.mpp_x, rel=1e-6)
        assert ours.resolution.mpp_y == pytest.approx(theirs.resolution.mpp_y, rel=1e-6)
    for window in places(ours):
        difference = np.abs(ours.read(*window).astype(int) - theirs.read(*window))
        assert difference.max() <= tolerance, window


def places(slide: Slide) -> Iterator[tuple[int, int, int, int, int]]:
    """Windows (level, x, y, w, h): the corners and the middles of the edges of every level, then 200 at random."""
    random = np.random.default_rng(0)
    for index, level in enumerate(slide.levels):
        w, h = min(70, level.width), min(50, level.height)
        for fx in (0.0, 0.5, 1.0):
            for fy in (0.0, 0.5, 1.0):
                yield index, round(fx * (level.width - w)), round(fy * (level.height - h)), w, h
    for _ in range(200):
        index = int(random.integers(len(slide.levels)))
        level = slide.levels[index]
        w, h = (int(random.integers(1, min(100, side) + 1)) for side in (level.width, level.height))
        yield index, int(random.integers(level.width - w + 1)), int(random.integers(level.height - h + 1)), w, h
