"""Annotated objects in memory, whatever file they came from; and what was wrong with those that were not fine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from shapely import MultiPolygon, Polygon


@dataclass(frozen=True, slots=True)
class Annotation:
    """An object that somebody outlined on a slide.

    object_id    unique within its file, never empty
    class_name   as the file spells it, never empty
    geometry     valid, not empty; frame slide, level-0 px, pixel edges at integers
    attributes   further facts as text, e.g. {"cell_id": "17"}: a nucleus and its cell share a `cell_id`; "crowd"
    """

    object_id: str
    class_name: str
    geometry: Polygon | MultiPolygon
    attributes: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_crowd(self) -> bool:
        """Whether it stands for a group (attribute `crowd`): neither a target nor a false alarm."""
        return self.attributes.get("crowd", "").lower() in ("1", "true", "yes")

    def __post_init__(self) -> None:
        if not self.object_id or not self.class_name:
            raise ValueError(f"Annotation: empty object_id or class_name ({self.object_id!r}, {self.class_name!r})")
        if not isinstance(self.geometry, (Polygon, MultiPolygon)):
            raise ValueError(
                f"Annotation.geometry: expected Polygon or MultiPolygon, got {type(self.geometry).__name__}"
            )


@dataclass(frozen=True, slots=True)
class Problem:
    """One object of a file that was not fine. The rules stand in `formats/mending.py`.

    object_id  its own, or its place in the file ("feature-3") where it has none
    what       what was wrong, all of it, as one clause
    done       mended: the object is among the annotations; refused: it is not
    """

    object_id: str
    what: str
    done: Literal["mended", "refused"]

    def __str__(self) -> str:
        return f"{self.object_id} {self.done}: {self.what}"


@dataclass(frozen=True, slots=True)
class AnnotationFile:
    """What one file says of one slide.

    objects   in the order of the file, frame slide
    problems  at most one an object, in the order of the file
    ignored   class -> how many objects of it were left out because they were to be ignored
    image     the slide's or image's name as the file gives it, "" where it gives none
    size      width, height in level-0 px that the file states or the slide has; None where nobody says
    """

    objects: list[Annotation]
    problems: list[Problem]
    ignored: Mapping[str, int] = field(default_factory=dict)
    image: str = ""
    size: tuple[int, int] | None = None

    @property
    def mended(self) -> int:
        """How many objects were mended."""
        return sum(problem.done == "mended" for problem in self.problems)

    @property
    def refused(self) -> int:
        """How many objects were refused."""
        return sum(problem.done == "refused" for problem in self.problems)

    @property
    def lines(self) -> list[str]:
        """A sentence for each problem, and for each class that was ignored."""
        ignored = [f"{count} objects of class {name} ignored" for name, count in self.ignored.items()]
        return [*map(str, self.problems), *ignored]
