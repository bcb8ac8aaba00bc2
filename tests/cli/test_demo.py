"""`cytopipe demo`: the main job, from nothing to counted cells, as a newcomer runs it."""

from __future__ import annotations

import json
import re
import subprocess
import sys


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
    for name in ("report.html", "objects.geojson"):
        path = re.search(rf"\S+{re.escape(name)}", done.stdout)[0]
        assert json.loads(open(path).read())["features"] if name.endswith("json") else "<html" in open(path).read()  # noqa: SIM115
    assert (out / "picture.png").stat().st_size > 100_000
