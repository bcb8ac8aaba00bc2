"""The stitching rule (DESIGN 6): which of the objects that overlapping windows report are kept, dropped or joined.

Enters: for each window that was run, its views.
Leaves: objects in the same frame, px at the model's mpp with the origin at the slide's corner.
What is connected is decided once no later row of windows can touch it: memory depends on the width of such a row.

Objects come in one order, whatever the order and the batches in which windows report: by the row of windows in which
the representative was seen, then by y0, x0. So what is given first can be written at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.boxes import box_areas
from cytopipe.core.objects import JOINED, TRUNCATED, Objects, concatenate, no_objects
from cytopipe.infer.stitching.clusters import Pairs, clusters
from cytopipe.infer.stitching.order import canonical_order, order_by
from cytopipe.infer.stitching.overlap import SAME_IOU, clipped, common_boxes, paired_iou, touching_pairs
from cytopipe.infer.stitching.views import Views
from cytopipe.infer.windows import GUARD_PX, WindowSet

F64 = NDArray[np.float64]
Index = NDArray[np.intp]
Mask = NDArray[np.bool_]


class Stitcher:
    """Takes windows in any order, and gives objects once the rows of windows that can touch them are complete.

    `ran` (N,) bool: which of the windows are run, known beforehand; None means all. Each of them is added once, also
    when it saw nothing, or else left out. `same_iou`: from this overlap on two views may be one object.
    """

    def __init__(
        self, windows: WindowSet, guard_px: float = GUARD_PX, ran: Mask | None = None, *, same_iou: float = SAME_IOU
    ) -> None:
        if not guard_px > 0:
            raise ValueError(f"Stitcher: guard band of {guard_px} px")
        if not 0 < same_iou <= 1:
            raise ValueError(f"Stitcher: same_iou {same_iou}")
        self._windows = windows
        self._guard_px = guard_px
        self._same_iou = same_iou
        self._y0 = windows.y0
        self._ran = np.ones(len(windows), bool) if ran is None else np.array(ran, dtype=bool)
        if self._ran.shape != (len(windows),):
            raise ValueError(f"Stitcher: {len(windows)} windows, but `ran` is of shape {self._ran.shape}")
        self._due = self._ran.copy()  # windows that have not reported yet
        self._classes: int | None = None  # columns of class_scores, known from the first views
        self._waiting: dict[int, Views] = {}  # views of rows that are not complete, by window
        self._views = _Pool.merged([], 0)  # views of complete rows whose twins may still come
        self._pieces = _Pool.merged([], 0)  # pieces (step 5) whose other pieces may still come
        self._final = no_objects(0)  # objects that one of an earlier row may still come before

    def add(self, window: int, views: Views) -> None:
        """What one window reports. Raises ValueError if it was not to be run, has reported, or has other classes."""
        self._report(window)
        classes = views.class_scores.shape[1]
        if self._classes not in (None, classes):
            raise ValueError(f"window {window} reports {classes} classes, others {self._classes}")
        self._classes = classes
        self._waiting[window] = views

    def leave_out(self, window: int) -> None:
        """A window that was to be run and could not be, say for unreadable pixels: it counts as skipped.

        Its neighbours' cut views are kept then. An empty report would drop them: "K saw the place uncut" (step 4).
        """
        self._report(window)
        self._ran[window] = False

    def completed(self) -> Objects:
        """The next objects: final, since no window that is still due can touch them, and before all that may follow."""
        border = self._border()
        above = {window: self._waiting.pop(window) for window in sorted(self._waiting) if self._y0[window] < border}
        classes = self._classes or 0
        self._views = _Pool.merged([self._views, _Pool.of_windows(above)], classes)
        distance = self._windows.inner_distance(self._views.objects.xyxy, self._views.objects.window)
        twins = self._twins(self._views.objects, distance)
        undecided = twins.spread(self._may_have_later_twins(self._views.objects, border))
        whole, pieces = self._represented(self._views, distance, twins, ~undecided)
        self._views = self._views.take(undecided)

        self._pieces = _Pool.merged([self._pieces, pieces], classes)
        pairs = self._pairs_of_pieces(self._pieces.objects)
        undecided = pairs.spread(self._may_have_later_pieces(self._pieces.objects, border))
        joined = self._joined(self._pieces.objects, pairs, ~undecided)
        self._pieces = self._pieces.take(undecided)
        final = concatenate([table for table in (self._final, whole, joined) if len(table)], classes)
        is_next = self._row_of(final) < self._first_open_row()
        self._final = final.take(~is_next)
        return final.take(self._in_order(final, np.flatnonzero(is_next)))

    @property
    def least_y0(self) -> float:
        """Where the uppermost object begins that `completed` may still give, now that it was called; inf if none may.

        A view lies in its window, and what is joined begins where one of its pieces does.
        """
        due = self._y0[np.flatnonzero(self._due)[:1]].astype(np.float64)
        boxes = [table.xyxy for table in (self._final, self._views.objects, self._pieces.objects)]
        boxes += [views.xyxy for views in self._waiting.values()]
        return float(np.concatenate([due, *(xyxy[:, 1] for xyxy in boxes)]).min(initial=np.inf))

    def finish(self) -> Objects:
        """The objects that are left once every window has reported. Raises ValueError while some have not."""
        if self._due.any():
            raise ValueError(f"stitching ends while windows {np.flatnonzero(self._due)[:8].tolist()} are due")
        return self.completed()

    # ---- step 2: twins

    def _twins(self, table: Objects, distance: F64) -> Pairs:
        """Pairs of views of two windows, each settled in both windows, with IoU >= same_iou of the unclipped views.

        distance (N,): that of each view to the inner edges of its own window.
        """
        settled_px = self._guard_px / 2
        rows = np.flatnonzero(distance >= settled_px)
        shared = rows[self._windows_run(table.xyxy[rows], settled_px) >= 2]
        i, j = (shared[k] for k in touching_pairs(table.xyxy[shared], table.window[shared]))
        settled = np.ones(len(i), bool)
        for row, other in ((i, j), (j, i)):
            settled &= self._windows.inner_distance(table.xyxy[row], table.window[other]) >= settled_px
        i, j = i[settled], j[settled]
        iou = paired_iou(table.xyxy[i], table.geometry[i], table.xyxy[j], table.geometry[j], self._same_iou)
        same = iou >= self._same_iou
        return Pairs(i[same], j[same], iou[same])

    def _may_have_later_twins(self, table: Objects, border: float) -> Mask:
        """A window that starts at `border` or below can hold the view settled, and so its twin, or see it uncut."""
        return np.asarray(table.xyxy[:, 1] - border >= self._guard_px / 2, dtype=bool)

    # ---- steps 3 and 4: kept whole, or seen better elsewhere

    def _represented(self, views: _Pool, distance: F64, twins: Pairs, decided: Mask) -> tuple[Objects, _Pool]:
        """Of each decided cluster its representative: an object if it is whole, a piece if no window saw it uncut."""
        table = views.objects
        cluster = clusters(twins, table)
        in_company = np.bincount(cluster, minlength=len(table))[cluster] > 1
        rows = np.flatnonzero(in_company)
        keys = (table.window[rows], -distance[rows], cluster[rows])
        rows = rows[np.lexsort(keys)]  # in each cluster: largest d, then lowest window, first
        best = np.sort(np.concatenate([np.flatnonzero(~in_company), rows[_firsts(cluster[rows])]]))
        best = best[decided[best]]  # what is connected is decided or undecided as one
        whole = distance[best] >= self._guard_px
        elsewhere = self._windows_run(table.xyxy[best], self._guard_px) >= 1  # not its own: it is nearer than g there
        return table.take(best[whole]), views.take(best[~whole & ~elsewhere])

    def _windows_run(self, xyxy: F64, distance_px: float) -> Index:
        """How many of the windows that are run hold each box at d >= distance_px, (N,)."""
        return np.asarray(self._windows.count_at_distance(xyxy, distance_px, self._ran), dtype=np.intp)

    # ---- step 5: larger than the overlap allows

    def _pairs_of_pieces(self, table: Objects) -> Pairs:
        """Pairs of pieces of two windows, clipped to what both windows show, with IoU >= same_iou."""
        i, j = touching_pairs(table.xyxy, table.window)
        boxes = self._windows.boxes
        shown = common_boxes(boxes[table.window[i]], boxes[table.window[j]])
        meet = box_areas(shown) > 0
        i, j, shown = i[meet], j[meet], shown[meet]
        boxes_i, geometry_i = clipped(table.xyxy[i], table.geometry[i], shown)
        boxes_j, geometry_j = clipped(table.xyxy[j], table.geometry[j], shown)
        iou = paired_iou(boxes_i, geometry_i, boxes_j, geometry_j, self._same_iou)
        same = iou >= self._same_iou
        return Pairs(i[same], j[same], iou[same])

    def _may_have_later_pieces(self, table: Objects, border: float) -> Mask:
        """A later window may show a part of it, or an undecided view that touches it may turn out to be a piece."""
        later = np.asarray(table.xyxy[:, 3] > border, dtype=bool)
        undecided = shapely.STRtree(shapely.box(*self._views.objects.xyxy.T))
        later[undecided.query(shapely.box(*table.xyxy.T))[0]] = True
        return later

    def _joined(self, table: Objects, pairs: Pairs, decided: Mask) -> Objects:
        """Decided pieces as objects: those of one cluster united and flagged JOINED, single ones flagged TRUNCATED."""
        rows = np.flatnonzero(decided)
        cluster = clusters(pairs, table)[rows]
        area = np.where(shapely.is_missing(table.geometry), box_areas(table.xyxy), shapely.area(table.geometry))[rows]
        order = np.lexsort((rows, -area, cluster))  # in each cluster: the largest piece first
        first = _firsts(cluster[order])
        objects = table.take(rows[order[first]])
        for k, pieces in enumerate(np.split(rows[order], first[1:])):
            if len(pieces) > 1:
                objects.flags[k] = JOINED
                objects.xyxy[k] = [*table.xyxy[pieces, :2].min(axis=0), *table.xyxy[pieces, 2:].max(axis=0)]
                known = not shapely.is_missing(table.geometry[pieces]).any()
                objects.geometry[k] = shapely.union_all(table.geometry[pieces]) if known else None
            elif len(pieces) == 1:
                objects.flags[k] = TRUNCATED
        return objects

    # ---- the order of what is given

    def _row_of(self, table: Objects) -> Index:
        return np.asarray(self._windows.row_of(table.window), dtype=np.intp)

    def _first_open_row(self) -> int:
        """The first row of windows that may still give an object."""
        due = np.flatnonzero(self._due)
        first_due = int(self._windows.row_of(due[:1])[0]) if len(due) else len(self._windows)  # as good as infinity
        undecided = [self._row_of(pool.objects) for pool in (self._views, self._pieces)]
        return int(np.concatenate(undecided).min(initial=first_due))

    def _in_order(self, table: Objects, rows: Index) -> Index:
        """These rows by row of windows, y0, x0, then by all else that is a number."""
        x0, y0, x1, y1 = table.xyxy.T
        keys = (self._row_of(table), y0, x0, y1, x1, table.class_index, table.score, table.window)
        return rows[order_by([key[rows] for key in keys], enough=2)]

    # ---- what is due

    def _report(self, window: int) -> None:
        if not self._due[window]:
            raise ValueError(f"window {window} {'has reported already' if self._ran[window] else 'was not to be run'}")
        self._due[window] = False

    def _border(self) -> float:
        """Where the first row of windows begins that is not complete; inf once all are."""
        due = np.flatnonzero(self._due)
        return float(self._y0[due[0]]) if len(due) else np.inf


def stitch(
    windows: WindowSet, views: Mapping[int, Views], guard_px: float = GUARD_PX, *, same_iou: float = SAME_IOU
) -> Objects:
    """All at once: the objects of the windows named in `views`, taken for all that were run."""
    ran = np.zeros(len(windows), bool)
    ran[list(views)] = True
    stitcher = Stitcher(windows, guard_px, ran, same_iou=same_iou)
    for window, seen in views.items():
        stitcher.add(window, seen)
    return stitcher.finish()


@dataclass(frozen=True, slots=True, eq=False)
class _Pool:
    """Views of several windows, ordered by window and, in a window, canonically: never by who came first."""

    objects: Objects
    serial: NDArray[np.int64]  # (N,) the row's place in its window's canonical order

    @staticmethod
    def of_windows(reported: Mapping[int, Views]) -> _Pool:
        """What windows report, given in the order of their numbers. All at once: most report little."""
        seen = {window: views for window, views in reported.items() if len(views)}
        if not seen:
            return _Pool.merged([], 0)
        counts = np.array([len(views) for views in seen.values()], np.int64)
        column = {name: np.concatenate([getattr(v, name) for v in seen.values()]) for name in Views.__slots__}
        number, flags = np.repeat(np.array([*seen], np.int32), counts), np.zeros(counts.sum(), np.uint8)
        table = Objects(**column, flags=flags, window=number)
        first: NDArray[np.int64] = np.repeat(np.cumsum(counts) - counts, counts)
        return _Pool(table.take(canonical_order(table)), np.arange(len(table)) - first)

    @staticmethod
    def merged(pools: list[_Pool], classes: int) -> _Pool:
        pools = [pool for pool in pools if len(pool.serial)]
        objects = concatenate([pool.objects for pool in pools], classes)
        serial = np.concatenate([np.zeros(0, np.int64), *(pool.serial for pool in pools)])
        window = objects.window
        if (np.diff(window) >= 0).all() and (np.diff(serial)[np.diff(window) == 0] >= 0).all():
            return _Pool(objects, serial)  # nearly always: what waits is of rows above
        order = np.lexsort((serial, window))
        return _Pool(objects.take(order), serial[order])

    def take(self, index: Index | Mask) -> _Pool:
        return _Pool(self.objects.take(index), self.serial[index])


def _firsts(groups: Index) -> Index:
    """Where each run of equal values begins."""
    return np.flatnonzero(np.diff(groups, prepend=-1))
