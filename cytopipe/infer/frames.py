"""From the stitcher's frame (px at the model's mpp, origin at the slide's corner) to the slide's (level-0 px)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.boxes import slide_from_window
from cytopipe.core.objects import Objects


def scale_objects(objects: Objects, slide_px_per_px: tuple[float, float]) -> Objects:
    """Boxes and geometry times `slide_px_per_px` (x, y: level-0 px per px at the model's mpp); all else as it is."""
    if min(slide_px_per_px) <= 0:
        raise ValueError(f"scale_objects: {slide_px_per_px} slide px per px")
    scale = np.array(slide_px_per_px, dtype=np.float64)

    def scaled(xy: NDArray[np.float64]) -> NDArray[np.float64]:
        return xy * scale

    geometry = objects.geometry.copy()
    known = ~shapely.is_missing(geometry)
    geometry[known] = shapely.transform(geometry[known], scaled)
    return replace(objects, xyxy=slide_from_window(objects.xyxy, (0.0, 0.0), slide_px_per_px), geometry=geometry)
