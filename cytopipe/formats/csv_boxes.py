"""Boxes in a CSV, in; or outlines as WKT.

Enters: a table with a header, fields apart by comma, semicolon or tab, UTF-8.  Leaves: an object a row, level-0 px.

    what          columns, whatever their case and order
    box           x0 y0 x1 y1, or xmin ymin xmax ymax, or x y w h (or width height): edges, x1 and y1 not included
    outline       geometry or wkt: POLYGON or MULTIPOLYGON; goes before the box
    class         class, label, name or category
    id            object_id or id; else the row's number
    slide         slide_id, slide, image, file_name or filename: rows of other slides are left alone
    others        kept as attributes
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import shapely

from cytopipe.core.errors import UserError
from cytopipe.formats.drawn import Drawn, Page, text_of
from cytopipe.formats.images import chosen_image
from cytopipe.formats.mending import NO_AREA
from cytopipe.formats.safe_xml import number_in

MAX_BYTES = 1 << 30  # ten million boxes

_EDGES = (("x0", "y0", "x1", "y1"), ("xmin", "ymin", "xmax", "ymax"), ("x_min", "y_min", "x_max", "y_max"))
_SIDES = (("x", "y", "w", "h"), ("x", "y", "width", "height"))
_OUTLINE = ("geometry", "wkt")
_CLASS = ("class", "class_name", "label", "name", "category")
_ID = ("object_id", "id")
_SLIDE = ("slide_id", "slide", "image", "file_name", "filename")
_FIX = "give columns x0 y0 x1 y1 (or x y w h, or geometry) and class"
_MOST_FIELD_CHARACTERS = 1 << 26  # an outline of two million points as WKT


def csv_page(path: Path, *, image: str | None = None, only_named: bool = False) -> Page:
    """The rows of one slide, unchecked. Raises UserError for a file that is no such table."""
    rows = list(_rows(path))
    columns = {name: name for name in rows[0]} if rows else {}
    slide = next((name for name in _SLIDE if name in columns), None)
    chosen = ""
    if slide is not None and rows:
        names = list(dict.fromkeys(row[slide] for row in rows))
        chosen = names[chosen_image(names, image, str(path), only_named=only_named)]
        numbered = [(k, row) for k, row in enumerate(rows, start=1) if row[slide] == chosen]
    elif only_named:
        raise UserError("has no column slide_id, and serves several slides", where=str(path), fix="add it")
    else:
        numbered = list(enumerate(rows, start=1))
    return Page(_objects(numbered, slide), chosen)


def slides_in_csv(path: Path) -> list[str]:
    """The names of the slides in a table's slide column, in its order; empty where it has none."""
    rows = list(_rows(path))
    slide = next((name for name in _SLIDE if rows and name in rows[0]), None)
    return list(dict.fromkeys(row[slide] for row in rows)) if slide else []


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """The rows by lower-case column name. Raises UserError for a file without the columns that are needed."""
    where = str(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"is larger than {MAX_BYTES >> 20} MB", where=where, fix="give it in parts")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=where) from error
    except UnicodeDecodeError as error:
        raise UserError("is neither text nor an annotation file that is known", where=where, fix=_FIX) from error
    head = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=head.count)
    limit = csv.field_size_limit(_MOST_FIELD_CHARACTERS)
    try:
        table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        header = [name.strip().lower() for name in next(table, [])]
        _check(header, where)
        for number, fields in enumerate(table, start=2):
            if not any(field.strip() for field in fields):
                continue
            if len(fields) > len(header):
                raise UserError(f"line {number} has {len(fields)} fields, the header {len(header)}", where=where)
            fields += [""] * (len(header) - len(fields))
            yield {name: field.strip() for name, field in zip(header, fields, strict=True)}
    except csv.Error as error:
        raise UserError(f"is no table ({error})", where=where, fix=_FIX) from error
    finally:
        csv.field_size_limit(limit)


def _check(header: Sequence[str], where: str) -> None:
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise UserError(f"has two columns {twice[0]!r}", where=where)
    names = set(header)
    if not names & set(_OUTLINE) and not any(names.issuperset(box) for box in (*_EDGES, *_SIDES)):
        shown = ", ".join(name[:20] for name in header[:8]) or "none"
        raise UserError(f"has no columns of a box (its columns: {shown})", where=where, fix=_FIX)


def _objects(rows: Sequence[tuple[int, Mapping[str, str]]], slide: str | None) -> Iterator[Drawn]:
    for number, row in rows:
        used = {slide, *_OUTLINE}
        class_column = next((name for name in _CLASS if name in row), None)
        id_column = next((name for name in _ID if row.get(name)), None)
        object_id = row[id_column] if id_column else f"row-{number}"
        wkt = next((row[name] for name in _OUTLINE if row.get(name)), "")
        box_columns = next((box for box in (*_EDGES, *_SIDES) if row.keys() >= set(box)), ())
        used |= {class_column, *_ID, *box_columns}
        polygons, refused = _from_wkt(wkt) if wkt else _from_box(row, box_columns)
        attributes = {text_of(name): text_of(value) for name, value in row.items() if value and name not in used}
        name = row[class_column] if class_column else ""
        yield Drawn(object_id, name, polygons, attributes, closes_rings=bool(wkt), refused=refused)


def _from_box(row: Mapping[str, str], columns: Sequence[str]) -> tuple[list[Any], str]:
    """One rectangle, and why it is none."""
    if not columns:
        return [], "has no outline"
    a, b, c, d = (number_in(row[name]) for name in columns)
    x1, y1 = (a + c, b + d) if columns in _SIDES else (c, d)
    if x1 <= a or y1 <= b:
        return [], f"{NO_AREA}: its box is {a:g}, {b:g} to {x1:g}, {y1:g}"
    return [[[(a, b), (x1, b), (x1, y1), (a, y1)]]], ""


def _from_wkt(text: str) -> tuple[list[Any], str]:
    """The polygons of a WKT text, and why it has none. Collections are not parsed: they nest without end."""
    if not text.upper().lstrip().startswith(("POLYGON", "MULTIPOLYGON")):
        return [], f"is a {text.split('(')[0].strip()[:20]}, only outlined objects are read"
    try:
        geometry = shapely.from_wkt(text)
    except shapely.errors.GEOSException as error:
        return [], f"its WKT cannot be read ({error})"
    parts = shapely.get_parts(geometry)
    return [
        [shapely.get_coordinates(ring) for ring in (part.exterior, *part.interiors)]
        for part in parts
        if not part.is_empty
    ], ""
