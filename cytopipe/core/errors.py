"""Errors of cytopipe.

CytopipeError          what went wrong, where, what to do
├─ UserError  exit 2   input, flags or recipe are at fault; nothing was written
└─ RunError   exit 1   the run failed: disk, decoder, device, some slides of many
   └─ DiskError        the output cannot be written: no other slide would fare better, the run ends
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CytopipeError(Exception):
    """What went wrong, where (a file, a key, a place in a slide) and what to do about it, as one line."""

    exit_code = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        text = (f"{self.where}: " if self.where else "") + self.what + (f"; {self.fix}" if self.fix else "")
        line = " ".join(text.split())
        return line if line.isprintable() else "".join(sign if sign.isprintable() else "\ufffd" for sign in line)


class UserError(CytopipeError):
    """Input, flags or recipe are at fault; nothing was written. Exit code 2."""

    exit_code = 2


class RunError(CytopipeError):
    """The run itself failed: disk, decoder, device, or some slides of many. Exit code 1."""


class DiskError(RunError):
    """The output cannot be written: a full disk, a quota, missing rights. It ends a run over many slides: what is
    finished stands, and the same command resumes.
    """


def nearest_fix(given: str, known: Iterable[str], what: str = "known names") -> str:
    """The `fix` half of an error about an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"{what}: " + ", ".join(names)


def refuse_unknown(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise UserError for the first key of `given` that is not in `known`, naming the nearest known one."""
    names = sorted(known)
    for key in given:
        if key not in names:
            raise UserError(f"unknown key {key!r}", where=where, fix=nearest_fix(key, names, "known keys"))
