"""The truth of an evaluation in other formats than QuPath's: one file for one slide, or for several."""

from __future__ import annotations

import json

import pytest

from cytopipe.core.errors import UserError
from cytopipe.evaluate.truth import open_truth

VOC = (
    "<annotation><object><name>RBC</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>8</ymax></bndbox>"
    "</object></annotation>"
)


@pytest.fixture
def coco(tmp_path):
    """One COCO file for two slides, with one box and two boxes."""
    document = {
        "images": [{"id": 1, "file_name": "day/S-1.tif"}, {"id": 2, "file_name": "day/S-2.tif"}],
        "categories": [{"id": 1, "name": "RBC"}],
        "annotations": [
            {"id": k, "image_id": image, "category_id": 1, "bbox": [k, 0, 5, 5]} for k, image in enumerate((1, 2, 2))
        ],
    }
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(document))
    return path


def test_one_coco_file_is_the_truth_of_every_slide_that_it_names(coco):
    truth = open_truth(coco)

    assert truth.slides() == {"S-1", "S-2"}
    assert [len(truth.read(slide, (100, 100))) for slide in ("S-1", "S-2")] == [1, 2]
    assert truth.read("S-1", (100, 100)).boxes.tolist() == [[0, 0, 5, 5]]  # COCO is in frame slide: not moved


def test_a_folder_of_files_named_after_slides_may_mix_formats_and_a_slide_list_is_none_of_them(tmp_path):
    (tmp_path / "S-1.xml").write_text(VOC)
    (tmp_path / "slides.csv").write_text("path\nS-1.tif\n")

    truth = open_truth(tmp_path)

    assert truth.slides() == {"S-1"}
    assert truth.read("S-1", (0, 0)).boxes.tolist() == [[0, 0, 9, 8]]


def test_two_files_of_one_slide_are_refused(tmp_path):
    (tmp_path / "S-1.xml").write_text(VOC)
    (tmp_path / "S-1.geojson").write_text("[]")

    with pytest.raises(UserError, match="has two files for slide S-1"):
        open_truth(tmp_path)
