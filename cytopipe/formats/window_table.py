"""The windows that another program ran its detector on: a CSV or Parquet table.

window_id     text or whole number    what the predictions refer to; once in the table
x0 y0 x1 y1   numbers                 level-0 px of the slide; half open
slide_id      text                    optional; without it all windows lie on one slide
others                                passed over
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import UserError
from cytopipe.formats.user_table import UserTable

EDGES = ("x0", "y0", "x1", "y1")
_FIX = "give window_id, x0, y0, x1, y1 in level-0 px"


@dataclass(frozen=True, slots=True, eq=False)
class WindowTable:
    """N windows. ids (N,) str, all different; slide_ids (N,) str, or None; boxes (N, 4) float64 level-0 px."""

    ids: NDArray[np.object_]
    slide_ids: NDArray[np.object_] | None
    boxes: NDArray[np.float64]


def read_windows(path: Path) -> WindowTable:
    """Read a table of windows. Raises UserError for a missing column, an id that is used twice, a window without area,
    and what is no number.
    """
    table = UserTable(path, text=("window_id", "slide_id"), numbers=EDGES, required=("window_id", *EDGES))
    if not len(table):
        raise UserError("holds no window", where=str(path), fix=_FIX)
    ids, boxes = table.text("window_id"), table.numbers(EDGES)
    flat = np.flatnonzero(~(boxes[:, 2:] > boxes[:, :2]).all(axis=1))
    if len(flat):
        x0, y0, x1, y1 = boxes[flat[0]]
        what = f"window {ids[flat[0]]!r} has no area: {x0:g}, {y0:g} to {x1:g}, {y1:g}"
        raise UserError(f"row {flat[0] + 1}: {what}", where=str(path), fix=_FIX)
    first: dict[str, int] = {}
    for row, window_id in enumerate(ids):
        if first.setdefault(window_id, row) != row:
            what = f"rows {first[window_id] + 1} and {row + 1} are both window {window_id!r}"
            raise UserError(what, where=str(path), fix="ids must differ, also between slides")
    return WindowTable(ids, table.text("slide_id") if "slide_id" in table else None, boxes)
