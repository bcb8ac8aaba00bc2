"""What a TIFF says about itself in its tags and descriptions: resolution, objective, technical facts. By an allow-list:
users, dates, barcodes and file names stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cytopipe.slides.ome_xml import OmeImage
from cytopipe.slides.resolution import Evidence, mpp_from_tags, number_or_none

COMPRESSIONS = {
    1: "none", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "packbits", 32946: "deflate", 33005: "JPEG 2000",
    34712: "JPEG 2000", 50000: "Zstandard", 50001: "WebP",
}  # fmt: skip
"""TIFF compression numbers that are decoded here. 33003 (Aperio JPEG 2000 in YCbCr) is left to OpenSlide, which knows
its colours."""

APERIO_KEYS = (
    "AppMag",
    "MPP",
    "StripeWidth",
    "Left",
    "Top",
    "Filtered",
    "OriginalWidth",
    "OriginalHeight",
    "Gamma",
    "DisplayColor",
)
"""The only keys of an Aperio description that are kept: others name users, dates, files and barcodes."""

UM_PER_IMAGEJ_UNIT = {
    "micron": 1.0, "microns": 1.0, "um": 1.0, "µm": 1.0, "\u03bcm": 1.0, "\\u00b5m": 1.0, "nm": 1e-3, "mm": 1e3,
    "cm": 1e4, "inch": 25_400.0,
}  # fmt: skip
"""Units that ImageJ writes; `pixel` is none."""


def evidence_of(tiff: Any, base: Any, vendor: str, description: str, ome: OmeImage | None) -> Evidence:
    """What speaks for a resolution: the vendor's field, resolution tags, the objective."""
    tags = _tag_mpp(base)
    if vendor == "aperio":
        said = aperio_fields(description)
        mpp = number_or_none(said.get("MPP"))
        return Evidence((mpp, mpp) if mpp is not None else None, "aperio.MPP", tags, number_or_none(said.get("AppMag")))
    if ome is not None:
        return Evidence(ome.mpp, "OME PhysicalSize", tags, ome.objective)
    if vendor == "imagej":
        return Evidence(_imagej_mpp(tiff, base), "ImageJ unit", tags)
    return Evidence(tags=tags)


def properties_of(base: Any, vendor: str, description: str) -> dict[str, str]:
    """Technical facts, `aperio.AppMag` and the like."""
    said = {"tiff.compression": COMPRESSIONS[base.compression], "tiff.photometric": base.photometric.name}
    if vendor == "aperio":
        fields = aperio_fields(description)
        said |= {f"aperio.{key}": fields[key] for key in APERIO_KEYS if key in fields}
    return said


def aperio_fields(description: str) -> dict[str, str]:
    """'… |AppMag = 20|MPP = 0.4990' -> a dict; the text before the first bar is free and left out."""
    pairs = (part.partition("=") for part in description.split("|")[1:])
    return {key.strip(): value.strip() for key, sign, value in pairs if sign}


def _imagej_mpp(tiff: Any, base: Any) -> tuple[float, float] | None:
    """ImageJ writes px per unit into the tags, and the unit into its own description."""
    said: Mapping[str, Any] = tiff.imagej_metadata or {}
    um = UM_PER_IMAGEJ_UNIT.get(str(said.get("unit", "")).lower())
    per_unit = _rationals(base)
    if um is None or per_unit is None or not all(per_unit):
        return None
    return um / per_unit[0], um / per_unit[1]


def _tag_mpp(base: Any) -> tuple[float, float] | None:
    per_unit = _rationals(base)
    return None if per_unit is None else mpp_from_tags(*per_unit, int(base.tags.valueof(296, 2)))


def _rationals(base: Any) -> tuple[float, float] | None:
    """XResolution and YResolution."""
    values = [base.tags.valueof(tag, None) for tag in (282, 283)]
    if any(not isinstance(value, tuple) or len(value) != 2 or not value[1] for value in values):
        return None
    return values[0][0] / values[0][1], values[1][0] / values[1][1]
