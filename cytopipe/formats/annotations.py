"""One annotated object in memory, whatever file it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
