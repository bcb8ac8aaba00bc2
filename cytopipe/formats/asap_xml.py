"""ASAP's XML, in.

Enters: the root <ASAP_Annotations> of a file.  Leaves: an outline an annotation, level-0 px.

The class is the group (`PartOfGroup`; "None" is none), spelled as in the file: CAMELYON16 calls its tumours _0 and _1,
and _2 what is cut out of them; --class-map and --ignore say what to make of them. The name of an annotation is its id.
Differs  a spline is read as straight lines through its points; dots, point sets and measurements enclose nothing and
         are refused. No real sample was at hand: the tests write such files themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from cytopipe.formats.drawn import Drawn, Page
from cytopipe.formats.safe_xml import number_in

_OUTLINED = ("polygon", "spline", "rectangle")


def asap_page(root: Element, where: str) -> Page:
    """The annotations of a file, unchecked."""
    return Page(_objects(root))


def _objects(root: Element) -> Iterator[Drawn]:
    for number, element in enumerate(root.iterfind("Annotations/Annotation"), start=1):
        object_id = element.get("Name", "").strip() or f"annotation-{number}"
        kind = element.get("Type", "").strip()
        if kind.lower() not in _OUTLINED:
            yield Drawn(object_id, refused=f"is a {kind or 'shape without type'}, only outlined objects are read")
            continue
        group = element.get("PartOfGroup", "").strip()
        points = [
            (number_in(point.get("Order")), number_in(point.get("X")), number_in(point.get("Y")))
            for point in element.iterfind("Coordinates/Coordinate")
        ]
        if all(order == order for order, _, _ in points):  # without NaN: the file says in which order they follow
            points.sort(key=lambda point: point[0])
        attributes = {f"asap_{kind.lower()}": "1"} if kind.lower() == "spline" else {}
        outline = [(x, y) for _, x, y in points]
        yield Drawn(object_id, "" if group.lower() == "none" else group, [[outline]] if outline else [], attributes)
