"""The leak guard: no slide of a patient on whom a model is measured may teach it, not even without labels.

Enters: the slides to mine, and the slides of a labelled store.  Leaves: the slides that may be mined, and the others
with the reason. A slide is known when its patient is one of the store's (a slide without patient is its own patient),
when its id is, or when its file is the same, whatever it is called. Without patients two slides of one person cannot
be told: the count of such slides is left too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cytopipe.slides import SlideEntry
from cytopipe.tiles.store import TileStore


@dataclass(frozen=True, slots=True)
class KnownSlide:
    """A slide of the labelled store."""

    slide_id: str
    patient: str
    split: str
    fingerprint: str | None


@dataclass(frozen=True, slots=True)
class Guarded:
    """What the guard decided.

    admitted         slides that may be mined, in the order given
    refused          (slide_id, reason) of the others
    without_patient  admitted slides whose patient is unknown although the store knows patients
    """

    admitted: tuple[SlideEntry, ...]
    refused: tuple[tuple[str, str], ...]
    without_patient: int


def known_slides(store: TileStore) -> list[KnownSlide]:
    """The slides of a store, also those that kept no tile."""
    columns = (store.slides[name].to_pylist() for name in ("slide_id", "patient", "split", "fingerprint"))
    return [KnownSlide(*row) for row in zip(*columns, strict=True)]


def guard(
    entries: Sequence[SlideEntry],
    fingerprints: Mapping[str, str],
    known: Sequence[KnownSlide],
    *,
    allow_train_patients: bool,
) -> Guarded:
    """Sort the slides to mine into admitted and refused.

    fingerprints          slide_id -> fingerprint, for the entries whose file could be read
    known                 slides of the labelled store; empty where there is none
    allow_train_patients  patients of whom all slides are in the store's train part are admitted
    An entry that the slide list itself puts into another part than train is refused as well.
    """
    admitted: list[SlideEntry] = []
    refused: list[tuple[str, str]] = []
    for entry in entries:
        reason = _reason(entry, fingerprints.get(entry.slide_id), known, allow_train_patients)
        if reason is None:
            admitted.append(entry)
        else:
            refused.append((entry.slide_id, reason))
    store_has_patients = any(slide.patient != slide.slide_id for slide in known)
    without_patient = sum(entry.patient is None for entry in admitted) if store_has_patients else 0
    return Guarded(tuple(admitted), tuple(refused), without_patient)


def _reason(
    entry: SlideEntry, fingerprint: str | None, known: Sequence[KnownSlide], allow_train_patients: bool
) -> str | None:
    if entry.split not in (None, "train"):
        return f"the slide list puts it into {entry.split}"
    own = entry.patient or entry.slide_id
    same = {"patient": {own}} | {
        "slide id": {s.patient for s in known if s.slide_id == entry.slide_id},
        "file": {s.patient for s in known if fingerprint is not None and s.fingerprint == fingerprint},
    }
    patients = set().union(*same.values())
    parts = {slide.split for slide in known if slide.patient in patients}
    if not parts or (allow_train_patients and parts == {"train"}):
        return None
    why = next(what for what, of in same.items() if any(slide.patient in of for slide in known))
    return f"its {why} is in the labelled store ({', '.join(sorted(parts))})"
