"""The leak guard: whoever is measured on teaches nothing."""

from __future__ import annotations

from pathlib import Path

from cytopipe.mine import KnownSlide, guard
from cytopipe.slides import SlideEntry

STORE = [
    KnownSlide("S-1", "P-1", "train", "f1"),
    KnownSlide("S-2", "P-2", "test", "f2"),
    KnownSlide("S-3", "P-3", "train", "f3"),
    KnownSlide("S-4", "P-3", "val", "f4"),
]


def entry(slide_id: str, patient: str | None = None, split: str | None = None) -> SlideEntry:
    return SlideEntry(Path(f"{slide_id}.svs"), slide_id, patient=patient, split=split)


def refused(entries, known=STORE, *, allow=False, fingerprints=None):
    return dict(guard(entries, fingerprints or {}, known, allow_train_patients=allow).refused)


def test_every_slide_of_a_patient_of_the_labelled_store_is_kept_out():
    entries = [entry("new-1", "P-1"), entry("new-2", "P-2"), entry("new-9", "P-9")]

    result = guard(entries, {}, STORE, allow_train_patients=False)

    assert [e.slide_id for e in result.admitted] == ["new-9"]
    assert dict(result.refused) == {
        "new-1": "its patient is in the labelled store (train)",
        "new-2": "its patient is in the labelled store (test)",
    }


def test_patients_of_the_train_part_are_admitted_when_asked_and_only_if_all_their_slides_are_there():
    entries = [entry("new-1", "P-1"), entry("new-2", "P-2"), entry("new-3", "P-3")]

    assert set(refused(entries, allow=True)) == {"new-2", "new-3"}


def test_a_slide_without_patient_is_known_by_its_id_and_by_its_file():
    entries = [entry("S-2"), entry("renamed"), entry("other")]

    reasons = refused(entries, fingerprints={"S-2": "x", "renamed": "f2", "other": "y"})

    assert reasons == {
        "S-2": "its slide id is in the labelled store (test)",
        "renamed": "its file is in the labelled store (test)",
    }


def test_a_known_file_under_another_patient_leads_to_the_patient_of_the_store():
    # S-3 itself is train, but its patient has a slide in val.
    assert set(refused([entry("copy", "P-8")], allow=True, fingerprints={"copy": "f3"})) == {"copy"}
    assert set(refused([entry("copy", "P-8")], allow=True, fingerprints={"copy": "f1"})) == set()


def test_a_slide_that_the_list_puts_into_another_part_than_train_is_kept_out_without_any_store():
    entries = [entry("a", split="test"), entry("b", split="train"), entry("c")]

    assert refused(entries, known=[]) == {"a": "the slide list puts it into test"}


def test_slides_of_unknown_patients_are_counted_where_the_store_knows_patients():
    entries = [entry("a"), entry("b", "P-9")]
    without = [KnownSlide("S-1", "S-1", "train", None)]

    assert guard(entries, {}, STORE, allow_train_patients=False).without_patient == 1
    assert guard(entries, {}, without, allow_train_patients=False).without_patient == 0
