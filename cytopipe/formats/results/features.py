"""Groups of objects as the text of GeoJSON features, QuPath's detections: formatted column by column.

Enters: a `Group`, frame slide.  Leaves: one line a feature, without the commas between them, UTF-8.

Every feature is put together from a head of fixed width and its coordinates; what a number does not fill is NUL and is
taken out at the end. Coordinates are written to 1/1000 px; an outline that this would break is written as it is.
Outlines turn against the clock in the plane of the numbers and holes with it, as RFC 7946 wants.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.objects import MEASURES
from cytopipe.core.rings import Rings, are_lone_rings, rings_of, turns_of
from cytopipe.core.shapes import SHAPE_MEASURES
from cytopipe.formats.colours import class_colours
from cytopipe.formats.decimal_text import (
    LARGEST_THOUSANDTHS,
    MILLIONTH_CHARACTERS,
    Words,
    put_millionths,
    thousandths,
)
from cytopipe.formats.qupath import SCORE
from cytopipe.formats.results.schema import FLAG_TEXTS, Group, ResultsInfo

F64 = NDArray[np.float64]

SCORE_DIGITS, AREA_PX_DIGITS, MICRON_DIGITS, MEASURE_DIGITS = 6, 3, 4, 4  # behind the point

BATCH = 1 << 11  # [D] features formatted together: their numbers fit into the cache of a core

_POLYGON = 3  # shapely's type id


def _words(texts: Sequence[str]) -> Words:
    return np.array([text.encode() for text in texts], dtype="S4").view(np.uint32)


_OPEN = _words(["[" * k for k in range(5)])  # before a vertex: brackets that begin there
_CLOSE = _words([",", "],", "]],", "]]", "]]]"])  # behind one: of its ring, part and shape those that end there
_NEXT = _words([",[", ""])  # between the vertices of lone rings
_MINUS = _words(["", "-"])


class Features:
    """Makes the text of features: `Features(info, shift).text(group)`.

    shift  x, y of the file's frame in frame slide, level-0 px
    """

    def __init__(self, info: ResultsInfo, shift: tuple[int, int]) -> None:
        self._info, self._shift = info, shift
        names = info.names
        colours = class_colours(names)
        self._classes = _padded([json.dumps({"name": n, "color": list(colours[n])}, ensure_ascii=False) for n in names])
        self._flags = _padded([f'"metadata": {{"flags": "{text}"}}, ' if text else "" for text in FLAG_TEXTS])
        self._types = _padded(['"MultiPolygon"', '"Polygon"'])

    def lines(self, group: Group) -> bytes:
        """A line a feature, each with its line break."""
        if not len(group):
            return b""
        heads = self._heads(group)
        width = heads.shape[1]
        text = memoryview(heads).cast("B")
        found: list[bytes] = []
        for start in range(0, len(group), BATCH):
            pieces: list[Any] = []
            for i, coordinates in enumerate(_coordinates(group.shapes[start : start + BATCH], self._shift), start):
                pieces += (text[i * width : (i + 1) * width], coordinates, b"}}\n")
            found.append(b"".join(pieces).translate(None, b"\0"))
        return b"".join(found)

    def _heads(self, group: Group) -> NDArray[np.uint8]:
        """(N, width) uint8: a feature up to its coordinates."""
        n, objects = len(group), group.objects
        types = (shapely.get_type_id(group.shapes) == _POLYGON).astype(np.intp)
        columns: list[Any] = [
            b'{"type": "Feature", "id": "',
            group.ids,
            b'", "properties": {"objectType": "detection", "classification": ',
            self._classes[objects.class_index],
            b", ",
            self._flags[objects.flags] if objects.flags.any() else b"",
            b'"measurements": {',
        ]
        for place, (name, values) in enumerate(_measurements(group)):
            key = f"{', ' if place else ''}{json.dumps(name, ensure_ascii=False)}: ".encode()
            columns.append(_measurement(key, values))
        columns += [b'}}, "geometry": {"type": ', self._types[types], b', "coordinates": ']
        widths = [len(c) if isinstance(c, bytes) else c.shape[1] for c in columns]
        heads = np.empty((n, sum(widths)), np.uint8)
        start = 0
        for column, width in zip(columns, widths, strict=True):
            heads[:, start : start + width] = np.frombuffer(column, np.uint8) if isinstance(column, bytes) else column
            start += width
        return heads


def _measurements(group: Group) -> list[tuple[str, NDArray[np.float64]]]:
    """Names and values (N,) of what QuPath shows of an object; NaN is left out of its feature."""
    objects = group.objects
    found: list[tuple[str, Any, int]] = [
        (SCORE, objects.score, SCORE_DIGITS),
        ("Suspicion", group.suspicion, SCORE_DIGITS),
    ]
    found += [(f"Score: {c}", s, SCORE_DIGITS) for c, s in zip(group.info.names, objects.class_scores.T, strict=True)]
    found.append(("Area px^2", group.area_px, AREA_PX_DIGITS))
    area_um2, diameter_um = group.area_um2, group.diameter_um
    if area_um2 is not None and diameter_um is not None:
        found.append(("Area µm^2", area_um2, MICRON_DIGITS))
        found.append(("Equivalent diameter µm", diameter_um, MICRON_DIGITS))
    measures = [*zip(SHAPE_MEASURES, group.form.T, strict=True), *zip(MEASURES, objects.measures.T, strict=True)]
    found += [(name.replace("_", " ").capitalize(), values, MEASURE_DIGITS) for name, values in measures]
    return [
        (name, np.round(values.astype(np.float64), digits))
        for name, values, digits in found
        if not np.isnan(values).all()
    ]


def _measurement(key: bytes, values: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A key and a number a row (N, width) uint8; a row of NUL where the number is not finite."""
    start = -len(key) % 4
    column = np.empty((len(values), start + len(key) + MILLIONTH_CHARACTERS), np.uint8)
    column[:, :start] = 0
    column[:, start : start + len(key)] = np.frombuffer(key, np.uint8)
    is_known = np.isfinite(values)
    words = column.view(np.uint32)[:, (start + len(key)) // 4 :]
    put_millionths(words, np.where(is_known, values, 0))
    column[~is_known] = 0
    return column


def _coordinates(shapes: NDArray[np.object_], shift: tuple[int, int]) -> list[Any]:
    """The coordinates of each shape (N,) minus `shift` as JSON, bytes with NULs to be taken out."""
    rings = rings_of(shapes)
    moved = rings.xy - np.array(shift, dtype=np.float64)
    scaled = np.rint(moved * 1000)  # whole numbers below 2^53: what follows is exact
    shape_first = rings.first[np.searchsorted(rings.owner, np.arange(len(shapes) + 1))]
    far = np.zeros(len(shapes), dtype=bool)
    if np.abs(scaled).max() >= LARGEST_THOUSANDTHS:  # beyond any slide
        far = np.maximum.reduceat(np.abs(scaled).max(axis=1), shape_first[:-1]) >= LARGEST_THOUSANDTHS
        scaled[np.repeat(far, np.diff(shape_first))] = 0
    area, is_star = turns_of(scaled, rings.first)
    broken = ~far & _broken(is_star, scaled, rings, shapes, moved)
    vertices = _turned(scaled, rings, area)
    is_lone = are_lone_rings(shapes)
    words = _lone_ring_words(vertices, rings) if is_lone else _ring_words(vertices, rings, shapes)
    text = memoryview(words).cast("B")
    ends = (shape_first * (4 * words.shape[1])).tolist()
    found: list[Any] = [text[a:b] for a, b in pairwise(ends)]
    if is_lone:
        found = [b"".join((b"[[[", ring, b"]]")) for ring in found]
    for i in np.flatnonzero(broken | far).tolist():
        exact = shapely.transform(shapes[i], lambda points: points - np.array(shift, dtype=np.float64))
        found[i] = json.dumps(shapely.geometry.mapping(exact)["coordinates"], allow_nan=False).encode()
    return found


def _turned(vertices: F64, rings: Rings, area: F64) -> F64:
    """The same rings; outlines turn against the clock, holes with it."""
    first = rings.first
    wrong = ((area < 0) == rings.is_shell) & (area != 0)
    if not wrong.any():
        return vertices
    counts = np.diff(first)
    place = np.arange(len(vertices))
    mirrored = np.repeat(first[:-1] + first[1:] - 1, counts) - place
    return vertices[np.where(np.repeat(wrong, counts), mirrored, place)]


def _broken(
    is_star: NDArray[np.bool_], vertices: F64, rings: Rings, shapes: NDArray[np.object_], moved: F64
) -> NDArray[np.bool_]:
    """Which shapes (N,) rounding has made invalid. Lone star-shaped rings, which most cells are, are whole; the others
    are asked of GEOS, which takes ten times as long as writing them.
    """
    doubtful = np.bincount(rings.owner, minlength=len(shapes)) > 1
    doubtful[rings.owner[~is_star]] = True
    rows = np.flatnonzero(doubtful)
    if len(rows):
        kept = np.repeat(doubtful[rings.owner], np.diff(rings.first))
        rounded = shapely.set_coordinates(shapes[rows].copy(), vertices[kept] / 1000)
        as_they_were = shapely.set_coordinates(shapes[rows].copy(), moved[kept])
        doubtful[rows] = ~shapely.is_valid(rounded) & ~shapely.equals_exact(rounded, as_they_were)
    return doubtful


def _lone_ring_words(vertices: F64, rings: Rings) -> Words:
    """The text of rings, each the only one of its shape, from the first number to the bracket of its last vertex."""
    following = np.zeros(len(vertices), np.intp)
    following[rings.first[1:] - 1] = 1
    return _stacked([*_pair(vertices), _NEXT[following]])


def _ring_words(vertices: F64, rings: Rings, shapes: NDArray[np.object_]) -> Words:
    """The text of each vertex with all brackets before and behind it, (M, words) uint32."""
    first, owner = rings.first, rings.owner
    starts_shape = np.diff(owner, prepend=-1) != 0
    ends_shape, ends_part = np.append(starts_shape[1:], True), np.append(rings.is_shell[1:], True)
    is_multi = (shapely.get_type_id(shapes) != _POLYGON)[owner]
    before = np.ones(len(vertices), np.intp)
    before[first[:-1]] = 2 + rings.is_shell + (starts_shape & is_multi)
    behind = np.zeros(len(vertices), np.intp)
    behind[first[1:] - 1] = np.where(ends_shape, 3 + is_multi, 1 + ends_part)
    return _stacked([_OPEN[before], *_pair(vertices), _CLOSE[behind]])


def _pair(vertices: F64) -> list[Words]:
    """Columns of words: "x,y]" of each vertex, from 1/1000."""
    columns: list[Words] = []
    ends: tuple[Literal[",", "]"], ...] = (",", "]")
    for values, end in zip(vertices.T, ends, strict=True):
        if values.min() < 0:
            columns.append(_MINUS[(values < 0).astype(np.intp)])
            values = np.abs(values)
        whole = values.astype(np.int64 if values.max() >= 2**32 else np.uint32)
        columns += thousandths(whole, end)
    return columns


def _stacked(columns: list[Words]) -> Words:
    words = np.empty((len(columns[0]), len(columns)), np.uint32)
    for k, column in enumerate(columns):
        words[:, k] = column
    return words


def _padded(texts: list[str]) -> NDArray[np.uint8]:
    """Texts as rows of bytes, NUL behind them: (N, width) uint8."""
    found = np.array([text.encode() for text in texts], dtype=bytes)
    return found.view(np.uint8).reshape(len(texts), -1)
