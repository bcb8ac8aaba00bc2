"""The words by which planes, channels and profiles are chosen, and samples mixed into RGB."""

from __future__ import annotations

import numpy as np
import pytest

from cytopipe.core.errors import UserError
from cytopipe.slides import AS_STORED, Showing, showing_of
from cytopipe.slides.mixing import Channel, Mix, Part, Source, choose_mix
from cytopipe.slides.showing import Asked, parse_channels, parse_icc, parse_z


def test_nothing_asked_is_as_stored():
    assert showing_of() == AS_STORED == Showing("off", None, None)
    assert showing_of("srgb", "best", "a,b,c") == Showing("srgb", "best", "a,b,c")
    assert showing_of("off", "3") == showing_of("off", 3) == Showing(z=3)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("DAPI", (Asked("DAPI"),)),
        ("2", (Asked("2"),)),
        ("a, b ,-", (Asked("a"), Asked("b"), None)),
        ("-,-,488 nm@0.5:1e3", (None, None, Asked("488 nm", (0.5, 1000.0)))),
        ("mail@lab", (Asked("mail@lab"),)),
        ("a:b@-3:-1", (Asked("a:b", (-3.0, -1.0)),)),
    ],
)
def test_channels_are_one_or_three_with_ranges(text, asked):
    assert parse_channels(text) == asked


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a,b", "names 2 channels"),
        ("a,b,c,d", "names 4 channels"),
        ("-", "shows nothing"),
        ("-,-,-", "shows nothing"),
        ("", "leaves a name empty"),
        ("a,,b", "leaves a name empty"),
        ("@0:1", "leaves a name empty"),
        ("a@1:1", "1:1 is no range"),
        ("a@2:1", "2:1 is no range"),
        ("a@x:1", "x:1 is no range"),
        ("a@0:inf", "0:inf is no range"),
        ("a@nan:1", "nan:1 is no range"),
    ],
)
def test_channels_that_cannot_be_meant_are_refused_with_the_way_to_write_them(text, said):
    with pytest.raises(UserError, match=said) as refusal:
        showing_of(channels=text)
    assert refusal.value.fix


@pytest.mark.parametrize("text", ["-1", "1.5", "Best", "", "two", "²"])
def test_a_plane_is_a_number_from_0_or_best(text):
    with pytest.raises(UserError, match="give the number of a plane, from 0, or best"):
        parse_z(text)


def test_a_profile_is_applied_as_srgb_or_not_at_all():
    assert parse_icc("srgb") == "srgb"
    with pytest.raises(UserError, match="--icc 'SRGB'; give srgb"):
        parse_icc("SRGB")


def test_names_win_over_numbers_and_exact_names_over_others():
    source = Source((Channel("1"), Channel("x"), Channel("X")), (0.0, 255.0), is_rgb=False)

    assert [choose_mix(name, source, "s")[0].channels for name in ("1", "0", "x", "X", "2")] == [
        (0,), (0,), (1,), (2,), (2,)
    ]  # fmt: skip


def test_two_channels_of_one_name_are_told_apart_by_number():
    source = Source((Channel("a"), Channel("a")), (0.0, 255.0), is_rgb=False)

    with pytest.raises(UserError, match="2 channels are called 'a'; give their numbers"):
        choose_mix("a", source, "s")
    assert choose_mix("1", source, "s")[0].channels == (1,)


def test_a_range_is_the_users_then_the_files_then_the_types():
    source = Source((Channel("a", (10.0, 20.0)), Channel("b")), (0.0, 4095.0), is_rgb=False)

    def window(asked: str) -> tuple[float, float]:
        part = choose_mix(asked, source, "s")[0].parts[0]
        return part.low, part.high

    assert [window("a@1:2"), window("a"), window("b")] == [(1.0, 2.0), (10.0, 20.0), (0.0, 4095.0)]


def test_a_colour_without_a_channel_is_black_and_one_channel_may_be_shown_twice():
    mix = Mix((Part(4, 0, 255), None, Part(4, 0, 510)))

    rgb = mix.rgb({4: np.array([[0, 100, 255]], np.uint8)})

    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, [[[0, 0, 0], [100, 0, 50], [255, 0, 128]]])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.uint32, np.int64, np.float32, np.float64])
def test_samples_are_mapped_linearly_rounded_and_clipped_whatever_their_type(dtype):
    values = np.linspace(0, 100, 201).astype(dtype)[None]

    shown = Mix((Part(0, 20, 80), None, None)).rgb({0: values})[..., 0]

    wanted = np.clip((values.astype(np.float64) - 20) * 255 / 60, 0, 255)
    assert np.abs(shown - wanted).max() <= 0.501
    assert (np.diff(shown.astype(int)) >= 0).all()
