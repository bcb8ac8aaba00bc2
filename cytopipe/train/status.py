"""The live line of a run: how it goes just now, in words for who watches. Iteration and ETA stand in the bar above it.

Enters: the rows of the log, as they come.  Leaves: one line, from the means of the last steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from statistics import fmean
from typing import Any

STEPS = 20  # [D] that are averaged: a single step's losses jump, and its time is that of one batch


class StatusLine:
    """Give it each row by `after`; a validation's time counts for no step."""

    def __init__(self, images: int, metric: str, clock: Callable[[], float] = time.perf_counter) -> None:
        """images: of a step, labelled and unlabelled, of all processes; metric: what chooses the network."""
        self._images, self._metric, self._clock = images, metric, clock
        self._losses: deque[Mapping[str, float]] = deque(maxlen=STEPS)
        self._pseudo: deque[float] = deque(maxlen=STEPS)
        self._ends: deque[float] = deque([clock()], maxlen=STEPS + 1)  # when the last steps ended
        self._rate = 0.0  # images a second; that before a validation until the next step's is known
        self._val: Mapping[str, Mapping[str, float]] = {}
        self._line = ""

    def after(self, row: Mapping[str, Any]) -> str:
        """The line after a row of the log."""
        if "val" in row:
            self._val = row["val"]
            self._ends.clear()
            self._ends.append(self._clock())
            self._line = self._made()
            return self._line
        self._losses.append({"loss": row["total"], **row["losses"]})
        signals = row.get("signals", {})
        if "pseudo_labels_per_image" in signals:
            self._pseudo.append(signals["pseudo_labels_per_image"])
        self._ends.append(self._clock())
        elapsed_s = self._ends[-1] - self._ends[0]
        if elapsed_s > 0:
            self._rate = self._images * (len(self._ends) - 1) / elapsed_s
        self._line = self._made()
        return self._line

    def text(self) -> str:
        """The line as of the last row; '' before the first."""
        return self._line

    def _made(self) -> str:
        if not self._losses:
            return ""
        names = self._losses[-1]
        total, *parts = (f"{name} {_short(fmean(row[name] for row in self._losses if name in row))}" for name in names)
        pieces = [f"{total} ({', '.join(parts)})" if parts else total]
        if self._rate > 0:
            pieces.append(f"{self._rate:.3g} images/s")
        if self._pseudo:
            count = fmean(self._pseudo)  # of pixels it has thousands
            pieces.append(f"{count:{',.0f' if count >= 100 else '.3g'}} pseudo-labels an image")
        if self._val:
            values = (f"{name} {values.get(self._metric, 0.0):.3f}" for name, values in self._val.items())
            pieces.append(f"{self._metric} {', '.join(values)}")
        return " · ".join(pieces)


def _short(value: float) -> str:
    return f"{value:.2f}" if 0.1 <= abs(value) < 1000 else f"{value:.2g}"
