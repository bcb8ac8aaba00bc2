"""The network at work on a slide: windows are read ahead, predicted in batches, and handed to the stitcher. The only
file of this room that knows torch.

Enters: a bundle, an opened slide.  Leaves: located objects in level-0 px, and what happened on the way (windows run and
skipped, places that could not be read).
`mine-unlabeled` and `infer` both use this loop; `train` uses `locate_in` for its validation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from cytopipe.core.boxes import F64
from cytopipe.core.errors import RunError, UserError
from cytopipe.core.objects import Objects, concatenate, no_objects
from cytopipe.core.progress import OnProgress, silent
from cytopipe.infer.frames import scale_objects
from cytopipe.infer.masks import polygons_from_roi_masks
from cytopipe.infer.stitching import Stitcher, Views
from cytopipe.infer.windows import GUARD_PX, Windows, default_overlap_px, plan_windows
from cytopipe.nets import Bundle, DetNet, normalise
from cytopipe.slides import Foreground, MppView, Slide

U8 = NDArray[np.uint8]

BATCH_WINDOWS = (
    2  # [D] windows a forward pass: larger batches are no faster on two cores; fixed, since the last bits depend on it
)
READ_THREADS = 2


@dataclass(frozen=True, slots=True, eq=False)
class Located:
    """What one image holds, best first: boxes (n, 4) float64 px, scores (n,), labels (n,) 1..C, class_scores (n, C),
    masks (n, 28, 28) or None.
    """

    boxes: F64
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    class_scores: NDArray[np.float32]
    masks: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """A slide's objects (level-0 px), the grid it was read by, and the windows that could not be read, each with its
    reason.
    """

    objects: Objects
    windows: int
    windows_run: int
    unreadable: tuple[str, ...]
    seconds: dict[str, float]


def choose_device(name: str) -> torch.device:
    """`auto`: the GPU if there is one. Raises UserError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device {name!r}", fix="auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("no GPU that torch can use on this machine", where=f"--device {name}", fix="--device cpu")
    return device


def locate_in(
    net: DetNet,
    images: Sequence[U8],
    *,
    score_threshold: float,
    nms_iou: float = 0.5,
    max_detections: int = 1000,
    device: torch.device | None = None,
) -> list[Located]:
    """What each image (H, W, 3) uint8 holds; all of one size, padded with white to a multiple of the network's stride.
    Boxes in px of the image.
    """
    where = device or torch.device("cpu")
    stride = net.spec.stride_px
    height, width = images[0].shape[:2]
    canvas = np.full((len(images), _up(height, stride), _up(width, stride), 3), 255, np.uint8)
    for i, image in enumerate(images):
        canvas[i, :height, :width] = image
    with torch.inference_mode():
        x = normalise(torch.from_numpy(canvas).to(where), net.spec).contiguous(memory_format=torch.channels_last)
        found = net.detect(
            net.extract(x),
            [(height, width)] * len(images),
            score_threshold=score_threshold,
            nms_iou=nms_iou,
            max_detections=max_detections,
        )
    return [
        Located(
            d.boxes.double().cpu().numpy(),
            d.scores.float().cpu().numpy(),
            d.labels.cpu().numpy(),
            d.class_scores.float().cpu().numpy(),
            None if d.masks is None else d.masks.float().cpu().numpy(),
        )
        for d in found
    ]


class Detector:
    """A bundle made ready to look at slides."""

    def __init__(self, bundle: Bundle, *, device: str = "auto", score_threshold: float | None = None) -> None:
        """score_threshold: for every kind, in place of the bundle's own. Raises UserError for one outside [0, 1] or a
        missing device.
        """
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise UserError(f"--score-threshold {score_threshold:g}", fix="a number from 0 to 1 is expected")
        self.bundle = bundle
        self.device = choose_device(device)
        self.net = bundle.build().to(self.device).to(memory_format=torch.channels_last)
        thresholds = bundle.spec.thresholds.score
        self._cut = np.array(
            [
                thresholds.get(c.kind, 0.5) if score_threshold is None else score_threshold
                for c in bundle.spec.net.classes
            ]
        )

    def plan(self, view: MppView) -> Windows:
        """The grid of windows over a slide, px of the view."""
        spec = self.bundle.spec
        overlap = min(
            _up(default_overlap_px(spec.max_object_px), spec.net.stride_px), spec.tile_px - spec.net.stride_px
        )
        return plan_windows(view.width, view.height, spec.tile_px, overlap, spec.net.stride_px)

    def locate(
        self, slide: Slide, view: MppView, *, foreground: Foreground | None = None, on_progress: OnProgress = silent
    ) -> Findings:
        """Every object of the slide once, in level-0 px. Windows without foreground are skipped where a foreground is
        given.

        Raises RunError when no window can be read. A single one that cannot be is left out and reported, never replaced
        by blank pixels.
        """
        windows = self.plan(view)
        wanted = self._wanted(windows, view, foreground)
        classes = len(self.bundle.spec.net.classes)
        ran = np.zeros(len(windows), bool)
        ran[wanted] = True
        stitcher = Stitcher(windows, GUARD_PX, ran)
        tables: list[Objects] = []
        unreadable: list[str] = []
        clock = _Stopwatch()
        for done, (index, image) in enumerate(self._read_ahead(view, windows, wanted, unreadable, clock), start=1):
            views = self._look(index, image, windows, clock) if image is not None else None
            with clock("stitch"):
                if views is None:
                    stitcher.leave_out(index)  # it saw nothing, so that it must not outvote its neighbours
                else:
                    stitcher.add(index, views)
                if done % windows.columns == 0:
                    tables.append(stitcher.completed())
            on_progress(done, len(wanted), "windows")
        if len(wanted) and len(unreadable) == len(wanted):
            raise RunError(f"no window of the slide can be decoded; the first: {unreadable[0]}", where=str(slide.path))
        with clock("stitch"):
            tables.append(stitcher.finish() if len(wanted) else no_objects(classes))
            objects = scale_objects(concatenate([t for t in tables if len(t)], classes), view.slide_px_per_px)
        return Findings(objects, len(windows), len(wanted), tuple(unreadable), clock.seconds)

    def _wanted(self, windows: Windows, view: MppView, foreground: Foreground | None) -> list[int]:
        if foreground is None:
            return list(range(len(windows)))
        sx, sy = view.slide_px_per_px
        return [
            i
            for i, (x0, y0, x1, y1) in enumerate(windows.boxes.tolist())
            if foreground.fraction(x0 * sx, y0 * sy, x1 * sx, y1 * sy) > 0
        ]

    def _read_ahead(
        self, view: MppView, windows: Windows, wanted: list[int], unreadable: list[str], clock: _Stopwatch
    ) -> Iterator[tuple[int, U8 | None]]:
        """Windows in scan order, read by threads while the network works; None for one that cannot be decoded."""
        size = windows.window_px
        x0, y0 = windows.x0, windows.y0
        with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="windows") as executor:
            pending: list[tuple[int, Future[U8]]] = []
            upcoming = iter(wanted)

            def fill() -> None:
                while len(pending) < 2 * READ_THREADS and (index := next(upcoming, None)) is not None:
                    pending.append((index, executor.submit(view.read, int(x0[index]), int(y0[index]), size, size)))

            fill()
            try:
                while pending:
                    index, future = pending.pop(0)
                    fill()
                    try:
                        with clock("wait for pixels"):
                            image: U8 | None = future.result()
                    except RunError as error:
                        unreadable.append(str(error))
                        image = None
                    yield index, image
            finally:
                for _, future in pending:
                    future.cancel()

    def _look(self, index: int, image: U8, windows: Windows, clock: _Stopwatch) -> Views:
        """What one window reports, px of the view with the origin at the slide's corner."""
        spec = self.bundle.spec
        with clock("network"):
            found = locate_in(
                self.net,
                [image],
                score_threshold=float(self._cut.min()),
                nms_iou=spec.thresholds.nms_iou,
                max_detections=spec.thresholds.max_detections,
                device=self.device,
            )[0]
        with clock("masks"):
            x0, y0 = float(windows.x0[index]), float(windows.y0[index])
            frame = np.array(
                [0, 0, min(windows.window_px, windows.width - x0), min(windows.window_px, windows.height - y0)]
            )
            return self._views(found, np.array([x0, y0, x0, y0]), frame)

    def _views(self, found: Located, origin: F64, frame: F64) -> Views:
        class_index = (found.labels - 1).astype(np.int32)
        boxes = np.concatenate([np.maximum(found.boxes[:, :2], 0), np.minimum(found.boxes[:, 2:], frame[2:])], axis=1)
        keep = (found.scores >= self._cut[class_index]) & ((boxes[:, 2:] - boxes[:, :2]) >= 1).all(axis=1)
        geometry: Any = np.full(int(keep.sum()), None, object)
        moved = boxes[keep] + origin
        if found.masks is not None:
            geometry = polygons_from_roi_masks(found.masks[keep], found.boxes[keep] + origin)
            moved, geometry = _boxes_of(geometry, moved, origin, frame)
        return Views(moved, class_index[keep], found.scores[keep], found.class_scores[keep], geometry)


class _Stopwatch:
    """Seconds by stage: `with clock("network"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._open: list[tuple[str, float]] = []

    def __call__(self, stage: str) -> _Stopwatch:
        self._open.append((stage, 0.0))
        return self

    def __enter__(self) -> None:
        self._open[-1] = (self._open[-1][0], time.perf_counter())

    def __exit__(self, *_: object) -> None:
        stage, start = self._open.pop()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)


def _boxes_of(geometry: Any, boxes: F64, origin: F64, frame: F64) -> tuple[F64, Any]:
    """The box of an object is the box of what is drawn of it, cut to the window; where the mask is empty the network's
    box stands.
    """
    limits = frame + origin
    known = ~shapely.is_missing(geometry)
    clipped = geometry.copy()
    clipped[known] = shapely.clip_by_rect(geometry[known], *limits)
    usable = known & (shapely.area(clipped) > 0)
    result = boxes.copy()
    result[usable] = shapely.bounds(clipped[usable])
    kept = np.full(len(geometry), None, object)
    kept[usable] = [_polygonal(g) for g in clipped[usable]]
    return result, kept


def _polygonal(geometry: Any) -> Any:
    if geometry.geom_type in ("Polygon", "MultiPolygon") and geometry.is_valid:
        return geometry
    fixed = shapely.make_valid(geometry)
    parts = [g for g in getattr(fixed, "geoms", [fixed]) if g.geom_type in ("Polygon", "MultiPolygon")]
    return shapely.union_all(parts)


def _up(value: float, step: int) -> int:
    """`value` rounded up to a multiple of `step`."""
    return math.ceil(value / step) * step
