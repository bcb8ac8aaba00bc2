"""Which images a file dataset has, and what annotates each: COCO files, folders, lists.

Enters: a path.  Leaves: a `Listing`. Every file named is looked for here, so that a missing one is an error at the
start and not after an hour.
"""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cytopipe.core.errors import UserError, nearest_fix
from cytopipe.data.file_pool import Example
from cytopipe.data.files import IMAGE_SUFFIXES, is_label_map
from cytopipe.formats.json_file import load_json
from cytopipe.formats.read import ANNOTATION_SUFFIXES, images_in

IMAGES = "images"
ANNOTATED_BY = ("labels", "annotations", "masks")  # of several the one that says most of single objects
SPLITS = ("train", "val", "test")
COLUMNS = ("image", "annotation", "patient", "split")
_MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".jpg", ".jpeg")
_SHOWN = 3  # names in an error


@dataclass(frozen=True, slots=True)
class Listing:
    """Examples with the patient and part of each, N each.

    classes  that the annotations name, where one file names all; else None
    """

    examples: list[Example]
    patients: list[str]
    splits: list[str]
    states_patients: bool = False
    classes: list[str] | None = None

    def __post_init__(self) -> None:
        counts = Counter(example.name for example in self.examples)
        name, count = counts.most_common(1)[0] if counts else ("", 0)
        if count > 1:
            where = next(str(example.image) for example in self.examples if example.name == name)
            raise UserError(f"{count} images are called {name!r}", where=where, fix="give each image one name")

    @staticmethod
    def needs_class(example: Example) -> bool:
        """Whether the annotation marks pixels without naming their class."""
        path = example.annotation
        return path is not None and (example.kind == "mask" or path.suffix.lower() in (".png", ".tif", ".tiff"))


def list_coco(path: Path) -> Listing:
    """The images of a COCO file: all count as annotated, also those without an object."""
    names = images_in(path)
    if not names:
        raise UserError("is no COCO file with images", where=str(path), fix="give one with images and annotations")
    document = load_json(path)
    _refuse_unknown_categories(document, path)
    folders = (path.parent, path.parent / IMAGES)
    examples = [Example(name, _found(name, folders, str(path)), path, inside=name) for name in names]
    classes = [
        str(item["name"]) for item in document.get("categories", []) if isinstance(item, dict) and "name" in item
    ]
    return Listing(examples, names, ["train"] * len(names), classes=classes)


def list_folder(path: Path) -> Listing | None:
    """The images of a folder with the annotations beside them; None where the folder holds no image."""
    images = _images_in(path / IMAGES if (path / IMAGES).is_dir() else path)
    if not images:
        return None
    kind = next((name for name in ANNOTATED_BY if (path / name).is_dir()), None)
    suffixes = _MASK_SUFFIXES if kind == "masks" else ANNOTATION_SUFFIXES
    beside = {} if kind is None else _by_stem(path / kind, suffixes)
    lost = sorted(set(beside) - {image.stem for image in images})
    if lost:
        shown = ", ".join(lost[:_SHOWN])
        raise UserError(f"annotates {len(lost)} images that are not there: {shown}", where=str(path / str(kind)))
    if kind is not None and not beside:
        raise UserError("holds no annotation", where=str(path / kind), fix=f"files of {', '.join(suffixes)} are read")
    what: Literal["mask", "objects"] = "mask" if kind == "masks" else "objects"
    examples = [Example(image.stem, image, beside.get(image.stem), what) for image in images]
    names = [example.name for example in examples]
    return Listing(examples, names, ["train"] * len(names))


def list_csv(path: Path) -> Listing:
    """The images of a list. Raises UserError with the row that is not as it must be."""
    rows = _rows_of(path)
    stated = "patient" in rows[0]
    examples, patients, splits = [], [], []
    part_of: dict[str, str] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{path}, row {number}"
        image, annotation = row["image"], row.get("annotation", "")
        patient, split = row.get("patient", "") or image, row.get("split", "") or "train"
        if not image:
            raise UserError("names no image", where=where)
        if split not in SPLITS:
            raise UserError(f"split {split!r}", where=where, fix=nearest_fix(split, SPLITS, "parts"))
        if part_of.setdefault(patient, split) != split:
            raise UserError(f"patient {patient!r} is in {part_of[patient]} and in {split}", where=where)
        file = None if not annotation else _found(annotation, (path.parent,), where)
        examples.append(Example(image, _found(image, (path.parent,), where), file, _kind_of(file)))
        patients.append(patient)
        splits.append(split)
    return Listing(examples, patients, splits, stated)


def _refuse_unknown_categories(document: Any, path: Path) -> None:
    """A reader that skips such annotations is right for a look; a network would learn that these objects are glass."""
    known = {str(item.get("id")) for item in document.get("categories") or [] if isinstance(item, dict)}
    for number, item in enumerate(document.get("annotations") or [], start=1):
        if isinstance(item, dict) and str(item.get("category_id")) not in known:
            raise UserError(
                f"annotation {number} is of category {item.get('category_id')!r}, which its categories do not name",
                where=str(path),
                fix="name it there, or leave its annotations out",
            )


def _kind_of(annotation: Path | None) -> Literal["mask", "objects"]:
    if annotation is None or annotation.suffix.lower() not in _MASK_SUFFIXES:
        return "objects"
    return "objects" if is_label_map(annotation) else "mask"


def _rows_of(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter=max(",;\t", key=head.count))
            names = [name.strip() for name in reader.fieldnames or []]
            if "image" not in names:
                fix = nearest_fix("image", names, "its columns") if names else ""
                raise UserError("has no column image", where=str(path), fix=fix)
            reader.fieldnames = names
            rows = [{k: (row.get(k) or "").strip() for k in COLUMNS if k in names} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot be read as a list ({error})", where=str(path)) from error
    if not rows:
        raise UserError("lists no image", where=str(path))
    return rows


def _images_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """stem -> file; of several files of one stem the suffix that stands first."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda p: (_place(p, suffixes), p.name)):
        if path.suffix.lower() in suffixes and path.is_file():
            found.setdefault(path.stem, path)
    return found


def _place(path: Path, suffixes: tuple[str, ...]) -> int:
    return suffixes.index(path.suffix.lower()) if path.suffix.lower() in suffixes else len(suffixes)


def _found(name: str, folders: tuple[Path, ...], where: str) -> Path:
    """The file of that name; a COCO file may leave the suffix out."""
    for folder in folders:
        path = folder / name
        if path.is_file():
            return path
        for suffix in IMAGE_SUFFIXES:
            if (path.parent / (path.name + suffix)).is_file():
                return path.parent / (path.name + suffix)
    raise UserError(f"names {name!r}, which is not there", where=where, fix=f"looked in {folders[0]}")
