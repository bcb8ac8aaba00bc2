"""Work behind the cutting: bounded, in order where one thread does it, and no error is lost."""

from __future__ import annotations

import threading

import pytest

from cytopipe.tiles.sinks import WAITING, Behind


def fail() -> None:
    raise OSError("the disk is gone")


@pytest.mark.parametrize("calls", [1, WAITING, 5 * WAITING])
@pytest.mark.parametrize("failing", [0, -1])
def test_an_error_is_raised_though_all_other_calls_go_well(failing, calls):
    behind = Behind(2)
    work = [lambda: None] * calls
    work[failing] = fail

    def run() -> None:
        for call in work:
            behind.put(call)
        behind.finish()

    with pytest.raises(OSError, match="the disk is gone"):
        run()
    behind.close()


def test_one_thread_keeps_the_order():
    behind, done = Behind(1), []

    for i in range(5 * WAITING):
        behind.put(done.append, i)
    behind.finish()
    behind.close()

    assert done == list(range(5 * WAITING))


def test_who_puts_more_than_may_wait_is_held_until_one_is_done():
    behind, may_end, put = Behind(1), threading.Event(), []

    def fill() -> None:
        for i in range(WAITING + 1):
            behind.put(may_end.wait)
            put.append(i)

    filling = threading.Thread(target=fill)
    filling.start()
    while len(put) < WAITING:
        filling.join(timeout=0.01)
    filling.join(timeout=0.1)  # time to put one too many, were nothing in the way
    before = len(put)
    may_end.set()
    filling.join()
    behind.finish()
    behind.close()

    assert (before, len(put)) == (WAITING, WAITING + 1)
