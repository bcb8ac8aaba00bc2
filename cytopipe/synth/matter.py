"""What lies on a slide and is no annotated cell: leucocytes, debris, bacteria, mucus, pen marks.

Enters: a random generator, a block's corner and side in slide px, the stain.  Leaves: three primitives that the
painter knows, all in slide px.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cytopipe.synth.shapes import F64, crease, nucleus_outline
from cytopipe.synth.stain import DIRT, F32, GREY, INKS, Stain


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """Filled polygons (n, 2), as one body where they overlap: the lobes of a leucocyte's nucleus, a speck of dirt."""

    outlines: tuple[F64, ...]
    dye: F32
    density: float
    clumps: float
    texture: int


@dataclass(frozen=True, slots=True, eq=False)
class Smudge:
    """A cloud without border around `centre` (2,), radius in px: amorphous debris, a leucocyte's faint cytoplasm.

    `ragged`: full of holes, else smooth.
    """

    centre: F64
    radius: float
    dye: F32
    density: float
    ragged: bool
    texture: int


@dataclass(frozen=True, slots=True, eq=False)
class Strand:
    """A translucent line (k, 2) of a width in px: mucus, a pen's stroke. `softness` is the blur of its border, px."""

    line: F64
    width: float
    dye: F32
    density: float
    softness: float


Matter = Blob | Smudge | Strand


def draw_leucocytes(
    rng: np.random.Generator, corner: F64, side: float, mpp: float, stain: Stain, mean: float
) -> list[Matter]:
    """Polymorphs, singly and in swarms: two to four dark lobes in a faint cytoplasm of about 11 µm.

    Nobody annotates them.
    """
    matter: list[Matter] = []
    left = int(rng.poisson(mean))
    while left > 0:
        swarm = min(left, 1 + int(rng.geometric(0.45)))
        left -= swarm
        centre = corner + rng.random(2) * side
        for _ in range(swarm):
            at = centre + rng.normal(0, 11.0 / mpp, 2) * (swarm > 1)
            dye = stain.light_green if rng.random() < 0.5 else stain.violet
            matter.append(Smudge(at, rng.uniform(4.6, 6.2) / mpp, dye, rng.uniform(0.1, 0.45), False, _place(rng)))
            turn = rng.uniform(0, 2 * np.pi)
            lobes = []
            for lobe in range(int(rng.integers(2, 5))):
                angle = turn + lobe * rng.uniform(1.5, 2.1)
                spot = at + np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(1.6, 2.7) / mpp
                star = nucleus_outline(rng, rng.uniform(3.0, 4.4) / mpp, rng.uniform(1.0, 1.6), 0.05, points=16)
                lobes.append(spot + star.vertices)
            matter.append(Blob(tuple(lobes), stain.haematoxylin, float(rng.uniform(0.7, 1.25)), 0.2, _place(rng)))
    return matter


def draw_debris(
    rng: np.random.Generator, corner: F64, side: float, mpp: float, stain: Stain, amount: float
) -> list[Matter]:
    """Amorphous clouds, specks of dirt, rods of bacteria, bare pyknotic fragments."""
    matter: list[Matter] = []
    for _ in range(int(rng.poisson(0.8 * amount))):
        at = corner + rng.random(2) * side
        dye = stain.light_green if rng.random() < 0.7 else stain.violet
        matter.append(Smudge(at, rng.uniform(6, 26) / mpp, dye, rng.uniform(0.5, 1.3), True, _place(rng)))
    for _ in range(int(rng.poisson(2.0 * amount))):
        star = nucleus_outline(rng, np.exp(rng.normal(0.2, 0.6)) / mpp, rng.uniform(1, 2.5), 0.25, points=14)
        is_dirt = rng.random() < 0.4
        dye = np.array(DIRT, dtype=np.float32) if is_dirt else stain.haematoxylin
        density = rng.uniform(0.6, 1.8) if is_dirt else rng.uniform(0.3, 1.0)
        speck = corner + rng.random(2) * side + star.vertices
        matter.append(Blob((speck,), dye, density, 0.1, _place(rng)))
    if rng.random() < 0.12 * amount:
        centre = corner + rng.random(2) * side
        for _ in range(int(rng.integers(10, 50))):
            rod = nucleus_outline(rng, rng.uniform(0.8, 1.2) / mpp, rng.uniform(3, 6), 0.05, points=12)
            bacterium = centre + rng.normal(0, 14 / mpp, 2) + rod.vertices
            matter.append(Blob((bacterium,), stain.haematoxylin, rng.uniform(0.25, 0.5), 0, 0))
    return matter


def draw_mucus(
    rng: np.random.Generator, corner: F64, side: float, mpp: float, stain: Stain, amount: float
) -> list[Matter]:
    """Bundles of pale strands, at most 200 µm long."""
    matter: list[Matter] = []
    if rng.random() < 0.1 * amount:
        start, heading = corner + rng.random(2) * side, rng.uniform(0, 2 * np.pi)
        for _ in range(int(rng.integers(8, 22))):
            origin = start + rng.normal(0, 10 / mpp, 2)
            line = crease(rng, origin, heading + rng.normal(0, 0.05), rng.uniform(60, 190) / mpp, 0.14, points=16)
            width_um = float(np.clip(np.exp(rng.normal(0.2, 0.8)), 0.5, 8))
            softness_um = max(0.4, 0.35 * width_um)  # the broad ones have no border to speak of
            density = rng.uniform(0.15, 0.6) / max(1.0, 0.5 * width_um)
            matter.append(Strand(line, width_um / mpp, stain.mucus, density, softness_um / mpp))
    return matter


def draw_pen(rng: np.random.Generator, width: int, height: int, mpp: float) -> tuple[Matter, ...]:
    """A felt pen's strokes on some slides: broad, out of focus (it is on the cover glass), towards the border."""
    strokes: list[Matter] = []
    extent = np.array([width, height], dtype=np.float64)
    broadest = min(160.0, 0.04 * mpp * float(extent.min()))
    if broadest < 40:  # a slide of a millimetre would be all ink
        return ()
    while rng.random() < 0.3 and len(strokes) < 3:
        dye = np.array(INKS[int(rng.integers(len(INKS)))], dtype=np.float32)
        border = rng.integers(0, 4)
        at = rng.random(2) * extent
        at[border % 2] = extent[border % 2] * (rng.uniform(0.0, 0.06) if border < 2 else rng.uniform(0.94, 1.0))
        heading = (np.pi / 2 if border % 2 == 0 else 0.0) + rng.normal(0, 0.12)
        length = min(float(extent.max()), rng.uniform(800, 4000) / mpp)
        line = crease(rng, at, heading, length, 0.05, points=16)
        strokes.append(Strand(line, rng.uniform(0.4, 1.0) * broadest / mpp, dye, rng.uniform(0.3, 0.8), 6.0 / mpp))
    return tuple(strokes)


def draw_red_cells(
    rng: np.random.Generator, corner: F64, side: float, mpp: float, stain: Stain, mean: float
) -> list[Matter]:
    """Red cells, singly and in heaps: discs of about 7 µm with a paler middle."""
    matter: list[Matter] = []
    left = int(rng.poisson(mean))
    while left > 0:
        heap = min(left, int(rng.geometric(0.12)))
        left -= heap
        centre = corner + rng.random(2) * side
        for _ in range(heap):
            at = centre + rng.normal(0, 2.2 * np.sqrt(heap) / mpp, 2) * (heap > 1)
            star = nucleus_outline(rng, rng.uniform(6.0, 7.6) / mpp, rng.uniform(1.0, 1.3), 0.03, points=14)
            density = float(rng.uniform(0.5, 1.1))
            matter.append(Blob((at + star.vertices,), stain.eosin, density, 0, 0))
            matter.append(Blob((at + 0.45 * star.vertices,), stain.eosin, -0.5 * density, 0, 0))
    return matter


@dataclass(frozen=True, slots=True)
class Frame:
    """What was scanned: x0 y0 x1 y1, slide px. Around it the file holds a flat `grey`."""

    x0: int
    y0: int
    x1: int
    y1: int
    grey: int


def draw_frame(rng: np.random.Generator, width: int, height: int) -> Frame:
    """White, grey or black where nothing was scanned: along two borders, 2% to 6% of the side."""
    x0, y0 = (round(float(rng.uniform(0.02, 0.06)) * side) for side in (width, height))
    grey = int(rng.choice([0, 128, 200, 255]))
    return Frame(x0, 0, width, height - y0, grey) if rng.random() < 0.5 else Frame(0, y0, width - x0, height, grey)


def draw_lines(rng: np.random.Generator, frame: Frame, mpp: float) -> tuple[Strand, ...]:
    """The dark bar of the slide's own edge, and the cover glass' edges: a dark and a bright line side by side."""
    neutral = np.array(GREY, dtype=np.float32)
    corner = np.array([frame.x0, frame.y0], dtype=np.float64)
    extent = np.array([frame.x1 - frame.x0, frame.y1 - frame.y0], dtype=np.float64)
    lines = []

    def across(axis: int, place: float, slope: float) -> F64:
        """A straight line over the whole slide, at `place` (ratio) of the other axis."""
        ends = np.empty((2, 2))
        ends[:, axis] = corner[axis] + extent[axis] * np.array([-0.02, 1.02])
        ends[:, 1 - axis] = corner[1 - axis] + extent[1 - axis] * place + slope * extent[axis] * np.array([-0.5, 0.5])
        return ends

    axis = int(rng.integers(2))
    bar = rng.uniform(0.02, 0.05) * float(extent[1 - axis])
    lines.append(Strand(across(axis, float(rng.integers(2)), 0.0), bar, neutral, rng.uniform(0.8, 2.0), 3.0 / mpp))
    for axis in range(2):
        place, slope, aside = rng.uniform(0.1, 0.9), rng.normal(0, 0.02), np.zeros(2)
        aside[1 - axis] = 11.0 / mpp
        line = across(axis, place, slope)
        lines.append(Strand(line, 12.0 / mpp, neutral, rng.uniform(0.15, 0.8), 2.0 / mpp))
        lines.append(Strand(line + aside, 9.0 / mpp, neutral, -rng.uniform(0.02, 0.05), 2.0 / mpp))
    return tuple(lines)


def draw_strokes(rng: np.random.Generator, frame: Frame, mpp: float) -> tuple[Strand, ...]:
    """A felt pen's strokes anywhere, two to four, 120 to 400 µm broad."""
    strokes = []
    corner = np.array([frame.x0, frame.y0], dtype=np.float64)
    extent = np.array([frame.x1 - frame.x0, frame.y1 - frame.y0], dtype=np.float64)
    for _ in range(int(rng.integers(2, 5))):
        dye = np.array(INKS[int(rng.integers(len(INKS)))], dtype=np.float32)
        start, heading = corner + rng.random(2) * extent, rng.uniform(0, 2 * np.pi)
        length = rng.uniform(0.3, 0.8) * float(extent.min())
        line = crease(rng, start, heading, length, 0.08, points=16)
        strokes.append(Strand(line, rng.uniform(120, 400) / mpp, dye, rng.uniform(0.4, 1.2), rng.uniform(3, 8) / mpp))
    return tuple(strokes)


def reach_of(matter: Matter) -> tuple[float, float, float, float]:
    """The box x0 y0 x1 y1 (slide px) beyond which it leaves the glass clear."""
    if isinstance(matter, Blob):
        points = np.concatenate(matter.outlines)
        low, high, margin = points.min(axis=0), points.max(axis=0), 2.0
    elif isinstance(matter, Smudge):
        low, high, margin = matter.centre, matter.centre, 1.5 * matter.radius
    else:
        low, high = matter.line.min(axis=0), matter.line.max(axis=0)
        margin = matter.width / 2 + 4 * matter.softness + 2
    return float(low[0] - margin), float(low[1] - margin), float(high[0] + margin), float(high[1] + margin)


def _place(rng: np.random.Generator) -> int:
    return int(rng.integers(2**40))
