"""Validation of all three tasks: networks that are functions of the pixels, so that every metric is known by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import shapely
import torch
from torch import nn

from cytopipe.core.classes import class_named
from cytopipe.data.pool import TileObjects
from cytopipe.nets import Detections, DetNet, NetSpec, SegNet, SegSpec
from cytopipe.train.validate import METRICS, polygon_masks, validate

CLASSES = (class_named("normal"), class_named("HSIL"))
SIDE = 64


@dataclass
class Pool:
    """Images of squares: (label, x, y, side) each. The blue channel tells a stub network which image it sees."""

    squares: list[list[tuple[int, int, int, int]]]
    sizes: tuple[int, ...] = (SIDE,)
    classes = CLASSES

    def __len__(self):
        return len(self.squares)

    def image(self, index):
        side = self.sizes[index % len(self.sizes)]
        image = np.zeros((side, side, 3), np.uint8)
        image[..., 2] = index
        return image

    def objects(self, index):
        squares = self.squares[index]
        geometry = np.array([shapely.box(x, y, x + side, y + side) for _, x, y, side in squares], object)
        return TileObjects(np.array([s[0] for s in squares], np.int64), geometry, np.ones(len(squares), bool))

    def class_map(self, index):
        side = self.sizes[index % len(self.sizes)]
        labels = np.zeros((side, side), np.uint8)
        for label, x, y, size in self.squares[index]:
            labels[y : y + size, x : x + size] = label
        return labels


def index_of(net, image):
    """Which image of a pool a stub network is given."""
    mean, std = net.spec.mean[2], net.spec.std[2]
    return round(float((image[2, 0, 0] * std + mean) * 255))


class StubDetector(DetNet):
    """Answers with given squares (label, x, y, side, score), each a full mask."""

    def __init__(self, answers, architecture="mask-rcnn-mobilenetv2-fpn"):
        nn.Module.__init__(self)
        self.spec, self.answers = NetSpec(architecture=architecture, classes=CLASSES), answers
        self.weight = nn.Parameter(torch.zeros(()))
        self.modes = []

    def extract(self, x):
        return x

    def detect(self, feats, sizes, *, score_threshold, **_):
        self.modes.append(self.training)
        found = []
        for image in feats:
            kept = [a for a in self.answers[index_of(self, image)] if a[4] >= score_threshold]
            kept.sort(key=lambda a: -a[4])
            boxes = torch.tensor([[x, y, x + s, y + s] for _, x, y, s, _ in kept], dtype=torch.float32).reshape(-1, 4)
            labels, scores = torch.tensor([a[0] for a in kept], dtype=torch.int64), torch.tensor([a[4] for a in kept])
            masks = torch.ones(len(kept), 28, 28) if self.spec.task == "instance" else None
            found.append(Detections(boxes, scores.float(), labels, torch.zeros(len(kept), 2), masks))
        return found


class StubSegmenter(SegNet):
    """Answers with the class maps of a pool of its own."""

    def __init__(self, pool):
        nn.Module.__init__(self)
        self.spec, self.pool = SegSpec(architecture="unet", classes=CLASSES), pool
        self.weight = nn.Parameter(torch.zeros(()))
        self.shapes = []

    def forward(self, image):
        self.shapes.append(tuple(image.shape))
        logits = torch.zeros(len(image), 3, *image.shape[-2:])
        for one, out in zip(image, logits, strict=True):
            labels = torch.from_numpy(self.pool.class_map(index_of(self, one)).astype(np.int64))
            out[:, : labels.shape[0], : labels.shape[1]].scatter_(0, labels[None], 1.0)
        return logits


TRUE = [[(1, 4, 4, 20), (2, 34, 30, 20)], [(1, 10, 10, 30)], []]
PERFECT = [[(*square, 0.9) for square in squares] for squares in TRUE]


def test_a_perfect_instance_network_has_one_in_every_metric():
    net = StubDetector(PERFECT)

    result = validate(net, Pool(TRUE), 10)

    assert set(METRICS["instance"]) <= set(result.metrics)
    for name in METRICS["instance"]:
        at_least = 0.9 if "mask" in name or name in ("aji", "aji50", "pq", "map_coco") else 1.0
        assert result.metrics[name] >= at_least, name  # a mask is an outline rounded at its corners
    assert result.thresholds == {"cell": pytest.approx(0.9)}


def test_masks_and_scores_decide_where_boxes_do_not():
    # of HSIL: found at score 0.4 only, which counts for AP, but not for AJI and PQ (score 0.5 and more)
    answers = [[(1, 4, 4, 20, 0.9), (2, 34, 30, 20, 0.4)], [(1, 10, 10, 30, 0.8)], [(1, 0, 0, 10, 0.7)]]

    metrics = validate(StubDetector(answers), Pool(TRUE), 10).metrics

    assert metrics["mask_ap_50/HSIL"] == pytest.approx(1.0)
    assert metrics["aji/HSIL"] == metrics["pq/HSIL"] == 0.0
    assert metrics["aji/normal"] == pytest.approx(2 / 3, abs=0.03)  # two images well outlined, one with a false object
    assert metrics["aji50"] == pytest.approx((metrics["aji50/normal"] + metrics["aji50/HSIL"]) / 2)
    assert metrics["pq/normal"] == pytest.approx(2 / 2.5, abs=0.03)


def test_a_detection_network_is_asked_for_boxes_only():
    metrics = validate(StubDetector(PERFECT, "faster-rcnn-mobilenetv2-fpn"), Pool(TRUE), 10).metrics

    assert metrics["map_50"] == 1.0
    assert not any(name.startswith(("mask", "aji", "pq")) for name in metrics)


@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_validated_in_eval_mode_and_given_back_as_it_was(training):
    net = StubDetector(PERFECT).train(training)

    validate(net, Pool(TRUE), 10)

    assert set(net.modes) == {False}
    assert net.training is training


def test_at_most_the_asked_number_of_images_is_read_evenly_chosen():
    many = Pool([TRUE[1]] * 9)
    net = StubSegmenter(many)

    validate(net, many, 3)

    assert sum(shape[0] for shape in net.shapes) == 3


def test_a_semantic_network_has_the_means_over_images_of_each_class():
    true = Pool([[(1, 0, 0, 20)], [(1, 0, 0, 20)], [(2, 8, 8, 16)]])
    # the second image's object is found at half its width: DC = 2 * 200 / (200 + 400) = 2/3
    found = Pool([[(1, 0, 0, 20)], [(1, 0, 0, 20), (0, 10, 0, 20)], [(2, 8, 8, 16)]])

    metrics = validate(StubSegmenter(found), true, 10).metrics

    # absent and not found: 1 (METHODS 3)
    assert metrics["dice/normal"] == pytest.approx((1 + 2 / 3 + 1) / 3)
    assert metrics["dice/HSIL"] == 1.0
    assert metrics["dice"] == pytest.approx((metrics["dice/normal"] + 1) / 2)
    assert metrics["jaccard/normal"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    assert metrics["se"] == pytest.approx(((1 + 1 / 2 + 1) / 3 + 1) / 2)
    assert metrics["sp"] == 1.0
    assert set(METRICS["semantic"]) <= set(metrics)


def test_semantic_images_of_any_size_are_padded_to_the_stride_and_cropped_again():
    pool = Pool([[(1, 3, 3, 20)], [(2, 3, 3, 20)], [(1, 3, 3, 20)]], sizes=(50, 33, 64))
    net = StubSegmenter(pool)

    metrics = validate(net, pool, 10).metrics

    assert metrics["dice"] == metrics["acc"] == 1.0
    assert all(side % net.spec.stride_px == 0 for shape in net.shapes for side in shape[-2:])


def test_images_of_different_sizes_do_not_share_a_forward_pass():
    pool = Pool([[(1, 3, 3, 20)]] * 3, sizes=(64, 64, 33))
    net = StubSegmenter(pool)

    validate(net, pool, 10)

    assert [shape[0] for shape in net.shapes] == [2, 1]


def test_polygons_become_the_pixels_that_they_cover_by_half_cut_at_the_image():
    masks = polygon_masks([shapely.box(2, 3, 6, 5), shapely.box(-3, -3, 2, 2), shapely.Polygon(), None], 10, 8)

    assert masks.areas.tolist() == [8.0, 4.0, 0.0, 0.0]
    assert masks.corners[:2].tolist() == [[2, 3], [0, 0]]
