"""Batches as a pure function of (seed, iteration): the same labelled batches for every method, exact resume, any number
of loader threads.

Enters: pools of tiles, a view plan.  Leaves: `semi.Batch`, normalised, on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from cytopipe.core.seeds import rng_from, seed_from
from cytopipe.data.crops import cut_image, cut_objects, draw_crop
from cytopipe.data.pool import TilePool
from cytopipe.data.raster import rasterise
from cytopipe.nets import NetSpec, normalise
from cytopipe.semi import Batch, Geometry, Part, Targets, View, ViewPlan, ViewPreset, apply_preset, draw_geometry


@dataclass(frozen=True, slots=True)
class LoaderSettings:
    """How batches are cut. crop_px: side of what the network sees in training; zoom: range of a random rescaling, 1 =
    none.
    """

    seed: int
    crop_px: int
    batch_labelled: int
    batch_unlabelled: int
    zoom: tuple[float, float] = (1.0, 1.0)


class Batches:
    """`batch(t)` is the batch of iteration t."""

    def __init__(
        self, labelled: TilePool, unlabelled: TilePool | None, plan: ViewPlan, spec: NetSpec, settings: LoaderSettings
    ) -> None:
        self.labelled, self.unlabelled, self.plan, self.spec, self.settings = labelled, unlabelled, plan, spec, settings

    def batch(self, t: int) -> Batch:
        """The batch of iteration t (0-based). Labelled images depend on (seed, t) only, not on the method or the
        unlabelled pool.
        """
        labelled = self._part("labelled", self.labelled, self.settings.batch_labelled, self.plan.labelled, t)
        if self.unlabelled is None:
            return Batch(labelled, None)
        return Batch(
            labelled, self._part("unlabelled", self.unlabelled, self.settings.batch_unlabelled, self.plan.unlabelled, t)
        )

    def _part(self, kind: str, pool: TilePool, size: int, names: tuple[str, ...], t: int) -> Part:
        chosen = [
            _order(self.settings.seed, kind, len(pool), n // len(pool))[n % len(pool)]
            for n in range(t * size, (t + 1) * size)
        ]
        drawn = [self._views(kind, pool, int(index), names, t, place) for place, index in enumerate(chosen)]
        views = {name: self._collate([d[name] for d in drawn], kind, t) for name in names}
        first = views[names[0]] if "weak" not in views else views["weak"]
        return Part(first, views.get("strong"))

    def _views(
        self, kind: str, pool: TilePool, index: int, names: tuple[str, ...], t: int, place: int
    ) -> dict[str, _Drawn]:
        rng = rng_from(self.settings.seed, kind, t, place)
        image = pool.image(index)
        crop = draw_crop(image.shape[:2], self.settings.crop_px, self.settings.zoom, rng)
        pixels = cut_image(image, crop)
        objects = cut_objects(pool.objects(index), crop) if kind == "labelled" else None
        geometry = draw_geometry(self.plan.weak, rng)
        drawn = {}
        for name in names:
            view_rng = rng_from(self.settings.seed, kind, t, place, name)  # one view's colours do not shift another's
            view = apply_preset(pixels, self._preset(name), view_rng, geometry)
            targets = None
            if objects is not None:
                targets = self._targets(objects.labels, objects.geometry, geometry, view.image.shape[0])
            drawn[name] = _Drawn(view.image, view.affine, targets)
        return drawn

    def _preset(self, name: str) -> ViewPreset:
        preset = self.plan.weak if name == "weak" else self.plan.strong
        if preset is None:
            raise ValueError(f"the view plan has no preset for {name!r}")
        return preset

    def _targets(
        self, labels: NDArray[np.int64], shapes: NDArray[np.object_], geometry: Geometry, side: int
    ) -> Targets:
        affine = geometry.affine(side, side)
        turned = shapely.transform(shapes, lambda xy: xy @ affine[:, :2].T + affine[:, 2]) if len(shapes) else shapes
        boxes = torch.from_numpy(shapely.bounds(turned).reshape(-1, 4).astype(np.float32))
        masks = None
        if self.spec.task == "instance":
            masks = torch.from_numpy(
                np.stack([np.zeros((side, side), np.uint8), *(rasterise(s, side, side) for s in turned)])[1:]
            )
        return Targets(boxes, torch.from_numpy(labels.copy()), masks)

    def _collate(self, drawn: list[_Drawn], kind: str, t: int) -> View:
        images = normalise(torch.from_numpy(np.stack([d.image for d in drawn])), self.spec)
        targets = tuple(d.targets for d in drawn if d.targets is not None)
        keys = torch.tensor([seed_from(self.settings.seed, "keys", kind, t, place) >> 1 for place in range(len(drawn))])
        return View(images, targets, torch.from_numpy(np.stack([d.affine for d in drawn])), keys)


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    image: NDArray[np.uint8]
    affine: NDArray[np.float64]
    targets: Targets | None


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
