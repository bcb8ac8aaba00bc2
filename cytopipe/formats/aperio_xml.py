"""Aperio ImageScope's XML, in.

Enters: the root <Annotations> of a file.  Leaves: an outline a region, level-0 px.

    Region Type 0   freehand, polygon      its vertices
    Region Type 1   rectangle              the box around its vertices (two corners, or four)
    Region Type 2   ellipse                the ellipse in that box, as a polygon within ELLIPSE_PX of it
    others          arrow, ruler, pen      enclose nothing: refused
    NegativeROA 1                          a hole: cut out of each region of its layer that it meets; no object itself

The class is the name of the layer (<Annotation Name>); where that is empty, its attribute Class, Name, Label or
Description, and last the text of the region. An id is LAYER-REGION.
Differs  no real sample was at hand: the tests write such files themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon

from cytopipe.formats.drawn import Drawn, Page
from cytopipe.formats.mending import Refused, outline_of
from cytopipe.formats.safe_xml import number_in

F64 = NDArray[np.float64]

ELLIPSE_PX = 0.05  # [D] furthest a polygon stays within its ellipse: far below what a hand draws

_POLYGON, _RECTANGLE, _ELLIPSE = 0, 1, 2
_CLASS_ATTRIBUTES = ("class", "name", "label", "description")
_LEAST_POINTS, _MOST_POINTS = 16, 720  # of an ellipse


def aperio_page(root: Element, where: str) -> Page:
    """The regions of a file, unchecked."""
    layers = root.iterfind("Annotation")
    return Page(drawn for number, layer in enumerate(layers, start=1) for drawn in _of_layer(layer, number))


def _of_layer(layer: Element, number: int) -> Iterator[Drawn]:
    layer_id = layer.get("Id", "").strip() or str(number)
    layer_class = _class_of(layer)
    regions = [
        (f"{layer_id}-{region.get('Id', '').strip() or k}", region, _outline(region))
        for k, region in enumerate(layer.iterfind("Regions/Region"), start=1)
    ]
    positive = [r for r in regions if not _is_negative(r[1])]
    negative = [r for r in regions if _is_negative(r[1])]
    holes_of = _holes_of([outline for *_, outline in positive], [outline for *_, outline in negative])
    for k, (object_id, region, outline) in enumerate(positive):
        if number_in(region.get("Type", "0")) not in (_POLYGON, _RECTANGLE, _ELLIPSE):
            what = f"is of type {region.get('Type', '')[:10]}, only outlined objects are read"
            yield Drawn(object_id, refused=what)
            continue
        text = region.get("Text", "").strip()
        polygons = [[outline, *(negative[hole][2] for hole in holes_of.get(k, ()))]] if len(outline) else []
        yield Drawn(object_id, layer_class or text, polygons, {"text": text} if text else {})
    met = {hole for holes in holes_of.values() for hole in holes}
    for k, (hole_id, *_) in enumerate(negative):
        if k not in met:
            yield Drawn(hole_id, refused="is a negative region that meets no other of its layer")


def _is_negative(region: Element) -> bool:
    return region.get("NegativeROA", "0").strip() == "1"


def _class_of(layer: Element) -> str:
    name = layer.get("Name", "").strip()
    if name:
        return name
    facts = {
        a.get("Name", "").strip().lower(): a.get("Value", "").strip() for a in layer.iterfind("Attributes/Attribute")
    }
    return next((facts[key] for key in _CLASS_ATTRIBUTES if facts.get(key)), "")


def _outline(region: Element) -> F64:
    """The vertices (n, 2) of a region, level-0 px; NaN where a number is none; n may be 0."""
    points = [(number_in(v.get("X")), number_in(v.get("Y"))) for v in region.iterfind("Vertices/Vertex")]
    outline = np.array(points, dtype=np.float64).reshape(-1, 2)
    kind = number_in(region.get("Type", "0"))
    if kind not in (_RECTANGLE, _ELLIPSE) or not len(outline) or not np.isfinite(outline).all():
        return outline
    (x0, y0), (x1, y1) = outline.min(axis=0), outline.max(axis=0)
    if kind == _RECTANGLE:
        return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
    return _ellipse(x0, y0, x1, y1)


def _ellipse(x0: float, y0: float, x1: float, y1: float) -> F64:
    """A polygon on the ellipse in a box; its sides stay within ELLIPSE_PX of it."""
    half = np.array([(x1 - x0) / 2, (y1 - y0) / 2])
    turn = math.acos(max(0.0, 1 - ELLIPSE_PX / max(half.max(), ELLIPSE_PX)))  # half the arc of a side
    count = min(max(math.ceil(math.pi / turn) if turn > 0 else _MOST_POINTS, _LEAST_POINTS), _MOST_POINTS)
    count += -count % 4  # so that it touches the box on all four sides
    turns = 2 * np.pi * np.arange(count) / count
    points: F64 = np.array([(x0 + x1) / 2, (y0 + y1) / 2]) + np.stack([np.cos(turns), np.sin(turns)], axis=1) * half
    return points


def _holes_of(outlines: Sequence[F64], holes: Sequence[F64]) -> dict[int, list[int]]:
    """outline -> the holes that take something away from it, both by index."""
    if not outlines or not holes:
        return {}
    shapes, gaps = _shapes(outlines), _shapes(holes)
    found: dict[int, list[int]] = {}
    gap, shape = shapely.STRtree(shapes).query(gaps, predicate="intersects")
    common = shapely.area(shapely.intersection(gaps[gap], shapes[shape])) > 0
    for hole, outline in sorted(zip(gap[common].tolist(), shape[common].tolist(), strict=True)):
        found.setdefault(outline, []).append(hole)
    return found


def _shapes(outlines: Sequence[F64]) -> NDArray[np.object_]:
    """Valid polygons; empty where an outline is none (whoever reads the object says why)."""
    shapes = np.empty(len(outlines), dtype=object)
    for k, points in enumerate(outlines):
        try:
            shapes[k] = outline_of([[points]])[0]
        except Refused:
            shapes[k] = Polygon()
    return shapes
