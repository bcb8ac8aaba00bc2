"""Opening a slide by what is in the file, not by its suffix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cytopipe.core.errors import UserError, nearest_fix
from cytopipe.slides.opened import NotThisReader
from cytopipe.slides.showing import AS_STORED, Showing
from cytopipe.slides.slide import Resolution, Slide
from cytopipe.slides.zarr_layout import is_zarr

AUTO = "auto"


def open_slide(
    path: Path | str, *, reader: str = AUTO, mpp_override: float | None = None, showing: Showing = AS_STORED
) -> Slide:
    """Open a slide with the first reader that understands it: tiff, openslide, zarr, image; or with the one named.

    `showing` says how its samples become RGB. Raises UserError, in one line: no such file, a folder, a file that no
    reader opens (with what each said), an unknown reader, a bad override, a plane or channel that is not there or has
    to be chosen.
    """
    path = Path(path)
    if reader != AUTO and reader not in READERS:
        raise UserError(f"unknown reader {reader!r}", fix=nearest_fix(reader, (AUTO, *READERS), "readers"))
    _refuse_what_is_no_slide(path)
    said: list[str] = []
    fitting = FOLDER_READERS if path.is_dir() else FILE_READERS
    for name in fitting if reader == AUTO else (reader,):
        if name not in fitting:
            said.append(f"{name}: {'a folder' if path.is_dir() else 'no folder'}")
            continue
        try:
            return READERS[name](path, mpp_override, showing)
        except NotThisReader as refusal:
            said.append(f"{name}: {refusal.what}")
        except PermissionError as error:
            raise UserError("may not be read", where=str(path)) from error
    raise UserError(f"no reader opens it ({'; '.join(said)})", where=str(path))


def require_mpp(slide: Slide) -> float:
    """The slide's level-0 µm/px, mean of both axes. Raises UserError as `require_resolution`."""
    return require_resolution(slide).mpp


def require_resolution(slide: Slide) -> Resolution:
    """The slide's resolution. Raises UserError, with the way out, where the file says none that can be believed."""
    if slide.resolution is None:
        reason = f" ({slide.resolution_notes[0]})" if slide.resolution_notes else ""
        fix = "give --mpp-override, or a column mpp in the slide list"
        raise UserError(f"no resolution in the file{reason}", where=slide.path.name, fix=fix)
    return slide.resolution


def _refuse_what_is_no_slide(path: Path) -> None:
    if path.is_dir() and not is_zarr(path):
        raise UserError("a folder, not a slide", where=str(path), fix="name a file in it")
    if not path.exists():
        raise UserError("no such file", where=str(path))
    if path.is_file() and path.stat().st_size == 0:
        raise UserError("an empty file", where=str(path))


def _tiff(path: Path, mpp_override: float | None, showing: Showing) -> Slide:
    from cytopipe.slides.tiff_layout import Layout, read_layout
    from cytopipe.slides.tiff_reader import TiffSlide
    from cytopipe.slides.tiff_stack import TiffStackSlide

    layout = read_layout(path)
    if isinstance(layout, Layout):
        return TiffSlide(path, mpp_override, showing, layout)
    return TiffStackSlide(path, layout.stack, layout.places, mpp_override, showing)


def _openslide(path: Path, mpp_override: float | None, showing: Showing) -> Slide:
    from cytopipe.slides.openslide_reader import OpenSlideSlide

    return OpenSlideSlide(path, mpp_override, showing)


def _zarr(path: Path, mpp_override: float | None, showing: Showing) -> Slide:
    from cytopipe.slides.zarr_reader import ZarrSlide

    return ZarrSlide(path, mpp_override, showing)


def _image(path: Path, mpp_override: float | None, showing: Showing) -> Slide:
    from cytopipe.slides.image_reader import ImageSlide

    return ImageSlide(path, mpp_override, showing)


READERS: dict[str, Callable[[Path, float | None, Showing], Slide]] = {
    "tiff": _tiff,
    "openslide": _openslide,
    "zarr": _zarr,
    "image": _image,
}
"""Each is imported when it is asked: tifffile, OpenSlide and zarr take a noticeable time to load."""
FILE_READERS, FOLDER_READERS = ("tiff", "openslide", "image"), ("zarr",)
"""Who is asked, in order, about a file and about a folder."""
