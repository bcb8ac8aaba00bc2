"""JSON that comes from outside, read whole: every way in which a file is none becomes one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cytopipe.core.errors import UserError

MAX_BYTES = 2 << 30  # the parser needs about ten times the file; a slide of a million outlined cells is below 1 GB


def load_json(path: Path) -> Any:
    """The document of a UTF-8 file. Raises UserError if it is missing, larger than MAX_BYTES, or no JSON."""
    where = str(path)
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise UserError(
                f"is {size >> 20} MB, more than {MAX_BYTES >> 20} MB", where=where, fix="export it in parts"
            )
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError("no such file", where=where) from error
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=where) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not JSON ({error})", where=where, fix="give QuPath's GeoJSON or a COCO file") from error
