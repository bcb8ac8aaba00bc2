"""Which pages of a TIFF show which plane and channel: stacks as OME-TIFF, ImageJ and plain lists of pages write them.

Enters: an open tifffile file and its base page.  Leaves: `Planes`. Time series are refused. Pages of one size without a
word about them are taken as planes of focus, in the order of the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tifffile

from cytopipe.core.errors import UserError
from cytopipe.slides.mixing import Channel, Source, is_pure_rgb
from cytopipe.slides.ome_xml import OmeImage
from cytopipe.slides.opened import NotThisReader
from cytopipe.slides.slide import ASPECT_PX
from cytopipe.slides.tiff_stack import Page, Place, Places, page_of, raw_page

RGB, YCBCR = 2, 6
PARSE_ERRORS = (
    tifffile.TiffFileError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    struct.error,
    OverflowError,
    RuntimeError,
    OSError,
)
"""What tifffile raises while it reads the structure of a damaged file."""
COLOURS = (Channel("red"), Channel("green"), Channel("blue"))
UNKNOWN_KINDS = "cSUVO"
"""dtype kinds that are no samples: complex, text, objects."""


@dataclass(frozen=True, slots=True)
class Planes:
    """The pages of a stack.

    bases       [z][group] base page; a group is a channel, or channels that lie in one page
    channels    what the file says of them, all groups together
    is_raw_run  the pictures lie one behind the other after the single page that is listed (ImageJ above 4 GiB)
    """

    bases: tuple[tuple[Any, ...], ...]
    channels: tuple[Channel, ...]
    is_raw_run: bool = False


def find_planes(tiff: Any, base: Any, ome: OmeImage | None, name: str) -> Planes:
    """The planes and channels of the image that `base` begins. Raises UserError for a time series and for planes that
    are missing or differ."""
    if ome is not None:
        planes = _ome_planes(tiff, ome, name)
    elif tiff.is_imagej:
        planes = _imagej_planes(tiff, base, name)
    else:
        planes = Planes(tuple((page,) for page in (base, *_twins(tiff, base))), ())
    for page in (page for groups in planes.bases for page in groups):
        if page.shape != base.shape or page.dtype != base.dtype or page.samplesperpixel != base.samplesperpixel:
            raise UserError("its planes differ in size or type of samples", where=name)
    return planes


def has_more_than_a_pyramid(path: Path) -> bool:
    """Whether a TIFF has planes or channels beside its first page, or levels in SubIFDs; False where its structure
    cannot be read."""
    try:
        with tifffile.TiffFile(path) as tiff:
            base = tiff.pages[0]
            is_stack = bool(tiff.is_imagej and (tiff.imagej_metadata or {}).get("images", 1) > 1)
            return is_stack or bool(base.subifds) or bool(_twins(tiff, base))
    except PARSE_ERRORS:
        return False


def level_pages(tiff: Any, base: Any, vendor: str) -> list[Any]:
    """The pages of one plane, finest first: Aperio's tiled ones, the base page's SubIFDs, or the later reduced ones."""
    if vendor == "aperio":
        if not base.is_tiled:
            raise NotThisReader("an Aperio file whose first page is not tiled", where=tiff.filename)
        others = [page for page in tiff.pages[1:] if page.is_tiled]
    elif base.subifds:
        others = list(base.pages)
    elif vendor == "ome-tiff":
        others = []
    else:
        others = [page for page in tiff.pages[1:] if page.subfiletype & 1]
    levels = [base]
    for page in others:
        is_smaller = 0 < page.imagewidth < levels[-1].imagewidth and 0 < page.imagelength <= levels[-1].imagelength
        if is_smaller and abs(page.imagewidth * base.imagelength / base.imagewidth - page.imagelength) <= ASPECT_PX:
            levels.append(page)
    return levels


def source_of(planes: Planes, name: str) -> Source:
    """The channels of a stack, all pages together. Raises NotThisReader for samples that are no colours and no
    channels."""
    base, groups = planes.bases[0][0], len(planes.bases[0])
    samples, photometric, kind = base.samplesperpixel, int(base.photometric), base.dtype.kind
    if kind not in "uif":
        raise NotThisReader(f"samples of type {base.dtype}", where=name)
    if kind == "f":
        full_range = None
    elif kind == "i":
        full_range = (-(2.0 ** (base.bitspersample - 1)), 2.0 ** (base.bitspersample - 1) - 1)
    else:
        full_range = (0.0, 2.0**base.bitspersample - 1)
    if photometric in (RGB, YCBCR) and groups == 1 and samples in (3, 4):
        return Source(COLOURS, full_range, is_rgb=True)  # a fourth sample is alpha, and not shown
    if photometric not in (0, 1, RGB) or samples == 2:
        raise NotThisReader(f"{samples} samples a pixel, photometric {photometric}", where=name)
    count = groups * samples
    channels = planes.channels if len(planes.channels) == count else tuple(Channel(str(n)) for n in range(count))
    return Source(channels, full_range, is_rgb=kind == "u" and is_pure_rgb(channels))


def places_of(tiff: Any, planes: Planes, vendor: str, name: str) -> tuple[Places, tuple[Any, ...]]:
    """[level][z][channel] -> where it lies; and the pages of the levels of the first plane."""
    first = planes.bases[0][0]
    is_alone = len(planes.bases) * len(planes.bases[0]) == 1
    levels = level_pages(tiff, first, vendor) if is_alone or first.subifds else [first]
    if planes.is_raw_run:
        groups = len(planes.bases[0])
        at = [[[raw_page(first, z * groups + c, name) for c in range(groups)] for z in range(len(planes.bases))]]
    else:
        columns = [[_levels_like(levels, page, name) for page in groups] for groups in planes.bases]
        at = [[[pages[level] for pages in groups] for groups in columns] for level in range(len(levels))]
    places = tuple(tuple(tuple(_places_in(pages, first)) for pages in of_z) for of_z in at)
    return places, tuple(levels)


def _levels_like(levels: list[Any], base: Any, name: str) -> list[Page]:
    """The pages of a plane at the levels of the first one."""
    if base is levels[0]:
        return [page_of(page, name) for page in levels]
    own = {(page.imagewidth, page.imagelength): page for page in (base.pages if base.subifds else ())}
    own[base.imagewidth, base.imagelength] = base
    found = [own.get((page.imagewidth, page.imagelength)) for page in levels]
    if any(page is None or page.dtype != base.dtype for page in found):
        raise UserError("its planes have different levels", where=name)
    return [page_of(page, name) for page in found]


def _places_in(pages: list[Page], first: Any) -> list[Place]:
    is_apart = first.planarconfig != 1
    samples = range(first.samplesperpixel)
    return [Place(page, 0 if is_apart else i, i if is_apart else 0) for page in pages for i in samples]


def _ome_planes(tiff: Any, ome: OmeImage, name: str) -> Planes:
    _refuse_time(ome.t_count, name)
    groups = math.ceil(len(ome.channels) / ome.samples)
    missing = [
        (z, c)
        for z in range(ome.z_count)
        for c in range(groups)
        if not 0 <= ome.ifd_of.get((z, c), -1) < len(tiff.pages)
    ]
    if missing:
        z, c = missing[0]
        raise UserError(f"plane {z} of channel {c} is not in the file", where=name)
    bases = tuple(tuple(tiff.pages[ome.ifd_of[z, c]] for c in range(groups)) for z in range(ome.z_count))
    return Planes(bases, ome.channels)


def _imagej_planes(tiff: Any, base: Any, name: str) -> Planes:
    """ImageJ: channels change fastest, then planes, then frames."""
    said: Mapping[str, Any] = tiff.imagej_metadata or {}
    count = {key: max(1, int(said.get(key) or 1)) for key in ("images", "channels", "slices", "frames")}
    _refuse_time(count["frames"], name)
    groups = count["channels"] if base.samplesperpixel == 1 else 1
    z_count = count["images"] // groups
    listed = len(tiff.pages)
    is_raw_run = listed == 1 and count["images"] > 1
    if z_count * groups > max(listed, count["images"]) or (listed > 1 and z_count * groups > listed):
        raise UserError(f"{listed} of {count['images']} pictures are listed", where=name)
    pages = [tiff.pages[0 if is_raw_run else number] for number in range(z_count * groups)]
    windows = said.get("Ranges")
    ranges = list(windows) if isinstance(windows, (tuple, list)) and len(windows) == 2 * groups else []
    pairs = [tuple(map(float, ranges[2 * c : 2 * c + 2])) for c in range(groups)] if ranges else [None] * groups
    channels = tuple(
        Channel(str(c), (pair[0], pair[1]) if pair is not None and pair[0] < pair[1] else None)
        for c, pair in enumerate(pairs)
    )
    bases = tuple(tuple(pages[z * groups : (z + 1) * groups]) for z in range(z_count))
    return Planes(bases, channels, is_raw_run)


def _twins(tiff: Any, base: Any) -> list[Any]:
    """Further pages of the base page's size that are no reduced ones; in Aperio's files they mean nothing."""
    if tiff.is_svs:
        return []
    return [page for page in tiff.pages[1:] if page.shape == base.shape and not page.subfiletype & 1]


def _refuse_time(frames: int, name: str) -> None:
    if frames > 1:
        raise UserError(f"a time series of {frames} frames; only slides of one moment are read", where=name)
