"""Polygons as masks and class maps, by the one rule of `formats.rasterise`: a pixel belongs where its centre lies."""

from __future__ import annotations

import math

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import MultiPolygon, Polygon

from cytopipe.formats.rasterise import label_image

U8 = NDArray[np.uint8]


def rasterise(geometry: Polygon | MultiPolygon, height: int, width: int) -> U8:
    """Mask (height, width) uint8 of 0 and 1; geometry in px of that frame, pixel edges at integers; what lies outside
    is cut.
    """
    mask = np.zeros((height, width), np.uint8)
    _paint(mask, geometry, 1)
    return mask


def masks_of(geometry: NDArray[np.object_], height: int, width: int) -> U8:
    """Masks (n, height, width) uint8 of 0 and 1, one a polygon (n,)."""
    masks = np.zeros((len(geometry), height, width), np.uint8)
    for mask, shape in zip(masks, geometry, strict=True):
        _paint(mask, shape, 1)
    return masks


def class_map_of(labels: NDArray[np.int64], geometry: NDArray[np.object_], height: int, width: int) -> U8:
    """Class map (height, width) uint8: the label of the smallest object at each pixel, 0 where there is none.

    The smallest, because a nucleus lies on its cell and not under it [D].
    """
    found = np.zeros((height, width), np.uint8)
    largest_first = np.argsort(-shapely.area(geometry), kind="stable") if len(geometry) else []
    for k in largest_first:
        _paint(found, geometry[k], int(labels[k]))
    return found


def _paint(image: U8, geometry: Polygon | MultiPolygon, label: int) -> None:
    """Work in the small frame of the polygon's own box: of a tile it is a thousandth."""
    if geometry.is_empty:
        return
    height, width = image.shape
    x0, y0, x1, y1 = geometry.bounds
    left, top, right, bottom = max(math.floor(x0), 0), max(math.floor(y0), 0), math.ceil(x1), math.ceil(y1)
    box = (left, top, min(right, width), min(bottom, height))
    if box[2] > left and box[3] > top:
        label_image(np.array([geometry], object), box, [label], image[top : box[3], left : box[2]])
