"""Work on the rows of a picture in bands, side by side: what a band needs stays in a core's cache, and OpenCV and
numpy let other threads run meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from cytopipe.core.resources import cores


def in_bands(rows: int, step: int, work: Callable[[slice], None]) -> None:
    """work(rows of a band) for all bands of `step` rows, in threads; each writes to a place of its own."""
    bands = [slice(top, min(top + step, rows)) for top in range(0, rows, step)]
    with ThreadPoolExecutor(min(cores(), max(1, len(bands)))) as pool:
        for _ in pool.map(work, bands):
            pass
