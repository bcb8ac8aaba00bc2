"""metrics.jsonl of a run: one line an iteration, and one a validation. Facts with names; clock times stand apart in
`seconds`.

{"t": 0, "losses": {"rpn_cls": 0.69, ...}, "weights": {...}, "total": 3.1, "lr": 0.005, "signals": {...}, "seconds":
1.4}
{"t": 500, "val": {"student": {"map_50": 0.41, ...}, "teacher": {...}}, "seconds": 20.1}
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"


class RunLog:
    """Appends to metrics.jsonl; on resume the lines of iterations that will be run again are dropped first."""

    def __init__(self, folder: Path, resume_t: int) -> None:
        self._path = folder / METRICS_FILE
        kept = [line for line in read_log(folder) if line["t"] < resume_t or ("val" in line and line["t"] == resume_t)]
        partial = self._path.with_suffix(".jsonl.partial")
        partial.write_text("".join(_line(row) for row in kept))
        partial.replace(self._path)

    def write(self, row: dict[str, Any]) -> None:
        """Append one line and hand it to the system; a torn last line is dropped when the log is read."""
        with self._path.open("a") as file:
            file.write(_line(row))

    def sync(self) -> None:
        """Make what was written survive a power cut: with each checkpoint."""
        with self._path.open("a") as file:
            os.fsync(file.fileno())


def read_log(folder: Path) -> list[dict[str, Any]]:
    """All whole lines of a run's metrics.jsonl, in order; empty where there is none."""
    path = folder / METRICS_FILE
    if not path.exists():
        return []
    whole, _, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, sort_keys=True, allow_nan=False) + "\n"
