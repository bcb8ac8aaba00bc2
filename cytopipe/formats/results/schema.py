"""What a results folder says: its files' names, its facts, and the objects with their ids as values in memory.

Enters: `Objects` in frame slide, level-0 px.  Leaves: the same with what follows from them: sizes, suspicion, shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cytopipe.core.classes import ObjectClass
from cytopipe.core.objects import FLAG_NAMES, Objects
from cytopipe.core.shapes import centroids_and_measures

SCHEMA_VERSION = 2  # 2: measures of shape and pixels, size of the slide

TABLE_NAME = "objects.parquet"
GEOJSON_NAME = "objects.geojson"
COCO_NAME = "objects.coco.json"
CSV_NAME = "objects.csv"
LABELS_NAME = "labels.zarr"
RUN_NAME = "run.json"

OUTLINE_SLACK_PX = 64  # [D] how far above its box an outline may start: what is finished above is let go

FLAG_TEXTS = tuple(" ".join(name for bit, name in FLAG_NAMES.items() if flags & bit) for flags in range(256))
"""The text of each value of `Objects.flags`."""


class ResultsInfo(BaseModel):
    """What a results table says about itself, in its schema metadata."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: int = Field(ge=1, le=SCHEMA_VERSION, description="version of the table's layout")
    slide_id: str = Field(min_length=1, description="the slide on which the objects lie")
    classes: tuple[ObjectClass, ...] = Field(description="the model's classes, in the order of the score columns")
    mpp: tuple[float, float] | None = Field(
        description="level-0 µm/px along x and y; none where the slide says nothing"
    )
    bounds_offset: tuple[int, int] = Field(description="x, y of frame bounds in frame slide, level-0 px")
    size: tuple[int, int] | None = Field(None, description="width and height of level 0, px; none where unknown")

    @property
    def names(self) -> list[str]:
        """The names of the classes."""
        return [c.name for c in self.classes]


@dataclass(frozen=True, slots=True, eq=False)
class Results:
    """The objects of one slide, or a group of them, as they stand in its results folder.

    info         slide, classes, resolution
    objects      N objects, level-0 px, by (y0, x0, class)
    object_ids   N UUIDs as text
    """

    info: ResultsInfo
    objects: Objects
    object_ids: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.object_ids) != len(self.objects):
            raise ValueError(f"Results: {len(self.object_ids)} ids for {len(self.objects)} objects")

    @property
    def slide_id(self) -> str:
        """The slide on which the objects lie."""
        return self.info.slide_id

    @property
    def classes(self) -> tuple[ObjectClass, ...]:
        """The class list to which `objects.class_index` points."""
        return self.info.classes

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Level-0 µm/px along x and y, None where the slide has no resolution."""
        return self.info.mpp

    @property
    def suspicion(self) -> NDArray[np.float32]:
        """(N,) float32, see `suspicion`."""
        return suspicion(self.objects.class_scores, self.info.classes, self.objects.score)


@dataclass(frozen=True, eq=False)
class Group:
    """N objects that are written together, with what several formats need of them, worked out once.

    first     the row of the first of them in the table
    ids       (N, 36) uint8: UUIDs as ASCII
    """

    info: ResultsInfo
    first: int
    objects: Objects
    ids: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.objects)

    def for_thread(self) -> Group:
        """The same group in arrays of its own: while shapely works on an array of shapes, it is read-only to others."""
        return Group(self.info, self.first, self.objects.take(np.arange(len(self))), self.ids)

    def measure(self) -> dict[str, NDArray[Any]]:
        """Work out what several files need, and return it, for `know` of the same group in another thread."""
        return {name: getattr(self, name) for name in ("area_px", "form", "centroids", "suspicion")}

    def know(self, measured: dict[str, NDArray[Any]]) -> None:
        """Take over what `measure` has worked out."""
        self.__dict__.update(measured)  # where cached_property keeps it

    @cached_property
    def object_ids(self) -> tuple[str, ...]:
        """The ids as text."""
        text = self.ids.tobytes().decode("ascii")
        return tuple(text[i : i + 36] for i in range(0, len(text), 36))

    @cached_property
    def shapes(self) -> NDArray[np.object_]:
        """See `shapes_of`."""
        return shapes_of(self.objects)

    @cached_property
    def suspicion(self) -> NDArray[np.float32]:
        """See `suspicion`."""
        return suspicion(self.objects.class_scores, self.info.classes, self.objects.score)

    @cached_property
    def area_px(self) -> NDArray[np.float64]:
        """Areas of the shapes (N,), level-0 px²."""
        return np.asarray(shapely.area(self.shapes), dtype=np.float64)

    @property
    def area_um2(self) -> NDArray[np.float64] | None:
        """Areas (N,) in µm², None without resolution."""
        return None if self.info.mpp is None else self.area_px * (self.info.mpp[0] * self.info.mpp[1])

    @property
    def diameter_um(self) -> NDArray[np.float64] | None:
        """Diameters (N,) in µm of circles of the same areas, None without resolution."""
        area_um2 = self.area_um2
        return None if area_um2 is None else np.sqrt(area_um2 / np.pi) * 2

    @cached_property
    def form(self) -> NDArray[np.float64]:
        """Eccentricity and solidity of the outlines (N, 2); NaN where only a box is known, whose form means nothing."""
        return self._described[1]

    @cached_property
    def centroids(self) -> NDArray[np.float64]:
        """Centroids of the shapes (N, 2), level-0 px."""
        centres = self._described[0]
        rest = np.isnan(centres[:, 0])  # boxes, and outlines without an area
        centres[rest] = shapely.get_coordinates(shapely.centroid(self.shapes[rest]))
        return centres

    @cached_property
    def _described(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return centroids_and_measures(self.objects.geometry)


def suspicion(
    class_scores: NDArray[np.float32], classes: Sequence[ObjectClass], score: NDArray[np.float32]
) -> NDArray[np.float32]:
    """How suspicious each object is (N,): the sum of its scores over suspicious classes; without any, its score.

    class_scores (N, C) float32, score (N,) float32. The one place for this rule (DESIGN 5).
    """
    columns = [k for k, c in enumerate(classes) if c.suspicious]
    if not columns:
        return score.astype(np.float32)
    return np.asarray(class_scores[:, columns].sum(axis=1, dtype=np.float64), dtype=np.float32)


def shapes_of(objects: Objects) -> NDArray[np.object_]:
    """The geometry of each object (N,), the rectangle of its box where it has none; level-0 px."""
    missing = np.asarray(shapely.is_missing(objects.geometry), dtype=bool)
    if not missing.any():
        return objects.geometry
    shapes = objects.geometry.copy()
    shapes[missing] = shapely.box(*objects.xyxy[missing].T)
    return shapes
