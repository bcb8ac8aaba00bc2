"""`cytopipe doctor`: does this installation work, and with what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cytopipe.cli import options
from cytopipe.cli.console import Session, table
from cytopipe.cli.options import option


def command(
    folder: Annotated[Path, option("--folder", "folder that shall be written to", metavar="DIR")] = Path(),
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Check installation, GPU, codecs, slide readers, disk and shipped models; exit code 1 if something is wrong."""
    with Session(json=json, quiet=quiet, debug=debug) as io:
        from cytopipe.steps.doctor import doctor

        checks = doctor(folder, say=io.say)
        io.result(
            table(("check", "state", "finding"), [(c.name, "ok" if c.ok else "FAILS", c.finding) for c in checks]),
            checks,
        )
        io.failures([(c.name, c.fix or c.finding) for c in checks if not c.ok], total=len(checks), unit="checks")
