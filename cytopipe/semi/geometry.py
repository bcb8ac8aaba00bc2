"""The geometry of a view: flips, quarter turns, and a rotation with a rescale about the centre. numpy and OpenCV, for
the data room.

Flips and turns move pixels and mix none; rotation and rescale sample bilinearly (images) or take the nearest (labels).
Affine maps are (2, 3) float64, px to px, pixel edges at integers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.semi.presets import ViewPreset

F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
Size = tuple[int, int]
Value = TypeVar("Value", bound=np.generic)


@dataclass(frozen=True, slots=True)
class Geometry:
    """A flip about the vertical axis, then one about the horizontal axis, then quarter turns against the clock; then a
    rotation (degrees, with the clock as seen on screen) and a rescale about the centre; last the view's own flip.
    """

    hflip: bool = False
    vflip: bool = False
    quarter_turns: int = 0
    rotate_deg: float = 0.0
    scale: float = 1.0
    own_hflip: bool = False

    @property
    def is_exact(self) -> bool:
        """Whether every pixel of the view is a pixel of the source: no rotation, no rescale."""
        return self.rotate_deg == 0.0 and self.scale == 1.0

    def turned(self, height: int, width: int) -> Size:
        """(height, width) of a source of that size after the quarter turns."""
        return (width, height) if self.quarter_turns % 2 else (height, width)

    def affine(self, height: int, width: int, size: Size | None = None) -> F64:
        """The map (2, 3) from source px to view px, for a source of that size.

        size  (height, width) of the view, centre on centre; None: that of the source, turned with it
        """
        matrix = np.eye(3)
        if self.hflip:
            matrix = np.array([[-1.0, 0, width], [0, 1, 0], [0, 0, 1]]) @ matrix
        if self.vflip:
            matrix = np.array([[1.0, 0, 0], [0, -1, height], [0, 0, 1]]) @ matrix
        for _ in range(self.quarter_turns % 4):
            matrix = np.array([[0.0, 1, 0], [-1, 0, width], [0, 0, 1]]) @ matrix
            height, width = width, height
        out_height, out_width = (height, width) if size is None else size
        if not self.is_exact or (out_height, out_width) != (height, width):
            angle = math.radians(self.rotate_deg)
            c, s = self.scale * math.cos(angle), self.scale * math.sin(angle)
            x, y = width / 2, height / 2
            about_centre = [[c, -s, out_width / 2 - c * x + s * y], [s, c, out_height / 2 - s * x - c * y], [0, 0, 1]]
            matrix = np.array(about_centre) @ matrix
        if self.own_hflip:
            matrix = np.array([[-1.0, 0, out_width], [0, 1, 0], [0, 0, 1]]) @ matrix
        return matrix[:2]

    def margin_px(self, side_px: int) -> int:
        """How much more of the source than its own size a square view of side_px shows on each side, at most."""
        angle = math.radians(self.rotate_deg)
        reach = (abs(math.cos(angle)) + abs(math.sin(angle))) / self.scale
        return 0 if self.is_exact else max(math.ceil((reach - 1) * side_px / 2) + 1, 0)  # 1: bilinear neighbours

    def apply(self, array: NDArray[Value], axes: tuple[int, int] = (0, 1)) -> NDArray[Value]:
        """The array with its (row, column) axes flipped and turned; values are moved, never mixed. A contiguous copy.

        Raises ValueError for a geometry that is not exact.
        """
        if not self.is_exact:
            raise ValueError(f"{self} does not move whole pixels")
        rows, columns = axes
        if self.hflip:
            array = np.flip(array, columns)
        if self.vflip:
            array = np.flip(array, rows)
        array = np.rot90(array, self.quarter_turns, axes)
        if self.own_hflip:
            array = np.flip(array, columns)
        return np.ascontiguousarray(array)

    def warp(self, image: U8, size: Size, beyond: tuple[int, ...], *, nearest: bool = False) -> U8:
        """The view of `image` (h, w) or (h, w, 3) uint8, of size (height, width), centre on centre.

        beyond  value or colour of what lies past the border of the image
        """
        if self.is_exact and size == self.turned(*image.shape[:2]):
            return self.apply(image)
        return warp_affine(image, self.affine(*image.shape[:2], size), size, beyond, nearest=nearest)


def draw_geometry(preset: ViewPreset, rng: np.random.Generator) -> Geometry:
    """Geometry as the preset has it: always five draws, so that no preset shifts what is drawn later."""
    hflip, vflip, turn, angle, factor = rng.random(5)
    low, high = preset.rescale
    return Geometry(
        bool(hflip < preset.hflip_p),
        bool(vflip < preset.vflip_p),
        int(turn * 4) if preset.turns else 0,
        float(2 * angle - 1) * preset.rotate_deg,
        float(low + (high - low) * factor),
    )


def warp_affine(image: U8, affine: F64, size: Size, beyond: tuple[int, ...], *, nearest: bool = False) -> U8:
    """`image` (h, w) or (h, w, 3) uint8 through an affine map source px -> view px, onto a view of `size`."""
    # cv2 has pixel centres at integers, we have pixel edges there
    shift = affine[:, :2] @ np.array([0.5, 0.5]) - 0.5
    centred = np.hstack([affine[:, :2], (affine[:, 2] + shift)[:, None]])
    how = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    warped = cv2.warpAffine(
        image, centred, (size[1], size[0]), flags=how, borderMode=cv2.BORDER_CONSTANT, borderValue=beyond
    )
    return np.asarray(warped, np.uint8)


def compose(second: F64, first: F64) -> F64:
    """The affine map (2, 3) that does `first`, then `second`."""
    square = np.vstack([first, [0.0, 0.0, 1.0]])
    return np.asarray(np.vstack([second, [0.0, 0.0, 1.0]]) @ square)[:2]
