"""The log of a run, for people and for TensorBoard, and the live line."""

from __future__ import annotations

import json
import time

import pytest

from cytopipe.train.log import RunLog, read_log
from cytopipe.train.status import StatusLine


def step(t: int, value: float = 1.0) -> dict:
    return {
        "t": t,
        "losses": {"roi_cls": value, "L'_pml": 2.0},
        "weights": {"roi_cls": 1.0},
        "total": value,
        "lr": 0.01,
        "signals": {"pseudo_labels_per_image": 3.0, "pseudo_labels[ASC-US/H]": 2.0},
        "seconds": 0.1,
    }


def validation(t: int, value: float) -> dict:
    return {"t": t, "val": {"student": {"map_50": value}, "teacher": {"map_50": value / 2}}, "seconds": 5.0}


def board_of(folder):
    """What TensorBoard reads in a run folder: (scalars by tag as (step, value), texts)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    scalars = {
        tag: [(event.step, pytest.approx(event.value, rel=1e-6)) for event in found.Scalars(tag)]
        for tag in found.Tags()["scalars"]
    }
    texts = [
        value.decode()
        for tag in found.Tags()["tensors"]
        for event in found.Tensors(tag)
        for value in event.tensor_proto.string_val
    ]
    return scalars, texts


def test_every_number_of_a_row_stands_in_tensorboard_under_its_name(tmp_path):
    with RunLog(tmp_path, 0) as log:
        log.write(step(0))
        log.write(step(1, 0.5) | {"warnings": ["pseudo-labels vanish: 0.1 an image"]})
        log.write(validation(2, 0.4))

    scalars, texts = board_of(tmp_path)
    assert scalars["losses/roi_cls"] == [(0, 1.0), (1, 0.5)]
    assert scalars["losses/L'_pml"] == [(0, 2.0), (1, 2.0)]
    assert scalars["val/teacher/map_50"] == [(2, 0.2)]
    assert scalars["signals/pseudo_labels[ASC-US/H]"] == [(0, 2.0), (1, 2.0)]
    assert scalars["seconds"] == [(0, 0.1), (1, 0.1)]
    assert scalars["val_seconds"] == [(2, 5.0)]
    assert {"weights/roi_cls", "total", "lr"} <= set(scalars)
    assert texts == ["pseudo-labels vanish: 0.1 an image"]


def test_on_resume_both_logs_forget_what_will_be_run_again(tmp_path):
    with RunLog(tmp_path, 0) as log:
        for t in range(4):
            log.write(step(t))
            if t == 1:
                log.write(validation(2, 0.4))  # here a checkpoint was written
    time.sleep(1.1)  # TensorBoard orders files by the second in which they were begun
    with RunLog(tmp_path, 2) as log:
        for t in (2, 3):
            log.write(step(t, 9.0))
        log.write(validation(4, 0.6))

    rows, (scalars, _) = read_log(tmp_path), board_of(tmp_path)
    assert [row["losses"]["roi_cls"] for row in rows if "losses" in row] == [1.0, 1.0, 9.0, 9.0]
    assert [row["t"] for row in rows if "val" in row] == [2, 4]
    assert scalars["losses/roi_cls"] == [(0, 1.0), (1, 1.0), (2, 9.0), (3, 9.0)]
    assert scalars["val/student/map_50"] == [(2, 0.4), (4, 0.6)]


def test_a_torn_last_line_is_dropped(tmp_path):
    with RunLog(tmp_path, 0) as log:
        log.write(step(0))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"t": 1, "loss')

    assert [row["t"] for row in read_log(tmp_path)] == [0]
    RunLog(tmp_path, 1).close()
    assert [json.loads(line)["t"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [0]


class Ticks:
    """A clock that says what it was told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_live_line_names_the_losses_the_pace_the_pseudo_labels_and_both_networks():
    clock = Ticks()
    line = StatusLine(images=8, metric="map_50", clock=clock)
    assert line.text() == ""
    for t in range(4):
        clock.now_s += 0.5
        shown = line.after(step(t, value=t + 0.5))

    assert shown == "loss 2.00 (roi_cls 2.00, L'_pml 2.00) · 16 images/s · 3 pseudo-labels an image"
    clock.now_s += 60.0
    after = line.after(validation(4, 0.4))
    assert after.endswith("16 images/s · 3 pseudo-labels an image · map_50 student 0.400, teacher 0.200")
    clock.now_s += 0.25
    assert "32 images/s" in line.after(step(4))  # the validation's minute is no step's


def test_a_method_without_pseudo_labels_and_without_teacher_has_a_shorter_line():
    clock = Ticks()
    line = StatusLine(images=2, metric="dice", clock=clock)
    clock.now_s += 1.0

    line.after({"t": 0, "losses": {"ce": 0.004}, "total": 0.004})

    shown = line.after({"t": 1, "val": {"student": {}}})
    assert shown == "loss 0.004 (ce 0.004) · 2 images/s · dice student 0.000"
