"""Mask AP, AJI and PQ against slow loops over whole canvases, against the COCO tool, and by hand (METHODS 3 and 9)."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest

from cytopipe.metrics import (
    COCO_THRESHOLDS,
    Frame,
    Masks,
    Overlap,
    aji50_of,
    aji_of,
    average_precision,
    count_panoptic,
    masks_of,
    overlap,
    pooled,
)

SIDE = 24


def blobs(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, SIDE, SIDE) bool: ellipses that overlap each other, each of at least a pixel."""
    y, x = np.mgrid[:SIDE, :SIDE]
    masks = np.zeros((count, SIDE, SIDE), bool)
    for mask in masks:
        (cx, cy), (rx, ry) = rng.integers(2, SIDE - 2, 2), rng.uniform(1, 6, 2)
        mask |= ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1
    return masks


def jittered(rng: np.random.Generator, masks: np.ndarray) -> np.ndarray:
    """Some of the masks, each once to thrice, shifted by up to 2 px; at least a pixel stays."""
    copies = [
        np.roll(mask, rng.integers(-2, 3, 2), axis=(0, 1)) for mask in masks for _ in range(int(rng.integers(0, 3)))
    ]
    return np.array(copies, bool).reshape(-1, SIDE, SIDE)


def scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(found, true) canvases; one scene in eight has no truth, one in eight no result."""
    rng = np.random.default_rng(seed)
    true = blobs(rng, 0 if seed % 8 == 3 else int(rng.integers(1, 6)))
    found = np.concatenate([jittered(rng, true), blobs(rng, int(rng.integers(0, 3)))])
    return (found[:0] if seed % 8 == 5 else found), true


def found_in(found: np.ndarray, true: np.ndarray) -> Overlap:
    return overlap(masks_of(found), masks_of(true))


def slow_iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def slow_aji(found: np.ndarray, true: np.ndarray, least: float, once: bool) -> float:
    """METHODS 3 word by word: walk the truth; each takes the (free) result of highest IoU."""
    if len(found) == 0 and len(true) == 0:
        return math.nan
    used: set[int] = set()
    shared = union = 0
    for mask in true:
        best, best_iou = -1, 0.0
        for j, other in enumerate(found):
            if once and j in used:
                continue
            iou = slow_iou(mask, other)
            if iou > best_iou:
                best, best_iou = j, iou
        if best >= 0 and best_iou >= least:
            used.add(best)
            shared += int((mask & found[best]).sum())
            union += int((mask | found[best]).sum())
        else:
            union += int(mask.sum())
    union += sum(int(other.sum()) for j, other in enumerate(found) if j not in used)
    return shared / union


def slow_pq(found: np.ndarray, true: np.ndarray) -> float:
    """All assignments of truth to results tried: pairs of IoU above 0.5, the largest total IoU."""
    if len(found) == 0 and len(true) == 0:
        return math.nan
    places = [*range(len(found)), *[-1] * len(true)]
    best, best_total = [], -1.0
    for chosen in set(permutations(places, len(true))):
        ious = [slow_iou(true[i], found[j]) for i, j in enumerate(chosen) if j >= 0]
        ious = [iou for iou in ious if iou > 0.5]
        if sum(ious) > best_total:
            best, best_total = ious, sum(ious)
    false, missed = len(found) - len(best), len(true) - len(best)
    return sum(best) / (len(best) + false / 2 + missed / 2)


@pytest.mark.parametrize("seed", range(80))
def test_aji_and_aji50_equal_a_slow_loop_over_overlapping_masks(seed: int) -> None:
    found, true = scene(seed)

    pairs = found_in(found, true)

    assert aji_of(pairs) == pytest.approx(slow_aji(found, true, 0.0, once=False), rel=1e-9, nan_ok=True)
    assert aji50_of(pairs) == pytest.approx(slow_aji(found, true, 0.5, once=True), rel=1e-9, nan_ok=True)


@pytest.mark.parametrize("seed", range(40))
def test_panoptic_quality_equals_the_best_of_all_assignments(seed: int) -> None:
    rng = np.random.default_rng(seed)
    true = blobs(rng, int(rng.integers(0, 4)))
    found = np.concatenate([jittered(rng, true), blobs(rng, int(rng.integers(0, 2)))])[:4]

    counted = count_panoptic(found_in(found, true))

    assert counted.quality == pytest.approx(slow_pq(found, true), rel=1e-9, nan_ok=True)
    if counted.true:
        assert counted.quality == pytest.approx(counted.segmentation * counted.recognition, rel=1e-12)


def row_of(*runs: tuple[int, int]) -> np.ndarray:
    """Canvases (n, 1, 300), each of the px of one run."""
    canvases = np.zeros((len(runs), 1, 300), bool)
    for canvas, (start, stop) in zip(canvases, runs, strict=True):
        canvas[0, start:stop] = True
    return canvases


def test_aji_and_aji50_have_the_golden_values_of_one_pair() -> None:
    # METHODS 9: a true object of 100 px, a result of 80 px that shares 60 (IoU 0.5), then 50 (IoU 0.385) with it.
    half = found_in(row_of((40, 120)), row_of((0, 100)))
    less = found_in(row_of((50, 130)), row_of((0, 100)))

    assert (aji_of(half), aji50_of(half)) == (0.5, 0.5)
    assert aji_of(less) == pytest.approx(0.38461538, rel=1e-6)
    assert aji50_of(less) == 0.0


def test_one_result_may_serve_several_true_objects_in_aji_but_not_in_aji50() -> None:
    pairs = found_in(row_of((0, 100)), row_of((0, 60), (40, 100)))

    assert aji_of(pairs) == pytest.approx(120 / 200)  # two pairs of 60 in 100
    assert aji50_of(pairs) == pytest.approx(60 / 160)  # one pair, and 60 px that nothing serves


def test_without_any_object_the_scores_are_undefined_and_with_one_side_empty_they_are_zero() -> None:
    none, some = row_of(), row_of((0, 10))

    for score in (aji_of, aji50_of, lambda pairs: count_panoptic(pairs).quality):
        assert math.isnan(score(found_in(none, none)))
        assert score(found_in(none, some)) == 0.0
        assert score(found_in(some, none)) == 0.0
        assert score(found_in(some, some)) == 1.0


def test_panoptic_quality_of_a_set_pools_counts_and_is_no_mean_of_images() -> None:
    good = count_panoptic(found_in(row_of((0, 10)), row_of((0, 10))))
    bad = count_panoptic(found_in(row_of((0, 10), (20, 30), (40, 50)), row_of((100, 110))))

    assert pooled([good, bad]).quality == pytest.approx(1 / (1 + 3 / 2 + 1 / 2))
    assert (good.quality + bad.quality) / 2 == 0.5


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_the_results_changes_neither_aji_nor_pq(seed: int) -> None:
    found, true = scene(seed + 200)
    order = np.random.default_rng(seed).permutation(len(found))

    straight, shuffled = found_in(found, true), found_in(found[order], true)

    assert aji_of(shuffled) == pytest.approx(aji_of(straight), nan_ok=True)
    assert aji50_of(shuffled) == pytest.approx(aji50_of(straight), nan_ok=True)
    assert count_panoptic(shuffled).quality == pytest.approx(count_panoptic(straight).quality, nan_ok=True)


def test_an_overlap_holds_every_pair_that_shares_a_pixel_and_no_other() -> None:
    found, true = scene(7)

    pairs = found_in(found, true)

    expected = [(i, j, int((a & b).sum())) for i, a in enumerate(found) for j, b in enumerate(true) if (a & b).any()]
    assert list(zip(pairs.result.tolist(), pairs.truth.tolist(), pairs.shared.tolist(), strict=True)) == expected
    assert pairs.areas.tolist() == found.sum(axis=(1, 2)).tolist()
    assert pairs.iou.tolist() == pytest.approx([slow_iou(found[i], true[j]) for i, j, _ in expected])


def test_a_mask_without_a_pixel_meets_nothing_and_changes_no_score() -> None:
    empty = np.zeros((1, 1, 300), bool)
    some = row_of((0, 10))

    pairs = found_in(np.concatenate([empty, some]), np.concatenate([some, empty]))

    assert len(pairs.shared) == 1
    assert aji_of(pairs) == aji50_of(pairs) == 1.0


def test_masks_whose_corners_and_bits_disagree_are_refused() -> None:
    with pytest.raises(ValueError, match="1 masks, corners"):
        Masks(np.zeros((2, 2), np.int64), (np.ones((1, 1), bool),))


def mask_frames(seed: int) -> tuple[list[Frame], list[tuple[np.ndarray, np.ndarray]]]:
    """Frames of two classes with crowds, compared by masks, and their canvases."""
    rng = np.random.default_rng(seed)
    frames, canvases = [], []
    for number in range(3):
        true = blobs(rng, int(rng.integers(number == 0, 6)))
        found = np.concatenate([jittered(rng, true), blobs(rng, 1 + int(rng.integers(0, 3)))])
        masks, true_masks = masks_of(found), masks_of(true)
        frames.append(
            Frame(
                masks.boxes,
                rng.integers(0, 2, len(found)),
                rng.random(len(found)),
                true_masks.boxes,
                rng.integers(0, 2, len(true)),
                rng.random(len(true)) < 0.2,
                overlap=overlap(masks, true_masks),
            )
        )
        canvases.append((found, true))
    return frames, canvases


def coco_mask_ap(
    frames: list[Frame], canvases: list[tuple[np.ndarray, np.ndarray]], area: tuple[float, float]
) -> np.ndarray:
    """AP (C, T) of masks by faster-coco-eval; NaN where it says -1."""
    from faster_coco_eval import COCO, COCOeval_faster
    from faster_coco_eval import mask as codec

    def encoded(canvas: np.ndarray) -> dict:
        run = codec.encode(np.asfortranarray(canvas.astype(np.uint8)))
        return {
            "size": run["size"],
            "counts": run["counts"].decode() if isinstance(run["counts"], bytes) else run["counts"],
        }

    annotations, results = [], []
    for image, (frame, (found, true)) in enumerate(zip(frames, canvases, strict=True), start=1):
        for canvas, label, crowd in zip(true, frame.true_labels, frame.crowd, strict=True):
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label) + 1, "iscrowd": int(crowd)}
            annotations.append(
                row | {"segmentation": encoded(canvas), "area": float(canvas.sum()), "bbox": [0, 0, 1, 1]}
            )
        for canvas, label, score in zip(found, frame.labels, frame.scores, strict=True):
            row = {"image_id": image, "category_id": int(label) + 1, "score": float(score)}
            results.append(row | {"segmentation": encoded(canvas)})
    images = [{"id": i, "width": SIDE, "height": SIDE} for i in range(1, len(frames) + 1)]
    categories = [{"id": c + 1, "name": str(c)} for c in range(2)]
    truth = COCO({"images": images, "annotations": annotations, "categories": categories})
    tool = COCOeval_faster(truth, truth.loadRes(results), "segm", print_function=lambda *_: None)
    tool.params.maxDets = [100]
    tool.params.areaRng, tool.params.areaRngLbl = [list(area)], ["all"]
    tool.evaluate()
    tool.accumulate()
    precision = tool.eval["precision"][:, :, :, 0, 0].mean(axis=1).T
    return np.where(precision < 0, np.nan, precision)


@pytest.mark.parametrize("seed", range(40))
def test_mask_average_precision_equals_the_coco_tool(seed: int) -> None:
    frames, canvases = mask_frames(seed)
    area = ((0.0, 1e10), (20.5, 60.5))[seed % 4 == 3]

    ours = average_precision(frames, 2, COCO_THRESHOLDS, area=area)

    np.testing.assert_allclose(ours.ap, coco_mask_ap(frames, canvases, area), rtol=0, atol=1e-9)


def test_masks_decide_where_boxes_would_say_otherwise() -> None:
    ring = np.zeros((1, SIDE, SIDE), bool)
    ring[0, 2:20, 2:20] = True
    core = ring.copy()
    ring[0, 4:18, 4:18] = False
    core[0] &= ~ring[0]
    core[0, 2, 2] = core[0, 19, 19] = True  # the same box, hardly a pixel in common
    masks, true_masks = masks_of(ring), masks_of(core)
    by_box = Frame(masks.boxes, np.zeros(1, int), np.ones(1), true_masks.boxes, np.zeros(1, int), np.zeros(1, bool))

    by_mask = replace(by_box, overlap=overlap(masks, true_masks))

    assert average_precision([by_box], 1, (0.5,)).mean == 1.0
    assert average_precision([by_mask], 1, (0.5,)).mean == 0.0


def test_a_frame_whose_overlap_is_of_other_masks_is_refused() -> None:
    with pytest.raises(ValueError, match="of 1 and 1 masks, where 0 results and 1 true objects are"):
        Frame(
            np.zeros((0, 4)),
            np.zeros(0, int),
            np.zeros(0),
            np.array([[0.0, 0, 1, 1]]),
            np.zeros(1, int),
            np.zeros(1, bool),
            overlap=found_in(row_of((0, 1)), row_of((0, 1))),
        )
