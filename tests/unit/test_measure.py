"""Stain and nuclei of cells in a window, against scikit-image on their pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely
from shapely.affinity import translate
from skimage.measure import regionprops

from cytopipe.core.classes import class_named
from cytopipe.core.objects import MEASURES, unmeasured
from cytopipe.formats.rasterise import label_image
from cytopipe.infer import Views, measure, no_views, plan_windows, stitch
from tests.outlines import cells

CLASSES = (class_named("nucleus"), class_named("normal"), class_named("LSIL"))
GLASS = (240.0, 238.0, 244.0)
DENSITY, RATIO = (MEASURES.index(name) for name in ("mean_optical_density", "nucleus_cytoplasm_ratio"))


def views_of(outlines, labels) -> Views:
    geometry = np.empty(len(outlines), object)
    geometry[:] = outlines
    scores = np.full(len(outlines), 0.5, np.float32)
    boxes = np.array([(0, 0, 1, 1) if g is None else g.bounds for g in outlines], np.float64)
    return Views(boxes, np.array(labels, np.int32), scores, np.zeros((len(outlines), 3), np.float32), geometry)


def stained(side: int = 400) -> np.ndarray:
    return np.random.default_rng(11).integers(0, 256, (side, side, 3), dtype=np.uint8)


def test_the_density_of_random_cells_is_the_mean_over_their_pixels():
    rgb, origin = stained(), (1200.0, 2400.0)
    outlines = cells(60, seed=2)
    density = np.mean([np.log10(GLASS[k] / np.maximum(rgb[..., k].astype(float), 1)) for k in range(3)], axis=0)
    views = views_of([translate(outline, *origin) for outline in outlines], [1] * 60)

    measured = measure(views, rgb, origin, GLASS, CLASSES)

    for k, outline in enumerate(outlines):
        labels = label_image(np.array([outline], object), (0, 0, 400, 400))
        for theirs in regionprops(labels, intensity_image=density):
            assert measured[k, DENSITY] == pytest.approx(theirs.intensity_mean, abs=1e-5)
    assert measured.dtype == np.float32


def test_the_nuclei_of_random_cells_are_counted_against_the_rest_of_the_cell():
    rng = np.random.default_rng(6)
    bodies = cells(40, seed=9, radius_px=(30, 60), side_px=20_000)  # far apart
    nuclei = np.array([shapely.Point(body.centroid).buffer(rng.uniform(5, 12)) for body in bodies], object)
    bodies = shapely.union(bodies, nuclei)  # the hole that some have is where the nucleus is
    labels = [1, 2] * 20 + [0] * 40

    measured = measure(views_of([*bodies, *nuclei], labels), stained(8), (0.0, 0.0), None, CLASSES)[:, RATIO]

    for k in range(40):
        x0, y0, x1, y1 = (int(v) for v in (*np.floor(bodies[k].bounds[:2]), *np.ceil(bodies[k].bounds[2:])))
        image = label_image(np.array([bodies[k], nuclei[k]], object), (x0, y0, x1, y1))
        cytoplasm, nucleus = (region.area for region in regionprops(image))
        assert measured[k] == pytest.approx(nucleus / cytoplasm, rel=0.05)  # pixels of a nucleus of 5 px: 4%
        assert measured[k] == pytest.approx(nuclei[k].area / (bodies[k].area - nuclei[k].area), rel=1e-6)
    assert np.isnan(measured[40:]).all()  # a nucleus has no nucleus


def test_a_nucleus_counts_with_the_part_that_lies_in_the_cell_if_that_is_the_larger_part():
    cell, beside = shapely.box(0, 0, 100, 100), shapely.box(95, 0, 200, 100)
    across = shapely.box(80, 40, 105, 60)  # 20 of 25 px in the one, 10 of 25 px in the other

    measured = measure(views_of([cell, beside, across], [1, 1, 0]), stained(8), (0.0, 0.0), None, CLASSES)[:, RATIO]

    assert measured[0] == pytest.approx(400 / 9600)
    assert np.isnan(measured[1])


def test_nuclei_that_overlap_are_counted_once_and_several_together():
    cell = shapely.box(0, 0, 100, 100)
    nuclei = [shapely.box(10, 10, 30, 30), shapely.box(20, 10, 40, 30), shapely.box(60, 60, 80, 80)]

    measured = measure(views_of([cell, *nuclei], [2, 0, 0, 0]), stained(8), (0.0, 0.0), None, CLASSES)

    assert measured[0, RATIO] == pytest.approx(1000 / 9000)


def test_what_cannot_be_known_is_not_made_up():
    cell, nucleus = shapely.box(0, 0, 6, 6), shapely.box(0, 0, 6, 6)
    outside = shapely.box(50, 50, 60, 60)

    measured = measure(views_of([cell, None, outside], [1, 1, 1]), stained(8), (0.0, 0.0), GLASS, CLASSES)
    all_nucleus = measure(views_of([cell, nucleus], [1, 0]), stained(8), (0.0, 0.0), None, CLASSES)

    assert np.isfinite(measured[:, DENSITY]).tolist() == [True, False, False]
    assert np.isnan(measured[:, RATIO]).all()  # no nucleus was found
    assert np.isnan(all_nucleus).all()  # no cytoplasm is left, and on a dark slide nothing absorbs


def test_a_window_that_sees_nothing_measures_nothing():
    assert measure(no_views(3), stained(8), (0.0, 0.0), GLASS, CLASSES).shape == unmeasured(0).shape


def test_an_object_has_what_the_window_measured_that_saw_it_best():
    windows = plan_windows(160, 100, 100, 40)
    views = views_of([shapely.box(70, 30, 84, 50)], [1])  # 16 px from the inner edge of window 0, 10 from that of 1
    seen = {k: replace(views, measures=np.full((1, len(MEASURES)), k, np.float32)) for k in (0, 1)}

    objects = stitch(windows, seen)

    assert objects.measures.tolist() == [[0.0] * len(MEASURES)]
