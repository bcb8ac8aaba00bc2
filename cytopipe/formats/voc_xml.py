"""Pascal VOC boxes, in.

Enters: the root <annotation> of a file.  Leaves: a rectangle an object, px of its image.

VOC counts pixels from 1 and includes the last one: xmin 1, xmax 640 is an image of 640 px from edge to edge. A box is
read as the edges xmin - 1 .. xmax, ymin - 1 .. ymax (as Detectron2 does). A box whose xmin equals its xmax, or ymin its
ymax, would be one pixel wide: it is a click that slipped, not an object, and is refused as one without area.
`pose`, `truncated`, `difficult`, `occluded` are kept as attributes; <part> and the file's folders are not read.
Source   Everingham et al.: The PASCAL Visual Object Classes Challenge 2012 (VOC2012) Development Kit, section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree.ElementTree import Element

from cytopipe.formats.drawn import Drawn, Page
from cytopipe.formats.mending import NO_AREA
from cytopipe.formats.safe_xml import number_in

_ATTRIBUTES = ("pose", "truncated", "difficult", "occluded")


def voc_page(root: Element, where: str) -> Page:
    """The objects of a file, unchecked, and the size of its image where it states one."""
    width, height = (number_in(root.findtext(f"size/{side}")) for side in ("width", "height"))
    size = (int(width), int(height)) if 1 <= width < 2**31 and 1 <= height < 2**31 else None
    return Page(_objects(root), (root.findtext("filename") or "").strip(), size)


def _objects(root: Element) -> Iterator[Drawn]:
    for number, element in enumerate(root.findall("object"), start=1):
        object_id = f"object-{number}"
        box = element.find("bndbox")
        if box is None:
            yield Drawn(object_id, refused="has no box")
            continue
        x0, y0, x1, y1 = (number_in(box.findtext(side)) for side in ("xmin", "ymin", "xmax", "ymax"))
        if x1 <= x0 or y1 <= y0:
            yield Drawn(object_id, refused=f"{NO_AREA}: its box is {x0:g}, {y0:g} to {x1:g}, {y1:g}")
            continue
        outline = [(x0 - 1, y0 - 1), (x1, y0 - 1), (x1, y1), (x0 - 1, y1)]
        facts = {name: (element.findtext(name) or "").strip() for name in _ATTRIBUTES}
        attributes = {name: value for name, value in facts.items() if value}
        yield Drawn(object_id, (element.findtext("name") or "").strip(), [[outline]], attributes)
