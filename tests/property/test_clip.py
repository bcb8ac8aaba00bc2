"""Annotated objects on tiles: nothing is lost, nothing is invented."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely import MultiPolygon, Polygon, box

from cytopipe.tiles.clip import TILES_AT_ONCE, clip_to_tiles
from cytopipe.tiles.grid import plan_grid
from tests.strategies import overlapping_cells

SLIDE_PX = 300


def tile_boxes(tile_px: int, overlap_px: int, edge: str = "shift") -> np.ndarray:
    grid = plan_grid(SLIDE_PX, SLIDE_PX, tile_px, overlap_px, edge)
    return np.array([(x, y, x + tile_px, y + tile_px) for x, y in grid.origins()], dtype=np.float64)


@settings(deadline=None)
@given(overlapping_cells(SLIDE_PX, SLIDE_PX), st.integers(40, 400))
def test_pieces_of_a_tiling_add_up_to_what_lies_on_the_slide(objects, tile_px):
    boxes = tile_boxes(tile_px, 0, "pad")
    covered = shapely.union_all(shapely.box(*boxes.T))

    pieces = clip_to_tiles(objects, boxes, min_visible=0)

    for i, outline in enumerate(objects):
        area = shapely.area(pieces.geometry[pieces.object == i]).sum()
        # 1e-6: each of up to 64 cuts rounds its vertices to float64, at areas of up to 1e4 px²
        assert area == pytest.approx(outline.intersection(covered).area, abs=1e-6)


@settings(deadline=None)  # looks at every pair in a loop
@given(overlapping_cells(SLIDE_PX, SLIDE_PX), st.integers(80, 400), st.integers(0, 39), st.floats(0, 1))
def test_a_slow_look_at_every_pair_finds_the_same_pieces(objects, tile_px, overlap_px, min_visible):
    boxes = tile_boxes(tile_px, overlap_px)

    pieces = clip_to_tiles(objects, boxes, min_visible)

    found = dict(zip(zip(pieces.tile.tolist(), pieces.object.tolist(), strict=True), pieces.truncated, strict=True))
    for t, corners in enumerate(boxes):
        for o, outline in enumerate(objects):
            share = outline.intersection(box(*corners)).area / outline.area
            if share > 0 and abs(share - min_visible) > 1e-6:  # at the limit itself either answer is right
                assert ((t, o) in found) == (share > min_visible)
            if (t, o) in found and abs(share - 1) > 1e-6:
                assert found[t, o]


@settings(deadline=None)
@given(overlapping_cells(SLIDE_PX, SLIDE_PX), st.integers(40, 400))
def test_a_piece_lies_in_its_tile_and_in_its_object(objects, tile_px):
    boxes = tile_boxes(tile_px, 0)

    pieces = clip_to_tiles(objects, boxes, min_visible=0.1)

    for tile, which, piece in zip(pieces.tile, pieces.object, pieces.geometry, strict=True):
        assert isinstance(piece, Polygon | MultiPolygon)
        assert piece.difference(box(*boxes[tile]).buffer(1e-6)).is_empty
        assert piece.difference(objects[which].buffer(1e-6)).is_empty


def test_an_object_that_is_wholly_inside_keeps_its_vertices_also_where_it_touches_the_border():
    outline = Polygon([(0, 0), (10, 0), (10, 4), (5, 3), (0, 10)])

    pieces = clip_to_tiles([outline], tile_boxes(150, 0), min_visible=0.2)

    assert pieces.geometry.tolist() == [outline]
    assert not pieces.truncated.any()


def test_a_sliver_below_the_visible_share_is_dropped_and_counted():
    outline = box(91, 10, 101, 20)  # a tenth of it on the second tile
    boxes = np.array([[0, 0, 100, 100], [100, 0, 200, 100]], dtype=np.float64)

    pieces = clip_to_tiles([outline], boxes, min_visible=0.2)

    assert pieces.tile.tolist() == [0]
    assert pieces.truncated.tolist() == [True]
    assert pieces.dropped == 1


def test_an_object_that_only_touches_a_tile_from_outside_is_not_on_it():
    boxes = np.array([[0, 0, 100, 100]], dtype=np.float64)

    pieces = clip_to_tiles([box(100, 0, 120, 20), box(-5, -5, 0, 0)], boxes, min_visible=0)

    assert len(pieces) == 0
    assert pieces.dropped == 0
    assert pieces.unseen.tolist() == [0, 1]


def test_what_remains_of_an_outline_along_the_border_is_area_only():
    # the notch runs along x = 100: its intersection with the tile is a polygon and a line
    outline = Polygon([(90, 10), (110, 10), (110, 40), (90, 40), (90, 30), (100, 30), (100, 20), (90, 20)])
    boxes = np.array([[0, 0, 100, 100]], dtype=np.float64)

    pieces = clip_to_tiles([outline], boxes, min_visible=0)

    assert isinstance(pieces.geometry[0], MultiPolygon)
    assert pieces.geometry[0].area == 200


def test_a_slide_without_objects_has_no_pieces():
    pieces = clip_to_tiles([], tile_boxes(100, 0), min_visible=0.2)

    assert len(pieces) == 0
    assert pieces.unseen.tolist() == []


def test_of_more_tiles_than_are_looked_at_together_each_sees_its_own_objects():
    columns = np.arange(TILES_AT_ONCE + 10, dtype=np.float64) * 10
    boxes = np.stack([columns, np.zeros_like(columns), columns + 10, np.full_like(columns, 10)], axis=1)
    far = float(columns[-1])

    pieces = clip_to_tiles([box(far + 2, 2, far + 5, 5), box(2, 2, 5, 5), box(15, 2, 25, 5)], boxes, min_visible=0.2)

    assert pieces.tile.tolist() == [0, 1, 2, len(boxes) - 1]
    assert pieces.object.tolist() == [1, 2, 2, 0]
