"""The windows of a slide, looked at one after the other by a predictor, and what they report brought together.

Enters: a view, a grid, a predictor.  Leaves: objects in level-0 px, in an order that depends on nothing but the objects
(y0, x0, class, ...), and what happened on the way.

Four things go on at once: threads decode the windows ahead, the caller's thread has the predictor look at them, threads
outline and measure what it saw, and one thread stitches and hands on what is final. Each gets its input in the order of
the windows, so that how many threads there are changes nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from cytopipe.core.errors import RunError
from cytopipe.core.objects import Objects, concatenate
from cytopipe.core.progress import OnProgress, silent
from cytopipe.infer.frames import scale_objects
from cytopipe.infer.located import U8, Located, Predictor, Viewer
from cytopipe.infer.read_ahead import READ_THREADS, place_of, read_ahead
from cytopipe.infer.stitching import Stitcher, Views
from cytopipe.infer.windows import GUARD_PX, Windows
from cytopipe.slides import MppView

Sink = Callable[[Objects], None]
"""sink(objects): some objects in level-0 px; y0 never falls, neither within a table nor from one to the next."""

WINDOWS_WAITING = 4  # [D] looked at and not outlined yet, a thread: enough that none waits, few enough for memory


@dataclass(frozen=True, slots=True)
class Pace:
    """How the windows of a slide are gone through; none of it changes an object, but for the batch's last bits.

    batch_windows  windows that the predictor is given at a time
    threads        that decode, and as many that outline and measure
    rows_at_once   rows of windows after which what is final is handed on
    """

    batch_windows: int = 1
    threads: int = READ_THREADS
    rows_at_once: int = 1


@dataclass(frozen=True, slots=True)
class Searched:
    """What happened: how many objects were found, the windows that could not be read, each with its place and reason,
    and seconds by stage, which overlap.
    """

    objects: int
    unreadable: tuple[str, ...]
    seconds: dict[str, float]


def search(
    view: MppView,
    windows: Windows,
    wanted: Sequence[int],
    predict: Predictor,
    viewer: Viewer,
    sink: Sink,
    *,
    pace: Pace,
    recolour: Callable[[U8], U8] | None = None,
    on_progress: OnProgress = silent,
) -> Searched:
    """Look at the windows `wanted` (ascending) and hand every object once to the sink, in level-0 px.

    recolour  what is done to the pixels before the predictor sees them; measured are the slide's own
    The sink is called from another thread, never twice at once. Raises RunError when no window can be read, and
    whatever predictor and sink raise. A single window that cannot be read is left out and reported, never replaced by
    blank pixels.
    """
    clock = _Stopwatch()
    after = _After(view, windows, wanted, viewer, sink, pace, clock)
    unreadable: list[str] = []
    done = 0
    with after.at_work():
        for batch in _batches(view, windows, wanted, pace, clock):
            shown = [found for _, found in batch if not isinstance(found, RunError)]
            with clock("network"):
                seen = iter(predict([recolour(image) if recolour else image for image in shown]) if shown else ())
            for index, image in batch:
                if isinstance(image, RunError):
                    unreadable.append(f"{place_of(windows, view, index)}: {image}")
                    after.leave_out(index)
                else:
                    after.take(index, next(seen), image)
            done += len(batch)
            on_progress(done, len(wanted), "windows")
            on_progress(after.objects, 0, "objects")
        if wanted and len(unreadable) == len(wanted):
            raise RunError(f"no window of the slide can be decoded; the first: {unreadable[0]}")
    return Searched(after.objects, tuple(unreadable), clock.rounded())


def _batches(
    view: MppView, windows: Windows, wanted: Sequence[int], pace: Pace, clock: _Stopwatch
) -> Iterator[list[tuple[int, U8 | RunError]]]:
    """The windows in order, as many at a time as make a batch of readable ones."""
    size = (windows.window_px, windows.window_px)
    batch: list[tuple[int, U8 | RunError]] = []
    reads = read_ahead(view, windows, wanted, size, pace.threads)
    readable = 0
    while True:
        with clock("wait for pixels"):
            found = next(reads, None)
        if found is None:
            break
        batch.append(found)
        readable += not isinstance(found[1], RunError)
        if readable == pace.batch_windows:
            yield batch
            batch, readable = [], 0
    if batch:
        yield batch


class _After:
    """What follows the predictor: outlines, measures, stitching, the sink. Fed in the order of the windows."""

    def __init__(
        self,
        view: MppView,
        windows: Windows,
        wanted: Sequence[int],
        viewer: Viewer,
        sink: Sink,
        pace: Pace,
        clock: _Stopwatch,
    ) -> None:
        ran = np.zeros(len(windows), bool)
        ran[list(wanted)] = True
        self._windows, self._viewer, self._clock, self._pace = windows, viewer, clock, pace
        self._stitcher = Stitcher(windows, GUARD_PX, ran)
        self._order = _InOrder(self._stitcher, view.slide_px_per_px, len(viewer.classes), sink)
        self._outliners = ThreadPoolExecutor(pace.threads, thread_name_prefix="outline")
        self._stitchers = ThreadPoolExecutor(1, thread_name_prefix="stitch")
        self._waiting: deque[Future[None]] = deque()
        self._row = 0  # rows above it have been handed on

    @property
    def objects(self) -> int:
        """Objects that are final so far."""
        return self._order.final

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, windows may be given; at the end the rest is handed on. An error of a thread comes out here."""
        try:
            yield
            while self._waiting:
                self._waiting.popleft().result()
            with self._clock("stitch and write"):
                self._order.hand_on(last=True)
        finally:
            for executor in (self._outliners, self._stitchers):
                executor.shutdown(wait=True, cancel_futures=True)

    def take(self, index: int, found: Located, image: U8) -> None:
        """What the predictor saw in one window; waits where too many are waiting."""
        views = self._outliners.submit(self._views, index, found, image)
        self._waiting.append(self._stitchers.submit(self._stitch, index, views))
        while len(self._waiting) > WINDOWS_WAITING * self._pace.threads:
            self._waiting.popleft().result()

    def leave_out(self, index: int) -> None:
        """A window that could not be read: it must not outvote its neighbours, since it saw nothing."""
        self._waiting.append(self._stitchers.submit(self._stitch, index, None))

    def _views(self, index: int, found: Located, image: U8) -> Views:
        with self._clock("outline and measure"):
            return self._viewer.views(found, image, self._windows, index)

    def _stitch(self, index: int, views: Future[Views] | None) -> None:
        seen = None if views is None else views.result()
        with self._clock("stitch and write"):
            row = index // self._windows.columns
            if row >= self._row + self._pace.rows_at_once:  # before it is added: rows above it are complete
                self._order.hand_on()
                self._row = row
            if seen is None:
                self._stitcher.leave_out(index)
            else:
                self._stitcher.add(index, seen)


class _InOrder:
    """Objects of the stitcher by y0, x0 and all else that is a number: what could still be overtaken is held back."""

    def __init__(self, stitcher: Stitcher, slide_px_per_px: tuple[float, float], classes: int, sink: Sink) -> None:
        self._stitcher, self._scale, self._classes, self._sink = stitcher, slide_px_per_px, classes, sink
        self._held = concatenate([], classes)
        self.final = 0

    def hand_on(self, *, last: bool = False) -> None:
        """Give the sink what is final and in its place; with `last` everything."""
        new = self._stitcher.finish() if last else self._stitcher.completed()
        self.final += len(new)
        held = concatenate([table for table in (self._held, new) if len(table)], self._classes)
        ready = held.xyxy[:, 1] < (np.inf if last else self._stitcher.least_y0)
        self._held = held.take(~ready)
        objects = held.take(ready)
        if len(objects):
            x0, y0, x1, y1 = objects.xyxy.T
            order = np.lexsort((objects.window, y1, x1, objects.score, objects.class_index, x0, y0))
            self._sink(scale_objects(objects.take(order), self._scale))


@dataclass(slots=True)
class _Stopwatch:
    """Seconds by stage, from several threads: `with clock("network"): ...`."""

    seconds: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start

    def rounded(self) -> dict[str, float]:
        """Milliseconds are enough to read."""
        return {stage: round(value, 3) for stage, value in self.seconds.items()}
