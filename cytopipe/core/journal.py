"""The journal of an output folder: what ran, with which parameters, and which units are finished. One line of JSON a
fact.

    run.jsonl in the output folder
    {"kind": "run", "command": "tile", "version": "0.1.0", "parameters": {...}}   the first line
    {"kind": "done", "unit": "S-17", ...facts of the unit...}                     a finished unit, its files in place

A line is appended and fsynced; a last line torn by kill -9 is dropped on opening. Same parameters resume, others are
refused with the difference shown.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from cytopipe._version import __version__
from cytopipe.core.errors import UserError
from cytopipe.core.files import disk_error, sweep_partials

JOURNAL_NAME = "run.jsonl"


class Journal:
    """The finished units of one output folder; made by `open_journal`."""

    def __init__(self, path: Path, done: dict[str, dict[str, Any]]) -> None:
        self._path, self._done = path, done

    @property
    def done_count(self) -> int:
        """How many units are finished."""
        return len(self._done)

    @property
    def units(self) -> tuple[str, ...]:
        """The finished units, in the order in which they were first noted."""
        return tuple(self._done)

    def is_done(self, unit: str) -> bool:
        """Whether an earlier or this process finished the unit."""
        return unit in self._done

    def facts(self, unit: str) -> dict[str, Any]:
        """What was noted when the unit was finished; KeyError if it was not."""
        return self._done[unit]

    def finish(self, unit: str, **facts: Any) -> None:
        """Note that the unit's files are in place. `facts` must be JSON values."""
        _append(self._path, {"kind": "done", "unit": unit, **facts})
        self._done[unit] = facts


def open_journal(folder: Path, command: str, parameters: dict[str, Any], *, overwrite: bool = False) -> Journal:
    """Open or resume an output folder for `command`; the folder is made. Call it inside `FolderLock` once the folder
    exists.

    parameters   JSON values that decide the bytes of the output; the slide list is none (it may grow).
    overwrite    empty the folder first.
    Raises UserError when the folder holds another command's output, files of somebody else, or a run with other
    parameters.
    """
    path = folder / JOURNAL_NAME
    parameters = json.loads(json.dumps(parameters, sort_keys=True))
    if overwrite:
        _empty(folder, path)
    if not path.exists() and any(p.name != ".lock" and not p.name.endswith(".partial") for p in folder.iterdir()):
        raise UserError("is not empty and holds no run of cytopipe", where=str(folder), fix="choose another --out")
    sweep_partials(folder)
    lines = _read(path)
    if not lines:
        path.unlink(missing_ok=True)
        _append(path, {"kind": "run", "command": command, "version": __version__, "parameters": parameters})
        return Journal(path, {})
    head = lines[0]
    if head.get("command") != command:
        raise UserError(
            f"holds the output of `cytopipe {head.get('command')}`, not of `{command}`",
            where=str(folder),
            fix="choose another --out",
        )
    if head["parameters"] != parameters:
        changes = difference(head["parameters"], parameters)
        raise UserError(
            "holds a run with other parameters (" + ", ".join(changes) + ")",
            where=str(folder),
            fix="--overwrite starts anew",
        )
    return Journal(
        path, {line["unit"]: {k: v for k, v in line.items() if k not in ("kind", "unit")} for line in lines[1:]}
    )


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """Human-readable changes from `old` to `new`: 'tile_px 1024 -> 1200', nested keys joined by dots."""
    changes: list[str] = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            changes += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            changes.append(f"{prefix}{key} {a} -> {b}")
    return changes


def _empty(folder: Path, journal: Path) -> None:
    """Only what cytopipe wrote is removed: a folder without a journal is left to the caller's emptiness check."""
    if journal.exists():
        for path in folder.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    raw = path.read_bytes()
    whole, _, torn = raw.rpartition(b"\n")
    if torn:  # killed while appending: the unit was not noted, so it is done again
        with path.open("r+b") as file:
            file.truncate(len(raw) - len(torn))
    try:
        return [json.loads(line) for line in whole.splitlines()]
    except ValueError as error:
        raise UserError("is damaged: a line is not JSON", where=str(path), fix="--overwrite starts anew") from error


def _append(path: Path, line: dict[str, Any]) -> None:
    size = path.stat().st_size if path.exists() else 0
    try:
        with path.open("ab") as file:
            file.write(json.dumps(line, sort_keys=True, allow_nan=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):  # a disk that filled up midway must not glue this line to the next one
            os.truncate(path, size)
        raise disk_error(error, path) from error
