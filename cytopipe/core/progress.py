"""How a room says how far it is: a callback, so that no room knows the terminal. `cli/console.py` draws the bar."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class OnProgress(Protocol):
    """on_progress(done, total, unit, status): `total` 0 means unknown; `unit` is a plural noun ('tiles', 'windows',
    'iterations'); `status` is how the work goes just now, in a line ('loss 1.23, 8.1 images/s'), where that is known.
    """

    def __call__(self, done: int, total: int, unit: str, status: str = "", /) -> None: ...


Say = Callable[[str], None]
"""say(line): one plain sentence for the person at the terminal (stderr); also kept by the run's log where there is one.
"""


def silent(done: int, total: int, unit: str, status: str = "") -> None:
    """A progress callback that shows nothing."""


def unsaid(line: str) -> None:
    """A `Say` that shows nothing."""
