"""labels.zarr: the objects as label images in OME-Zarr 0.5 (zarr v3, sharded) or 0.4 (zarr v2).

Enters: groups of objects by y0, level-0 px.  Leaves: a `labels` group, which stands alone or is put as `labels` into
the group of the slide's image:

    labels.zarr/objects-1/0, 1, ...   uint32 (height, width), a pyramid by nearest pixel; 0 is background
    labels.zarr/objects-2/...         what overlaps: each object lies in the first layer in which no pixel is taken
    labels.zarr/object_ids            uint8 (N, 16): row v - 1 is the UUID of label v, which is row v - 1 of the table
    labels.zarr/class_index           uint16 (N,): its class, in the order of the attribute `classes`

A pixel belongs to an object as `rasterise.py` says. Memory holds the strips of STRIP_PX rows that are not final: a few
times the slide's width, whatever its height.

Source  ngff.openmicroscopy.org, 0.4 and 0.5: "labels" metadata, "multiscales", "image-label".
"""

from __future__ import annotations

import math
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.errors import UserError
from cytopipe.core.files import PARTIAL_SUFFIX, disk_error, fsync_path
from cytopipe.formats.rasterise import spans
from cytopipe.formats.results.identity import uuid_bytes
from cytopipe.formats.results.schema import OUTLINE_SLACK_PX, Group, ResultsInfo

Version = Literal["0.4", "0.5"]

STRIP_PX = 512  # side of a chunk, and rows that are written together
SHARD_CHUNKS = 32  # [D] chunks of a strip in one file: a slide of 100,000 px takes 1,400 files a layer, not 38,000
MAX_LAYERS = 64  # [D] a pile of more objects than this on one pixel is no finding; what lies deeper is counted
BATCH = 1 << 11  # [D] objects that are rasterised together
IDS_NAME, CLASSES_NAME = "object_ids", "class_index"


class LabelWriter:
    """Streams groups of objects to a folder, which appears when the block ends without an error.

    size  width and height of level 0, px
    mpp   µm/px of the finest label image; None: level 0
    Raises UserError for a `mpp` on a slide that has none, or finer than level 0.
    """

    def __init__(
        self, path: Path, info: ResultsInfo, size: tuple[int, int], version: Version = "0.5", mpp: float | None = None
    ) -> None:
        self._path, self._info, self._version = path, info, version
        self._step = _step(info, mpp)
        width, height = (max(1, math.ceil(side / step)) for side, step in zip(size, self._step, strict=True))
        self._sizes = [(width, height)]
        while max(self._sizes[-1]) > STRIP_PX:
            self._sizes.append(((self._sizes[-1][0] + 1) // 2, (self._sizes[-1][1] + 1) // 2))
        self._partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
        self._group: Any = None
        self._tables: list[Any] = []
        self._layers: list[list[Any]] = []  # of each layer the arrays of its levels
        self._strips: dict[tuple[int, int, int], NDArray[np.uint32]] = {}  # layer, level, number of the strip
        self._next_strip = 0
        self._left_out = 0

    def __enter__(self) -> LabelWriter:
        import zarr  # 0.5 s, and only this format needs it

        tables: tuple[tuple[str, tuple[int, ...], str], ...] = (
            (IDS_NAME, (16,), "uint8"),
            (CLASSES_NAME, (), "uint16"),
        )
        try:
            self._group = zarr.create_group(self._partial, zarr_format=2 if self._version == "0.4" else 3)
            self._tables = [
                self._group.create_array(name, shape=(0, *row), chunks=(1 << 14, *row), dtype=dtype, fill_value=0)
                for name, row, dtype in tables
            ]
            self._add_layer()
        except OSError as error:
            shutil.rmtree(self._partial, ignore_errors=True)
            raise disk_error(error, self._path) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish_strips(len(self._strip_range(0)))
                self._describe()
                fsync_path(self._partial)
                if self._path.exists():
                    shutil.rmtree(self._path)
                self._partial.replace(self._path)
                fsync_path(self._path.parent)
        except OSError as error:
            raise disk_error(error, self._path) from error
        finally:
            shutil.rmtree(self._partial, ignore_errors=True)

    def add(self, group: Group) -> None:
        """Paint one group, and write the strips that no later object can reach."""
        try:
            for start in range(0, len(group), BATCH):
                rows = slice(start, start + BATCH)
                top = (group.objects.xyxy[rows, 1].min() - OUTLINE_SLACK_PX) / self._step[1]
                self._finish_strips(int(np.clip(top // STRIP_PX, 0, len(self._strip_range(0)))))
                self._paint(group.shapes[rows], group.first + start + 1)
            ids, classes = uuid_bytes(group.ids), group.objects.class_index.astype(np.uint16)
            columns: tuple[NDArray[Any], ...] = (ids, classes)
            for table, values in zip(self._tables, columns, strict=True):
                table.resize((group.first + len(group), *values.shape[1:]))
                table[group.first :] = values
        except OSError as error:
            raise disk_error(error, self._path) from error

    def _strip_range(self, level: int) -> range:
        return range(-(-self._sizes[level][1] // STRIP_PX))

    def _paint(self, shapes: NDArray[np.object_], first_label: int) -> None:
        width, height = self._sizes[0]
        if self._step != (1.0, 1.0):
            shapes = shapely.transform(shapes, lambda points: points / self._step)
        found = spans(shapes, (0, 0, width, height))
        length = found.last - found.first
        ends = np.searchsorted(found.owner, np.arange(len(shapes) + 1)).tolist()
        for i in range(len(shapes)):
            some = slice(ends[i], ends[i + 1])
            n = length[some]
            if not len(n):
                continue
            row = np.repeat(found.row[some], n)
            column = np.arange(len(row)) - np.repeat(np.cumsum(n) - n - found.first[some], n)
            strips, starts = np.unique(found.row[some] // STRIP_PX, return_index=True)
            at = [*np.concatenate([[0], np.cumsum(n)])[starts].tolist(), len(row)]
            places = [
                (strip, (row[a:b] - strip * STRIP_PX) * width + column[a:b])
                for strip, a, b in zip(strips.tolist(), at, at[1:], strict=False)
            ]
            layer = self._free_layer(places)
            if layer is None:
                self._left_out += 1
                continue
            for strip, place in places:
                self._strip(layer, 0, strip).reshape(-1)[place] = first_label + i

    def _free_layer(self, places: list[tuple[int, NDArray[np.int64]]]) -> int | None:
        """The first layer in which no pixel is taken, a new one if need be; None where there are too many."""
        for layer in range(len(self._layers)):
            strips = self._strips
            if not any(
                strips[layer, 0, strip].reshape(-1)[place].any()
                for strip, place in places
                if (layer, 0, strip) in strips
            ):
                return layer
        if len(self._layers) == MAX_LAYERS:
            return None
        self._add_layer()
        return len(self._layers) - 1

    def _strip(self, layer: int, level: int, number: int) -> NDArray[np.uint32]:
        key = (layer, level, number)
        if key not in self._strips:
            width, height = self._sizes[level]
            rows = min(STRIP_PX, height - number * STRIP_PX)
            self._strips[key] = np.zeros((rows, width), np.uint32)  # pages that nothing is painted on cost nothing
        return self._strips[key]

    def _finish_strips(self, stop: int) -> None:
        """Write the strips of the finest level before strip `stop`, and what follows of them in the pyramid."""
        for number in range(self._next_strip, stop):
            for layer in range(len(self._layers)):
                self._finish(layer, 0, number)
        self._next_strip = max(self._next_strip, stop)

    def _finish(self, layer: int, level: int, number: int) -> None:
        strip = self._strips.pop((layer, level, number), None)
        if strip is not None:
            start = number * STRIP_PX
            self._layers[layer][level][start : start + len(strip)] = strip
            if level + 1 < len(self._sizes):
                half = strip[::2, ::2]
                row = (number % 2) * (STRIP_PX // 2)
                self._strip(layer, level + 1, number // 2)[row : row + len(half)] = half
        is_last = number + 1 == len(self._strip_range(level))
        if level + 1 < len(self._sizes) and (number % 2 or is_last):
            self._finish(layer, level + 1, number // 2)

    def _add_layer(self) -> None:
        number = len(self._layers) + 1
        folder = self._group.create_group(_layer_name(number))
        self._layers.append([self._array(folder, level) for level in range(len(self._sizes))])
        folder.attrs.update(self._layer_facts(number))

    def _array(self, folder: Any, level: int) -> Any:
        width, height = self._sizes[level]
        more: dict[str, Any] = {}
        if self._version == "0.4":
            more["chunk_key_encoding"] = {"name": "v2", "separator": "/"}
        else:
            chunks = min(SHARD_CHUNKS, -(-width // STRIP_PX))
            more = {"dimension_names": ["y", "x"], "shards": (STRIP_PX, STRIP_PX * chunks)}
        return folder.create_array(
            str(level), shape=(height, width), chunks=(STRIP_PX, STRIP_PX), dtype="uint32", fill_value=0, **more
        )

    def _layer_facts(self, number: int) -> dict[str, Any]:
        mpp = self._info.mpp
        unit = {} if mpp is None else {"unit": "micrometer"}
        finest = [step * side for step, side in zip(self._step, mpp or (1.0, 1.0), strict=True)]
        datasets = [
            {
                "path": str(level),
                "coordinateTransformations": [{"type": "scale", "scale": [finest[1] * 2**level, finest[0] * 2**level]}],
            }
            for level in range(len(self._sizes))
        ]
        scales: dict[str, Any] = {
            "name": _layer_name(number),
            "axes": [{"name": name, "type": "space", **unit} for name in ("y", "x")],
            "datasets": datasets,
            "type": "nearest",
        }
        if self._version == "0.4":
            return {"multiscales": [{"version": "0.4", **scales}], "image-label": {"version": "0.4"}}
        return {"ome": {"version": "0.5", "multiscales": [scales], "image-label": {}}}

    def _describe(self) -> None:
        labels = [_layer_name(k + 1) for k in range(len(self._layers))]
        own = {
            "slide_id": self._info.slide_id,
            "classes": self._info.names,
            "labels": f"label v is row v - 1 of {IDS_NAME}, of {CLASSES_NAME}, and of objects.parquet",
            "left_out": self._left_out,
        }
        ome = {"labels": labels} if self._version == "0.4" else {"ome": {"version": "0.5", "labels": labels}}
        self._group.attrs.update({**ome, "cytopipe": own})


def _layer_name(number: int) -> str:
    return f"objects-{number}"


def _step(info: ResultsInfo, mpp: float | None) -> tuple[float, float]:
    """Level-0 px along x and y to one px of the finest label image."""
    if mpp is None:
        return 1.0, 1.0
    if info.mpp is None:
        raise UserError("has no resolution", where=info.slide_id, fix="leave out --zarr-mpp, or give --mpp-override")
    step = (mpp / info.mpp[0], mpp / info.mpp[1])
    if min(step) < 1 - 1e-6:
        raise UserError(f"is finer than level 0, {max(info.mpp):g} µm/px", where=f"--zarr-mpp {mpp:g}")
    return step
