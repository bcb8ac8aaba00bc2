"""The views of one image of a batch: one crop, one geometry, each view's own colours; and what is annotated in each.

Enters: a pool, an index, presets, random streams.  Leaves: arrays and `Targets` in px of each view.
Pixels go through geometry as geometry says (moved whole, or bilinear), class maps by the nearest pixel, polygons by the
affine map itself, so that boxes and masks are exact whatever the angle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from cytopipe.data.crops import Crop, cut_class_map, cut_image, draw_crop, shown_in, visible_objects
from cytopipe.data.pool import ImagePool
from cytopipe.data.raster import masks_of
from cytopipe.semi import IGNORE, Geometry, Targets, ViewPreset, apply_preset, compose, draw_geometry

Stream = Callable[..., np.random.Generator]
Task = Literal["detection", "instance", "semantic"]


@dataclass(frozen=True, slots=True, eq=False)
class DrawnExample:
    """One view of one image.

    image    (crop_px, crop_px, 3) uint8
    affine   (2, 3) float64, px of the pool's image -> view px
    targets  of a labelled image, for boxes and masks
    labels   (crop_px, crop_px) uint8 of a labelled image, for a class map; 255 where the view shows no image
    valid    (crop_px, crop_px) bool, where it does; None: everywhere
    """

    image: NDArray[np.uint8]
    affine: NDArray[np.float64]
    targets: Targets | None
    labels: NDArray[np.uint8] | None
    valid: NDArray[np.bool_] | None


def draw_views(
    pool: ImagePool,
    index: int,
    presets: Mapping[str, ViewPreset],
    stream: Stream,
    crop_px: int,
    zoom: tuple[float, float],
    learns: Task | None,
) -> dict[str, DrawnExample]:
    """All views of one image.

    stream  `stream()` draws crop and geometry, `stream(name)` the colours of a view: none shifts another
    learns  what is annotated in the views; None for an unlabelled image, whose annotations nobody looks at
    """
    rng = stream()
    image = pool.image(index)
    crop = draw_crop(image.shape[:2], crop_px, zoom, rng)
    geometry = draw_geometry(next(iter(presets.values())), rng)
    wide = crop.with_margin(geometry.margin_px(crop_px))  # a turned view shows more of the image than its crop
    beyond = pool.beyond(index)
    pixels = cut_image(image, wide, beyond)
    about = _Annotated(pool, index, image.shape[:2], wide, crop_px, learns)
    drawn = {}
    for name, preset in presets.items():
        view = apply_preset(pixels, preset, stream(name), geometry, size=(crop_px, crop_px), beyond=beyond)
        drawn[name] = about.example(view.image, view.geometry)
    return drawn


class _Annotated:
    """What is annotated in the views of one crop: views of one geometry share it."""

    def __init__(
        self, pool: ImagePool, index: int, image_hw: tuple[int, int], crop: Crop, side_px: int, learns: Task | None
    ) -> None:
        self._pool, self._index, self._crop, self._side_px, self._learns = pool, index, crop, side_px, learns
        self._shown = shown_in(image_hw, crop)
        self._known: dict[Geometry, DrawnExample] = {}

    def example(self, image: NDArray[np.uint8], geometry: Geometry) -> DrawnExample:
        if geometry not in self._known:
            self._known[geometry] = self._of(image, geometry)
        known = self._known[geometry]
        return DrawnExample(image, known.affine, known.targets, known.labels, known.valid)

    def _of(self, image: NDArray[np.uint8], geometry: Geometry) -> DrawnExample:
        size, wide = (self._side_px, self._side_px), self._crop.crop_px
        affine = compose(geometry.affine(wide, wide, size), self._crop.affine)
        # a bilinear pixel that mixes in anything from past the border does not count
        valid = None if self._shown is None else geometry.warp(self._shown, size, (0,)) == 255
        targets, labels = None, None
        if self._learns == "semantic":
            labels = geometry.warp(
                cut_class_map(self._pool.class_map(self._index), self._crop), size, (IGNORE,), nearest=True
            )
            if valid is not None:
                labels[~valid] = IGNORE
        elif self._learns is not None:
            targets = self._targets(affine)
        return DrawnExample(image, affine, targets, labels, None if valid is None or valid.all() else valid)

    def _targets(self, affine: NDArray[np.float64]) -> Targets:
        objects = visible_objects(self._pool.objects(self._index), affine, self._side_px)
        boxes = torch.from_numpy(shapely.bounds(objects.geometry).reshape(-1, 4).astype(np.float32))
        masks = None
        if self._learns == "instance":
            masks = torch.from_numpy(masks_of(objects.geometry, self._side_px, self._side_px))
        return Targets(boxes, torch.from_numpy(objects.labels.copy()), masks)
