"""Which slides a command works on: paths, globs, folders and CSV lists become `SlideEntry` values, in the order given.

A path that exists is that path, whatever characters it has (`test (387).ndpi`, `a[1].svs`); only what does not exist
is tried as a glob pattern. A folder that is a zarr group is a slide; another one is a folder of slides.

CSV list: a header, then a row a slide. `path` (or `wsi`, `slide`), taken from the list's folder unless absolute;
optional `slide_id`, `patient`, `mpp` (µm/px, which then counts as an override), `split`, `stratum`, `diagnosis`,
`annotations` (a path, as `path`). Other columns are named once and left.
"""

from __future__ import annotations

import csv
import glob
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cytopipe.core.errors import UserError
from cytopipe.core.progress import Say, unsaid
from cytopipe.slides.resolution import number_or_none
from cytopipe.slides.zarr_layout import is_zarr

SLIDE_SUFFIXES = (
    ".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".vms", ".vmu", ".svslide", ".dcm",
    ".png", ".jpg", ".jpeg",
)  # fmt: skip
"""What is taken from a folder. A file named by itself may have any suffix: readers look at its content."""

PATH_COLUMNS = ("path", "wsi", "slide")
COLUMNS = ("slide_id", "patient", "mpp", "split", "stratum", "diagnosis", "annotations")
DELIMITERS = ",;\t"


@dataclass(frozen=True, slots=True)
class SlideEntry:
    """One slide of a list. `mpp` µm/px overrides the file's own; None where the list says nothing. `slide_id` is
    unique in its list."""

    path: Path
    slide_id: str
    patient: str | None = None
    mpp: float | None = None
    split: str | None = None
    stratum: str | None = None
    diagnosis: str | None = None
    annotations: Path | None = None


def list_slides(inputs: Sequence[str | Path], say: Say = unsaid) -> list[SlideEntry]:
    """The slides that `inputs` name: in the order given, folders and globs sorted by name, a file named twice once.

    Raises UserError: nothing named or found; a missing file; a list without a path column or with a bad cell; two
    slides with one id (both are named).
    """
    if not inputs:
        raise UserError("no slide is named", fix="give paths, folders, globs or a CSV list")
    entries: dict[Path, SlideEntry] = {}
    by_id: dict[str, SlideEntry] = {}
    for given in inputs:
        for entry in _entries_of(str(given), say):
            key = entry.path.resolve()
            if entries.get(key) == entry:
                continue
            other = by_id.get(entry.slide_id)
            if other is not None:
                raise UserError(
                    f"two slides are called {entry.slide_id!r}: {other.path} and {entry.path}",
                    fix="give them a slide_id in a CSV list",
                )
            entries[key] = by_id[entry.slide_id] = entry
    return list(by_id.values())


def _entries_of(given: str, say: Say) -> Iterator[SlideEntry]:
    path = Path(given)
    if is_zarr(path):
        yield SlideEntry(path, path.stem)
    elif path.is_dir():
        yield from _from_folder(path)
    elif path.is_file():
        if path.suffix.lower() == ".csv":
            yield from _from_csv(path, say)
        else:
            yield SlideEntry(path, path.stem)
    elif glob.has_magic(given):
        found = sorted(Path(name) for name in glob.glob(given, recursive=True) if _is_slide(Path(name)))
        if not found:
            raise UserError("no file matches", where=given)
        yield from (SlideEntry(name, name.stem) for name in found)
    else:
        raise UserError("no such file or folder", where=given)


def _from_folder(folder: Path) -> Iterator[SlideEntry]:
    found = sorted(
        path for path in folder.iterdir() if is_zarr(path) or (path.suffix.lower() in SLIDE_SUFFIXES and path.is_file())
    )
    if not found:
        raise UserError(
            "no slide lies directly in this folder",
            where=str(folder),
            fix=f"for folders inside it give a glob, such as '{folder}/**/*.svs'",
        )
    series: set[bytes] = set()
    for path in found:
        if (
            path.suffix.lower() == ".dcm"
        ):  # the instances of one DICOM series are one slide: OpenSlide finds the others from any of them
            uid = _dicom_series(path)
            if uid in series:
                continue
            if uid is not None:
                series.add(uid)
        yield SlideEntry(path, path.stem)


def _is_slide(path: Path) -> bool:
    """A file, or a folder that is a zarr group."""
    return path.is_file() or is_zarr(path)


def _dicom_series(path: Path) -> bytes | None:
    """SeriesInstanceUID (0020,000E) in explicit little endian, from the first bytes of the file; None where it is not
    found."""
    with path.open("rb") as file:
        head = file.read(65_536)
    match = re.search(rb"\x20\x00\x0e\x00UI..([0-9.]+)", head, re.DOTALL)
    return match.group(1) if match else None


def _from_csv(path: Path, say: Say) -> Iterator[SlideEntry]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 text ({error.reason} at byte {error.start})", where=str(path)) from error
    header = text.split("\n", 1)[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=header.count))
    names = [name.strip() for name in rows.fieldnames or ()]
    rows.fieldnames = names
    path_column = next((name for name in PATH_COLUMNS if name in names), None)
    if path_column is None:
        raise UserError(f"no column {' or '.join(PATH_COLUMNS)} among {', '.join(names) or 'none'}", where=str(path))
    unused = [name for name in names if name and name != path_column and name not in COLUMNS]
    if unused:
        say(f"{path.name}: columns not used: {', '.join(unused)}")
    try:
        entries = [_from_row(path, rows.line_num, path_column, row) for row in rows]
    except csv.Error as error:
        raise UserError(f"not a CSV table ({error})", where=f"{path}, line {rows.line_num}") from error
    if not entries:
        raise UserError("no slide in the list", where=str(path))
    alone = sum(1 for entry in entries if entry.patient is None)
    if alone:
        say(f"{path.name}: {alone} of {len(entries)} slides name no patient; each of them counts as its own")
    yield from entries


def _from_row(listed_in: Path, line: int, path_column: str, row: dict[str, str | None]) -> SlideEntry:
    where = f"{listed_in}, line {line}"
    cells = {name: (row.get(name) or "").strip() or None for name in (path_column, *COLUMNS)}
    slide = cells[path_column]
    if slide is None:
        raise UserError(f"an empty {path_column}", where=where)
    path = _listed_file(slide, listed_in, where, may_be_zarr=True)
    mpp = number_or_none(cells["mpp"])
    if cells["mpp"] is not None and (mpp is None or mpp <= 0):
        raise UserError(
            f"mpp {cells['mpp']!r}",
            where=where,
            fix="give µm per pixel as a positive number, such as 0.25, or leave it empty",
        )
    slide_id = cells["slide_id"] or path.stem
    if slide_id in (".", "..") or any(sign in '/\\:*?"<>|' or not sign.isprintable() for sign in slide_id):
        raise UserError(f"slide_id {slide_id!r} cannot name a folder", where=where)
    annotations = _listed_file(cells["annotations"], listed_in, where) if cells["annotations"] else None
    return SlideEntry(
        path, slide_id, cells["patient"], mpp, cells["split"], cells["stratum"], cells["diagnosis"], annotations
    )


def _listed_file(name: str, listed_in: Path, where: str, *, may_be_zarr: bool = False) -> Path:
    path = listed_in.parent / name  # an absolute name replaces the folder
    if not (path.is_file() or (may_be_zarr and is_zarr(path))):
        raise UserError(f"{path} is no file", where=where)
    return path
