"""Measures of an outline's shape that follow from its vertices alone: centroid, eccentricity and solidity.

Enters: polygons in any frame, unit: its px.  Leaves: ratios without unit. Moments are those of the area (integrals over
it, not sums over pixels), so that they do not depend on a grid.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.rings import rings_of

F64 = NDArray[np.float64]

SHAPE_MEASURES = ("eccentricity", "solidity")
_BATCH = 1 << 11  # polygons at a time: their numbers fit into the cache of a core


def shape_measures(geometry: NDArray[np.object_]) -> F64:
    """Eccentricity and solidity of polygons (N,): (N, 2) float64, NaN where there is none or it has no area.

    eccentricity  of the ellipse of equal second moments, 0 for a circle, towards 1 for a line
    solidity      area over the area of the convex hull, 1 where nothing is dented; holes and gaps between parts count
    Source        scikit-image's regionprops, which takes the moments of pixels
    """
    return centroids_and_measures(geometry)[1]


def centroids_and_measures(geometry: NDArray[np.object_]) -> tuple[F64, F64]:
    """Centroids of polygons (N, 2) in their frame, and their `shape_measures`, at the price of the latter."""
    found = np.full((len(geometry), 4), np.nan)
    for first in range(0, len(geometry), _BATCH):
        part = slice(first, first + _BATCH)
        found[part] = _measured(geometry[part])
    return found[:, :2], found[:, 2:]


def _measured(geometry: NDArray[np.object_]) -> F64:
    n = len(geometry)
    bounds = shapely.bounds(geometry)
    rings = rings_of(geometry)
    is_outline, owner = rings.is_shell, rings.owner
    xy, at = rings.xy, np.repeat(np.arange(len(owner)), np.diff(rings.first))
    middle = (bounds[:, :2] + bounds[:, 2:]) / 2
    xy = xy - middle[owner[at]]  # far from the origin, squares would eat the digits
    follows = np.flatnonzero(at[1:] == at[:-1])
    x, y, to_x, to_y = xy[follows, 0], xy[follows, 1], xy[follows + 1, 0], xy[follows + 1, 1]
    cross, ring = x * to_y - to_x * y, at[follows]

    def of_ring(term: F64) -> F64:
        return np.asarray(np.bincount(ring, cross * term, minlength=len(owner)), dtype=np.float64)

    half = np.full(len(cross), 0.5)
    area = of_ring(half)
    sign = np.where(is_outline, 1.0, -1.0) * np.where(area < 0, -1.0, 1.0)  # whichever way round a ring is drawn

    def of_shape(term: F64) -> F64:
        return np.asarray(np.bincount(owner, sign * of_ring(term), minlength=n), dtype=np.float64)

    m00 = of_shape(half)
    with np.errstate(divide="ignore", invalid="ignore"):  # no area: NaN
        mean_x, mean_y = of_shape((x + to_x) / 6) / m00, of_shape((y + to_y) / 6) / m00
        xx = of_shape((x * x + x * to_x + to_x * to_x) / 12) / m00 - mean_x**2
        yy = of_shape((y * y + y * to_y + to_y * to_y) / 12) / m00 - mean_y**2
        xy_ = of_shape((x * to_y + 2 * x * y + 2 * to_x * to_y + to_x * y) / 24) / m00 - mean_x * mean_y
        mean, spread = (xx + yy) / 2, np.hypot((xx - yy) / 2, xy_)
        longest = mean + spread
        eccentricity = np.sqrt(np.clip(2 * spread / longest, 0, 1))  # 1 - (mean - spread) / (mean + spread)
        solidity = m00 / shapely.area(shapely.convex_hull(geometry))
    measures = [middle[:, 0] + mean_x, middle[:, 1] + mean_y, eccentricity, np.minimum(solidity, 1)]
    return np.where((m00 > 0)[:, None], np.stack(measures, axis=1), np.nan)
