"""The result side of an evaluation: the objects that were located on one slide, from a results folder or a QuPath file.

Leaves: shapes and boxes in level-0 px, frame slide; where a QuPath file in frame bounds is read, its offset must be
told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.classes import ObjectClass, class_named
from cytopipe.core.errors import UserError
from cytopipe.formats.qupath import Frame
from cytopipe.formats.read import read_annotations
from cytopipe.formats.results import GEOJSON_NAME, read_results, shapes_of

SCORE_NAMES = ("Score", "score")  # what the score of a detection is called in QuPath files, ours first


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """N objects that were located on one slide.

    slide_id       of the results
    classes        the model's class list
    shapes         (N,) shapely, level-0 px
    boxes          (N, 4) float64 x0 y0 x1 y1 level-0 px
    class_index    (N,) int, index into `classes`
    class_score    (N,) float64: the certainty of that class; ranks the objects of a class
    score          (N,) float64: the certainty that an object of this kind is there; ranks the objects of a kind
    has_scores     False where the file tells none: all are 1, and an average precision would mean nothing
    bounds_offset  x, y of frame bounds in frame slide, level-0 px, as far as the results know it
    """

    slide_id: str
    classes: tuple[ObjectClass, ...]
    shapes: NDArray[np.object_]
    boxes: NDArray[np.float64]
    class_index: NDArray[np.intp]
    class_score: NDArray[np.float64]
    score: NDArray[np.float64]
    has_scores: bool
    bounds_offset: tuple[int, int]

    def __len__(self) -> int:
        return len(self.boxes)

    def take(self, keep: NDArray[np.bool_]) -> Located:
        """The objects named by a mask (N,)."""
        return Located(
            self.slide_id,
            self.classes,
            self.shapes[keep],
            self.boxes[keep],
            self.class_index[keep],
            self.class_score[keep],
            self.score[keep],
            self.has_scores,
            self.bounds_offset,
        )


def read_located(
    path: Path, *, frame: Frame = "bounds", bounds_offset: tuple[int, int] = (0, 0)
) -> tuple[Located, list[str]]:
    """Read the results folder of one slide, or a QuPath GeoJSON; and a line for each feature of the file that was left
    out.

    frame, bounds_offset   of a GeoJSON only: a results folder knows its own
    Raises UserError as `read_results` and `read_annotations` do.
    """
    if path.is_file():
        return _from_qupath(path, frame, bounds_offset)
    results = read_results(path)
    objects = results.objects
    own = objects.class_scores[np.arange(len(objects)), objects.class_index] if len(objects) else objects.score
    located = Located(
        results.slide_id,
        tuple(results.classes),
        shapes_of(objects),
        objects.xyxy,
        objects.class_index.astype(np.intp),
        own.astype(np.float64),
        objects.score.astype(np.float64),
        True,
        results.info.bounds_offset,
    )
    return located, []


def one_class_list(located: Sequence[Located]) -> tuple[ObjectClass, ...]:
    """The class list that all results share. Raises UserError when two differ: they come from different models."""
    first = located[0]
    for other in located[1:]:
        if other.classes != first.classes:
            names = [", ".join(c.name for c in one.classes) for one in (first, other)]
            raise UserError(
                f"were located by models of different classes ({names[0]} and {names[1]})",
                where=f"{first.slide_id} and {other.slide_id}",
                fix="evaluate them one by one",
            )
    return first.classes


def _from_qupath(path: Path, frame: Frame, bounds_offset: tuple[int, int]) -> tuple[Located, list[str]]:
    found = read_annotations(path, frame=frame, bounds_offset=bounds_offset)
    annotations, lines = found.objects, found.lines
    names = sorted({a.class_name for a in annotations})
    shapes = np.array([a.geometry for a in annotations], dtype=object)
    scores = [_score_of(a.attributes) for a in annotations]
    has_scores = bool(scores) and all(score is not None for score in scores)
    score = np.array(scores, np.float64) if has_scores else np.ones(len(annotations))
    slide_id = path.parent.name if path.name == GEOJSON_NAME else path.name.removesuffix(path.suffix)
    located = Located(
        slide_id,
        tuple(class_named(name) for name in names),
        shapes,
        shapely.bounds(shapes).reshape(-1, 4),
        np.array([names.index(a.class_name) for a in annotations], dtype=np.intp),
        score,
        score,
        has_scores,
        bounds_offset,
    )
    return located, lines


def _score_of(attributes: Mapping[str, str]) -> float | None:
    """The score among the attributes of a feature, None where there is none that is a finite number."""
    for name in SCORE_NAMES:
        try:
            value = float(attributes.get(name, "nan"))
        except ValueError:
            continue
        if np.isfinite(value):
            return value
    return None
