"""The `zarr` reader: OME-Zarr images (OME-NGFF 0.4 in zarr v2, 0.5 in zarr v3, sharded or not) in a folder.

Enters: a folder.  Leaves: a `ZarrSlide`. Axes t, c, z, y, x in any subset that has y and x; 8 to 64-bit integers and
floats. Of a bioformats2raw collection the first image is read: the others may be label and macro.

A chunk that is not stored is the array's fill value: that is zarr's own rule, writers leave out chunks of nothing else,
and so a chunk that was lost later cannot be told from one that was empty. A chunk that is there and cannot be decoded
is an error with its place.

Differs from the specification: translations between levels are not applied (writers state half a pixel of the level,
which `MppView` has by construction), and transformations other than `scale` are ignored. Zipped stores are not read.
"""

from __future__ import annotations

import json
import math
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.errors import BaseZarrError

from cytopipe.core.errors import UserError
from cytopipe.slides.mixing import Channel, Samples, Source, is_pure_rgb
from cytopipe.slides.opened import MAX_SEGMENT_BYTES, MAX_SIDE_PX, NotThisReader
from cytopipe.slides.resolution import Evidence
from cytopipe.slides.showing import AS_STORED, Showing
from cytopipe.slides.slide import ASPECT_PX
from cytopipe.slides.stack import Stack, StackSlide
from cytopipe.slides.zarr_bounds import Bounds
from cytopipe.slides.zarr_layout import Multiscale, is_zarr, ome_attributes, read_multiscale

OPEN_ERRORS = (
    BaseZarrError, json.JSONDecodeError, OSError, KeyError, IndexError, TypeError, ValueError, AttributeError,
    NotImplementedError, OverflowError, RecursionError,
)  # fmt: skip
"""What zarr raises on metadata that are damaged, or that it does not know."""

DECODE_ERRORS = (
    RuntimeError, ValueError, OSError, EOFError, KeyError, IndexError, TypeError, zlib.error, MemoryError,
    OverflowError,
)  # fmt: skip
"""What numcodecs, gzip and zarr's own codecs raise on damaged chunks; MemoryError where a header claims too much."""

SPARSE_CHUNKS = 1000
"""An array with more chunks for each stored one is a damaged shape [D]: real slides have a tenth and more."""

BIOFORMATS2RAW = "bioformats2raw.layout"


class ZarrSlide(StackSlide):
    """An OME-Zarr image. Raises NotThisReader for what is none, UserError for one that is no slide."""

    reader = "zarr"
    decode_errors = DECODE_ERRORS
    segment_word = "chunk"

    def __init__(self, path: Path, mpp_override: float | None = None, showing: Showing = AS_STORED) -> None:
        if not is_zarr(path):
            raise NotThisReader("no zarr folder", where=path.name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # its remarks on what a specification may change some day
                image, ome, notes = _image(path)
                multiscale = read_multiscale(ome, path.name)
                arrays, level_notes = _levels(image, multiscale, path.name)
                bounds = [Bounds(array, path) for array in arrays]
                if max(arrays[0].shape) <= MAX_SIDE_PX:  # a larger one is refused for its size
                    level_notes += _missing(*bounds[0].stored(), path.name)
        except OPEN_ERRORS as error:
            reason = str(error).replace(str(path), path.name) or type(error).__name__
            raise NotThisReader(f"zarr cannot open it ({reason})", where=path.name) from error
        self._arrays, self._axes, self._bounds = arrays, multiscale.axes, bounds
        super().__init__(path, _stack(arrays, multiscale, notes + level_notes, path.name), mpp_override, showing)

    def _samples(self, level: int, channels: tuple[int, ...], column: int, row: int) -> Mapping[int, Samples]:
        array, axes = self._arrays[level], self._axes
        width, height = self._stack.segments[level]
        place: dict[str, int | slice] = {"t": 0, "z": self.plane}
        place["y"] = slice(row * height, (row + 1) * height)
        place["x"] = slice(column * width, (column + 1) * width)
        starts = {axis: at.start if isinstance(at, slice) else at for axis, at in place.items()}
        if "c" not in axes:
            self._bounds[level].check([starts[axis] for axis in axes])
            return {0: _oriented(array[tuple(place[axis] for axis in axes)], axes)}
        found: dict[int, Samples] = {}
        chunk = array.chunks[axes.index("c")]
        for group in sorted({channel // chunk for channel in channels}):  # channels of one chunk are decoded together
            members = [channel for channel in channels if channel // chunk == group]
            place["c"] = slice(members[0], members[-1] + 1)
            self._bounds[level].check([members[0] if axis == "c" else starts[axis] for axis in axes])
            block = array[tuple(place[axis] for axis in axes)]
            left = [axis for axis in axes if axis in "cyx"]
            block = np.moveaxis(np.asarray(block), left.index("c"), 0)
            found |= {c: _oriented(block[c - members[0]], axes.replace("c", "")) for c in members}
        return found

    def _close(self) -> None:
        self._cache.clear()


def _image(path: Path) -> tuple[Any, Mapping[str, Any], tuple[str, ...]]:
    """The group that is the image, its OME attributes, and a note where other images stand beside it."""
    node = zarr.open(store=path, mode="r")
    if not isinstance(node, zarr.Group):
        raise NotThisReader("a bare zarr array, without OME-Zarr's metadata", where=path.name)
    ome = ome_attributes(node.attrs.asdict())
    if "plate" in ome or "well" in ome:
        what = "an OME-Zarr plate of wells, not a slide"
        raise UserError(what, where=path.name, fix="name one image in it, such as PLATE.zarr/A/1/0")
    if "multiscales" in ome:
        return node, ome, ()
    if BIOFORMATS2RAW in ome and "0" in node:
        image = node["0"]
        if isinstance(image, zarr.Group):
            note = ("further images of this OME-Zarr are not read",) if "1" in node else ()
            return image, ome_attributes(image.attrs.asdict()), note
    raise NotThisReader("a zarr group without OME-Zarr's multiscales", where=path.name)


def _levels(image: Any, multiscale: Multiscale, name: str) -> tuple[list[Any], tuple[str, ...]]:
    """The arrays that are levels, finest first, and notes on those that are not."""
    axes = multiscale.axes
    arrays: list[Any] = []
    notes: list[str] = []
    for path in multiscale.paths:
        array = image[path]
        if not isinstance(array, zarr.Array) or len(array.shape) != len(axes):
            raise NotThisReader(f"level {path!r} is no array of axes {' '.join(axes)}", where=name)
        if array.dtype.kind not in "uif" or min(array.shape) < 1:
            raise NotThisReader(f"level {path!r} has {array.shape} samples of type {array.dtype}", where=name)
        if math.prod(array.chunks) * array.dtype.itemsize > MAX_SEGMENT_BYTES:
            what = f"chunks of {' x '.join(map(str, array.chunks))} samples are too large to be decoded"
            raise UserError(what, where=name, fix="write it with smaller chunks")
        if arrays and not _is_smaller(array, arrays[-1], arrays[0], axes):
            notes.append(f"level {path!r} is no smaller picture of the first one; not used")
        else:
            arrays.append(array)
    return arrays, tuple(notes)


def _missing(stored: int, whole: int, name: str) -> tuple[str, ...]:
    """A note on the chunks of level 0 that are not stored. Raises UserError where next to none is: nothing but the fill
    value would be shown, for hours where the shape is damaged."""
    if stored == 0 or whole > SPARSE_CHUNKS * stored:
        raise UserError(f"{stored} of its {whole} chunks are stored", where=name, fix="the folder is damaged or empty")
    return (f"{whole - stored} of {whole} chunks are not stored; they show the fill value",) if stored < whole else ()


def _is_smaller(array: Any, before: Any, base: Any, axes: str) -> bool:
    rest = [i for i, axis in enumerate(axes) if axis not in "yx"]
    if array.dtype != base.dtype or any(array.shape[i] != base.shape[i] for i in rest):
        return False
    x, y = axes.index("x"), axes.index("y")
    is_smaller = array.shape[x] < before.shape[x] and array.shape[y] <= before.shape[y]
    return bool(is_smaller and abs(array.shape[x] * base.shape[y] / base.shape[x] - array.shape[y]) <= ASPECT_PX)


def _stack(arrays: list[Any], multiscale: Multiscale, notes: tuple[str, ...], name: str) -> Stack:
    axes, base = multiscale.axes, arrays[0]
    count = {axis: base.shape[axes.index(axis)] if axis in axes else 1 for axis in "tczyx"}
    if count["t"] > 1:
        raise UserError(f"a time series of {count['t']} frames; only slides of one moment are read", where=name)
    x, y = axes.index("x"), axes.index("y")
    said = multiscale.channels if len(multiscale.channels) == count["c"] else ()
    channels = said or tuple(Channel(str(number)) for number in range(count["c"]))
    info = None if base.dtype.kind == "f" else np.iinfo(base.dtype)
    return Stack(
        vendor="ome-zarr",
        sizes=tuple((array.shape[x], array.shape[y]) for array in arrays),
        segments=tuple((array.chunks[x], array.chunks[y]) for array in arrays),
        is_tiled=True,
        z_count=count["z"],
        source=Source(
            channels,
            None if info is None else (float(info.min), float(info.max)),
            is_rgb=count["c"] == 3 and (is_pure_rgb(channels) if said else base.dtype == np.uint8),
        ),
        evidence=Evidence(
            multiscale.mpp,
            "OME-Zarr coordinateTransformations",
            missing="its metadata give no scale with a unit of length",
        ),
        properties={"ome-zarr.version": multiscale.version, "ome-zarr.axes": axes, "zarr.dtype": str(base.dtype)},
        icc=None,
        notes=notes,
    )


def _oriented(samples: Any, axes: str) -> Samples:
    """(y, x) from an array whose axes y and x may stand the other way round."""
    array = np.asarray(samples)
    return array if axes.index("y") < axes.index("x") else array.T
