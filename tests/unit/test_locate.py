"""The windows of a slide gone through: the same objects in the same order whatever the threads and bands, each handed
on once and in time, and what cannot be read left out by name. The predictor is a function of pixels.
"""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from numpy.testing import assert_array_equal

from cytopipe.core.classes import ObjectClass
from cytopipe.core.errors import RunError
from cytopipe.core.objects import concatenate
from cytopipe.infer.locate import Pace, search
from cytopipe.infer.located import Located, Viewer
from cytopipe.infer.windows import plan_windows
from cytopipe.slides import MppView
from tests.array_slide import ArraySlide

CLASSES = tuple(ObjectClass(name=kind, kind=kind, suspicious=False) for kind in ("nucleus", "cell"))
WINDOW_PX, OVERLAP_PX = 128, 64


def cells_slide(seed=0, side_px=(600, 700), bad=()):
    """Squares of 8 to 30 px, each of a colour of its own, on glass; two level-0 px a px of the view."""
    rng = np.random.default_rng(seed)
    height, width = side_px
    rgb = np.full((height, width, 3), 240, np.uint8)
    boxes, serial = [], 0
    for y in range(10, height - 40, 44):
        for x in range(10, width - 40, 44):
            side = int(rng.integers(4, 16)) * 2
            left, top = x + 2 * int(rng.integers(0, 3)), y + 2 * int(rng.integers(0, 3))
            serial += 1
            rgb[top : top + side, left : left + side] = (serial // 200, serial % 200, 7)
            boxes.append((left, top, left + side, top + side))
    return ArraySlide(rgb, mpp=0.25, bad=bad), np.array(boxes, np.float64)


def squares(images):
    """Each coloured square of a window, whole or cut; masks are full."""
    found = []
    for image in images:
        coloured = image[..., 2] == 7
        serial = np.where(coloured, image[..., 0].astype(int) * 200 + image[..., 1], 0)
        boxes, scores, labels = [], [], []
        for value in np.unique(serial[coloured]):
            rows, columns = np.nonzero(serial == value)
            boxes.append((columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
            scores.append(0.5 + value % 50 / 100)
            labels.append(1 + value % 2)
        spread = np.zeros((len(boxes), 2), np.float32)
        spread[np.arange(len(boxes)), np.array(labels, int) - 1] = scores
        found.append(
            Located(
                np.array(boxes, np.float64).reshape(-1, 4),
                np.array(scores, np.float32),
                np.array(labels, np.int64),
                spread,
                np.ones((len(boxes), 28, 28), np.float32),
            )
        )
    return found


def look(slide, *, pace=None, wanted=None, progress=None, predict=squares, sink=None):
    view = MppView(slide, 0.5)
    windows = plan_windows(view.width, view.height, WINDOW_PX, OVERLAP_PX)
    wanted = list(range(len(windows))) if wanted is None else wanted(windows)
    tables = []
    searched = search(
        view,
        windows,
        wanted,
        predict,
        Viewer(CLASSES, np.array([0.3, 0.3]), (240.0,) * 3),
        sink or tables.append,
        pace=pace or Pace(),
        on_progress=progress or (lambda *_: None),
    )
    return searched, concatenate(tables, 2), tables


def same(a, b):
    for name in ("xyxy", "class_index", "score", "class_scores", "flags", "window", "measures"):
        assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
    assert_array_equal(shapely.to_wkb(a.geometry), shapely.to_wkb(b.geometry))


def places(boxes):
    return {tuple(row) for row in np.rint(boxes).astype(int).tolist()}


def test_every_object_is_handed_on_once_in_level_0_px():
    slide, boxes = cells_slide()

    searched, objects, _ = look(slide)

    assert searched.objects == len(objects) == len(boxes)
    assert places(objects.xyxy) == places(boxes)  # outlines of full masks lie on the box within a millionth of a px
    assert np.isfinite(objects.measures[:, 0]).all()


@pytest.mark.parametrize(
    "pace", [Pace(threads=4), Pace(threads=3, rows_at_once=2), Pace(4, 1, 3), Pace(3, 2, 1000)], ids=str
)
def test_threads_batches_and_bands_change_neither_the_objects_nor_their_order(pace):
    slide, _ = cells_slide(seed=1)

    _, expected, _ = look(slide, pace=Pace(threads=1))
    _, found, _ = look(slide, pace=pace)

    same(found, expected)


def test_y0_never_falls_from_one_object_to_the_next_and_they_come_while_the_slide_is_read():
    slide, _ = cells_slide(seed=2, side_px=(1400, 300))

    _, objects, tables = look(slide)

    assert (np.diff(objects.xyxy[:, 1]) >= 0).all()
    assert len(tables) > 2
    assert max(len(table) for table in tables) < 0.7 * len(objects)


def test_a_window_that_cannot_be_read_is_named_with_its_place_and_its_neighbours_see_what_they_can():
    slide, boxes = cells_slide(bad=((0, 350, 300),))

    searched, objects, _ = look(slide)

    assert searched.unreadable
    for line in searched.unreadable:
        assert "level-0 px" in line
        assert "cannot be decoded" in line
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    far = (np.abs(centres - (350, 300)) > 270).any(axis=1)
    assert far.sum() > 10
    assert places(boxes[far]) <= places(objects.xyxy)
    assert len(objects) < len(boxes)


def test_a_slide_of_which_no_window_can_be_read_is_an_error():
    slide, _ = cells_slide(side_px=(200, 200), bad=tuple((0, x, y) for x in (60, 190) for y in (60, 190)))

    with pytest.raises(RunError, match="no window of the slide can be decoded"):
        look(slide)


def test_no_window_wanted_is_a_result_without_objects():
    slide, _ = cells_slide()

    searched, objects, _ = look(slide, wanted=lambda windows: [])

    assert (searched.objects, len(objects)) == (0, 0)


def test_progress_counts_windows_to_the_last_and_objects():
    slide, boxes = cells_slide()
    seen = []

    searched, _, _ = look(slide, pace=Pace(4), progress=lambda *call: seen.append(call))

    windows = [(done, total) for done, total, unit in seen if unit == "windows"]
    objects = [(done, total) for done, total, unit in seen if unit == "objects"]
    assert windows[-1][0] == windows[-1][1] > 0
    assert windows == sorted(windows)
    assert objects == sorted(objects)
    assert {total for _, total in objects} == {0}
    assert 0 < objects[-1][0] <= searched.objects == len(boxes)


class BrokenError(Exception):
    """Of a predictor or a sink."""


def test_an_error_of_the_sink_ends_the_search_and_comes_out():
    slide, _ = cells_slide()

    def full(objects):
        raise BrokenError

    with pytest.raises(BrokenError):
        look(slide, sink=full)


def test_an_error_of_the_predictor_ends_the_search_and_comes_out():
    slide, _ = cells_slide()
    calls = []

    def breaks(images):
        calls.append(len(images))
        if len(calls) == 5:
            raise BrokenError
        return squares(images)

    with pytest.raises(BrokenError):
        look(slide, predict=breaks)
    assert len(calls) == 5
