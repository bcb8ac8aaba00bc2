"""Commands in real processes that can be killed, forked from a server that has imported what `tile` and `infer` need,
and has started no thread: a start costs milliseconds instead of the seconds of importing torch.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "cytopipe.cli.main",
        "cytopipe.steps.infer",
        "cytopipe.steps.tile",
        "cytopipe.steps.train",
        "cytopipe.slides.tiff_reader",
        "imagecodecs._jpeg8",
        "imagecodecs._png",
        "PIL.JpegImagePlugin",
        "pyarrow.dataset",
        "pyarrow.pandas_compat",
        "pandas",
        "zarr",
        __name__,
    ]
)


@dataclass
class Ended:
    """How a command ended: exit code (negative: the signal), what it said on both streams."""

    code: int
    said: str


def enter(arguments: list[str], said: Path, writes: int | None) -> None:
    """The command in its own process, as the installed program enters it; `writes`: after so many the disk is full."""
    import torch

    from cytopipe.cli.main import main

    torch.set_num_threads(1)
    sys.stdout = sys.stderr = said.open("w", buffering=1)
    sys.argv = ["cytopipe", *arguments]
    if writes is not None:
        fill_disk_after(writes, Path(arguments[arguments.index("--out") + 1]))
    main()


def start(arguments: list[str], said: Path, writes: int | None = None) -> multiprocessing.Process:
    """Start a command; it says what it says into the file `said`."""
    os.environ["OMP_NUM_THREADS"] = "1"  # the server's, from its start: a fork of a process with threads may hang
    process = SERVER.Process(target=enter, args=(arguments, said, writes))
    process.start()
    return process


def run(arguments: list[str], said: Path, writes: int | None = None) -> Ended:
    """Run a command to its end."""
    process = start(arguments, said, writes)
    process.join(300)
    assert process.exitcode is not None, "still running after 300 s"
    return Ended(process.exitcode, said.read_text())


def fill_disk_after(writes: int, folder: Path) -> None:
    """Let all but the first `writes` files that Python opens for writing below `folder` meet a full disk."""
    opened, real = 0, io.open

    def full(file: object, mode: str = "r", *rest: object, **named: object):
        nonlocal opened
        if set(mode) & set("wax+") and folder in Path(str(file)).parents:
            opened += 1
            if opened > writes:
                raise OSError(28, "No space left on device", str(file))
        return real(file, mode, *rest, **named)

    io.open = full
