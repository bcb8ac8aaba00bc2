"""What the fuzz run does with one slide, in a process of its own: open it, look at all it says, read every level.

Leaves a `Verdict`. Whatever is no CytopipeError is a fault of ours, and so is a line on stderr from a library.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from cytopipe.core.errors import CytopipeError
from cytopipe.slides import Slide, find_foreground, open_slide, thumbnail

WHOLE_PX = 12_000_000
"""Levels up to this size are read whole; of larger ones `WINDOWS` windows of `WINDOW_PX`."""
WINDOW_PX, WINDOWS = 512, 12
BLANK_PX = 64
"""Side of the blocks that may not become uniform: 8 x 8 blocks of JPEG."""
MAX_LINE = 600


@dataclass
class Verdict:
    """What became of one mutant.

    outcome  "read" (every window), "reported" (opened; some windows raise RunError), "refused" (at opening)
    said     the first error line
    fault    why this is a failure of cytopipe; empty where it is none
    notes    what the slide says of itself
    pixels   levels as arrays, None where a window could not be read
    """

    outcome: str = "read"
    said: str = ""
    fault: str = ""
    reader: str = ""
    notes: str = ""
    pixels: list[np.ndarray | None] = field(default_factory=list)


def examine(path: Path, *, seed: int = 0) -> Verdict:
    """Open, describe, find the foreground, read. Library noise on stderr is a fault."""
    verdict = Verdict()
    with tempfile.TemporaryFile() as noise:
        kept = os.dup(2)
        os.dup2(noise.fileno(), 2)
        try:
            _examine(path, verdict, seed)
        except CytopipeError as error:
            verdict.fault = verdict.fault or f"raised where nothing was to be read: {error}"
        except BaseException as error:  # noqa: BLE001  whatever it is, it is what this run looks for
            last = traceback.extract_tb(error.__traceback__)[-1]
            verdict.fault = f"{type(error).__name__}: {error} (at {Path(last.filename).name}:{last.lineno})"[:300]
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
        noise.seek(0)
        heard = noise.read(300).decode(errors="replace").strip()
    if heard and not verdict.fault:
        verdict.fault = f"a library wrote to stderr: {heard!r}"
    return verdict


def examine_command(path: Path, out: Path) -> Verdict:
    """`cytopipe tile` on it: one error line, or a store."""
    from typer.testing import CliRunner

    from cytopipe.cli.main import app

    arguments = ["tile", str(path), "--out", str(out), "--native", "--tile-px", "256", "--quiet", "--workers", "2"]
    done = CliRunner().invoke(app, arguments)
    lines = done.stderr.splitlines()
    verdict = Verdict("read" if done.exit_code == 0 else "refused" if done.exit_code == 2 else "reported")
    verdict.said = lines[0] if lines else ""
    if done.exit_code not in (0, 1, 2):
        verdict.fault = f"tile: exit code {done.exit_code}"
    elif "Traceback" in done.stderr or "a mistake in cytopipe" in done.stderr:
        verdict.fault = f"tile: {verdict.said[:300]}"
    elif done.exit_code and not verdict.said.startswith("error: "):
        verdict.fault = f"tile: exit code {done.exit_code} with {verdict.said!r}"
    elif done.exit_code == 2 and (len(lines) != 1 or out.exists()):
        verdict.fault = f"tile: refused in {len(lines)} lines, out {'exists' if out.exists() else 'absent'}"
    return verdict


def _examine(path: Path, verdict: Verdict, seed: int) -> None:
    try:
        slide = open_slide(path)
    except CytopipeError as error:
        verdict.outcome = "refused"
        _hear(verdict, error, path)
        return
    with slide:
        verdict.reader, verdict.notes = slide.reader, " ".join(slide.notes)
        _describe(slide)
        with _reports(verdict, path):
            _ = slide.background
        with _reports(verdict, path):
            found = find_foreground(slide)
            if found.unreadable_fraction:
                verdict.outcome = "reported"
        with _reports(verdict, path):
            thumbnail(slide, 400)
        random = np.random.default_rng(seed)
        for index, level in enumerate(slide.levels):
            verdict.pixels.append(None)
            if level.width * level.height <= WHOLE_PX:
                with _reports(verdict, path):
                    verdict.pixels[-1] = slide.read(index, 0, 0, level.width, level.height)
                continue
            w, h = min(WINDOW_PX, level.width), min(WINDOW_PX, level.height)
            for _ in range(WINDOWS):
                x, y = (int(random.integers(0, size - side + 1)) for size, side in
                        ((level.width, w), (level.height, h)))  # fmt: skip
                with _reports(verdict, path):
                    slide.read(index, x, y, w, h)


def _describe(slide: Slide) -> None:
    for value in (slide.dimensions, slide.levels, slide.resolution, slide.bounds_offset, slide.icc, slide.notes):
        repr(value)
    repr(dict(slide.properties))
    for index in range(len(slide.levels)):
        slide.native_tiles(index)


@contextlib.contextmanager
def _reports(verdict: Verdict, path: Path):
    try:
        yield
    except CytopipeError as error:
        verdict.outcome = "reported"
        _hear(verdict, error, path)


def _hear(verdict: Verdict, error: CytopipeError, path: Path) -> None:
    line = str(error)
    verdict.said = verdict.said or line
    if path.name not in line:
        verdict.fault = f"does not name the file: {line}"[:300]
    elif len(line) > MAX_LINE or "\n" in line or not line.isprintable():
        verdict.fault = f"not one clear line ({len(line)} characters): {line!r}"[:300]


def blank_blocks(before: np.ndarray, after: np.ndarray) -> int:
    """How many blocks of BLANK_PX are uniform now and were not before.

    Not counted: those with some channels at 0 or 255 and others not. There the stream was valid, but its mean colour
    ran away until it was clipped: nobody takes it for glass or cells, and no decoder can tell.
    """
    rows, columns = before.shape[0] // BLANK_PX, before.shape[1] // BLANK_PX
    if before.shape != after.shape or not rows or not columns:
        return 0
    colours = after[: rows * BLANK_PX : BLANK_PX, : columns * BLANK_PX : BLANK_PX]
    clipped = ((colours == 0) | (colours == 255)).sum(axis=2)
    is_new = _is_flat(after, rows, columns) & ~_is_flat(before, rows, columns)
    return int((is_new & ((clipped == 0) | (clipped == 3))).sum())


def _is_flat(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    blocks = pixels[: rows * BLANK_PX, : columns * BLANK_PX].reshape(rows, BLANK_PX, columns, BLANK_PX, 3)
    return (blocks == blocks[:, :1, :, :1]).all(axis=(1, 3, 4))
