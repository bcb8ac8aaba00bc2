"""Where things of the package and of the machine are: recipes and models (checkout or wheel), scratch limits, cores."""

from __future__ import annotations

import os
from pathlib import Path


def shipped(kind: str) -> Path:
    """The folder of shipped `pipelines` or `models`: inside the wheel at cytopipe/_data, in a checkout at its root."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "_data" / kind
    return installed if installed.is_dir() else package.parent / kind


def cores() -> int:
    """Cores this process may use (affinity respected where the system tells it)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
