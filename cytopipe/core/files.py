"""Files that are whole or absent: written under a temporary name, fsynced, renamed. And the lock of an output folder.

Enters: a path and what to write.  Leaves: the file, or the old one untouched. Partials of a killed run (`.*.partial`) are swept by `sweep_partials`.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from cytopipe.core.errors import RunError, UserError

PARTIAL_SUFFIX = ".partial"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; on success it is fsynced and renamed to `path`, on any failure (also an interrupt) removed.

    The sibling keeps the suffix of `path` before `.partial`, for writers that look at it. Raises RunError when the disk is full.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        yield partial
        fsync_path(partial)
        partial.replace(path)
        fsync_path(path.parent)
    except OSError as error:
        raise disk_error(error, path) from error
    finally:
        partial.unlink(missing_ok=True)


def disk_error(error: OSError, path: Path) -> RunError:
    """The one line for a failed write: full disk and missing rights by name, anything else by its own text."""
    if error.errno == errno.ENOSPC:
        return RunError("no space left on the disk", where=str(path), fix="free some space and run the same command again; it resumes")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError("may not be written", where=str(path), fix="choose another --out")
    return RunError(f"could not be written ({error.strerror or error})", where=str(path))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file atomically."""
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file atomically, newlines as given."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically: two-space indent, keys in the given order, NaN refused (ValueError)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def fsync_path(path: Path) -> None:
    """Flush a file or folder to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sweep_partials(folder: Path) -> None:
    """Remove what a killed run left half-written below `folder`."""
    for path in folder.rglob(f".*{PARTIAL_SUFFIX}"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class FolderLock:
    """The right of one process to write to an output folder: `with FolderLock(folder): ...`.

    A second process is refused with the first one's pid and host (UserError). The lock of a process that is gone on this host is taken over.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"

    def __enter__(self) -> FolderLock:
        mine = f"{os.getpid()} {socket.gethostname()}"
        for _ in range(2):
            try:
                fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            except FileExistsError:
                self._take_over_or_refuse()
                continue
            except OSError as error:
                raise disk_error(error, self.path.parent) from error
            with os.fdopen(fd, "w") as file:
                file.write(mine)
            return self
        raise UserError("another run has just started in this folder", where=str(self.path.parent))

    def _take_over_or_refuse(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            pid_text, _, host = self.path.read_text().partition(" ")
            if host == socket.gethostname() and not _alive(pid_text):
                self.path.unlink(missing_ok=True)
                return
            raise UserError(
                f"process {pid_text or '?'} on {host or 'an unknown host'} is writing to this folder",
                where=str(self.path.parent),
                fix=f"wait for it, or remove {self.path.name} there if that machine is gone",
            )

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.path.unlink(missing_ok=True)


def _alive(pid_text: str) -> bool:
    if not pid_text.isdigit():
        return False
    try:
        os.kill(int(pid_text), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
