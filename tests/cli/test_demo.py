"""`cytopipe demo`: the main job, from nothing to counted cells, as a newcomer runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path


def test_the_demo_finds_counts_and_shows_the_cells_of_a_slide(tmp_path):
    out = tmp_path / "demo"

    done = subprocess.run(
        [sys.executable, "-m", "cytopipe.cli.main", "demo", "--out", str(out)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    counts = re.search(r"nuclei\s+(\d+) of (\d+) found \(.*\), (\d+) missed, (\d+) doubled", done.stdout)
    found, true, missed, _ = map(int, counts.groups())
    assert true > 1000
    assert found + missed == true
    report, objects = (
        Path(re.search(rf"\S+{name}", done.stdout)[0]) for name in (r"report\.html", r"objects\.geojson")
    )
    assert "<html" in report.read_text()
    assert len(json.loads(objects.read_text())["features"]) > 1000
    assert (out / "picture.png").stat().st_size > 100_000
