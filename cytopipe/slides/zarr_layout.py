"""What an OME-Zarr image says about itself: its levels, axes, channels and resolution.

Enters: the JSON attributes of a group, OME-NGFF 0.4 (zarr v2) or 0.5 (zarr v3).  Leaves: a `Multiscale`, or
NotThisReader. Nothing else of a group is read: neither its name, nor other images, nor anything about people.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cytopipe.slides.mixing import Channel
from cytopipe.slides.opened import NotThisReader

MARKERS = ("zarr.json", ".zattrs", ".zgroup", ".zarray")
"""Files that a folder has if it is a zarr node: v3, and three of v2."""

UM_PER_UNIT = {
    "angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4, "meter": 1e6,
    "nm": 1e-3, "um": 1.0, "µm": 1.0, "\u03bcm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6, "micron": 1.0,
}  # fmt: skip
"""Units of space axes: those of OME-NGFF 0.4 that slides have, and the short forms that some writers use."""


@dataclass(frozen=True, slots=True)
class Multiscale:
    """One image of several levels.

    paths     of the level arrays inside the group, finest first
    axes      one letter an axis of every array, out of t c z y x
    mpp       level-0 µm/px (x, y); None where an axis has no unit of length or no scale
    channels  what `omero` says; empty where it is absent
    """

    version: str
    paths: tuple[str, ...]
    axes: str
    mpp: tuple[float, float] | None
    channels: tuple[Channel, ...]


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a zarr group or array: a slide, and no folder of slides."""
    return folder.is_dir() and any((folder / name).is_file() for name in MARKERS)


def ome_attributes(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Where OME-NGFF stands among a group's attributes: under `ome` in 0.5, at the top in 0.4."""
    inner = attributes.get("ome")
    return inner if isinstance(inner, Mapping) else attributes


def read_multiscale(ome: Mapping[str, Any], name: str) -> Multiscale:
    """The first multiscale image. Raises NotThisReader where it is missing or not as the specification says."""
    try:
        scales = ome["multiscales"]
        first = scales[0]
        axes = _axes(first.get("axes"))
        datasets = first["datasets"]
        paths = tuple(str(dataset["path"]) for dataset in datasets)
        version = str(ome.get("version", first.get("version", "")))
        common = _scale(first.get("coordinateTransformations"), len(axes))
        finest = _scale(datasets[0].get("coordinateTransformations"), len(axes))
        channels = _channels(ome.get("omero"))
        units = _units(first.get("axes"))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise NotThisReader(f"its OME metadata are not as OME-Zarr has them ({reason})", where=name) from error
    if not paths or any(_leaves_the_group(path) for path in paths):
        raise NotThisReader("its OME metadata name no level, or one outside of it", where=name)
    sides = [_side(axis, axes, common, finest, units) for axis in "xy"]
    mpp = (sides[0], sides[1]) if sides[0] is not None and sides[1] is not None else None
    return Multiscale(version, paths, axes, mpp, channels)


def _axes(said: Any) -> str:
    """One letter an axis; 0.1 to 0.3 fixed them (t c z y x). Raises ValueError for axes that no slide has."""
    names = [axis["name"] if isinstance(axis, Mapping) else str(axis) for axis in said] if said else list("tczyx")
    letters = "".join(str(name).lower() for name in names)
    if len(letters) != len(names) or not set("yx") <= set(letters) <= set("tczyx") or len(set(letters)) != len(names):
        raise ValueError(f"axes {', '.join(map(str, names))}")
    return letters


def _units(said: Any) -> dict[str, str]:
    return {axis["name"].lower(): str(axis.get("unit") or "") for axis in said or () if isinstance(axis, Mapping)}


def _scale(transformations: Any, count: int) -> tuple[float, ...] | None:
    """The `scale` among coordinate transformations, a number an axis; None where there is none."""
    for transformation in transformations or ():
        if transformation.get("type") == "scale" and "scale" in transformation:
            values = tuple(float(value) for value in transformation["scale"])
            if len(values) != count:
                raise ValueError(f"a scale of {len(values)} numbers for {count} axes")
            return values
    return None


def _side(
    axis: str,
    axes: str,
    common: Sequence[float] | None,
    finest: Sequence[float] | None,
    units: Mapping[str, str],
) -> float | None:
    """µm/px on one axis: the level's scale, times that of the whole image."""
    if finest is None or units.get(axis) not in UM_PER_UNIT:
        return None
    at = axes.index(axis)
    value = finest[at] * (common[at] if common is not None else 1.0) * UM_PER_UNIT[units[axis]]
    return value if math.isfinite(value) else None


def _channels(omero: Any) -> tuple[Channel, ...]:
    if not isinstance(omero, Mapping):
        return ()
    return tuple(_channel(number, said) for number, said in enumerate(omero.get("channels") or ()))


def _channel(number: int, said: Mapping[str, Any]) -> Channel:
    window, colour = said.get("window"), str(said.get("color") or "").lstrip("#").upper()
    low_high = None
    if isinstance(window, Mapping) and "start" in window and "end" in window:
        low, high = float(window["start"]), float(window["end"])
        low_high = (low, high) if math.isfinite(low) and math.isfinite(high) and low < high else None
    name = str(said.get("label") or number)
    return Channel(name, low_high, colour if re.fullmatch(r"[0-9A-F]{6}", colour) else None)


def _leaves_the_group(path: str) -> bool:
    """Levels lie inside their group: a path from outside is not followed elsewhere."""
    return not path or path.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", path) or ":" in path
