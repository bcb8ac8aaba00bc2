"""Class maps as an OME-Zarr label pyramid, written row by row: what semantic models answer with.

    semantic.zarr              a label image, OME-Zarr 0.5 on zarr v3: `multiscales` and `image-label` under `ome`
    semantic.zarr/0, 1, ...    (y, x) uint8: 0 background or not searched, i + 1 class i; each level half the last
    semantic.zarr/prob         on request: group with `multiscales`, an image of its own
    semantic.zarr/prob/0, ...  (c, y, x) uint8: probability of class c times 255, rounded; background is what is left

Level 0 lies on the grid at the model's mpp: px (i, j) shows slide px [i s, (i + 1) s) x [j s, (j + 1) s), s =
`slide_px_per_px`, which stands in the group's attributes under `cytopipe`. `coordinateTransformations` scale px to µm
with the slide's corner as origin.

Enters: rows of labels and probabilities, top to bottom.  Leaves: a folder, whole or absent, in memory that does not
depend on the map's height.

A px of a further level has the most frequent label of its four px, the highest of equals, so that thin objects stay
visible; its probability is their mean. Chunks of nothing but 0 are not stored: zarr reads them as 0.
Source   OME-NGFF 0.5, sections multiscales, labels.
Differs  the label image stands alone, not under the `labels` of an image: the slide's own file is the image.
"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from cytopipe.core.errors import UserError
from cytopipe.core.files import PARTIAL_SUFFIX, disk_error, fsync_path
from cytopipe.formats.colours import class_colours

U8 = NDArray[np.uint8]

SEMANTIC_NAME = "semantic.zarr"
PROBABILITIES = "prob"
MAX_CLASSES = 255  # labels are uint8
CHUNK_PX = 512  # [D] of a slide 100,000 px wide the rows held are 100 MB, and a map of it 40,000 files at most
REDUCED_AT_ONCE = 32  # rows, even: halving needs several times their memory
FULL = 255  # a probability of 1


@dataclass(frozen=True, slots=True)
class MapFrame:
    """Where a class map lies.

    size             (width, height), px of its level 0
    um_per_px        µm a px, along x and y
    slide_px_per_px  level-0 px of the slide a px, along x and y
    """

    size: tuple[int, int]
    um_per_px: tuple[float, float]
    slide_px_per_px: tuple[float, float]


class SemanticWriter:
    """Write a map row by row: `with SemanticWriter(...) as writer: writer.add_rows(labels)` until all rows are there.

    The folder appears when the block ends without an error; one that stood there is replaced. Raises RunError when the
    disk fails.

    chunk_px   side of a chunk, even; so many rows of each level are held until they are written
    class_px   (classes + 1,) int64: px of each label so far, background first
    """

    def __init__(
        self,
        path: Path,
        frame: MapFrame,
        classes: Sequence[str],
        *,
        probabilities: bool = False,
        chunk_px: int = CHUNK_PX,
    ) -> None:
        if not 0 < len(classes) <= MAX_CLASSES or min(frame.size) <= 0 or chunk_px < 2 or chunk_px % 2:
            raise ValueError(f"SemanticWriter: {len(classes)} classes, {frame.size} px, chunks of {chunk_px} px")
        self.path, self.frame, self.classes = path, frame, tuple(classes)
        self.class_px = np.zeros(len(classes) + 1, dtype=np.int64)
        self._probabilities, self._chunk_px = probabilities, chunk_px
        self._rows = 0

    def __enter__(self) -> SemanticWriter:
        width, height = self.frame.size
        self._partial = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._group = zarr.open_group(self._partial, mode="w", zarr_format=3)
            self._labels = _Pyramid(self._group, (height, width), most_frequent_of_four, self._chunk_px)
            self._prob: _Pyramid | None = None
            if self._probabilities:
                group = self._group.create_group(PROBABILITIES)
                self._prob = _Pyramid(group, (len(self.classes), height, width), mean_of_four, self._chunk_px)
        except OSError as error:
            self._drop()
            raise disk_error(error, self.path) from error
        return self

    def add_rows(self, labels: U8, probabilities: U8 | None = None) -> None:
        """Append rows: labels (h, width) uint8, and probabilities (classes, h, width) uint8 where they were asked for.

        Raises ValueError for other shapes, too many rows, or probabilities where none, or none where some are expected.
        """
        width, height = self.frame.size
        h = len(labels)
        if labels.shape != (h, width) or labels.dtype != np.uint8 or self._rows + h > height:
            raise ValueError(
                f"add_rows: {labels.dtype} {labels.shape} after {self._rows} of {height} rows of {width} px"
            )
        if (probabilities is None) != (self._prob is None):
            raise ValueError("add_rows: probabilities come with all rows or with none")
        self._rows += h
        self.class_px += np.bincount(labels.ravel(), minlength=len(self.class_px))
        try:
            self._labels.append(labels)
            if self._prob is not None and probabilities is not None:
                self._prob.append(probabilities)
        except OSError as error:
            raise disk_error(error, self.path) from error

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is not None:
                return
            if self._rows != self.frame.size[1]:
                raise ValueError(f"SemanticWriter: {self._rows} of {self.frame.size[1]} rows were written")
            self._finish()
        except OSError as error:
            raise disk_error(error, self.path) from error
        finally:
            self._drop()

    def _finish(self) -> None:
        self._labels.flush()
        self._group.attrs["ome"] = {
            "version": "0.5",
            "multiscales": [self._multiscale("semantic", self._labels, "yx")],
            "image-label": self._image_label(),
        }
        self._group.attrs["cytopipe"] = {
            "classes": list(self.classes),
            "slide_px_per_px": list(self.frame.slide_px_per_px),
        }
        if self._prob is not None:
            self._prob.flush()
            self._prob.group.attrs["ome"] = {
                "version": "0.5",
                "multiscales": [self._multiscale("probability", self._prob, "cyx")],
                "omero": {"channels": [_channel(name) for name in self.classes]},
            }
        for path in sorted(self._partial.rglob("*"), reverse=True):
            fsync_path(path)
        if self.path.exists():
            shutil.rmtree(self.path)
        self._partial.replace(self.path)
        fsync_path(self.path.parent)

    def _multiscale(self, name: str, pyramid: _Pyramid, axes: str) -> dict[str, Any]:
        space = {"type": "space", "unit": "micrometer"}
        um = {"x": self.frame.um_per_px[0], "y": self.frame.um_per_px[1]}
        datasets = []
        for level in range(len(pyramid.levels)):
            scale = [um[axis] * 2**level if axis in um else 1.0 for axis in axes]
            datasets.append({"path": str(level), "coordinateTransformations": [{"type": "scale", "scale": scale}]})
        return {
            "name": name,
            "axes": [{"name": a, **space} if a in um else {"name": a, "type": "channel"} for a in axes],
            "datasets": datasets,
            "type": "mean" if axes == "cyx" else "mode",
        }

    def _image_label(self) -> dict[str, Any]:
        colours = class_colours(self.classes)
        um2 = self.frame.um_per_px[0] * self.frame.um_per_px[1]
        return {
            "colors": [
                {"label-value": k, "rgba": [*colours[name], 255]} for k, name in enumerate(self.classes, start=1)
            ],
            "properties": [
                {
                    "label-value": k,
                    "class": name,
                    "area_px": int(self.class_px[k]),
                    "area_mm2": float(self.class_px[k] * um2 / 1e6),
                }
                for k, name in enumerate(self.classes, start=1)
            ],
        }

    def _drop(self) -> None:
        if self._partial.is_dir():
            shutil.rmtree(self._partial)


def read_overview(path: Path, max_px: int) -> tuple[U8, int]:
    """Labels (h, w) of the finest level whose longer side is at most `max_px`, of the coarsest where none is; and how
    many px of level 0 one of its px stands for, along x and y.

    Raises UserError for a folder that is no class map.
    """
    try:
        group = zarr.open_group(path, mode="r")
        ome: Any = group.attrs["ome"]
        arrays: list[Any] = [group[dataset["path"]] for dataset in ome["multiscales"][0]["datasets"]]
        level = next((k for k, array in enumerate(arrays) if max(array.shape) <= max_px), len(arrays) - 1)
        return np.asarray(arrays[level][...], dtype=np.uint8), 2**level
    except (OSError, KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError("is no class map of cytopipe", where=str(path)) from error


def most_frequent_of_four(labels: U8) -> U8:
    """(..., 2h, 2w) -> (..., h, w): the label that most of four px have, the highest of equals."""
    four = _quarters(labels)
    best = np.zeros(four[0].shape, dtype=np.uint16)
    for one in four:
        votes = sum((one == other).astype(np.uint16) for other in four)
        best = np.maximum(best, votes * 256 + one)
    return (best & 255).astype(np.uint8)


def mean_of_four(values: U8) -> U8:
    """(..., 2h, 2w) -> (..., h, w): their mean, rounded half up."""
    total = sum(one.astype(np.uint16) for one in _quarters(values))
    return np.asarray((total + 2) >> 2, dtype=np.uint8)


def _quarters(values: U8) -> list[U8]:
    return [values[..., y::2, x::2] for y in (0, 1) for x in (0, 1)]


class _Pyramid:
    """The levels of one image; rows come in at the finest and reach the others halved, a row of chunks at a time."""

    def __init__(self, group: zarr.Group, shape: tuple[int, ...], reduce: Callable[[U8], U8], chunk_px: int) -> None:
        self.group, self._reduce, self._chunk_px = group, reduce, chunk_px
        self.levels: list[_Level] = []
        *front, height, width = shape
        while True:
            self.levels.append(_Level(group, str(len(self.levels)), (*front, height, width), chunk_px))
            if max(height, width) <= chunk_px:
                return
            height, width = (height + 1) // 2, (width + 1) // 2

    def append(self, rows: U8, number: int = 0) -> None:
        level = self.levels[number]
        start = 0
        while start < rows.shape[-2]:
            start += level.take(rows[..., start:, :])
            if level.filled == self._chunk_px:
                self._hand_down(number)

    def flush(self) -> None:
        """Write what is left of every level, finest first."""
        for number, level in enumerate(self.levels):
            if level.filled:
                self._hand_down(number)

    def _hand_down(self, number: int) -> None:
        rows = self.levels[number].write()
        if number + 1 == len(self.levels):
            return
        for y in range(0, rows.shape[-2], REDUCED_AT_ONCE):
            some = rows[..., y : y + REDUCED_AT_ONCE, :]
            # chunks are even, so that only the last row and column of a level can be left alone: they count twice
            odd = [(0, 0)] * (rows.ndim - 2) + [(0, side % 2) for side in some.shape[-2:]]
            self.append(self._reduce(np.pad(some, odd, mode="edge")), number + 1)


class _Level:
    """One array and the rows that wait to be written to it."""

    def __init__(self, group: zarr.Group, name: str, shape: tuple[int, ...], chunk_px: int) -> None:
        front = (1,) * (len(shape) - 2)
        self._array = group.create_array(
            name,
            shape=shape,
            dtype="uint8",
            chunks=(*front, chunk_px, chunk_px),
            fill_value=0,
            dimension_names=list("cyx"[-len(shape) :]),
        )
        self._pending = np.empty((*shape[:-2], min(chunk_px, shape[-2]), shape[-1]), dtype=np.uint8)
        self.filled = 0
        self._written = 0

    def take(self, rows: U8) -> int:
        """Keep as many rows as there is room for; returns how many."""
        count = min(rows.shape[-2], self._pending.shape[-2] - self.filled)
        self._pending[..., self.filled : self.filled + count, :] = rows[..., :count, :]
        self.filled += count
        return int(count)

    def write(self) -> U8:
        """Write the rows that wait, and give them."""
        rows: U8 = self._pending[..., : self.filled, :]
        self._array[..., self._written : self._written + self.filled, :] = rows
        self._written += self.filled
        self.filled = 0
        return rows


def _channel(name: str) -> dict[str, Any]:
    red, green, blue = class_colours([name])[name]
    return {
        "label": name,
        "color": f"{red:02X}{green:02X}{blue:02X}",
        "active": True,
        "window": {"min": 0, "max": FULL, "start": 0, "end": FULL},
    }
