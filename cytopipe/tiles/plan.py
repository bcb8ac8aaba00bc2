"""Which tiles of a slide are stored, and what lies on them; no pixel is cut here.

Enters: a view of a slide, its foreground, its annotations.  Leaves: tiles of the grid, or windows placed one by one,
chosen by foreground, regions and objects, with the pieces of objects that each sees; level-0 px unless said otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.boxes import clip_boxes
from cytopipe.core.errors import RunError
from cytopipe.formats.annotations import Annotation
from cytopipe.slides import Foreground, MppView
from cytopipe.tiles.clip import Pieces, clip_to_tiles
from cytopipe.tiles.config import TileConfig
from cytopipe.tiles.grid import Grid, plan_grid
from cytopipe.tiles.regions import Area, area_of, region_of_interest
from cytopipe.tiles.rows import ObjectRow, Origin
from cytopipe.tiles.windows import Place, random_windows, windows_around

UNMASKED_CELLS = 1024  # [D] along both sides of a slide without a mask: fine enough to draw inside a small region


@dataclass(frozen=True, slots=True, eq=False)
class TilePlan:
    """The tiles of one slide before they are cut; T tiles, by rows.

    origins      (x, y) of each, px of the view
    boxes        (T, 4) float64 x0 y0 x1 y1, level-0 px
    origin       how each came to be, (T,)
    kept         (T,) bool, to be stored
    outside      (T,) bool, not stored since it meets no region of interest; what else is not kept is glass
    for_objects  (T,) bool, stored only because somebody outlined an object there
    labelled     (T,) bool, somebody annotated this place
    foreground   (T,) float64, share of each tile that is foreground; None where no mask was made
    annotated    objects on the slide, by class name
    objects      rows of the store for the pieces that the tiles see
    unseen       objects that are on no tile to be stored
    dropped      pieces left out for being less visible than asked
    notes        sentences about what the user might not expect
    """

    origins: list[tuple[int, int]]
    boxes: NDArray[np.float64]
    origin: list[Origin]
    kept: NDArray[np.bool_]
    outside: NDArray[np.bool_]
    for_objects: NDArray[np.bool_]
    labelled: NDArray[np.bool_]
    foreground: NDArray[np.float64] | None
    annotated: dict[str, int]
    objects: list[ObjectRow]
    unseen: int
    dropped: int
    notes: tuple[str, ...] = ()


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
    annotations: Sequence[Annotation] | None,
    foreground: Foreground | None,
    config: TileConfig,
    rng: np.random.Generator | None = None,
) -> TilePlan:
    """Choose the tiles of a slide: those with enough foreground, and those on which somebody outlined an object.

    slide_size   width and height, level-0 px; what an outline has beyond is on no tile, also where a tile is padded
    annotations  objects, and the areas that the configuration names; None: nobody annotated the slide
    foreground   None takes every tile
    rng          where random windows are wanted: the slide's own stream
    Raises UserError when the slide lacks the region of interest; RunError when nothing is left: an empty store is no
    success.
    """
    objects = [a for a in annotations or () if a.class_name not in config.area_classes]
    region = region_of_interest(annotations or (), config.roi)
    place = Place(view.width, view.height, slide_size, view.slide_px_per_px, config.tile_px)
    mask = foreground if config.foreground else None

    corners, origin, notes = _placed(view, place, objects, region, mask, config, rng)
    boxes = place.boxes(corners)
    on_slide = clip_boxes(boxes, np.array([0, 0, *slide_size], dtype=np.float64))
    outside = np.zeros(len(boxes), dtype=bool) if region is None else ~region.meets(on_slide)
    pieces = _clipped(objects, on_slide, ~outside, config.min_visible)
    fractions = None if foreground is None else foreground.fractions(boxes)

    enough = np.ones(len(boxes), dtype=bool)
    if mask is not None and fractions is not None:
        enough = (fractions >= config.min_foreground) & (fractions > 0)  # bare glass is bare glass, also for a limit 0
    wanted = np.array([kind == "object" for kind in origin], dtype=bool)
    wanted[pieces.tile] = True
    kept = (enough | wanted) & ~outside
    if not kept.any():
        raise _nothing_left(fractions if mask is not None else None, ~outside, region, config)

    labelled, unlabelled_note = _labelled(annotations, on_slide, config.annotated_area)
    names, counts = np.unique([a.class_name for a in objects], return_counts=True)
    origins = list(zip(corners[:, 0].tolist(), corners[:, 1].tolist(), strict=True))
    return TilePlan(
        origins,
        boxes,
        origin,
        kept,
        outside,
        wanted & ~enough & kept,
        labelled,
        fractions,
        dict(zip(names.tolist(), counts.tolist(), strict=True)),
        _object_rows(objects, pieces, origins),
        len(pieces.unseen),
        pieces.dropped,
        (*notes, *unlabelled_note),
    )


def _placed(
    view: MppView,
    place: Place,
    objects: Sequence[Annotation],
    region: Area | None,
    mask: Foreground | None,
    config: TileConfig,
    rng: np.random.Generator | None,
) -> tuple[NDArray[np.int64], list[Origin], list[str]]:
    """Corners (T, 2) of all tiles to choose from, by rows, how each came to be, and what is worth a sentence."""
    if config.is_grid:
        grid = grid_of(view, config)
        xs, ys = np.meshgrid(np.array(grid.xs, dtype=np.int64), np.array(grid.ys, dtype=np.int64))
        return np.stack([xs.ravel(), ys.ravel()], axis=1), ["grid"] * len(grid), []
    around, drawn, notes = np.empty((0, 2), np.int64), np.empty((0, 2), np.int64), []
    if config.around_objects:
        around = windows_around(place, _centres(objects))
    if config.random is not None:
        if rng is None:
            raise ValueError("plan_tiles: random windows need a random stream")
        drawn = _drawn(place, region, mask, config, {(x, y) for x, y in around.tolist()}, rng)
        if len(drawn) < config.random:
            area = "the foreground" if mask is not None else "the slide"
            notes.append(f"{area} has places for {len(drawn)} of the {config.random} random windows only")
    corners = np.concatenate([around, drawn])
    order = np.lexsort((corners[:, 0], corners[:, 1]))
    kinds: list[Origin] = ["object" if i < len(around) else "random" for i in order.tolist()]
    return corners[order], kinds, notes


def _centres(objects: Sequence[Annotation]) -> NDArray[np.float64]:
    """(N, 2) x y of the middle of each object's box."""
    bounds = shapely.bounds(np.array([a.geometry for a in objects], dtype=object)).reshape(-1, 4)
    return np.asarray((bounds[:, :2] + bounds[:, 2:]) / 2, dtype=np.float64)


def _drawn(
    place: Place,
    region: Area | None,
    foreground: Foreground | None,
    config: TileConfig,
    taken: set[tuple[int, int]],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Corners of the random windows: over the foreground where there is a mask, centred in the region where there is
    one, and none that is `taken`."""
    if foreground is not None:
        mask, scale = foreground.mask, foreground.slide_px_per_px
    else:
        mask = np.ones((UNMASKED_CELLS, UNMASKED_CELLS), dtype=bool)
        scale = place.slide_size[0] / UNMASKED_CELLS, place.slide_size[1] / UNMASKED_CELLS
    if region is not None:
        mask = mask & region.mask((mask.shape[0], mask.shape[1]), scale)

    def accept(centres: NDArray[np.float64], corners: NDArray[np.int64]) -> NDArray[np.bool_]:
        accepted = np.array([(x, y) not in taken for x, y in corners.tolist()], dtype=bool)
        if region is not None:
            accepted &= region.contains(centres)
        if foreground is not None:
            accepted &= foreground.fractions(place.boxes(corners)) >= config.min_foreground
        return accepted

    return random_windows(place, mask, scale, config.random or 0, rng, accept)


def _clipped(
    objects: Sequence[Annotation], on_slide: NDArray[np.float64], inside: NDArray[np.bool_], min_visible: float
) -> Pieces:
    """What the tiles `inside` see of the objects; rows of all tiles."""
    tiles = np.flatnonzero(inside)
    pieces = clip_to_tiles([a.geometry for a in objects], on_slide[tiles], min_visible)
    return Pieces(tiles[pieces.tile], pieces.object, pieces.geometry, pieces.truncated, pieces.dropped, pieces.unseen)


def _labelled(
    annotations: Sequence[Annotation] | None, on_slide: NDArray[np.float64], area_class: str | None
) -> tuple[NDArray[np.bool_], list[str]]:
    """Which tiles somebody annotated, and a sentence where an annotated slide has no annotated area."""
    if annotations is None or area_class is None:
        return np.full(len(on_slide), annotations is not None, dtype=bool), []
    area = area_of(annotations, area_class)
    if area is None:
        note = f"no area is outlined as {area_class!r}: none of its tiles is labelled"
        return np.zeros(len(on_slide), dtype=bool), [note]
    return area.holds(on_slide), []


def _nothing_left(
    fractions: NDArray[np.float64] | None, inside: NDArray[np.bool_], region: Area | None, config: TileConfig
) -> RunError:
    """Why no tile is kept; `fractions` where glass was to be dropped."""
    where = "" if region is None else f" in the regions {config.roi!r}"
    if region is not None and not inside.any() and config.is_grid:
        return RunError(f"no tile meets a region {config.roi!r}: it lies beyond the slide")
    if config.around_objects and config.random is None:
        return RunError(f"no object is annotated{where}, and windows are wanted around objects only")
    if fractions is not None and fractions[inside].any():
        return RunError(
            f"no tile{where} has a foreground of {config.min_foreground:g}", fix="--no-foreground takes every tile"
        )
    return RunError(f"no foreground was found{where}", fix="--no-foreground takes every tile")


def _object_rows(
    annotations: Sequence[Annotation], pieces: Pieces, origins: Sequence[tuple[int, int]]
) -> list[ObjectRow]:
    rows = []
    for tile, which, geometry, truncated in zip(
        pieces.tile.tolist(), pieces.object.tolist(), pieces.geometry, pieces.truncated.tolist(), strict=True
    ):
        annotation, (x, y) = annotations[which], origins[tile]
        rows.append(
            ObjectRow(annotation.object_id, x, y, annotation.class_name, geometry, truncated, annotation.is_crowd)
        )
    return rows
