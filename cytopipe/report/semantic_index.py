"""The page over a batch of slides that a semantic model looked at, and the same figures as a table: mm² by class.

Enters: one row a slide.  Leaves: index.html and slides.csv beside the slides' folders, in the order of the list.
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


@dataclass(frozen=True, slots=True)
class AreaRow:
    """One slide of a batch.

    report     path of its page relative to the index, '' where there is none
    areas_mm2  by class name; empty where the slide failed
    error      why it failed, '' otherwise
    """

    slide_id: str
    status: Literal["done", "failed"]
    report: str = ""
    areas_mm2: Mapping[str, float] = field(default_factory=dict)
    warnings: int = 0
    error: str = ""


def write_area_index(
    path: Path, rows: Sequence[AreaRow], class_names: Sequence[str], *, title: str, facts: Mapping[str, object]
) -> None:
    """Write index.html: key figures, a row a slide with a link to its report, run facts."""
    failed = sum(row.status == "failed" for row in rows)
    values = [
        ("slides", number(len(rows)), "in the list"),
        ("failed", number(failed), "the reasons stand in the table" if failed else "none"),
    ]
    values += [
        (name, f"{number(sum(row.areas_mm2.get(name, 0.0) for row in rows))} mm²", "on all slides")
        for name in class_names
    ]
    note = "Areas in mm². A click on a column's name sorts by it. The same figures: slides.csv."
    write_page(
        path,
        kind="Segmentation, all slides",
        title=title,
        subtitle=f"{number(len(rows))} slide{'s' * (len(rows) != 1)}",
        body=[
            figures(values),
            section("Slides", _table(rows, class_names), note=note),
            section("Run", fact_list(facts)),
        ],
        scripts=["sort.js"],
    )


def write_area_csv(path: Path, rows: Sequence[AreaRow], class_names: Sequence[str]) -> None:
    """Write slides.csv: slide_id, status, mm² a class, warnings, error. A failed slide has no areas."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(("slide_id", "status", *(f"{name}_mm2" for name in class_names), "warnings", "error"))
    for row in rows:
        areas = [row.areas_mm2.get(name, "") for name in class_names]
        lines.writerow((row.slide_id, row.status, *areas, row.warnings, row.error))
    write_text(path, text.getvalue())


def _table(rows: Sequence[AreaRow], class_names: Sequence[str]) -> str:
    colours = {name: hex_of(c) for name, c in class_colours(class_names).items()}
    heads = [_head("slide", "text"), _head("status", "text")]
    heads += [_head(name, mark=swatch(colours[name])) for name in class_names]
    heads += [_head("warnings"), _head("reason", "text")]
    lines = []
    for row in rows:
        name = escaped(row.slide_id)
        link = f'<a href="{escaped(quote(row.report))}">{name}</a>' if row.report else name
        areas = [row.areas_mm2.get(k) for k in class_names]
        cells = "".join(
            '<td data-value="">–</td>' if area is None else f'<td data-value="{area}">{number(area, 4)}</td>'
            for area in areas
        )
        lines.append(
            f'<tr><th scope="row" data-value="{name}">{link}</th>'
            f'<td class="{row.status}" data-value="{row.status}">{row.status}</td>{cells}'
            f'<td data-value="{row.warnings}">{row.warnings}</td>'
            f'<td class="remark" data-value="{escaped(row.error)}">{escaped(row.error)}</td></tr>'
        )
    return (
        f'<div class="scroll tall"><table id="slides" class="sortable"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _head(name: str, kind: str = "number", *, mark: str = "") -> str:
    return (
        f'<th scope="col" aria-sort="none"><button type="button" data-kind="{kind}">{mark}{escaped(name)}</button></th>'
    )
