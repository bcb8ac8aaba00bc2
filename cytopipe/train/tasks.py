"""Which methods fit: a method against the network's task, and both against what a data set's annotations can teach."""

from __future__ import annotations

from typing import Literal

import numpy as np
import shapely
from pydantic import ValidationError

from cytopipe.core.errors import UserError, refuse_unknown
from cytopipe.data import ImagePool
from cytopipe.methods import METHODS, MethodConfig, find_method, methods_for
from cytopipe.train.settings import DEFAULT_METRIC, Task, TrainSettings
from cytopipe.train.validate import METRICS

ARCHITECTURE_FOR: dict[Task, str] = {
    "detection": "a faster-rcnn architecture",
    "instance": "a mask-rcnn architecture",
    "semantic": "unet or denseunet161",
}
LOOKED_AT = 64  # [D] annotated images whose objects decide: a set is made by one tool, boxes or outlines throughout
RECTANGLE = 1e-6  # of the area of its box that a box may lack after resampling and clipping


def check_method(settings: TrainSettings, has_unlabelled: bool) -> MethodConfig:
    """The method's settings, checked. Raises UserError for an unknown method or key, a task it cannot train, a metric
    of another task, or missing unlabelled images.
    """
    kind = find_method(settings.method)
    refuse_unknown(settings.config, kind.Config.model_fields, f"[train.config] of {settings.method}")
    try:
        config = kind.Config.model_validate(settings.config)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{'.'.join(map(str, first['loc']))}: {first['msg']}", where=f"[train.config] of {settings.method}"
        ) from error
    task = settings.task
    if task not in kind.tasks:
        raise UserError(
            f"method {settings.method} trains {_listed(sorted(kind.tasks))}, not {task}",
            where=f"train.architecture {settings.architecture}",
            fix=f"choose {_architectures(kind.tasks)}; methods that train {task}: {', '.join(methods_for(task))}",
        )
    if settings.metric not in METRICS[task]:
        raise UserError(
            f"{settings.metric} is no metric of {task} networks",
            where="train.val_metric",
            fix=f"auto ({DEFAULT_METRIC[task]}), or {_listed(METRICS[task])}",
        )
    if kind.uses_unlabelled and not has_unlabelled:
        raise UserError(
            f"method {settings.method} learns from unlabelled tiles too",
            fix="give --unlabeled STORE (`cytopipe mine-unlabeled` makes one)",
        )
    return config


def check_annotations(settings: TrainSettings, pool: ImagePool, where: str) -> None:
    """Raises UserError where the labelled images cannot teach the network's task, naming the methods that they fit."""
    kind = annotation_kind(pool)
    if kind == "outlines" or settings.task == "detection":
        return
    fitting = [name for name in METHODS if "detection" in find_method(name).tasks]
    needs = "outlines or masks" if settings.task == "instance" else "masks or outlines"
    own = f"method {settings.method} with {settings.architecture} is for {settings.task} segmentation and needs {needs}"
    raise UserError(
        f"{own}, and what is annotated here are boxes only",
        where=where,
        fix=f"methods that fit boxes, with {ARCHITECTURE_FOR['detection']}: {', '.join(fitting)}",
    )


def annotation_kind(pool: ImagePool) -> Literal["boxes", "outlines"]:
    """ "boxes" where every object looked at is an upright rectangle (at least one is there), else "outlines"."""
    looked = 0
    for index in range(len(pool)):
        shapes = pool.objects(index).geometry
        if len(shapes) == 0:
            continue
        x0, y0, x1, y1 = np.asarray(shapely.bounds(shapes)).T
        box = (x1 - x0) * (y1 - y0)
        if (shapely.area(shapes) < (1 - RECTANGLE) * box).any():
            return "outlines"
        looked += 1
        if looked == LOOKED_AT:
            break
    return "boxes" if looked else "outlines"


def _architectures(tasks: frozenset[str]) -> str:
    return _listed([text for task, text in ARCHITECTURE_FOR.items() if task in tasks])


def _listed(names: list[str] | tuple[str, ...]) -> str:
    return " or ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]
