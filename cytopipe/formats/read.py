"""Annotation files of any format, told apart by their content: `read_annotations` is what steps call.

Enters: a file.  Leaves: `AnnotationFile`, frame slide, level-0 px, pixel edges at integers.

    format       known by                      its objects, and where the class stands
    QuPath       GeoJSON features              polygons; `classification`. The one format in frame bounds unless told
    COCO         images, annotations           polygons, run lengths, else boxes; `categories`
    Aperio XML   <Annotations>                 regions: polygon, rectangle, ellipse; the name of their layer
    ASAP XML     <ASAP_Annotations>            polygon, spline, rectangle; `PartOfGroup`
    VOC XML      <annotation>                  boxes; `name`
    label image  PNG or TIFF, 8, 16, 32 bit    one object a label, along pixel edges; `label_class`
    CSV          a header with box columns     boxes, or WKT polygons; `class`, `label` or `name`
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from cytopipe.core.errors import UserError
from cytopipe.formats.annotations import AnnotationFile
from cytopipe.formats.aperio_xml import aperio_page
from cytopipe.formats.asap_xml import asap_page
from cytopipe.formats.coco import CocoFile, is_coco
from cytopipe.formats.csv_boxes import csv_page, slides_in_csv
from cytopipe.formats.drawn import Page, Wish, annotations_from
from cytopipe.formats.json_file import load_json
from cytopipe.formats.label_image import label_page
from cytopipe.formats.qupath import Frame, is_qupath, qupath_page
from cytopipe.formats.safe_xml import load_xml
from cytopipe.formats.voc_xml import voc_page

ANNOTATION_SUFFIXES = (".geojson", ".json", ".xml", ".csv", ".tsv", ".png", ".tif", ".tiff")
"""Looked for beside a slide's id, in this order. The last three are label images: never the slide itself."""

_XML_PAGES = {"Annotations": aperio_page, "ASAP_Annotations": asap_page, "annotation": voc_page}
_IMAGES = (b"\x89PNG", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OTHERS = {
    b"\xff\xd8\xff": "a JPEG, which keeps no label exactly",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "compressed with gzip",
}
_HEAD_BYTES = 4096
_KNOWN = "QuPath GeoJSON, COCO, Aperio, ASAP and VOC XML, label images (PNG, TIFF) and CSV are read"


def read_annotations(
    path: Path,
    *,
    frame: Frame = "bounds",
    bounds_offset: tuple[int, int] = (0, 0),
    slide_size: tuple[int, int] | None = None,
    image: str | None = None,
    only_named: bool = False,
    class_map: Mapping[str, str] | None = None,
    ignore: Collection[str] = (),
    label_class: str | None = None,
) -> AnnotationFile:
    """The annotations of one slide in a file of any format, in the order of the file.

    frame          of a GeoJSON; every other format is in frame slide
    bounds_offset  x, y of the bounds in level-0 px, `Slide.bounds_offset`; used for a GeoJSON in frame bounds only
    slide_size     width, height in level-0 px: what lies outside is cut off or refused; a file made on a whole fraction
                   of it is scaled. None: the size that the file itself states, where it does
    image          which image of a file that holds several: a name, with or without folders and suffix, or an id. A
                   file with a single image needs none
    only_named     a single image counts only if `image` names it: for one file that serves several slides
    class_map      class as the file spells it -> class to use
    ignore         classes left out and counted, as they are called after `class_map`
    label_class    class of objects to which the file gives none; label images need it
    What is wrong with single objects stands in `problems`. Raises UserError when the file as a whole cannot be read,
    holds no such image, or was made for another size.
    """
    wish = Wish(slide_size, class_map or {}, ignore, label_class)
    page, is_geojson = _page(path, image, only_named, label_class)
    shift = bounds_offset if is_geojson and frame == "bounds" else (0, 0)
    return annotations_from(page, wish, shift=shift, where=str(path))


def images_in(path: Path) -> list[str]:
    """The names of the images of a COCO file, of the slides of a CSV with such a column; [] for every other format.

    Raises UserError where the file cannot be read.
    """
    text = _letters(_head(path))
    if text.startswith((b"{", b"[")):
        document = _json(path)
        return document.names if isinstance(document, CocoFile) else []
    if not text or text.startswith((b"<", *_IMAGES, *_OTHERS)):
        return []
    return slides_in_csv(path)


def parse_class_map(pairs: Sequence[str]) -> dict[str, str]:
    """{"FROM": "TO"} from texts "FROM=TO". Raises UserError for another text, and for two targets of one class."""
    classes: dict[str, str] = {}
    for pair in pairs:
        given, sign, wanted = (part.strip() for part in pair.partition("="))
        if not (given and sign and wanted):
            raise UserError(f"{pair!r} is not FROM=TO", where="--class-map", fix="for example nuclei=nucleus")
        if classes.setdefault(given, wanted) != wanted:
            raise UserError(
                f"maps {given!r} to both {classes[given]!r} and {wanted!r}", where="--class-map", fix="keep one"
            )
    return classes


def _page(path: Path, image: str | None, only_named: bool, label_class: str | None) -> tuple[Page, bool]:
    """What stands in the file, and whether it is a GeoJSON."""
    where = str(path)
    head = _head(path)
    if head.startswith(_IMAGES):
        if label_class is None:
            raise UserError(
                "is a label image, which names no class", where=where, fix="give --label-class, for example nucleus"
            )
        return label_page(path), False
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise UserError(f"is {what}", where=where, fix=_KNOWN)
    text = _letters(head)
    suffix = path.suffix.lower()  # decides nothing but the words for a file that is what its name does not say
    if text.startswith(b"<") or suffix == ".xml":
        root = load_xml(path)
        if root.tag not in _XML_PAGES:
            raise UserError(f"is XML of another kind (<{root.tag[:40]}>)", where=where, fix=_KNOWN)
        return _XML_PAGES[root.tag](root, where), False
    if text.startswith((b"{", b"[")) or suffix in (".geojson", ".json"):
        document = _json(path)
        if isinstance(document, CocoFile):
            return document.page(image, where, only_named=only_named), False
        if is_qupath(document):
            return qupath_page(document, where), True
        raise UserError("is JSON, but neither GeoJSON features nor COCO", where=where, fix=_KNOWN)
    if not text:
        raise UserError("is empty", where=where, fix=_KNOWN)
    if suffix in (".png", ".tif", ".tiff"):
        raise UserError("is no PNG or TIFF inside", where=where, fix=_KNOWN)
    return csv_page(path, image=image, only_named=only_named), False


def _json(path: Path) -> Any:
    """The document of a file. One COCO file may serve a thousand slides: the last one with several images is kept."""
    stamp = path.stat()
    document = _parsed(path, stamp.st_mtime_ns, stamp.st_size)
    if not (isinstance(document, CocoFile) and len(document.names) > 1):
        _parsed.cache_clear()
    return document


@lru_cache(maxsize=1)
def _parsed(path: Path, mtime_ns: int, size_bytes: int) -> Any:
    document = load_json(path)
    return CocoFile(document, str(path)) if is_coco(document) else document


def _letters(head: bytes) -> bytes:
    """A text file from its first letter on, whether UTF-8 or UTF-16: only that letter is looked at."""
    if head.startswith((*_IMAGES, *_OTHERS)):
        return head
    return head.replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \t\r\n")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError("no such file", where=str(path)) from error
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=str(path)) from error
