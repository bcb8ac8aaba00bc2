"""The log of a run: metrics.jsonl, one line an iteration and one a validation, and the same numbers for TensorBoard.

{"t": 0, "losses": {"rpn_cls": 0.69, ...}, "weights": {...}, "total": 3.1, "lr": 0.005, "signals": {...}, "seconds":
1.4}
{"t": 500, "val": {"student": {"map_50": 0.41, ...}, "teacher": {...}}, "seconds": 20.1}

Facts with names; clock times stand apart in `seconds`, sentences of the collapse detector in `warnings` of the line
that led to them. `t` counts optimiser steps: those done before an iteration, or before a validation.
TensorBoard reads RUN/tensorboard; its files are a copy, and only metrics.jsonl is read again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class RunLog:
    """Appends to metrics.jsonl and to TensorBoard's events; a context manager, or `close` it.

    On resume, lines of iterations that will be run again are dropped first, and TensorBoard is told to forget them.
    """

    def __init__(self, folder: Path, resume_t: int) -> None:
        """resume_t: optimiser steps that are done already; 0 for a new run."""
        self._path = folder / METRICS_FILE
        kept = [row for row in read_log(folder) if row["t"] < resume_t or ("val" in row and row["t"] == resume_t)]
        partial = self._path.with_suffix(".jsonl.partial")
        partial.write_text("".join(_line(row) for row in kept))
        partial.replace(self._path)
        self._file = self._path.open("a")
        self._board = _Board(folder / TENSORBOARD_FOLDER, resume_t)
        for row in kept:
            if row["t"] == resume_t:  # a validation, which is forgotten with the iteration of its number
                self._board.write(row)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, row: dict[str, Any]) -> None:
        """Append one line and hand it to the system; a torn last line is dropped when the log is read."""
        self._file.write(_line(row))
        self._file.flush()
        self._board.write(row)

    def sync(self) -> None:
        """Make what was written survive a power cut: with each checkpoint."""
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        """Hand over what TensorBoard's writer still holds, and end its thread."""
        self._file.close()
        self._board.close()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics.jsonl, in order; empty where there is none."""
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


class _Board:
    """TensorBoard's events, one a line of the log: an event a number would cost a tiny step a twentieth of its time."""

    def __init__(self, folder: Path, resume_t: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # 0.2 s: only a run pays it
        from torch.utils.tensorboard import FileWriter

        self._writer = FileWriter(str(folder))
        # From here on TensorBoard leaves out what files of an earlier process say of this step and later ones.
        self._writer.add_event(Event(step=resume_t, file_version="brain.Event:2"))
        self._writer.add_event(Event(step=resume_t, session_log=SessionLog(status=SessionLog.START)))

    def write(self, row: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from torch.utils.tensorboard.summary import text

        values = [Summary.Value(tag=tag, simple_value=number) for tag, number in _scalars(row)]
        self._writer.add_summary(Summary(value=values), row["t"])
        for warning in row.get("warnings", ()):
            self._writer.add_summary(text("warnings", warning), row["t"])

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Tag and value of every number: losses/rpn_cls, val/teacher/map_50, lr. TensorBoard groups by the first part."""
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}/{name}", number) for name, number in _scalars(value))
        elif isinstance(value, int | float) and key != "t":
            yield ("val_seconds" if key == "seconds" and "val" in row else key), value


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, allow_nan=False) + "\n"
