"""Tables that other programs write: CSV or Parquet with named columns, checked cell by cell.

Enters: a file, by its content Parquet or else text with a header (comma, semicolon or tab).  Leaves: its columns as
text or finite numbers. A column of ids is text whatever its type: 7 and "7" are one id, and "007" is another.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cytopipe.core.errors import UserError, nearest_fix

PARQUET_MAGIC = b"PAR1"


class UserTable:
    """A table of a file. Raises UserError, with the row where there is one, for whatever is not as it must be."""

    def __init__(self, path: Path, *, text: Collection[str], numbers: Collection[str], required: Sequence[str]) -> None:
        """text, numbers  columns that are read, where they are there; others are passed over
        required          columns that must be there
        """
        self.where = str(path)
        try:
            with path.open("rb") as file:
                is_parquet = file.read(4) == PARQUET_MAGIC
            if is_parquet:
                names = pq.read_schema(path).names
                self._check(names, required)
                self._table = pq.read_table(path, columns=[n for n in names if n in {*text, *numbers}])
            else:
                self._table = self._from_csv(path, text, numbers, required)
        except (FileNotFoundError, IsADirectoryError) as error:
            raise UserError("no such file", where=self.where) from error
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            raise UserError(f"cannot be read as a table ({error})", where=self.where) from error

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def __contains__(self, column: str) -> bool:
        return column in self._table.column_names

    def text(self, column: str) -> NDArray[np.object_]:
        """A column of ids or names (N,), each a str that is not empty."""
        values = self._full(column)
        kind = values.type
        if pa.types.is_dictionary(kind):
            values = values.cast(kind.value_type)
            kind = kind.value_type
        if pa.types.is_floating(kind):  # ids that a table with gaps has made into 7.0
            numbers = values.to_numpy()
            odd = np.flatnonzero(~(np.isfinite(numbers) & (numbers == np.round(numbers))))
            if len(odd):
                raise self.fault(column, int(odd[0]), f"{numbers[odd[0]]:g} is no id")
            values = pa.array(numbers.astype(np.int64))
        elif not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"column {column} is of type {kind}, not text or whole numbers", where=self.where)
        found: NDArray[np.object_] = np.empty(len(self), object)
        found[:] = pc.utf8_trim_whitespace(values.cast(pa.string())).to_pylist()
        empty = np.flatnonzero(found == "")
        if len(empty):
            raise self.fault(column, int(empty[0]), "is empty")
        return found

    def numbers(self, columns: Sequence[str]) -> NDArray[np.float64]:
        """Columns of finite numbers side by side, (N, len(columns)) float64."""
        found = np.empty((len(self), len(columns)), np.float64)
        for k, column in enumerate(columns):
            values = self._full(column)
            if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
                raise UserError(f"column {column} is of type {values.type}, not numbers", where=self.where)
            found[:, k] = values.cast(pa.float64(), safe=False).to_numpy()
            odd = np.flatnonzero(~np.isfinite(found[:, k]))
            if len(odd):
                raise self.fault(column, int(odd[0]), f"{found[odd[0], k]} is no finite number")
        return found

    def is_numeric(self, column: str) -> bool:
        """Whether a column holds numbers, as opposed to text."""
        kind = self._table[column].type
        return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))

    def binary(self, column: str) -> NDArray[np.object_]:
        """A column of bytes (N,), None where there are none."""
        kind = self._table[column].type
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind)):
            raise UserError(f"column {column} is of type {kind}, not bytes", where=self.where)
        found: NDArray[np.object_] = np.empty(len(self), object)
        found[:] = self._table[column].to_pylist()
        return found

    def fault(self, column: str, row: int, what: str) -> UserError:
        """What is wrong with a cell; rows are counted from 1."""
        return UserError(f"row {row + 1}: {column} {what}", where=self.where)

    def _full(self, column: str) -> Any:
        values = self._table[column]
        if values.null_count:
            row = int(np.flatnonzero(values.is_null().to_numpy())[0])
            raise self.fault(column, row, "is empty")
        return values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)

    def _check(self, names: Sequence[str], required: Sequence[str]) -> None:
        missing = [name for name in required if name not in names]
        if missing:
            fix = nearest_fix(missing[0], names, "its columns") if names else ""
            raise UserError(f"has no column {', '.join(missing)}", where=self.where, fix=fix)
        twice = sorted({name for name in required if list(names).count(name) > 1})
        if twice:
            raise UserError(f"has two columns {twice[0]!r}", where=self.where)

    def _from_csv(self, path: Path, text: Collection[str], numbers: Collection[str], required: Sequence[str]) -> Any:
        with path.open(encoding="utf-8-sig", newline="") as file:
            head = file.readline()
        delimiter = max(",;\t", key=head.count)
        names = [name.strip().strip('"') for name in head.rstrip("\r\n").split(delimiter)]
        self._check(names, required)
        types = dict.fromkeys(text, pa.string()) | dict.fromkeys(numbers, pa.float64())
        return pyarrow.csv.read_csv(
            path,
            read_options=pyarrow.csv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=pyarrow.csv.ParseOptions(delimiter=delimiter),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=types,
                include_columns=[n for n in names if n in types],
                null_values=[""],  # a slide may be called NA, and "nan" is a number that is not finite
                strings_can_be_null=True,
            ),
        )
