"""Slides with known cells for the stitcher's tests, and a predictor that obeys the premise of the rule's promise."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np
import shapely
from hypothesis import strategies as st

from cytopipe.core.objects import Objects, unmeasured
from cytopipe.infer.placed import PlacedWindows
from cytopipe.infer.stitching import Views, no_views
from cytopipe.infer.windows import Windows, plan_windows

CLASSES = 3


@dataclass(frozen=True)
class Cell:
    """One object of the untiled truth. The box is that of the polygon, where there is one."""

    box: tuple[float, float, float, float]
    label: int
    score: float
    polygon: shapely.Polygon | None

    @property
    def longer_side_px(self) -> float:
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


@dataclass(frozen=True)
class Scene:
    """A slide, its windows, and what is on it."""

    windows: Windows | PlacedWindows
    overlap_px: int
    guard_px: int
    cells: list[Cell]

    @property
    def bound_px(self) -> int:
        """The largest side for which the rule promises a whole cell."""
        return self.overlap_px - 2 * self.guard_px


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    """Small slides under all kinds of grids; cells overlap, nest, touch, share a box, lie on seams, where four windows
    meet or on the slide's border, or outgrow the overlap."""
    guard_px, stride_px = draw(st.integers(1, 6)), draw(st.sampled_from([1, 1, 4, 7]))
    overlap_px = draw(st.integers(2 * guard_px + 3, 2 * guard_px + 30))
    window_px = overlap_px + stride_px + draw(st.integers(0, 40))
    width, height = (draw(st.integers(5, 3 * window_px)) for _ in "xy")
    windows = plan_windows(width, height, window_px, overlap_px, stride_px)
    while len(windows) > 60:  # a step of a few px: as hard on a small slide, and quicker
        width, height = max(width // 2, 5), max(height // 2, 5)
        windows = plan_windows(width, height, window_px, overlap_px, stride_px)
    with_masks = draw(st.booleans())
    boxes: list[tuple[float, ...]] = []
    for _ in range(draw(st.integers(1, 10))):
        boxes.append(draw(_boxes(windows, overlap_px - 2 * guard_px, boxes)))
    cells = []
    for box in boxes:
        frame = np.array([width, height] * 2)
        x0, y0, x1, y1 = np.clip(box, 0, frame).tolist()
        if x1 > x0 and y1 > y0:
            label, score = draw(st.integers(0, CLASSES - 1)), draw(st.sampled_from([0.5, 0.75, 0.875]))
            cells.append(Cell((x0, y0, x1, y1), label, score, octagon(x0, y0, x1, y1) if with_masks else None))
    return Scene(windows, overlap_px, guard_px, cells)


@st.composite
def moved_scenes(draw: st.DrawFn) -> Scene:
    """Scenes whose grid begins anywhere above and to the left of the slide, so that its first windows hang over too."""
    scene = draw(scenes())
    windows = scene.windows
    step_px = windows.window_px - scene.overlap_px
    dx, dy = (draw(st.integers(0, min(step_px, windows.window_px - 1))) for _ in "xy")
    grid = plan_windows(windows.width + dx, windows.height + dy, windows.window_px, scene.overlap_px)
    placed = PlacedWindows(grid.boxes - [dx, dy, dx, dy], windows.width, windows.height)
    return replace(scene, windows=placed) if len(placed) <= 100 else scene


@st.composite
def _boxes(draw: st.DrawFn, windows: Windows, bound_px: int, earlier: list[tuple[float, ...]]) -> tuple[float, ...]:
    of_another = ["same", "nested", "shifted", "touching"] if earlier else []
    kind = draw(st.sampled_from(["fresh", "seam", "large", *of_another]))
    if kind in of_another:
        x0, y0, x1, y1 = draw(st.sampled_from(earlier))
        if kind == "touching":  # along an edge, or at a corner
            dx, dy = (draw(st.sampled_from([-1, 0, 1])) * side for side in (x1 - x0, y1 - y0))
            return x0 + dx, y0 + dy, x1 + dx, y1 + dy
        if kind == "nested":
            inset_x, inset_y = (x1 - x0) * draw(st.floats(0, 0.3)), (y1 - y0) * draw(st.floats(0, 0.3))
            return x0 + inset_x, y0 + inset_y, x1 - inset_x, y1
        dx, dy = (draw(st.integers(-12, 12)) / 2 if kind == "shifted" else 0.0 for _ in "xy")
        return x0 + dx, y0 + dy, x1 + dx, y1 + dy
    longest = 2 * windows.window_px if kind == "large" else bound_px
    w, h = (draw(st.integers(2, 2 * longest)) / 2 for _ in "xy")
    if kind == "seam":
        k = draw(st.integers(0, len(windows) - 1))
        x, y = windows.boxes[k, draw(st.sampled_from([0, 2]))], windows.boxes[k, draw(st.sampled_from([1, 3]))]
        x, y = x - w * draw(st.floats(0, 1)), y - h * draw(st.floats(0, 1))
    else:
        x, y = (draw(st.integers(-4, 2 * extent)) / 2 for extent in (windows.width, windows.height))
    return float(x), float(y), float(x) + w, float(y) + h


def octagon(x0: float, y0: float, x1: float, y1: float) -> shapely.Polygon:
    """A box without its corners."""
    a, b = (x1 - x0) / 4, (y1 - y0) / 4
    return shapely.Polygon(
        [(x0 + a, y0), (x1 - a, y0), (x1, y0 + b), (x1, y1 - b), (x1 - a, y1), (x0 + a, y1), (x0, y1 - b), (x0, y0 + b)]
    )


def predict(scene: Scene, rng: random.Random, drop_fraction: float) -> dict[int, Views]:
    """What every window reports: a cell at d >= g/2 as it is; of the others the clip, `drop_fraction` of them not.

    Which cell it is travels along as the first measure: see `numbers_of`.
    """
    boxes = np.array([cell.box for cell in scene.cells]).reshape(-1, 4)
    views = {}
    for k, frame in enumerate(scene.windows.boxes):
        distance = scene.windows.inner_distance(boxes, np.full(len(boxes), k))
        reported = []
        for number, (cell, d) in enumerate(zip(scene.cells, distance, strict=True)):
            if d >= scene.guard_px / 2:
                reported.append((cell, number))
            elif (clip := clipped(cell, frame)) is not None and rng.random() >= drop_fraction:
                reported.append((clip, number))
        rng.shuffle(reported)
        views[k] = numbered_views(reported)
    return views


def numbered_views(reported: list[tuple[Cell, int]]) -> Views:
    """Cells as one window's report, each with the number of the cell of the scene that it is."""
    views, measures = as_views([cell for cell, _ in reported]), unmeasured(len(reported))
    measures[:, 0] = [number for _, number in reported]
    return replace(views, measures=measures)


def numbers_of(table: Objects | Views) -> list[int]:
    """Which cells of the scene the rows are: of joined ones, which the largest piece is."""
    return table.measures[:, 0].astype(int).tolist()


def clipped(cell: Cell, frame) -> Cell | None:
    """The part of a cell that a window shows; None where it shows nothing."""
    if cell.polygon is not None:
        part = cell.polygon.intersection(shapely.box(*frame))
        return Cell(part.bounds, cell.label, cell.score, part) if part.area > 0 else None
    box = (*np.maximum(cell.box[:2], frame[:2]).tolist(), *np.minimum(cell.box[2:], frame[2:]).tolist())
    return Cell(box, cell.label, cell.score, None) if box[2] > box[0] and box[3] > box[1] else None


def as_views(cells: list[Cell]) -> Views:
    """Cells as one window's report."""
    if not cells:
        return no_views(CLASSES)
    geometry = np.full(len(cells), None, object)
    geometry[:] = [cell.polygon for cell in cells]
    labels, scores = np.array([c.label for c in cells], np.int32), np.array([c.score for c in cells], np.float32)
    class_scores = np.eye(CLASSES, dtype=np.float32)[labels] * scores[:, None]
    return Views(np.array([c.box for c in cells], np.float64), labels, scores, class_scores, geometry)


def rows_of(objects: Objects) -> list[tuple]:
    """All that a table of objects says, row by row, in a form that compares and sorts."""
    return [
        (
            *objects.xyxy[k].tolist(),
            int(objects.class_index[k]),
            float(objects.score[k]),
            objects.class_scores[k].tobytes(),
            "" if objects.geometry[k] is None else objects.geometry[k].wkt,
            int(objects.flags[k]),
            int(objects.window[k]),
        )
        for k in range(len(objects))
    ]
