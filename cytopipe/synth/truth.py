"""The exact truth of a slide: what was rendered, as annotations.

Enters: blocks of a scene.  Leaves: for each cell its outline (class: the cell's) and its nuclei (class `nucleus`),
frame slide, level-0 px, cut at the slide's border. A nucleus and its cell share the attribute `cell_id`. Leucocytes,
debris and ink are not annotated: nobody outlines them.
"""

from __future__ import annotations

from collections.abc import Iterator

import shapely
from shapely import MultiPolygon, Polygon

from cytopipe.formats.annotations import Annotation
from cytopipe.synth.cells import Cell
from cytopipe.synth.scene import Block

NUCLEUS = "nucleus"


def annotations_of(block: Block, slide_id: str, patient: str, width: int, height: int) -> Iterator[Annotation]:
    """The annotations of a block's cells in their order, each cell before its nuclei.

    `width`, `height`: the slide, level-0 px.
    """
    border = shapely.box(0, 0, width, height)
    for cell in block.cells:
        yield from _annotated(cell, slide_id, patient, border)


def _annotated(cell: Cell, slide_id: str, patient: str, border: Polygon) -> Iterator[Annotation]:
    attributes = {"cell_id": cell.cell_id, "patient": patient}
    parts = [(cell.class_name, cell.outline, "cell")]
    parts += [(NUCLEUS, nucleus.outline, f"nucleus-{k}") for k, nucleus in enumerate(cell.nuclei, 1)]
    for class_name, outline, part in parts:
        shape = Polygon(outline)
        if not border.contains(shape):
            shape = _largest(shape.intersection(border))
        yield Annotation(f"{slide_id}/{cell.cell_id}/{part}", class_name, shape, attributes)


def _largest(shape: shapely.Geometry) -> Polygon:
    """The largest polygon of what the border left: the others are slivers between two waves of the outline."""
    if isinstance(shape, Polygon):
        return shape
    polygons = [part for part in getattr(shape, "geoms", ()) if isinstance(part, (Polygon, MultiPolygon))]
    return max(polygons, key=lambda part: part.area)
