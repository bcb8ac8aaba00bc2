"""The images of a task in their parts, from the committed ids (splits/) and the data folder.

Where a task shrinks its images, that is done once, into the work folder, with the boxes as a COCO file. Nothing of the
data is ever written elsewhere.
"""

from __future__ import annotations

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from cytopipe.core.classes import class_named
from cytopipe.core.errors import UserError
from cytopipe.core.files import sha256_of, write_bytes, write_json, write_text
from cytopipe.data import ImagePool
from cytopipe.data.dataset import Dataset, open_dataset
from cytopipe.formats.read import read_annotations
from tests.benchmarks.evidence.tasks import Task

SPLITS = Path(__file__).with_name("splits")


@dataclass(frozen=True)
class Pools:
    """labelled, unlabelled: of the training part; unlabelled images are those whose labels are hidden, all of the
    training part where no label is. test_by_kind: the test part once more, by kind of image.
    """

    labelled: ImagePool
    unlabelled: ImagePool
    validation: ImagePool
    test: ImagePool
    test_by_kind: dict[str, ImagePool]
    digest: str


def pools_of(task: Task, data: Path, work: Path, labels: str, seed: int) -> Pools:
    """The pools of a run. Raises UserError where a set, or an image that the splits name, is missing."""
    rows = {row["id"]: row for name in task.sets for row in split_rows(name)}
    dataset = _dataset(task, data, work)
    place = {Path(name).stem: i for i, name in enumerate(dataset.ids)}
    missing = sorted(set(rows) - set(place))
    if missing:
        raise UserError(f"{len(missing)} images of the splits are not there, e.g. {missing[0]}", where=str(data))
    train = [i for i, row in rows.items() if row["part"] == "train"]
    few = train if labels == "all" else labelled_ids(task.name, labels, seed)
    hidden = sorted(set(train) - set(few)) or train
    classes = tuple(class_named(name) for name in task.classes)

    def pool(ids: list[str]) -> ImagePool:
        return dataset.pool(np.array([place[i] for i in sorted(ids)], np.intp), classes, task.resize_px)

    def part(name: str, kind: str = "") -> list[str]:
        return [i for i, row in rows.items() if row["part"] == name and row["kind"].startswith(kind)]

    kinds = sorted({row["kind"].split("-")[0] for row in rows.values()})
    by_kind = {kind: pool(part("test", kind)) for kind in kinds if len(kinds) > 1}
    return Pools(pool(few), pool(hidden), pool(part("val")), pool(part("test")), by_kind, _digest(task, data))


def split_rows(name: str) -> list[dict[str, str]]:
    """id, group, kind, part of each image of a set."""
    with (SPLITS / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def labelled_ids(task: str, labels: str, seed: int) -> list[str]:
    """The labelled subset of a fraction and seed."""
    ids: list[str] = json.loads((SPLITS / "labelled.json").read_text())[task][str(seed)][labels]
    return ids


def _dataset(task: Task, data: Path, work: Path) -> Dataset:
    for name in task.sets:
        if not (data / name).is_dir():
            raise UserError(f"needs the set {name}", where=str(data), fix="--data FOLDER")
    work.mkdir(parents=True, exist_ok=True)
    if task.shrink != 1:
        return open_dataset(_shrunk(data / task.sets[0], work / f"{task.name}-data", task))
    lines = ["image,annotation"]
    for name in task.sets:
        folder = (data / name).resolve()
        lines += [f"{image},{folder / 'labels' / image.name}" for image in sorted((folder / "images").iterdir())]
    listing = work / f"{task.name}.csv"
    write_text(listing, "\n".join(lines) + "\n")
    return open_dataset(listing, task.label_class or None)


def _shrunk(folder: Path, out: Path, task: Task) -> Path:
    """COCO file of the set with smaller images; boxes without area are left out (DATA.md: bccd has two)."""
    target = out / "boxes.json"
    if target.exists():
        return target
    (out / "images").mkdir(parents=True, exist_ok=True)
    number = {name: k + 1 for k, name in enumerate(task.classes)}
    images, boxes = [], []
    for k, path in enumerate(sorted((folder / "images").iterdir()), start=1):
        pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
        small = cv2.resize(pixels, None, fx=task.shrink, fy=task.shrink, interpolation=cv2.INTER_AREA)
        write_bytes(out / "images" / f"{path.stem}.png", cv2.imencode(".png", small)[1].tobytes())
        height, width = small.shape[:2]
        images.append({"id": k, "file_name": f"{path.stem}.png", "width": width, "height": height})
        found = read_annotations(folder / "annotations" / f"{path.stem}.xml")
        for item in found.objects:
            x0, y0, x1, y1 = (float(v) * task.shrink for v in item.geometry.bounds)
            if item.class_name in number and x1 > x0 and y1 > y0:
                box = {"id": len(boxes) + 1, "image_id": k, "category_id": number[item.class_name], "iscrowd": 0}
                boxes.append({**box, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)})
    categories = [{"id": k, "name": name} for name, k in number.items()]
    write_json(target, {"images": images, "annotations": boxes, "categories": categories})
    return target


def _digest(task: Task, data: Path) -> str:
    """SHA-256 over names and bytes of all images and annotations of the task's sets, and the committed ids."""
    found = hashlib.sha256()
    for name in task.sets:
        found.update((SPLITS / f"{name}.csv").read_bytes())
        for path in sorted(p for p in (data / name).rglob("*") if p.parent.name in ("images", "labels", "annotations")):
            found.update(f"{path.name} {sha256_of(path)}\n".encode())
    return found.hexdigest()
