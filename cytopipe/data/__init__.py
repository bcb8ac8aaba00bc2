"""Tiles as batches: pools of decoded tiles, crops with their objects, batches keyed by (seed, iteration)."""

from cytopipe.data.batches import Batches, LoaderSettings, prefetch
from cytopipe.data.pool import TileObjects, TilePool

__all__ = ["Batches", "LoaderSettings", "TileObjects", "TilePool", "prefetch"]
