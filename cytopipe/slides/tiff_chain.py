"""Whether a TIFF's pages are all there: the chain of its directories followed from the header, before anything is read
from them.

tifffile and libtiff stop at a broken link and go on with the pages that they have. A stack would then be shown as its
first plane, a pyramid as its finest level, without a word.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from cytopipe.core.errors import UserError

MAX_PAGES = 4096
"""A longer chain is a damaged or hostile file [D]: a stack of 100 planes in 4 channels with 8 levels has 3,200 pages,
and each takes a library about 0.4 ms."""
MAX_TAGS = 4096
"""More fields in a directory are a damaged one [D]: baseline and extensions together define a few hundred."""

MAX_SEGMENTS = 2_000_000
"""Tiles or strips of a page [D]: 240 px tiles on 300,000 x 300,000 px are 1.6 million."""
MAX_VALUE_BYTES = 64 * 1024 * 1024
"""The value of any field [D], such as an OME description or an ICC profile: a library reads it whole."""

TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value by its type: TIFF 6.0 section 2, 13 of Technical Note 1, 16 to 18 of BigTIFF."""

SEGMENT_TAGS = frozenset((273, 279, 324, 325))
"""StripOffsets, StripByteCounts, TileOffsets, TileByteCounts."""
SUB_IFDS = 330
NEEDED_TAGS = frozenset((258, 270, 273, 279, 324, 325, 330, 347))
"""Fields without which pixels are misread: bits, description, segments, SubIFDs, JPEG tables. Others may be damaged."""

READ_TAGS = NEEDED_TAGS | {305, 700, 34675}
"""... and those whose values are read too: software, XMP, ICC profile."""


def check_chain(path: Path) -> None:
    """Raise UserError for directories that lie past the end of the file, need more than the file has, or lead in a
    circle."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        order = "<" if head[:2] == b"II" else ">"
        is_big = head[2:4] in (b"+\0", b"\0+")
        if len(head) < (16 if is_big else 8):
            raise UserError("its header ends early", where=path.name)
        offset = int(struct.unpack(f"{order}Q", head[8:16])[0] if is_big else struct.unpack(f"{order}I", head[4:8])[0])
        seen: set[int] = set()
        while offset:
            if offset in seen:
                raise UserError("its pages lead in a circle", where=path.name)
            if len(seen) >= MAX_PAGES:
                raise UserError(f"more than {MAX_PAGES} pages; no slide has so many", where=path.name)
            seen.add(offset)
            offset = _next(file, offset, order, is_big, size, f"page {len(seen) - 1}", path.name)


def _next(file: BinaryIO, offset: int, order: str, is_big: bool, size: int, page: str, name: str) -> int:
    """The offset of the following directory, 0 at the end."""
    count_format, entry_format, link_format = ("Q", "HHQQ", "Q") if is_big else ("H", "HHII", "I")
    count_bytes, entry_bytes, link_bytes = (
        struct.calcsize(order + form) for form in (count_format, entry_format, link_format)
    )
    lost = UserError(f"{page} lies past the end of the file, which has lost its last part", where=name)
    if offset + count_bytes > size:
        raise lost
    file.seek(offset, os.SEEK_SET)
    count = int(struct.unpack(order + count_format, file.read(count_bytes))[0])
    if count > MAX_TAGS:
        raise UserError(f"{page} claims {count} fields", where=name)
    table = file.read(count * entry_bytes + link_bytes)
    if len(table) < count * entry_bytes + link_bytes:
        raise lost
    for number in range(count):
        tag, kind, values, place = struct.unpack_from(order + entry_format, table, number * entry_bytes)
        length = TYPE_BYTES.get(kind, 1) * values
        if tag in SEGMENT_TAGS and values > MAX_SEGMENTS:
            raise UserError(
                f"{page} claims {values} tiles or strips; more than {MAX_SEGMENTS} are not read", where=name
            )
        if tag == SUB_IFDS and values > MAX_PAGES:
            raise UserError(f"{page} claims {values} pages below it; more than {MAX_PAGES} are not read", where=name)
        if tag in READ_TAGS and length > MAX_VALUE_BYTES:
            raise UserError(
                f"{page} claims {length} bytes in field {tag}; at most {MAX_VALUE_BYTES} are read", where=name
            )
        if tag in NEEDED_TAGS and length > link_bytes and place + length > size:
            raise lost
    return int(struct.unpack_from(order + link_format, table, count * entry_bytes)[0])
