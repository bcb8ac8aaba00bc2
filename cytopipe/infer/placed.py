"""Windows anywhere on a slide, of any size, as another program placed them. Nothing of networks, views or files.

A grid promises that some window sees every object of bounded size whole; windows from outside promise nothing. The rule
of DESIGN 6 holds for them as it is: it asks only how far a box is from the inner edges of a window that was run.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.boxes import clip_boxes
from cytopipe.infer.windows import F64, I64, Mask

_FAR = 1e12  # px; beyond any slide: a box may stick out over a border, and still lies within the window there


class PlacedWindows:
    """N windows in the order of y0, x0, y1, x1, cut at the slide's border.

    boxes   (N, 4) float64 x0 y0 x1 y1, px of the slide
    inner   (N, 4) bool: whether the left, upper, right and lower edge lies inside the slide
    order   (N,) where each window stands in the boxes that were given
    """

    def __init__(self, boxes: F64, width: float, height: float, border_px: float = 0.0) -> None:
        """border_px: an edge that lies less than this inside the slide's border still lies on it. No detector sees the
        part of a px that is left there. Raises ValueError for a window without area on the slide.
        """
        cut = clip_boxes(boxes, np.array([0.0, 0.0, width, height]))
        if not (cut[:, 2:] > cut[:, :2]).all():
            raise ValueError("PlacedWindows: a window without area on the slide")
        far = np.array([width, height]) - max(border_px, 0.0)
        at_border = np.concatenate([cut[:, :2] < border_px, cut[:, 2:] > far], axis=1)
        at_border |= np.concatenate([cut[:, :2] <= 0, cut[:, 2:] >= [width, height]], axis=1)
        cut = np.where(at_border, [0.0, 0.0, width, height], cut)  # windows at the upper border are one row
        self.order: I64 = np.lexsort((cut[:, 2], cut[:, 3], cut[:, 0], cut[:, 1]))
        self.boxes: F64 = cut[self.order]
        self.inner: Mask = ~at_border[self.order]
        self._rows: I64 = np.unique(self.y0, return_inverse=True)[1].astype(np.int64).reshape(-1)
        reach = np.where(self.inner, self.boxes, [-_FAR, -_FAR, _FAR, _FAR])
        self._tree = shapely.STRtree(shapely.box(*reach.T))

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def y0(self) -> F64:
        """Upper edges (N,) float64, ascending."""
        return np.asarray(self.boxes[:, 1])

    def row_of(self, window: NDArray[np.integer]) -> I64:
        """The row of each window, (n,) int64: its place among the different upper edges."""
        return np.asarray(self._rows[window])

    def inner_distance(self, xyxy: F64, window: NDArray[np.integer]) -> F64:
        """d(v, K) of DESIGN 6, (n,) float64: least distance from box i to an inner edge of window[i].

        Negative where the box sticks out, inf where the window has no inner edge.
        """
        boxes = self.boxes[window]
        gaps = np.concatenate([xyxy[:, :2] - boxes[:, :2], boxes[:, 2:] - xyxy[:, 2:]], axis=1)
        return np.asarray(np.where(self.inner[window], gaps, np.inf).min(axis=1, initial=np.inf), dtype=np.float64)

    def count_at_distance(self, xyxy: F64, distance_px: float, among: Mask) -> I64:
        """How many of the windows `among` (N,) bool hold each box at d >= distance_px > 0, (n,) int64."""
        box, window = self._tree.query(shapely.box(*xyxy.T))  # a box that a window holds meets it
        held = among[window] & (self.inner_distance(xyxy[box], window) >= distance_px)
        return np.bincount(box[held], minlength=len(xyxy))

    def overlaps_px(self) -> F64:
        """How far windows overlap across their inner edges: (E,) float64, an edge behind which there is a neighbour.

        The neighbour is the window that reaches furthest back over the middle of the edge. Edges without any, towards
        places that were not run, are left out.
        """
        middle = (self.boxes[:, :2] + self.boxes[:, 2:]) / 2
        found = [np.zeros(0)]
        here, other = self._tree.query(shapely.box(*self.boxes.T))
        here, other = here[here != other], other[here != other]
        for axis in (0, 1):
            across = 1 - axis
            beside = (self.boxes[other, across] <= middle[here, across]) & (
                middle[here, across] <= self.boxes[other, across + 2]
            )
            for side, sign in ((axis, -1.0), (axis + 2, 1.0)):  # the neighbour's near edge, on the way to this one
                edge, near = self.boxes[here, side], self.boxes[other, (side + 2) % 4]
                beyond = sign * (self.boxes[other, side] - edge) > 0
                overlap = sign * (edge - near)
                usable = beside & beyond & (overlap >= 0) & self.inner[here, side]
                best = np.full(len(self), -1.0)
                np.maximum.at(best, here[usable], overlap[usable])
                found.append(best[best >= 0])
        return np.concatenate(found)
