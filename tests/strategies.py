"""Hypothesis strategies that several tests share. Lengths in px; coordinates x0 y0 x1 y1, pixel edges at integers."""

from __future__ import annotations

import math

from hypothesis import strategies as st
from shapely import Polygon


@st.composite
def axes(draw: st.DrawFn, longest_px: int = 20_000) -> tuple[int, int, int]:
    """Extent, window and overlap of one axis that `plan_axis` accepts; also windows larger than the extent."""
    extent_px = draw(st.integers(1, longest_px))
    window_px = draw(st.integers(1, 1_300))
    return extent_px, window_px, draw(st.integers(0, window_px - 1))


@st.composite
def cells(draw: st.DrawFn, width_px: float = 300, height_px: float = 300) -> Polygon:
    """A star-shaped outline with its centre on a slide of the given size: valid, with an area, not always convex."""
    x, y = draw(st.floats(0, width_px)), draw(st.floats(0, height_px))
    radii = draw(st.lists(st.floats(2, 60), min_size=3, max_size=9))
    angles = [2 * math.pi * i / len(radii) for i in range(len(radii))]
    return Polygon([(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)])


def overlapping_cells(width_px: float = 300, height_px: float = 300, most: int = 8) -> st.SearchStrategy[list[Polygon]]:
    """Some cells of one slide, which may overlap, nest or hang over its border; also none."""
    return st.lists(cells(width_px, height_px), max_size=most)
