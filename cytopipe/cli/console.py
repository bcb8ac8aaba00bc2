"""What the person at the terminal sees: results on stdout, progress, messages and errors on stderr, an exit code.

A command is `with Session(json=..., quiet=..., debug=...) as io: ...`. Rooms and steps know nothing of this: they get
`io.progress` and `io.say`.
Exit codes: 0 done; 1 something failed at run time; 2 usage or bad input; 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cytopipe.core.errors import CytopipeError
from cytopipe.core.files import disk_error

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

PLAIN_LINE_EVERY_S = 30.0  # a log of an unattended night stays readable
INTERRUPTED = 130  # 128 + SIGINT, what shells report


class Session:
    """One command at work: maps errors to one line and an exit code, shows progress, prints the result.

    json     the result is one JSON document on stdout, and nothing else stands there (an error is a document too)
    quiet    no progress and no messages; errors and results remain
    debug    tracebacks, and the log of all rooms on stderr
    """

    def __init__(self, *, json: bool = False, quiet: bool = False, debug: bool = False) -> None:
        self._json, self._quiet, self._debug = json, quiet, debug
        self._exit_code = 0
        self._has_result = False
        self._meter = None if quiet else Meter()

    def __enter__(self) -> Session:
        _configure_log(self._debug)
        return self

    def progress(self, done: int, total: int, unit: str, status: str = "") -> None:
        """An `OnProgress`: a bar with rate and ETA on a terminal, else a plain line at most every 30 s."""
        if self._meter:
            self._meter.update(done, total, unit, status)

    def say(self, line: str) -> None:
        """A `Say`: one plain sentence on stderr."""
        if self._meter:
            self._meter.say(line)

    def result(self, lines: Iterable[str], document: Any) -> None:
        """Show the result: `lines` for people, or with --json the `document` (see `json_value`)."""
        self._close_meter()
        self._has_result = True
        if self._json:
            put(json.dumps(json_value(document), indent=2, ensure_ascii=False, allow_nan=False))
        else:
            for line in lines:
                put(line)

    def failures(self, failed: Sequence[tuple[str, str]], total: int, unit: str = "slides") -> None:
        """Say on stderr which of `total` units failed, as (name, reason); the command then exits with 1.

        An empty list says nothing and changes no exit code.
        """
        if failed:
            self._close_meter()
            self._exit_code = 1
            put_error(f"error: {len(failed)} of {total} {unit} failed:")
            for line in table(("", "reason"), [(name, " ".join(reason.split())) for name, reason in failed])[1:]:
                put_error(f"  {line}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_meter()
        if error is None:
            if self._exit_code:
                raise SystemExit(self._exit_code)
            return
        if isinstance(error, KeyboardInterrupt):
            put_error("interrupted; the same command goes on where this one stopped")
            raise SystemExit(INTERRUPTED) from None
        if isinstance(error, BrokenPipeError) or not isinstance(error, Exception):
            return  # the reader of a pipe left, or somebody else's exit
        if type(error).__module__.split(".")[0] in ("typer", "click"):
            return  # a usage error raised inside the command: `main` words it as all others
        if self._debug:
            traceback.print_exception(error, file=sys.stderr)
        line, code = _worded(error)
        put_error(f"error: {line}")
        if self._json and not self._has_result:
            put(json.dumps({"error": line, "exit_code": code}, ensure_ascii=False))
        raise SystemExit(code) from None

    def _close_meter(self) -> None:
        if self._meter:
            self._meter.close()


def put(line: str) -> None:
    """A line of the result, on stdout."""
    print(line)


def put_error(line: str) -> None:
    """A line on stderr."""
    print(line, file=sys.stderr)


def flush() -> None:
    """Empty the output; a reader that left (`cytopipe methods | head -1`) is no error worth a traceback."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter tries again at exit


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Lines of an aligned text table: numbers to the right, None as '-', floats below 100 with three digits."""
    values = [list(row) for row in rows]
    columns = list(zip(*values, strict=True)) or [()] * len(header)
    numeric = [bool(column) and all(isinstance(value, int | float) for value in column) for column in columns]
    cells = [list(header), *([_cell(value) for value in row] for row in values)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        columns_of_row = zip(row, widths, numeric, strict=True)
        lines.append(
            "  ".join(text.rjust(width) if right else text.ljust(width) for text, width, right in columns_of_row)
        )
    return [line.rstrip() for line in lines]


def duration(seconds: float) -> str:
    """A time span for people: '8 s', '2 min 05 s', '3 h 20 min'."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def json_value(value: Any) -> Any:
    """`value` as JSON can hold it: dataclasses as objects, paths as text, numpy as numbers, NaN as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: json_value(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): json_value(v) for k, v in value.items()}
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy, which is not imported for a listing
        return json_value(value.tolist())
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class _Pace:
    """Rate and remaining time of one unit of work, from where this process took it up."""

    def __init__(self, done: int, now_s: float) -> None:
        self._first, self._start_s = done, now_s
        self.said_s = now_s

    def text(self, done: int, total: int, now_s: float) -> str:
        elapsed_s = now_s - self._start_s
        rate = (done - self._first) / elapsed_s if elapsed_s > 0 else 0.0
        if rate <= 0:
            return ""
        pace = f"{rate:.3g} per s" if rate >= 1 else f"{1 / rate:.3g} s each"
        return f"{pace}, {duration((total - done) / rate)} left" if total > done else pace


class Meter:
    """Progress on stderr; may be called from several threads. `clock` gives seconds that never run backwards."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._paces: dict[str, _Pace] = {}
        self._tasks: dict[str, TaskID] = {}
        self._bars: Progress | None = None

    def update(self, done: int, total: int, unit: str, status: str = "") -> None:
        """Show that `done` of `total` units are done (total 0: unknown); `status` stands in a line below the bars."""
        with self._lock:
            now_s = self._clock()
            pace = self._paces.setdefault(unit, _Pace(done, now_s))
            text = pace.text(done, total, now_s)
            if sys.stderr.isatty():
                self._draw(done, total, unit, text, status)
            elif now_s - pace.said_s >= PLAIN_LINE_EVERY_S:
                pace.said_s = now_s
                count = f"{unit}: {done}" + (f" of {total}" if total else "")
                paced = f"{count}, {text}" if text else count
                put_error(f"{paced}; {status}" if status else paced)

    def _draw(self, done: int, total: int, unit: str, pace: str, status: str) -> None:
        if self._bars is None:
            self._bars = _bars()
            self._bars.start()
        if unit not in self._tasks:
            self._tasks[unit] = self._bars.add_task(unit, total=None, pace="", status="")  # else 100
        self._bars.update(self._tasks[unit], completed=done, total=total or None, pace=pace, status=status)

    def say(self, line: str) -> None:
        """A line on stderr, above the bars where there are any."""
        with self._lock:
            if self._bars:
                self._bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
            else:
                put_error(line)

    def close(self) -> None:
        """Take the bars away."""
        with self._lock:
            if self._bars:
                self._bars.stop()
                self._bars = None
                self._tasks.clear()


def _bars() -> Progress:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType  # rich costs 60 ms at import: only commands that draw pay it
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.text import Text

    class WithStatus(Progress):
        """Bars, and below them the line of each task that has one; it may wrap, a bar's columns may not."""

        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            yield from (Text(task.fields["status"], style="dim") for task in self.tasks if task.fields["status"])

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    return WithStatus(*columns, console=Console(stderr=True), transient=True)


def _worded(error: Exception) -> tuple[str, int]:
    if isinstance(error, CytopipeError):
        return str(error), error.exit_code
    if isinstance(error, OSError) and error.filename is not None:
        return str(disk_error(error, Path(str(error.filename)))), 1
    if isinstance(error, MemoryError):
        return "out of memory; give fewer --workers or close other programs", 1
    if isinstance(error, ImportError):
        return f"the installation is damaged ({error}); `cytopipe doctor` says what works, installing anew mends it", 1
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return f"a mistake in cytopipe itself ({text}); run again with --debug and report what it prints", 1


def _configure_log(debug: bool) -> None:
    """Rooms and readers log through `logging`; without --debug none of it reaches the terminal."""
    root = logging.getLogger()
    if debug:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    elif not root.handlers:
        root.addHandler(logging.NullHandler())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:.0f}"
    return str(value)
