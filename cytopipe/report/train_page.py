"""The report of a training run: its curves, and pictures with what was there and what was found.

Enters: the rows of metrics.jsonl, sample images.  Leaves: one self-contained HTML file.

A row is {"t": iteration, group: {name: number or {...}}, ...}; groups and names that a row lacks were not logged then.
Groups in the order of the page: val, total, losses, weights, lr, signals, seconds, then any other. A number that stands
directly in a row is a group of its own. Names may hold "/", which counts as nesting: {"val/student/AP50": 0.4}.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cytopipe.formats.colours import class_colours, hex_of
from cytopipe.report.charts import Points, line_chart
from cytopipe.report.encode import U8, escaped, fit, jpeg_uri, number, swatch
from cytopipe.report.page import fact_list, section, warning_list, write_page

SECTIONS = {
    "Validation": ("val",),
    "Losses": ("total", "losses"),
    "Signals of the method": ("signals",),
    "Weights of the losses, learning rate": ("weights", "lr"),
    "Seconds an iteration": ("seconds",),
}
SAMPLE_PX = 640


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image with what the annotators and the network say of it. All boxes (n, 4) x0 y0 x1 y1, px of the image.

    image             (h, w, 3) uint8 RGB
    truth             boxes with their class names
    found             boxes with their class names and scores in [0, 1]
    caption           plain text below the image
    """

    image: U8
    truth_boxes: NDArray[np.float64]
    truth_names: Sequence[str]
    found_boxes: NDArray[np.float64]
    found_names: Sequence[str]
    found_scores: Sequence[float]
    caption: str = ""

    def __post_init__(self) -> None:
        if len(self.truth_boxes) != len(self.truth_names):
            raise ValueError(f"Sample: {len(self.truth_boxes)} true boxes, {len(self.truth_names)} names")
        if not len(self.found_boxes) == len(self.found_names) == len(self.found_scores):
            found = f"{len(self.found_boxes)} boxes, {len(self.found_names)} names, {len(self.found_scores)} scores"
            raise ValueError(f"Sample: found {found}")


def write_train_report(
    path: Path,
    *,
    title: str,
    metrics: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample] = (),
    facts: Mapping[str, object],
    warnings: Sequence[str] = (),
) -> None:
    """Write report.html of a run folder.

    title      the run, e.g. 'dual-alignment'
    metrics    rows by ascending "t", see above; values that are not finite break their curve
    facts      what was trained on what; mappings inside become groups
    """
    last = max((int(row["t"]) for row in metrics), default=0)
    curves = _curves(metrics) or [section("Curves", '<p class="empty">Nothing was logged yet.</p>')]
    body = [warning_list(warnings), *curves, _samples(samples), section("Run", fact_list(facts))]
    write_page(
        path,
        kind="Training report",
        title=title,
        subtitle=f"{number(last)} iterations",
        body=body,
        scripts=["charts.js"],
    )


def _curves(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    """A section a kind of number. What shares group and last name shares a chart: student's and teacher's AP50, say.

    Weights that never change are told in a line: a chart of a constant hides the ones that ramp.
    """
    series: dict[tuple[str, str], dict[str, Points]] = {}
    for row in metrics:
        for names, value in _numbers(row):
            if names[0] == "seconds" and "val" in row:
                continue  # what a validation takes would flatten the curve of the iterations
            group, middle, leaf = names[0], " ".join(names[1:-1]), names[-1]
            series.setdefault((group, leaf), {}).setdefault(middle, []).append((float(row["t"]), value))
    known = {group for groups in SECTIONS.values() for group in groups}
    titles = {**SECTIONS, "Further numbers": tuple(sorted({group for group, _ in series} - known))}
    sections = []
    for title, groups in titles.items():
        mine = {key: lines for group in groups for key, lines in series.items() if key[0] == group}
        constant = {leaf: lines for (group, leaf), lines in mine.items() if group == "weights" and _is_constant(lines)}
        charts = [
            line_chart(leaf.replace("_", " "), lines)
            for (group, leaf), lines in mine.items()
            if not (group == "weights" and leaf in constant)
        ]
        told = ", ".join(f"{leaf} {number(next(iter(lines.values()))[0][1])}" for leaf, lines in constant.items())
        note = f"Constant: {told}." if told else ""
        if any(charts) or note:
            sections.append(section(title, f'<div class="plots">{"".join(charts)}</div>', note=note))
    return sections


def _is_constant(lines: Mapping[str, Points]) -> bool:
    return len({y for points in lines.values() for _, y in points}) == 1


def _numbers(row: Mapping[str, Any], outer: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every number of a row with its path, NaN for None; `t` and what is no number are left out."""
    for key, value in row.items():
        names = (*outer, *str(key).split("/"))
        if isinstance(value, Mapping):
            yield from _numbers(value, names)
        elif value is None:
            yield names, math.nan
        elif names != ("t",) and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield names, float(value)


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    names = sorted({name for s in samples for name in (*s.truth_names, *s.found_names)})
    colours = {name: hex_of(c) for name, c in class_colours(names).items()}
    views = "".join(_sample(sample, colours) for sample in samples)
    key = "".join(f"<span>{swatch(colours[name])}{escaped(name)}</span>" for name in names)
    tools = (
        '<div class="filters" role="group" aria-label="Boxes shown">'
        '<button type="button" data-toggle="truth" aria-pressed="true">Truth</button>'
        '<button type="button" data-toggle="found" aria-pressed="true">Predictions</button></div>'
    )
    note = "Dashed: annotated. Coloured: found by the network, drawn on top, so that what stays dashed was missed."
    content = f'<div class="samples">{views}</div><p class="key">{key}</p>'
    return section("Samples", content, note=note, tools=tools)


def _sample(sample: Sample, colours: Mapping[str, str]) -> str:
    h, w = sample.image.shape[:2]
    truth = "".join(
        f"<g>{_rect(box) * 2}<title>{escaped(name)}</title></g>"
        for box, name in zip(sample.truth_boxes, sample.truth_names, strict=True)
    )
    found = "".join(
        f'<g stroke="{colours[name]}">{_rect(box)}<title>{escaped(name)} {score:.2f}</title></g>'
        for box, name, score in zip(sample.found_boxes, sample.found_names, sample.found_scores, strict=True)
    )
    counts = f"{len(sample.truth_boxes)} annotated, {len(sample.found_boxes)} found"
    caption = f"{escaped(sample.caption)} · {counts}" if sample.caption else counts
    return (
        f'<figure class="sample"><div class="view"><img src="{jpeg_uri(fit(sample.image, SAMPLE_PX))}" '
        f'width="{w}" height="{h}" alt="Sample image, {counts}">'
        f'<svg viewBox="0 0 {w} {h}" preserveAspectRatio="none" aria-hidden="true">'
        f'<g class="truth">{truth}</g><g class="found">{found}</g></svg></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _rect(box: Any) -> str:
    x0, y0, x1, y1 = (float(v) for v in box)
    return f'<rect x="{x0:.1f}" y="{y0:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"/>'
