"""Images of one slide on their way to the disk: written and flushed behind the cutting, which does not wait for disks.

Enters: encoded images, in the order of the tiles.  Leaves: files below one folder, all of them flushed at the end. What
is in them: `image_files.py`, `zarr_images.py`.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from cytopipe.core.files import disk_error, fsync_path

# [D] images in memory until they are written, beside those of the cutting: at most 25 MB with JPEG tiles of 1200 px, 70
# MB without loss. A disk that keeps up less makes the cutting wait
WAITING = 16


class ImageSink(Protocol):
    """Takes the images of one slide. A disk that fails is a RunError of `add`, or of `finish` at the latest."""

    def add(self, x: int, y: int, image: bytes) -> str:
        """Take the image of the tile at (x, y); returns where it is to be found, below the slide's folder."""

    def finish(self) -> None:
        """Wait until all images are on the disk."""

    def close(self) -> None:
        """Afterwards nothing writes any more, finished or not."""


class Behind:
    """Runs calls in threads behind the caller, a few of them waiting; the first error is raised by `put` or `finish`.

    With one thread the calls run in the order in which they were put.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="disk")
        self._pending: deque[Future[None]] = deque()

    def put(self, call: Callable[..., None], *arguments: object) -> None:
        """Have `call(*arguments)` run; waits while `WAITING` calls are not finished."""
        while self._pending and (self._pending[0].done() or len(self._pending) >= WAITING):
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(call, *arguments))

    def finish(self) -> None:
        """Wait for all calls."""
        while self._pending:
            self._pending.popleft().result()

    def close(self) -> None:
        """Drop what has not begun and wait for the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """What fails inside is the output disk's fault, and said so; reading slides stays outside."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from error


def flush(path: Path) -> None:
    """Flush a file or folder to the disk. Raises RunError."""
    with disk(path):
        fsync_path(path)
