"""Decoded tiles are shared: each is decoded once for all threads, and dropped with its last announced read."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from cytopipe.slides.segment_cache import SegmentCache

SHAPE = (4, 4, 3)
BYTES = 48


def _decode_to(value, calls=None):
    def decode(buffer):
        if calls is not None:
            calls.append(value)
        buffer[:] = value
        return buffer

    return decode


def _use(cache, index, calls=None):
    pixels = cache.hold((0, index), _decode_to(index, calls), SHAPE)
    value = int(pixels[0, 0, 0])
    cache.release((0, index))
    return value


def test_a_segment_is_decoded_once_for_all_threads_that_want_it_at_the_same_moment():
    cache, calls, barrier = SegmentCache(), [], threading.Barrier(8)

    def work(_):
        barrier.wait()
        return [_use(cache, index, calls) for index in range(50)]

    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(work, range(8)))
    assert seen == [list(range(50))] * 8
    assert sorted(calls) == list(range(50))


def test_a_segment_is_dropped_with_its_last_announced_read_and_decoded_anew_after_it():
    cache, calls = SegmentCache(), []
    cache.announce(0, np.array([2, 1], np.int32))
    for index in (0, 1, 0):
        _use(cache, index, calls)
    assert calls == [0, 1]
    _use(cache, 0, calls)
    assert calls == [0, 1, 0]


def test_memory_of_a_dropped_segment_holds_the_next_one():
    cache = SegmentCache()
    cache.announce(0, np.ones(100, np.int32))
    places = set()
    for index in range(100):
        pixels = cache.hold((0, index), _decode_to(index), SHAPE)
        places.add(pixels.__array_interface__["data"][0])
        cache.release((0, index))
    assert len(places) == 1


def test_without_announcement_the_least_recently_used_go_first():
    cache, calls = SegmentCache(capacity_bytes=3 * BYTES), []
    for index in (0, 1, 2, 0, 3):  # 1 is the one not used for longest when 3 comes
        _use(cache, index, calls)
    for index in (0, 2, 3, 1):
        _use(cache, index, calls)
    assert calls == [0, 1, 2, 3, 1]


def test_a_segment_in_use_is_never_dropped_or_overwritten():
    cache = SegmentCache(capacity_bytes=BYTES)
    pixels = cache.hold((0, 7), _decode_to(7), SHAPE)
    for index in range(20, 60):
        _use(cache, index)
    assert (pixels == 7).all()
    cache.release((0, 7))


def test_a_failure_reaches_every_thread_that_waits_and_the_next_one_tries_again():
    cache, barrier, calls = SegmentCache(), threading.Barrier(4), []

    def broken(buffer):
        calls.append(1)
        raise RuntimeError("damaged")

    def work(_):
        barrier.wait()
        with pytest.raises(RuntimeError, match="damaged"):
            cache.hold((0, 0), broken, SHAPE)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert calls
    assert _use(cache, 0) == 0


def test_pixels_in_memory_of_their_own_are_kept_as_they_are():
    cache, own = SegmentCache(), np.full(SHAPE, 9, np.uint8)
    assert cache.hold((0, 0), lambda buffer: own, SHAPE) is own
    cache.release((0, 0))
    assert cache.hold((0, 0), _decode_to(1), SHAPE) is own
