"""What is measured of an object while its window is at hand: stain on its pixels, and the nuclei in a cell.

Enters: the views of one window, its pixels, the level of empty glass.  Leaves: the columns of core/objects.MEASURES.
They travel with the view, so that an object has what the window measured that saw it best.

    mean_optical_density     log10(glass / grey), mean over the three channels and over the pixels of the outline
    nucleus_cytoplasm_ratio  of a cell: area of the nuclei in it / area of the cell without them

NaN where unknown: objects without an outline, slides on a dark background (they shine, they do not absorb), nuclei, and
cells in which no nucleus was found: a nucleus that was not found is no nucleus of size 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.classes import ObjectClass
from cytopipe.core.objects import MEASURES, unmeasured
from cytopipe.formats.rasterise import spans
from cytopipe.infer.stitching.views import Views

F64 = NDArray[np.float64]

INSIDE_FRACTION = (
    0.5  # [D] a nucleus is a cell's where at least half of it lies within: cells overlap, and touch others'
)
_LEAST_GREY = 1.0  # of 255: black has no finite density, and one grey level is what the camera resolves


def measure(
    views: Views,
    rgb: NDArray[np.uint8],
    origin: tuple[float, float],
    glass: tuple[float, float, float] | None,
    classes: Sequence[ObjectClass],
) -> NDArray[np.float32]:
    """The measures of the views of one window, (N, M) float32, see the module.

    rgb     (H, W, 3) uint8, the window's pixels
    origin  x, y of its corner in the frame of the views, same px
    glass   grey level of empty glass per channel; None: the slide is dark, and nothing absorbs
    """
    measures = unmeasured(len(views))
    if len(views):
        if glass is not None:
            measures[:, MEASURES.index("mean_optical_density")] = _mean_density(views, rgb, origin, glass)
        measures[:, MEASURES.index("nucleus_cytoplasm_ratio")] = _nucleus_ratio(views, classes)
    return measures


def optical_density(rgb: NDArray[np.uint8], glass: tuple[float, float, float]) -> F64:
    """Mean over the channels of log10(glass / grey) for each pixel, (H, W) float64; brighter than glass is below 0."""
    levels = np.maximum(np.arange(256.0), _LEAST_GREY)[:, None]
    tables = np.log10(np.maximum(glass, _LEAST_GREY) / levels)[None]  # (1, 256, 3): a third of the time of indexing
    density = cv2.transform(cv2.LUT(rgb, tables), np.full((1, len(glass)), 1 / len(glass)))
    return np.asarray(density, dtype=np.float64)


def _mean_density(
    views: Views, rgb: NDArray[np.uint8], origin: tuple[float, float], glass: tuple[float, float, float]
) -> F64:
    """(N,): by sums along the rows, so that a large object costs what its outline costs."""
    height, width = rgb.shape[:2]
    in_window = shapely.transform(views.geometry, lambda xy: xy - np.array(origin, dtype=np.float64))
    found = spans(in_window, (0, 0, width, height))
    sums = np.zeros((height, width + 1))
    np.cumsum(optical_density(rgb, glass), axis=1, out=sums[:, 1:])
    of_span = sums[found.row, found.last] - sums[found.row, found.first]
    total, area = np.bincount(found.owner, of_span, minlength=len(views)), found.areas(len(views))
    return np.asarray(np.divide(total, area, out=np.full(len(views), np.nan), where=area > 0))


def _nucleus_ratio(views: Views, classes: Sequence[ObjectClass]) -> F64:
    """(N,): a nucleus belongs to each cell that holds INSIDE_FRACTION of it; counted is what lies within."""
    kinds = np.array([c.kind for c in classes], dtype=object)[views.class_index]
    outlined = ~shapely.is_missing(views.geometry)
    cells, nuclei = (np.flatnonzero(outlined & (kinds == kind)) for kind in ("cell", "nucleus"))
    ratio = np.full(len(views), np.nan)
    cell, nucleus = shapely.STRtree(views.geometry[nuclei]).query(views.geometry[cells], predicate="intersects")
    within = shapely.intersection(views.geometry[cells[cell]], views.geometry[nuclei[nucleus]])
    inside = shapely.area(within) >= INSIDE_FRACTION * shapely.area(views.geometry[nuclei[nucleus]])
    cell, within = cell[inside], within[inside]
    nuclear = np.bincount(cell, shapely.area(within), minlength=len(cells))
    count = np.bincount(cell, minlength=len(cells))
    for k in np.flatnonzero(count > 1):  # nuclei that overlap are counted once
        nuclear[k] = shapely.area(shapely.union_all(within[cell == k]))
    plasm = shapely.area(views.geometry[cells]) - nuclear
    known = (count > 0) & (plasm > 0)
    ratio[cells[known]] = nuclear[known] / plasm[known]
    return ratio
