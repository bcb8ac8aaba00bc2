"""Count the cells of slides from Python: the same steps as `cytopipe infer`, with the results as values.

python examples/count_cells.py results slide.svs [more.svs ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

import cytopipe


def main(out: str, *slides: str) -> None:
    """Find the cells of `slides`, write them below `out`, print one line a slide."""
    result = cytopipe.infer(list(slides), Path(out), device="cpu")
    for row in result.rows:
        print(row.slide_id, row.objects, row.classes, row.error or "")


if __name__ == "__main__":
    main(*sys.argv[1:])
