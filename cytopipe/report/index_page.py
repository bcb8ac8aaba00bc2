"""The page over a batch of slides: what became of each, how many of which class, and the way to its own report.

Enters: one row a slide.  Leaves: index.html beside the slides' folders, sorted as the list was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from cytopipe.formats.colours import class_colours, hex_of
from cytopipe.report.encode import escaped, number, swatch
from cytopipe.report.page import fact_list, figures, section, write_page


@dataclass(frozen=True, slots=True)
class IndexRow:
    """One slide of a batch.

    report     path of its page relative to the index, '' where there is none
    counts     objects by class name
    error      why it failed, '' otherwise
    """

    slide_id: str
    status: Literal["done", "skipped", "failed"]
    report: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)
    warnings: int = 0
    error: str = ""


def write_index(path: Path, rows: Sequence[IndexRow], *, title: str, facts: Mapping[str, object]) -> None:
    """Write index.html: key figures, a row a slide with a link to its report, run facts."""
    names = list(dict.fromkeys(name for row in rows for name in row.counts))
    failed = sum(row.status == "failed" for row in rows)
    values = [
        ("slides", number(len(rows)), "in the list"),
        ("failed", number(failed), "the reason stands in the table" if failed else "none"),
        ("objects", number(sum(sum(row.counts.values()) for row in rows)), "on all slides"),
    ]
    body = [figures(values), section("Slides", _table(rows, names)), section("Run", fact_list(facts))]
    plural = "slide" if len(rows) == 1 else "slides"
    write_page(path, kind="Inference, all slides", title=title, subtitle=f"{number(len(rows))} {plural}", body=body)


def _table(rows: Sequence[IndexRow], names: Sequence[str]) -> str:
    colours = {name: hex_of(c) for name, c in class_colours(names).items()}
    heads = "".join(f'<th scope="col">{swatch(colours[name])}{escaped(name)}</th>' for name in names)
    lines = []
    for row in rows:
        name = escaped(row.slide_id)
        link = f'<a href="{escaped(quote(row.report))}">{name}</a>' if row.report else name
        counts = "".join(f"<td>{number(row.counts[n]) if n in row.counts else '–'}</td>" for n in names)
        remark = escaped(row.error) if row.error else f"{row.warnings} warnings" if row.warnings else ""
        lines.append(
            f'<tr><th scope="row">{link}</th><td class="{row.status}">{row.status}</td>{counts}'
            f'<td class="remark">{remark}</td></tr>'
        )
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col">slide</th><th scope="col">status</th>{heads}'
        f'<th scope="col" class="remark">remark</th></tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )
