"""A square crop of an image, with the objects and classes that are visible in the view made of it.

Training sees crops; inference sees windows. An object cut by the view's border is learned as its clip, because the
stitching rule counts on networks that report what they see (DESIGN 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.data.pool import GLASS, TileObjects
from cytopipe.semi import IGNORE

MIN_SIDE_PX = 3.0  # a visible part thinner than this is not learned
MIN_VISIBLE_FRACTION = 0.15  # nor one that shows less of its object: neither a positive nor worth a pseudo-object

U8 = NDArray[np.uint8]
F64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Crop:
    """x0, y0: corner in px of the image, which it may lie outside of; side_px: its side in px of the image, resized to
    `crop_px`.
    """

    x0: int
    y0: int
    side_px: int
    crop_px: int

    @property
    def affine(self) -> F64:
        """The map (2, 3) from px of the image to px of the crop."""
        scale = self.crop_px / self.side_px
        return np.array([[scale, 0.0, -self.x0 * scale], [0.0, scale, -self.y0 * scale]])

    def with_margin(self, margin_px: int) -> Crop:
        """The crop with so much more of the image on each side, px of the crop, about the same centre."""
        more = math.ceil(margin_px * self.side_px / self.crop_px)
        side = self.side_px + 2 * more
        return Crop(self.x0 - more, self.y0 - more, side, round(side * self.crop_px / self.side_px))


def draw_crop(image_hw: tuple[int, int], crop_px: int, zoom: tuple[float, float], rng: np.random.Generator) -> Crop:
    """A crop anywhere in the image, at a zoom drawn log-uniformly from `zoom` (1 = as the image is)."""
    low, high = np.log(zoom)
    side = max(round(crop_px / float(np.exp(rng.uniform(low, high)))), 1)
    u, v = rng.random(2)
    height, width = image_hw
    return Crop(int(u * (max(width - side, 0) + 1)), int(v * (max(height - side, 0) + 1)), side, crop_px)


def cut_image(image: U8, crop: Crop, beyond: tuple[int, int, int] = GLASS) -> U8:
    """(crop_px, crop_px, 3) uint8; what lies past the image has the colour `beyond`."""
    part = _part(image, crop, beyond)
    if crop.side_px == crop.crop_px:
        return part
    shrink = crop.side_px > crop.crop_px
    return _resized(part, crop, cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)


def cut_class_map(class_map: U8, crop: Crop) -> U8:
    """(crop_px, crop_px) uint8, the nearest pixel's class; 255 past the image."""
    part = _part(class_map, crop, (IGNORE,))
    return part if crop.side_px == crop.crop_px else _resized(part, crop, cv2.INTER_NEAREST_EXACT)


def shown_in(image_hw: tuple[int, int], crop: Crop) -> U8 | None:
    """(crop_px, crop_px) uint8, 255 where the crop shows the image and 0 past it; None where it shows nothing else."""
    height, width = image_hw
    if crop.x0 >= 0 and crop.y0 >= 0 and crop.x0 + crop.side_px <= width and crop.y0 + crop.side_px <= height:
        return None
    shown = np.zeros((crop.side_px, crop.side_px), np.uint8)
    shown[max(-crop.y0, 0) : max(height - crop.y0, 0), max(-crop.x0, 0) : max(width - crop.x0, 0)] = 255
    return shown if crop.side_px == crop.crop_px else _resized(shown, crop, cv2.INTER_LINEAR)


def visible_objects(objects: TileObjects, affine: F64, side_px: int) -> TileObjects:
    """The objects as they are visible in a square view, view px, clipped; `whole` where nothing was cut off.

    affine  (2, 3), px of the image -> px of the view
    """
    if len(objects.labels) == 0:
        return objects
    moved = shapely.transform(objects.geometry, lambda xy: xy @ affine[:, :2].T + affine[:, 2])
    x0, y0, x1, y1 = shapely.bounds(moved).T
    near = np.flatnonzero((x1 > 0) & (y1 > 0) & (x0 < side_px) & (y0 < side_px))
    moved = moved[near]
    clipped = shapely.clip_by_rect(moved, 0, 0, side_px, side_px)
    areas = shapely.area(moved)
    fraction = np.divide(shapely.area(clipped), areas, out=np.zeros_like(areas), where=areas > 0)
    bounds = shapely.bounds(clipped)
    sides = np.nan_to_num((bounds[:, 2:] - bounds[:, :2]).min(axis=1), nan=0.0)
    keep = (fraction >= MIN_VISIBLE_FRACTION) & (sides >= MIN_SIDE_PX)
    kept = near[keep]
    return TileObjects(objects.labels[kept], clipped[keep], objects.whole[kept] & (fraction[keep] > 1 - 1e-9))


def _part(image: U8, crop: Crop, beyond: tuple[int, ...]) -> U8:
    """The square of side_px, with what lies past the image filled in."""
    height, width = image.shape[:2]
    x0, y0, x1, y1 = crop.x0, crop.y0, crop.x0 + crop.side_px, crop.y0 + crop.side_px
    part = image[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)]
    above, left, below, right = max(-y0, 0), max(-x0, 0), max(y1 - height, 0), max(x1 - width, 0)
    if not (above or left or below or right):
        return part
    if part.size == 0:  # the square misses the image: cv2 has no border of nothing
        return np.full(
            (crop.side_px, crop.side_px, *image.shape[2:]), beyond if image.ndim == 3 else beyond[0], np.uint8
        )
    return np.asarray(cv2.copyMakeBorder(part, above, below, left, right, cv2.BORDER_CONSTANT, value=beyond), np.uint8)


def _resized(part: U8, crop: Crop, how: int) -> U8:
    return np.asarray(cv2.resize(part, (crop.crop_px, crop.crop_px), interpolation=how), np.uint8)
