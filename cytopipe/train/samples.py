"""Pictures for the report of a run: validation images with truth, student and teacher, and unlabelled images with what
the student was taught.

Enters: the parts of a run at its end.  Leaves: samples of report/panels.py, px of their images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor

from cytopipe.core.classes import ObjectClass
from cytopipe.core.seeds import rng_from
from cytopipe.data import ImagePool
from cytopipe.infer.located import Located
from cytopipe.infer.masks import polygons_from_roi_masks
from cytopipe.methods import PseudoLabels
from cytopipe.nets import Net, NetSpec, SegNet, SegSpec
from cytopipe.report.panels import Layer, Sample
from cytopipe.semi import IGNORE, View
from cytopipe.train.validate import locate_objects, segment_images

U8 = NDArray[np.uint8]

SAMPLES = 6  # images of each kind
MOST_DRAWN = 200  # objects of an image, best first: more hide it


def validation_samples(
    pool: ImagePool, networks: Mapping[str, Net], least_scores: Mapping[str, float], seed: int
) -> list[Sample]:
    """Images of the validation part, drawn by the seed, with the truth and a layer for each network.

    least_scores  kind -> least score that is drawn, as the bundle has it; 0.5 for a kind without
    """
    chosen = sorted(rng_from(seed, "samples").permutation(len(pool))[:SAMPLES].tolist())
    images = [pool.image(i) for i in chosen]
    task = next(iter(networks.values())).spec.task
    truth = [_truth(pool, i, task) for i in chosen]
    found = [_found(name, net, images, least_scores) for name, net in networks.items()]
    names = [pool.name(i) for i in chosen]
    return [Sample(*row) for row in zip(images, zip(truth, *found, strict=True), names, strict=True)]


def pseudo_label_samples(
    view: View, pseudo: Sequence[PseudoLabels], networks: Mapping[str, Net], least_scores: Mapping[str, float]
) -> list[Sample]:
    """Unlabelled images, in the view that the pseudo-labels are of, with these and a layer for each network."""
    spec = next(iter(networks.values())).spec
    count = min(len(view.image), len(pseudo), SAMPLES)
    images = _pixels(view.image[:count], spec)
    found = [_found(name, net, images, least_scores) for name, net in networks.items()]
    taught = [_taught(labels, spec.classes) for labels in pseudo[:count]]
    return [Sample(*row) for row in zip(images, zip(taught, *found, strict=True), strict=True)]


def _truth(pool: ImagePool, index: int, task: str) -> Layer:
    names = [item.name for item in pool.classes]
    if task == "semantic":
        return Layer("Truth", class_map=pool.class_map(index), class_names=names)
    objects = pool.objects(index)
    drawn = _boxes(shapely.bounds(objects.geometry)) if task == "detection" else objects.geometry
    return Layer("Truth", drawn, [names[label - 1] for label in objects.labels], remark=f"{len(drawn)} annotated")


def _found(title: str, net: Net, images: Sequence[U8], least_scores: Mapping[str, float]) -> list[Layer]:
    """What a network finds in each image, from the least score of each kind on."""
    classes = net.spec.classes
    was_training = net.training
    net.eval()
    if isinstance(net, SegNet):
        maps = segment_images(net, images)
        layers = [Layer(title, class_map=labels, class_names=[c.name for c in classes]) for labels in maps]
    else:
        cuts = np.array([least_scores.get(c.kind, 0.5) for c in classes])
        answers = locate_objects(net, images, float(cuts.min()))
        layers = [_objects_found(title, answer, cuts, classes) for answer in answers]
    net.train(was_training)
    return layers


def _objects_found(title: str, answer: Located, cuts: NDArray[np.float64], classes: Sequence[ObjectClass]) -> Layer:
    """The objects of an answer, which come best first; outlines where the network draws them."""
    kept = np.flatnonzero(answer.scores >= cuts[answer.labels - 1])
    shown = kept[:MOST_DRAWN]
    boxes = answer.boxes[shown]
    drawn = _boxes(boxes)
    if answer.masks is not None:
        outlines = polygons_from_roi_masks(answer.masks[shown], boxes)
        drawn = np.array([box if shape is None else shape for box, shape in zip(drawn, outlines, strict=True)], object)
    names = [classes[label - 1].name for label in answer.labels[shown]]
    remark = f"{len(kept)} found" + (f", the best {MOST_DRAWN} drawn" if len(kept) > len(shown) else "")
    return Layer(title, drawn, names, answer.scores[shown].tolist(), remark=remark)


def _taught(pseudo: PseudoLabels, classes: Sequence[ObjectClass]) -> Layer:
    names = [c.name for c in classes]
    labels = pseudo.labels.cpu().numpy()
    if pseudo.boxes is None:
        unused = float((labels == IGNORE).mean())
        remark = f"{unused:.0%} of the px not used" if unused else ""
        return Layer("Pseudo-labels", class_map=labels.astype(np.uint8), class_names=names, remark=remark)
    order = np.argsort(-pseudo.scores.float().cpu().numpy(), kind="stable")
    shown = order[:MOST_DRAWN]
    return Layer(
        "Pseudo-labels",
        _boxes(pseudo.boxes.double().cpu().numpy()[shown]),
        [names[label - 1] for label in labels[shown]],
        pseudo.scores.float().cpu().numpy()[shown].tolist(),
        remark=f"{len(order)} kept",
    )


def _boxes(boxes: NDArray[np.float64]) -> NDArray[np.object_]:
    return np.asarray(shapely.box(*np.asarray(boxes, np.float64).reshape(-1, 4).T), object)


def _pixels(images: Tensor, spec: NetSpec | SegSpec) -> list[U8]:
    """Normalised images (n, 3, H, W) as they were: `nets.normalise` undone."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (spec.mean, spec.std))
    pixels = ((images.float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return list(pixels.permute(0, 2, 3, 1).contiguous().numpy())
