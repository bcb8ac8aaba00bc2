"""The scored windows of a slide on disk, so that a broken run does not look at it again; read and written here only.

STORE/candidates/+XX/SLIDE.parquet   a row a window, in the order of scoring; +XX: `places.bucket_of`
    x, y    int64    corner, px of the view at the mining resolution
    score   float64  suspicion of the most suspicious object in it; 0: none
    grid    bool     lies on the grid
    scored  bool     may be picked by its score
schema metadata `cytopipe`: JSON with slide_id and the facts on which the scores depend
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cytopipe.core.files import atomic_path, disk_error
from cytopipe.mine.choose import Candidates
from cytopipe.tiles.places import bucket_of, folder_name

FOLDER = "candidates"


def write_candidates(store: Path, candidates: Candidates, facts: Mapping[str, Any]) -> None:
    """Keep the windows of a slide and the facts (JSON values) on which they depend."""
    path = _path(store, candidates.slide_id)
    columns = {
        "x": candidates.corners[:, 0],
        "y": candidates.corners[:, 1],
        "score": candidates.score,
        "grid": candidates.grid,
        "scored": candidates.scored,
    }
    metadata = {"cytopipe": _key(candidates.slide_id, facts)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, path.parent) from error
    with atomic_path(path) as partial:
        pq.write_table(pa.table(columns).replace_schema_metadata(metadata), partial, compression="zstd")


def read_candidates(store: Path, slide_id: str, facts: Mapping[str, Any]) -> Candidates | None:
    """The windows of a slide, as they were kept for the same facts; None where there are none, or for other facts."""
    path = _path(store, slide_id)
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException):  # absent, or damaged: scored again either way
        return None
    if (table.schema.metadata or {}).get(b"cytopipe") != _key(slide_id, facts):
        return None
    column = {name: table[name].to_numpy() for name in ("x", "y", "score", "grid", "scored")}
    corners = np.stack([column["x"], column["y"]], axis=1)
    return Candidates(slide_id, corners, column["score"], column["grid"], column["scored"])


def _path(store: Path, slide_id: str) -> Path:
    return store / FOLDER / bucket_of(slide_id) / f"{folder_name(slide_id)}.parquet"


def _key(slide_id: str, facts: Mapping[str, Any]) -> bytes:
    return json.dumps({"slide_id": slide_id, **facts}, sort_keys=True).encode()
