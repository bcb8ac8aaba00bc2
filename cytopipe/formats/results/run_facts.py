"""run.json: what ran, versions, counts, errors, times of one slide. Clock times stand here and in logs only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cytopipe.core.errors import UserError
from cytopipe.core.files import write_json
from cytopipe.formats.results.schema import RUN_NAME


def write_run_json(folder: Path, facts: dict[str, Any]) -> None:
    """Write run.json; the folder is made. Raises ValueError for NaN."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN_NAME, facts)


def read_run_json(folder: Path) -> dict[str, Any]:
    """The facts of run.json. Raises UserError if it is missing or no JSON object."""
    path = folder / RUN_NAME
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError("no such file", where=str(path), fix="give a results folder of `cytopipe infer`") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON ({error})", where=str(path)) from error
    if not isinstance(facts, dict):
        raise UserError("is not a JSON object", where=str(path))
    return facts
