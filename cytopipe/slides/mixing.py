"""Samples of any type, in any number of channels, become 8-bit RGB: which channel is shown in which colour, and which
of its values as 0 and as 255.

Enters: what a file says of its channels, and what the user asked for (`Showing.channels`).  Leaves: a `Mix`. It works
pixel by pixel, so that windows agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import UserError
from cytopipe.slides.showing import ANY_CHANNELS, HOW_CHANNELS, Asked, parse_channels
from cytopipe.slides.slide import U8

Samples = NDArray[Any]

PURE_COLOURS = ("FF0000", "00FF00", "0000FF")
"""Three channels that the file itself shows in these colours, in this order, are an RGB picture."""

PRECISE_IN_FLOAT32 = 2
"""Bytes of an integer that a float32 holds without loss, and an offset and a scale with it."""


@dataclass(frozen=True, slots=True)
class Channel:
    """What a file says of a channel: its name, the range that it wants shown as 0 to 255, its colour as RRGGBB."""

    name: str
    window: tuple[float, float] | None = None
    colour: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """The samples that a slide has.

    channels    in the order of the file; names need not differ
    full_range  least and largest value of the samples' type; None for floats, which have none worth showing
    is_rgb      whether the channels are red, green and blue of one picture
    """

    channels: tuple[Channel, ...]
    full_range: tuple[float, float] | None
    is_rgb: bool

    @property
    def is_a_choice(self) -> bool:
        """Whether somebody has to say which channels to show."""
        return len(self.channels) > 1 and not self.is_rgb

    @property
    def listed(self) -> str:
        """The channels as a message lists them: numbers, with the names that the file gives."""
        names = [channel.name for channel in self.channels]
        return ", ".join(name if name == str(number) else f"{number} {name}" for number, name in enumerate(names))


@dataclass(frozen=True, slots=True)
class Part:
    """A channel by its number, and the values that are shown as 0 and as 255."""

    channel: int
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Mix:
    """What red, green and blue show; None: nothing."""

    parts: tuple[Part | None, Part | None, Part | None]

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels that are needed, each once, ascending."""
        return tuple(sorted({part.channel for part in self.parts if part is not None}))

    def rgb(self, samples: Mapping[int, Samples]) -> U8:
        """Channel -> samples (h, w)  gives  RGB (h, w, 3): the range linearly onto 0 to 255, rounded, clipped; what is
        no number is 0."""
        shown: dict[Part, U8] = {}
        for part in self.parts:
            if part is not None and part not in shown:
                shown[part] = _stretched(samples[part.channel], part.low, part.high)
        nothing = np.zeros(next(iter(shown.values())).shape, np.uint8)
        return np.dstack([nothing if part is None else shown[part] for part in self.parts])


def is_pure_rgb(channels: Sequence[Channel]) -> bool:
    """Whether the file shows its three channels in pure red, green and blue."""
    return tuple(channel.colour for channel in channels) == PURE_COLOURS


def choose_mix(asked: str | None, source: Source, name: str) -> tuple[Mix, tuple[str, ...]]:
    """How a slide is shown, and notes on what the user did not decide.

    Without `asked`: RGB as it is, a single channel in grey, over its own range or that of its type. Raises UserError:
    several channels without a choice, a channel that is not there, samples without a range.
    """
    notes: list[str] = []
    if asked is None or asked == ANY_CHANNELS:
        numbers = [0, 1, 2] if source.is_rgb else [0]
        if source.is_a_choice:
            if asked is None:
                raise UserError(f"{len(source.channels)} channels ({source.listed})", where=name, fix=HOW_CHANNELS)
            notes.append(f"channel {source.channels[0].name} is looked at; --channels chooses")
        parts: list[Part | None] = [_part(number, None, source, name) for number in numbers]
        notes += _said_range(parts[0])
    else:
        parts = [
            None if one is None else _part(_number(one, source, name), one.window, source, name)
            for one in parse_channels(asked)
        ]
    red, green, blue = parts * (3 // len(parts))
    return Mix((red, green, blue)), tuple(notes)


def _part(number: int, window: tuple[float, float] | None, source: Source, name: str) -> Part:
    channel = source.channels[number]
    own = None if source.is_rgb else channel.window  # viewers write one for RGB too: it would change stored colours
    low_high = window or own or source.full_range
    if low_high is None:
        what = f"channel {channel.name} has fractional values, and the file does not say which of them to show"
        raise UserError(what, where=name, fix=f"give their range, such as --channels {number}@0:1")
    return Part(number, *low_high)


def _number(asked: Asked, source: Source, name: str) -> int:
    """A channel by its exact name, else by its name in other case, else by its number."""
    for normal in (str, str.casefold):
        found = [i for i, channel in enumerate(source.channels) if normal(channel.name) == normal(asked.name)]
        if len(found) > 1 and not asked.name.isdecimal():
            raise UserError(f"{len(found)} channels are called {asked.name!r}", where=name, fix="give their numbers")
        if found:
            return found[0]
    if asked.name.isdecimal() and int(asked.name) < len(source.channels):
        return int(asked.name)
    raise UserError(f"no channel {asked.name!r} among {source.listed}", where=name, fix=HOW_CHANNELS)


def _said_range(part: Part | None) -> list[str]:
    if part is None or (part.low, part.high) == (0, 255):
        return []
    return [f"samples from {part.low:g} to {part.high:g} are shown as 0 to 255"]


def _stretched(samples: Samples, low: float, high: float) -> U8:
    if samples.dtype == np.uint8 and (low, high) == (0, 255):
        return np.ascontiguousarray(samples)
    is_short = samples.dtype.kind in "iu" and samples.dtype.itemsize <= PRECISE_IN_FLOAT32
    values: Samples = samples.astype(np.float32 if is_short else np.float64)
    values -= low
    values *= 255.0 / (high - low)
    values += 0.5  # truncated below
    shown: U8 = np.clip(np.nan_to_num(values, nan=0.0, posinf=255.0, neginf=0.0), 0, 255).astype(np.uint8)
    return shown
