"""A square crop of a tile, with the objects that are visible in it.

Training sees crops; inference sees windows. An object cut by the crop's border is learned as its clip, because the
stitching rule counts on networks
that report what they see (DESIGN 6).
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.data.pool import TileObjects

GLASS = 255  # what lies beyond a tile that is smaller than the crop
MIN_SIDE_PX = 3.0  # a visible part thinner than this is not learned
MIN_VISIBLE_FRACTION = 0.15  # nor one that shows less of its object: neither a positive nor worth a pseudo-object


@dataclass(frozen=True, slots=True)
class Crop:
    """x0, y0: corner in tile px; side_px: its side in tile px, resized to `crop_px`."""

    x0: int
    y0: int
    side_px: int
    crop_px: int


def draw_crop(tile_hw: tuple[int, int], crop_px: int, zoom: tuple[float, float], rng: np.random.Generator) -> Crop:
    """A crop anywhere in the tile, at a zoom drawn log-uniformly from `zoom` (1 = as the tile is)."""
    low, high = np.log(zoom)
    side = max(round(crop_px / float(np.exp(rng.uniform(low, high)))), 1)
    u, v = rng.random(2)
    height, width = tile_hw
    return Crop(int(u * (max(width - side, 0) + 1)), int(v * (max(height - side, 0) + 1)), side, crop_px)


def cut_image(image: NDArray[np.uint8], crop: Crop) -> NDArray[np.uint8]:
    """(crop_px, crop_px, 3) uint8; parts beyond the tile are glass."""
    part = image[crop.y0 : crop.y0 + crop.side_px, crop.x0 : crop.x0 + crop.side_px]
    below, right = crop.side_px - part.shape[0], crop.side_px - part.shape[1]
    if below or right:
        part = cv2.copyMakeBorder(part, 0, below, 0, right, cv2.BORDER_CONSTANT, value=(GLASS, GLASS, GLASS))
    if crop.side_px == crop.crop_px:
        return part
    shrink = crop.side_px > crop.crop_px
    return np.asarray(
        cv2.resize(part, (crop.crop_px, crop.crop_px), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR),
        np.uint8,
    )


def cut_objects(objects: TileObjects, crop: Crop) -> TileObjects:
    """The objects as they are visible in the crop, crop px, clipped; `whole` where nothing was cut off."""
    if len(objects.labels) == 0:
        return objects
    scale = crop.crop_px / crop.side_px
    moved = shapely.transform(objects.geometry, lambda xy: (xy - (crop.x0, crop.y0)) * scale)
    clipped = shapely.clip_by_rect(moved, 0, 0, crop.crop_px, crop.crop_px)
    areas = shapely.area(moved)
    fraction = np.divide(shapely.area(clipped), areas, out=np.zeros_like(areas), where=areas > 0)
    bounds = shapely.bounds(clipped)
    sides = np.nan_to_num((bounds[:, 2:] - bounds[:, :2]).min(axis=1), nan=0.0)
    keep = (fraction >= MIN_VISIBLE_FRACTION) & (sides >= MIN_SIDE_PX)
    return TileObjects(objects.labels[keep], clipped[keep], objects.whole[keep] & (fraction[keep] > 1 - 1e-9))
