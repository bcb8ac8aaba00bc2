"""The skeleton of every page: head, style sheet, header, sections, lists of facts, warnings.

Enters: parts that are already HTML (see `encode.escaped`).  Leaves: one file that needs no network; its content
security policy forbids the browser to fetch anything, so that a page about a patient's slide stays where it is.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Mapping, Sequence
from pathlib import Path

from cytopipe._version import __version__
from cytopipe.core.files import write_text
from cytopipe.report.encode import escaped, plain

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}; form-action 'none'"
_MARK = (
    '<svg class="mark" viewBox="0 0 32 32" aria-hidden="true"><path d="M16 2.5c8.2-.6 13.6 5.4 13.4 13.2-.2 8.6-6 13.9'
    '-13.7 13.8C7.4 29.4 2.3 23.6 2.5 15.7 2.7 8.1 8 3.1 16 2.5z"/><circle cx="18" cy="14.5" r="5"/></svg>'
)


def write_page(
    path: Path, *, kind: str, title: str, subtitle: str, body: Sequence[str], scripts: Sequence[str] = ()
) -> None:
    """Write a page atomically.

    kind       what the page is, above the title ('Inference report'); title and subtitle are plain text, escaped here
    body       HTML of the sections, in order
    scripts    names of .js files of this room, put at the end
    """
    style = _asset("page.css")
    sources = [f"\n{_asset(name)}" for name in scripts]
    script = "".join(f"<script>{source}</script>\n" for source in sources)
    policy = _POLICY.format(scripts=" ".join(map(_hash_source, sources)) or "'none'")
    sections = "\n".join(part for part in body if part)
    write_text(
        path,
        f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="cytopipe {__version__}">
<title>{escaped(title)} · cytopipe</title>
<style>
{style}</style>
</head>
<body>
<header class="top"><div class="wrap">
<p class="brand">{_MARK}<span>cytopipe</span><span class="kind">{escaped(kind)}</span></p>
<h1>{escaped(title)}</h1>
<p class="subtitle">{escaped(subtitle)}</p>
</div></header>
<main class="wrap">
{sections}
</main>
<footer class="wrap"><p>cytopipe {__version__} · for research use, not for diagnosis</p></footer>
{script}</body>
</html>
""",
    )


def section(title: str, content: str, *, note: str = "", tools: str = "", anchor: str = "") -> str:
    """A card with a heading; `content` and `tools` (right of the heading) are HTML, `title` and `note` plain text."""
    identity = f' id="{escaped(anchor)}"' if anchor else ""
    remark = f'<p class="note">{escaped(note)}</p>' if note else ""
    head = f'<div class="head"><div><h2>{escaped(title)}</h2>{remark}</div>{tools}</div>'
    return f'<section class="card"{identity}>{head}\n{content}</section>'


def figures(values: Sequence[tuple[str, str, str]]) -> str:
    """The row of key figures: (label, value, remark), plain text each."""
    items = (
        f'<div class="figure"><dt>{escaped(label)}</dt>'
        f"<dd><b>{escaped(value)}</b><small>{escaped(remark)}</small></dd></div>"
        for label, value, remark in values
    )
    return f'<dl class="figures">{"".join(items)}</dl>'


def fact_list(facts: Mapping[str, object]) -> str:
    """A definition list of facts; a mapping inside becomes a group with a heading of its own."""
    own = {key: value for key, value in facts.items() if not isinstance(value, Mapping)}
    groups = {key: value for key, value in facts.items() if isinstance(value, Mapping) and value}
    blocks = [_definitions(own)] if own else []
    blocks += [f"<h3>{escaped(_spaced(key))}</h3>{_definitions(value)}" for key, value in groups.items()]
    return f'<div class="facts">{"".join(f"<div>{block}</div>" for block in blocks)}</div>'


def warning_list(warnings: Sequence[str]) -> str:
    """The box of warnings, '' without any; a warning that came several times is shown once with its count."""
    if not warnings:
        return ""
    counts = {line: warnings.count(line) for line in dict.fromkeys(warnings)}
    items = "".join(
        f"<li>{escaped(line)}" + (f" <small>× {count}</small>" if count > 1 else "") + "</li>"
        for line, count in counts.items()
    )
    word = "warning" if len(counts) == 1 else "warnings"
    return f'<section class="warnings" role="note"><h2>{len(counts)} {word}</h2><ul>{items}</ul></section>'


def _definitions(facts: Mapping[str, object]) -> str:
    rows = (f"<dt>{escaped(_spaced(key))}</dt><dd>{escaped(plain(value))}</dd>" for key, value in facts.items())
    return f"<dl>{''.join(rows)}</dl>"


def _spaced(key: str) -> str:
    return str(key).replace("_", " ")


def _hash_source(script: str) -> str:
    """A script as the policy names it: only what we shipped runs, whatever else found its way into the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return importlib.resources.files("cytopipe.report").joinpath(name).read_text(encoding="utf-8")
