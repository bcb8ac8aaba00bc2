"""Random outlines of cells for tests: round, long, lobed, some with holes or in two parts."""

from __future__ import annotations

import numpy as np
import shapely


def cells(n: int, seed: int, radius_px: tuple[float, float] = (8, 40), side_px: float = 400.0) -> np.ndarray:
    """(n,) valid polygons around random places of a square of `side_px`; every fifth has a hole."""
    rng = np.random.default_rng(seed)
    outlines = np.empty(n, object)
    for k in range(n):
        angle = np.linspace(0, 2 * np.pi, int(rng.integers(24, 80)), endpoint=False)
        lobes = 1 + rng.uniform(0, 0.25) * np.sin(rng.integers(2, 6) * angle + rng.uniform(0, 6))
        radius = rng.uniform(*radius_px) * lobes
        x, y = radius * np.cos(angle), radius * rng.uniform(0.4, 1) * np.sin(angle)
        turn = rng.uniform(0, np.pi)
        centre = rng.uniform(0, side_px, 2)
        points = np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1) + centre
        outline = shapely.Polygon(points)
        hole = shapely.Point(*centre).buffer(0.25 * radius.min()) if k % 5 == 0 else None
        outlines[k] = outline.difference(hole) if hole is not None else outline
    return outlines
