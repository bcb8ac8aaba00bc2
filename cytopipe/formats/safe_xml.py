"""XML that comes from outside, read whole and without trust.

Enters: a file.  Leaves: its root element. Refused in one line, before anything is expanded or opened: a document type
declaration of any kind (entity bombs, external entities and parameter entities all need one; no annotation format
does), nesting deeper than MAX_DEPTH, files larger than MAX_BYTES.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from cytopipe.core.errors import UserError

MAX_BYTES = 256 << 20  # about 4 million vertices; the tree takes up to six times the file
MAX_DEPTH = 64  # Aperio nests six deep, VOC five

_CHUNK_BYTES = 1 << 20


def load_xml(path: Path) -> Element:
    """The root element of a file. Raises UserError if it is missing, no XML, or one of the things above."""
    where = str(path)
    builder = TreeBuilder()
    parser = _parser(builder, where)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"is larger than {MAX_BYTES >> 20} MB", where=where, fix="export it in parts")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                parser.Parse(chunk, False)
        parser.Parse(b"", True)
    except expat.ExpatError as error:
        raise UserError(f"is not well-formed XML ({error})", where=where) from error
    except (ValueError, LookupError) as error:  # an encoding that Python or expat does not know
        raise UserError(f"is XML in an encoding that is not read ({error})", where=where) from error
    except FileNotFoundError as error:
        raise UserError("no such file", where=where) from error
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=where) from error
    return builder.close()


def number_in(text: str | None) -> float:
    """The number that a text spells; NaN, which `mending.py` refuses, where it spells none."""
    try:
        return float(text or "nan")
    except ValueError:
        return math.nan


def _parser(builder: TreeBuilder, where: str) -> Any:
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > MAX_DEPTH:
            raise UserError(f"nests deeper than {MAX_DEPTH} elements", where=where, fix="no annotation file does")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse(*_: Any) -> None:
        raise UserError(
            "declares a document type or entities, which annotation files do not need and attacks do",
            where=where,
            fix="remove the <!DOCTYPE ...> if you trust the file",
        )

    parser: Any = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, end, builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = parser.UnparsedEntityDeclHandler = refuse
    parser.ExternalEntityRefHandler = refuse
    return parser
