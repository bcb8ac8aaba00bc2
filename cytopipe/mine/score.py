"""How suspicious a window is: as suspicious as the most suspicious object in it.

Enters: window corners, centres of objects and their suspicion, px of one view.  Leaves: a number a window.
The top and not the sum: a sum prefers crowded fields of harmless cells to the one cell that matters.
An object is in the window that holds its centre, half open: of the windows of a grid exactly one.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def top_suspicion(corners: NDArray[np.int64], tile_px: int, centres: F64, suspicion: F64) -> F64:
    """The score (N,) of windows with corners (N, 2) x, y; 0 for a window without an object.

    centres (K, 2) x, y and suspicion (K,) of the objects; all lengths in px of the view.
    """
    score = np.zeros(len(corners))
    if not len(corners) or not len(centres):
        return score
    window, thing = shapely.STRtree(shapely.points(centres)).query(
        shapely.box(corners[:, 0], corners[:, 1], corners[:, 0] + tile_px, corners[:, 1] + tile_px)
    )
    inside = (centres[thing] < corners[window] + tile_px).all(axis=1)  # the query counts the far edges in as well
    np.maximum.at(score, window[inside], suspicion[thing[inside]])
    return score
