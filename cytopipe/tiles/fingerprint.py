"""A slide file's fingerprint: whether a file is the one that was read before, whatever its name, in milliseconds."""

from __future__ import annotations

import hashlib
from pathlib import Path

# [D] headers, tables of contents and pixels stand at the ends of every format we read; the size tells truncation.
# Dates are left out, since copying changes them.
END_BYTES = 1 << 20


def fingerprint_of(path: Path) -> str:
    """SHA-256, hex, of a file's size, its first and its last MiB. Raises OSError as `open` does."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(END_BYTES))
        file.seek(max(size - END_BYTES, 0))
        digest.update(file.read(END_BYTES))
    return digest.hexdigest()
