"""The oracle's cases as the stitcher's input, and the results of both in one form that can be compared."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import numpy as np
import shapely

from cytopipe.core.objects import JOINED, TRUNCATED, Objects
from cytopipe.infer.stitching import Views, no_views
from cytopipe.infer.windows import Windows
from tests.property import stitch_reference as oracle

KINDS = {0: "whole", JOINED: "joined", TRUNCATED: "truncated"}


def draw_case(seed: int, mode: str, jitter: int = 0):
    """One of the oracle's hard cases with its views, None where this seed gives none. Scores are float32, as ours."""
    rng = random.Random(seed)
    case = oracle.make_case(rng, jitter)
    if case is None:
        return None
    views = oracle.predict(rng, case, mode, jitter)
    for view in views:
        view.score = float(np.float32(view.score))
    return case, views


def windows_of(case) -> Windows:
    """The oracle's grid as ours."""
    (width, height), windows, *_ = case
    starts_x, starts_y = (np.array(sorted({w.box[axis] for w in windows}), dtype=np.int64) for axis in (0, 1))
    side = max(width, height) if len(windows) == 1 else 0
    window_px = side or max(max(w.box[2] - w.box[0], w.box[3] - w.box[1]) for w in windows)
    return Windows(width, height, window_px, starts_x, starts_y)


def views_of(case, views: list[oracle.View], with_masks: bool) -> dict[int, Views]:
    """The oracle's views as ours, for every window of the grid.

    The oracle ends ties by `serial`: it is set to the order of the geometry, by which ours end, so that both agree.
    """
    size, windows, *_ = case
    grouped = group_by_window(views)
    given = {}
    for window in windows:
        reported = grouped[window.index]
        polygons = [polygon_of(view, size) if with_masks else None for view in reported]
        spelled = [shapely.to_wkb(polygon.normalize()) if with_masks else b"" for polygon in polygons]
        for serial, k in enumerate(sorted(range(len(reported)), key=spelled.__getitem__)):
            reported[k].serial = serial
        given[window.index] = as_views(reported, polygons) if reported else no_views(3)
    return given


def as_views(reported: list[oracle.View], polygons: list) -> Views:
    geometry = np.full(len(reported), None, object)
    geometry[:] = polygons
    classes = np.array([v.cls for v in reported], np.int32)
    scores = np.array([v.score for v in reported], np.float32)
    boxes = np.array([v.box for v in reported], np.float64)
    return Views(boxes, classes, scores, np.eye(3, dtype=np.float32)[classes] * scores[:, None], geometry)


def group_by_window(views: list[oracle.View]) -> dict[int, list[oracle.View]]:
    grouped = defaultdict(list)
    for view in views:
        grouped[view.window.index].append(view)
    return grouped


def polygon_of(view: oracle.View, size):
    """A bit mask as the exact union of its pixels."""
    x0, y0, x1, y1 = view.box
    mask = unpack(view.bits, size)[y0:y1, x0:x1]
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, first = np.nonzero(edges == 1)
    last = np.nonzero(edges == -1)[1]
    return shapely.union_all(shapely.box(x0 + first, y0 + rows, x0 + last, y0 + rows + 1))


def unpack(bits: int, size) -> np.ndarray:
    """The inverse of `oracle.pack`, (h, w) bool."""
    width, height = size
    packed = np.frombuffer(bits.to_bytes((width * height + 7) // 8, "big"), np.uint8)
    return np.unpackbits(packed, count=width * height).reshape(height, width).astype(bool)


def results_of(objects: Objects, size, with_masks: bool) -> Counter:
    """The stitcher's results, countable: kind, pixels (their box where there are no masks), class of single views."""
    counted = Counter()
    for k in range(len(objects)):
        kind, box = KINDS[int(objects.flags[k])], tuple(int(b) for b in objects.xyxy[k])
        shape = raster(objects.geometry[k], box, size) if with_masks else box
        counted[kind, shape, int(objects.class_index[k]) if kind != "joined" else None] += 1
    return counted


def results_of_oracle(result, size, with_masks: bool) -> Counter:
    """The oracle's results in the same form."""
    counted = Counter()
    for kind, views in result:
        boxes = np.array([v.box for v in views])
        bits = 0
        for view in views:
            bits |= view.bits
        shape = bits if with_masks else tuple(map(int, (*boxes[:, :2].min(0), *boxes[:, 2:].max(0))))
        counted[kind, shape, views[0].cls if kind != "joined" else None] += 1
    return counted


def raster(geometry, box, size) -> int:
    """The pixels whose centres lie in a polygon, packed as the oracle packs them."""
    mask = np.zeros((size[1], size[0]), bool)
    x0, y0, x1, y1 = box
    xs, ys = np.meshgrid(np.arange(x0, x1) + 0.5, np.arange(y0, y1) + 0.5)
    mask[y0:y1, x0:x1] = shapely.contains_xy(geometry, xs, ys)
    return oracle.pack(mask)
