"""A slide looked at before anything is written: what is wrong with a lone one is raised, with one of several noted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from cytopipe.core.errors import CytopipeError, UserError
from cytopipe.slides import SlideEntry
from cytopipe.tiles import fingerprint_of

Seen = TypeVar("Seen")


def seen_or_noted(entry: SlideEntry, look: Callable[[], Seen], noted: Callable[[str], Seen], *, alone: bool) -> Seen:
    """look(); where that fails on one of several slides, noted(reason).

    Raises what `look` raises for a slide that is alone; UserError for a file that the system does not give.
    """
    try:
        try:
            return look()
        except OSError as error:
            where = str(error.filename or entry.path)
            raise UserError(f"cannot be read ({error.strerror})", where=where) from error
    except CytopipeError as error:
        if alone:
            raise
        return noted(str(error))


def facts_of(entry: SlideEntry, annotations: Path | None, sha256: Callable[[Path], str]) -> dict[str, Any]:
    """What a slide's part of the output depends on, beside the run's parameters: when any of it changes, the slide is
    done again."""
    return {
        "fingerprint": fingerprint_of(entry.path),
        "annotations": sha256(annotations) if annotations else None,
        "mpp": entry.mpp,
    }
