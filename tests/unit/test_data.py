"""Batches: a function of (seed, t), with boxes, masks and pixels that tell of the same objects."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from cytopipe.core.classes import class_named
from cytopipe.data import Batches, LoaderSettings, TilePool, prefetch
from cytopipe.data.crops import Crop, cut_image, visible_objects
from cytopipe.data.pool import TileObjects
from cytopipe.data.raster import rasterise
from cytopipe.nets import NetSpec
from cytopipe.semi import JITTERED, STRONG, ViewPlan
from cytopipe.tiles import TileStore

NAMES = ("nucleus", "normal", "ASC-US", "LSIL", "HSIL", "AGC")


@pytest.fixture(scope="module")
def pool(labelled_store):
    store = TileStore(labelled_store)
    return TilePool(store, store.rows(split="train", labelled=True), tuple(class_named(n) for n in NAMES))


def batches(pool, *, unlabelled=None, plan=None, seed=3, zoom=(1.0, 1.0)):
    spec = NetSpec.model_validate({"architecture": "mask-rcnn-mobilenetv2-fpn", "classes": pool.classes})
    plan = plan or ViewPlan({"weak": JITTERED}, {})
    return Batches(pool, unlabelled, plan, spec, LoaderSettings(seed, 128, 3, 2, zoom))


def digest(view):
    parts = [view.image.numpy().tobytes(), *(t.boxes.numpy().tobytes() for t in view.targets)]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_labelled_batches_of_a_seed_are_the_same_with_and_without_unlabelled_images(pool):
    alone = batches(pool)
    both = batches(pool, unlabelled=pool, plan=ViewPlan({"weak": JITTERED}, {"weak": JITTERED, "strong": STRONG}))

    for t in range(6):
        assert digest(alone.batch(t).labelled.weak) == digest(both.batch(t).labelled.weak)
    assert both.batch(0).unlabelled.strong.image.shape == (2, 3, 128, 128)
    assert both.batch(0).unlabelled.weak.targets == ()


def test_a_batch_does_not_depend_on_the_batches_before_it_nor_on_threads(pool):
    straight = [digest(b.labelled.weak) for b in prefetch(batches(pool), 0, 6, 0)]
    threaded = [digest(b.labelled.weak) for b in prefetch(batches(pool), 0, 6, 3)]
    resumed = [digest(b.labelled.weak) for b in prefetch(batches(pool), 4, 6, 2)]

    assert threaded == straight
    assert resumed == straight[4:]
    assert len(set(straight)) == 6


def test_every_epoch_shows_each_tile_once(pool):
    size = len(pool)
    seen = []
    source = batches(pool)
    draw = TilePool.image

    class Spy(TilePool):
        def image(self, index):
            seen.append(index)
            return draw(self, index)

    spy = Spy(pool.store, pool.rows, pool.classes)
    source.labelled = spy
    for t in range(size):  # three images a batch: three epochs
        source.batch(t)

    assert [sorted(seen[i : i + size]) for i in range(0, 3 * size, size)] == [list(range(size))] * 3


@pytest.mark.parametrize("zoom", [(1.0, 1.0), (0.7, 1.4)])
def test_the_box_of_every_object_is_the_box_of_its_mask(pool, zoom):
    for t in range(4):
        for target in batches(pool, zoom=zoom).batch(t).labelled.weak.targets:
            for box, mask in zip(target.boxes.numpy(), target.masks.numpy(), strict=True):
                rows, columns = np.nonzero(mask)
                drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]

                assert np.abs(drawn - box).max() <= 1.5  # a pixel counts by its centre; a clipped end may be pointed
            assert ((target.boxes >= 0) & (target.boxes <= 128)).all()


def test_nuclei_are_dark_where_their_masks_are(pool):
    plan = ViewPlan(unlabelled={}).with_flips("both-and-turns")
    inside, outside = [], []
    for t in range(6):
        view = batches(pool, plan=plan).batch(t).labelled.weak
        for image, target in zip(view.image.mean(dim=1), view.targets, strict=True):
            nuclei = target.masks[target.labels == 1]
            if len(nuclei):
                covered = nuclei.amax(dim=0).bool()
                inside.append(float(image[covered].mean()))
                outside.append(float(image[~covered].mean()))

    assert all(a < b - 0.5 for a, b in zip(inside, outside, strict=True))


def test_an_object_cut_by_the_crop_is_learned_as_its_clip_and_a_sliver_is_not():
    shapes = np.array([shapely.box(10, 10, 30, 30), shapely.box(90, 40, 110, 60), shapely.box(98, 70, 140, 90)], object)
    objects = TileObjects(np.array([1, 2, 2]), shapes, np.ones(3, bool))

    seen = visible_objects(objects, Crop(0, 0, 100, 100).affine, 100)

    assert shapely.bounds(seen.geometry).tolist() == [[10, 10, 30, 30], [90, 40, 100, 60]]
    assert seen.whole.tolist() == [True, False]


def test_a_crop_larger_than_the_tile_is_filled_with_glass():
    image = np.full((50, 60, 3), 90, np.uint8)

    crop = cut_image(image, Crop(0, 0, 64, 64))

    assert crop.shape == (64, 64, 3)
    assert (crop[:50, :60] == 90).all()
    assert (crop[50:] == 255).all()
    assert (crop[:, 60:] == 255).all()


@settings(max_examples=60, deadline=None)
@given(st.floats(2, 60), st.floats(2, 60), st.floats(1.5, 25), st.floats(1.5, 25))
def test_a_mask_covers_the_area_of_its_polygon(x, y, a, b):
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    ellipse = shapely.Polygon(np.stack([x + a * np.cos(angle), y + b * np.sin(angle)], axis=1))
    visible = shapely.clip_by_rect(ellipse, 0, 0, 64, 64)

    mask = rasterise(ellipse, 64, 64)

    assert abs(int(mask.sum()) - visible.area) <= 0.35 * ellipse.length + 2  # a third of a pixel along the outline
