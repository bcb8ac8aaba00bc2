"""Opening a slide by what is in the file, not by its suffix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cytopipe.core.errors import UserError, nearest_fix
from cytopipe.slides.opened import NotThisReader
from cytopipe.slides.slide import Resolution, Slide

AUTO = "auto"


def open_slide(path: Path | str, *, reader: str = AUTO, mpp_override: float | None = None) -> Slide:
    """Open a slide with the first reader that understands it: tiff, openslide, image; or with the one named.

    Raises UserError, in one line: no such file, a folder, a file that no reader opens (with what each said), an
    unknown reader, a bad override.
    """
    path = Path(path)
    if reader != AUTO and reader not in READERS:
        raise UserError(f"unknown reader {reader!r}", fix=nearest_fix(reader, (AUTO, *READERS), "readers"))
    _refuse_what_is_no_file(path)
    said: list[str] = []
    for name in READERS if reader == AUTO else (reader,):
        try:
            return READERS[name](path, mpp_override)
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
        reason = f" ({slide.notes[0]})" if slide.notes else ""
        fix = "give --mpp-override, or a column mpp in the slide list"
        raise UserError(f"no resolution in the file{reason}", where=slide.path.name, fix=fix)
    return slide.resolution


def _refuse_what_is_no_file(path: Path) -> None:
    if path.is_dir():
        raise UserError("a folder, not a slide", where=str(path), fix="name a file in it")
    if not path.is_file():
        raise UserError("no such file", where=str(path))


def _tiff(path: Path, mpp_override: float | None) -> Slide:
    from cytopipe.slides.tiff_reader import TiffSlide

    return TiffSlide(path, mpp_override)


def _openslide(path: Path, mpp_override: float | None) -> Slide:
    from cytopipe.slides.openslide_reader import OpenSlideSlide

    return OpenSlideSlide(path, mpp_override)


def _image(path: Path, mpp_override: float | None) -> Slide:
    from cytopipe.slides.image_reader import ImageSlide

    return ImageSlide(path, mpp_override)


READERS: dict[str, Callable[[Path, float | None], Slide]] = {"tiff": _tiff, "openslide": _openslide, "image": _image}
"""In the order in which they are asked. Each is imported when it is: tifffile and OpenSlide take a noticeable time to
load."""
