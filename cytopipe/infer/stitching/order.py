"""Orders that do not depend on who came first: by several keys, and of the views that one window reports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.objects import Objects

Index = NDArray[np.intp]


def order_by(keys: Sequence[NDArray[Any]], enough: int) -> Index:
    """Rows (N,) by the first key, then the second, and so on; what ties in all stays as it stands.

    The first `enough` keys decide nearly always: the others are sorted by only if they do not.
    """
    order = np.lexsort(keys[:enough][::-1])
    return np.lexsort(keys[::-1]) if _tied(keys[:enough], order).any() else order


def canonical_order(table: Objects) -> Index:
    """The rows (N,) by window, and in a window by box, class, score, then geometry, class scores and measures: what
    still ties is equal in all."""
    keys = (table.window, *table.xyxy.T, table.class_index, table.score)
    order = order_by(keys, enough=3)
    ties = _tied(keys, order)
    if ties.any():
        group = np.concatenate([[0], np.cumsum(~ties)])  # same number: tied so far
        spelled = [_spelled(table, i) if tied else () for i, tied in zip(order, _in_a_tie(ties), strict=True)]
        order = order[sorted(range(len(order)), key=lambda k: (group[k], spelled[k]))]
    return order


def _tied(keys: Sequence[NDArray[Any]], order: Index) -> NDArray[np.bool_]:
    """Whether neighbours in `order` are equal in all keys, (N - 1,)."""
    tied = np.ones(max(len(order) - 1, 0), bool)
    for key in keys:
        if not tied.any():
            break
        tied &= key[order[1:]] == key[order[:-1]]
    return tied


def _in_a_tie(ties: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """From whether neighbours tie, (N - 1,), to whether each row ties with a neighbour, (N,)."""
    padded = np.concatenate([[False], ties, [False]])
    return np.asarray(padded[1:] | padded[:-1], dtype=bool)


def _spelled(table: Objects, i: int) -> tuple[bytes, ...]:
    geometry = table.geometry[i]
    outline = shapely.to_wkb(geometry.normalize()) if geometry is not None else b""
    return outline, table.class_scores[i].tobytes(), table.measures[i].tobytes()
