"""objects.geojson: the files of QuPath's features. One, or several of a bounded size, each a whole collection; gzip.

Enters: groups of objects, frame slide.  Leaves: objects.geojson, or objects-0001.geojson and on; with .gz on request.
The bytes of the gzip files are the same whenever they are written: no time stands in them.
"""

from __future__ import annotations

import gzip
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from cytopipe.core.files import atomic_path
from cytopipe.formats.qupath import Frame
from cytopipe.formats.results.features import Features
from cytopipe.formats.results.schema import Group, ResultsInfo

HEAD, TAIL = b'{"type": "FeatureCollection", "features": [\n', b"\n]}\n"
GZIP_LEVEL = 6  # zlib's own default
MB = 1_000_000


class FeatureWriter:
    """Streams groups of objects to GeoJSON: `with FeatureWriter(folder / "objects.geojson", info) as out: ...`.

    frame     of the coordinates
    split_mb  largest file in MB, before gzip; one feature may be larger. None: one file
    The files appear when the block ends without an error. Files that an earlier run left under another of the names are
    removed then: they would hold the same objects again.
    """

    def __init__(
        self, path: Path, info: ResultsInfo, frame: Frame = "bounds", *, gz: bool = False, split_mb: float | None = None
    ) -> None:
        self._path, self._gz = path, gz
        self._most = None if split_mb is None else int(split_mb * MB)
        self._features = Features(info, info.bounds_offset if frame == "bounds" else (0, 0))
        self._stack = ExitStack()
        self._part = ExitStack()
        self._file: IO[bytes] | Any = None
        self._paths: list[Path] = []
        self._bytes = 0
        self._is_begun = False

    def __enter__(self) -> FeatureWriter:
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._file.write(TAIL)
            self._part.close()
        except BaseException as error:
            self._stack.__exit__(type(error), error, error.__traceback__)
            raise
        self._stack.__exit__(kind, value, trace)
        if kind is None:
            for old in geojson_files(self._path):
                if old not in self._paths:
                    old.unlink()

    def add(self, group: Group) -> None:
        """Write one group."""
        lines = self._features.lines(group)[:-1]
        if not lines:
            return
        if self._most is None:
            self._put(lines.replace(b"\n", b",\n"))
            return
        waiting: list[bytes] = []
        for line in lines.split(b"\n"):
            size = len(line) + 2
            if self._bytes > len(HEAD) and self._bytes + size + len(TAIL) > self._most:
                self._put(b",\n".join(waiting), counted=True)
                waiting = []
                self._file.write(TAIL)
                self._part.close()
                self._begin()
            waiting.append(line)
            self._bytes += size
        self._put(b",\n".join(waiting), counted=True)

    def _put(self, text: bytes, *, counted: bool = False) -> None:
        if not text:
            return
        if self._is_begun:
            self._file.write(b",\n")
        self._is_begun = True
        self._file.write(text)
        if not counted:
            self._bytes += len(text)

    def _begin(self) -> None:
        number = f"-{len(self._paths) + 1:04d}" if self._most is not None else ""
        path = self._path.with_name(f"{self._path.stem}{number}{self._path.suffix}{'.gz' if self._gz else ''}")
        partial = self._stack.enter_context(atomic_path(path))
        self._part = ExitStack()
        self._file = self._part.enter_context(partial.open("wb"))
        if self._gz:
            packed = gzip.GzipFile("", "wb", GZIP_LEVEL, self._file, mtime=0)
            self._file = self._part.enter_context(packed)
        self._paths.append(path)
        self._file.write(HEAD)
        self._bytes, self._is_begun = len(HEAD), False


def geojson_files(path: Path) -> list[Path]:
    """What stands beside `path`, objects.geojson, under any of its names: whole, in parts, packed or not."""
    stem, suffix = path.stem, path.suffix
    number = "[0-9]" * 4
    names = (f"{stem}{suffix}", f"{stem}-{number}{suffix}")
    return sorted(found for name in names for end in ("", ".gz") for found in path.parent.glob(name + end))
