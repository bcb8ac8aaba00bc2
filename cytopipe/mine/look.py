"""A model looks at a slide, and every window that could be stored gets its score.

Enters: an opened slide and a model.  Leaves: `Candidates`, px of the slide's view at the mining resolution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from cytopipe.core.classes import ObjectClass
from cytopipe.core.objects import Objects
from cytopipe.core.progress import OnProgress, Say, silent, unsaid
from cytopipe.formats.results import suspicion
from cytopipe.mine.choose import Candidates
from cytopipe.mine.config import Place
from cytopipe.mine.score import top_suspicion
from cytopipe.slides import Foreground, MppView, Slide, find_foreground
from cytopipe.tiles import centred_corners, plan_grid, slide_box

Locate = Callable[[Slide, MppView, Foreground, OnProgress], tuple[Objects, tuple[str, ...]]]
"""locate(slide, view at the model's mpp, foreground, on_progress) -> objects in level-0 px, places not readable."""


@dataclass(frozen=True, slots=True)
class Finder:
    """A model as mining needs it: what it is, at which resolution it looks (µm/px, px), and how it finds objects."""

    name: str
    sha256: str
    mpp: float
    tile_px: int
    classes: tuple[ObjectClass, ...]
    locate: Locate


@dataclass(frozen=True, slots=True)
class Windows:
    """The windows to mine: side in px at `mpp` (µm/px), where scored ones lie, least foreground of a random one."""

    tile_px: int
    mpp: float
    place: Place
    min_foreground: float


def load_finder(model: str | Path | None, *, device: str = "auto") -> Finder:
    """The model of a bundle, by name or path (None: the shipped one), ready to look at slides.

    Raises UserError for an unknown bundle, weights that do not fit, or a missing device.
    """
    from cytopipe.infer.predict import Detector  # torch: only who loads a model pays for it
    from cytopipe.nets import load_bundle
    from cytopipe.nets.bundle import DEFAULT_MODEL

    bundle = load_bundle(str(model or DEFAULT_MODEL))
    detector = Detector(bundle, device=device)

    def locate(
        slide: Slide, view: MppView, foreground: Foreground, on_progress: OnProgress
    ) -> tuple[Objects, tuple[str, ...]]:
        findings = detector.locate(slide, view, foreground=foreground, on_progress=on_progress)
        return findings.objects, findings.unreadable

    spec = bundle.spec
    return Finder(spec.name, spec.weights_sha256, spec.mpp, spec.tile_px, spec.net.classes, locate)


def find_candidates(
    slide: Slide,
    slide_id: str,
    finder: Finder,
    windows: Windows,
    *,
    background: Literal["auto", "light", "dark"] = "auto",
    force: bool = False,
    on_progress: OnProgress = silent,
    say: Say = unsaid,
) -> Candidates:
    """Score the windows of a slide: those of the grid, and one centred on each finding.

    background  what stands behind the cells; "auto": judged from the slide's pixels
    force       look at a slide coarser than half of the resolution asked for
    """
    foreground = find_foreground(slide, background)
    objects, unreadable = finder.locate(slide, MppView(slide, finder.mpp, force=force), foreground, on_progress)
    if unreadable:
        say(f"warning: {slide_id}: the model could not look at {len(unreadable)} places, the first: {unreadable[0]}")
    view = MppView(slide, windows.mpp, force=force)
    centres = (objects.xyxy[:, :2] + objects.xyxy[:, 2:]) / 2 / np.array(view.slide_px_per_px)
    suspicions = suspicion(objects.class_scores, finder.classes, objects.score).astype(np.float64)

    tile_px = windows.tile_px
    grid = np.array(list(plan_grid(view.width, view.height, tile_px, 0, "shift").origins()), dtype=np.int64)
    share = foreground.fractions(np.array([slide_box(view, x, y, tile_px) for x, y in grid.tolist()]))
    centred = np.zeros((0, 2), np.int64)
    if windows.place == "centred":
        centred = np.unique(centred_corners(centres, tile_px, view.width, view.height), axis=0)
    corners = np.concatenate([grid, centred])
    on_grid = np.arange(len(corners)) < len(grid)
    return Candidates(
        slide_id,
        corners,
        top_suspicion(corners, tile_px, centres, suspicions),
        on_grid & np.concatenate([share >= windows.min_foreground, np.zeros(len(centred), bool)]),
        on_grid if windows.place == "grid" else ~on_grid,
    )
