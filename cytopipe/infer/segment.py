"""A semantic network at work on a slide: windows are read ahead, predicted, blended, and written row by row.

Enters: a semantic bundle, an opened slide.  Leaves: `semantic.zarr` (formats/semantic_zarr.py), the area of each class,
and what happened on the way. Beside `predict` the only file of this room that knows torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cytopipe.core.errors import RunError, UserError
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.formats.semantic_zarr import FULL, MapFrame, SemanticWriter
from cytopipe.infer.blending import Blender, Block, default_blend_overlap_px, softmax
from cytopipe.infer.predict import choose_device
from cytopipe.infer.probe import seconds_per_window
from cytopipe.infer.read_ahead import READ_THREADS, place_of, read_ahead, windows_with_foreground
from cytopipe.infer.windows import Windows, plan_windows
from cytopipe.nets import Bundle, normalise
from cytopipe.slides import Foreground, MppView, Slide

U8 = NDArray[np.uint8]
F32 = NDArray[np.float32]

CPU_BATCH_WINDOWS = 1  # [D] a forward pass: more leave the cache; fixed, since the last bits depend on it
GPU_BATCH_WINDOWS = 4  # [D] enough to keep a GPU busy with windows of 1024 px; halved where they do not fit


@dataclass(frozen=True, slots=True)
class ClassArea:
    """How much of the slide has one class."""

    name: str
    px: int
    mm2: float


@dataclass(frozen=True, slots=True)
class Segmented:
    """One slide's class map, as numbers.

    frame                 where the map lies
    areas                 of each class of the model
    background            seen, and of no class
    not_searched          windows skipped or unreadable, as far as no other window sees their place well
    windows, windows_run  of the grid, and those that were read
    unreadable            a reason for each window that could not be read
    radius_px             what the network looks at, px at its mpp
    radius_used_px        what was kept clear of window edges: less where the overlap is less than 2 r + 2
    overlap_px            least overlap of neighbouring windows that was asked for
    seam_difference       largest difference of a probability between windows where both count, over a sample of px
    seam_class_fraction   part of that sample to which they give different classes
    warnings              sentences for who reads the results
    """

    frame: MapFrame
    areas: tuple[ClassArea, ...]
    background: ClassArea
    not_searched: ClassArea
    windows: int
    windows_run: int
    unreadable: tuple[str, ...]
    radius_px: int
    radius_used_px: int
    overlap_px: int
    seam_difference: float
    seam_class_fraction: float
    warnings: tuple[str, ...]
    seconds: dict[str, float]

    def facts(self) -> dict[str, Any]:
        """What run.json says of it: JSON values."""
        parts = (*self.areas, self.background, self.not_searched)
        return {
            "windows": {"grid": self.windows, "run": self.windows_run, "unreadable": len(self.unreadable)},
            "map": {
                "size_px": list(self.frame.size),
                "um_per_px": list(self.frame.um_per_px),
                "slide_px_per_px": list(self.frame.slide_px_per_px),
            },
            "areas": {part.name: {"px": part.px, "mm2": part.mm2} for part in parts},
            "blending": {
                "receptive_field_px": self.radius_px,
                "radius_used_px": self.radius_used_px,
                "overlap_px": self.overlap_px,
                "seam_difference": self.seam_difference,
                "seam_class_fraction": self.seam_class_fraction,
            },
        }


class Segmenter:
    """A semantic bundle made ready to look at slides.

    The network computes in float32 on a GPU too: in half precision, windows would differ at their seams by more than
    the blending promises.
    """

    def __init__(
        self, bundle: Bundle, *, device: str = "auto", batch_windows: int | None = None, say: Say = unsaid
    ) -> None:
        """batch_windows: windows a forward pass; None: what suits the device.

        Raises UserError for a bundle of another task, a missing device, or windows that the network's stride does not
        divide.
        """
        net = bundle.build_segnet()
        self.bundle, self._say = bundle, say
        self.device = choose_device(device)
        self.batch_windows = batch_windows or (GPU_BATCH_WINDOWS if self.device.type == "cuda" else CPU_BATCH_WINDOWS)
        self.net = net.to(self.device).to(memory_format=torch.channels_last)
        self.stride_px = net.spec.stride_px
        if bundle.spec.tile_px % self.stride_px:
            what = f"tile_px {bundle.spec.tile_px} is no multiple of the network's stride, {self.stride_px} px"
            raise UserError(what, where=str(bundle.folder / "model.toml"))

    @property
    def overlap_px(self) -> int:
        """By how much neighbouring windows overlap at least."""
        spec = self.bundle.spec
        overlap_px = default_blend_overlap_px(spec.receptive_field_px, spec.tile_px)
        return min(overlap_px, spec.tile_px - self.stride_px)

    def plan(self, view: MppView) -> Windows:
        """The grid of windows over a slide, px of the view."""
        return plan_windows(view.width, view.height, self.bundle.spec.tile_px, self.overlap_px, self.stride_px)

    def segment(
        self,
        slide: Slide,
        view: MppView,
        path: Path,
        *,
        foreground: Foreground | None = None,
        probabilities: bool = False,
        recolour: Callable[[U8], U8] | None = None,
        threads: int = READ_THREADS,
        on_progress: OnProgress = silent,
    ) -> Segmented:
        """Write the class map of a slide to the folder `path`. Windows without foreground are skipped where a
        foreground is given.

        probabilities  write them too
        recolour       what is done to the pixels before the network sees them
        threads        that read windows; they change nothing else
        Raises UserError for a slide without resolution; RunError when no window can be read, or the disk fails. A
        single window that cannot be read is left out and reported.
        """
        if slide.resolution is None:
            raise UserError("no resolution in the file", where=slide.path.name, fix="give --mpp-override")
        spec = self.bundle.spec
        windows = self.plan(view)
        wanted = windows_with_foreground(windows, view, foreground)
        looked_at = frozenset(wanted)
        scale_x, scale_y = view.slide_px_per_px
        frame = MapFrame(
            (view.width, view.height),
            (scale_x * slide.resolution.mpp_x, scale_y * slide.resolution.mpp_y),
            (scale_x, scale_y),
        )
        names = [c.name for c in spec.net.classes]
        blender = Blender(windows, spec.receptive_field_px, len(names) + 1)
        unreadable: list[str] = []
        seconds = dict.fromkeys(("network and waiting for pixels", "blend and write"), 0.0)
        unseen_px = done = 0
        clock = time.perf_counter()
        with SemanticWriter(path, frame, names, probabilities=probabilities) as writer:
            rows = _Rows(windows, len(names) if probabilities else 0)
            for index, logits in self.logits(view, windows, wanted, unreadable, recolour=recolour, threads=threads):
                seconds["network and waiting for pixels"] += time.perf_counter() - clock
                clock = time.perf_counter()
                block = blender.add(index, logits)
                unseen_px += block.seen.size - int(block.seen.sum())
                if (finished := rows.add(block)) is not None:
                    writer.add_rows(*finished)
                seconds["blend and write"] += time.perf_counter() - clock
                clock = time.perf_counter()
                if index in looked_at:
                    done += 1
                    on_progress(done, len(wanted), "windows")
            if wanted and len(unreadable) == len(wanted):
                raise RunError(
                    f"no window of the slide can be decoded; the first: {unreadable[0]}", where=str(slide.path)
                )
        class_px = writer.class_px.tolist()
        um2 = frame.um_per_px[0] * frame.um_per_px[1]
        areas = [ClassArea(name, px, px * um2 / 1e6) for name, px in zip(names, class_px[1:], strict=True)]
        background_px = class_px[0] - unseen_px
        return Segmented(
            frame=frame,
            areas=tuple(areas),
            background=ClassArea("background", background_px, background_px * um2 / 1e6),
            not_searched=ClassArea("not searched", unseen_px, unseen_px * um2 / 1e6),
            windows=len(windows),
            windows_run=len(wanted),
            unreadable=tuple(unreadable),
            radius_px=spec.receptive_field_px,
            radius_used_px=blender.radius_px,
            overlap_px=self.overlap_px,
            seam_difference=blender.seams.largest,
            seam_class_fraction=blender.seams.other_class_fraction,
            warnings=_warnings(blender, spec.receptive_field_px, unreadable),
            seconds={stage: round(value, 3) for stage, value in seconds.items()},
        )

    def seconds_per_window(self) -> float:
        """About how long the network takes for a window."""
        warm_up = self.device.type == "cuda"
        return seconds_per_window(
            self.logits_of, self.bundle.spec.tile_px, self.stride_px, self.batch_windows, warm_up=warm_up
        )

    def logits_of(self, images: Sequence[U8]) -> list[F32]:
        """Logits (C, H, W) float32 of each of the images (H, W, 3) uint8 of one size, sides multiples of the stride.

        Where the device's memory does not hold a batch, it is halved, for good. Raises RunError when it does not hold
        one window.
        """
        found: list[F32] = []
        while len(found) < len(images):
            part = images[len(found) : len(found) + self.batch_windows]
            try:
                found += list(self._forward(part))
            except torch.cuda.OutOfMemoryError as error:
                if self.batch_windows == 1:
                    what = "the device's memory does not hold one window"
                    raise RunError(what, fix="close what else uses it, or --device cpu") from error
                self.batch_windows //= 2
                self._say(f"warning: the device's memory is full; batches of {self.batch_windows} windows from here on")
        return found

    def _forward(self, images: Sequence[U8]) -> F32:
        pixels = torch.from_numpy(np.stack(images))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        with torch.inference_mode():
            x = normalise(pixels.to(self.device, non_blocking=True), self.net.spec)
            found: F32 = self.net(x.contiguous(memory_format=torch.channels_last)).float().cpu().numpy()
        return found

    def logits(
        self,
        view: MppView,
        windows: Windows,
        wanted: Sequence[int],
        unreadable: list[str],
        *,
        recolour: Callable[[U8], U8] | None = None,
        threads: int = READ_THREADS,
    ) -> Iterator[tuple[int, F32 | None]]:
        """(number, logits (C, h, w)) of every window of the grid in scan order; None for one that is not `wanted`, or
        cannot be read: then its place and the reason are added to `unreadable`.
        """
        # All windows end at the same multiple of the stride, as one window over the whole slide would: what is padded
        # beyond the border is then the same however the slide is cut.
        w, h = (min(windows.window_px, _up(extent, self.stride_px)) for extent in (windows.width, windows.height))
        queue: list[tuple[int, U8 | None]] = []

        def flush() -> Iterator[tuple[int, F32 | None]]:
            images = [image for _, image in queue if image is not None]
            logits = iter(self.logits_of(images)) if images else iter(())
            yield from ((index, None if image is None else next(logits)) for index, image in queue)
            queue.clear()

        reads = read_ahead(view, windows, wanted, (w, h), threads)
        upcoming = next(reads, None)
        waiting = 0
        for index in range(len(windows)):
            if upcoming is None or upcoming[0] != index:
                queue.append((index, None))
            elif isinstance(upcoming[1], RunError):
                unreadable.append(f"{place_of(windows, view, index)}: {upcoming[1]}")
                queue.append((index, None))
                upcoming = next(reads, None)
            else:
                queue.append((index, recolour(upcoming[1]) if recolour else upcoming[1]))
                waiting += 1
                upcoming = next(reads, None)
            if waiting >= self.batch_windows or not waiting:
                yield from flush()
                waiting = 0
        yield from flush()


class _Rows:
    """Blocks put side by side until a row of them is whole: labels, and probabilities of `prob_classes` classes."""

    def __init__(self, windows: Windows, prob_classes: int) -> None:
        self._width, self._prob_classes = windows.width, prob_classes
        self._labels = np.zeros((0, windows.width), dtype=np.uint8)
        self._prob: U8 | None = None

    def add(self, block: Block) -> tuple[U8, U8 | None] | None:
        """The rows (h, width) and (classes, h, width), both uint8, once the block that ends them has come."""
        h, w = block.seen.shape
        if block.x0 == 0:
            self._labels = np.zeros((h, self._width), dtype=np.uint8)
            self._prob = np.zeros((self._prob_classes, h, self._width), dtype=np.uint8) if self._prob_classes else None
        here = np.s_[..., block.x0 : block.x0 + w]
        if block.seen.any():
            self._labels[here] = block.logits.argmax(axis=0)
            if self._prob is not None:
                self._prob[here] = np.rint(softmax(block.logits)[1:] * FULL) * block.seen
        return (self._labels, self._prob) if block.x0 + w == self._width else None


def _warnings(blender: Blender, radius_px: int, unreadable: Sequence[str]) -> tuple[str, ...]:
    lines = [f"a window could not be read and is not searched: {reason}" for reason in unreadable]
    if blender.radius_px < radius_px:
        seams = blender.seams
        lines.append(
            f"the model looks {radius_px} px far and windows keep {blender.radius_px} px clear of their edges: where "
            f"two windows count, probabilities differ by up to {seams.largest:.2g}, and "
            f"{100 * seams.other_class_fraction:.2g}% of the pixels get different classes"
        )
    return tuple(lines)


def _up(value: int, step: int) -> int:
    """`value` rounded up to a multiple of `step`."""
    return -(-value // step) * step
