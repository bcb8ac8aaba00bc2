"""The report of a training run: its curves, its pseudo-labels in numbers, and pictures with what was there, what
student and teacher found, and what the student was taught.

Enters: the rows of metrics.jsonl, sample images.  Leaves: one self-contained HTML file.

A row is {"t": iteration, group: {name: number or {...}}, ...}; groups and names that a row lacks were not logged then.
A number that stands directly in a row is a group of its own. Names may hold "/", which counts as nesting:
{"val/student/AP50": 0.4}. Names that differ in what stands in brackets share a chart: pseudo_labels[LSIL].
`warnings` of a row are sentences of the collapse detector.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cytopipe.formats.colours import class_colours, hex_of
from cytopipe.report.charts import Points, line_chart
from cytopipe.report.encode import escaped, number, swatch
from cytopipe.report.page import fact_list, figures, section, warning_list, write_page
from cytopipe.report.panels import Sample, sample_section

__all__ = ["Sample", "write_train_report"]

BY_CLASS = "val by class"
SECTIONS = {  # title -> groups of the log, or names within "signals", in the order of the page
    "Validation": ("val",),
    "Losses": ("total", "losses"),
    "Pseudo-labels": (
        "signals:pseudo_labels_per_image",
        "signals:images_without_pseudo_label_fraction",
        "signals:max_confidence",
        "signals:pseudo_labels",
        "signals:labelled",
        "signals:embedding_std",
        "signals:adapter_norm",
        "signals:disagreement",
    ),
    "Further signals of the method": ("signals",),
    "Weights of the losses, EMA of the teacher, learning rate": ("weights", "alpha", "lr"),
    "Validation by class": (BY_CLASS,),
    "Pace and gradients": ("seconds", "grad_norm", "loss_scale"),
}
TITLES = {
    "pseudo_labels_per_image": "pseudo-labels an image",
    "images_without_pseudo_label_fraction": "share of images without",
    "max_confidence": "mean of the largest probability",
    "pseudo_labels": "pseudo-labels by class",
    "labelled": "labelled, by class",
    "embedding_std": "standard deviation of embeddings",
    "adapter_norm": "norm of the adapter's output",
    "disagreement": "teacher and student disagree",
    "alpha": "α of the teacher",
    "lr": "learning rate",
    "total": "sum of the losses by their weights",
    "seconds": "seconds an iteration",
    "grad_norm": "norm of the gradient",
    "loss_scale": "scale of the loss (fp16)",
}
LAST_SHARE = 0.2  # of the run: what the table of pseudo-labels counts


def write_train_report(
    path: Path,
    *,
    title: str,
    metrics: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample] = (),
    pseudo_samples: Sequence[Sample] = (),
    key_figures: Sequence[tuple[str, str, str]] = (),
    facts: Mapping[str, object],
    warnings: Sequence[str] = (),
) -> None:
    """Write report.html of a run folder.

    title           the run, e.g. 'dual-alignment'
    metrics         rows by ascending "t", see above; values that are not finite break their curve
    samples         validation images: truth, student, teacher
    pseudo_samples  unlabelled images: what the student was taught
    key_figures     (label, value, remark), plain text each
    facts           what was trained on what; mappings inside become groups
    warnings        besides those in the rows
    """
    last = max((int(row["t"]) for row in metrics), default=0)
    curves = _curves(metrics) or [section("Curves", '<p class="empty">Nothing was logged yet.</p>')]
    said = [*warnings, *(f"Iteration {row['t']}: {line}" for row in metrics for line in row.get("warnings", ()))]
    body = [
        warning_list(said),
        figures(key_figures) if key_figures else "",
        *curves,
        sample_section(
            "Validation images",
            samples,
            note="What was annotated, and what the networks find as they are at the end of the run.",
            anchor="validation-images",
        ),
        sample_section(
            "Unlabelled images",
            pseudo_samples,
            note="What the method takes for true, and what the networks find, in the view that the teacher sees.",
            anchor="unlabelled-images",
        ),
        section("Run", fact_list(facts)),
    ]
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
    series = _series(metrics)
    titles = dict(SECTIONS)
    known = {group.split(":")[0] for groups in SECTIONS.values() for group in groups}
    titles["Further numbers"] = tuple(sorted({group for group, _ in series} - known))
    own = {tuple(group.split(":")) for groups in SECTIONS.values() for group in groups if ":" in group}
    sections = []
    for title, groups in titles.items():
        mine = {}
        for group in groups:
            name, _, leaf = group.partition(":")
            mine |= {
                key: lines
                for key, lines in series.items()
                if key[0] == name and (key[1] == leaf if leaf else key not in own)
            }
        constant = {leaf: lines for (group, leaf), lines in mine.items() if group == "weights" and _is_constant(lines)}
        charts = [
            line_chart(TITLES.get(leaf, leaf), lines)  # losses and metrics under the names of the log
            for (group, leaf), lines in mine.items()
            if not (group == "weights" and leaf in constant)
        ]
        told = ", ".join(f"{leaf} {number(next(iter(lines.values()))[0][1])}" for leaf, lines in constant.items())
        note = f"Constant: {told}." if told else ""
        table = _class_table(metrics) if title == "Pseudo-labels" else ""
        if any(charts) or note:
            sections.append(section(title, f'<div class="plots">{"".join(charts)}</div>{table}', note=note))
    return sections


def _series(metrics: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Points]]:
    """(group, name) -> line -> points, in the order in which they were first logged."""
    series: dict[tuple[str, str], dict[str, Points]] = {}
    for row in metrics:
        for names, value in _numbers(row):
            if names[0] == "seconds" and "val" in row:
                continue  # what a validation takes would flatten the curve of the iterations
            group, middle, leaf = names[0], " ".join(names[1:-1]), names[-1]
            if group == "val" and len(names) > 3:  # val, network, metric, class: a chart a metric and class
                group, middle, leaf = BY_CLASS, names[1], "/".join(names[2:])
            base, bracket, inside = leaf.partition("[")
            if bracket and inside.endswith("]"):
                middle, leaf = inside[:-1], base
            series.setdefault((group, leaf), {}).setdefault(middle, []).append((float(row["t"]), value))
    return series


def _is_constant(lines: Mapping[str, Points]) -> bool:
    return len({y for points in lines.values() for _, y in points}) == 1


def _numbers(row: Mapping[str, Any], outer: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every number of a row with its path, NaN for None; `t` and what is no number are left out."""
    for key, value in row.items():
        names = (*outer, *_nested(str(key)))
        if isinstance(value, Mapping):
            yield from _numbers(value, names)
        elif value is None:
            yield names, math.nan
        elif names != ("t",) and isinstance(value, (int, float)) and not isinstance(value, bool):
            yield names, float(value)


def _nested(key: str) -> tuple[str, ...]:
    """The parts of a name, "/" within brackets excepted: a class may be called 'LSIL/HSIL'."""
    outside, bracket, inside = key.partition("[")
    *above, last = outside.split("/")
    return (*above, last + bracket + inside)


def _class_table(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Pseudo-labels by class over the last part of the run, beside what is labelled; '' where none were logged."""
    last = max((int(row["t"]) for row in metrics), default=0)
    counts: dict[str, dict[str, float]] = {"pseudo_labels": {}, "labelled": {}}
    for row in metrics:
        if row["t"] >= (1 - LAST_SHARE) * last and isinstance(row.get("signals"), Mapping):
            for key, value in row["signals"].items():
                base, bracket, inside = key.partition("[")
                if bracket and base in counts and isinstance(value, (int, float)) and math.isfinite(value):
                    name = inside.removesuffix("]")
                    counts[base][name] = counts[base].get(name, 0.0) + value
    if not counts["pseudo_labels"]:
        return ""
    names = list(dict.fromkeys([*counts["pseudo_labels"], *counts["labelled"]]))
    colours = class_colours(names)
    shares = {
        base: {name: found.get(name, 0.0) / max(sum(found.values()), 1.0) for name in names}
        for base, found in counts.items()
    }
    rows = "".join(
        f'<tr><th scope="row">{swatch(hex_of(colours[name]))}{escaped(name)}</th>'
        f'<td class="share"><span style="width:{100 * shares["pseudo_labels"][name]:.1f}%;'
        f'background:{hex_of(colours[name])}"></span></td>'
        f"<td>{number(round(counts['pseudo_labels'].get(name, 0.0)))}</td>"
        f"<td>{shares['pseudo_labels'][name]:.1%}</td><td>{shares['labelled'][name]:.1%}</td></tr>"
        for name in names
    )
    return (
        f'<h3 class="of-table">Over the last {LAST_SHARE:.0%} of the run</h3>'
        '<div class="scroll"><table class="classes"><thead><tr><th scope="col">class</th><td></td>'
        '<th scope="col">pseudo-labels</th><th scope="col">share of them</th>'
        f'<th scope="col">share of what is labelled</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )
