"""A slide file's fingerprint: whether a file is the one that was read before, whatever its name, in milliseconds."""

from __future__ import annotations

import hashlib
from pathlib import Path

# [D] headers, tables of contents and pixels stand at the ends of every format we read; the size tells truncation.
# Dates are left out, since copying changes them.
END_BYTES = 1 << 20


def fingerprint_of(path: Path) -> str:
    """SHA-256, hex, of a file's size, its first and its last MiB; of a folder (zarr) the names and sizes of its files
    with the ends of the first and last of them. Raises OSError as `open` does."""
    if path.is_dir():
        return _fingerprint_of_folder(path)
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(END_BYTES))
        file.seek(max(size - END_BYTES, 0))
        digest.update(file.read(END_BYTES))
    return digest.hexdigest()


def _fingerprint_of_folder(folder: Path) -> str:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in files:
        digest.update(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode())
    # "zarr.json" sorts behind all chunks and ".zattrs" before them: one end is metadata, the other pixels
    for path in (*files[:2], *files[-2:]):
        digest.update(fingerprint_of(path).encode())
    return digest.hexdigest()
