"""objects.csv: the columns of objects.parquet but the geometry, a row an object; empty where nothing is known."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow.csv as pc

from cytopipe.core.files import atomic_path
from cytopipe.formats.results.schema import Group, ResultsInfo
from cytopipe.formats.results.table import record_batch, schema_of

LEFT_OUT = "geometry"


class CsvWriter:
    """Streams groups of objects to a file, which appears when the block ends without an error."""

    def __init__(self, path: Path, info: ResultsInfo) -> None:
        self._path = path
        schema = schema_of(info)
        self._schema = schema.remove(schema.get_field_index(LEFT_OUT))
        self._stack = ExitStack()
        self._file: Any = None

    def __enter__(self) -> CsvWriter:
        partial = self._stack.enter_context(atomic_path(self._path))
        self._file = self._stack.enter_context(pc.CSVWriter(str(partial), self._schema))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, value, trace)

    def add(self, group: Group) -> None:
        """Write one group."""
        batch = record_batch(group)
        self._file.write_batch(batch.select(self._schema.names))
