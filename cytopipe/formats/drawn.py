"""The one way from what a reader finds in a file to annotations: classes, ids, frame, and the rule of `mending.py`.

Enters: `Drawn` objects of any reader, unchecked.  Leaves: `AnnotationFile`, frame slide.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeGuard

import numpy as np

from cytopipe.core.errors import UserError
from cytopipe.formats.annotations import Annotation, AnnotationFile, Problem
from cytopipe.formats.mending import Refused, Rings, on_slide, outline_of

NO_CLASS = "has no class"

_LARGEST = 1e300


@dataclass(frozen=True, slots=True)
class Drawn:
    """An object as its file draws it; nothing of it is checked yet.

    object_id     its own or made from its place in the file; never empty
    class_name    "" where the file names none
    polygons      each an outline and its holes, in px of the file
    attributes    further facts as text
    closes_rings  whether the format repeats a ring's first point at its end
    refused       why it is no object at all; then nothing else counts but the id
    """

    object_id: str
    class_name: str = ""
    polygons: Sequence[Rings] = ()
    attributes: Mapping[str, str] = field(default_factory=dict)
    closes_rings: bool = False
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """What a reader finds in a file about one image.

    objects  unchecked, in the order of the file
    image    the image's name as the file gives it, "" where it gives none
    size     width, height in px that the file states, None where it states none
    """

    objects: Iterable[Drawn]
    image: str = ""
    size: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Wish:
    """What the caller wants of any file.

    slide_size   width, height of the slide in level-0 px, None where no slide is at hand
    class_map    class as the file spells it -> class to use; the others keep their names
    ignore       classes to leave out, as they are called after `class_map`
    label_class  class of objects to which the file gives none
    """

    slide_size: tuple[int, int] | None = None
    class_map: Mapping[str, str] = field(default_factory=dict)
    ignore: Collection[str] = ()
    label_class: str | None = None


def annotations_from(page: Page, wish: Wish, *, shift: tuple[int, int] = (0, 0), where: str = "") -> AnnotationFile:
    """The annotations of one image; ids that are used twice get a counter.

    shift  x, y of the file's frame in frame slide, level-0 px
    where  the file, for the error when the size that it states does not fit the slide
    Raises UserError when the sizes do not fit, and what `page.objects` raises.
    """
    scale, size = _fitted(page.size, wish.slide_size, where)
    offset = np.array(shift, dtype=np.float64)
    objects: list[Annotation] = []
    problems: list[Problem] = []
    ignored: dict[str, int] = {}
    ids: dict[str, int] = {}
    for drawn in page.objects:
        name = drawn.class_name or wish.label_class or ""
        name = wish.class_map.get(name, name)
        if name in wish.ignore:
            ignored[name] = ignored.get(name, 0) + 1
            continue
        try:
            if drawn.refused or not name:
                raise Refused(drawn.refused or NO_CLASS)
            geometry, mended = outline_of(drawn.polygons, shift=offset, scale=scale, closes_rings=drawn.closes_rings)
            if size is not None:
                geometry, cut_off = on_slide(geometry, size)
                mended += [cut_off] if cut_off else []
        except Refused as reason:
            problems.append(Problem(drawn.object_id, str(reason), "refused"))
            continue
        object_id = _unique(drawn.object_id, ids)
        if object_id != drawn.object_id:
            mended.append(f"id {drawn.object_id} is used twice, read as {object_id}")
        if mended:
            problems.append(Problem(object_id, "; ".join(mended), "mended"))
        objects.append(Annotation(object_id, name, geometry, drawn.attributes))
    return AnnotationFile(objects, problems, ignored, page.image, size)


def text_of(value: object) -> str:
    """The value as text that can be written again: JSON may hold halves of surrogate pairs, UTF-8 may not."""
    return str(value).encode("utf-8", "replace").decode()


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value of a JSON document is a number that float64 holds: JSON's integers have no end."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not abs(value) > _LARGEST


def finite_number(text: str | None) -> float | None:
    """The number that a text spells, None where it spells none, NaN or infinity."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _fitted(
    stated: tuple[int, int] | None, slide_size: tuple[int, int] | None, where: str
) -> tuple[float, tuple[int, int] | None]:
    """Level-0 px per px of the file, and the size in level-0 px.

    A file may be made on the slide itself or on a whole fraction of it (1/2, 1/16 of its sides, to the pixel).
    """
    if stated is None or slide_size is None:
        return 1.0, slide_size or stated
    factors = {round(slide_size[0] / stated[0]), round(slide_size[1] / stated[1])} - {0}
    for factor in sorted(factors):
        if all(abs(whole - part * factor) < factor for whole, part in zip(slide_size, stated, strict=True)):
            return float(factor), slide_size
    raise UserError(
        f"was made for {stated[0]} x {stated[1]} px, and the slide has {slide_size[0]} x {slide_size[1]}",
        where=where,
        fix="sizes must be equal, or the slide's a whole multiple",
    )


def _unique(object_id: str, taken: dict[str, int]) -> str:
    """`object_id`, or with a counter where it is taken; notes it as taken (id -> the last counter tried)."""
    unique = object_id
    while unique in taken:
        taken[object_id] += 1
        unique = f"{object_id}-{taken[object_id]}"
    taken[unique] = 1
    return unique
