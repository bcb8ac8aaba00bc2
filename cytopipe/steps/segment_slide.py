"""One slide and a semantic model: `semantic.zarr`, `report.html` and `run.json` of its results folder (DESIGN 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cytopipe.core.progress import OnProgress, silent
from cytopipe.formats.results import write_run_json
from cytopipe.formats.semantic_zarr import SEMANTIC_NAME, read_overview
from cytopipe.infer.segment import Segmented, Segmenter
from cytopipe.report.semantic_page import THUMBNAIL_PX, ClassMap, write_semantic_report
from cytopipe.slides import Foreground, MppView, Slide, thumbnail

REPORT_NAME = "report.html"
OVERVIEW_PX = 2 * THUMBNAIL_PX  # of the labels behind the report's picture: finer than it, at most twice


def segment_slide(
    segmenter: Segmenter,
    slide: Slide,
    view: MppView,
    folder: Path,
    *,
    facts: dict[str, Any],
    warnings: list[str],
    foreground: Foreground | None = None,
    probabilities: bool = False,
    on_progress: OnProgress = silent,
    **how: Any,
) -> Segmented:
    """Write the results folder of one slide.

    facts     what run.json begins with: command, slide (with slide_id), model, device, ...; it gets windows, map, areas
              (px and mm² by class), blending, warnings and seconds, and `seconds` it brings come first
    warnings  what was said of the slide before; those of the segmentation are added to the list
    how       further keywords of `Segmenter.segment`
    """
    found = segmenter.segment(
        slide,
        view,
        folder / SEMANTIC_NAME,
        foreground=foreground,
        probabilities=probabilities,
        on_progress=on_progress,
        **how,
    )
    warnings += found.warnings
    if not any(area.px for area in found.areas):
        warnings.append("no pixel of this slide has a class")
    facts = {
        **{key: value for key, value in facts.items() if key != "seconds"},
        **found.facts(),
        "warnings": warnings,
        "seconds": {**facts.get("seconds", {}), **found.seconds},
    }
    _report(folder, slide, found, facts, warnings)
    write_run_json(folder, facts)
    return found


def _report(folder: Path, slide: Slide, found: Segmented, facts: dict[str, Any], warnings: list[str]) -> None:
    labels, factor = read_overview(folder / SEMANTIC_NAME, OVERVIEW_PX)
    scale_x, scale_y = found.frame.slide_px_per_px
    um_x, um_y = found.frame.um_per_px
    write_semantic_report(
        folder / REPORT_NAME,
        slide_id=facts["slide"]["slide_id"],
        class_map=ClassMap(tuple(a.name for a in found.areas), labels, (scale_x * factor, scale_y * factor)),
        areas_mm2={area.name: area.mm2 for area in found.areas},
        other_mm2={area.name: area.mm2 for area in (found.background, found.not_searched)},
        thumbnail=thumbnail(slide, THUMBNAIL_PX),
        slide_size=slide.dimensions,
        mpp=(um_x / scale_x, um_y / scale_y),
        slide_facts=facts["slide"],
        run_facts={key: facts[key] for key in ("model", "device", "windows", "blending") if key in facts},
        warnings=warnings,
    )
