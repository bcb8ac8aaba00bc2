"""What another program's detector reports, as views for the stitcher: from window px to level-0 px, cut to the window.

Enters: detections in px of their windows.  Leaves: views by window, in px of the slide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.boxes import F64
from cytopipe.infer.stitching.views import Views, no_views

_STICKS_OUT_PX = 1e-6  # of a window px: what rounding leaves of a box at the window's edge is not outside


@dataclass(frozen=True, slots=True, eq=False)
class Reported:
    """N detections on the windows of one slide, in px of the slide.

    window       (N,) number of the window that reported each
    class_index  (N,) int32
    score        (N,) float32
    boxes        (N, 4) float64
    geometry     (N,) valid Polygon or MultiPolygon within its box, or None
    clipped      how many stuck out of their window, or of the slide, and were cut
    outside      how many lay wholly outside, or had no area, and are left out
    """

    window: NDArray[np.intp]
    class_index: NDArray[np.int32]
    score: NDArray[np.float32]
    boxes: F64
    geometry: NDArray[np.object_]
    clipped: int
    outside: int

    def by_window(self, windows: int, classes: int) -> Iterator[tuple[int, Views]]:
        """The views of each of `windows` windows, also of those that report nothing, in their order."""
        order = np.argsort(self.window, kind="stable")
        starts = np.searchsorted(self.window[order], np.arange(windows + 1))
        for k in range(windows):
            rows = order[starts[k] : starts[k + 1]]
            yield k, self._views(rows, classes) if len(rows) else no_views(classes)

    def _views(self, rows: NDArray[np.intp], classes: int) -> Views:
        index, score = self.class_index[rows], self.score[rows]
        class_scores = np.zeros((len(rows), classes), np.float32)
        class_scores[np.arange(len(rows)), index] = score  # a detector of others says one class
        return Views(self.boxes[rows], index, score, class_scores, self.geometry[rows])


def place_reported(
    window: NDArray[np.intp],
    class_index: NDArray[np.int32],
    score: NDArray[np.float32],
    boxes: F64,
    geometry: NDArray[np.object_],
    *,
    corner: F64,
    scale: F64,
    shown: F64,
) -> Reported:
    """Detections (N,) in px of their windows, on the slide.

    corner  (W, 2) float64, where each window's first px lies, px of the slide; before the border for a padded one
    scale   (W, 2) float64, px of the slide per window px
    shown   (W, 4) float64, what each window shows of the slide: detections are cut to it
    """
    moved = boxes * np.tile(scale, 2)[window] + np.tile(corner, 2)[window]
    shapes = _moved(geometry, scale[window], corner[window])
    frame = shown[window]
    slack = _STICKS_OUT_PX * np.tile(scale, 2)[window]
    over = (moved[:, :2] < frame[:, :2] - slack[:, :2]).any(axis=1) | (moved[:, 2:] > frame[:, 2:] + slack[:, 2:]).any(
        axis=1
    )
    low = np.maximum(moved[:, :2], frame[:, :2])
    cut = np.concatenate([low, np.minimum(moved[:, 2:], frame[:, 2:])], axis=1)
    known = ~shapely.is_missing(shapes)
    rows = np.flatnonzero(known & (cut != moved).any(axis=1))
    shapes[rows] = [_polygonal(g) for g in shapely.intersection(shapes[rows], shapely.box(*frame[rows].T))]
    has_area = (cut[:, 2:] > cut[:, :2]).all(axis=1) & (~known | (shapely.area(shapes) > 0))
    outlined = has_area & known
    cut[outlined] = shapely.bounds(shapes[outlined])
    return Reported(
        window[has_area],
        class_index[has_area],
        score[has_area],
        cut[has_area],
        shapes[has_area],
        clipped=int((over & has_area).sum()),
        outside=int((~has_area).sum()),
    )


def _moved(geometry: NDArray[np.object_], scale: F64, corner: F64) -> NDArray[np.object_]:
    """Each polygon by its own scale and corner."""
    xy, owner = shapely.get_coordinates(geometry, return_index=True)
    moved: NDArray[np.object_] = shapely.set_coordinates(geometry.copy(), xy * scale[owner] + corner[owner])
    return moved


def _polygonal(geometry: shapely.Geometry) -> shapely.Geometry:
    """The polygons of a cut, without the points and lines of mere touching."""
    parts = [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"]
    nested = [part for part in shapely.get_parts(shapely.get_parts(geometry)) if part.geom_type == "Polygon"]
    found = parts if len(parts) == len(nested) else nested
    return found[0] if len(found) == 1 else shapely.MultiPolygon(found)
