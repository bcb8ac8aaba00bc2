"""Tiles: the grid, cutting, annotations onto tiles, patient splits, and the tile store."""

from cytopipe.tiles.clip import Pieces, clip_to_tiles
from cytopipe.tiles.config import TileConfig, tile_config
from cytopipe.tiles.cut import CutTile, cut_plan, cut_windows
from cytopipe.tiles.fingerprint import fingerprint_of
from cytopipe.tiles.grid import Grid, plan_axis, plan_grid
from cytopipe.tiles.plan import TilePlan, grid_of, plan_tiles, slide_box
from cytopipe.tiles.regions import region_of_interest
from cytopipe.tiles.rows import BlurredTile, LostTile, ObjectRow, SlideRow, TileRow
from cytopipe.tiles.split import parse_ratio, split_patients
from cytopipe.tiles.store import MadeBy, StoreInfo, TileObject, TileStore, assigned_parts
from cytopipe.tiles.windows import centred_corners
from cytopipe.tiles.writer import StoreWriter, open_writer

__all__ = [
    "BlurredTile",
    "CutTile",
    "Grid",
    "LostTile",
    "MadeBy",
    "ObjectRow",
    "Pieces",
    "SlideRow",
    "StoreInfo",
    "StoreWriter",
    "TileConfig",
    "TileObject",
    "TilePlan",
    "TileRow",
    "TileStore",
    "assigned_parts",
    "centred_corners",
    "clip_to_tiles",
    "cut_plan",
    "cut_windows",
    "fingerprint_of",
    "grid_of",
    "open_writer",
    "parse_ratio",
    "plan_axis",
    "plan_grid",
    "plan_tiles",
    "region_of_interest",
    "slide_box",
    "split_patients",
    "tile_config",
]
