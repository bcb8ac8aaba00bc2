"""The scripts of examples/ run as their docstrings say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cytopipe.steps.synth import synth

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_cells_are_counted_from_python(tmp_path):
    made = synth(tmp_path / "slides", size=(512, 512), seed=3)

    paths = [str(slide.path) for slide in made.slides]
    script = [sys.executable, str(EXAMPLES / "count_cells.py"), str(tmp_path / "results")]
    done = subprocess.run([*script, *paths], capture_output=True, text=True, check=True)

    slide_id, objects, *_ = done.stdout.split()
    assert slide_id == made.slides[0].slide_id
    assert int(objects) >= 0
    assert (tmp_path / "results" / slide_id / "objects.parquet").is_file()
