"""Cells and matter into absorption: everything that lies in a window, added up as optical density.

Enters: a `Canvas` and what a scene holds.  Leaves: the canvas' planes, changed. Light that passes one cell and then
another is weakened by both, so densities add, and the order does not matter to the eye; it is kept fixed all the
same, since float32 sums depend on it.
Each object is drawn whole into a small patch of its own and then added where it meets the canvas: a cell on the border
of two windows is the same in both.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.synth.cells import Cell, Nucleus
from cytopipe.synth.matter import Blob, Matter, Smudge, Strand, reach_of
from cytopipe.synth.shapes import F64
from cytopipe.synth.stain import F32, Stain
from cytopipe.synth.texture import Textures

U8 = NDArray[np.uint8]

SHIFT = 4  # fixed-point bits of the rasteriser: vertices lie on 1/16 px, as in `cells.GRID`
MARGIN_PX = 3
FULL = np.float32(1 / 255)  # masks are uint8 with 255 for covered; this makes thickness of them


class Canvas:
    """Optical density of a window: `planes` float32 (3, h, w) red green blue, `x0`, `y0` its corner in slide px."""

    def __init__(self, x0: int, y0: int, width: int, height: int) -> None:
        self.x0, self.y0, self.width, self.height = x0, y0, width, height
        self.planes: F32 = np.zeros((3, height, width), np.float32)

    def meets(self, boxes: F64) -> NDArray[np.bool_]:
        """Which of the boxes (n, 4), slide px, share a place with the window."""
        low = boxes[:, :2] < (self.x0 + self.width, self.y0 + self.height)
        return np.asarray((low & (boxes[:, 2:] > (self.x0, self.y0))).all(axis=1))

    def add(self, patch: _Patch, density: F32, dye: F32) -> None:
        """Add `density` (h, w) of a patch times `dye` (3,) where the patch lies on the canvas."""
        left, top = max(patch.x0, self.x0), max(patch.y0, self.y0)
        right = min(patch.x0 + patch.width, self.x0 + self.width)
        bottom = min(patch.y0 + patch.height, self.y0 + self.height)
        if left >= right or top >= bottom:
            return
        part = density[top - patch.y0 : bottom - patch.y0, left - patch.x0 : right - patch.x0]
        for plane, strength in zip(self.planes, dye, strict=True):
            target = plane[top - self.y0 : bottom - self.y0, left - self.x0 : right - self.x0]
            cv2.scaleAdd(part, float(strength), target, dst=target)


class _Patch:
    """A small window around points (slide px), and rasterising in it."""

    def __init__(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.x0, self.y0 = int(np.floor(x0)) - MARGIN_PX, int(np.floor(y0)) - MARGIN_PX
        self.width, self.height = int(np.ceil(x1)) + MARGIN_PX - self.x0, int(np.ceil(y1)) + MARGIN_PX - self.y0

    def fixed(self, points: F64) -> NDArray[np.int32]:
        """Vertices for cv2: pixel centres at integers there, pixel edges at integers here; hence the half."""
        return np.asarray(np.round((points - (self.x0 + 0.5, self.y0 + 0.5)) * (1 << SHIFT)), dtype=np.int32)

    def filled(self, *outlines: F64) -> U8:
        """Coverage of polygons, united, uint8 (h, w), antialiased."""
        mask = np.zeros((self.height, self.width), np.uint8)
        for outline in outlines:  # one by one: fillPoly clears where two of one call overlap
            cv2.fillPoly(mask, [self.fixed(outline)], 255, lineType=cv2.LINE_AA, shift=SHIFT)
        return mask

    def stroked(self, lines: list[F64], thickness: int) -> U8:
        """Coverage of open lines, as `filled`."""
        mask = np.zeros((self.height, self.width), np.uint8)
        cv2.polylines(mask, [self.fixed(line) for line in lines], False, 255, thickness, cv2.LINE_AA, SHIFT)
        return mask

    def glow(self, centre: F64, sigma: float, height: float) -> F32:
        """A Gaussian of that height around a point in slide px."""
        x = np.exp(-0.5 * ((np.arange(self.width) + self.x0 + 0.5 - centre[0]) / sigma) ** 2)
        y = np.exp(-0.5 * ((np.arange(self.height) + self.y0 + 0.5 - centre[1]) / sigma) ** 2) * height
        return np.outer(y.astype(np.float32), x.astype(np.float32))


def box_of(thing: Cell | Matter, mpp: float) -> tuple[float, float, float, float]:
    """The box x0 y0 x1 y1 (slide px) beyond which it leaves the glass clear."""
    if not isinstance(thing, Cell):
        return reach_of(thing)
    spread = _spread_px(thing, mpp) + 1
    low, high = thing.outline.min(axis=0) - spread, thing.outline.max(axis=0) + spread
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def paint(canvas: Canvas, thing: Cell | Matter, textures: Textures, stain: Stain, mpp: float) -> None:
    """Add one cell with its nuclei, or one piece of other matter."""
    if isinstance(thing, Cell):
        _paint_cell(canvas, thing, textures, stain, mpp)
    elif isinstance(thing, Strand):
        _paint_strand(canvas, thing)
    else:
        patch = _Patch(*reach_of(thing))
        drawn = _blob(patch, thing, textures) if isinstance(thing, Blob) else _cloud(patch, thing, textures)
        canvas.add(patch, drawn, thing.dye)


def _paint_cell(canvas: Canvas, cell: Cell, textures: Textures, stain: Stain, mpp: float) -> None:
    sigma, spread = cell.defocus_um / mpp, _spread_px(cell, mpp)
    patch = _Patch(*(cell.outline.min(axis=0) - spread), *(cell.outline.max(axis=0) + spread))
    canvas.add(patch, _spread(_cytoplasm(patch, cell, textures, mpp), sigma), cell.dye)
    for nucleus in cell.nuclei:
        patch = _Patch(*(nucleus.outline.min(axis=0) - spread), *(nucleus.outline.max(axis=0) + spread))
        if canvas.meets(np.array([[patch.x0, patch.y0, patch.x0 + patch.width, patch.y0 + patch.height]])).all():
            canvas.add(patch, _spread(_chromatin(patch, nucleus, textures, mpp), sigma), stain.haematoxylin)


def _cytoplasm(patch: _Patch, cell: Cell, textures: Textures, mpp: float) -> F32:
    """Thickness of the cytoplasm (h, w): more at the nucleus, rim, creases and flap; granular; thin in a halo."""
    size = (patch.height, patch.width)
    inside = patch.filled(cell.outline)
    centre = np.mean([nucleus.outline.mean(axis=0) for nucleus in cell.nuclei], axis=0)
    body = patch.glow(centre, 0.2 * float(np.sqrt(patch.width * patch.height)), 0.28)
    body += textures.cut(textures.cytoplasm, cell.texture, *size)
    if cell.flap is not None:
        flap = patch.filled(cell.flap)
        _add(body, flap, 0.75)
        _add(body, _edge(flap, 0.8 / mpp), 0.3)
    if cell.creases:
        lines = patch.stroked(list(cell.creases), max(1, round(0.5 / mpp)))
        _add(body, cv2.GaussianBlur(lines, (0, 0), 0.3 / mpp), 0.42)
        _add(body, cv2.blur(lines, _odd(3.0 / mpp)), 0.45)  # the cell stands up on both sides of a crease
    if cell.halo is not None:
        body *= _halo(patch, cell.halo, cell.clearing, mpp)
    if cell.granules:
        grains = textures.cut(textures.fine, cell.texture >> 7, *size)
        body += np.maximum(grains - np.float32(3.3 - 0.9 * cell.granules), 0) * np.float32(1.4)
    _add(body, _edge(inside, 1.2 / mpp), 0.35)
    return np.asarray(cv2.multiply(body, inside, scale=cell.body * float(FULL), dtype=cv2.CV_32F), dtype=np.float32)


def _halo(patch: _Patch, outline: F64, clearing: float, mpp: float) -> F32:
    """Factor of the cytoplasm: a clearing with a condensed wall."""
    cleared = cv2.blur(patch.filled(outline), _odd(0.5 / mpp)) * FULL
    wall = cv2.blur(cleared, _odd(5.0 / mpp)) * (1 - cleared)
    return np.asarray(1 - np.float32(clearing) * cleared + np.float32(0.9) * wall)


def _chromatin(patch: _Patch, nucleus: Nucleus, textures: Textures, mpp: float) -> F32:
    """Density of a nucleus (h, w): even ground, clumps of two sizes, a membrane, nucleoli."""
    inside = patch.filled(nucleus.outline)
    grain = textures.cut(textures.chromatin, nucleus.texture, patch.height, patch.width) * np.float32(nucleus.clumps)
    # Chromatin stands out as dark clumps on a paler ground rather than as a symmetrical ripple.
    chromatin = np.float32(nucleus.density) * np.maximum(1 + grain + np.float32(0.35) * np.abs(grain), np.float32(0.25))
    _add(chromatin, _edge(inside, 0.9 / mpp), 2.2 * nucleus.membrane)
    for x, y, radius in nucleus.nucleoli:
        chromatin += patch.glow(np.array([x, y]), radius * 0.7, 0.55)
    return np.asarray(chromatin * inside * FULL)


def _blob(patch: _Patch, blob: Blob, textures: Textures) -> F32:
    grain = textures.cut(textures.middle, blob.texture, patch.height, patch.width) * np.float32(blob.clumps)
    return np.asarray((1 + grain) * patch.filled(*blob.outlines) * np.float32(blob.density * FULL))


def _cloud(patch: _Patch, smudge: Smudge, textures: Textures) -> F32:
    """Ragged: lumps in a cloud that fades out. Smooth: a disc of the radius with a soft border."""
    size = (patch.height, patch.width)
    cloud = patch.glow(smudge.centre, smudge.radius * (0.62 if smudge.ragged else 0.75), 1.0)
    if smudge.ragged:
        lumps = textures.cut(textures.middle, smudge.texture, *size) + textures.cut(
            textures.coarse, smudge.texture >> 3, *size
        )
        body = np.clip(cloud * (np.float32(1.4) + np.float32(0.45) * lumps) - np.float32(0.6), 0, 1)
    else:
        body = np.clip((cloud - np.float32(0.42)) * np.float32(6), 0, 1)
    grain = 1 + np.float32(0.15) * textures.cut(textures.fine, smudge.texture >> 5, *size)
    return np.asarray(body * grain * np.float32(smudge.density))


def _paint_strand(canvas: Canvas, strand: Strand) -> None:
    """Drawn where it meets the canvas only: a pen's stroke is longer than a patch should be."""
    margin = int(np.ceil(4 * strand.softness)) + 1
    low_x, low_y, high_x, high_y = reach_of(strand)
    patch = _Patch(
        max(low_x, canvas.x0 - margin),
        max(low_y, canvas.y0 - margin),
        min(high_x, canvas.x0 + canvas.width + margin),
        min(high_y, canvas.y0 + canvas.height + margin),
    )
    lines = patch.stroked([strand.line], max(1, round(strand.width)))
    band = cv2.GaussianBlur(lines.astype(np.float32), (0, 0), max(strand.softness, 0.5))
    canvas.add(patch, band * np.float32(strand.density * FULL), strand.dye)


def _add(body: F32, mask: U8 | cv2.typing.MatLike, strength: float) -> None:
    """`mask` as thickness, times `strength`, onto `body` in place."""
    cv2.addWeighted(body, 1.0, mask, strength * float(FULL), 0.0, body, cv2.CV_32F)


def _spread_px(cell: Cell, mpp: float) -> float:
    """How far the blur of a cell that lies out of the focal plane reaches."""
    return 3 * cell.defocus_um / mpp


def _spread(density: F32, sigma_px: float) -> F32:
    return np.asarray(cv2.GaussianBlur(density, (0, 0), sigma_px)) if sigma_px > 0 else density


def _edge(inside: U8, width_px: float) -> U8:
    """How near the border lies, 0 far inside to about half of 255 on it, over about `width_px`."""
    return np.asarray(255 - cv2.blur(inside, _odd(2 * width_px)), dtype=np.uint8)


def _odd(size_px: float) -> tuple[int, int]:
    side = 2 * max(1, round(size_px / 2)) + 1
    return side, side
