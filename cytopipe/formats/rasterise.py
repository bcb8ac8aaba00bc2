"""Polygons as pixels: the one rule by which an outline becomes labels, for label images and for measures on pixels.

A pixel belongs to a polygon where its centre, (x + 0.5, y + 0.5), lies inside (even-odd). A centre on an outline
belongs to what lies right of it and below: polygons that share an edge share no pixel and leave none out.

Work and memory follow the outlines, not the image: a polygon is a list of spans, the runs of its pixels in a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

I64 = NDArray[np.int64]
Geometry = NDArray[np.object_]


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Runs of pixels [first, last) of row `row`, each (S,) int64, that belong to polygon `owner`; none is empty.

    By owner, then row, then first. Pixels count from the corner of the box in which they were made.
    """

    owner: I64
    row: I64
    first: I64
    last: I64

    def areas(self, n: int) -> I64:
        """The pixels of each of `n` polygons, (n,) int64."""
        return np.bincount(self.owner, self.last - self.first, minlength=n).astype(np.int64)


def spans(geometry: Geometry, box: tuple[int, int, int, int]) -> Spans:
    """The pixels of each polygon (N,) within a box of x0 y0 x1 y1 px, whole numbers in the frame of the geometry.

    None, and what is empty, has no pixel. What lies outside of the box is cut off.
    """
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"spans: box {box}")
    parts, part_of = shapely.get_parts(geometry, return_index=True)
    rings, ring_of = shapely.get_rings(parts, return_index=True)
    xy, at = shapely.get_coordinates(rings, return_index=True)
    xy = xy - [x0, y0]
    joined = np.flatnonzero(at[1:] == at[:-1])  # where a vertex is followed by one of its own ring
    owner = part_of[ring_of[at[joined]]]
    x, y, to_x, to_y = xy[joined, 0], xy[joined, 1], xy[joined + 1, 0], xy[joined + 1, 1]
    # rows whose centre row + 0.5 lies in [lower end, upper end) of the side: a vertex is passed once
    first = np.clip(np.ceil(np.minimum(y, to_y) - 0.5), 0, y1 - y0).astype(np.int64)
    last = np.clip(np.ceil(np.maximum(y, to_y) - 0.5), 0, y1 - y0).astype(np.int64)
    count = last - first
    side = np.repeat(np.arange(len(joined)), count)
    row = np.arange(len(side)) - np.repeat(np.cumsum(count) - count, count) + first[side]
    share = (row + 0.5 - y[side]) / (to_y[side] - y[side])
    crossing = x[side] + share * (to_x[side] - x[side])
    order = np.lexsort((crossing, row, owner[side]))  # rings are closed: crossings of a row come in pairs
    enter, leave = order[::2], order[1::2]
    # a centre at x + 0.5 lies in [crossing, next crossing)
    begin, end = (np.clip(np.ceil(crossing[k] - 0.5), 0, x1 - x0).astype(np.int64) for k in (enter, leave))
    some = end > begin
    return Spans(owner[side[enter]][some].astype(np.int64), row[enter][some], begin[some], end[some])


def label_image(
    geometry: Geometry,
    box: tuple[int, int, int, int],
    labels: Sequence[int] | NDArray[np.integer] | None = None,
    out: NDArray[np.integer] | None = None,
) -> NDArray[np.integer]:
    """The label image (y1 - y0, x1 - x0) of polygons (N,) within a box; where they overlap, the last one is seen.

    labels  of each polygon (N,); None: 1 to N
    out     to paint into, any integers; None: zeros, int32
    """
    x0, y0, x1, y1 = box
    image = np.zeros((y1 - y0, x1 - x0), np.int32) if out is None else out
    if image.shape != (y1 - y0, x1 - x0):
        raise ValueError(f"label_image: out of shape {image.shape} for box {box}")
    values = np.arange(1, len(geometry) + 1) if labels is None else np.asarray(labels)
    if len(values) != len(geometry):
        raise ValueError(f"label_image: {len(values)} labels for {len(geometry)} polygons")
    found = spans(geometry, box)
    width = x1 - x0
    begin, length = found.row * width + found.first, found.last - found.first
    pixel = np.repeat(begin - (np.cumsum(length) - length), length) + np.arange(length.sum())
    flat = np.repeat(values[found.owner], length)
    if image.flags.c_contiguous:
        image.reshape(-1)[pixel] = flat  # of a pixel named twice the last value stays: spans are by owner
    else:
        image[pixel // width, pixel % width] = flat
    return image
