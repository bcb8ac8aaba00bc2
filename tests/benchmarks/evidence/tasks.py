"""What is compared: for each task the data, the network, the settings that all methods share, and the table's rows.

Fair by construction (METHODS 2): a row may set nothing but its method and that method's own settings. Constants that
the papers count in steps or epochs are shortened with the run; everything else is the paper's. Every departure stands
in `why`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from cytopipe.core.classes import class_named
from cytopipe.nets.spec import NetSpec, SegSpec
from cytopipe.train.settings import TrainSettings

SUPERVISED_TERMS = frozenset({"rpn_cls", "rpn_reg", "roi_cls", "roi_reg", "mask", "ce", "dice", "L_sup", "L_S"})


@dataclass(frozen=True)
class Row:
    """One line of a table: a method, its settings, and why they are not the paper's where they are not.

    remedy_of  the row that this one tries to mend (sentence 13 of the issue)
    """

    method: str
    config: dict[str, Any] = field(default_factory=dict)
    why: str = ""
    remedy_of: str | None = None


@dataclass(frozen=True)
class Task:
    """One comparison.

    sets         folders below the data folder (DATA.md)
    label_class  of label maps; empty where files name their classes
    shrink       factor on the sides of all images before anything else
    resize_px    square to which images are resized; None: as they are
    few          the fraction of the main table
    shared       TrainSettings that every row uses
    metric       what the tables show, from the test part; the same one chooses on validation
    """

    name: str
    sets: tuple[str, ...]
    classes: tuple[str, ...]
    label_class: str
    net: dict[str, Any]
    shared: dict[str, Any]
    few: str
    fractions: tuple[str, ...]
    rows: dict[str, Row]
    metric: str
    shown: tuple[str, ...]
    shrink: float = 1.0
    resize_px: int | None = None
    hidden_images: int = 12

    def spec(self) -> NetSpec | SegSpec:
        """The network, the same for all rows."""
        classes = tuple(class_named(name) for name in self.classes)
        return (SegSpec if self.name == "semantic" else NetSpec)(classes=classes, **self.net)

    def settings(self, row: Row, iterations: int | None = None) -> TrainSettings:
        """The settings of a run; `iterations` for pilots."""
        values = {**self.shared, "architecture": self.net["architecture"], "classes": list(self.classes)}
        if iterations is not None:
            values["iterations"] = iterations
        return TrainSettings.model_validate({**values, "method": row.method, "config": row.config})


SEMANTIC = Task(
    name="semantic",
    sets=("dsb2018_stage1_train",),
    classes=("nucleus",),
    label_class="nucleus",
    resize_px=320,  # [P: CDCL]
    net={"architecture": "unet", "widths": (8, 16, 32, 64, 128)},
    shared={
        "iterations": 900,
        "batch_labelled": 4,
        "crop_px": 192,
        "flips": "both-and-turns",
        "labelled_view": "jittered",
        "optimiser": "adam",
        "lr": 2e-3,
        "weight_decay": 0.0,
        "schedule": "poly",
        "val_every": 100,
        "val_tiles": 46,
    },
    few="1/32",
    fractions=("1/32", "1/16", "1/8", "all"),
    metric="dice",
    shown=("dice", "jaccard"),
    rows={
        "supervised": Row("supervised"),
        "mean-teacher": Row(
            "mean-teacher",
            {"first_step": 30, "ramp_steps": 900, "ramp_every": 1},
            "first_step 1000 and ramp 30000 of 30000 steps (SSL4MIS) are 30 and 900 of 900",
        ),
        "cdcl": Row(
            "cdcl",
            {"burn_in_epochs": 1, "alpha": 0.99},
            "burn-in of 5 of 80 epochs is 1 of 10; alpha 0.999, a memory of a fifth of the paper's run, is 0.99",
        ),
        "mspa": Row("mspa"),
    },
)

OBJECTS: dict[str, Any] = {
    "crop_px": 192,
    "flips": "both-and-turns",
    "labelled_view": "jittered",
    "optimiser": "adam",
    "lr": 1e-3,
    "weight_decay": 1e-4,
    "schedule": "cosine",
    "warmup_iterations": 30,
    "grad_clip_norm": 10.0,
    "val_every": 100,
}
"""Settings that detection and instance segmentation share."""

DETECTION = Task(
    name="detection",
    sets=("bccd",),
    classes=("RBC", "WBC", "Platelets"),
    label_class="",
    shrink=0.5,
    net={"architecture": "faster-rcnn-mobilenetv2-fpn", "rois_per_image": 64, "train_proposals": 150},
    shared={**OBJECTS, "iterations": 800, "batch_labelled": 4, "val_tiles": 29},
    few="5%",
    fractions=("5%", "10%", "all"),
    metric="map_50",
    shown=("map_50", "map_10_70"),
    rows={
        "supervised": Row("supervised"),
        "mean-teacher": Row(
            "mean-teacher",
            {"alpha": 0.99, "proposals_per_image": 128},
            "alpha 0.999 would remember the whole of a short run; 512 proposals of 1200 px are 128 of 192 px",
        ),
        "dual-alignment": Row(
            "dual-alignment", {"proposals_per_image": 128}, "512 proposals of 1200 px are 128 of 192 px"
        ),
        "crossmatch": Row(
            "crossmatch",
            {"burn_in": 200, "alpha": 0.99, "proposals_per_image": 128, "ohem_k": 32, "ohem_ramp": 100},
            "burn-in 2000, ramp 1000 and alpha 0.9996 shortened with the run; N 1000 and K 256 with the image (192 px, "
            "not 1000)",
        ),
    },
)

INSTANCE = Task(
    name="instance",
    sets=("dsb2018_stage1_train", "pap_edf"),
    classes=("nucleus",),
    label_class="nucleus",
    net={"architecture": "mask-rcnn-mobilenetv2-fpn", "rois_per_image": 64, "train_proposals": 150},
    shared={**OBJECTS, "iterations": 600, "batch_labelled": 2, "val_tiles": 24},
    few="5%",
    fractions=("5%", "10%", "all"),
    metric="mask_map_50",
    shown=("mask_map_50", "aji50"),
    rows={
        "supervised": Row("supervised"),
        "mean-teacher": Row(
            "mean-teacher",
            {"alpha": 0.99, "proposals_per_image": 128},
            "alpha 0.999 would remember the whole of a short run; 512 proposals of 1000 px are 128 of 192 px",
        ),
        "mmt-psm": Row(
            "mmt-psm",
            {"burn_in": 150, "ramp_steps": 75, "rampdown_steps": 20, "proposals_per_image": 128},
            "burn-in 1000, ramps 250 of 8000 steps shortened with the run, burn-in less: the network starts from "
            "nothing; 512 proposals of 1000 px are 128 of 192 px",
        ),
    },
)

TASKS = {task.name: task for task in (SEMANTIC, DETECTION, INSTANCE)}

_PAPER: dict[str, dict[str, Any]] = {  # the papers' networks and lengths, for a GPU; methods with their own constants
    "semantic": {
        "net": {"architecture": "denseunet161"},
        "shared": {"iterations": 4800, "batch_labelled": 8, "crop_px": 320, "lr": 1e-4, "val_every": 240},
    },
    "detection": {
        "net": {"architecture": "faster-rcnn-resnet50-fpn"},
        "shared": {"iterations": 20000, "crop_px": 448, "optimiser": "sgd", "lr": 0.005, "val_every": 1000},
        "shrink": 1.0,
    },
    "instance": {
        "net": {"architecture": "mask-rcnn-resnet50-fpn"},
        "shared": {
            "iterations": 8000,
            "batch_labelled": 4,
            "crop_px": 256,
            "optimiser": "sgd",
            "lr": 0.005,
            "val_every": 500,
        },
    },
}


def at_scale(task: Task, scale: str) -> Task:
    """The task as it is run on two cores ("cpu"), or with the papers' networks, lengths and constants ("paper")."""
    if scale == "cpu":
        return task
    other = _PAPER[task.name]
    return replace(
        task,
        net=other["net"],
        shared={**task.shared, **other["shared"]},
        shrink=other.get("shrink", task.shrink),
        rows={name: Row(row.method) for name, row in task.rows.items() if row.remedy_of is None},
    )
