"""How a room says how far it is: a callback, so that no room knows the terminal. `cli/console.py` draws the bar."""

from __future__ import annotations

from collections.abc import Callable

OnProgress = Callable[[int, int, str], None]
"""on_progress(done, total, unit): `total` 0 means unknown; `unit` is a plural noun ('tiles', 'windows', 'iterations').
"""

Say = Callable[[str], None]
"""say(line): one plain sentence for the person at the terminal (stderr); also kept by the run's log where there is one.
"""


def silent(done: int, total: int, unit: str) -> None:
    """A progress callback that shows nothing."""


def unsaid(line: str) -> None:
    """A `Say` that shows nothing."""
