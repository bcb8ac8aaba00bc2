"""The geometry of views: flips and quarter turns. Images and masks are mapped by index reversal, boxes by a matrix.

Affine maps are (2, 3) float64, px to px, pixel edges at integers; numpy, for the data room.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cytopipe.semi.presets import ViewPreset

F64 = NDArray[np.float64]
Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Geometry:
    """A flip about the vertical axis, then one about the horizontal axis, then quarter turns against the clock."""

    hflip: bool = False
    vflip: bool = False
    quarter_turns: int = 0

    def affine(self, height: int, width: int) -> F64:
        """The map (2, 3) from source px to view px, for a source of that size."""
        matrix = np.eye(3)
        if self.hflip:
            matrix = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]) @ matrix
        if self.vflip:
            matrix = np.array([[1.0, 0, 0], [0, -1, height], [0, 0, 1]]) @ matrix
        for _ in range(self.quarter_turns % 4):
            matrix = np.array([[0.0, 1, 0], [-1, 0, width], [0, 0, 1]]) @ matrix
            height, width = width, height
        return matrix[:2]

    def apply(self, array: NDArray[Value], axes: tuple[int, int] = (0, 1)) -> NDArray[Value]:
        """The array with its (row, column) axes turned; values are moved, never mixed. Returns a contiguous copy."""
        rows, columns = axes
        if self.hflip:
            array = np.flip(array, columns)
        if self.vflip:
            array = np.flip(array, rows)
        return np.ascontiguousarray(np.rot90(array, self.quarter_turns, axes))


def draw_geometry(preset: ViewPreset, rng: np.random.Generator) -> Geometry:
    """Flips and turns as the preset has them: always three draws, so that no preset shifts what is drawn later."""
    hflip, vflip, turn = rng.random(3)
    return Geometry(bool(hflip < preset.hflip_p), bool(vflip < preset.vflip_p), int(turn * 4) if preset.turns else 0)


def affine_between(origin: F64, target: F64) -> F64:
    """The map (2, 3) from px of one view to px of another of the same image, given their affines (source -> view)."""
    square = np.vstack([origin, [0.0, 0.0, 1.0]])
    return np.asarray((np.vstack([target, [0.0, 0.0, 1.0]]) @ np.linalg.inv(square))[:2])


def map_boxes(boxes: F64, affine: F64, size: tuple[int, int], min_side_px: float = 1.0) -> tuple[F64, NDArray[np.intp]]:
    """Boxes (n, 4) through an affine map: those around the mapped corners, clipped to a view of size (height, width).

    Returns the boxes (m, 4) with both sides >= min_side_px, and their indices (m,) among those given.
    """
    x0, y0, x1, y1 = np.asarray(boxes, dtype=np.float64).reshape(-1, 4).T
    corners = np.stack([np.stack([x0, x1, x1, x0]), np.stack([y0, y0, y1, y1]), np.ones((4, len(x0)))])  # (3, 4, n)
    x, y = np.einsum("ij,jkn->ikn", affine, corners)
    height, width = size
    low = np.stack([x.min(0).clip(0, width), y.min(0).clip(0, height)], axis=1)
    high = np.stack([x.max(0).clip(0, width), y.max(0).clip(0, height)], axis=1)
    kept = np.flatnonzero((high - low >= min_side_px).all(axis=1))
    return np.concatenate([low, high], axis=1)[kept], kept


def map_masks(masks: NDArray[np.uint8], geometry: Geometry) -> NDArray[np.uint8]:
    """Masks (n, h, w) uint8, source px -> view px, exactly."""
    return geometry.apply(masks, axes=(1, 2))
