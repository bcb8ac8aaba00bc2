"""OME-Zarr images as the specification has them, for tests: 0.4 on zarr v2, 0.5 on zarr v3, sharded or not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr


def write_ome_zarr(
    path: Path,
    levels: Sequence[np.ndarray],
    *,
    axes: str = "cyx",
    version: str = "0.5",
    mpp: float | tuple[float, float] | None = 0.25,
    unit: str = "micrometer",
    chunk_px: int = 64,
    shard_chunks: int | None = None,
    channels: Sequence[Mapping[str, Any]] = (),
    codec: str = "default",
    **more: Any,
) -> Path:
    """Write levels (arrays with `axes`), finest first, in chunks of one plane and channel.

    shard_chunks  chunks a side of a shard (0.5 only)
    codec         "default", "none", or "gzip"
    """
    group = zarr.open_group(path, mode="w", zarr_format=2 if version == "0.4" else 3)
    write_image(group, levels, axes, version, mpp, unit, chunk_px, shard_chunks, channels, codec, more)
    return path


def write_image(group, levels, axes, version, mpp, unit, chunk_px, shard_chunks, channels, codec, more) -> None:
    sides = (mpp, mpp) if isinstance(mpp, float) else mpp
    datasets = []
    for number, level in enumerate(levels):
        chunks = tuple(chunk_px if axis in "yx" else 1 for axis in axes)
        options: dict[str, Any] = {"compressors": None} if codec == "none" else {}
        if codec == "gzip":
            options["compressors"] = zarr.codecs.GzipCodec(level=5)
        if shard_chunks:
            options["shards"] = tuple(chunk_px * shard_chunks if axis in "yx" else 1 for axis in axes)
        array = group.create_array(str(number), shape=level.shape, dtype=level.dtype, chunks=chunks, **options)
        array[...] = level
        factor = levels[0].shape[axes.index("x")] / level.shape[axes.index("x")]
        dataset: dict[str, Any] = {"path": str(number)}
        if sides is not None:
            scale = [{"x": sides[0] * factor, "y": sides[1] * factor}.get(axis, 1.0) for axis in axes]
            dataset["coordinateTransformations"] = [{"type": "scale", "scale": scale}]
        datasets.append(dataset)
    kinds = {"t": "time", "c": "channel"}
    said = [{"name": axis, "type": kinds.get(axis, "space")} for axis in axes]
    for axis in said:
        if axis["type"] == "space" and unit:
            axis["unit"] = unit
    ome: dict[str, Any] = {"multiscales": [{"axes": said, "datasets": datasets}], **more}
    if channels:
        ome["omero"] = {"channels": list(channels)}
    if version == "0.4":
        ome["multiscales"][0]["version"] = "0.4"
        group.attrs.update(ome)
    else:
        group.attrs["ome"] = {"version": version, **ome}
