"""What a run reads: the labelled data and its parts, label fractions, the unlabelled data, and the guard between them.

Enters: paths of tile stores or of images in files.  Leaves: `Stores`, data sets with the rows that training, validation
and the unlabelled half use.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.classes import ObjectClass
from cytopipe.core.errors import UserError, nearest_fix
from cytopipe.core.progress import Say
from cytopipe.core.seeds import rng_from
from cytopipe.data import ImagePool
from cytopipe.data.dataset import Dataset, open_dataset
from cytopipe.tiles.fractions import LabelUnit, choose_labelled, parse_fraction

MPP_TOLERANCE = 0.02  # stores and bundles whose resolution differs by more are refused (DESIGN 5)
VAL_FRACTION = 0.1  # set aside where the data have no validation part (DESIGN 4)
_SHOWN = 5  # names in an error

Rows = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Stores:
    """What a run reads: the labelled data, their rows for training and validation, and the unlabelled data with theirs.

    resize_px  the side to which images of files are resized; None: they are not
    """

    labelled: Dataset
    train_rows: Rows
    val_rows: Rows
    unlabelled: Dataset | None
    unlabelled_rows: Rows
    resize_px: int | None = None

    def training_pool(self, classes: tuple[ObjectClass, ...]) -> ImagePool:
        """The labelled images to train on."""
        return self.labelled.pool(self.train_rows, classes, self.resize_px)

    def validation_pool(self, classes: tuple[ObjectClass, ...]) -> ImagePool:
        """The labelled images to validate on."""
        return self.labelled.pool(self.val_rows, classes, self.resize_px)

    def unlabelled_pool(self, classes: tuple[ObjectClass, ...]) -> ImagePool | None:
        """The unlabelled images; None where none were given."""
        if self.unlabelled is None:
            return None
        return self.unlabelled.pool(self.unlabelled_rows, classes, self.resize_px)


def open_stores(
    labelled: Path,
    unlabelled: Path | None,
    seed: int,
    say: Say,
    *,
    label_class: str | None = None,
    resize_px: int | None = None,
) -> Stores:
    """Open the data and choose the rows.

    unlabelled   the same path as labelled: then the training images whose labels a fraction leaves out, and those that
                 nobody labelled
    label_class  as `open_dataset` has it
    Raises UserError where resolutions differ, a part is empty, or unlabelled images come from patients or files of the
    validation or test part of the labelled data.
    """
    data = open_dataset(labelled, label_class)
    rows = np.flatnonzero(data.labelled)
    if len(rows) == 0:
        fix = "give `cytopipe tile` the annotations of its slides" if data.unit == "tile" else "give its annotations"
        raise UserError(f"has no labelled {data.unit}", where=str(labelled), fix=fix)
    train_rows, val_rows = _validation_part(data, rows, seed, say)
    none = np.zeros(0, np.intp)
    if unlabelled is None:
        return Stores(data, train_rows, val_rows, None, none, resize_px)
    if Path(unlabelled).resolve() == Path(labelled).resolve():
        stores = Stores(data, train_rows, val_rows, data, none, resize_px)
        return replace(stores, unlabelled_rows=_without_labels(stores, train_rows))
    other = open_dataset(unlabelled, label_class)
    _same_mpp(data, other)
    _refuse_leaks(data, other)
    return Stores(data, train_rows, val_rows, other, _not_set_aside(data, val_rows, other, say), resize_px)


def with_fraction(
    stores: Stores, fraction: str | float | None, seed: int, say: Say, unit: LabelUnit = "tile"
) -> Stores:
    """The stores with a share of the labelled training images, or of their patients (tiles/fractions.py); None: all.

    Validation is not touched. Where both halves are one data set, the images left out become unlabelled ones.
    Raises UserError for what is no fraction in (0, 1].
    """
    if fraction is None:
        return stores
    ids, patients = labelled_names(stores)
    kept = choose_labelled(ids, patients, parse_fraction(fraction), unit, seed)
    people = len({patients[i] for i in kept.tolist()})
    what = f"{len(kept)} of {len(ids)} labelled training {stores.labelled.unit}s are used"
    say(f"{what}, of {people} of {len(set(patients))} patients" if stores.labelled.states_patients else what)
    fewer = replace(stores, train_rows=stores.train_rows[kept])
    if stores.unlabelled is stores.labelled:
        fewer = replace(fewer, unlabelled_rows=_without_labels(stores, fewer.train_rows))
    return fewer


def labelled_names(stores: Stores) -> tuple[list[str], list[str]]:
    """Id and patient of each labelled training image, in the order of `train_rows`."""
    ids, patients = stores.labelled.ids, stores.labelled.patients
    return [ids[i] for i in stores.train_rows], [patients[i] for i in stores.train_rows]


def chosen_classes(data: Dataset, names: list[str] | None) -> tuple[ObjectClass, ...]:
    """The classes to learn, in order. Raises UserError for a class that the data do not have, naming the nearest."""
    if names is None:
        if not data.classes:
            raise UserError("its annotations name no class", where=str(data.path), fix="give --label-class")
        return data.classes
    by_name = {item.name: item for item in data.classes}
    for name in names:
        if name not in by_name:
            fix = nearest_fix(name, by_name, "its classes") if by_name else "give --label-class"
            raise UserError(f"has no class {name!r}, which train.classes names", where=str(data.path), fix=fix)
    return tuple(by_name[name] for name in names)


def _without_labels(stores: Stores, train_rows: Rows) -> Rows:
    """The rows of one data set that serve as unlabelled: of its training part, all but those whose labels are used.

    All of the training part where every label is used: a method may learn from them twice.
    """
    splits = np.array(stores.labelled.splits)
    free = (splits == "train") & ~np.isin(np.arange(len(splits)), np.concatenate([stores.val_rows, train_rows]))
    return np.flatnonzero(free) if free.any() else train_rows


def _validation_part(data: Dataset, rows: Rows, seed: int, say: Say) -> tuple[Rows, Rows]:
    split = np.array(data.splits)[rows]
    if (split == "val").any():
        return rows[split == "train"], rows[split == "val"]
    train = rows[split == "train"]
    patient = np.array(data.patients)[train]
    names = sorted(set(patient))
    if len(names) > 1:
        chosen = rng_from(seed, "validation").permutation(names)[: max(1, round(VAL_FRACTION * len(names)))]
        aside = np.isin(patient, chosen)
        who = f"{len(chosen)} of {len(names)} patients" if data.states_patients else "some"
        say(f"no validation part in {data.path.name}: {who} set aside for it ({aside.sum()} {data.unit}s)")
    else:
        aside = np.zeros(len(train), bool)
        aside[rng_from(seed, "validation").permutation(len(train))[: max(1, round(VAL_FRACTION * len(train)))]] = True
        say(
            f"one patient and no validation part: {aside.sum()} of {len(train)} {data.unit}s set aside for it; its "
            "figures flatter"
        )
    if aside.all():
        raise UserError(f"has too few {data.unit}s to keep some for validation", where=str(data.path))
    return train[~aside], train[aside]


def _not_set_aside(data: Dataset, val_rows: Rows, other: Dataset, say: Say) -> Rows:
    """The rows of `other`, without image files that this run has set aside for validation."""
    rows = np.arange(len(other.ids))
    if data.unit == "tile" or other.unit == "tile":  # files of slides, which a store without parts shares with mining
        return rows
    aside = set(data.files({data.patients[i] for i in val_rows}).values())
    same = {name for name, content in other.files().items() if content in aside}
    if same:
        say(f"{len(same)} images of {other.path.name} are left out: they are set aside for validation")
    return rows[[name not in same for name in other.ids]]


def _refuse_leaks(data: Dataset, other: Dataset) -> None:
    """Raise UserError if `other` shows what `data` keeps for validation or test: patients by name, files by content."""
    held_out = {patient for patient, split in zip(data.patients, data.splits, strict=True) if split != "train"}
    leaks = sorted(set(other.patients) & held_out) if data.states_patients and other.states_patients else []
    if leaks:
        raise UserError(
            f"holds {other.unit}s of patients that {data.path} keeps for validation or test: "
            f"{', '.join(leaks[:_SHOWN])}{' …' if len(leaks) > _SHOWN else ''}",
            where=str(other.path),
            fix=f"make it with `cytopipe mine-unlabeled --exclude {data.path}`"
            if other.unit == "tile"
            else "leave them out",
        )
    if not held_out:
        return
    files = data.files(held_out)
    known = set(other.files().values())
    same = sorted(name for name, content in files.items() if content in known)
    if same and data.unit == "tile":
        raise UserError(
            f"holds the slide file of {same[0]!r}, which {data.path} keeps for validation or test, under another "
            "patient",
            where=str(other.path),
            fix="give both slides one patient",
        )
    if same:
        shown = ", ".join(same[:_SHOWN])
        raise UserError(
            f"holds {len(same)} images that {data.path} keeps for validation or test: {shown}",
            where=str(other.path),
            fix="leave them out",
        )


def _same_mpp(a: Dataset, b: Dataset) -> None:
    if a.mpp is None or b.mpp is None:
        return
    if abs(a.mpp - b.mpp) > MPP_TOLERANCE * a.mpp:
        raise UserError(
            f"has {b.mpp:g} µm/px, {a.path} has {a.mpp:g}", where=str(b.path), fix=f"cut it at --mpp {a.mpp:g}"
        )
