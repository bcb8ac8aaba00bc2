"""The network at work on a slide. With `segment.py` the only file of this room that knows torch.

Enters: a bundle, an opened slide.  Leaves: located objects in level-0 px, and what happened on the way (windows run and
skipped, places that could not be read).
`mine-unlabeled` and `infer` both use `Detector`; `train` uses `locate_in` for its validation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import shapely
import torch

from cytopipe.core.boxes import F64
from cytopipe.core.errors import RunError, UserError
from cytopipe.core.objects import Objects, concatenate
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.formats.results import shapes_of
from cytopipe.infer.augment import FLOOR_SHARE, ORIENTATIONS, Augmented, Tta
from cytopipe.infer.batches import Batches
from cytopipe.infer.locate import Pace, Sink, search
from cytopipe.infer.located import U8, Glass, Located, Predictor, Viewer
from cytopipe.infer.read_ahead import READ_THREADS, windows_with_foreground
from cytopipe.infer.windows import Windows, default_overlap_px, plan_windows
from cytopipe.nets import Bundle, DetNet, normalise
from cytopipe.slides import Foreground, MppView, Slide
from cytopipe.tiles.regions import Area

__all__ = ["Detector", "Findings", "Located", "choose_device", "locate_in"]

CPU_BATCH_WINDOWS = 1  # [D] a forward pass of 2 windows of 1024 px takes 2.6 times that of 1: they leave the cache
GPU_WINDOWS_PER_GB = 0.5  # [D] of the GPU's memory; what is too much is halved when it shows
MOST_GPU_BATCH_WINDOWS = 16  # [D] of 1024 px: beyond it no GPU that we know is faster


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """A slide's objects (level-0 px; none where a sink took them) and their number, the grid it was read by, and the
    windows that could not be read, each with its place and reason.
    """

    objects: Objects
    count: int
    windows: int
    windows_run: int
    unreadable: tuple[str, ...]
    seconds: dict[str, float] = field(default_factory=dict)


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
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"no such GPU: torch sees {torch.cuda.device_count()}", where=f"--device {name}")
    return device


def locate_in(
    net: DetNet,
    images: Sequence[U8],
    *,
    score_threshold: float,
    nms_iou: float = 0.5,
    max_detections: int = 1000,
    device: torch.device | None = None,
    autocast: torch.dtype | None = None,
) -> list[Located]:
    """What each image (H, W, 3) uint8 holds; all of one size, padded with white to a multiple of the network's stride.
    Boxes in px of the image.

    autocast  the type in which a GPU computes convolutions; None: float32 throughout
    """
    where = device or torch.device("cpu")
    stride = net.spec.stride_px
    height, width = images[0].shape[:2]
    canvas = np.full((len(images), _up(height, stride), _up(width, stride), 3), 255, np.uint8)
    for i, image in enumerate(images):
        canvas[i, :height, :width] = image
    pixels = torch.from_numpy(canvas)
    if where.type == "cuda":
        pixels = pixels.pin_memory().to(where, non_blocking=True)
    mixed: AbstractContextManager[object] = (
        nullcontext() if autocast is None else torch.autocast(where.type, dtype=autocast)
    )
    with torch.inference_mode(), mixed:
        x = normalise(pixels.to(where), net.spec).contiguous(memory_format=torch.channels_last)
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
    """A bundle made ready to look at slides.

    predict        what looks at windows: the bundle's network, unless another predictor was given
    batch_windows  windows of a forward pass
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "auto",
        score_threshold: float | None = None,
        batch_windows: int | None = None,
        threads: int = READ_THREADS,
        tta: Tta = "off",
        predictor: Predictor | None = None,
        say: Say = unsaid,
    ) -> None:
        """
        score_threshold  for every kind, in place of the bundle's own
        batch_windows    windows a forward pass; None: what suits the device
        threads          that decode windows, and as many that outline what was found
        tta              orientations in which each window is looked at
        predictor        in place of the bundle's network
        Raises UserError for a threshold outside [0, 1] or a missing device.
        """
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise UserError(f"--score-threshold {score_threshold:g}", fix="a number from 0 to 1 is expected")
        spec = bundle.spec
        self.bundle, self.threads, self.tta = bundle, threads, tta
        self.device = choose_device(device)
        self.batch_windows = batch_windows or _auto_batch(self.device)
        least = spec.thresholds.score
        self._least_score = np.array(
            [least.get(c.kind, 0.5) if score_threshold is None else score_threshold for c in spec.net.classes]
        )
        floor = float(self._least_score.min())
        one = predictor or self._network(floor * (1.0 if tta == "off" else FLOOR_SHARE))
        self._one_pass = Batches(one, self.batch_windows, (torch.cuda.OutOfMemoryError,), say)
        self.predict: Predictor = self._one_pass
        if tta != "off":
            thresholds = spec.thresholds
            self.predict = Augmented(
                self._one_pass,
                ORIENTATIONS[tta],
                spec.net.kinds,
                thresholds.nms_iou,
                floor,
                thresholds.max_detections,
            )

    def plan(self, view: MppView) -> Windows:
        """The grid of windows over a slide, px of the view."""
        spec = self.bundle.spec
        overlap = min(
            _up(default_overlap_px(spec.max_object_px), spec.net.stride_px), spec.tile_px - spec.net.stride_px
        )
        return plan_windows(view.width, view.height, spec.tile_px, overlap, spec.net.stride_px)

    def wanted(
        self, windows: Windows, view: MppView, foreground: Foreground | None = None, region: Area | None = None
    ) -> list[int]:
        """Numbers of the windows to look at, ascending: those with any foreground, and those that meet the region.

        A window that holds an object uncut holds its centroid too, and so meets the region that the object belongs to:
        nothing beyond is needed, and windows are read whole, past the region's border.
        """
        found = np.array(windows_with_foreground(windows, view, foreground), dtype=np.intp)
        if region is not None:
            found = found[region.meets(windows.boxes[found] * np.tile(view.slide_px_per_px, 2))]
        return [int(index) for index in found]

    def locate(
        self,
        slide: Slide,
        view: MppView,
        *,
        foreground: Foreground | None = None,
        region: Area | None = None,
        sink: Sink | None = None,
        recolour: Callable[[U8], U8] | None = None,
        rows_at_once: int = 1,
        on_progress: OnProgress = silent,
    ) -> Findings:
        """Every object of the slide once, in level-0 px, by y0, x0. Windows without foreground are skipped where a
        foreground is given.

        region        objects with their centroid outside of it are left out
        sink          takes the objects as they become final, so that they need not be held (`locate.Sink`)
        recolour      what is done to the pixels before they are looked at (`stain.recolouring`)
        rows_at_once  rows of windows after which that happens; it changes no object
        Raises RunError when no window can be read. A single one that cannot be is left out and reported, never replaced
        by blank pixels.
        """
        windows = self.plan(view)
        wanted = self.wanted(windows, view, foreground, region)
        kept = _Kept(region, sink)
        spec = self.bundle.spec
        try:
            searched = search(
                view,
                windows,
                wanted,
                self.predict,
                Viewer(spec.net.classes, self._least_score, _glass(slide, foreground)),
                kept.take,
                pace=Pace(self.batch_windows, self.threads, rows_at_once),
                recolour=recolour,
                on_progress=on_progress,
            )
        except RunError as error:
            if error.where:
                raise
            raise RunError(error.what, where=str(slide.path), fix=error.fix) from error
        objects = concatenate(kept.tables, len(spec.net.classes))
        return Findings(objects, kept.count, len(windows), len(wanted), searched.unreadable, searched.seconds)

    def _network(self, score_threshold: float) -> Predictor:
        spec = self.bundle.spec
        net = self.bundle.build().to(self.device).to(memory_format=torch.channels_last)
        autocast = None
        if self.device.type == "cuda":
            autocast = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return partial(
            locate_in,
            net,
            score_threshold=score_threshold,
            nms_iou=spec.thresholds.nms_iou,
            max_detections=spec.thresholds.max_detections,
            device=self.device,
            autocast=autocast,
        )


@dataclass(slots=True)
class _Kept:
    """The objects of the region, on their way to the sink; kept where there is none."""

    region: Area | None
    sink: Sink | None
    tables: list[Objects] = field(default_factory=list)
    count: int = 0

    def take(self, objects: Objects) -> None:
        if self.region is not None:
            objects = objects.take(self.region.contains(_centroids(objects)))
        self.count += len(objects)
        if self.sink is None:
            self.tables.append(objects)
        elif len(objects):
            self.sink(objects)


def _centroids(objects: Objects) -> F64:
    """(N, 2) of what is drawn of each object, or of its box."""
    return np.asarray(shapely.get_coordinates(shapely.centroid(shapes_of(objects))), dtype=np.float64)


def _auto_batch(device: torch.device) -> int:
    if device.type != "cuda":
        return CPU_BATCH_WINDOWS
    gigabytes = torch.cuda.get_device_properties(device).total_memory / 1e9
    return int(np.clip(gigabytes * GPU_WINDOWS_PER_GB, 1, MOST_GPU_BATCH_WINDOWS))


def _glass(slide: Slide, foreground: Foreground | None) -> Glass | None:
    """The slide's glass where it was measured, else white; None on a dark background."""
    if (slide if foreground is None else foreground).background == "dark":
        return None
    return (255.0, 255.0, 255.0) if foreground is None else foreground.glass


def _up(value: float, step: int) -> int:
    """`value` rounded up to a multiple of `step`."""
    return math.ceil(value / step) * step
