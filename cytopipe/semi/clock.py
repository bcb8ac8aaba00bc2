"""The clock of a run (METHODS 1.2): the only thing that schedules read.

A `Clock` is a reading, not a running clock: the engine makes a new one a step from the iteration number in its
checkpoint, so that a resumed run reads the same weights as an unbroken one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Clock:
    """One reading.

    t                     optimiser steps finished before the present one, 0-based
    T                     optimiser steps of the whole run
    iterations_per_epoch  ceil(N_u / B_u), the same number for all methods of a comparison, also for `supervised`
    t = T is the reading after the last step. Raises ValueError unless 0 <= t <= T and the other two are positive.
    """

    t: int
    T: int
    iterations_per_epoch: int

    def __post_init__(self) -> None:
        if not 0 <= self.t <= self.T or self.T <= 0 or self.iterations_per_epoch <= 0:
            raise ValueError(f"Clock: t {self.t}, T {self.T}, iterations_per_epoch {self.iterations_per_epoch}")

    @property
    def epoch(self) -> int:
        """Epochs finished before the present step."""
        return self.t // self.iterations_per_epoch

    @property
    def progress(self) -> float:
        """t / T, in [0, 1]."""
        return self.t / self.T
