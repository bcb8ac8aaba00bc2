"""AP against the field's tool (faster-coco-eval: pycocotools' interface and numbers) and against hand calculations."""

from __future__ import annotations

import numpy as np
import pytest

from cytopipe.metrics import AP10_70_THRESHOLDS, AREA_RANGES, COCO_THRESHOLDS, Frame, average_precision

CLASSES = 3


def random_scene(rng: np.random.Generator) -> list[Frame]:
    """Frames with jittered, doubled, missing and free results, crowds, equal scores, boxes without area, no truth."""
    frames = []
    for number in range(rng.integers(1, 4)):
        # The COCO tool refuses a scene without any result: the first frame has one; the empty cases are tested by hand.
        m, extra = rng.integers(0, 9), rng.integers(number == 0, 6)
        true = _boxes(rng, m)
        copies = np.repeat(true, rng.integers(0, 3, m), axis=0)
        copies = copies + rng.integers(-4, 5, copies.shape)
        boxes = np.concatenate([copies, _boxes(rng, extra)])
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2])
        n = len(boxes)
        scores = rng.integers(0, 6, n) / 5 if rng.random() < 0.3 else rng.random(n)
        labels, true_labels = rng.integers(0, CLASSES, n), rng.integers(0, CLASSES, m)
        frames.append(Frame(boxes, labels, scores, true, true_labels, rng.random(m) < 0.2))
    return frames


def _boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    corner = rng.integers(0, 60, (n, 2))
    return np.concatenate([corner, corner + rng.integers(0, 40, (n, 2))], axis=1).astype(np.float64)


def coco_tool(
    frames: list[Frame], thresholds: tuple[float, ...], cap: int, area: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """(AP (C, T), recall (C, T)) by faster-coco-eval; NaN where it says -1."""
    from faster_coco_eval import COCO, COCOeval_faster

    annotations, results = [], []
    for image, frame in enumerate(frames, start=1):
        for box, label, crowd in zip(frame.true_boxes, frame.true_labels, frame.crowd, strict=True):
            w, h = box[2] - box[0], box[3] - box[1]
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label) + 1, "iscrowd": int(crowd)}
            annotations.append(row | {"bbox": [box[0], box[1], w, h], "area": w * h})
        for box, label, score in zip(frame.boxes, frame.labels, frame.scores, strict=True):
            row = {"image_id": image, "category_id": int(label) + 1, "score": float(score)}
            results.append(row | {"bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]]})
    truth = COCO(
        {
            "images": [{"id": i, "width": 200, "height": 200} for i in range(1, len(frames) + 1)],
            "annotations": annotations,
            "categories": [{"id": c + 1, "name": str(c)} for c in range(CLASSES)],
        }
    )
    tool = COCOeval_faster(truth, truth.loadRes(results), "bbox", print_function=lambda *_: None)
    tool.params.iouThrs = np.array(thresholds)
    tool.params.maxDets = [cap]
    tool.params.areaRng, tool.params.areaRngLbl = [list(area)], ["all"]
    tool.evaluate()
    tool.accumulate()
    precision = tool.eval["precision"][:, :, :, 0, 0].mean(axis=1).T
    recall = tool.eval["recall"][:, :, 0, 0].T
    return np.where(precision < 0, np.nan, precision), np.where(recall < 0, np.nan, recall)


@pytest.mark.parametrize("seed", range(200))
def test_average_precision_equals_the_coco_tool_on_random_scenes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    frames = random_scene(rng)
    thresholds = (COCO_THRESHOLDS, AP10_70_THRESHOLDS)[seed % 2]
    cap = (100, 2)[seed % 3 == 0]
    area = ((0.0, 1e10), (99.5, 399.5))[seed % 4 == 3]  # no integer area lies on these bounds: ours are half open

    ours = average_precision(frames, CLASSES, thresholds, max_detections=cap, area=area)

    ap, recall = coco_tool(frames, thresholds, cap, area)
    np.testing.assert_allclose(ours.ap, ap, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.recall, recall, rtol=0, atol=1e-9)


def frame_of(boxes: list[list[float]], scores: list[float], true: list[list[float]], **rest: np.ndarray) -> Frame:
    return Frame(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.zeros(len(boxes), int),
        np.array(scores),
        np.array(true, np.float64).reshape(-1, 4),
        np.zeros(len(true), int),
        rest.get("crowd", np.zeros(len(true), bool)),
        rest.get("lenient"),
    )


BOX = [0.0, 0.0, 10.0, 10.0]
FAR = [50.0, 50.0, 60.0, 60.0]


def test_a_perfect_result_has_an_average_precision_of_one() -> None:
    result = average_precision([frame_of([BOX, FAR], [0.4, 0.9], [FAR, BOX])], 1)

    assert result.mean == pytest.approx(1.0, abs=1e-12)
    assert result.truths.tolist() == [2]


def test_a_class_without_true_objects_is_undefined_and_left_out_of_the_mean() -> None:
    result = average_precision([frame_of([BOX], [0.9], [BOX])], 2, (0.5,))

    assert np.isnan(result.ap[1, 0])
    assert result.mean == 1.0
    assert np.isnan(average_precision([], 2).mean)


def test_a_frame_without_truth_still_gives_false_positives() -> None:
    good, empty = frame_of([BOX], [0.5], [BOX]), frame_of([BOX], [0.9], [])

    # By hand: the false one comes first, so that precision is 1/2 at every recall.
    assert average_precision([good, empty], 1, (0.5,)).mean == pytest.approx(0.5)


def test_missing_half_of_the_objects_gives_the_51_recall_points_up_to_one_half() -> None:
    result = average_precision([frame_of([BOX], [0.9], [BOX, FAR])], 1, (0.5,))

    assert result.ap[0, 0] == pytest.approx(51 / 101, abs=1e-12)
    assert result.recall[0, 0] == 0.5


def test_a_lenient_result_without_a_partner_is_no_false_positive_but_may_be_a_hit() -> None:
    boxes, scores = [FAR, BOX], [0.9, 0.8]
    strict = average_precision([frame_of(boxes, scores, [BOX])], 1, (0.5,))
    lenient = average_precision([frame_of(boxes, scores, [BOX], lenient=np.array([True, True]))], 1, (0.5,))

    assert strict.mean == pytest.approx(0.5)
    assert lenient.mean == 1.0


def test_of_two_true_objects_at_equal_iou_the_later_is_taken_as_the_coco_tool_does() -> None:
    left, right, between, near_left = [0.0, 0, 10, 10], [4.0, 0, 14, 10], [2.0, 0, 12, 10], [-1.0, 0, 9, 10]

    for true in ([left, right], [right, left]):
        frame = frame_of([between, near_left], [0.9, 0.8], true)
        ap, _ = coco_tool([frame], (0.5,), 100, (0.0, 1e10))

        assert average_precision([frame], 1, (0.5,)).ap[0, 0] == pytest.approx(ap[0, 0], abs=1e-9)
    assert ap[0, 0] == pytest.approx(51 / 101)  # `between` took `left` away from `near_left`


def test_the_order_of_the_results_changes_nothing_when_scores_differ() -> None:
    rng = np.random.default_rng(5)
    frame = random_scene(rng)[0]
    scores = rng.permutation(len(frame.boxes)) / 100
    order = rng.permutation(len(frame.boxes))
    straight = Frame(frame.boxes, frame.labels, scores, frame.true_boxes, frame.true_labels, frame.crowd)
    shuffled = Frame(
        frame.boxes[order], frame.labels[order], scores[order], frame.true_boxes, frame.true_labels, frame.crowd
    )

    np.testing.assert_array_equal(average_precision([straight], CLASSES).ap, average_precision([shuffled], CLASSES).ap)


def test_area_ranges_are_half_open() -> None:
    side = 32.0
    frame = frame_of([[0, 0, side, side]], [0.9], [[0, 0, side, side]])

    assert average_precision([frame], 1, area=AREA_RANGES["small"]).truths.tolist() == [0]
    assert average_precision([frame], 1, area=AREA_RANGES["medium"]).truths.tolist() == [1]


def test_ap_at_a_threshold_that_was_not_computed_is_refused() -> None:
    result = average_precision([frame_of([BOX], [0.9], [BOX])], 1, (0.5,))

    assert result.mean_at(0.5) == 1.0
    with pytest.raises(ValueError, match=r"no AP at IoU 0\.75"):
        result.at(0.75)


def test_a_frame_whose_arrays_disagree_is_refused_at_birth() -> None:
    with pytest.raises(ValueError, match=r"Frame\.scores: expected \(1,\), got \(2,\)"):
        frame_of([BOX], [0.9, 0.8], [BOX])
    with pytest.raises(ValueError, match="not finite"):
        frame_of([[0, 0, np.nan, 1]], [0.9], [BOX])
    with pytest.raises(ValueError, match=r"a label outside 0\.\.0"):
        average_precision(
            [
                Frame(
                    np.zeros((1, 4)), np.ones(1, int), np.ones(1), np.zeros((0, 4)), np.zeros(0, int), np.zeros(0, bool)
                )
            ],
            1,
        )
