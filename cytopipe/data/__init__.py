"""Images as batches: data sets, pools of decoded images, views of crops, batches keyed by (seed, iteration)."""

from cytopipe.data.batches import Batches, LoaderSettings, prefetch
from cytopipe.data.dataset import Dataset, FileDataset, StoreDataset, open_dataset
from cytopipe.data.file_pool import Example, FilePool
from cytopipe.data.pool import ImagePool, TileObjects, TilePool

__all__ = [
    "Batches",
    "Dataset",
    "Example",
    "FileDataset",
    "FilePool",
    "ImagePool",
    "LoaderSettings",
    "StoreDataset",
    "TileObjects",
    "TilePool",
    "open_dataset",
    "prefetch",
]
