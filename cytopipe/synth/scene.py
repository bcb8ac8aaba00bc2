"""What lies on a slide and where: a function of the seed and the place, so that any part can be drawn without the rest.

Enters: size, mpp, seed, density.  Leaves: `Block`s of a grid of 256 µm: cells with their outlines, other matter, and
where the slide is out of focus. All coordinates are slide px. What a block owns reaches at most REACH_UM beyond it,
so that a window is drawn from the blocks around it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cytopipe.core.seeds import rng_from
from cytopipe.synth.cells import KINDS, LESIONS, Cell, draw_cell
from cytopipe.synth.matter import (
    Frame,
    Matter,
    draw_debris,
    draw_frame,
    draw_leucocytes,
    draw_lines,
    draw_mucus,
    draw_pen,
    draw_red_cells,
    draw_strokes,
)
from cytopipe.synth.setting import SETTINGS, stained
from cytopipe.synth.shapes import F64
from cytopipe.synth.stain import Stain, draw_stain

BLOCK_UM = 256.0
REACH_UM = (
    256.0  # a group's centre lies in its block, its cells within GROUP_UM of it, a cell within 50 µm of its nucleus
)
GROUP_UM = 150.0
FOCUS_UM = 1500.0  # grid of the discs that are out of focus; their radius is at most half of it
DENSITY_SWING = 0.3  # the local density of cells varies by this ratio over about a millimetre

# Shares of the kinds among normal cells [D]: a smear of a woman of reproductive age; slides lean to mature or to
# young cells by their own draw.
NORMAL_SHARES = {
    "superficial": 0.3,
    "intermediate": 0.44,
    "parabasal": 0.1,
    "reactive": 0.08,
    "atrophic": 0.04,
    "degenerated": 0.04,
}
# How many cells lie together: geometric mean size of groups, and the probability that a cell starts a group.
PILES = (0.6, 16)  # normal cells where they are piled up
GROUPING = {"normal": (0.16, 5), "asc-us": (0.15, 3), "lsil": (0.35, 3), "hsil": (0.7, 6), "agc": (0.95, 9)}
LESION_KINDS = {"ASC-US": "asc-us", "LSIL": "lsil", "HSIL": "hsil", "AGC": "agc"}


@dataclass(frozen=True, slots=True)
class Block:
    """What one grid block owns, in drawing order."""

    cells: tuple[Cell, ...]
    matter: tuple[Matter, ...]


class Scene:
    """One slide, not yet drawn.

    width, height    level-0 px
    mpp              µm/px
    seed             of this slide
    cells_per_mm2    mean number of cells (annotated ones) per mm² of slide
    lesion_fraction  share of abnormal cells among them, 0 to 1
    setting          one of `setting.SETTING_NAMES`
    """

    def __init__(
        self,
        width: int,
        height: int,
        *,
        mpp: float,
        seed: int,
        cells_per_mm2: float,
        lesion_fraction: float,
        setting: str = "light",
    ) -> None:
        self.setting = SETTINGS[setting]
        self.width, self.height, self.mpp, self.seed = width, height, mpp, seed
        self.block_px = BLOCK_UM / mpp
        self.rows, self.columns = int(np.ceil(height / self.block_px)), int(np.ceil(width / self.block_px))
        rng = rng_from(seed, "slide")
        self.stain: Stain = stained(draw_stain(rng), setting, seed)
        self._cells_per_block = self.setting.crowding * cells_per_mm2 * (BLOCK_UM / 1000) ** 2
        self._grouping = GROUPING | ({"normal": PILES} if self.setting.piled else {})
        self._groups = _group_rates(rng, lesion_fraction, self._grouping)
        self._swing = np.concatenate([rng.uniform(0.6, 1.6, 2), rng.uniform(0, 2 * np.pi, 2)])  # waves a mm, phases
        self._leucocytes_per_block = float(np.exp(rng.normal(np.log(4), 0.8)))
        self._dirt = float(rng.uniform(0.3, 1.2))
        self._blurred = float(rng.uniform(0.05, 0.5))
        self.pen: tuple[Matter, ...] = draw_pen(rng, width, height, mpp)
        self.lines: tuple[Matter, ...] = ()
        self.frame = Frame(0, 0, width, height, 255)
        if self.setting.emits:
            self.pen = ()  # ink does not shine
        if self.setting.marked:
            marks = rng_from(seed, "marks")
            self.frame = draw_frame(marks, width, height)
            self.pen, self.lines = draw_strokes(marks, self.frame, mpp), draw_lines(marks, self.frame, mpp)

    def block(self, row: int, column: int) -> Block:
        """The block at a place of the grid. The same call gives the same block; outside the grid there is nothing."""
        if not (0 <= row < self.rows and 0 <= column < self.columns):
            return Block((), ())
        corner = np.array([column, row]) * self.block_px
        cells = self._cells(rng_from(self.seed, "cells", row, column), corner, f"{row}-{column}")
        return Block(tuple(cells), self._matter(rng_from(self.seed, "matter", row, column), corner))

    def focus_discs(self, x0: float, y0: float, x1: float, y1: float) -> list[tuple[float, float, float, float]]:
        """Discs out of focus that may touch the window: x, y, radius (slide px) and strength in (0, 1]."""
        side = FOCUS_UM / self.mpp
        discs = []
        for row in range(int(y0 // side) - 1, int(y1 // side) + 2):
            for column in range(int(x0 // side) - 1, int(x1 // side) + 2):
                rng = rng_from(self.seed, "focus", row, column)
                if rng.random() < self._blurred:
                    x, y = (np.array([column, row]) + rng.random(2)) * side
                    discs.append(
                        (float(x), float(y), float(rng.uniform(0.1, 0.35) * side), float(rng.uniform(0.4, 1.0)))
                    )
        return discs

    def _cells(self, rng: np.random.Generator, corner: F64, prefix: str) -> list[Cell]:
        wave_x, wave_y, phase_x, phase_y = self._swing
        at_mm = (corner * self.mpp + BLOCK_UM / 2) / 1000 * 2 * np.pi
        swing = 1 + DENSITY_SWING * np.sin(wave_x * at_mm[0] + phase_x) * np.sin(wave_y * at_mm[1] + phase_y)
        kinds, rates = self._groups
        # Whole groups by Poisson's law: cut to a number of cells, the large groups, and so the lesions, would be fewer.
        numbers = rng.poisson(rates * self._cells_per_block * swing)
        cells: list[Cell] = []
        places: list[F64] = []
        for index in rng.permutation(np.repeat(np.arange(len(kinds)), numbers)):
            kind = kinds[int(index)]
            centre = self._free_place(rng, corner, places)
            for at, axis in _arranged(rng, kind, centre, _group_size(rng, *_grouping(kind, self._grouping)), self.mpp):
                places.append(at)
                cell = draw_cell(rng, f"{prefix}-{len(places)}", kind, at, self.mpp, self.stain, axis=axis)
                if self._holds(cell):
                    cells.append(cell)
        return cells

    def _free_place(self, rng: np.random.Generator, corner: F64, places: list[F64]) -> F64:
        """The emptiest of four places in the block: prepared cells lie apart more often than by chance."""
        tries = corner + rng.random((4, 2)) * self.block_px
        if not places:
            return np.asarray(tries[0])
        gaps = np.hypot(*(tries[:, None] - np.array(places)[None]).transpose(2, 0, 1)).min(axis=1)
        return np.asarray(tries[int(gaps.argmax())])

    def _holds(self, cell: Cell) -> bool:
        """Whether all nuclei lie on the slide. Others are not placed: whoever lies at the border has its nucleus."""
        points = np.concatenate([nucleus.outline for nucleus in cell.nuclei])
        if not ((points >= 0).all() and (points <= (self.width, self.height)).all()):
            return False
        if (self.frame.x1 - self.frame.x0, self.frame.y1 - self.frame.y0) == (self.width, self.height):
            return True
        low, high = (self.frame.x0, self.frame.y0), (self.frame.x1, self.frame.y1)
        return bool((cell.outline >= low).all() and (cell.outline <= high).all())  # what is not shown is no truth

    def _matter(self, rng: np.random.Generator, corner: F64) -> tuple[Matter, ...]:
        matter: list[Matter] = []
        matter += draw_mucus(rng, corner, self.block_px, self.mpp, self.stain, self._dirt)
        matter += draw_leucocytes(rng, corner, self.block_px, self.mpp, self.stain, self._leucocytes_per_block)
        matter += draw_debris(rng, corner, self.block_px, self.mpp, self.stain, self._dirt)
        if self.setting.red_cells_per_mm2:
            mean = self.setting.red_cells_per_mm2 * (BLOCK_UM / 1000) ** 2
            matter += draw_red_cells(rng, corner, self.block_px, self.mpp, self.stain, mean)
        return tuple(matter)


def _group_rates(
    rng: np.random.Generator, lesion_fraction: float, grouping: dict[str, tuple[float, int]]
) -> tuple[list[str], F64]:
    """Kinds, and for each the number of its groups per cell of the slide: its share of cells by the mean group size."""
    leaning = {kind: share * rng.uniform(0.5, 1.5) for kind, share in NORMAL_SHARES.items()}
    shares = {kind: (1 - lesion_fraction) * weight / sum(leaning.values()) for kind, weight in leaning.items()}
    parts = rng.dirichlet([4.0] * len(LESIONS))
    shares |= {LESION_KINDS[name]: lesion_fraction * float(part) for name, part in zip(LESIONS, parts, strict=True)}
    return list(shares), np.array([share / _mean_size(*_grouping(kind, grouping)) for kind, share in shares.items()])


def _grouping(kind: str, grouping: dict[str, tuple[float, int]]) -> tuple[float, int]:
    return grouping["normal" if KINDS[kind].class_name == "normal" else kind]


def _mean_size(probability: float, size: int) -> float:
    return 1 - probability + probability * size


def _group_size(rng: np.random.Generator, probability: float, size: int) -> int:
    """1, or 2 and more with the mean of GROUPING."""
    return 1 if rng.random() >= probability else 2 + min(int(rng.geometric(1 / (size - 1))) - 1, 4 * size)


def _arranged(
    rng: np.random.Generator, kind: str, centre: F64, size: int, mpp: float
) -> list[tuple[F64, float | None]]:
    """Places (slide px) and directions of a group's cells: a sheet, or a strip or rosette of columnar cells."""
    if size == 1:
        return [(centre, None)]
    if KINDS[kind].shape == "column":
        return _strip(rng, centre, size, mpp) if rng.random() < 0.65 else _rosette(rng, centre, size, mpp)
    spacing = float(np.mean(KINDS[kind].cell_um)) / mpp * rng.uniform(0.5, 0.8)
    # A spiral with the golden angle packs evenly; the jitter keeps it from looking planted.
    turn, start = np.pi * (3 - np.sqrt(5)), rng.uniform(0, 2 * np.pi)
    places: list[tuple[F64, float | None]] = []
    for number in range(size):
        radius = min(spacing * np.sqrt(number) * 0.95, GROUP_UM / mpp * 0.9)
        offset = radius * np.array([np.cos(start + number * turn), np.sin(start + number * turn)])
        places.append((centre + offset + rng.normal(0, 0.12 * spacing, 2), None))
    return places


def _strip(rng: np.random.Generator, centre: F64, size: int, mpp: float) -> list[tuple[F64, float | None]]:
    """Columnar cells side by side along a bent line, standing across it, some a step out: the feathered edge."""
    heading, bend = rng.uniform(0, 2 * np.pi), rng.normal(0, 0.09)
    step = rng.uniform(5.8, 8.5) / mpp
    at = centre - 0.5 * step * size * np.array([np.cos(heading), np.sin(heading)])
    places: list[tuple[F64, float | None]] = []
    for _ in range(size):
        heading += bend
        at = at + step * np.array([np.cos(heading), np.sin(heading)])
        across = heading + np.pi / 2 + rng.normal(0, 0.15)
        out = rng.normal(0, 3.0) / mpp
        places.append((at + out * np.array([np.cos(across), np.sin(across)]), float(across)))
    return places


def _rosette(rng: np.random.Generator, centre: F64, size: int, mpp: float) -> list[tuple[F64, float | None]]:
    """Columnar cells around a small lumen, nuclei outwards."""
    radius = max(9.0, size * 6.5 / (2 * np.pi)) / mpp
    places: list[tuple[F64, float | None]] = []
    for number in range(size):
        angle = 2 * np.pi * (number + rng.uniform(-0.15, 0.15)) / size
        direction = np.array([np.cos(angle), np.sin(angle)])
        places.append((centre + direction * radius * rng.uniform(0.85, 1.2), float(angle + np.pi)))
    return places
