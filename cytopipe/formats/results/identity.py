"""The order of the rows of a results table, and the ids of its objects: both follow from the set of objects alone.

Enters: `Objects`, level-0 px.  Leaves: the order of their rows; a UUID for each (DESIGN 6): slide, geometry to 1/64 px,
class, ordinal among equals.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.objects import Objects
from cytopipe.core.rings import Rings, are_lone_rings, rings_of, turns_of

ID_GRID_PX = 1 / 64  # DESIGN 6: ids survive differences in the last bits of a coordinate
BATCH = 1 << 11  # [D] outlines that are worked on together: their numbers fit into the cache of a core

_HYPHENS = (8, 13, 18, 23)  # of a UUID's 36 characters
_DIGIT_PLACES = np.array([i for i in range(36) if i not in _HYPHENS])
_HEX = np.array([list(f"{byte:02x}".encode()) for byte in range(256)], np.uint8)


def canonical_order(objects: Objects) -> NDArray[np.intp]:
    """The rows by (y0, x0, class, y1, x1), then by all that can still differ, so that equal sets give equal tables."""
    x0, y0, x1, y1 = objects.xyxy.T
    order = np.lexsort((x1, y1, objects.class_index, x0, y0))
    columns = [*objects.xyxy.T, objects.class_index]
    same = np.logical_and.reduce([column[order][1:] == column[order][:-1] for column in columns])
    starts = np.flatnonzero(np.diff(np.concatenate([[0], same.astype(np.int8), [0]])) == 1)
    stops = np.flatnonzero(np.diff(np.concatenate([[0], same.astype(np.int8), [0]])) == -1) + 1
    for start, stop in zip(starts, stops, strict=True):
        rows = order[start:stop]
        tied = objects.take(rows)
        order[start:stop] = rows[_order_of_ties(tied)]
    return order


class IdMaker:
    """The ids of objects that come in canonical order, in any number of batches: the same ids as in one.

    What is kept for the ordinals among equals is dropped once no equal object can come: equal outlines end at one y,
    and an object starts at or above its end.
    """

    def __init__(self, slide_id: str, classes: Sequence[str]) -> None:
        self._suffix = [f"\x1f{slide_id}\x1f{name}\x1f" for name in classes]
        self._first = [f"{suffix}0".encode() for suffix in self._suffix]
        self._seen: dict[bytes, tuple[int, float]] = {}

    def ids(self, objects: Objects, shapes: NDArray[np.object_]) -> NDArray[np.uint8]:
        """A UUID an object, (N, 36) uint8 ASCII: 128 bits of BLAKE2b, the same in every file and run."""
        if not len(objects):
            return np.zeros((0, 36), np.uint8)
        least = objects.xyxy[:, 1].min()
        self._seen = {digest: entry for digest, entry in self._seen.items() if entry[1] >= least}
        ends = np.maximum(shapely.bounds(shapes)[:, 3], objects.xyxy[:, 3]) + ID_GRID_PX
        digests: list[bytes] = []
        rows = zip(objects.class_index.tolist(), _keys(shapes), ends.tolist(), strict=True)
        seen, first = self._seen, self._first
        for class_index, key, end in rows:
            digest = blake2b(key + first[class_index], digest_size=16, salt=b"cytopipe").digest()
            if digest in seen:
                ordinal = seen[digest][0] + 1
                seen[digest] = (ordinal, end)
                key += f"{self._suffix[class_index]}{ordinal}".encode()
                digest = blake2b(key, digest_size=16, salt=b"cytopipe").digest()
            else:
                seen[digest] = (0, end)
            digests.append(digest)
        return _uuid_text(np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 16))


def uuid_bytes(ids: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The 16 bytes of each UUID (N, 36) uint8 ASCII: (N, 16) uint8."""
    digits = ids[:, _DIGIT_PLACES].astype(np.int16)
    values = np.where(digits > ord("9"), digits - ord("a") + 10, digits - ord("0")).astype(np.uint8)
    return values[:, ::2] * np.uint8(16) + values[:, 1::2]


def _order_of_ties(objects: Objects) -> list[int]:
    """Rows of equal box and class by geometry on the grid, score (high first), and the rest."""
    keys = _keys(np.where(shapely.is_missing(objects.geometry), shapely.box(*objects.xyxy.T), objects.geometry))
    exact = shapely.to_wkb(objects.geometry, byte_order=1)

    def place(i: int) -> tuple[Any, ...]:
        rest = (tuple(objects.class_scores[i]), objects.flags[i], objects.window[i], objects.measures[i].tobytes())
        return (keys[i], -objects.score[i], exact[i] or b"", *rest)

    return sorted(range(len(objects)), key=place)


def _keys(shapes: NDArray[np.object_]) -> list[bytes]:
    """The bytes of each shape on the grid, whatever its first point and its direction: WKB of GEOS's normal form."""
    if len(shapes) > BATCH:
        return [key for start in range(0, len(shapes), BATCH) for key in _keys(shapes[start : start + BATCH])]
    if not len(shapes) or not are_lone_rings(shapes):
        on_grid = shapely.transform(shapes, lambda points: np.round(points / ID_GRID_PX) + 0.0)
        found: list[bytes] = shapely.to_wkb(shapely.normalize(on_grid), byte_order=1).tolist()
        return found
    return _keys_of_rings(rings_of(shapes), shapes)


def _keys_of_rings(rings: Rings, shapes: NDArray[np.object_]) -> list[bytes]:
    """The same bytes for polygons without holes, all at once: with the clock, from the least vertex (by x, then y)."""
    xy = np.round(rings.xy / ID_GRID_PX) + 0.0
    first = rings.first
    counts = np.diff(first)
    area, is_star = turns_of(xy, first)
    least_x = np.minimum.reduceat(xy[:, 0], first[:-1])
    y_there = np.where(xy[:, 0] == np.repeat(least_x, counts), xy[:, 1], np.inf)
    is_least = y_there == np.repeat(np.minimum.reduceat(y_there, first[:-1]), counts)
    is_least[first[1:] - 1] = False  # the first vertex again
    start = np.flatnonzero(is_least)
    is_plain = is_star & (np.add.reduceat(is_least, first[:-1], dtype=np.intp) == 1)
    if not is_plain.all():  # perhaps rounded to a line, or across itself: GEOS has rules of its own for these
        keys = np.empty(len(shapes), dtype=object)
        for rows, whole in ((is_plain, False), (~is_plain, True)):
            some = shapes[rows]
            if not len(some):
                continue
            if whole:
                on_grid = shapely.transform(some, lambda points: np.round(points / ID_GRID_PX) + 0.0)
                keys[rows] = shapely.to_wkb(shapely.normalize(on_grid), byte_order=1)
            else:
                keys[rows] = np.array([*_keys_of_rings(rings_of(some), some), None], dtype=object)[:-1]
        both: list[bytes] = keys.tolist()
        return both
    place = np.arange(len(xy)) - np.repeat(first[:-1], counts)
    turned = np.where(np.repeat(area > 0, counts), -place, place)
    around = np.repeat(counts - 1, counts)
    body = np.ascontiguousarray(
        xy[np.repeat(first[:-1], counts) + (np.repeat(start - first[:-1], counts) + turned) % around], dtype="<f8"
    )
    text = memoryview(body).cast("B")
    ends = (first * 16).tolist()
    heads = {n: struct.pack("<BIII", 1, 3, 1, n) for n in np.unique(counts).tolist()}
    return [b"".join((heads[n], text[a:b])) for n, a, b in zip(counts.tolist(), ends, ends[1:], strict=False)]


def _uuid_text(digests: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(N, 16) bytes as UUIDs of version 5, (N, 36) ASCII."""
    digests = digests.copy()
    digests[:, 6] = digests[:, 6] & 0x0F | 0x50
    digests[:, 8] = digests[:, 8] & 0x3F | 0x80
    text = np.full((len(digests), 36), ord("-"), np.uint8)
    text[:, _DIGIT_PLACES] = _HEX[digests].reshape(-1, 32)
    return text
