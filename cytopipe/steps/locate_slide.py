"""One slide and a model that locates objects: its results folder, written while the objects come (DESIGN 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.progress import OnProgress, silent
from cytopipe.formats.results import Part, Results, ResultsWriter, WriteOptions, write_run_json
from cytopipe.infer.predict import Detector
from cytopipe.report.infer_page import write_infer_report
from cytopipe.report.summary import SlideSummary
from cytopipe.slides import Foreground, MppView, Slide, thumbnail
from cytopipe.steps.stopwatch import Stopwatch
from cytopipe.tiles.regions import Area

U8 = NDArray[np.uint8]

REPORT_NAME = "report.html"
THUMBNAIL_PX = 1600
MOST_WARNED = 100  # windows that could not be read, each by name; more are counted


def locate_slide(
    detector: Detector,
    slide: Slide,
    view: MppView,
    folder: Path,
    *,
    facts: dict[str, Any],
    warnings: list[str],
    foreground: Foreground | None = None,
    region: Area | None = None,
    write: frozenset[Part],
    options: WriteOptions,
    recolour: Callable[[U8], U8] | None = None,
    on_progress: OnProgress = silent,
) -> SlideSummary:
    """Search a slide and write its results folder: objects as they come, then report.html and run.json.

    facts     what run.json begins with: command, slide (with slide_id), model, ...; `seconds` it brings come first
    warnings  what was said of the slide before; those of the search are added to the list
    """
    clock = Stopwatch()
    slide_id = facts["slide"]["slide_id"]
    classes = detector.bundle.spec.net.classes
    mpp = None if slide.resolution is None else (slide.resolution.mpp_x, slide.resolution.mpp_y)
    summary = SlideSummary(classes, mpp, slide.dimensions)

    def count_in(group: Results) -> None:
        summary.add(group.objects, group.object_ids)

    with ThreadPoolExecutor(1, thread_name_prefix="thumbnail") as beside:
        picture = beside.submit(thumbnail, slide, THUMBNAIL_PX)
        with (
            clock("search and write"),
            ResultsWriter(
                folder,
                slide_id,
                classes,
                mpp,
                slide.bounds_offset,
                write,
                slide.dimensions,
                options=options,
                on_group=count_in,
            ) as writer,
        ):
            findings = detector.locate(
                slide,
                view,
                foreground=foreground,
                region=region,
                sink=writer.add,
                recolour=recolour,
                on_progress=on_progress,
            )
        warnings += _unreadable(findings.unreadable)
        if not summary.total:
            warnings.append("no object was found on this slide")
        facts = {
            **{key: value for key, value in facts.items() if key != "seconds"},
            "windows": {
                "grid": findings.windows,
                "run": findings.windows_run,
                "unreadable": len(findings.unreadable),
            },
            "counts": {c.name: int(count) for c, count in zip(classes, summary.counts, strict=True)},
            "objects": summary.total,
            "warnings": warnings,
        } | {"seconds": facts.get("seconds", {})}
        with clock("report"):
            _report(folder, slide, summary, facts, warnings, picture.result())
    facts["seconds"] = {**facts["seconds"], **clock.seconds, "of which, beside each other": findings.seconds}
    write_run_json(folder, facts)
    return summary


def _unreadable(reasons: Sequence[str]) -> list[str]:
    lines = [f"a window could not be read and is not searched: {reason}" for reason in reasons[:MOST_WARNED]]
    more = len(reasons) - MOST_WARNED
    return [*lines, *([f"and {more} more windows could not be read"] if more > 0 else [])]


def _report(
    folder: Path,
    slide: Slide,
    summary: SlideSummary,
    facts: dict[str, Any],
    warnings: list[str],
    picture: U8,
) -> None:
    native = MppView(slide, None)  # pads what lies past the border

    def crop(box: tuple[float, float, float, float]) -> U8:
        x0, y0, x1, y1 = (round(value) for value in box)
        return native.read(x0, y0, max(x1 - x0, 1), max(y1 - y0, 1))

    write_infer_report(
        folder / REPORT_NAME,
        slide_id=facts["slide"]["slide_id"],
        summary=summary,
        thumbnail=picture,
        crop=crop,
        slide_facts=facts["slide"],
        run_facts={  # no clock: DESIGN 7
            key: facts[key] for key in ("model", "thresholds", "settings", "device", "windows")
        },
        warnings=warnings,
        bounds_offset=slide.bounds_offset,
    )
