"""Decoded tiles and strips of one slide, shared by the threads that read it: each is decoded once, also where two
windows want it at the same moment, and its memory is used again.

Whoever knows which windows will come announces them (`announce`): then a segment is given back with the last of them,
and a slide of any size is cut in the memory of the windows at work and of the segments that two rows of windows share.
Without announcement the least recently used go first.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from cytopipe.slides.slide import U8

CAPACITY_BYTES = 192 * 1024 * 1024
"""Holds a row of 256 px tiles of a level up to about 250,000 px wide [D], so that a row of windows and the next one
decode their common row once."""
SPARE_BUFFERS = 64
"""Buffers kept for the next segments [D]: fresh memory costs as much as decoding into it, page by page."""

Key = tuple[int, int]
"""(level, index of the segment in it)."""

_NOTHING = np.empty((0, 0, 3), np.uint8)


class _Held:
    """One segment: `pixels` once `ready` has opened, the pooled `buffer` that they lie in, and how many threads use it
    now."""

    __slots__ = ("buffer", "failure", "pixels", "ready", "users")

    def __init__(self) -> None:
        self.pixels: U8 = _NOTHING
        self.buffer: U8 | None = None
        self.failure: Exception | None = None
        self.users = 1
        self.ready = threading.Lock()
        self.ready.acquire()


class SegmentCache:
    """Segments by (level, index). `hold` one, copy from it, `release` it."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._held_bytes = 0
        self._held: OrderedDict[Key, _Held] = OrderedDict()
        self._due: dict[int, NDArray[np.int32]] = {}
        self._spare: dict[tuple[int, ...], list[U8]] = {}
        self._lock = threading.Lock()

    def announce(self, level: int, reads: NDArray[np.int32]) -> None:
        """reads (segments,) int32: how many reads are going to use each segment of `level`; none once it is 0."""
        with self._lock:
            self._due[level] = reads.copy()

    def hold(self, key: Key, decode: Callable[[U8], U8], buffer_shape: tuple[int, ...]) -> U8:
        """The pixels of a segment; valid until `release(key)`, which must follow.

        decode(buffer) returns them, in `buffer` (uint8, `buffer_shape`) or in memory of its own. What it raises is
        raised in every thread that waits for this segment, and nothing is held then.
        """
        with self._lock:
            held = self._held.get(key)
            is_ours = held is None
            if held is None:
                held = self._held[key] = _Held()
                buffer = self._taken(buffer_shape)
            else:
                held.users += 1
                self._held.move_to_end(key)
        if not is_ours:
            with held.ready:
                pass
            if held.failure is not None:
                raise held.failure
            return held.pixels
        try:
            pixels = decode(buffer)
        except Exception as failure:
            held.failure = failure
            with self._lock:
                del self._held[key]
                self._give_back(buffer)
            held.ready.release()
            raise
        held.pixels = pixels
        is_in_buffer = pixels is buffer or pixels.base is buffer
        with self._lock:
            held.buffer = buffer if is_in_buffer else None
            if not is_in_buffer:
                self._give_back(buffer)
            self._held_bytes += pixels.nbytes
            self._evict()
        held.ready.release()
        return pixels

    def release(self, key: Key) -> None:
        """The end of one use. A segment whose announced reads are over is dropped."""
        with self._lock:
            held = self._held.get(key)
            if held is None:
                return
            held.users -= 1
            due = self._due.get(key[0])
            if due is not None:
                due[key[1]] -= 1
                if due[key[1]] <= 0 and held.users == 0:
                    self._drop(key)

    def clear(self) -> None:
        """Drop everything, and what was announced."""
        with self._lock:
            self._held.clear()
            self._due.clear()
            self._spare.clear()
            self._held_bytes = 0

    def _taken(self, shape: tuple[int, ...]) -> U8:
        spare = self._spare.get(shape)
        return spare.pop() if spare else np.empty(shape, np.uint8)

    def _give_back(self, buffer: U8) -> None:
        spare = self._spare.setdefault(buffer.shape, [])
        if len(spare) < SPARE_BUFFERS:
            spare.append(buffer)

    def _drop(self, key: Key) -> None:
        held = self._held.pop(key)
        self._held_bytes -= held.pixels.nbytes
        if held.buffer is not None:
            self._give_back(held.buffer)

    def _evict(self) -> None:
        """Least recently used go first; those in use, or being decoded, stay."""
        while self._held_bytes > self._capacity_bytes:
            idle = next((key for key, held in self._held.items() if held.users == 0), None)
            if idle is None:
                return
            self._drop(idle)
