"""Views in batches: class maps, rotation and rescale, borders, shares of a batch, the same labels for every method."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
import shapely
import torch

from cytopipe.core.classes import class_named
from cytopipe.data import Batches, LoaderSettings, TileObjects
from cytopipe.data.pool import CachedPool
from cytopipe.methods import METHODS, find_method
from cytopipe.nets import NetSpec, SegSpec
from cytopipe.semi import (
    CDCL_STRONG,
    CDCL_WEAK,
    MSPA,
    PSM,
    PSM_LABELLED,
    STRONG,
    WEAK,
    Geometry,
    View,
    ViewPlan,
    apply_preset,
    map_boxes,
    map_masks,
    valid_both,
)

SIDE = 96
CLASSES = (class_named("nucleus"), class_named("cell"))
PLAIN = replace(WEAK, name="plain", hflip_p=0.0)
TURNED = replace(PLAIN, name="turned", rotate_deg=15.0, rescale=(0.8, 1.2))


class Painted(CachedPool):
    """Images on which every object is painted in its own colour: red nuclei on green cells, black elsewhere."""

    def __init__(self, size: tuple[int, int] = (150, 200), count: int = 5) -> None:
        super().__init__(count, CLASSES, 0.5)
        self.size = size

    def name(self, index: int) -> str:
        return f"painted {index}"

    def beyond(self, index: int) -> tuple[int, int, int]:
        return (0, 0, 255)

    def _read_objects(self, index: int) -> TileObjects:
        rng = np.random.default_rng(index)
        height, width = self.size
        discs = []
        for label, radius in ((2, 22.0), (1, 9.0)):
            for x, y in zip(rng.uniform(0, width, 6), rng.uniform(0, height, 6), strict=True):
                discs.append((label, shapely.Point(x, y).buffer(radius, quad_segs=32)))
        shapes = shapely.clip_by_rect(np.array([d for _, d in discs], object), 0, 0, width, height)
        return TileObjects(np.array([label for label, _ in discs], np.int64), shapes, np.ones(len(discs), bool))

    def _read_image(self, index: int) -> np.ndarray:
        found = np.zeros((*self.size, 3), np.uint8)
        seen = self._painted(index)
        found[seen == 1] = (255, 0, 0)
        found[seen == 2] = (0, 255, 0)
        return found

    def _painted(self, index: int) -> np.ndarray:
        from cytopipe.data.raster import class_map_of

        objects = self.objects(index)
        return class_map_of(objects.labels, objects.geometry, *self.size)


SEMANTIC = SegSpec(architecture="unet", classes=CLASSES, widths=(4, 8, 8))
INSTANCE = NetSpec.model_validate({"architecture": "mask-rcnn-mobilenetv2-fpn", "classes": CLASSES})


def batches(
    plan: ViewPlan, spec=SEMANTIC, *, pool=None, unlabelled=None, seed=1, sizes=(3, 3), share=(0, 1)
) -> Batches:
    loader = LoaderSettings(seed, SIDE, *sizes, (1.0, 1.0), share)
    return Batches(Painted() if pool is None else pool, unlabelled, plan, spec, loader)


def colours(view: View) -> torch.Tensor:
    """(B, 3, H, W) in [0, 255]."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (SEMANTIC.mean, SEMANTIC.std))
    return (view.image * std + mean) * 255


@pytest.mark.parametrize("preset", [PLAIN, WEAK, TURNED, CDCL_WEAK, replace(MSPA, jitter_p=0.0)], ids=lambda p: p.name)
def test_the_class_of_every_pixel_is_that_of_the_colour_it_shows(preset):
    for t in range(3):
        view = batches(ViewPlan({"weak": preset}, {})).batch(t).labelled.weak
        shown = colours(view)
        for label, channel in ((1, 0), (2, 1)):
            pure = shown[:, channel] > 250  # not mixed with a neighbour by bilinear sampling
            wrong = pure & (view.labels != label) & (view.labels != 255)
            assert pure.sum() > 200
            assert wrong.sum() <= 0.002 * pure.sum()  # a corner pixel of a disc may round to the other side
        assert view.targets == ()
        assert view.labels.dtype == torch.int64


def test_where_a_view_shows_nothing_of_its_image_the_label_is_255_and_nowhere_else():
    small = Painted(size=(70, 80))
    for preset in (WEAK, TURNED):
        view = batches(ViewPlan({"weak": preset}, {}), pool=small).batch(0).labelled.weak
        blue = colours(view)[:, 2] > 5  # `beyond`, also where it is mixed in

        assert view.valid is not None
        assert ((view.labels == 255) == ~view.valid).all()
        assert (blue <= ~view.valid).all()
        assert (~view.valid & ~blue).float().mean() < 0.02


def test_a_view_inside_its_image_is_valid_everywhere_and_says_so_by_none():
    view = batches(ViewPlan({"weak": WEAK}, {})).batch(0).labelled.weak

    assert view.valid is None
    assert (view.labels != 255).all()


def test_a_rotated_view_shows_the_image_around_its_crop_and_not_made_up_corners():
    large = Painted(size=(600, 600), count=40)
    found = [
        batches(ViewPlan({"weak": CDCL_WEAK}, {}), pool=large, sizes=(4, 4)).batch(t).labelled.weak for t in range(10)
    ]

    lacking = [0.0 if view.valid is None else float((~view.valid).float().mean()) for view in found]
    assert np.mean(lacking) < 0.02  # only crops at the very border


def test_a_class_at_the_border_of_a_rotated_polygon_is_that_of_the_rotated_mask():
    for t in range(3):
        both = [batches(ViewPlan({"weak": TURNED}, {}), spec).batch(t).labelled.weak for spec in (SEMANTIC, INSTANCE)]
        for labels, targets in zip(both[0].labels, both[1].targets, strict=True):
            nuclei = (targets.masks.numpy() * (targets.labels == 1).numpy()[:, None, None]).max(axis=0, initial=0)
            drawn = ((labels == 1) & (labels != 255)).numpy().astype(np.uint8)
            inner, outer = cv2.erode(nuclei, np.ones((3, 3))), cv2.dilate(nuclei, np.ones((3, 3)))
            middle = slice(20, -20)  # slivers at the border are no objects, and have a class all the same
            assert (inner <= drawn)[middle, middle].all()
            assert (drawn <= outer)[middle, middle].all()


@pytest.mark.parametrize("preset", [WEAK, TURNED], ids=lambda p: p.name)
def test_boxes_are_the_exact_bounds_of_the_mapped_outlines_clipped_to_the_view(preset):
    pool = Painted()
    for t in range(3):
        source = batches(ViewPlan({"weak": preset}, {}), INSTANCE, pool=pool)
        view = source.batch(t).labelled.weak
        for place, (targets, affine) in enumerate(zip(view.targets, view.affine.numpy(), strict=True)):
            objects = pool.objects(source._chosen("labelled", pool, 3 * t + place))
            moved = shapely.transform(objects.geometry, lambda xy, a=affine: xy @ a[:, :2].T + a[:, 2])
            bounds = shapely.bounds(shapely.intersection(moved, shapely.box(0, 0, SIDE, SIDE)))
            assert len(targets.boxes) > 0
            for box in targets.boxes.numpy():
                assert np.nanmin(np.abs(bounds - box).max(axis=1)) < 1e-3


def test_weak_and_strong_views_of_one_image_show_its_objects_at_the_same_place():
    plan = ViewPlan({"weak": CDCL_WEAK, "strong": CDCL_STRONG}, {})

    part = batches(plan).batch(2).labelled

    assert (part.weak.affine == part.strong.affine).all()
    assert (part.weak.labels == part.strong.labels).all()
    assert not torch.equal(part.weak.image, part.strong.image)
    assert valid_both(part.weak, part.strong, 4).shape == (3, SIDE // 4, SIDE // 4)


def test_a_views_own_flip_is_drawn_for_it_alone_and_recorded_in_its_affine():
    twin = replace(PLAIN, own_hflip_p=1.0)
    part = batches(ViewPlan({"weak": PLAIN, "twin": twin}, {}), INSTANCE).batch(0).labelled
    plain, flipped = part.views["weak"], part.views["twin"]

    assert (plain.image.flip(-1) == flipped.image).all()
    for k in range(3):
        a, b = plain.affine[k], flipped.affine[k]
        boxes, kept = map_boxes(plain.targets[k].boxes, a, b, (SIDE, SIDE))
        torch.testing.assert_close(boxes, flipped.targets[k].boxes[kept], atol=1e-3, rtol=0)
        masks = map_masks(plain.targets[k].masks, a, b)
        assert (masks != flipped.targets[k].masks).float().mean() < 0.002


def test_a_flip_of_its_own_shifts_no_colour_of_another_view():
    alone = batches(ViewPlan({"weak": STRONG}, {})).batch(1).labelled.weak
    beside = batches(ViewPlan({"weak": STRONG, "twin": replace(STRONG, own_hflip_p=0.5)}, {})).batch(1).labelled

    assert torch.equal(alone.image, beside.weak.image)


def test_rotation_angles_and_factors_fill_their_ranges_evenly():
    from cytopipe.semi import draw_geometry

    drawn = [draw_geometry(TURNED, np.random.default_rng(seed)) for seed in range(1500)]
    angles, factors = np.array([g.rotate_deg for g in drawn]), np.array([g.scale for g in drawn])

    for values, low, high in ((angles, -15, 15), (factors, 0.8, 1.2)):
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
        spread = (high - low) / 12**0.5
        assert abs(values.mean() - (low + high) / 2) < 4 * spread / 1500**0.5  # four standard errors


def test_a_rotation_turns_with_the_clock_about_the_centre():
    x, y = Geometry(rotate_deg=90.0).affine(100, 100) @ [100.0, 50.0, 1.0]  # the middle of the right side

    assert (x, y) == pytest.approx((50.0, 100.0))  # goes to the middle of the bottom


def test_augmentor_a_erases_up_to_ten_small_rectangles_and_fewer_in_labelled_images():
    image = np.full((200, 200, 3), 90, np.uint8)
    counts = {}
    for preset, p in ((PSM, 0.9), (PSM_LABELLED, 0.7)):
        done = [
            [text for text in apply_preset(image, preset, np.random.default_rng(s)).photometric if "erase" in text]
            for s in range(400)
        ]
        counts[preset.name] = [len(d) for d in done]
        # n ~ U{0..10}, then binomial: variance is p² · 10 + p (1 − p) · 5
        error = ((p * p * 10 + p * (1 - p) * 5) / 400) ** 0.5
        assert abs(np.mean(counts[preset.name]) - 5 * p) < 4 * error
        boxes = np.array([list(map(int, text.split()[1:])) for d in done for text in d])
        sides = boxes[:, 2:] - boxes[:, :2]
        area = sides.prod(axis=1) / 40000
        aspect = sides[:, 1] / sides[:, 0]
        assert area.min() > 0.0007
        assert area.max() < 0.0046  # 0.001 to 0.004, in whole pixels
        assert aspect.min() > 0.15
        assert aspect.max() < 6.5
        # uniform, not log-uniform: the mean is that of U(0.2, 5); rounding to whole pixels moves it little
        assert np.mean(aspect) == pytest.approx(2.6, abs=0.2)
    assert max(counts["psm"]) == 10
    assert min(counts["psm"]) == 0


def test_an_erasing_may_be_filled_with_the_mean_colour():
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    preset = replace(PLAIN, erase_fill="mean", erasings=(replace(STRONG.erasings[0], p=1.0),))

    view = apply_preset(image, preset, np.random.default_rng(1))

    x0, y0, x1, y1 = map(int, view.photometric[0].split()[1:])
    assert (view.image[y0:y1, x0:x1] == np.rint(image.mean(axis=(0, 1)))).all()


@pytest.mark.parametrize("world", [2, 3])
def test_the_shares_of_all_ranks_together_are_the_batch_of_one_process(world):
    plan = ViewPlan({"weak": STRONG}, {"weak": WEAK, "strong": STRONG})
    pool = Painted()
    whole = batches(plan, INSTANCE, unlabelled=pool, sizes=(4, 6)).batch(5)
    shares = [
        batches(plan, INSTANCE, unlabelled=pool, sizes=(4, 6), share=(rank, world)).batch(5) for rank in range(world)
    ]

    for view, name in ((whole.labelled.weak, "labelled"), (whole.unlabelled.weak, "unlabelled")):
        mine = [getattr(share, name).weak for share in shares]
        assert torch.equal(torch.cat([v.image for v in mine]), view.image)
        assert torch.equal(torch.cat([v.keys for v in mine]), view.keys)
    boxes = [t.boxes for share in shares for t in share.labelled.weak.targets]
    assert all(torch.equal(a, t.boxes) for a, t in zip(boxes, whole.labelled.weak.targets, strict=True))


def test_a_rank_without_a_labelled_image_is_refused():
    with pytest.raises(ValueError, match="share"):
        LoaderSettings(0, SIDE, 2, 2, share=(0, 3))


def labelled_hashes(name: str, task: str, **config) -> list[str]:
    """Hashes of all that the labelled batches 0 to 3 of seed 7 hold under the name weak."""
    kind = find_method(name)
    spec = SEMANTIC if task == "semantic" else INSTANCE
    if task == "detection":
        spec = NetSpec.model_validate({"architecture": "faster-rcnn-mobilenetv2-fpn", "classes": CLASSES})
    method = kind(spec, kind.Config(**config), seed=7)
    unlabelled = Painted(size=(130, 130), count=9) if kind.uses_unlabelled else None
    source = batches(method.views(), spec, unlabelled=unlabelled, seed=7, sizes=(2, 2))
    found = []
    for t in range(4):
        view = source.batch(t).labelled.weak
        parts = [view.image, view.affine, view.keys]
        parts += [] if view.labels is None else [view.labels]
        for targets in view.targets:
            parts += [targets.boxes, targets.labels] + ([] if targets.masks is None else [targets.masks])
        found.append(hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest())
    return found


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_labelled_batches_of_a_seed_are_the_same_sequence_for_every_method(name):
    for task in sorted(find_method(name).tasks):
        found = labelled_hashes(name, task)

        assert found == labelled_hashes("supervised", task)
        assert len(set(found)) == 4


def test_another_labelled_view_is_another_sequence():
    assert labelled_hashes("supervised", "semantic") != labelled_hashes("supervised", "semantic", view="jittered")


def test_a_recipes_labelled_view_is_given_to_every_method_alike():
    plans = [find_method(name).views for name in ("supervised", "dual-alignment")]
    assert all(callable(plan) for plan in plans)

    plan = ViewPlan(unlabelled={"weak": STRONG}).with_labelled(CDCL_WEAK)

    assert plan.labelled == {"weak": CDCL_WEAK}
    assert plan.unlabelled == {"weak": STRONG}


def test_bilinear_pixels_of_a_rotated_view_lie_where_the_affine_says():
    """A smooth picture: each pixel of the view equals the source at the mapped place."""
    y, x = np.mgrid[:300, :300]
    picture = (120 + 60 * np.sin(x / 25) + 50 * np.cos(y / 31)).astype(np.uint8)
    image = cv2.cvtColor(picture, cv2.COLOR_GRAY2RGB)
    geometry = Geometry(hflip=True, rotate_deg=11.0, scale=0.9)

    view = geometry.warp(image, (120, 120), (0, 0, 0))[..., 0].astype(float)

    back = np.linalg.inv(np.vstack([geometry.affine(300, 300, (120, 120)), [0, 0, 1]]))
    rows, columns = np.mgrid[:120, :120] + 0.5
    at = back @ np.stack([columns.ravel(), rows.ravel(), np.ones(120 * 120)])
    wanted = 120 + 60 * np.sin((at[0] - 0.5) / 25) + 50 * np.cos((at[1] - 0.5) / 31)
    assert np.abs(view.ravel() - wanted).max() < 3.0
