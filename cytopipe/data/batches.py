"""Batches as a pure function of (seed, iteration): the same labelled batches for every method, exact resume, any number
of loader threads, any number of processes that share a batch.

Enters: pools of images, a view plan.  Leaves: `semi.Batch`, normalised, on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from cytopipe.core.seeds import rng_from, seed_from
from cytopipe.data.pool import ImagePool
from cytopipe.data.views import DrawnExample, draw_views
from cytopipe.nets import NetSpec, SegSpec, normalise
from cytopipe.semi import Batch, Part, View, ViewPlan, ViewPreset


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """How batches are cut.

    crop_px   side of what the network sees in training
    batch_*   images of the global batch
    zoom      range of a random rescaling, 1 = none
    share     (rank, world): this process makes the images at its contiguous places of the global batch; their keys and
              views are those that a single process gives them
    Raises ValueError for a share that leaves a process without a labelled image.
    """

    seed: int
    crop_px: int
    batch_labelled: int
    batch_unlabelled: int
    zoom: tuple[float, float] = (1.0, 1.0)
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        rank, world = self.share
        if not 0 <= rank < world or self.batch_labelled < world:
            raise ValueError(f"LoaderSettings: share {self.share} of {self.batch_labelled} labelled images")

    def places(self, size: int) -> range:
        """The places of a global batch of `size` images that this process makes."""
        rank, world = self.share
        return range(rank * size // world, (rank + 1) * size // world)


class Batches:
    """`batch(t)` is the batch of iteration t."""

    def __init__(
        self,
        labelled: ImagePool,
        unlabelled: ImagePool | None,
        plan: ViewPlan,
        spec: NetSpec | SegSpec,
        settings: LoaderSettings,
    ) -> None:
        self.labelled, self.unlabelled, self.plan, self.spec, self.settings = labelled, unlabelled, plan, spec, settings

    def batch(self, t: int) -> Batch:
        """The batch of iteration t (0-based). Labelled images depend on (seed, t) and their presets only, not on the
        method or the unlabelled pool.
        """
        labelled = self._part("labelled", self.labelled, self.settings.batch_labelled, self.plan.labelled, t)
        if self.unlabelled is None or not self.plan.unlabelled:
            return Batch(labelled, None)
        size = self.settings.batch_unlabelled
        return Batch(labelled, self._part("unlabelled", self.unlabelled, size, self.plan.unlabelled, t))

    def _part(self, kind: str, pool: ImagePool, size: int, presets: Mapping[str, ViewPreset], t: int) -> Part:
        places = self.settings.places(size)
        drawn = [
            self._views(kind, pool, self._chosen(kind, pool, t * size + place), presets, t, place) for place in places
        ]
        return Part({name: self._collate([d[name] for d in drawn], kind, t, places) for name in presets})

    def _chosen(self, kind: str, pool: ImagePool, n: int) -> int:
        """The image at place n of the endless sequence that shows every image once in each epoch."""
        return int(_order(self.settings.seed, kind, len(pool), n // len(pool))[n % len(pool)])

    def _views(
        self, kind: str, pool: ImagePool, index: int, presets: Mapping[str, ViewPreset], t: int, place: int
    ) -> dict[str, DrawnExample]:
        def stream(*name: str) -> np.random.Generator:
            return rng_from(self.settings.seed, kind, t, place, *name)

        learns = self.spec.task if kind == "labelled" else None
        return draw_views(pool, index, presets, stream, self.settings.crop_px, self.settings.zoom, learns)

    def _collate(self, drawn: list[DrawnExample], kind: str, t: int, places: range) -> View:
        keys = [seed_from(self.settings.seed, "keys", kind, t, place) >> 1 for place in places]
        labels = [d.labels for d in drawn if d.labels is not None]
        side = self.settings.crop_px
        valid = None
        if any(d.valid is not None for d in drawn):
            everywhere = np.ones((side, side), bool)
            valid = torch.from_numpy(np.stack([everywhere if d.valid is None else d.valid for d in drawn]))
        return View(
            normalise(torch.from_numpy(np.stack([d.image for d in drawn])), self.spec),
            tuple(d.targets for d in drawn if d.targets is not None),
            torch.from_numpy(np.stack([d.affine for d in drawn])),
            torch.tensor(keys, dtype=torch.int64),
            torch.from_numpy(np.stack(labels).astype(np.int64)) if labels else None,
            valid,
        )


def prefetch(batches: Batches, start: int, stop: int, threads: int) -> Iterator[Batch]:
    """Batches start..stop-1 in order, made ahead by `threads` threads; at most 2 * threads wait."""
    if threads <= 0:
        yield from (batches.batch(t) for t in range(start, stop))
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="batches") as executor:
        waiting: list[Future[Batch]] = []
        upcoming = iter(range(start, stop))
        try:
            for t in upcoming:
                waiting.append(executor.submit(batches.batch, t))
                if len(waiting) >= 2 * threads:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()


@lru_cache(maxsize=16)
def _order(seed: int, kind: str, size: int, epoch: int) -> NDArray[np.intp]:
    return rng_from(seed, "order", kind, epoch).permutation(size)
