"""What a page says of a slide, gathered while its objects come: counts, areas, scores, where they lie, and which to
look at first.

Enters: objects in level-0 px, table by table.  Leaves: sums whose memory does not grow with the number of objects. They
are whole numbers, so that the same objects give the same page however they were cut into tables, and in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.classes import ObjectClass
from cytopipe.core.objects import FLAG_NAMES, Objects, concatenate, no_objects
from cytopipe.formats.results import Results, shapes_of, suspicion

KEPT = 400  # [D] suspects kept: twice what a page shows, so that a reader of the summary has room to choose
SLIDE_SUSPECTS = 20  # [D] see `SlideSummary.suspicion`
SUSPICIOUS_FROM = 0.5  # [D] an object counts as suspicious from here on
SCORE_BINS = 20  # bars of the score histogram over [0, 1]
DENSITY_PX = 512  # [D] longer side of the density grid: a smooth picture needs no more

_AREA_STEP_PX2 = 2.0**-10  # sums are kept in these steps: exact, whatever the order; 9e15 px² fit into 63 bits
_SCORE_STEP = 2.0**-24  # of scores and suspicions: the last bit of a float32 just below 1


@dataclass(frozen=True, slots=True, eq=False)
class Suspects:
    """Objects to look at, the most suspicious first.

    objects      N objects, level-0 px
    suspicion    (N,) float32
    object_ids   N ids, '' where they are unknown
    """

    objects: Objects
    suspicion: NDArray[np.float32]
    object_ids: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.objects)


class SlideSummary:
    """Sums over the objects of one slide; `add` tables of them, then read.

    classes       the list to which class_index points, C long
    mpp           level-0 µm/px along x and y, None where the slide has no resolution
    size          (w, h) level-0 px
    counts        (C,) int64, objects of each class
    score_counts  (C, SCORE_BINS) int64, objects of each class by score, over [0, 1]
    suspicious    objects of a suspicion of SUSPICIOUS_FROM or more
    flag_counts   flag -> objects that carry it
    """

    def __init__(self, classes: Sequence[ObjectClass], mpp: tuple[float, float] | None, size: tuple[int, int]) -> None:
        self.classes, self.mpp, self.size = tuple(classes), mpp, size
        self.counts = np.zeros(len(self.classes), np.int64)
        self.score_counts = np.zeros((len(self.classes), SCORE_BINS), np.int64)
        self.suspicious = 0
        self.flag_counts = dict.fromkeys(FLAG_NAMES, 0)
        self._area_steps = np.zeros(len(self.classes), np.int64)
        self._score_steps = np.zeros(len(self.classes), np.int64)
        shrink = min(1.0, DENSITY_PX / max(*size, 1))
        w, h = (max(1, round(side * shrink)) for side in size)
        self._density = np.zeros((2, h, w), np.int64)  # objects; their suspicion in steps
        self._suspects = Suspects(no_objects(len(self.classes)), np.zeros(0, np.float32), ())
        calm_kind = "nucleus" if any(c.kind != "nucleus" for c in self.classes) else ""
        self._shown_calm = np.array([c.kind != calm_kind for c in self.classes], bool)

    def add(self, objects: Objects, object_ids: Sequence[str] | None = None) -> None:
        """Count a table of objects in; `object_ids` are theirs, for the suspects to be named by.

        Raises ValueError if there are ids, but not one an object.
        """
        if object_ids is not None and len(object_ids) != len(objects):
            raise ValueError(f"SlideSummary.add: {len(object_ids)} ids for {len(objects)} objects")
        if not len(objects):
            return
        of_class = objects.class_index
        level = suspicion(objects.class_scores, self.classes, objects.score)
        self.counts += np.bincount(of_class, minlength=len(self.counts))
        edges = np.linspace(0.0, 1.0, SCORE_BINS + 1)[1:-1]
        np.add.at(self.score_counts, (of_class, np.searchsorted(edges, objects.score, side="right")), 1)
        self.suspicious += int((level >= SUSPICIOUS_FROM).sum())
        for bit in FLAG_NAMES:
            self.flag_counts[bit] += int(((objects.flags & bit) != 0).sum())
        np.add.at(self._area_steps, of_class, _steps(shapely.area(shapes_of(objects)), _AREA_STEP_PX2))
        np.add.at(self._score_steps, of_class, _steps(objects.score, _SCORE_STEP))
        self._add_density(objects, level)
        self._add_suspects(objects, level, object_ids)

    @property
    def total(self) -> int:
        """All objects."""
        return int(self.counts.sum())

    @property
    def has_suspicious_classes(self) -> bool:
        """Whether suspicion says more than the score does (DESIGN 5)."""
        return any(c.suspicious for c in self.classes)

    @property
    def area_px(self) -> NDArray[np.float64]:
        """(C,) the area of each class's objects together, level-0 px²; where two overlap it counts twice."""
        return self._area_steps * _AREA_STEP_PX2

    @property
    def mean_score(self) -> NDArray[np.float64]:
        """(C,) NaN for a class without objects."""
        return self._score_steps * _SCORE_STEP / np.where(self.counts == 0, np.nan, self.counts)

    @property
    def density(self) -> NDArray[np.float64]:
        """(h, w) objects by their centres, on a grid over the slide of at most DENSITY_PX."""
        return self._density[0].astype(np.float64)

    @property
    def suspicion_density(self) -> NDArray[np.float64]:
        """(h, w) the same grid, each object weighted by its suspicion."""
        return self._density[1] * _SCORE_STEP

    @property
    def suspicion(self) -> float:
        """How suspicious the slide is: the mean suspicion of its 20 most suspicious objects, missing ones count as 0.

        [D] Not the sum over all: a thousand normal cells of 0.02 each would outweigh ten lesion cells. Not the largest:
        one false alarm would put a slide on top. Lesions that matter show up as groups of cells, and twenty is within
        what a screener looks at before judging a slide.
        """
        return math.fsum(self._suspects.suspicion[:SLIDE_SUSPECTS].tolist()) / SLIDE_SUSPECTS

    def suspects(self, count: int, at_least: int = 0) -> Suspects:
        """The `count` most suspicious objects, KEPT at most; ties go by score, then by place (y0, x0), class and box.

        Objects without any suspicion fill up to `at_least`, nuclei only where there is no other kind in the class list:
        where cells are judged, only cells carry suspicion. A cell stands under the class that it was given, also where
        that is a normal one and its doubts put it here.
        """
        found = self._suspects
        some = int((found.suspicion > 0).sum())
        return _take(found, np.arange(min(count, max(some, at_least), len(found))))

    def _add_density(self, objects: Objects, level: NDArray[np.float32]) -> None:
        h, w = self._density.shape[1:]
        centres = (objects.xyxy[:, :2] + objects.xyxy[:, 2:]) / 2
        cells = np.clip(centres * (w / max(self.size[0], 1), h / max(self.size[1], 1)), 0, (w - 1, h - 1))
        place = tuple(cells.astype(np.intp)[:, ::-1].T)
        np.add.at(self._density[0], place, 1)
        np.add.at(self._density[1], place, _steps(level, _SCORE_STEP))

    def _add_suspects(self, objects: Objects, level: NDArray[np.float32], ids: Sequence[str] | None) -> None:
        wanted = (level > 0) | self._shown_calm[objects.class_index]
        if len(self._suspects) == KEPT:
            wanted &= level >= self._suspects.suspicion[-1]
        rows = np.flatnonzero(wanted)
        if not len(rows):
            return
        names = ("",) * len(objects) if ids is None else ids
        new = Suspects(objects.take(rows), level[rows], tuple(names[i] for i in rows))
        new = _take(new, _order(new)[:KEPT])  # before they are joined: a table may be large
        both = Suspects(
            concatenate([self._suspects.objects, new.objects], len(self.classes)),
            np.concatenate([self._suspects.suspicion, new.suspicion]),
            self._suspects.object_ids + new.object_ids,
        )
        self._suspects = _take(both, _order(both)[:KEPT])


def summarise(results: Results, size: tuple[int, int]) -> SlideSummary:
    """The summary of objects that are in memory already; `size` of the slide, (w, h) level-0 px."""
    summary = SlideSummary(results.classes, results.mpp, size)
    summary.add(results.objects, results.object_ids)
    return summary


def _order(of: Suspects) -> NDArray[np.intp]:
    """Rows by suspicion, score, place; what is equal in all of these in the order of the ids."""
    x0, y0, x1, y1 = of.objects.xyxy.T
    ids = np.array(of.object_ids, dtype=np.str_)
    return np.lexsort((ids, y1, x1, of.objects.class_index, x0, y0, -of.objects.score, -of.suspicion))


def _take(of: Suspects, rows: NDArray[np.intp]) -> Suspects:
    return Suspects(of.objects.take(rows), of.suspicion[rows], tuple(of.object_ids[i] for i in rows))


def _steps(values: NDArray[np.floating], step: float) -> NDArray[np.int64]:
    return np.rint(np.asarray(values, np.float64) / step).astype(np.int64)
