"""Patients into training, validation and test, so that no patient is in two of them.

Enters: patients with their strata, what is already assigned, a ratio.  Leaves: the part of each patient.
Patients are taken in the order of a salted hash of their names, which depends on no list; assignments once made never
change.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from cytopipe.core.errors import UserError

PARTS = ("train", "val", "test")
SALT = "cytopipe-split-1"

Stratify = Literal["stratum", "diagnosis", "none"]
"""Which column of the slide list names the strata; `none`: the split looks at the patients alone."""


@dataclass(frozen=True, slots=True)
class FileOfPatient:
    """A slide file of a split: its id, whose it is, in which part, and `fingerprint_of` the file."""

    slide_id: str
    patient: str
    part: str
    fingerprint: str


def parse_ratio(text: str) -> dict[str, float]:
    """'7:1:2' -> shares of train, val, test that sum to 1; '8:2' has no test part.

    Raises UserError for anything else than two or three positive numbers.
    """
    try:
        numbers = [float(word) for word in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) not in (2, 3) or not all(0 < number < float("inf") for number in numbers):
        raise UserError(f"--split {text!r} is no ratio", fix="give train:val or train:val:test, e.g. 7:1:2")
    return {part: number / sum(numbers) for part, number in zip(PARTS, numbers, strict=False)}


def assign_splits(
    strata: Mapping[str, str | None], fixed: Mapping[str, str], shares: Mapping[str, float], seed: int = 0
) -> dict[str, str]:
    """The part of every patient of `strata`.

    strata  patient -> stratum (None: no stratum, one of its own)
    fixed   patient -> part, kept as it is (earlier runs, a column `split`)
    shares  part -> share, summing to 1

    In each stratum new patients first fill whole places that a part lacks there; those left over in all strata then go,
    one by one, to the part that lacks most over the whole list. So small strata do not all end in the largest part.
    Raises UserError when a part of `shares` ends up without a patient.
    """
    part_of = {patient: part for patient, part in fixed.items() if patient in strata}
    new = sorted(strata.keys() - part_of.keys(), key=lambda patient: _draw(patient, seed))
    sizes = Counter(strata.values())
    by_stratum = Counter((strata[patient], part) for patient, part in part_of.items())
    overall = Counter(part_of.values())

    def place(patient: str, part: str) -> None:
        part_of[patient] = part
        by_stratum[strata[patient], part] += 1
        overall[part] += 1

    left_over = []
    for patient in new:
        stratum = strata[patient]
        lacking = {part: sizes[stratum] * share - by_stratum[stratum, part] for part, share in shares.items()}
        part = _largest(lacking)
        if lacking[part] >= 1 - 1e-9:
            place(patient, part)
        else:
            left_over.append(patient)
    for patient in left_over:
        place(patient, _largest({part: len(strata) * share - overall[part] for part, share in shares.items()}))

    empty = [part for part in shares if not overall[part]]
    if empty:
        counts = ", ".join(f"{part} {overall[part]}" for part in shares)
        raise UserError(
            f"{len(strata)} patients give an empty part {empty[0]!r} ({counts})",
            where="--split",
            fix="give more patients, another ratio, or a column split in the slide list",
        )
    return part_of


def split_patients(
    slides: Iterable[tuple[str, str | None, str | None]],
    earlier: Mapping[str, str],
    shares: Mapping[str, float] | None,
    seed: int = 0,
) -> dict[str, str]:
    """The part of every patient of a list of slides.

    slides   (patient, stratum, part or None) of each slide; a part that is given stands
    earlier  patient -> part, as earlier runs assigned them
    shares   of `parse_ratio`; None: who has no part yet is `train`
    A patient with slides of several strata stands with the most frequent, of equals with the first by name.
    Raises UserError as `fixed_parts` and `assign_splits` do.
    """
    rows = list(slides)
    fixed = fixed_parts([*earlier.items(), *((patient, part) for patient, _, part in rows)])
    count: dict[str, Counter[str | None]] = {}
    for patient, stratum, _ in rows:
        count.setdefault(patient, Counter())[stratum] += 1
    strata = {patient: min(names, key=lambda n: (-names[n], n or "")) for patient, names in count.items()}
    if shares is None:
        return {patient: fixed.get(patient, "train") for patient in strata}
    return assign_splits(strata, fixed, shares, seed)


def fixed_parts(patient_and_part: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """patient -> part from pairs of which some name no part.

    Raises UserError for an unknown part, or a patient in two parts.
    """
    part_of: dict[str, str] = {}
    for patient, part in patient_and_part:
        if part is None:
            continue
        if part not in PARTS:
            raise UserError(f"split {part!r} of patient {patient!r} is unknown", fix="train, val and test are known")
        if part_of.setdefault(patient, part) != part:
            raise UserError(
                f"patient {patient!r} is in two parts, {part_of[patient]} and {part}",
                fix="put all slides of a patient in one part",
            )
    return part_of


def refuse_shared_files(files: Iterable[FileOfPatient]) -> None:
    """Raise UserError for the first slide file that stands in two parts, under two patients.

    A patient is in one part, so only a file that is listed twice can be in two: a copy under another name, or a patient
    with two names. One file for several patients of one part is no leak.
    """
    seen: dict[str, FileOfPatient] = {}
    for file in files:
        first = seen.setdefault(file.fingerprint, file)
        if first.part != file.part:
            a, b = sorted((first, file), key=lambda f: f.slide_id)
            raise UserError(
                f"slides {a.slide_id!r} and {b.slide_id!r} are the same file, in two parts: {a.part} as patient "
                f"{a.patient!r}, {b.part} as patient {b.patient!r}",
                fix="list the slide once, or give both one patient",
            )


def _draw(patient: str, seed: int) -> bytes:
    """The patient's place in the order; the name breaks the tie that no two hashes will ever have."""
    return hashlib.sha256(f"{SALT}\x1f{seed}\x1f{patient}".encode()).digest() + patient.encode()


def _largest(lacking: Mapping[str, float]) -> str:
    """The part that lacks most; of equal ones the first. Rounded, so that 0.1 + 0.2 is a tie with 0.3."""
    return max(lacking, key=lambda part: (round(lacking[part], 9), -PARTS.index(part)))
