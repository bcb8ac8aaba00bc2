"""Numbers as decimal text, a column at a time: what `repr` and a join would take seconds for is a few table look-ups.

Enters: integer multiples of 1/1000 or of 1/10^6.  Leaves: words of four ASCII characters each (uint32), NUL where a
number is shorter; who puts them into a text takes the NULs out at the end (`bytes.translate`). No exponent, no zero
behind the last digit, no point behind a whole number: the shortest decimal text of the value.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]

LARGEST = 10**8  # of `put_millionths`: two words before the point
LARGEST_THOUSANDTHS = 10**7 * 1000  # of `thousandths`

MILLIONTH_WORDS = 5  # of `put_millionths`: sign, two for the whole number, two for the fraction
MILLIONTH_CHARACTERS = 4 * MILLIONTH_WORDS


def _table(texts: list[str]) -> Words:
    return np.array([text.encode() for text in texts], dtype="S4").view(np.uint32)


_HIGH = _table(["", *(str(k) for k in range(1, 10_000))])  # first digits of a number that has more
_LOW = _table([*(str(k) for k in range(10_000)), *(f"{k:04d}" for k in range(10_000))])  # alone, or behind others
_UNITS = _table([f"{k:{digits}}{point}" for point in ("", ".") for digits in ("d", "03d") for k in range(1000)])
_LAST = _table([f".{k:03d}".rstrip("0").rstrip(".") for k in range(1000)])  # thousandths with nothing behind
_FIRST = _table([f".{k:03d}" for k in range(1000)])  # and with something behind
_BEHIND = _table([f"{k:03d}".rstrip("0") for k in range(1000)])  # millionths behind thousandths
_BEFORE_COMMA = _table([f"{k:03d}".rstrip("0") + "," for k in range(1000)])
_BEFORE_BRACKET = _table([f"{k:03d}".rstrip("0") + "]" for k in range(1000)])
_SIGN = _table(["", "-"])


def thousandths(values: NDArray[np.integer], end: Literal[",", "]"]) -> list[Words]:
    """The text of each value / 1000 and what ends it, 0 <= values < LARGEST_THOUSANDTHS: two or three columns of words.

    The first of three is left out where no number has four digits before the point.
    """
    if not values.size or values.max() < 2**32:
        values = values.astype(np.uint32, copy=False)  # divisions of 32 bits take half the time
    whole = values // 1000
    fraction = values - whole * 1000
    ends = (_BEFORE_COMMA if end == "," else _BEFORE_BRACKET)[fraction]
    units = (fraction > 0) * whole.dtype.type(2000)
    if not values.size or whole.max() < 1000:
        return [_UNITS[units + whole], ends]
    high = whole // 1000
    units += whole - high * 1000
    units += (high > 0) * whole.dtype.type(1000)
    return [_HIGH[high], _UNITS[units], ends]


def put_millionths(words: Words, values: NDArray[np.float64]) -> None:
    """Write finite numbers (N,), rounded to 1/10^6, into `words` (N, MILLIONTH_WORDS)."""
    with np.errstate(over="ignore", invalid="ignore"):
        is_small = np.abs(values) < LARGEST - 1
    scaled = np.rint(np.where(is_small, values, 0) * 1e6).astype(np.int64)
    size = np.abs(scaled)
    whole, rest = np.divmod(size, 1_000_000)
    first, behind = np.divmod(rest, 1000)
    high, low = np.divmod(whole, 10_000)
    words[:, 0] = _SIGN[(scaled < 0).astype(np.intp)]
    words[:, 1] = _HIGH[high]
    words[:, 2] = _LOW[low + np.where(high > 0, 10_000, 0)]
    words[:, 3] = np.where(behind > 0, _FIRST[first], _LAST[first])
    words[:, 4] = _BEHIND[behind]
    for i in np.flatnonzero(~is_small).tolist():  # an area of 10,000 x 10,000 px: rare
        words[i] = np.array([f"{values[i]:.12g}".encode()], dtype=f"S{MILLIONTH_CHARACTERS}").view(np.uint32)
