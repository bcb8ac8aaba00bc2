"""The rule for outlines that are not fine: what is mended, what is refused. The same for every format.

Enters: rings as a file draws them.  Leaves: a valid polygon or multipolygon with an area, and what was mended; or
`Refused` with the reason.

    what is met                                       what is done
    ring not closed, where its format closes rings    mended: closed
    ring that crosses itself or runs along itself     mended: the area that it winds round is kept (winding not 0)
    parts of one object that overlap                  mended: united
    hole past its outline, or holes that overlap      mended: cut out where they meet
    part or hole without area, where others remain    mended: left out
    object partly outside of the slide                mended: the part outside is cut off (where the size is known)
    object wholly outside of the slide                refused
    no ring, fewer than 3 points, no area at all      refused
    coordinate that is no finite number               refused
    coordinate beyond MAX_COORDINATE_PX               refused
    ring that crosses itself over MAX_CROSSINGS times refused: a scribble, and mending costs their number
    point, line                                       refused by the reader: it encloses nothing
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import LineString, MultiPolygon, Polygon

F64 = NDArray[np.float64]
Rings = Sequence[Any]
"""The rings of one polygon as a file draws them, unchecked: the outline, then its holes; each a sequence of points."""

MAX_COORDINATE_PX = 1e8  # no slide is wider; beyond lie numbers of another frame (nanometres) or of a broken export
MAX_CROSSINGS = 10_000  # [D] a hand that slips crosses a few times; each crossing is a face to look at

_SAMPLED_SEGMENTS = 256  # of a ring, from which its crossings are estimated
_SAMPLE_PARTS = 32  # looked at one by one

NO_AREA = "encloses no area"


class Refused(Exception):
    """Why an object cannot be read; never leaves `formats`."""


class _Flat(Refused):
    """A ring without area: a part or a hole that may be left out where others remain."""


def outline_of(
    polygons: Sequence[Rings], *, shift: F64 | None = None, scale: float = 1.0, closes_rings: bool = False
) -> tuple[Polygon | MultiPolygon, list[str]]:
    """A valid outline from the polygons of one object, and what was mended. Raises Refused.

    shift, scale   slide = file * scale + shift, applied before anything is judged
    closes_rings   whether the format repeats the first point at the end: one that does not is then mended
    """
    mended: list[str] = []
    parts: list[Any] = []
    flat: list[str] = []
    for rings in polygons:
        try:
            shell = _ring(rings[0], mended, closes_rings) * scale
        except _Flat as reason:
            flat.append(str(reason))
            continue
        holes = []
        for points in rings[1:]:
            try:
                holes.append(_ring(points, mended, closes_rings) * scale)
            except _Flat:
                mended.append("a hole without area is left out")
        if shift is not None:
            shell, holes = shell + shift, [hole + shift for hole in holes]
        parts.append(Polygon(shell, holes))
    if not parts:
        raise Refused(flat[0] if flat else "its geometry has no rings")
    if flat:
        mended.append(f"a part of it {flat[0]}, left out")
    geometry: Any = parts[0] if len(parts) == 1 else MultiPolygon(parts)
    if not geometry.is_valid:
        fault = shapely.is_valid_reason(geometry).lower().split("[")[0]
        geometry = _united(parts)
        mended.append(f"{fault}, the enclosed area is kept")
    if geometry.is_empty or not geometry.area > 0:
        raise Refused(NO_AREA)
    return geometry, list(dict.fromkeys(mended))


def on_slide(
    geometry: Polygon | MultiPolygon, slide_size: tuple[int, int]
) -> tuple[Polygon | MultiPolygon, str | None]:
    """The outline cut to a slide of (width, height) px, and what was mended, if anything. Raises Refused."""
    x0, y0, x1, y1 = geometry.bounds
    width, height = slide_size
    if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
        return geometry, None
    inside = polygonal(shapely.intersection(geometry, shapely.box(0, 0, width, height)))
    if inside.is_empty or not inside.area > 0:
        raise Refused(f"lies outside of the slide of {width} x {height} px")
    return inside, "the part outside of the slide is cut off"


def polygonal(geometry: Any) -> Any:
    """The polygons of a geometry, without the points and lines that an operation left over."""
    parts = [part for part in shapely.get_parts(shapely.get_parts(geometry)) if isinstance(part, Polygon)]
    return parts[0] if len(parts) == 1 else MultiPolygon(parts)


def _ring(points: Any, mended: list[str], closes_rings: bool) -> F64:
    """A closed ring (n, 2) float64; a third coordinate is dropped. Raises Refused."""
    try:
        array = np.asarray(points)
    except ValueError as error:  # points of different length
        raise Refused("its coordinates are not pairs of numbers") from error
    if array.ndim != 2 or array.shape[1] < 2 or array.dtype.kind not in "iuf":
        raise Refused("its coordinates are not pairs of numbers")
    ring = array[:, :2].astype(np.float64)
    if not len(ring):
        raise _Flat("has 0 points")
    furthest = float(np.abs(ring).max())  # NaN and infinity pass through it
    if not math.isfinite(furthest):
        raise Refused("a coordinate is not a finite number")
    if furthest > MAX_COORDINATE_PX:
        raise Refused(f"a coordinate of {furthest:.3g} px lies outside of any slide")
    distinct = _distinct(ring)
    if distinct < 3:
        raise _Flat(f"has {distinct} points")
    if (ring[0] != ring[-1]).any():
        if closes_rings:
            mended.append("a ring is not closed")
        ring = np.concatenate([ring, ring[:1]])
    return ring


def _distinct(ring: F64) -> int:
    """How many different points a ring has, counted up to 3 only: every object comes by here."""
    others = ring[(ring != ring[0]).any(axis=1)]
    if not len(others):
        return 1
    return 3 if (others != others[0]).any() else 2


def _united(parts: Sequence[Any]) -> Any:
    """The area of parts whose rings may cross, overlap or stray. Raises Refused."""
    try:
        pieces = []
        for part in parts:
            area = _wound(shapely.get_coordinates(part.exterior))
            for hole in part.interiors:
                area = shapely.difference(area, _wound(shapely.get_coordinates(hole)))
            pieces.append(area)
        united = polygonal(shapely.union_all(pieces))
    except shapely.errors.GEOSException as error:
        raise Refused("its outline cannot be mended") from error
    if not united.is_valid:
        raise Refused("its outline cannot be mended")
    return united


def _wound(ring: F64) -> Any:
    """The area round which a closed ring winds at least once, in either direction. Raises Refused."""
    polygon = Polygon(ring)
    if polygon.is_valid:
        return polygon
    if _crossings(ring) > MAX_CROSSINGS:
        raise Refused(f"its outline crosses itself more than {MAX_CROSSINGS} times")
    faces = shapely.get_parts(shapely.polygonize([shapely.union_all(LineString(ring))]))
    inner = shapely.get_coordinates(shapely.point_on_surface(faces))
    return shapely.union_all([face for face, point in zip(faces, inner, strict=True) if _winding(ring, point)])


def _crossings(ring: F64) -> float:
    """About how often a ring meets itself, neighbours left out; from a sample of its segments, spread over it."""
    segments = shapely.linestrings(np.stack([ring[:-1], ring[1:]], axis=1))
    sample = segments[:: max(1, len(segments) // _SAMPLED_SEGMENTS)]
    tree = shapely.STRtree(segments)
    met, seen, estimate = 0, 0, 0.0
    for first in range(_SAMPLE_PARTS):
        part = sample[first::_SAMPLE_PARTS]
        met += tree.query(part, predicate="intersects").shape[1] - 3 * len(part)
        seen += len(part)
        estimate = max(0, met) / max(1, seen) * len(segments) / 2
        if estimate > 10 * MAX_CROSSINGS:  # far beyond: the other parts would cost as much again
            break
    return estimate


def _winding(ring: F64, point: F64) -> int:
    """How often a closed ring runs round a point that is not on it, against the clock positive."""
    (x0, y0), (x1, y1) = ring[:-1].T - point[:, None], ring[1:].T - point[:, None]
    side = x0 * y1 - x1 * y0
    up, down = (y0 <= 0) & (y1 > 0) & (side > 0), (y0 > 0) & (y1 <= 0) & (side < 0)
    return int(up.sum()) - int(down.sum())
