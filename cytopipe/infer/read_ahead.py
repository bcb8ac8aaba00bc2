"""Windows of a slide, read by threads while the network works on those before. Nothing of networks.

Enters: a view, a grid, the numbers of the windows that are wanted.  Leaves: their pixels, in the order of the numbers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import RunError
from cytopipe.infer.windows import Windows
from cytopipe.slides import Foreground, MppView

U8 = NDArray[np.uint8]

READ_THREADS = 2


def windows_with_foreground(windows: Windows, view: MppView, foreground: Foreground | None) -> list[int]:
    """Numbers of the windows that show any foreground, ascending; all of them without a foreground."""
    if foreground is None:
        return list(range(len(windows)))
    share = foreground.fractions(windows.boxes * np.tile(view.slide_px_per_px, 2))
    return [int(index) for index in np.flatnonzero(share > 0)]


def place_of(windows: Windows, view: MppView, index: int) -> str:
    """Where a window lies, for people: level-0 px."""
    sx, sy = view.slide_px_per_px
    x0, y0, x1, y1 = windows.boxes[index].tolist()
    return f"level-0 px {round(x0 * sx)} to {round(x1 * sx)}, {round(y0 * sy)} to {round(y1 * sy)}"


def read_ahead(
    view: MppView, windows: Windows, wanted: Sequence[int], size: tuple[int, int], threads: int = READ_THREADS
) -> Iterator[tuple[int, U8 | RunError]]:
    """(number, pixels (h, w, 3) uint8 of `size` (w, h) from the window's corner) in order; instead of pixels the error
    of a window that cannot be read. At most twice as many windows as threads are held.
    """
    x0, y0 = windows.x0, windows.y0
    w, h = size
    view.announce([(int(x0[index]), int(y0[index])) for index in wanted], w, h)
    with ThreadPoolExecutor(threads, thread_name_prefix="windows") as executor:
        pending: deque[tuple[int, Future[U8]]] = deque()
        upcoming = iter(wanted)

        def fill() -> None:
            while len(pending) < 2 * threads and (index := next(upcoming, None)) is not None:
                pending.append((index, executor.submit(view.read, int(x0[index]), int(y0[index]), w, h)))

        fill()
        try:
            while pending:
                index, future = pending.popleft()
                fill()
                try:
                    found: U8 | RunError = future.result()
                except RunError as error:
                    found = error
                yield index, found
        finally:
            for _, future in pending:
                future.cancel()
