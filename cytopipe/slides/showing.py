"""How a slide's samples become RGB, as the user asked for it: colour profile, plane of a stack, channels.

Enters: the words of the command line.  Leaves: a `Showing`, which `open_slide` takes. What a file has to offer is not
known here; its reader refuses a plane or channel that it lacks.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from cytopipe.core.errors import UserError

Icc = Literal["off", "srgb"]
Z = int | Literal["best"]

COLOURS = ("red", "green", "blue")
NOTHING = "-"
ANY_CHANNELS = "*"
"""For who only wants a look: the first of several channels, whatever it is."""
HOW_CHANNELS = (
    "give --channels RED,GREEN,BLUE by name or number ('-' for none), or a single one; NAME@LOW:HIGH sets its range"
)


@dataclass(frozen=True, slots=True)
class Showing:
    """What is done to the samples of a slide before anything else looks at it.

    icc       "srgb": the embedded colour profile is applied; "off": pixels as stored
    z         plane of a stack, from 0; "best": the sharpest plane of each window; None: not said
    channels  which channels are red, green and blue (`parse_channels`); None: not said
    """

    icc: Icc = "off"
    z: Z | None = None
    channels: str | None = None


AS_STORED = Showing()
"""Nothing asked: pixels as they are in the file; a stack, or several channels, are refused with what can be chosen."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One channel that was asked for: its name or number, and the range that is shown as 0 to 255 (None: the file's
    own)."""

    name: str
    window: tuple[float, float] | None = None


def showing_of(icc: str = "off", z: str | int | None = None, channels: str | None = None) -> Showing:
    """A Showing from words. Raises UserError as the parsers do."""
    if channels is not None:
        parse_channels(channels)
    return Showing(parse_icc(icc), None if z is None else parse_z(z), channels)


def parse_icc(text: str) -> Icc:
    """`off` or `srgb`. Raises UserError for anything else."""
    if text == "off":
        return "off"
    if text == "srgb":
        return "srgb"
    raise UserError(f"--icc {text!r}", fix="give srgb, to apply the embedded colour profile, or off")


def parse_z(text: str | int) -> Z:
    """A plane's number from 0, or `best`. Raises UserError for anything else."""
    if text == "best":
        return "best"
    if str(text).isdecimal():
        return int(text)
    raise UserError(f"--z {str(text)!r}", fix="give the number of a plane, from 0, or best")


def parse_channels(text: str) -> tuple[Asked | None, ...]:
    """`DAPI,-,2@100:4000` -> one channel (shown grey), or three for red, green and blue, None where nothing is shown.

    Raises UserError: two or more than three, none at all, or a range that is none.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, len(COLOURS)):
        raise UserError(f"--channels {text!r} names {len(parts)} channels", fix=HOW_CHANNELS)
    asked = tuple(None if part == NOTHING else _asked(part, text) for part in parts)
    if not any(asked):
        raise UserError(f"--channels {text!r} shows nothing", fix=HOW_CHANNELS)
    return asked


def _asked(part: str, text: str) -> Asked:
    match = re.fullmatch(r"(.*)@([^:@]+):([^:@]+)", part)
    name = match[1].strip() if match else part
    if not name:
        raise UserError(f"--channels {text!r} leaves a name empty", fix=HOW_CHANNELS)
    if match is None:
        return Asked(name)
    try:
        low, high = float(match[2]), float(match[3])
    except ValueError:
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(
            f"--channels: {match[2]}:{match[3]} is no range", fix="give two numbers, the lower first, such as 100:4000"
        )
    return Asked(name, (low, high))
