"""What `train` takes as data, behind one interface: a tile store, or images in files.

    tile store    a folder that `tile` or `mine-unlabeled` wrote
    COCO          FILE.json, its images beside it or in images/ beside it
    folder        images/ with masks/ (class maps), labels/ (label maps: a number an object) or annotations/ (VOC XML,
                  QuPath, anything that `formats.read` knows), matched by name without suffix; or images alone
    list          FILE.csv with columns image, annotation and, where wanted, patient and split; paths relative to it. An
                  annotation image of 8 bits is a class map, one of 16 or 32 bits a label map

Enters: a path.  Leaves: a `Dataset`: the images' names, patients and parts, and pools of some of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.classes import ObjectClass, class_named
from cytopipe.core.errors import UserError
from cytopipe.core.files import sha256_of
from cytopipe.data.file_pool import Example, FilePool
from cytopipe.data.files import size_of
from cytopipe.data.listings import Listing, list_coco, list_csv, list_folder
from cytopipe.data.pool import ImagePool, TilePool
from cytopipe.formats.read import read_annotations
from cytopipe.tiles import TileStore

STORE_FILE = "store.json"

Rows = NDArray[np.intp]
_FORMS = "give a tile store (`cytopipe tile` makes one), a COCO file, a folder with images/, or a CSV list"


class Dataset(Protocol):
    """Images that may be trained on, row by row.

    path             what the user gave
    unit             what a row is, in messages
    mpp              µm/px of all of them; None where nobody knows
    classes          of the annotations
    ids, patients    of each row; the patient of an image of which nobody says it is the image itself
    splits           part of each row: train, val or test
    labelled         (N,) bool, whether somebody annotated it
    states_patients  whether `patients` come from the data: else equal names in two datasets mean nothing
    """

    path: Path
    unit: Literal["tile", "image"]
    mpp: float | None
    states_patients: bool

    @property
    def classes(self) -> tuple[ObjectClass, ...]: ...

    @property
    def ids(self) -> list[str]: ...

    @property
    def patients(self) -> list[str]: ...

    @property
    def splits(self) -> list[str]: ...

    @property
    def labelled(self) -> NDArray[np.bool_]: ...

    def digest(self) -> str:
        """SHA-256 of what the data are: it stands among the parameters of a run."""
        ...

    def files(self, patients: Collection[str] | None = None) -> dict[str, str]:
        """Name -> fingerprint of the files that pixels come from; of some patients only, where they are given."""
        ...

    def pool(self, rows: Rows, classes: tuple[ObjectClass, ...], resize_px: int | None = None) -> ImagePool:
        """Some rows as images; resize_px as `FilePool` has it. Raises UserError where tiles would be resized."""
        ...


def open_dataset(path: Path | str, label_class: str | None = None) -> Dataset:
    """The data at a path, told apart by what lies there.

    label_class  class of what masks and label maps mark; several, separated by commas: of 1, 2, ... in masks
    Raises UserError for what is none of them, and where a class is needed and not given.
    """
    path = Path(path)
    if not path.exists():
        raise UserError("is not there", where=str(path), fix=_FORMS)
    names = tuple(name.strip() for name in (label_class or "").split(",") if name.strip())
    if path.is_file() and path.suffix.lower() == ".json" and path.name != STORE_FILE:
        return FileDataset(path, list_coco(path), names)
    if path.is_file() and path.suffix.lower() in (".csv", ".tsv"):
        return FileDataset(path, list_csv(path), names)
    if not path.is_dir():
        raise UserError("is nothing to train on", where=str(path), fix=_FORMS)
    listing = None if (path / STORE_FILE).exists() else list_folder(path)
    return StoreDataset(path) if listing is None else FileDataset(path, listing, names)


class StoreDataset:
    """A tile store as a dataset."""

    unit: Literal["tile", "image"] = "tile"
    states_patients = True  # a slide without one is its own patient, and has a name of its own (DESIGN 3)

    def __init__(self, path: Path) -> None:
        self.path, self.store = path, TileStore(path)
        self.mpp = self.store.info.mpp

    @property
    def classes(self) -> tuple[ObjectClass, ...]:
        """Of the annotations read by `tile`."""
        return tuple(self.store.info.classes)

    @cached_property
    def ids(self) -> list[str]:
        """tile_id of each row."""
        return list(self.store.column("tile_id").to_pylist())

    @cached_property
    def patients(self) -> list[str]:
        """Patient of each row."""
        return list(self.store.column("patient").to_pylist())

    @cached_property
    def splits(self) -> list[str]:
        """Part of each row."""
        return list(self.store.column("split").to_pylist())

    @cached_property
    def labelled(self) -> NDArray[np.bool_]:
        """Whether the tile's slide has annotations that cover it."""
        return np.asarray(self.store.column("labelled").to_numpy(), bool)

    def digest(self) -> str:
        """SHA-256 of tiles.parquet."""
        return sha256_of(self.path / "tiles.parquet")

    def files(self, patients: Collection[str] | None = None) -> dict[str, str]:
        """slide_id -> fingerprint of the slides that have one."""
        slides = self.store.slides.select(["fingerprint", "slide_id", "patient"]).to_pylist()
        return {
            row["slide_id"]: row["fingerprint"]
            for row in slides
            if row["fingerprint"] is not None and (patients is None or row["patient"] in patients)
        }

    def pool(self, rows: Rows, classes: tuple[ObjectClass, ...], resize_px: int | None = None) -> ImagePool:
        """Some tiles. Raises UserError for resize_px: a tile has a resolution."""
        if resize_px is not None:
            raise UserError(
                f"its tiles are not resized to {resize_px} px: they have a resolution",
                where=str(self.path),
                fix="leave train.resize_px out, or cut the tiles at another --mpp",
            )
        return TilePool(self.store, rows, classes)


class FileDataset:
    """Images in files as a dataset: no resolution is known, and none is made up."""

    unit: Literal["tile", "image"] = "image"
    mpp: float | None = None

    def __init__(self, path: Path, listing: Listing, label_names: tuple[str, ...]) -> None:
        self.path, self.label_names = path, label_names
        self.examples, self._named = listing.examples, listing.classes
        self.patients, self.splits, self.states_patients = listing.patients, listing.splits, listing.states_patients
        needing = next((e for e in self.examples if e.annotation is not None and listing.needs_class(e)), None)
        if needing is not None and not label_names:
            raise UserError(
                "marks pixels and names no class",
                where=str(needing.annotation),
                fix="give --label-class, for example nucleus",
            )
        for example in self.examples:
            _refuse_misfit(example)

    @cached_property
    def classes(self) -> tuple[ObjectClass, ...]:
        """Those of a COCO file in its order; else those of masks and label maps, then those found in files, by name."""
        if self._named is not None:
            return tuple(class_named(name) for name in self._named)
        found = {
            item.class_name
            for example in self.examples
            if example.annotation is not None and example.annotation.suffix.lower() in _NAMING
            for item in read_annotations(example.annotation, label_class=self._label_class).objects
        }
        names = [*self.label_names, *sorted(found - set(self.label_names))]
        return tuple(class_named(name) for name in names)

    @cached_property
    def ids(self) -> list[str]:
        """Name of each image."""
        return [example.name for example in self.examples]

    @cached_property
    def labelled(self) -> NDArray[np.bool_]:
        """Whether an annotation file belongs to the image."""
        return np.array([example.annotation is not None for example in self.examples], bool)

    def digest(self) -> str:
        """SHA-256 of names, parts, sizes of the image files, and the bytes of all annotation files."""
        found = hashlib.sha256("\x1f".join(self.label_names).encode())
        for example, patient, split in zip(self.examples, self.patients, self.splits, strict=True):
            facts = (example.name, patient, split, str(example.image.stat().st_size), example.kind)
            found.update("\x1f".join(facts).encode())
        for path in sorted({e.annotation for e in self.examples if e.annotation is not None}):
            found.update(sha256_of(path).encode())
        return found.hexdigest()

    def files(self, patients: Collection[str] | None = None) -> dict[str, str]:
        """Name -> SHA-256 of the image files."""
        chosen = zip(self.examples, self.patients, strict=True)
        return {e.name: sha256_of(e.image) for e, patient in chosen if patients is None or patient in patients}

    def pool(self, rows: Rows, classes: tuple[ObjectClass, ...], resize_px: int | None = None) -> ImagePool:
        """Some images."""
        return FilePool([self.examples[int(i)] for i in rows], classes, self.label_names, resize_px)

    @property
    def _label_class(self) -> str | None:
        return self.label_names[0] if self.label_names else None


def _refuse_misfit(example: Example) -> None:
    """Raise UserError for a mask of another size than its image: by their headers, before an hour has passed."""
    if example.kind != "mask" or example.annotation is None:
        return
    (height, width), (rows, columns) = size_of(example.image), size_of(example.annotation)
    if (height, width) != (rows, columns):
        raise UserError(
            f"is {columns} x {rows} px, and its image {width} x {height}",
            where=str(example.annotation),
            fix=f"{example.image} is what it should fit",
        )


_NAMING = (".xml", ".geojson", ".json", ".csv", ".tsv")  # files that name the classes of their objects
