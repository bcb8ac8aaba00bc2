"""Names of files and folders in a store, and the law that no folder of it has more than `MAX_ENTRIES` entries.

What there is one of for each slide (images, overviews, rows of finished slides) lies at FOLDER/SLIDE while a store has
few slides, and at FOLDER/+XX/SLIDE, +XX of `bucket_of`, where it has more: `SlideFolders` decides. Images of one slide
lie at Y/X; where that would be too many, the next ones go into +1, +2, ...: `TilePlaces` decides. Who reads a store
asks for neither: tiles.parquet names each image's place.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from urllib.parse import quote

MAX_ENTRIES = 10_000  # file systems and people cope badly with more; the limit that the store promises
# [D] readable up to here. A store may get so many slides twice, one list after the other, before it turns to buckets
FLAT_SLIDES = 4_000
# [D] half of the room for images, half for the folders +1, +2, ...: 25 million of one slide, or of one row of tiles
ROOM = MAX_ENTRIES // 2


def folder_name(slide_id: str) -> str:
    """A slide id as one component of a path: no separator, no leading dot or plus, different ids stay different."""
    name = quote(slide_id, safe=" ()[]+,;=@!&~'")
    return f"%{ord(name[0]):02X}{name[1:]}" if name.startswith((".", "+")) else name


def bucket_of(slide_id: str) -> str:
    """One of 256 folders, +00 to +ff, by the slide's id alone: each holds 4,000 slides of a million. No slide's own
    folder begins with a plus.
    """
    return f"+{hashlib.sha256(slide_id.encode()).hexdigest()[:2]}"


class SlideFolders:
    """Where new things of each slide go. `in_buckets` is decided once for a run, by how many slides there are."""

    def __init__(self, store: Path, *, in_buckets: bool) -> None:
        self._store, self._in_buckets = store, in_buckets

    def place(self, folder: str, slide_id: str, suffix: str = "") -> Path:
        """FOLDER/SLIDE or FOLDER/+XX/SLIDE, with `suffix` behind; absolute if the store's path is."""
        return self.both(folder, slide_id, suffix)[self._in_buckets]

    def both(self, folder: str, slide_id: str, suffix: str = "") -> tuple[Path, Path]:
        """Where an earlier run may have put it: without buckets, and in one."""
        name = folder_name(slide_id) + suffix
        return self._store / folder / name, self._store / folder / bucket_of(slide_id) / name


class TilePlaces:
    """Where the images of one slide go, by the order of the tiles alone."""

    def __init__(self) -> None:
        self._row: dict[int, str] = {}
        self._in_row: Counter[int] = Counter()

    def place(self, x: int, y: int, suffix: str) -> str:
        """Y/X.jpg below the slide's folder, or e.g. Y/+2/X.jpg for number 12,000 of its row."""
        if y not in self._row:
            self._row[y] = _roomy(len(self._row), str(y))
        number = self._in_row[y]
        self._in_row[y] += 1
        return f"{self._row[y]}/{_roomy(number, f'{x}{suffix}')}"


def _roomy(number: int, name: str) -> str:
    """Where entry `number` of a folder goes: into it while there is room, then into +1, +2, ..."""
    overflow = number // ROOM
    return f"+{overflow}/{name}" if overflow else name
