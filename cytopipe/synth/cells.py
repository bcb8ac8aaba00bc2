"""What each kind of cell looks like, and one cell drawn from its kind.

Enters: a kind, a place in slide px, a random generator.  Leaves: a `Cell`: outlines exactly as they are rendered and
annotated, and how they are stained.

The table holds µm, so that a slide of any mpp shows the same cells. Sizes follow The Bethesda System (3rd edition,
2015): an intermediate nucleus is about 35 to 50 µm², ASC-US 2.5 to 3 times that, LSIL over 3 times; HSIL is told by
its nucleus filling a small cell, AGC by crowded oval nuclei. Stain and texture are chosen by eye [D]. `reactive`,
`atrophic` and `degenerated` are normal cells that resemble lesions: without them a detector would only learn sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cytopipe.synth.shapes import Star, crease, folded, nucleus_outline, polygonal_outline, round_outline
from cytopipe.synth.stain import F32, Stain

F64 = NDArray[np.float64]
Range = tuple[float, float]

CELL_CLASSES = ("normal", "ASC-US", "LSIL", "HSIL", "AGC")
LESIONS = CELL_CLASSES[1:]
RIM_UM = 0.5  # cytoplasm is kept at least this wide around a nucleus
DEFOCUSED_FRACTION = 0.15  # of the cells, apart from the regions that are out of focus as a whole
HALO_WALL_UM = 2.5  # cytoplasm left between a koilocyte's clearing and the border
GRID = 16  # vertices lie on 1/16 px: the rasteriser's fixed point, so that what is annotated is what was filled


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of cell. Ranges are uniform, sizes are equivalent diameters, shares are probabilities.

    cell_um, aspect            size and axis ratio of the cell
    nucleus, nucleus_unit      size of the nucleus, in µm or as a ratio of the cell's
    nucleus_aspect             its axis ratio
    irregularity               standard deviation of its contour, ratio of its radius
    density, clumps, membrane  its stain in units of haematoxylin, how far chromatin varies it, extra density at its rim
    pink                       share of cells in eosin or orange G; the others take light green
    body                       thickness of the cytoplasm, in units of its dye
    nucleoli, folds, granules, halo, two_nuclei   share of cells that have them
    wrinkles                   at most that many
    off_centre                 how far the nucleus strays, ratio of the room it has
    """

    class_name: str
    shape: Literal["polygon", "round", "column"]
    cell_um: Range
    aspect: Range
    nucleus: Range
    nucleus_aspect: Range
    irregularity: float
    density: Range
    clumps: float
    membrane: float
    pink: float
    body: Range
    nucleus_unit: Literal["um", "cell"] = "um"
    nucleoli: float = 0.0
    folds: float = 0.0
    wrinkles: int = 0
    granules: float = 0.0
    halo: float = 0.0
    two_nuclei: float = 0.0
    off_centre: float = 0.12


KINDS: dict[str, Kind] = {
    "superficial": Kind(
        class_name="normal", shape="polygon", cell_um=(42, 60), aspect=(1.0, 1.35), nucleus=(5.0, 6.6),
        nucleus_aspect=(1.0, 1.25), irregularity=0.015, density=(0.95, 1.35), clumps=0.14, membrane=0.05, pink=0.72,
        body=(0.42, 0.8), folds=0.4, wrinkles=5, granules=0.4,
    ),
    "intermediate": Kind(
        class_name="normal", shape="polygon", cell_um=(38, 56), aspect=(1.0, 1.5), nucleus=(7.0, 9.0),
        nucleus_aspect=(1.0, 1.35), irregularity=0.02, density=(0.45, 0.75), clumps=0.3, membrane=0.2, pink=0.15,
        body=(0.45, 0.9), folds=0.5, wrinkles=6, granules=0.2,
    ),
    "parabasal": Kind(
        class_name="normal", shape="round", cell_um=(16, 25), aspect=(1.0, 1.25), nucleus=(7.2, 9.2),
        nucleus_aspect=(1.0, 1.2), irregularity=0.02, density=(0.6, 0.9), clumps=0.24, membrane=0.13, pink=0.08,
        body=(0.9, 1.4), wrinkles=1, off_centre=0.15,
    ),
    "reactive": Kind(
        class_name="normal", shape="polygon", cell_um=(34, 52), aspect=(1.0, 1.5), nucleus=(10.0, 12.6),
        nucleus_aspect=(1.0, 1.3), irregularity=0.018, density=(0.34, 0.55), clumps=0.22, membrane=0.2, pink=0.3,
        body=(0.4, 0.8), nucleoli=0.8, folds=0.3, wrinkles=5, halo=0.1,
    ),
    "atrophic": Kind(
        class_name="normal", shape="round", cell_um=(13, 20), aspect=(1.0, 1.4), nucleus=(7.5, 9.6),
        nucleus_aspect=(1.0, 1.4), irregularity=0.025, density=(0.45, 0.75), clumps=0.14, membrane=0.06, pink=0.25,
        body=(0.2, 0.45),
    ),
    "degenerated": Kind(
        class_name="normal", shape="polygon", cell_um=(28, 48), aspect=(1.0, 1.5), nucleus=(5.0, 8.0),
        nucleus_aspect=(1.1, 1.8), irregularity=0.06, density=(1.05, 1.5), clumps=0.1, membrane=0.0, pink=0.5,
        body=(0.25, 0.5), wrinkles=8, granules=0.3, halo=0.3,
    ),
    "asc-us": Kind(
        class_name="ASC-US", shape="polygon", cell_um=(38, 56), aspect=(1.0, 1.4), nucleus=(11.8, 13.8),
        nucleus_aspect=(1.05, 1.4), irregularity=0.03, density=(0.7, 0.92), clumps=0.24, membrane=0.12, pink=0.3,
        body=(0.45, 0.85), folds=0.35, wrinkles=5,
    ),
    "lsil": Kind(
        class_name="LSIL", shape="polygon", cell_um=(38, 56), aspect=(1.0, 1.4), nucleus=(14.0, 18.0),
        nucleus_aspect=(1.05, 1.45), irregularity=0.055, density=(0.9, 1.2), clumps=0.3, membrane=0.1, pink=0.4,
        body=(0.6, 1.0), folds=0.15, wrinkles=4, halo=0.55, two_nuclei=0.2,
    ),
    "hsil": Kind(
        class_name="HSIL", shape="round", cell_um=(14, 24), aspect=(1.0, 1.5), nucleus=(0.64, 0.8), nucleus_unit="cell",
        nucleus_aspect=(1.05, 1.45), irregularity=0.07, density=(0.95, 1.35), clumps=0.45, membrane=0.2, pink=0.15,
        body=(0.6, 1.1), off_centre=0.06,
    ),
    "agc": Kind(
        class_name="AGC", shape="column", cell_um=(13, 18), aspect=(1.7, 2.5), nucleus=(8.5, 11.5),
        nucleus_aspect=(1.4, 2.0), irregularity=0.03, density=(0.72, 1.05), clumps=0.36, membrane=0.16, pink=0.1,
        body=(0.5, 0.9), nucleoli=0.35,
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Nucleus:
    """One nucleus; its stain as in `Kind`.

    outline    (n, 2) float64, slide px on a grid of 1/16
    nucleoli   (k, 3) float64, x y radius, slide px
    texture    place in the slide's random fields
    """

    outline: F64
    density: float
    clumps: float
    membrane: float
    nucleoli: F64
    texture: int


@dataclass(frozen=True, slots=True, eq=False)
class Cell:
    """One cell as it is rendered and annotated. Outlines (n, 2) float64, slide px on a grid of 1/16.

    flap      the part folded over the rest, or None
    halo      the cleared zone around the nucleus of a koilocyte, or None
    creases   lines (k, 2) of denser cytoplasm
    dye       (3,) float32, optical density of the cytoplasm at thickness 1; `body` is its thickness, `clearing` how
              much of it the halo lacks
    defocus_um  the cell lies above or below the focal plane: standard deviation of its blur, µm
    texture   place in the slide's random fields
    """

    cell_id: str
    class_name: str
    kind: str
    outline: F64
    nuclei: tuple[Nucleus, ...]
    flap: F64 | None
    halo: F64 | None
    creases: tuple[F64, ...]
    dye: F32
    body: float
    granules: float
    clearing: float
    defocus_um: float
    texture: int


def draw_cell(
    rng: np.random.Generator,
    cell_id: str,
    kind_name: str,
    at: F64,
    mpp: float,
    stain: Stain,
    *,
    axis: float | None = None,
) -> Cell:
    """A cell of the kind with its nucleus near `at` (2,), slide px.

    `axis`: direction of its length, radians; None: any. Nuclei lie inside the cell.
    """
    kind = KINDS[kind_name]
    axis = float(rng.uniform(0, 2 * np.pi)) if axis is None else axis
    body, aspect = _body(rng, kind, axis)
    diameter_um = 2 * np.sqrt((body.radii**2).mean())
    stars = _nuclei(rng, kind, diameter_um, aspect, axis)
    for star in stars:
        body = body.grown_around(star, RIM_UM)

    outline, flap = body.vertices, None
    if rng.random() < kind.folds:
        outline, flap = _fold(rng, outline, stars)
    biggest = max(stars, key=lambda star: star.reach)
    has_halo = rng.random() < kind.halo
    halo = _halo(rng, biggest, body) if has_halo else None
    creases = tuple(_creases(rng, kind, body))

    def slide_from_cell(points: F64) -> F64:
        return np.asarray(np.round((at + points / mpp) * GRID) / GRID)

    return Cell(
        cell_id=cell_id,
        class_name=kind.class_name,
        kind=kind_name,
        outline=slide_from_cell(outline),
        nuclei=tuple(_stained(rng, kind, star, slide_from_cell, mpp) for star in stars),
        flap=None if flap is None else slide_from_cell(flap),
        halo=None if halo is None else slide_from_cell(halo),
        creases=tuple(slide_from_cell(line) for line in creases),
        dye=_dye(rng, kind, stain),
        body=float(rng.uniform(*kind.body)),
        granules=float(rng.random() < kind.granules) * float(rng.uniform(0.3, 1.0)),
        clearing=float(rng.uniform(0.45, 0.78)),
        defocus_um=float(rng.uniform(0.25, 0.9)) if rng.random() < DEFOCUSED_FRACTION else 0.0,
        texture=int(rng.integers(2**40)),
    )


def _body(rng: np.random.Generator, kind: Kind, axis: float) -> tuple[Star, float]:
    """The cell's outline in µm around the origin, and its axis ratio."""
    diameter, aspect = rng.uniform(*kind.cell_um), float(rng.uniform(*kind.aspect))
    if kind.shape == "polygon":
        return polygonal_outline(rng, diameter, aspect), aspect
    return round_outline(rng, diameter, aspect, axis=axis), aspect


def _nuclei(rng: np.random.Generator, kind: Kind, cell_um: float, cell_aspect: float, axis: float) -> list[Star]:
    """One nucleus, or two that touch, in µm."""
    diameter = rng.uniform(*kind.nucleus) * (cell_um if kind.nucleus_unit == "cell" else 1.0)
    count = 2 if rng.random() < kind.two_nuclei else 1
    stars = []
    for number in range(count):
        size = diameter * (1.0 if count == 1 else rng.uniform(0.72, 0.85))
        star = nucleus_outline(rng, size, rng.uniform(*kind.nucleus_aspect), kind.irregularity)
        if kind.shape == "column":
            star = _turned(star, axis)
            centre = np.array([np.cos(axis), np.sin(axis)]) * cell_um * rng.uniform(-0.18, 0.05)
        elif count == 2:
            direction = np.array([np.cos(axis), np.sin(axis)])
            centre = direction * (star.reach * 1.03) * (1 if number else -1)
        else:
            centre = rng.normal(0, kind.off_centre, 2) * max(0.0, (cell_um - size) / 2)
        stars.append(Star(centre, star.radii))
    return stars


def _turned(star: Star, axis: float) -> Star:
    """The same shape with its longest radius along `axis`, to the nearest vertex."""
    n = len(star.radii)
    longest = int(np.argmax(star.radii + np.roll(star.radii, n // 2)))
    return Star(star.centre, np.roll(star.radii, round(axis / (2 * np.pi) * n) - longest))


def _fold(rng: np.random.Generator, outline: F64, stars: list[Star]) -> tuple[F64, F64 | None]:
    """The outline after folding an edge over, where that leaves every nucleus free; else the outline as it was."""
    angle = rng.uniform(0, 2 * np.pi)
    normal = np.array([np.cos(angle), np.sin(angle)])
    heights = outline @ normal
    nearest = max(float((star.vertices @ normal).max()) for star in stars) + 2 * RIM_UM
    line = heights.max() - rng.uniform(0.08, 0.3) * (heights.max() - heights.min()) / 2
    if line <= nearest:
        return outline, None
    result = folded(outline, normal * line, normal)
    return (outline, None) if result is None else result


def _halo(rng: np.random.Generator, nucleus: Star, body: Star) -> F64:
    """A cleared zone with an uneven, sharp border, inside the cell."""
    zone = polygonal_outline(rng, 2 * nucleus.reach * rng.uniform(1.45, 1.9), 1.2, points=40)
    # The largest of these factors that keeps a vertex inside the cell, then evened out, so that the wall bends
    # instead of jumping.
    factors = np.array([0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    room = [body.depth(nucleus.centre + zone.vertices * factor) > HALO_WALL_UM for factor in factors]
    fit = factors[np.maximum(np.sum(room, axis=0) - 1, 0)]
    radii = zone.radii * np.minimum(fit, (np.roll(fit, 1) + fit + np.roll(fit, -1)) / 3)
    return Star(nucleus.centre, radii).vertices


def _creases(rng: np.random.Generator, kind: Kind, body: Star) -> list[F64]:
    """Wrinkles that start near the border and run along it or across."""
    lines = []
    for _ in range(int(rng.integers(0, kind.wrinkles + 1))):
        angle = rng.uniform(0, 2 * np.pi)
        radius = float(body.radii[int(angle / (2 * np.pi) * len(body.radii)) % len(body.radii)])
        start = np.array([np.cos(angle), np.sin(angle)]) * radius * rng.uniform(0.55, 0.95)
        heading = angle + np.pi / 2 + rng.normal(0, 0.6)
        lines.append(crease(rng, start, heading, radius * rng.uniform(0.35, 1.5), 0.35))
    return lines


def _dye(rng: np.random.Generator, kind: Kind, stain: Stain) -> F32:
    """The cell's own mixture: pink cells between eosin and orange, the others between light green and violet."""
    share = np.float32(rng.beta(0.8, 2.5))
    if rng.random() < kind.pink:
        return np.asarray(stain.eosin * (1 - share) + stain.orange * share, dtype=np.float32)
    return np.asarray(stain.light_green * (1 - share) + stain.violet * share, dtype=np.float32)


def _stained(
    rng: np.random.Generator, kind: Kind, star: Star, slide_from_cell: Callable[[F64], F64], mpp: float
) -> Nucleus:
    count = int(rng.integers(1, 4)) if rng.random() < kind.nucleoli else 0
    turn, out = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.1, 0.55, count) * float(star.radii.min())
    places = slide_from_cell(star.centre + np.stack([np.cos(turn), np.sin(turn)], axis=1) * out[:, None])
    return Nucleus(
        outline=slide_from_cell(star.vertices),
        density=float(rng.uniform(*kind.density)),
        clumps=kind.clumps * float(rng.uniform(0.8, 1.2)),
        membrane=kind.membrane * float(rng.uniform(0.7, 1.3)),
        nucleoli=np.column_stack([places, rng.uniform(0.5, 0.9, count) / mpp]),
        texture=int(rng.integers(2**40)),
    )
