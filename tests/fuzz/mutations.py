"""Ways to break a file, each a function of the bytes and a random generator. The same seed breaks the same bytes."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np

from tests.fuzz.sources import Part, Span

NASTY = (0, 1, 2, 7, 255, 256, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1)
"""Values that sizes, counts and offsets are set to."""

Random = np.random.Generator


def flip_bit(data: bytearray, span: Span, random: Random) -> None:
    """One bit."""
    data[_place(span, random)] ^= 1 << int(random.integers(8))


def flip_bits(data: bytearray, span: Span, random: Random) -> None:
    """Two to thirty bits, anywhere in the span."""
    for _ in range(int(random.integers(2, 31))):
        flip_bit(data, span, random)


def random_bytes(data: bytearray, span: Span, random: Random) -> None:
    """Up to 64 bytes in a row."""
    start, stop = _stretch(span, random, 64)
    data[start:stop] = random.bytes(stop - start)


def zeros(data: bytearray, span: Span, random: Random) -> None:
    """Up to 4096 bytes in a row, as a lost disk block leaves them."""
    start, stop = _stretch(span, random, 4096)
    data[start:stop] = bytes(stop - start)


def ones(data: bytearray, span: Span, random: Random) -> None:
    """Up to 16 bytes of 0xff."""
    start, stop = _stretch(span, random, 16)
    data[start:stop] = b"\xff" * (stop - start)


def truncate(data: bytearray, span: Span, random: Random) -> None:
    """The file ends inside the span."""
    del data[_place(span, random) :]


def remove_bytes(data: bytearray, span: Span, random: Random) -> None:
    """Up to 64 bytes are missing; the rest moves up."""
    start, stop = _stretch(span, random, 64)
    del data[start:stop]


def swap_blocks(data: bytearray, span: Span, random: Random) -> None:
    """Two stretches of the span change places."""
    length = max(1, min(512, (span[1] - span[0]) // 3))
    first, second = (int(random.integers(span[0], max(span[0] + 1, span[1] - length))) for _ in range(2))
    one, other = bytes(data[first : first + length]), bytes(data[second : second + length])
    data[first : first + length], data[second : second + length] = other, one


ANYWHERE: tuple[Callable[[bytearray, Span, Random], None], ...] = (
    flip_bit, flip_bits, random_bytes, zeros, ones, truncate, remove_bytes, swap_blocks,
)  # fmt: skip


def change_entry(data: bytearray, part: Part, random: Random) -> str:
    """A field of a TIFF directory entry: its tag, type, count or value; or a number that its value points to."""
    start, stop = part.entries[int(random.integers(len(part.entries)))]
    order = "<" if data[:1] == b"I" else ">"
    word, at_count, at_value = ("Q", 4, 12) if stop - start == 20 else ("I", 4, 8)
    width = struct.calcsize(word)
    value = int(NASTY[int(random.integers(len(NASTY)))]) if random.random() < 0.7 else int(random.integers(2**32))
    choice = int(random.integers(5))
    if choice == 0:
        struct.pack_into(order + "H", data, start, int(random.integers(250, 350)))
        return "entry tag"
    if choice == 1:
        struct.pack_into(order + "H", data, start + 2, int(random.integers(0, 19)))
        return "entry type"
    if choice == 2:
        old = struct.unpack_from(order + word, data, start + at_count)[0]
        new = (old + int(random.integers(-2, 3))) % 2**32 if random.random() < 0.5 else value
        struct.pack_into(order + word, data, start + at_count, new)
        return "entry count"
    place = struct.unpack_from(order + word, data, start + at_value)[0]
    if choice == 3 and 8 <= place < len(data) - 16:
        struct.pack_into(order + "I", data, place + 4 * int(random.integers(0, 3)), value)
        return "entry's number"
    struct.pack_into(order + word, data, start + at_value, value % 2 ** (8 * width))
    return "entry value"


def join_directories(data: bytearray, part: Part, random: Random) -> str:
    """The pointer after a directory's entries leads anywhere: to itself, to an earlier one, into the pixels."""
    ends = [stop for _, stop in part.entries if not any(start == stop for start, _ in part.entries)]
    starts = [start - (8 if stop - start == 20 else 2) for start, stop in part.entries]
    at = ends[int(random.integers(len(ends)))]
    target = starts[int(random.integers(len(starts)))] if random.random() < 0.8 else int(random.integers(len(data)))
    order = "<" if data[:1] == b"I" else ">"
    if at + 8 <= len(data):
        struct.pack_into(order + "I", data, at + (4 if order == ">" and data[3] == 43 else 0), target)
    return "directory pointer"


def mutate(part: Part, where: str, random: Random) -> tuple[bytes, str]:
    """The bytes of a part, broken in its headers or its pixels (`where`), and how."""
    data = bytearray(part.data)
    if where == "header" and part.entries and random.random() < 0.5:
        change = join_directories if random.random() < 0.1 else change_entry
        what = change(data, part, random)
        return bytes(data), what
    spans = part.headers if where == "header" else part.pixels
    weights = np.array([stop - start for start, stop in spans], dtype=np.float64)
    span = spans[int(random.choice(len(spans), p=weights / weights.sum()))]
    change_span = ANYWHERE[int(random.integers(len(ANYWHERE)))]
    change_span(data, span, random)
    return bytes(data), change_span.__name__.replace("_", " ")


def _place(span: Span, random: Random) -> int:
    return int(random.integers(span[0], span[1]))


def _stretch(span: Span, random: Random, longest: int) -> Span:
    start = _place(span, random)
    return start, min(span[1], start + int(random.integers(1, longest + 1)))
