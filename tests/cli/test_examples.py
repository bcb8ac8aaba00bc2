"""The scripts of examples/ run as their docstrings say."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import shapely

from cytopipe.core.classes import class_named
from cytopipe.core.objects import Objects
from cytopipe.formats.qupath import SCORE
from cytopipe.formats.results import ResultsWriter
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


def test_results_come_into_the_form_of_naparis_layers(tmp_path):
    corner = np.array([[10.0, 20.0], [50.0, 60.0], [12.0, 90.0]])
    geometry = shapely.box(corner[:, 0], corner[:, 1], corner[:, 0] + 10, corner[:, 1] + 5)
    score = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32)
    objects = Objects(
        shapely.bounds(geometry),
        np.array([0, 1, 0], np.int32),
        score.max(axis=1),
        score,
        geometry,
        np.zeros(3, np.uint8),
        np.zeros(3, np.int32),
    )
    classes = [class_named("nucleus"), class_named("HSIL")]
    with ResultsWriter(tmp_path, "S", classes, (0.5, 0.25), write={"parquet", "zarr"}, size=(200, 150)) as out:
        out.add(objects)

    script = [sys.executable, str(EXAMPLES / "napari_layers.py"), str(tmp_path)]
    said = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    layers_of = runpy.run_path(str(EXAMPLES / "napari_layers.py"))["layers_of"]
    layers = {keywords["name"]: (data, keywords, kind) for data, keywords, kind in layers_of(tmp_path)}

    assert said == ["points cells 3", "shapes nucleus 2", "shapes HSIL 1", "labels objects-1 (150, 200)"]
    middles, keywords, _ = layers["cells"]
    assert middles[0].tolist() == [22.5, 15]
    assert keywords["scale"] == layers["objects-1"][1]["scale"] == (0.25, 0.5)
    assert all(len(column) == 3 for column in keywords["features"].values())
    outline = layers["HSIL"][0][0]
    assert (outline.min(axis=0).tolist(), outline.max(axis=0).tolist()) == ([60, 50], [65, 60])
    assert layers["objects-1"][0][0][62, 55] == 2


def test_the_script_for_qupath_reads_the_names_that_infer_writes():
    script = (EXAMPLES / "qupath_import.groovy").read_text(encoding="utf-8")

    pattern = re.search(r"==~ /(.*)/ }", script).group(1)
    names = ("objects.geojson", "objects.geojson.gz", "objects-0001.geojson", "objects-0012.geojson.gz")
    assert all(re.fullmatch(pattern, name) for name in names)
    assert not re.fullmatch(pattern, "objects.coco.json")
    assert re.search(r'getMeasurements\(\).get\("(.*)"\)', script).group(1) == SCORE
