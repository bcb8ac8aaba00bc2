"""`cytopipe convert` of results folders: the table of `infer` as GeoJSON, COCO, label images, CSV, or a table again.

Enters: results folders, or a folder of them.  Leaves: the files asked for, beside the table or in another folder, under
the ids of the table.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cytopipe.core.errors import UserError
from cytopipe.core.progress import OnProgress, silent
from cytopipe.formats.results import (
    COCO_NAME,
    CSV_NAME,
    GEOJSON_NAME,
    LABELS_NAME,
    RUN_NAME,
    TABLE_NAME,
    Part,
    ResultsInfo,
    ResultsWriter,
    WriteOptions,
    find_results,
    geojson_files,
    iter_results,
    read_info,
    read_run_json,
)
from cytopipe.tiles.store import STORE_JSON

_NAMES: dict[Part, str] = {
    "parquet": TABLE_NAME,
    "geojson": GEOJSON_NAME,
    "coco": COCO_NAME,
    "zarr": LABELS_NAME,
    "csv": CSV_NAME,
}


@dataclass(frozen=True, slots=True)
class ConvertedResults:
    """One slide: where its table was, what was written, how many objects it has."""

    slide_id: str
    source: Path
    files: tuple[Path, ...]
    objects: int


def results_in(sources: Sequence[str | Path]) -> list[Path]:
    """The results folders at the given places; none where these are something else.

    Raises UserError where only some of them are.
    """
    paths = [Path(source) for source in sources]
    are_results = [_is_results(path) for path in paths]
    if any(are_results) and not all(are_results):
        other = paths[are_results.index(False)]
        raise UserError("is no results folder, and others are", where=str(other), fix="convert it by itself")
    return [folder for path in paths for folder in find_results(path)] if all(are_results) else []


def convert_results(
    folders: Sequence[Path],
    out: Path | None,
    *,
    write: Collection[Part],
    options: WriteOptions | None = None,
    replace: bool = False,
    on_progress: OnProgress = silent,
) -> list[ConvertedResults]:
    """Write each results folder in other formats.

    out      the folder of a lone slide; of several, a folder for each below it. None: the results folders themselves
    replace  write over files that exist
    Raises UserError before anything is written: a damaged table, a file that exists, two slides of one name.
    """
    infos = [_with_size(folder, read_info(folder)) for folder in folders]
    if out is None:
        places = list(folders)
    elif out.is_file():
        raise UserError("is a file; results become a folder", where=str(out), fix="choose another --out")
    else:
        places = [out] if len(folders) == 1 else [out / folder.name for folder in folders]
    if len(set(places)) < len(places):
        raise UserError("two slides would be written to one folder", where=str(out), fix="convert them one by one")
    there = next((path for place in places for part in write for path in _files(place, part)), None)
    if there is not None and not replace:
        raise UserError("exists already", where=str(there), fix="choose another --out, or give --replace")
    done: list[ConvertedResults] = []
    for folder, info, place in zip(folders, infos, places, strict=True):
        writer = ResultsWriter(
            place, info.slide_id, info.classes, info.mpp, info.bounds_offset, write, info.size, options=options
        )
        with writer:
            for group in iter_results(folder):
                writer.add(group.objects)
        files = tuple(path for part in sorted(write) for path in _files(place, part))
        done.append(ConvertedResults(info.slide_id, folder, files, writer.written))
        on_progress(len(done), len(folders), "slides")
    return done


def _is_results(path: Path) -> bool:
    """Whether a table of results lies in a folder or in one directly below it; a tile store's table is another one."""
    if not path.is_dir() or (path / STORE_JSON).is_file():
        return False
    return (path / TABLE_NAME).is_file() or next(path.glob(f"*/{TABLE_NAME}"), None) is not None


def _files(place: Path, part: Part) -> list[Path]:
    path = place / _NAMES[part]
    if part == "geojson":
        return geojson_files(path)
    return [path] if path.exists() else []


def _with_size(folder: Path, info: ResultsInfo) -> ResultsInfo:
    """The facts with the slide's size: where the table does not say it, from run.json, else as far as objects reach."""
    if info.size is not None:
        return info
    size: Any = None
    if (folder / RUN_NAME).is_file():
        slide = read_run_json(folder).get("slide")
        size = slide.get("size_px") if isinstance(slide, dict) else None
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)):
        reach = np.ones(2)
        for group in iter_results(folder):
            reach = np.maximum(reach, np.ceil(group.objects.xyxy[:, 2:].max(axis=0, initial=1)))
        size = reach.astype(int).tolist()
    return info.model_copy(update={"size": (size[0], size[1])})
