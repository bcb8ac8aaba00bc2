"""The page over a batch of slides, and the same figures as a table: what became of each slide, how suspicious it is,
how many objects of which class, and the way to its own report.

Enters: one row a slide.  Leaves: index.html and slides.csv beside the slides' folders, the most suspicious slide first.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from cytopipe.core.files import write_text
from cytopipe.formats.colours import class_colours, hex_of
from cytopipe.report.encode import escaped, number, swatch
from cytopipe.report.page import fact_list, figures, section, write_page
from cytopipe.report.summary import SLIDE_SUSPECTS, SUSPICIOUS_FROM

FILTER_FROM = 12  # slides from which the table has a field to find one; fewer stand on a screen together


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One slide of a batch.

    report       path of its page relative to the index, '' where there is none
    counts       objects by class name
    suspicion    of the slide, see `SlideSummary.suspicion`; None where it failed
    suspicious   objects of it whose suspicion is SUSPICIOUS_FROM or more; None likewise
    error        why it failed, '' otherwise
    """

    slide_id: str
    status: Literal["done", "failed"]
    report: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    suspicion: float | None = None
    suspicious: int | None = None
    warnings: int = 0
    error: str = ""

    @property
    def objects(self) -> int:
        """All objects of the slide."""
        return sum(self.counts.values())


def most_suspicious_first(rows: Sequence[IndexRow]) -> list[IndexRow]:
    """By suspicion as it is told, then by the number of suspicious objects, then by name; failed slides at the end."""

    def place(row: IndexRow) -> tuple[bool, float, int, str]:
        return row.suspicion is None, -float(_told(row.suspicion) or 0), -(row.suspicious or 0), row.slide_id

    return sorted(rows, key=place)


def write_index(
    path: Path, rows: Sequence[IndexRow], class_names: Sequence[str], *, title: str, facts: Mapping[str, object]
) -> None:
    """Write index.html: key figures, a row a slide with a link to its report, run facts."""
    failed = sum(row.status == "failed" for row in rows)
    high = sum((row.suspicion or 0) >= SUSPICIOUS_FROM for row in rows)
    values = [
        ("slides", number(len(rows)), "in the list"),
        ("failed", number(failed), "the reasons stand below" if failed else "none"),
        ("suspicious slides", number(high), f"suspicion of {SUSPICIOUS_FROM:g} or more"),
        ("objects", number(sum(row.objects for row in rows)), "on all slides"),
    ]
    note = (
        f"The most suspicious first. Suspicion of a slide: the mean suspicion of its {SLIDE_SUSPECTS} most suspicious "
        f"objects, missing ones count as 0. Suspicious objects: those of {SUSPICIOUS_FROM:g} or more. A click on a "
        "column's name sorts by it. The same figures: slides.csv."
    )
    tools = (
        '<div class="filters"><input type="search" id="slide-filter" placeholder="Find a slide" '
        'aria-label="Find a slide by its name"></div>'
        if len(rows) > FILTER_FROM
        else ""
    )
    table = _table(most_suspicious_first(rows), class_names)
    body = [figures(values), section("Slides", table, note=note, tools=tools), _failures(rows)]
    body.append(section("Run", fact_list(facts)))
    plural = "slide" if len(rows) == 1 else "slides"
    write_page(
        path,
        kind="Inference, all slides",
        title=title,
        subtitle=f"{number(len(rows))} {plural}",
        body=body,
        scripts=["sort.js", "store.js"],
    )


def write_slides_csv(path: Path, rows: Sequence[IndexRow], class_names: Sequence[str]) -> None:
    """Write slides.csv: slide_id, status, suspicion, suspicious, objects, a count a class, warnings, error.

    In the order of the page; a failed slide has no figures.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("slide_id", "status", "suspicion", "suspicious", "objects", *class_names, "warnings", "error"))
    for row in most_suspicious_first(rows):
        found: list[object] = [""] * (3 + len(class_names))
        if row.status != "failed":
            suspicious = "" if row.suspicious is None else row.suspicious
            counts = [row.counts.get(name, 0) for name in class_names]
            found = [_told(row.suspicion), suspicious, row.objects, *counts]
        lines.writerow((row.slide_id, row.status, *found, row.warnings, row.error))
    write_text(path, text.getvalue())


def _told(suspicion: float | None) -> str:
    return "" if suspicion is None else f"{suspicion:.3f}"


def _table(rows: Sequence[IndexRow], class_names: Sequence[str]) -> str:
    colours = {name: hex_of(c) for name, c in class_colours(class_names).items()}
    heads = [_head("slide", "text"), _head("status", "text"), _head("suspicion", sort="descending")]
    heads += [_head("suspicious objects"), _head("objects")]
    heads += [_head(name, mark=swatch(colours[name])) for name in class_names]
    heads.append(_head("warnings"))
    lines = []
    for row in rows:
        name = escaped(row.slide_id)
        link = f'<a href="{escaped(quote(row.report))}">{name}</a>' if row.report else name
        cells = [_cell(row.suspicious), _cell(None if row.status == "failed" else row.objects)]
        cells += [_cell(row.counts.get(n, None if row.status == "failed" else 0)) for n in class_names]
        lines.append(
            f'<tr><th scope="row" data-value="{name}">{link}</th>'
            f'<td class="{row.status}" data-value="{row.status}">{row.status}</td>{_suspicion(row.suspicion)}'
            f"{''.join(cells)}{_cell(row.warnings)}</tr>"
        )
    return (
        f'<div class="scroll tall"><table id="slides" class="sortable"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _failures(rows: Sequence[IndexRow]) -> str:
    """Why slides failed, in the order of the list; '' where none did."""
    lines = [
        f'<tr><th scope="row">{escaped(row.slide_id)}</th><td class="remark">{escaped(row.error)}</td></tr>'
        for row in rows
        if row.status == "failed"
    ]
    if not lines:
        return ""
    head = '<thead><tr><th scope="col">slide</th><th scope="col" class="remark">reason</th></tr></thead>'
    table = f'<div class="scroll"><table id="failed">{head}<tbody>{"".join(lines)}</tbody></table></div>'
    return section("Failed slides", table)


def _head(name: str, kind: str = "number", *, mark: str = "", sort: str = "none") -> str:
    button = f'<button type="button" data-kind="{kind}">{mark}{escaped(name)}</button>'
    return f'<th scope="col" aria-sort="{sort}">{button}</th>'


def _cell(value: int | None) -> str:
    return '<td data-value="">–</td>' if value is None else f'<td data-value="{value}">{number(value)}</td>'


def _suspicion(value: float | None) -> str:
    if value is None:
        return _cell(None)
    bar = f'<span class="gauge"><span style="width:{100 * min(value, 1.0):.1f}%"></span></span>'
    return f'<td class="gauged" data-value="{_told(value)}">{bar}{_told(value)}</td>'
