"""Files that are whole or absent: written under a temporary name, fsynced, renamed. And the lock of an output folder.

Enters: a path and what to write.  Leaves: the file, or the old one untouched. Partials of a killed run (`.*.partial`)
are swept by `sweep_partials`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from cytopipe.core.errors import DiskError, UserError

PARTIAL_SUFFIX = ".partial"


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling to write to; on success it is fsynced and renamed to `path`, on any failure (also an
    interrupt) removed.

    The sibling keeps the suffix of `path` before `.partial`, for writers that look at it. Raises RunError when the disk
    is full.
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


def disk_error(error: OSError, path: Path) -> DiskError:
    """The one line for a failed write: full disk and missing rights by name, anything else by its own text."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(
            "no space left on the disk" if error.errno == errno.ENOSPC else "the disk quota is used up",
            where=str(path),
            fix="free some space and run the same command again; it resumes",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return DiskError("may not be written", where=str(path), fix="choose another --out")
    return DiskError(f"could not be written ({error.strerror or error})", where=str(path))


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

    A second process is refused with the first one's pid and host (UserError). On one host the right ends with the
    process, however it ends: the kernel holds it (flock), so that the file of a killed run is taken over, and never by
    two at once. A file of another host is never taken over.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".lock"
        self._fd = -1

    def __enter__(self) -> FolderLock:
        while True:
            try:
                self._fd = os.open(self.path, os.O_CREAT | os.O_RDWR, 0o644)
            except OSError as error:
                raise disk_error(error, self.path.parent) from error
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._refuse()
            if self._is_current():
                break
            os.close(self._fd)  # its owner has just removed it: what we hold is no longer the folder's lock
        if self._owner()[1] not in ("", socket.gethostname()):
            self._refuse()  # not every shared file system tells one host of another's flock
        os.truncate(self._fd, 0)
        try:
            os.write(self._fd, f"{os.getpid()} {socket.gethostname()}".encode())
        except OSError as error:
            self.__exit__(None, None, None)
            raise disk_error(error, self.path.parent) from error
        return self

    def _owner(self) -> tuple[str, str]:
        """pid and host in the file; empty where there is none."""
        pid, _, host = os.pread(self._fd, 400, 0).decode(errors="replace").partition(" ")
        return pid, host

    def _refuse(self) -> NoReturn:
        pid, host = self._owner()
        os.close(self._fd)
        raise UserError(
            f"process {pid or '?'} on {host or 'an unknown host'} is writing to this folder",
            where=str(self.path.parent),
            fix=f"wait for it, or remove {self.path.name} there if that machine is gone",
        )

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.path.unlink(missing_ok=True)
        os.close(self._fd)
