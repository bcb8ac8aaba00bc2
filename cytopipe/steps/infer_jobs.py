"""What a run of `infer` does to every slide, and each slide of the list looked at before anything is written.

Enters: the settings of the run, the slide list.  Leaves: a `Job` a slide: how many windows it may have, and the facts
by which a later run knows whether it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cytopipe.core.errors import UserError
from cytopipe.core.progress import OnProgress, Say
from cytopipe.formats.results import Part, WriteOptions
from cytopipe.infer.predict import Detector
from cytopipe.infer.segment import Segmenter
from cytopipe.nets import BundleSpec
from cytopipe.slides import MppView, Showing, Slide, SlideEntry, open_slide
from cytopipe.steps.annotation_files import AnnotationReader, files_of
from cytopipe.steps.first_look import facts_of, seen_or_noted
from cytopipe.tiles import region_of_interest
from cytopipe.tiles.regions import Area


@dataclass(frozen=True, slots=True)
class How:
    """What is the same for every slide of the run.

    sha256  of a file; asked once for one that serves many slides
    """

    model: Detector | Segmenter
    foreground: bool
    roi: str | None
    annotations: AnnotationReader
    mpp_override: float | None
    reader: str
    showing: Showing
    background: Literal["auto", "light", "dark"]
    write: frozenset[Part]
    options: WriteOptions
    probabilities: bool
    stain: bool
    threads: int
    sha256: Callable[[Path], str]
    say: Say

    @property
    def spec(self) -> BundleSpec:
        """The model's description."""
        return self.model.bundle.spec

    def open(self, entry: SlideEntry) -> Slide:
        """The slide of an entry. Raises as `open_slide`."""
        mpp = entry.mpp or self.mpp_override
        return open_slide(entry.path, reader=self.reader, mpp_override=mpp, showing=self.showing)

    def view(self, slide: Slide) -> MppView:
        """The slide as the model sees it. Raises UserError where it has no resolution, or one that is too coarse."""
        try:
            return MppView(slide, self.spec.mpp)
        except UserError as error:
            if slide.resolution is None:
                raise
            fix = f"model {self.spec.name} needs slides of about {self.spec.mpp:g} µm/px or finer"
            raise UserError(error.what, where=error.where or str(slide.path), fix=fix) from error

    def region(self, annotations: Path | None, entry: SlideEntry, slide: Slide) -> Area | None:
        """The regions of interest of a slide, level-0 px; None where none are asked for. Raises UserError where the
        slide has none.
        """
        if self.roi is None:
            return None
        found = self.annotations.read(annotations, entry, slide) if annotations else None
        return region_of_interest(found.objects if found else (), self.roi)

    def facts(self, slide: Slide, view: MppView, slide_id: str, background: str) -> dict[str, Any]:
        """What run.json says of slide and model, the same whatever was found."""
        spec, resolution = self.spec, slide.resolution
        settings: dict[str, Any] = {
            "foreground": self.foreground,
            "roi": self.roi,
            "stain": "normalise" if self.stain else "off",
            "batch_windows": self.model.batch_windows,
        }
        if isinstance(self.model, Detector):
            settings["tta"] = self.model.tta
        return {
            "slide": {
                "slide_id": slide_id,
                "file": slide.path.name,
                "reader": slide.reader,
                "vendor": slide.vendor,
                "size_px": list(slide.dimensions),
                "levels": len(slide.levels),
                "mpp": None if resolution is None else [resolution.mpp_x, resolution.mpp_y],
                "mpp_evidence": None if resolution is None else resolution.source,
                "background": background,
                "icc": self.showing.icc,
                "z": slide.z if slide.z_count > 1 else None,
                "channels": self.showing.channels,
            },
            "model": {
                "name": spec.name,
                "task": spec.task,
                "weights_sha256": spec.weights_sha256,
                "mpp": spec.mpp,
                "mpp_read": view.mpp,
            },
            "thresholds": spec.thresholds.model_dump(mode="json"),
            "settings": settings,
            "device": str(self.model.device),
        }

    def warnings(self, slide: Slide, view: MppView, background: str) -> list[str]:
        """What is unusual about a slide, before it is searched."""
        lines = [*slide.notes, *([view.warning] if view.warning else [])]
        if slide.resolution is not None and slide.resolution.guessed:
            lines.append(f"the resolution is guessed: {slide.resolution.source}")
        trained_on = self.spec.background
        if background != trained_on:
            lines.append(
                f"the slide has a {background} background and the model was trained on {trained_on} ones: expect "
                "nonsense"
            )
        return lines


@dataclass(frozen=True, slots=True)
class Job:
    """One slide of the list.

    windows  how many there are to look at, at most
    facts    what its results depend on beside the run's parameters: when any of it changes, the slide is done again
    error    why it cannot be searched; then without windows and facts
    """

    entry: SlideEntry
    annotations: Path | None
    windows: int
    facts: Mapping[str, Any]
    error: str = ""


class Progress:
    """Windows of one slide as part of all windows of the run, and the objects that were found so far."""

    def __init__(self, on_progress: OnProgress, windows: int) -> None:
        self._on_progress, self._total = on_progress, windows
        self._windows_before = self._objects_before = 0
        self._windows = self._objects = 0

    def of_slide(self, planned: int) -> OnProgress:
        """The callback of the next slide, of which so many windows were expected at most."""
        self._windows_before += self._windows
        self._objects_before += self._objects
        self._windows = self._objects = 0
        expected = planned

        def on_progress(done: int, total: int, unit: str) -> None:
            nonlocal expected
            if unit == "windows":
                self._total += total - expected  # glass is known by now
                expected = total
                self._windows = done
                self._on_progress(self._windows_before + done, self._total, unit)
            else:
                self._objects = done
                self._on_progress(self._objects_before + done, 0, unit)

        return on_progress

    def skip(self, windows: int) -> None:
        """So many windows will not be looked at, since their slide failed."""
        self._total -= max(windows - self._windows, 0)


def jobs_of(entries: Sequence[SlideEntry], annotations: str | Path | None, how: How) -> list[Job]:
    """A job a slide. Raises UserError where annotations are needed and missing, and what is wrong with a lone slide."""
    files: list[Path | None] = [None] * len(entries)
    if how.roi is not None:
        files = files_of(entries, annotations, with_label_images=False)
        if not any(files):
            fix = "give --annotations, or a column annotations in the slide list"
            raise UserError("--roi is asked for, and no slide has annotations", fix=fix)
    elif annotations is not None:
        raise UserError("--annotations is given, and nothing asks for it", fix="give --roi CLASS too")
    return [_look_at(entry, file, how, alone=len(entries) == 1) for entry, file in zip(entries, files, strict=True)]


def _look_at(entry: SlideEntry, annotations: Path | None, how: How, *, alone: bool) -> Job:
    """Look at a slide before anything is written; the error of one of several is noted, not raised."""

    def look() -> Job:
        with how.open(entry) as slide:
            view = how.view(slide)
            if alone:  # of a thousand slides each file is read when its turn comes, once
                how.region(annotations, entry, slide)
            return Job(entry, annotations, len(how.model.plan(view)), facts_of(entry, annotations, how.sha256))

    return seen_or_noted(entry, look, lambda why: Job(entry, annotations, 0, {}, error=why), alone=alone)


def parameters_of(how: How, **more: Any) -> dict[str, Any]:
    """What decides the bytes of the results, as JSON values: run again with others, the folder is refused."""
    return {
        "model": how.spec.weights_sha256,
        "thresholds": how.spec.thresholds.model_dump(mode="json"),
        "foreground": how.foreground,
        "roi": how.roi,
        "reader": how.reader,
        "mpp_override": how.mpp_override,
        "showing": asdict(how.showing),
        "background": how.background,
        "write": sorted(how.write) + ["prob"] * how.probabilities,
        "options": asdict(how.options),
        **more,
    }
