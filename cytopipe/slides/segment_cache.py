"""Decoded tiles and strips kept for the next window: least recently used go first. Safe between threads.

Neighbouring windows share the tiles on their border, and a window of a striped file meets each of its strips: without
this both are decoded over and over.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from cytopipe.slides.slide import U8

CAPACITY_BYTES = 128 * 1024 * 1024
"""Holds a row of 256 px tiles of a level up to about 170,000 px wide [D], so that a band and the next one decode their
common row once."""


class SegmentCache:
    """Arrays by (level, index). Two threads that miss the same key at once both decode it: cheaper than a lock held
    while decoding."""

    def __init__(self, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity_bytes = capacity_bytes
        self._held_bytes = 0
        self._arrays: OrderedDict[tuple[int, int], U8] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> U8 | None:
        """The array under `key`, now the most recently used, or None."""
        with self._lock:
            array = self._arrays.get(key)
            if array is not None:
                self._arrays.move_to_end(key)
            return array

    def put(self, key: tuple[int, int], array: U8) -> None:
        """Keep `array`, drop the least recently used above the capacity; the newest stays even if it is larger
        alone."""
        with self._lock:
            old = self._arrays.pop(key, None)
            self._held_bytes += array.nbytes - (old.nbytes if old is not None else 0)
            self._arrays[key] = array
            while self._held_bytes > self._capacity_bytes and len(self._arrays) > 1:
                _, dropped = self._arrays.popitem(last=False)
                self._held_bytes -= dropped.nbytes

    def clear(self) -> None:
        """Drop everything."""
        with self._lock:
            self._arrays.clear()
            self._held_bytes = 0
