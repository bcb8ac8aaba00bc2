"""Which annotation file belongs to which slide of a run, and reading it: the flags of `tile` about annotations.

Enters: the slides of a list, and the place that was given for their annotations.  Leaves: the file of each slide that
has one; what it says of the slide, in frame slide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from cytopipe.core.errors import UserError
from cytopipe.core.progress import Say
from cytopipe.formats.annotations import AnnotationFile
from cytopipe.formats.qupath import Frame
from cytopipe.formats.read import ANNOTATION_SUFFIXES, images_in, read_annotations
from cytopipe.slides import Slide, SlideEntry
from cytopipe.tiles import TileConfig

MAX_LINES_SAID = 10  # of one annotation file: a file with ten thousand open rings must not bury the rest

LABEL_IMAGE_SUFFIXES = (".png", ".tif", ".tiff")
"""These are looked for with --label-class only: without it such a file beside a slide is a picture."""


@dataclass(frozen=True, slots=True)
class AnnotationReader:
    """Reads annotation files as the run wants them: frame of a GeoJSON, classes, what is said of them."""

    config: TileConfig
    frame: Frame
    say: Say

    def read(self, path: Path, entry: SlideEntry, slide: Slide) -> AnnotationFile:
        """The annotations of a slide. Raises UserError as `read_annotations` does."""
        return read_annotations(
            path,
            frame=self.frame,
            bounds_offset=slide.bounds_offset,
            slide_size=slide.dimensions,
            image=entry.slide_id,
            class_map=self.config.class_map,
            ignore=self.config.ignore,
            label_class=self.config.label_class,
        )

    def say_problems(self, path: Path, found: AnnotationFile) -> None:
        """Say the first lines about objects that were mended or refused, and each class that was ignored."""
        name = path.name
        for problem in found.problems[:MAX_LINES_SAID]:
            self.say(f"{name}: {problem}")
        more = len(found.problems) - MAX_LINES_SAID
        if more > 0:
            self.say(f"{name}: and {more} more objects mended or refused; problems.csv in the store lists all")
        for class_name, count in found.ignored.items():
            self.say(f"{name}: {count} objects of class {class_name!r} are ignored")


def files_of(entries: Sequence[SlideEntry], given: str | Path | None, *, with_label_images: bool) -> list[Path | None]:
    """The annotation file of each slide, None where it has none; a column `annotations` of the list goes before.

    given  a folder of files named after slides, the file of a lone slide, or one file (COCO, CSV) that names its images
    Raises UserError when the place does not exist or fits no slide, and where two files of a folder fit one slide.
    """
    if given is None:
        return [entry.annotations for entry in entries]
    place = Path(given)
    if not place.exists():
        raise UserError(
            "does not exist",
            where=str(place),
            fix="--annotations takes a folder of files named after slides, or a file",
        )
    if place.is_dir():
        from_place: list[Path | None] = _beside(entries, place, with_label_images)
    elif len(entries) == 1:
        from_place = [place]
    else:
        named = _named_in(place, entries)
        from_place = [place if entry.slide_id in named else None for entry in entries]
    found = [entry.annotations or path for entry, path in zip(entries, from_place, strict=True)]
    if not any(found):
        raise UserError(
            "no file in it is named after a slide",
            where=str(place),
            fix=f"e.g. {entries[0].slide_id}.geojson is looked for, or another of {' '.join(ANNOTATION_SUFFIXES[1:])}",
        )
    return found


def _named_in(path: Path, entries: Sequence[SlideEntry]) -> set[str]:
    """The ids of the slides that a file of several images names. Raises UserError when it names none of them."""
    images = images_in(path)
    named = {name for image in images for name in (image, PurePath(image).name, PurePath(image).stem)}
    served = {entry.slide_id for entry in entries} & named
    if not served:
        raise UserError(
            f"is one file for {len(entries)} slides" + (", and names none of them" if images else ""),
            where=str(path),
            fix="give a folder of files named after slides, a COCO file that names these, or a column annotations in "
            "the slide list",
        )
    return served


def _beside(entries: Sequence[SlideEntry], folder: Path, with_label_images: bool) -> list[Path | None]:
    """For each slide the one file in `folder` that is named after it."""
    slides = {entry.path.resolve() for entry in entries}  # they may lie there too, and a TIFF may be a label image
    suffixes = [s for s in ANNOTATION_SUFFIXES if with_label_images or s not in LABEL_IMAGE_SUFFIXES]
    by_name: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and path.is_file() and path.resolve() not in slides:
            by_name.setdefault(path.stem, []).append(path)
    found: list[Path | None] = []
    for entry in entries:
        fitting = by_name.get(entry.slide_id, [])
        if len(fitting) > 1:
            raise UserError(
                f"two files may be the annotations of {entry.slide_id!r}: {fitting[0].name} and {fitting[1].name}",
                where=str(folder),
                fix="keep one of them there, or name it in a column annotations of the slide list",
            )
        found.append(fitting[0] if fitting else None)
    return found
