"""What a run is asked beside its validation: the size of its gradients, the worth of its pseudo-labels against the
hidden truth, and the weights of student and teacher each at its own best validation.

Nothing here alters training: the probes draw no random number and leave every buffer alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import shapely
import torch
from torch import Tensor

from cytopipe.core.files import write_json
from cytopipe.methods import Method
from cytopipe.metrics import match_by_score, overlapping_pairs
from cytopipe.nets import Net, SegNet, inference_state
from cytopipe.nets.bundle import save_state
from cytopipe.train.choose import Chooser
from cytopipe.train.settings import TrainSettings
from cytopipe.train.validate import Validation, locate_objects, segment_images
from tests.benchmarks.evidence.tasks import SUPERVISED_TERMS

if TYPE_CHECKING:
    from cytopipe.data import ImagePool
    from cytopipe.semi import Batch, Clock, Weighted
    from cytopipe.train.checkpoint import Progress

SCORE_CUTS = (0.5, 0.7)  # thresholds of the papers: dual-alignment and mmt-psm 0.5, crossmatch 0.7
OWN_BEST = "own-best-{network}"


def probed(kind: type[Method], every: int) -> type[Method]:
    """The method, with the norms of its gradients among its signals every so many iterations:

    grad_supervised, grad_unsupervised  of the weighted terms, over the student's parameters
    grad_cosine                         of the two
    """

    class Probed(kind):  # type: ignore[valid-type, misc]
        _norms: Mapping[str, float] = {}

        def losses(self, batch: Batch, student: Net, teacher: Net | None, clock: Clock) -> dict[str, Weighted]:
            terms: dict[str, Weighted] = super().losses(batch, student, teacher, clock)
            self._norms = gradient_norms(terms, student) if clock.t % every == every - 1 else {}
            return terms

        def signals(self) -> dict[str, float]:
            return {**super().signals(), **self._norms}

    return Probed


def gradient_norms(terms: Mapping[str, Weighted], student: Net) -> dict[str, float]:
    """Norms of the gradients of the supervised and of the other terms, and their cosine where both are there."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    flat = {}
    for name, mine in (
        ("supervised", [t for n, t in terms.items() if n in SUPERVISED_TERMS]),
        ("unsupervised", [t for n, t in terms.items() if n not in SUPERVISED_TERMS]),
    ):
        if mine:
            total = torch.stack([t.weight * t.value.float() for t in mine]).sum()
            flat[name] = _flat(torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True), parameters)
    norms = {f"grad_{name}": float(g.norm()) for name, g in flat.items()}
    if len(flat) == 2 and min(norms.values()) > 0:
        cosine = flat["supervised"] @ flat["unsupervised"] / (norms["grad_supervised"] * norms["grad_unsupervised"])
        norms["grad_cosine"] = float(cosine)
    return norms


class Keeper(Chooser):
    """A chooser that also measures both networks on hidden images, and keeps each at its own best validation."""

    def __init__(self, folder: Path, pool: ImagePool, settings: TrainSettings, hidden: ImagePool, images: int) -> None:
        super().__init__(folder, pool, settings)
        self._place, self._hidden, self._images = folder, hidden, images

    def look(self, networks: Mapping[str, Net], progress: Progress) -> dict[str, Validation]:
        """As `Chooser.look`; the metrics gain `hidden_…`. What it keeps is a function of the networks alone, so that a
        run that was killed in between keeps the same.
        """
        results = super().look(networks, progress)
        for name, net in networks.items():
            value, best = self.value(results[name]), self._own_best(name)
            if best is None or value > best[0] or best[1] >= progress.t:
                save_state(self.own_file(name), inference_state(net))
                write_json(self.own_file(name).with_suffix(".json"), [value, progress.t])
            quality = pseudo_label_quality(net, self._hidden, self._images)
            results[name] = replace(results[name], metrics=results[name].metrics | quality)
        return results

    def own_file(self, network: str) -> Path:
        """The weights of a network at its own best validation."""
        return self._place / f"{OWN_BEST.format(network=network)}.safetensors"

    def _own_best(self, network: str) -> tuple[float, int] | None:
        path = self.own_file(network).with_suffix(".json")
        if not path.exists():
            return None
        value, t = json.loads(path.read_text())
        return value, t


def pseudo_label_quality(net: Net, pool: ImagePool, most: int) -> dict[str, float]:
    """How right the network is on images whose labels no training sees.

    Pixels: hidden_precision, hidden_recall of the foreground, over all pixels. Boxes: the same at IoU 0.5, class for
    class, for results of score 0.5 and 0.7, and how many there are an image.
    """
    chosen = np.unique(np.linspace(0, len(pool) - 1, min(most, len(pool))).round().astype(int)).tolist()
    was_training = net.training
    net.eval()
    try:
        if isinstance(net, SegNet):
            return _of_pixels(net, pool, chosen)
        return _of_boxes(net, pool, chosen)
    finally:
        net.train(was_training)


def _of_pixels(net: SegNet, pool: ImagePool, chosen: list[int]) -> dict[str, float]:
    hit = found = true = 0
    for i, labels in zip(chosen, segment_images(net, [pool.image(i) for i in chosen]), strict=True):
        truth = pool.class_map(i)
        seen = truth != 255
        hit += int(((labels == truth) & (labels > 0) & seen).sum())
        found += int(((labels > 0) & seen).sum())
        true += int(((truth > 0) & seen).sum())
    return {"hidden_precision": hit / max(found, 1), "hidden_recall": hit / max(true, 1)}


def _of_boxes(net: Net, pool: ImagePool, chosen: list[int]) -> dict[str, float]:
    answers = locate_objects(net, [pool.image(i) for i in chosen], score_threshold=min(SCORE_CUTS))
    result: dict[str, float] = {}
    for cut in SCORE_CUTS:
        hit = found = true = 0
        for i, answer in zip(chosen, answers, strict=True):
            objects = pool.objects(i)
            boxes = shapely.bounds(objects.geometry).reshape(-1, 4)
            true += len(boxes)
            for label in np.unique(answer.labels):
                mine = (answer.labels == label) & (answer.scores >= cut)
                theirs = boxes[objects.labels == label]
                none = np.zeros(len(theirs), bool)
                order = np.argsort(-answer.scores[mine], kind="stable")
                pairs = overlapping_pairs(answer.boxes[mine], theirs, none)
                hit += int(match_by_score(pairs, order, none, none, 0.5)[0].sum())
                found += int(mine.sum())
        at = f"{cut:g}".replace(".", "")
        result |= {f"hidden_precision_{at}": hit / max(found, 1), f"hidden_recall_{at}": hit / max(true, 1)}
        result[f"hidden_per_image_{at}"] = found / len(chosen)
    return result


def _flat(gradients: Iterable[Tensor | None], parameters: list[torch.nn.Parameter]) -> Tensor:
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([torch.zeros(p.numel()) if g is None else g.float().cpu().flatten() for g, p in pairs])
