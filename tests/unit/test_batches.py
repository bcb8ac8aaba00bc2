"""Batches: always of one size, and halved for good when the device's memory is full."""

from __future__ import annotations

import numpy as np
import pytest

from cytopipe.core.errors import RunError
from cytopipe.infer.batches import Batches
from cytopipe.infer.located import Located
from cytopipe.infer.probe import seconds_per_window


class FullError(Exception):
    """Stands for a GPU's out of memory."""


class Device:
    """A predictor that tells each image's first value, and holds so many windows at most."""

    def __init__(self, holds):
        self.holds, self.sizes = holds, []

    def __call__(self, images):
        self.sizes.append(len(images))
        if len(images) > self.holds:
            raise FullError
        return [
            Located(np.full((1, 4), float(i[0, 0, 0])), np.ones(1), np.ones(1, int), np.ones((1, 1)), None)
            for i in images
        ]


def windows(count):
    return [np.full((8, 8, 3), k, np.uint8) for k in range(count)]


def answers(found):
    return [int(located.boxes[0, 0]) for located in found]


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_every_batch_has_the_same_size_and_every_window_its_own_answer(count):
    device = Device(holds=4)

    found = Batches(device, 4)(windows(count))

    assert answers(found) == list(range(count))
    assert set(device.sizes) == {4}


def test_a_full_memory_halves_the_batch_for_good_and_says_so_each_time():
    device, said = Device(holds=2), []
    batches = Batches(device, 8, (FullError,), said.append)

    first = batches(windows(8))
    second = batches(windows(8))

    assert answers(first) == answers(second) == list(range(8))
    assert device.sizes == [8, 4] + [2] * 8
    assert batches.batch_windows == 2
    assert [line for line in said if "batches of" in line] == said
    assert [int(line.split("batches of ")[1].split()[0]) for line in said] == [4, 2]


def test_a_memory_that_holds_no_window_at_all_is_an_error_that_says_what_to_do():
    with pytest.raises(RunError, match=r"does not hold one window.*--device cpu"):
        Batches(Device(holds=0), 4, (FullError,))(windows(4))


def test_other_errors_of_the_predictor_are_not_taken_for_a_full_memory():
    with pytest.raises(FullError):
        Batches(Device(holds=1), 2)(windows(2))


def test_the_probe_asks_for_batches_of_a_quarter_of_a_window_on_the_grid_of_the_stride():
    asked = []

    seconds = seconds_per_window(lambda images: asked.append([i.shape for i in images]), 1000, 64, 3, warm_up=True)

    assert asked == [[(512, 512, 3)] * 3] * 2
    assert seconds >= 0
