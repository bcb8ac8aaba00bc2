"""A bundle's network on a slide: regions, batches, threads, augmentation, colours. The model is tiny and untrained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from shapely import Point, box

from cytopipe.core.errors import UserError
from cytopipe.infer.located import Located
from cytopipe.infer.predict import Detector, choose_device
from cytopipe.infer.stain import recolouring
from cytopipe.nets import load_bundle
from cytopipe.slides import MppView
from cytopipe.tiles.regions import Area
from tests.array_slide import ArraySlide
from tests.tiny_model import write_tiny_model


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load_bundle(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def smear(seed=0, side_px=500):
    """Discs on noisy glass at 0.5 µm/px."""
    rng = np.random.default_rng(seed)
    rgb = rng.normal(238, 2, (side_px, side_px, 3))
    y, x = np.mgrid[:side_px, :side_px]
    for cx, cy, r in rng.integers((10, 10, 8), (side_px - 10, side_px - 10, 18), (40, 3)).tolist():
        rgb[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = (150, 100, 160)
    return ArraySlide(rgb.clip(0, 255).astype(np.uint8), mpp=0.5)


def discs(images):
    """A predictor that reports every connected disc, with its box; it sees all orientations alike."""
    import cv2

    found = []
    for image in images:
        _, _, stats, _ = cv2.connectedComponentsWithStats((image[..., 1] < 160).astype(np.uint8))
        x, y, w, h, _ = stats[1:].T
        spread = np.zeros((len(x), 2), np.float32)
        spread[:, 1] = 0.75
        boxes = np.stack([x, y, x + w, y + h], axis=1).astype(np.float64)
        found.append(Located(boxes, spread[:, 1], np.full(len(x), 2, np.int64), spread, None))
    return found


def locate(detector, slide, **options):
    return detector.locate(slide, MppView(slide, 0.5), **options).objects


def test_objects_belong_to_a_region_by_their_centroid_and_are_whole_past_its_border(bundle):
    slide, detector = smear(), Detector(bundle, device="cpu", predictor=discs)
    everything = locate(detector, slide)
    region = Area([box(60.0, 90.0, 330.0, 260.0), Point(420, 420).buffer(50)])

    found = locate(detector, slide, region=region)

    centres = (everything.xyxy[:, :2] + everything.xyxy[:, 2:]) / 2
    assert_array_equal(found.xyxy, everything.xyxy[region.contains(centres)])
    _, y0, _, y1 = found.xyxy.T
    assert ((y0 < 260) & (y1 > 260)).any(), "no object lies across the border"


def test_windows_that_no_region_meets_are_not_looked_at(bundle):
    slide, seen = smear(), []

    def counting(images):
        seen.extend(images)
        return discs(images)

    detector = Detector(bundle, device="cpu", predictor=counting)
    view = MppView(slide, 0.5)

    findings = detector.locate(slide, view, region=Area([box(0, 0, 40, 40)]))

    assert findings.windows_run == len(seen) < len(detector.plan(view)) / 4


def test_a_sink_gets_the_objects_that_are_otherwise_returned(bundle):
    slide, detector, tables = smear(), Detector(bundle, device="cpu", predictor=discs), []

    findings = detector.locate(slide, MppView(slide, 0.5), sink=tables.append)

    assert len(findings.objects) == 0
    assert findings.count == sum(map(len, tables))
    assert_array_equal(np.concatenate([t.xyxy for t in tables]), locate(detector, slide).xyxy)


@pytest.mark.parametrize("tta", ["flips", "turns", "all"])
def test_augmentation_of_a_predictor_that_sees_all_orientations_alike_changes_no_object(bundle, tta):
    slide = smear(seed=4)

    plain = locate(Detector(bundle, device="cpu", predictor=discs), slide)
    augmented = locate(Detector(bundle, device="cpu", predictor=discs, tta=tta), slide)

    assert len(plain) > 20
    for name in ("xyxy", "score", "class_index", "class_scores", "flags"):
        assert_array_equal(getattr(augmented, name), getattr(plain, name), err_msg=name)


def test_the_network_is_asked_in_every_orientation_and_its_objects_stay_within_their_windows(bundle):
    slide = smear(seed=5, side_px=256)

    found = locate(Detector(bundle, device="cpu", tta="all", score_threshold=0.02), slide)

    assert len(found) > 0
    assert (found.xyxy[:, :2] >= 0).all()
    assert (found.xyxy[:, 2:] <= 256).all()


@pytest.mark.parametrize("batch_windows", [2, 3, 16])
def test_objects_match_one_to_one_across_batch_sizes(bundle, batch_windows):
    slide = smear(seed=6, side_px=300)
    one = locate(Detector(bundle, device="cpu"), slide)

    other = locate(Detector(bundle, device="cpu", batch_windows=batch_windows), slide)

    assert len(one) == len(other) > 10
    assert np.abs(one.xyxy - other.xyxy).max() < 0.01
    assert_array_equal(one.class_index, other.class_index)


def test_objects_match_one_to_one_across_thread_counts_of_torch(bundle):
    slide = smear(seed=7, side_px=300)
    one = locate(Detector(bundle, device="cpu"), slide)

    torch.set_num_threads(3)
    other = locate(Detector(bundle, device="cpu"), slide)

    assert len(one) == len(other) > 10
    assert np.abs(one.xyxy - other.xyxy).max() < 0.01


def test_recoloured_pixels_reach_the_predictor_and_not_the_measures(bundle):
    slide, shown = smear(), []

    def looks(images):
        shown.extend(images)
        return discs(images)

    detector = Detector(bundle, device="cpu", predictor=looks)
    recolour = recolouring(bundle.spec, slide, MppView(slide, 0.5), None)

    found = locate(detector, slide, recolour=recolour)

    plain = locate(Detector(bundle, device="cpu", predictor=discs), slide)
    glass = np.median(np.stack(shown[:4])[:, ::7, ::7].reshape(-1, 3), axis=0)
    assert np.abs(glass - np.array(bundle.spec.stain_glass)).max() <= 2
    assert_array_equal(found.measures, plain.measures)


def test_a_threshold_outside_of_0_to_1_and_a_missing_gpu_are_refused(bundle):
    with pytest.raises(UserError, match="from 0 to 1"):
        Detector(bundle, score_threshold=1.5)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"):
            choose_device("cuda:1")
