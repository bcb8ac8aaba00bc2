"""The `openslide` reader: what the TIFF reader leaves (NDPI, MRXS, SCN, BIF, DICOM, Philips, VMS, Aperio JPEG 2000 in
YCbCr).

Two habits of the library are put right here. Its error state is terminal: after one bad tile a handle answers nothing
any more, so the handle is opened anew after each error. And `read_region` takes its corner in level-0 px: where a
level's downsample is no whole number, a window that does not begin at the slide's corner is shifted by a part of a
pixel, and interpolated. So such levels are read whole, once, where they are small, and by fixed blocks where they are
not: the same pixel is then the same through any window. Associated images (label, macro, thumbnail) are never read.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openslide

from cytopipe.core.errors import RunError
from cytopipe.slides.opened import NotThisReader, OpenedSlide, in_place
from cytopipe.slides.resolution import Evidence, number_or_none
from cytopipe.slides.showing import AS_STORED, Showing
from cytopipe.slides.slide import U8
from cytopipe.slides.tiff_planes import has_more_than_a_pyramid

BLOCK_PX = 512
"""Side of the fixed blocks in which a level with a broken downsample is read, level px [D]."""

WHOLE_LEVEL_PX = 16_000_000
"""A level with a broken downsample is read and kept whole up to this size [D]: 64 MB, and all coarser ones together a
third of that."""

OPEN_ERRORS = (openslide.OpenSlideError, OSError, ctypes.ArgumentError, ValueError, KeyError)
"""What openslide-python raises on opening and on reading properties: its own tree, ctypes on names that cannot be
encoded, ValueError on text that is not UTF-8, KeyError on a property name that it lists and then does not know (met in
damaged files)."""

VENDORS_WITH_TAG_MPP = ("generic-tiff", "trestle")
"""OpenSlide takes `mpp` of these from TIFF resolution tags, so it is worth no more than a tag."""

KEPT_PROPERTIES = frozenset(
    (
        "openslide.vendor", "openslide.mpp-x", "openslide.mpp-y", "openslide.objective-power",
        "openslide.bounds-x", "openslide.bounds-y", "openslide.bounds-width", "openslide.bounds-height",
        "openslide.background-color", "openslide.quickhash-1", "openslide.level-count", "aperio.AppMag",
        "aperio.MPP", "aperio.StripeWidth", "aperio.Left", "aperio.Top", "aperio.Filtered",
        "aperio.OriginalWidth", "aperio.OriginalHeight", "aperio.Gamma", "hamamatsu.SourceLens",
        "hamamatsu.Product", "hamamatsu.XOffsetFromSlideCentre", "hamamatsu.YOffsetFromSlideCentre",
        "hamamatsu.ZOffsetFromSlideCentre", "leica.objective", "leica.illumination-source",
        "mirax.GENERAL.OBJECTIVE_MAGNIFICATION", "tiff.Make", "tiff.Model", "tiff.ResolutionUnit",
        "tiff.XResolution", "tiff.YResolution", "dicom.Manufacturer", "dicom.Modality",
        "dicom.PhotometricInterpretation", "dicom.TransferSyntaxUID", "dicom.LossyImageCompressionRatio",
        "dicom.ImagedVolumeWidth", "dicom.ImagedVolumeHeight", "dicom.ImagedVolumeDepth",
    )
)  # fmt: skip
"""An allow-list: vendors put patient, user, barcode, date and file name under hundreds of other keys."""


class OpenSlideSlide(OpenedSlide):
    """A slide behind an OpenSlide handle. Raises NotThisReader where OpenSlide cannot open it."""

    reader = "openslide"

    def __init__(self, path: Path, mpp_override: float | None = None, showing: Showing = AS_STORED) -> None:
        self._handle = _open(path)
        self._handle_lock = threading.Lock()
        said = _said(self._handle, path)
        _refuse_what_it_shows_in_part(self._handle, said, path)
        vendor = said.get("openslide.vendor", "unknown")
        self._downsamples = tuple(float(value) for value in self._handle.level_downsamples)
        super().__init__(
            path,
            vendor=vendor,
            sizes=[(int(w), int(h)) for w, h in self._handle.level_dimensions],
            evidence=_evidence(said, vendor),
            mpp_override=mpp_override,
            properties={key: value for key, value in said.items() if key in KEPT_PROPERTIES},
            bounds_offset=(int(said.get("openslide.bounds-x", 0)), int(said.get("openslide.bounds-y", 0))),
            icc=_icc(self._handle),
            showing=showing,
        )
        self._whole_levels: dict[int, U8 | None] = {}
        self._whole_lock = threading.Lock()
        self._tiles = tuple(_tile_size(said, level) for level in range(len(self.levels)))

    def native_tiles(self, level: int) -> tuple[int, int] | None:
        """See `Slide.native_tiles`."""
        return self._tiles[level]

    def _pixels(self, level: int, x: int, y: int, w: int, h: int) -> U8:
        if self._downsamples[level].is_integer():
            return self._region(level, x, y, w, h)
        size = self.levels[level]
        if size.width * size.height <= WHOLE_LEVEL_PX:
            whole = self._whole(level)
            if whole is not None:
                return whole[y : y + h, x : x + w].copy()
        out = np.empty((h, w, 4), dtype=np.uint8)
        for top in range(y // BLOCK_PX * BLOCK_PX, y + h, BLOCK_PX):
            for left in range(x // BLOCK_PX * BLOCK_PX, x + w, BLOCK_PX):
                block = self._region(
                    level, left, top, min(BLOCK_PX, size.width - left), min(BLOCK_PX, size.height - top)
                )
                x0, x1 = max(x, left), min(x + w, left + block.shape[1])
                y0, y1 = max(y, top), min(y + h, top + block.shape[0])
                out[y0 - y : y1 - y, x0 - x : x1 - x] = block[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def _whole(self, level: int) -> U8 | None:
        """A whole level, kept for the next window; None where a part of it cannot be decoded."""
        with self._whole_lock:
            if level not in self._whole_levels:
                size = self.levels[level]
                try:
                    self._whole_levels[level] = self._region(level, 0, 0, size.width, size.height)
                except RunError:
                    self._whole_levels[level] = None
            return self._whole_levels[level]

    def _region(self, level: int, x: int, y: int, w: int, h: int) -> U8:
        """A window as RGBA; on an error the handle is replaced, so that the next window can be read."""
        handle = self._handle
        corner = (round(x * self._downsamples[level]), round(y * self._downsamples[level]))
        try:
            return np.asarray(handle.read_region(corner, level, (w, h)))
        except openslide.OpenSlideError as error:
            self._replace(handle)
            where = in_place(self.path, level, x, y)
            raise RunError(f"window of {w} x {h} px cannot be decoded ({error})", where=where) from error

    def _replace(self, broken: openslide.OpenSlide) -> None:
        """Open the file anew, once for all threads that met the same broken handle; it is closed when the last of them
        lets go of it."""
        with self._handle_lock:
            if self._handle is broken:
                self._handle = _open(self.path)

    def _close(self) -> None:
        self._handle.close()


def _open(path: Path) -> openslide.OpenSlide:
    try:
        return openslide.OpenSlide(path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise NotThisReader("a format that OpenSlide does not know", where=path.name) from error
    except OPEN_ERRORS as error:
        reason = str(error).replace(str(path), path.name)
        raise NotThisReader(f"OpenSlide cannot open it ({reason})", where=path.name) from error


def _said(handle: openslide.OpenSlide, path: Path) -> dict[str, str]:
    """All properties; the handle is closed where they cannot be read."""
    try:
        return dict(handle.properties)
    except OPEN_ERRORS as error:
        handle.close()
        raise NotThisReader("OpenSlide cannot read its properties", where=path.name) from error


def _refuse_what_it_shows_in_part(handle: openslide.OpenSlide, said: Mapping[str, str], path: Path) -> None:
    """OpenSlide knows no planes, channels or sub-IFDs of a generic TIFF: it would show the first and say nothing.
    NotThisReader then, and the handle is closed."""
    if said.get("openslide.vendor") == "generic-tiff" and has_more_than_a_pyramid(path):
        handle.close()
        raise NotThisReader("OpenSlide would show only a part of its planes, channels or levels", where=path.name)


def _icc(handle: openslide.OpenSlide) -> bytes | None:
    profile = handle.color_profile
    return None if profile is None else bytes(profile.tobytes())


def _evidence(said: Mapping[str, str], vendor: str) -> Evidence:
    mpp_x, mpp_y = number_or_none(said.get("openslide.mpp-x")), number_or_none(said.get("openslide.mpp-y"))
    mpp = (mpp_x, mpp_y) if mpp_x is not None and mpp_y is not None else None
    objective = number_or_none(said.get("openslide.objective-power"))
    if vendor in VENDORS_WITH_TAG_MPP:
        return Evidence(tags=mpp, objective=objective)
    return Evidence(mpp, f"openslide.mpp-x/y ({vendor})", None, objective)


def _tile_size(said: Mapping[str, str], level: int) -> tuple[int, int] | None:
    width, height = (said.get(f"openslide.level[{level}].tile-{side}", "") for side in ("width", "height"))
    return (int(width), int(height)) if width.isdigit() and height.isdigit() else None
