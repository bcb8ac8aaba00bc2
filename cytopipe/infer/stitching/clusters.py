"""Who joins whom: greedy one-to-one pairs in the rule's order, and clusters that refuse two views of one window."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.objects import Objects
from cytopipe.infer.stitching.order import order_by

Index = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """Candidate pairs: rows i < j of a table (P,), and their IoU (P,) float64."""

    i: Index
    j: Index
    iou: NDArray[np.float64]

    def spread(self, mark: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """`mark` (N,) bool, carried along the pairs to all that is connected with a marked row."""
        mark = mark.copy()
        while (lagging := mark[self.i] != mark[self.j]).any():
            mark[self.i[lagging]] = mark[self.j[lagging]] = True
        return mark

    def best_first(self, table: Objects) -> Pairs:
        """In the rule's order: IoU (high first), same class, score difference, (box, class, score); ties by row."""
        i, j = self.i, self.j
        paired = np.zeros(len(table), bool)
        paired[i] = paired[j] = True
        rows = np.flatnonzero(paired)
        rank = np.empty(len(table), np.intp)
        keys = (*table.xyxy[rows].T, table.class_index[rows], table.score[rows])
        rank[rows[order_by(keys, enough=1)]] = np.arange(len(rows))  # ties by row
        differ = table.class_index[i] != table.class_index[j]
        apart = np.abs(table.score[i].astype(np.float64) - table.score[j])
        order = order_by((-self.iou, differ, apart, rank[i], rank[j]), enough=3)
        return Pairs(i[order], j[order], self.iou[order])


def clusters(pairs: Pairs, table: Objects) -> Index:
    """The cluster of each row of `table`, (N,), named by one of its rows.

    A view gets at most one partner in each other window. A pair whose joint cluster would hold two views of one window
    is passed over.
    """
    parent: dict[int, int] = {}  # rows that were ever joined; the others are their own roots
    held: dict[int, set[int]] = {}  # root -> windows of its cluster
    taken: set[tuple[int, int]] = set()  # (row, other window): this row has its partner there

    def root(row: int) -> int:
        while (above := parent.get(row, row)) != row:
            parent[row] = parent.get(above, above)
            row = above
        return row

    cluster = np.arange(len(table), dtype=np.intp)
    often = np.bincount(np.concatenate([pairs.i, pairs.j]), minlength=len(table)) > 1
    alone = ~often[pairs.i] & ~often[pairs.j]  # neither has another candidate: nothing to decide, and so are most
    cluster[pairs.j[alone]] = pairs.i[alone]
    window = table.window.tolist()
    ordered = Pairs(pairs.i[~alone], pairs.j[~alone], pairs.iou[~alone]).best_first(table)
    for i, j in zip(ordered.i.tolist(), ordered.j.tolist(), strict=True):
        if (i, window[j]) in taken or (j, window[i]) in taken:
            continue
        taken |= {(i, window[j]), (j, window[i])}
        a, b = root(i), root(j)
        windows_a, windows_b = held.setdefault(a, {window[a]}), held.setdefault(b, {window[b]})
        if a != b and not windows_a & windows_b:
            windows_a |= windows_b
            parent[b] = a
    for row in parent:
        cluster[row] = root(row)
    return cluster
