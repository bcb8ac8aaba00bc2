"""Validation: a network's answers on images of the validation part, the metrics that choose a checkpoint, and the
thresholds of the bundle.

Images are read whole, as inference reads windows. Detection compares boxes, instance segmentation boxes and masks,
semantic segmentation class maps, all in px of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from cytopipe.core.boxes import F64
from cytopipe.data import ImagePool
from cytopipe.data.pool import TileObjects
from cytopipe.data.raster import rasterise
from cytopipe.infer.masks import polygons_from_roi_masks
from cytopipe.infer.predict import Located, locate_in
from cytopipe.metrics import (
    AP10_70_THRESHOLDS,
    COCO_THRESHOLDS,
    LEAST_SCORE,
    MOST_RESULTS,
    Frame,
    Masks,
    PixelScores,
    aji50_of,
    aji_of,
    average_precision,
    class_scores,
    count_panoptic,
    match_by_score,
    mean_scores,
    overlap,
    overlapping_pairs,
    pooled,
)
from cytopipe.nets import DetNet, Net, SegNet, normalise

U8 = NDArray[np.uint8]

MAX_DETECTIONS = 300  # a dense tile holds more than COCO's 100 (METHODS 3)
SCORE_FLOOR = 0.05  # results below are not worth matching
BATCH_IMAGES = 2  # of a forward pass
GLASS = 255  # what pads an image to a multiple of the network's stride

METRICS = {  # what `validate` returns for each task, beside the same by class ("map_50/HSIL")
    "detection": ("map_50", "map_10_70", "map_coco"),
    "instance": ("map_50", "map_10_70", "map_coco", "mask_map_50", "mask_map_coco", "aji50", "aji", "pq"),
    "semantic": ("dice", "jaccard", "acc", "sp", "se"),
}


@dataclass(frozen=True, slots=True)
class Validation:
    """metrics by name in [0, 1] (NaN left out); thresholds: the score of best F1 at box IoU 0.5, by kind."""

    metrics: dict[str, float]
    thresholds: dict[str, float]


def validate(net: Net, pool: ImagePool, most: int) -> Validation:
    """Metrics on up to `most` images of the pool, evenly chosen and the same each time, on the network's own device.

    The network is used in eval mode and given back as it was. Names: METRICS.
    """
    chosen = np.unique(np.linspace(0, len(pool) - 1, min(most, len(pool))).round().astype(int)).tolist()
    was_training = net.training
    net.eval()
    try:
        if isinstance(net, SegNet):
            return Validation(_pixel_metrics(net, pool, chosen), {})
        return _of_objects(net, pool, chosen)
    finally:
        net.train(was_training)


def locate_objects(net: DetNet, images: Sequence[U8], score_threshold: float = SCORE_FLOOR) -> list[Located]:
    """What each image (H, W, 3) holds, in its px; images of one size in a row share forward passes."""
    device = next(net.parameters()).device
    found: list[Located] = []
    for part in _batches(images):
        found += locate_in(net, part, score_threshold=score_threshold, device=device)
    return found


def segment_images(net: SegNet, images: Sequence[U8]) -> list[U8]:
    """The class map (H, W) uint8 of 0..C of each image (H, W, 3)."""
    device = next(net.parameters()).device
    stride = net.spec.stride_px
    maps: list[U8] = []
    for part in _batches(images):
        height, width = part[0].shape[:2]
        canvas = np.full((len(part), *(math.ceil(n / stride) * stride for n in (height, width)), 3), GLASS, np.uint8)
        canvas[:, :height, :width] = np.stack(part)
        with torch.inference_mode():
            logits = net(normalise(torch.from_numpy(canvas).to(device), net.spec))
            labels = logits.argmax(dim=1)[:, :height, :width].to(torch.uint8).cpu().numpy()
        maps += list(labels)
    return maps


def polygon_masks(geometry: Sequence[object], height: int, width: int) -> Masks:
    """Polygons, px of an image (height, width), as the pixels that they cover by half; a missing one covers none."""
    corners, bits = np.zeros((len(geometry), 2), np.int64), []
    for i, polygon in enumerate(geometry):
        if polygon is None or shapely.is_empty(polygon):
            bits.append(np.zeros((0, 0), np.bool_))
            continue
        x0, y0, x1, y1 = shapely.bounds(polygon)
        left, top = max(math.floor(x0), 0), max(math.floor(y0), 0)
        right, bottom = min(math.ceil(x1), width), min(math.ceil(y1), height)
        corners[i] = left, top
        shifted = shapely.transform(polygon, lambda xy, origin=(left, top): xy - origin)
        bits.append(rasterise(shifted, max(bottom - top, 0), max(right - left, 0)).astype(np.bool_))
    return Masks(corners, tuple(bits))


@dataclass(frozen=True, slots=True, eq=False)
class _Image:
    """One image: boxes of results and truth, and their masks where the network draws some."""

    frame: Frame
    masks: Masks | None
    true_masks: Masks | None


def _of_objects(net: DetNet, pool: ImagePool, chosen: Sequence[int]) -> Validation:
    images: list[_Image] = []
    for start in range(0, len(chosen), BATCH_IMAGES):
        part = chosen[start : start + BATCH_IMAGES]
        pixels = [pool.image(i) for i in part]
        answers = locate_objects(net, pixels)
        images += [
            _compared(pool.objects(i), answer, image.shape[:2])
            for i, answer, image in zip(part, answers, pixels, strict=True)
        ]
    frames = [image.frame for image in images]
    names = [c.name for c in net.spec.classes]
    cuts = _best_cuts(frames, net)
    metrics = _box_metrics(frames, names) | {f"f1_50/{kind}": f1 for kind, (_, f1) in cuts.items()}
    if net.spec.task == "instance":
        metrics |= _mask_metrics(images, names)
    return Validation(_defined(metrics), {kind: cut for kind, (cut, _) in cuts.items()})


def _compared(objects: TileObjects, answer: Located, size: tuple[int, int]) -> _Image:
    truth = shapely.bounds(objects.geometry).reshape(-1, 4)
    frame = Frame(
        answer.boxes,
        answer.labels - 1,
        answer.scores,
        np.asarray(truth, np.float64),
        objects.labels - 1,
        np.zeros(len(truth), bool),
    )
    if answer.masks is None:
        return _Image(frame, None, None)
    outlines = polygons_from_roi_masks(answer.masks, answer.boxes)
    return _Image(frame, polygon_masks(outlines, *size), polygon_masks(objects.geometry, *size))


def _box_metrics(frames: list[Frame], names: list[str]) -> dict[str, float]:
    result: dict[str, float] = {}
    for key, thresholds in (("map_50", (0.5,)), ("map_10_70", AP10_70_THRESHOLDS), ("map_coco", COCO_THRESHOLDS)):
        ap = average_precision(frames, len(names), thresholds, max_detections=MAX_DETECTIONS)
        result[key] = ap.mean
        if key != "map_coco":
            by_class = zip(names, ap.per_class, strict=True)
            result |= {f"{key.removeprefix('m')}/{name}": float(value) for name, value in by_class}
    return result


def _mask_metrics(images: list[_Image], names: list[str]) -> dict[str, float]:
    """Mask AP over all results; aji50, aji and pq over those of score 0.5 and more, best 200 an image (METHODS 3)."""
    frames = [
        replace(image.frame, overlap=overlap(image.masks, image.true_masks))
        for image in images
        if image.masks is not None and image.true_masks is not None
    ]
    ap = average_precision(frames, len(names), COCO_THRESHOLDS, max_detections=MAX_DETECTIONS)
    result = {"mask_map_50": ap.mean_at(0.5), "mask_map_coco": ap.mean}
    result |= {f"mask_ap_50/{name}": float(value) for name, value in zip(names, ap.at(0.5), strict=True)}
    by_class: dict[str, list[float]] = {"aji50": [], "aji": [], "pq": []}
    for label, name in enumerate(names):
        overlaps = []
        for image in images:
            if image.masks is None or image.true_masks is None:
                continue
            best = np.argsort(-image.frame.scores, kind="stable")
            best = best[image.frame.scores[best] >= LEAST_SCORE][:MOST_RESULTS]
            mine, true = best[image.frame.labels[best] == label], image.frame.true_labels == label
            overlaps.append(overlap(image.masks.take(mine), image.true_masks.take(true)))
        values = {
            "aji50": _mean([aji50_of(found) for found in overlaps]),
            "aji": _mean([aji_of(found) for found in overlaps]),
            "pq": pooled(count_panoptic(found) for found in overlaps).quality,
        }
        for key, value in values.items():
            by_class[key].append(value)
            result[f"{key}/{name}"] = value
    return result | {key: _mean(values) for key, values in by_class.items()}


def _pixel_metrics(net: SegNet, pool: ImagePool, chosen: Sequence[int]) -> dict[str, float]:
    """The mean over images of each score and class, and the mean of that over classes."""
    names = [c.name for c in net.spec.classes]
    by_class: list[list[PixelScores]] = [[] for _ in names]
    for start in range(0, len(chosen), BATCH_IMAGES):
        part = chosen[start : start + BATCH_IMAGES]
        for i, found in zip(part, segment_images(net, [pool.image(i) for i in part]), strict=True):
            for of_class, scores in zip(by_class, class_scores(found, pool.class_map(i), len(names)), strict=True):
                of_class.append(scores)
    means = [mean_scores(scores) for scores in by_class]
    result = {key: _mean([of_class[key] for of_class in means]) for key in METRICS["semantic"]}
    for name, of_class in zip(names, means, strict=True):
        result |= {f"{key}/{name}": of_class[key] for key in ("dice", "jaccard")}
    return _defined(result)


def _batches(images: Sequence[U8]) -> Iterator[list[U8]]:
    """Images in order, up to BATCH_IMAGES of one size at a time."""
    for _, same in groupby(images, key=lambda image: image.shape):
        of_size = list(same)
        yield from (of_size[start : start + BATCH_IMAGES] for start in range(0, len(of_size), BATCH_IMAGES))


def _best_cuts(frames: list[Frame], net: DetNet) -> dict[str, tuple[float, float]]:
    """kind -> (score of the best F1 at box IoU 0.5, that F1), whatever the class within the kind; 0.5 where the kind
    has no truth.
    """
    cuts = {}
    for group in net.spec.kinds:
        scores, hits, truths = [np.zeros(0)], [np.zeros(0, np.bool_)], 0
        for frame in frames:
            mine, true = np.isin(frame.labels, group), np.isin(frame.true_labels, group)
            hit = _hits(frame.boxes[mine], frame.scores[mine], frame.true_boxes[true])
            scores.append(frame.scores[mine])
            hits.append(hit)
            truths += int(true.sum())
        cuts[net.spec.classes[group[0]].kind] = _best_f1(np.concatenate(scores), np.concatenate(hits), truths)
    return cuts


def _hits(boxes: F64, scores: NDArray[np.floating], truth: F64) -> NDArray[np.bool_]:
    none = np.zeros(len(truth), bool)
    order = np.argsort(-scores, kind="stable")
    matched, _ = match_by_score(overlapping_pairs(boxes, truth, none), order, none, none, 0.5)
    return matched


def _best_f1(scores: NDArray[np.floating], hits: NDArray[np.bool_], truths: int) -> tuple[float, float]:
    if truths == 0 or len(scores) == 0:
        return 0.5, 0.0
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(hits[order])
    f1 = 2 * found / (np.arange(1, len(order) + 1) + truths)
    best = int(f1.argmax())
    return round(float(scores[order][best]), 4), float(f1[best])


def _defined(metrics: dict[str, float]) -> dict[str, float]:
    return {key: float(value) for key, value in metrics.items() if np.isfinite(value)}


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not math.isnan(value)]
    return math.fsum(defined) / len(defined) if defined else math.nan
