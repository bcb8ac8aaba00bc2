"""What is on or around a slide and was never part of the sample: ink, the slide's own edge, the border of the cover
glass, space that was not scanned.

Enters: mean colours and texture of cells of about 8 µm on a light slide, and its glass.  Leaves: the cells that show a
mark and nothing else. Three rules, each by form and look together, so that what is in doubt stays:

    flat    exactly one colour over a large area, and not that of glass: no camera gives that
    ink     dark, smooth, larger and longer than anything of the sample: a felt pen, a bar at the edge; with the soft
            border that leads from it to glass, as far as its colours lie between the two
    line    dark or bright against both its sides over a millimetre, nearly straight along an axis, and the same
            all along: where a cell lies on it it looks different, and is kept
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.slides.slide import U8

F32 = NDArray[np.float32]
Cells = NDArray[np.bool_]

CELL_UM = (5.0, 16.0)
"""Sides of cells, µm, for which numbers of cells below mean what they say [D]."""
FLAT_CELLS = 20
"""Least side of a flat area, cells [D]: 160 µm. JPEG flattens single blocks, not that much."""
NOT_GLASS_GREY = 8
"""A flat area that is nearer to glass than this, in all channels, is glass that the camera shows without noise [D]."""
NOT_WHITE_GREY = 2
"""... but pure white is void where glass is darker than that by so much in some channel [D]."""
INK_OD = 0.2
"""Least optical density of ink in its strongest channel [D]: a third less light; dried serum is paler."""
INK_CELLS = 3
"""Least breadth of ink, cells [D]: 24 µm without any grain, its soft borders not counted."""
INK_LONG_CELLS = 20
"""Least length of ink, cells [D]: 160 µm. Cytoplasm so long and so dark has nuclei and folds in it."""
BORDER_CELLS = 4
"""How far a soft border reaches around ink, cells [D]: it lies on the cover glass, out of focus."""
BETWEEN_GREY = 6.0
"""How far, in grey levels, a border's colour may be from a mixture of ink and glass [D]."""

LINE_CELLS = 128
"""Least length of a line, cells [D]: a millimetre."""
LINE_GROUP = 8
"""Rows that are summed before slopes are tried: steeper than one cell in so many no line is sought [D]: 7 degrees."""
LINE_SIDE = 5
"""A line differs from what lies so many cells to both sides of it [D]: 40 µm."""
LINE_GREY = 4
"""... by at least this many grey levels ..."""
LINE_SHARE = 0.8
"""... over at least this part of its length [D]: cells may lie on the rest."""
LINE_REACH = 4
"""Cells to both sides of its middle that a line may take [D]."""
LINE_LEAST_ROWS = 8
"""So many rows tell how a line looks at some distance from its middle [D]."""
LINE_SAME_GREY = 12
"""How far the look of a place may be from that of the line as a whole [D]; a nucleus is 50 and more."""


def find_marks(
    cells: U8, texture: F32, is_read: Cells, flat: Cells, glass: U8, texture_limit: float, *, cell_um: float | None
) -> Cells:
    """Cells (h, w) of a light slide that show a mark and nothing else.

    cells          (h, w, 3) mean colours
    texture        (h, w) standard deviation in them
    flat           (h, w) as `flat_areas` found them
    glass          (h, w, 3) glass as it would look there
    texture_limit  above it a cell has texture
    cell_um        side of a cell; where it is unknown or far from 8 µm only flat areas are found, since a red cell may
                   be as large there as a pen's stroke is elsewhere
    """
    if cell_um is None or not CELL_UM[0] <= cell_um <= CELL_UM[1]:
        return flat
    grey = np.asarray(cv2.cvtColor(cells, cv2.COLOR_RGB2GRAY), dtype=np.uint8)
    with ThreadPoolExecutor(2) as beside:
        across = beside.submit(lambda: _lines(np.ascontiguousarray(cells.swapaxes(0, 1)), np.ascontiguousarray(grey.T)))
        lines = beside.submit(_lines, cells, grey)
        solid = flat | _ink(cells, texture, is_read, flat, glass, texture_limit)
        found = solid | _borders(cells, solid, glass) if solid.any() else solid
        return np.asarray(found | lines.result() | across.result().T)


def flat_areas(cells: U8, texture: F32, is_read: Cells, level: NDArray[np.float64]) -> Cells:
    """Cells of large areas of exactly one colour that is not that of the slide's glass, `level` (3,)."""
    constant = is_read & (texture == 0)
    if constant.sum() < FLAT_CELLS * FLAT_CELLS:
        return np.zeros_like(constant)
    like_glass = cv2.inRange(cells, *_around(level, NOT_GLASS_GREY)) > 0
    like_white = cv2.inRange(cells, np.full(3, 255.0), np.full(3, 255.0)) > 0
    is_white_void = bool((255 - level >= NOT_WHITE_GREY).any())
    flat = constant & (~like_glass | (like_white & is_white_void))
    if flat.sum() < FLAT_CELLS:
        return np.zeros_like(constant)
    inside = slice(FLAT_CELLS, -FLAT_CELLS)
    return np.asarray(flat & _opened(_bordered(flat, FLAT_CELLS), FLAT_CELLS)[inside, inside])


def _ink(cells: U8, texture: F32, is_read: Cells, flat: Cells, glass: U8, texture_limit: float) -> Cells:
    """Dark and smooth areas that are broad and long. What lies beside a flat area or the slide's end goes on there."""
    dark = (_darkest(cells) < _darkest(glass) * np.float32(10.0**-INK_OD)) & is_read & (texture <= texture_limit)
    if dark.sum() < INK_CELLS * INK_LONG_CELLS:
        return np.zeros_like(dark)
    core = dark & _opened(_bordered(dark | flat, INK_CELLS), INK_CELLS)[INK_CELLS:-INK_CELLS, INK_CELLS:-INK_CELLS]
    if not core.any():
        return core
    _, labels, boxes, _ = cv2.connectedComponentsWithStats(core.view(np.uint8), connectivity=8)
    is_long = np.hypot(boxes[:, cv2.CC_STAT_WIDTH], boxes[:, cv2.CC_STAT_HEIGHT]) >= INK_LONG_CELLS
    is_long[0] = False
    return np.asarray(is_long[labels])


def _around(level: NDArray[np.float64], grey: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return np.clip(level - grey, 0, 255), np.clip(level + grey, 0, 255)


def _darkest(rgb: U8) -> U8:
    red, green, blue = cv2.split(rgb)
    return np.asarray(cv2.min(cv2.min(red, green), blue), dtype=np.uint8)


def _borders(cells: U8, solid: Cells, glass: U8) -> Cells:
    """Cells beside ink or a flat area whose colour is a mixture of its own and of glass. Looked for around each solid
    area by itself: most of a slide is far from any."""
    found = np.zeros_like(solid)
    side = 2 * BORDER_CELLS + 1
    near = cv2.dilate(solid.view(np.uint8), np.ones((side, side), np.uint8))
    _, _, boxes, _ = cv2.connectedComponentsWithStats(near, connectivity=8)
    for left, top, width, height, _ in boxes[1:].tolist():
        rows = slice(max(0, top - BORDER_CELLS), top + height + BORDER_CELLS)
        columns = slice(max(0, left - BORDER_CELLS), left + width + BORDER_CELLS)
        found[rows, columns] |= _borders_around(cells[rows, columns], solid[rows, columns], glass[rows, columns])
    return found


def _borders_around(cells: U8, solid: Cells, glass: U8) -> Cells:
    """`_borders` in one part of the slide.

    Light is mixed where a border is blurred, density where ink thins out: either will do.
    """
    side = 2 * BORDER_CELLS + 1
    weight = cv2.blur(solid.astype(np.float32), (side, side), borderType=cv2.BORDER_CONSTANT)
    rows, columns = np.nonzero((weight > 0.5 / side**2) & ~solid)
    sums = cv2.blur(cells * solid[..., None].astype(np.float32), (side, side), borderType=cv2.BORDER_CONSTANT)
    ink = sums[rows, columns] / weight[rows, columns][:, None]
    seen, empty = cells[rows, columns].astype(np.float32), glass[rows, columns].astype(np.float32)
    mixed = empty + _share(seen - empty, ink - empty) * (ink - empty)
    thinned = np.log((ink + 1) / (empty + 1))
    thin = (empty + 1) * np.exp(_share(np.log((seen + 1) / (empty + 1)), thinned) * thinned) - 1
    apart = np.minimum(np.abs(seen - mixed).max(axis=1), np.abs(seen - thin).max(axis=1))
    found = np.zeros_like(solid)
    found[rows, columns] = apart <= BETWEEN_GREY
    return found


def _share(seen: NDArray[Any], whole: NDArray[Any]) -> F32:
    """How far `seen` (n, 3) has come along `whole` (n, 3), 0 to 1, (n, 1)."""
    square = np.maximum((whole * whole).sum(axis=1), 1e-6)
    return np.asarray(np.clip((seen * whole).sum(axis=1) / square, 0, 1)[:, None], dtype=np.float32)


def _lines(cells: U8, grey: U8) -> Cells:
    """Lines that run along the first axis, in strips of `LINE_CELLS` rows."""
    found = np.zeros(grey.shape, np.bool_)
    height, width = grey.shape
    if height < LINE_CELLS or width < 4 * LINE_SIDE:
        return found
    starts = [*range(0, height - LINE_CELLS, LINE_CELLS), height - LINE_CELLS]
    groups = np.empty((len(starts), LINE_CELLS // LINE_GROUP, width), np.uint8)
    for number, start in enumerate(starts):
        ridges = _ridges(grey[start : start + LINE_CELLS])
        groups[number] = ridges.reshape(-1, LINE_GROUP, width).sum(axis=1, dtype=np.uint8)
    for number, column, slope in _straight(groups):
        rows = slice(starts[number], starts[number] + LINE_CELLS)
        _take_line(found[rows], cells[rows], column, slope)
    return found


def _ridges(grey: U8) -> U8:
    """1 where a cell is darker, or brighter, than both cells `LINE_SIDE` beside it in its row."""
    middle, left, right = grey[:, LINE_SIDE:-LINE_SIDE], grey[:, : -2 * LINE_SIDE], grey[:, 2 * LINE_SIDE :]
    darker = cv2.subtract(cv2.min(left, right), middle)
    brighter = cv2.subtract(middle, cv2.max(left, right))
    ridges = np.zeros_like(grey)
    ridges[:, LINE_SIDE:-LINE_SIDE] = (darker >= LINE_GREY) | (brighter >= LINE_GREY)
    return ridges


def _straight(groups: U8) -> list[tuple[int, int, float]]:
    """The strips (n, g, width) of summed rows that hold a line: which, its column at the top, its slope in columns a
    row."""
    strips, count, width = groups.shape
    best, slopes = np.zeros((strips, width), np.uint8), np.zeros((strips, width), np.int8)
    for shift in range(-count, count + 1):  # columns over the whole strip
        votes = np.zeros((strips, width), np.uint8)
        for number in range(count):
            moved = round(shift * (number + 0.5) / count)
            low, high = max(0, -moved), min(width, width - moved)
            votes[:, low:high] += groups[:, number, low + moved : high + moved]
        better = votes > best
        best[better], slopes[better] = votes[better], shift
    lines = []
    for strip in np.flatnonzero(best.max(axis=1) >= LINE_SHARE * LINE_CELLS).tolist():
        left = best[strip]
        while left.max() >= LINE_SHARE * LINE_CELLS:
            column = int(left.argmax())
            lines.append((strip, column, int(slopes[strip, column]) / LINE_CELLS))
            left[max(0, column - LINE_REACH) : column + LINE_REACH + 1] = 0
    return lines


def _take_line(found: Cells, cells: U8, column: int, slope: float) -> None:
    """Mark, in a strip, the places of a line that look as most of it does.

    A line passes the grid at any part of a cell: its look is a function of the distance from its middle, and is
    gathered from all rows in steps of a quarter of a cell.
    """
    rows = np.arange(len(cells))
    middle = _middle(cells, rows, column + slope * (rows + 0.5))
    columns = np.round(middle).astype(int)[:, None] + np.arange(-LINE_REACH, LINE_REACH + 1)[None]
    is_inside = (columns >= 0) & (columns < cells.shape[1])
    columns = np.clip(columns, 0, cells.shape[1] - 1)
    look = cells[rows[:, None], columns].astype(np.float32)
    step = np.round((columns - middle[:, None] + LINE_REACH + 1) * 4).astype(int).clip(0, 8 * LINE_REACH + 8)
    met = np.array([at for at in range(8 * LINE_REACH + 9) if (step == at).sum() >= LINE_LEAST_ROWS])
    if len(met) < 2:
        return
    medians = np.array([np.median(look[step == at], axis=0) for at in met])
    usual = np.column_stack([np.interp(np.arange(8 * LINE_REACH + 9), met, medians[:, c]) for c in range(3)])
    slack = np.minimum(np.abs(np.gradient(usual, axis=0)), LINE_SAME_GREY)  # an eighth of a cell aside is no difference
    apart = np.abs(look - usual[step]) - slack[step]
    same = (apart.max(axis=2) <= LINE_SAME_GREY).all(axis=1)
    chosen = same[:, None] & is_inside
    found[np.broadcast_to(rows[:, None], columns.shape)[chosen], columns[chosen]] = True


def _middle(cells: U8, rows: NDArray[np.intp], near: NDArray[Any]) -> NDArray[np.float64]:
    """The middle column of a line in each row, to a part of a cell: a straight line through where it is strongest."""
    columns = np.round(near).astype(int)[:, None] + np.arange(-LINE_SIDE, LINE_SIDE + 1)[None]
    columns = np.clip(columns, 0, cells.shape[1] - 1)
    grey = cells[rows[:, None], columns].astype(np.float64).mean(axis=2)
    strength = np.abs(grey - (grey[:, :1] + grey[:, -1:]) / 2)
    strength *= strength > strength.max(axis=1, keepdims=True) / 2
    centre = (strength * columns).sum(axis=1) / np.maximum(strength.sum(axis=1), 1e-6)
    off = centre - near
    usual = np.abs(off - np.median(off)) <= 1.0  # rows with a cell on the line say nothing of the line
    slope, start = np.polyfit(rows[usual], centre[usual], 1)
    return np.asarray(start + slope * rows)


def _bordered(cells: Cells, side: int) -> Cells:
    """With so many cells around the slide set: what lies at its end may go on there."""
    return np.asarray(np.pad(cells, side, constant_values=True))


def _opened(cells: Cells, side: int) -> Cells:
    """What a square of that side fits into."""
    kernel = np.ones((side, side), np.uint8)
    return np.asarray(cv2.morphologyEx(cells.view(np.uint8), cv2.MORPH_OPEN, kernel, borderValue=0).view(np.bool_))
