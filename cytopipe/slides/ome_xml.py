"""What the XML of an OME-TIFF says of its first image: how many planes, where each of them is, its channels, its
resolution.

Enters: the text of ImageDescription.  Leaves: an `OmeImage`. It is searched, not parsed: text from outside is worth no
entity expansion, and nothing but the attributes named here is looked at, so that names of images, people and projects
stay where they are.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cytopipe.core.errors import UserError
from cytopipe.slides.mixing import Channel
from cytopipe.slides.resolution import number_or_none

UM_PER_OME_UNIT = {"": 1.0, "µm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
"""OME schema: PhysicalSizeXUnit is µm unless said otherwise; others (pixel, reference frame) are no lengths."""

MAX_PLANES = 100_000
"""More planes than this in one image are a damaged or hostile header [D]."""


@dataclass(frozen=True, slots=True)
class OmeImage:
    """The first image of a file.

    z_count, t_count  planes of focus, frames
    channels          in the order of the file; `samples` of them lie in one page
    samples           samples a pixel of each page
    ifd_of            (z, c) -> page of the file at t = 0, c counting groups of `samples` channels
    mpp               µm/px (x, y) or None; objective as stated or None
    """

    z_count: int
    t_count: int
    channels: tuple[Channel, ...]
    samples: int
    ifd_of: Mapping[tuple[int, int], int]
    mpp: tuple[float, float] | None
    objective: float | None


def read_ome(xml: str, samples: int, name: str) -> OmeImage:
    """The first image, whose pages have `samples` samples a pixel.

    Raises UserError for planes in other files, ValueError for what is no OME-XML.
    """
    start = re.search(_tag("Pixels"), xml)
    if start is None:
        raise ValueError("OME-XML without Pixels")
    end = re.compile(r"</(?:\w+:)?Pixels\b").search(xml, start.end())
    said, body = _attributes(start[1]), xml[start.end() : end.start() if end else len(xml)]
    size = {axis: _count(said.get(f"Size{axis}")) for axis in "ZCT"}
    if math.prod(size.values()) > MAX_PLANES:
        raise ValueError(f"OME-XML of {math.prod(size.values())} planes")
    found = [_attributes(text) for text in re.findall(_tag("Channel"), body)]
    groups = max(1, size["C"] // samples)
    ifd_of = _planes(body, said.get("DimensionOrder", "XYZCT"), {**size, "C": groups}, name)
    channels = tuple(
        _channel(number, found[number] if samples == 1 and number < len(found) else {})
        for number in range(groups * samples)
    )
    objective = re.search(_tag("Objective"), xml)
    power = _attributes(objective[1]).get("NominalMagnification") if objective else None
    return OmeImage(size["Z"], size["T"], channels, samples, ifd_of, _mpp(said), number_or_none(power))


def _planes(body: str, order: str, size: Mapping[str, int], name: str) -> dict[tuple[int, int], int]:
    """(z, c) -> page at t = 0, from the TiffData elements: each counts planes on from its first one, in the image's
    order."""
    axes = [axis for axis in order[2:] if axis in "ZCT"]
    if sorted(axes) != ["C", "T", "Z"]:
        raise ValueError(f"OME-XML with the dimension order {order!r}")
    total = math.prod(size[axis] for axis in axes)
    files = set(re.findall(r'FileName="([^"<>]*)"', body))
    if len(files) > 1:
        raise UserError(f"its planes lie in {len(files)} files; only OME-TIFF of one file is read", where=name)
    ifd_of: dict[tuple[int, int], int] = {}
    for text in re.findall(_tag("TiffData"), body) or [""]:
        said = _attributes(text)
        ifd = _count(said.get("IFD"), 0)
        count = _count(said.get("PlaneCount"), 1 if "IFD" in said else total)
        first, step = 0, 1
        for axis in axes:
            first += _count(said.get(f"First{axis}"), 0) * step
            step *= size[axis]
        for number in range(min(count, total - first)):
            place, rest = {}, first + number
            for axis in axes:
                rest, place[axis] = divmod(rest, size[axis])
            if place["T"] == 0:
                ifd_of.setdefault((place["Z"], place["C"]), ifd + number)
    return ifd_of


def _tag(element: str) -> str:
    """A start tag's pattern. Neither bracket may stand inside: so a search is over in one pass, whatever the text."""
    return rf"<(?:\w+:)?{element}\b([^<>]*)>"


def _channel(number: int, said: Mapping[str, str]) -> Channel:
    """Colour in OME is a signed 32-bit RGBA."""
    colour = number_or_none(said.get("Color"))
    rgb = None if colour is None else f"{int(colour) & 0xFFFFFFFF:08X}"[:6]
    return Channel(said.get("Name") or str(number), None, rgb)


def _mpp(said: Mapping[str, str]) -> tuple[float, float] | None:
    sides: list[float] = []
    for axis in "XY":
        size = number_or_none(said.get(f"PhysicalSize{axis}"))
        unit = said.get(f"PhysicalSize{axis}Unit", "").replace("\u03bc", "\u00b5")
        if size is None or unit not in UM_PER_OME_UNIT:
            return None
        sides.append(size * UM_PER_OME_UNIT[unit])
    return sides[0], sides[1]


def _attributes(text: str) -> dict[str, str]:
    pairs = re.findall(r"""([\w:]+)\s*=\s*(?:"([^"]*)"|'([^']*)')""", text)
    return {key: html.unescape(double or single) for key, double, single in pairs}


def _count(text: str | None, default: int = 1) -> int:
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 9:
        raise ValueError(f"OME-XML with a count of {text[:20]!r}")
    return int(text)
