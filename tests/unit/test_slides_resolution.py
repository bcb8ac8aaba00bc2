"""What is believed about a slide's resolution, and in which order."""

from __future__ import annotations

import pytest

from cytopipe.core.errors import UserError
from cytopipe.slides.resolution import Evidence, mpp_from_tags, number_or_none, settle_resolution

ALL = Evidence(vendor=(0.25, 0.26), vendor_field="aperio.MPP", tags=(0.3, 0.3), objective=40.0)


def test_evidence_counts_in_the_order_override_vendor_tags_objective():
    without_vendor = Evidence(tags=(0.3, 0.3), objective=40.0)

    found = [
        settle_resolution(*case)[0]
        for case in ((ALL, 0.5), (ALL, None), (without_vendor, None), (Evidence(objective=40.0), None))
    ]

    assert [(r.mpp_x, r.mpp_y, r.source, r.guessed) for r in found if r] == [
        (0.5, 0.5, "override", False),
        (0.25, 0.26, "vendor field aperio.MPP", False),
        (0.3, 0.3, "TIFF resolution tags", False),
        (0.25, 0.25, "objective power 40", True),
    ]


def test_nothing_said_is_no_resolution_and_no_default():
    assert settle_resolution(Evidence(), None) == (None, ())


@pytest.mark.parametrize("dpi", [72, 96, 300, 1e9])
def test_resolution_tags_of_image_editors_are_not_believed_and_that_is_noted(dpi):
    resolution, notes = settle_resolution(Evidence(tags=mpp_from_tags(dpi, dpi, 2)), None)

    assert resolution is None
    assert "not believed" in notes[0]


def test_tags_that_are_not_believed_leave_the_word_to_the_objective():
    resolution, notes = settle_resolution(Evidence(tags=(352.8, 352.8), objective=20.0), None)

    assert (resolution.mpp, resolution.guessed, len(notes)) == (0.5, True, 1)


def test_a_vendor_is_believed_even_where_a_tag_would_not_be():
    resolution, notes = settle_resolution(Evidence(vendor=(28.969, 28.968), vendor_field="dicom"), None)

    assert (resolution.mpp_x, resolution.mpp_y, notes) == (28.969, 28.968, ())


def test_a_vendor_field_of_zero_is_noted_and_passed_over():
    resolution, notes = settle_resolution(Evidence(vendor=(0.0, 0.0), vendor_field="aperio.MPP", objective=20.0), None)

    assert resolution.guessed
    assert "aperio.MPP says 0" in notes[0]


def test_pixels_that_are_not_square_are_kept_as_they_are_and_noted():
    resolution, notes = settle_resolution(ALL, None)

    assert resolution.mpp == pytest.approx(0.255)
    assert "not square: 0.25 x 0.26" in notes[0]


@pytest.mark.parametrize("override", [0.0, -1.0, float("nan"), float("inf")])
def test_an_override_that_is_no_positive_number_is_refused(override):
    with pytest.raises(UserError, match="positive number"):
        settle_resolution(ALL, override)


def test_tag_units_are_inch_and_centimetre_and_anything_else_is_no_length():
    assert mpp_from_tags(25_400, 50_800, 2) == (1.0, 0.5)
    assert mpp_from_tags(40_000, 40_000, 3) == (0.25, 0.25)
    assert mpp_from_tags(40_000, 40_000, 1) is None
    assert mpp_from_tags(0, 40_000, 3) is None


@pytest.mark.parametrize(
    ("text", "value"), [(" 0.25 ", 0.25), ("40", 40.0), ("0,25", None), ("nan", None), ("", None), (None, None)]
)
def test_metadata_that_is_no_number_is_no_evidence(text, value):
    assert number_or_none(text) == value
