"""Which tiles of a slide are stored, and what lies on them; no pixel is cut here.

Enters: a view of a slide, its foreground, its annotations.  Leaves: the tiles of the grid, chosen by foreground and by
objects, with the pieces of objects that each sees; level-0 px unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.boxes import clip_boxes
from cytopipe.core.errors import RunError
from cytopipe.formats.annotations import Annotation
from cytopipe.slides import Foreground, MppView
from cytopipe.tiles.clip import Pieces, clip_to_tiles
from cytopipe.tiles.config import TileConfig
from cytopipe.tiles.grid import Grid, plan_grid
from cytopipe.tiles.rows import ObjectRow


@dataclass(frozen=True, slots=True, eq=False)
class TilePlan:
    """The tiles of one slide before they are cut; T tiles of the grid, by rows.

    origins      (x, y) of each, px of the view
    boxes        (T, 4) float64 x0 y0 x1 y1, level-0 px
    kept         (T,) bool, to be stored
    for_objects  (T,) bool, stored only because somebody outlined an object there
    foreground   (T,) float64, share of each tile that is foreground; None where no mask was made
    objects      rows of the store for the pieces that the tiles see
    unseen       objects that are on no tile
    dropped      pieces left out for being less visible than asked
    """

    origins: list[tuple[int, int]]
    boxes: NDArray[np.float64]
    kept: NDArray[np.bool_]
    for_objects: NDArray[np.bool_]
    foreground: NDArray[np.float64] | None
    objects: list[ObjectRow]
    unseen: int
    dropped: int


def grid_of(view: MppView, config: TileConfig) -> Grid:
    """The grid over a whole view."""
    return plan_grid(view.width, view.height, config.tile_px, config.overlap_px, config.edge)


def slide_box(view: MppView, x: int, y: int, tile_px: int) -> tuple[float, float, float, float]:
    """x0 y0 x1 y1 in level-0 px of the window at (x, y), px of the view."""
    sx, sy = view.slide_px_per_px
    return x * sx, y * sy, (x + tile_px) * sx, (y + tile_px) * sy


def plan_tiles(
    view: MppView,
    slide_size: tuple[int, int],
    annotations: Sequence[Annotation],
    foreground: Foreground | None,
    config: TileConfig,
) -> TilePlan:
    """Choose the tiles of a slide: those with enough foreground, and those on which somebody outlined an object.

    slide_size   width and height, level-0 px; what an outline has beyond is on no tile, also where a tile is padded
    foreground   None takes every tile
    Raises RunError when nothing is left: an empty store is no success.
    """
    origins = list(grid_of(view, config).origins())
    boxes = np.array([slide_box(view, x, y, config.tile_px) for x, y in origins])
    on_slide = clip_boxes(boxes, np.array([0, 0, *slide_size], dtype=np.float64))
    pieces = clip_to_tiles([a.geometry for a in annotations], on_slide, config.min_visible)
    fractions = None if foreground is None else np.array([foreground.fraction(*box) for box in boxes.tolist()])
    kept, for_objects = _choose(fractions, pieces, len(origins), config.min_foreground)
    objects = _object_rows(annotations, pieces, origins)
    return TilePlan(origins, boxes, kept, for_objects, fractions, objects, len(pieces.unseen), pieces.dropped)


def _choose(
    fractions: NDArray[np.float64] | None, pieces: Pieces, tiles: int, least: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if fractions is None:
        return np.ones(tiles, dtype=bool), np.zeros(tiles, dtype=bool)
    enough = (fractions >= least) & (fractions > 0)  # bare glass is bare glass, also where `least` is 0
    with_object = np.zeros(tiles, dtype=bool)
    with_object[pieces.tile] = True
    kept = enough | with_object
    if not kept.any():
        what = f"no tile has a foreground of {least:g}" if fractions.any() else "no foreground was found"
        raise RunError(what, fix="--no-foreground takes every tile")
    return kept, with_object & ~enough


def _object_rows(
    annotations: Sequence[Annotation], pieces: Pieces, origins: Sequence[tuple[int, int]]
) -> list[ObjectRow]:
    rows = []
    for tile, which, geometry, truncated in zip(
        pieces.tile, pieces.object, pieces.geometry, pieces.truncated, strict=True
    ):
        annotation, (x, y) = annotations[which], origins[tile]
        row = ObjectRow(
            annotation.object_id, x, y, annotation.class_name, geometry, bool(truncated), annotation.is_crowd
        )
        rows.append(row)
    return rows
