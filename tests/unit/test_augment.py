"""Test-time augmentation: what is turned comes back, agreeing orientations change nothing, doubts are averaged."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from cytopipe.infer.augment import ORIENTATIONS, Augmented, merged
from cytopipe.infer.located import Located

SIDE = 64
KINDS = ((0,), (1, 2))  # a nucleus; two kinds of cell


def located(boxes, scores, labels, masks=None):
    spread = np.zeros((len(boxes), 3), np.float32)
    spread[np.arange(len(boxes)), np.array(labels, int) - 1] = scores
    return Located(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array(scores, np.float32),
        np.array(labels, np.int64),
        spread,
        masks,
    )


def spots(images):
    """A predictor that treats all orientations alike: each coloured rectangle is an object of the class that its red
    tells, its score is its green, its mask the brightness of its own four quarters.
    """
    found = []
    for image in images:
        boxes, scores, labels, masks = [], [], [], []
        for red in np.unique(image[..., 0])[::-1]:
            if red == 0:
                continue
            rows, columns = np.nonzero(image[..., 0] == red)
            x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
            middle_y, middle_x = (y0 + y1) // 2, (x0 + x1) // 2
            blue = image[..., 2]
            quarters = [[blue[y0, x0], blue[y0, x1 - 1]], [blue[y1 - 1, x0], blue[y1 - 1, x1 - 1]]]
            assert blue[middle_y, middle_x] >= 0
            boxes.append((x0, y0, x1, y1))
            scores.append(image[y0, x0, 1] / 256)
            labels.append(1 + red % 3)
            masks.append(np.kron(np.array(quarters) / 256, np.ones((14, 14))))
        order = np.argsort(-np.array(scores), kind="stable")
        masks = np.array(masks, np.float32).reshape(-1, 28, 28)[order]
        found.append(located(np.array(boxes)[order], np.array(scores)[order], np.array(labels)[order], masks))
    return found


def picture(seed):
    """Rectangles apart from each other, each with a colour of its own and four different quarters."""
    rng = np.random.default_rng(seed)
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    for k, (row, column) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        x0, y0 = column * 32 + rng.integers(0, 8), row * 32 + rng.integers(0, 8)
        w, h = 2 * rng.integers(4, 12, 2)
        image[y0 : y0 + h, x0 : x0 + w, 0] = 10 + k
        image[y0 : y0 + h, x0 : x0 + w, 1] = rng.integers(100, 250)
        image[y0 : y0 + h, x0 : x0 + w, 2] = np.kron(rng.integers(1, 250, (2, 2)), np.ones((h // 2, w // 2), np.int64))
    return image


@pytest.mark.parametrize("orientation", ORIENTATIONS["all"])
def test_what_is_found_in_a_turned_window_comes_back_to_its_place_with_its_mask(orientation):
    image = picture(1)
    (expected,) = spots([image])

    (found,) = spots([orientation.turned(image)])
    back = orientation.turned_back(found, SIDE)

    order, wanted = np.lexsort(back.boxes.T), np.lexsort(expected.boxes.T)
    assert_array_equal(back.boxes[order], expected.boxes[wanted])
    assert_array_equal(back.masks[order], expected.masks[wanted])
    assert_array_equal(back.labels[order], expected.labels[wanted])


def test_the_orientations_are_all_different():
    image = picture(2)

    seen = {orientation.turned(image).tobytes() for orientation in ORIENTATIONS["all"]}

    assert len(seen) == len(ORIENTATIONS["all"]) == 8


@pytest.mark.parametrize("tta", ["flips", "turns", "all"])
@pytest.mark.parametrize("seed", range(5))
def test_a_predictor_that_treats_all_orientations_alike_gives_the_same_to_the_bit(tta, seed):
    images = [picture(seed), picture(seed + 100)]
    augmented = Augmented(spots, ORIENTATIONS[tta], KINDS, 0.5, 0.1, 1000)

    for found, expected in zip(augmented(images), spots(images), strict=True):
        order, wanted = np.lexsort(found.boxes.T), np.lexsort(expected.boxes.T)
        for name in ("boxes", "scores", "labels", "class_scores", "masks"):
            assert_array_equal(getattr(found, name)[order], getattr(expected, name)[wanted], err_msg=name)
        assert (np.diff(found.scores) <= 0).all()


def test_an_object_that_half_of_the_orientations_see_has_half_the_score_and_their_mean_box():
    seen = [located([(0, 0, 20, 20)], [0.8], [1]), located([(2, 0, 22, 20)], [0.8], [1])]
    unseen = [located([], [], []), located([], [], [])]

    (box,), (score,) = (lambda m: (m.boxes, m.scores))(merged([*seen, *unseen], KINDS, 0.5, 0.3))

    assert_array_equal(box, (1, 0, 21, 20))
    assert score == pytest.approx(0.4)
    assert len(merged([*seen, *unseen], KINDS, 0.5, 0.41)) == 0


def test_two_objects_of_one_window_that_overlap_stay_two_and_kinds_do_not_suppress_each_other():
    one = located([(0, 0, 20, 20), (8, 0, 28, 20), (0, 0, 20, 20)], [0.9, 0.7, 0.6], [2, 2, 1])

    found = merged([one] * 4, KINDS, 0.5, 0.1)

    assert_array_equal(found.boxes, one.boxes)
    assert_array_equal(found.labels, one.labels)


def test_the_class_is_the_one_that_the_orientations_favour_together():
    answers = [located([(0, 0, 20, 20)], [score], [label]) for score, label in ((0.9, 2), (0.5, 3), (0.5, 3), (0.5, 3))]

    found = merged(answers, KINDS, 0.5, 0.1)

    assert found.labels.tolist() == [3]
    assert found.scores[0] == pytest.approx(0.6)
    assert found.class_scores[0].tolist() == pytest.approx([0, 0.225, 0.375])


def test_windows_that_are_not_square_are_refused():
    augmented = Augmented(spots, ORIENTATIONS["turns"], KINDS, 0.5, 0.1, 10)

    with pytest.raises(ValueError, match="turned"):
        augmented([np.zeros((32, 64, 3), np.uint8)])
