"""Tiny networks and batches for the tests of methods: 64 px images with a few bright discs, in the views of any plan.

Built without loader and engine. Views of one image show the same discs; `own_hflip_p` flips a view and its affine.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cytopipe.core.classes import ObjectClass
from cytopipe.methods import Method, find_method
from cytopipe.nets import NetSpec, SegSpec, build_net, build_segnet
from cytopipe.semi import Batch, Clock, Part, Targets, View, ViewPlan, ViewPreset

SIDE = 64
CLASSES = tuple(ObjectClass(name=n, kind="cell", suspicious=True) for n in ("LSIL", "HSIL"))
MIDDLE = Clock(50, 100, 10)
SMALL = {"fpn_channels": 16, "head_dim": 32, "mask_channels": 8, "rois_per_image": 24, "train_proposals": 60}


def tiny_spec(task: str, **given: object) -> NetSpec | SegSpec:
    """The smallest network of a task."""
    if task == "semantic":
        return SegSpec(architecture="unet", classes=CLASSES, **{"widths": (4, 6, 8, 8, 8)} | given)
    family = "mask-rcnn" if task == "instance" else "faster-rcnn"
    return NetSpec(architecture=f"{family}-mobilenetv2-fpn", classes=CLASSES, width=0.25, **SMALL | given)


def tiny_net(task: str, seed: int = 0, **given: object) -> nn.Module:
    """Its network in train mode, drawn from a seed."""
    torch.manual_seed(seed)
    spec = tiny_spec(task, **given)
    return (build_segnet(spec) if isinstance(spec, SegSpec) else build_net(spec)).train()


class PooledTrunk(nn.Module):
    """A pyramid of averages: exactly flip-equivariant, and no batch norm (METHODS 1.7)."""

    def __init__(self, channels: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.lift = nn.Parameter(torch.randn(channels, 3, 1, 1, generator=generator))

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        return {level: F.conv2d(F.avg_pool2d(image, 2**level), self.lift) for level in range(2, 7)}


def pooled_net(task: str, seed: int = 0, **given: object) -> nn.Module:
    """A tiny DetNet on a pyramid of averages: nothing in it tells train from eval, or one image from its batch."""
    net = tiny_net(task, seed, **given)
    net.trunk = PooledTrunk(net.spec.fpn_channels, seed)
    return net


def made(name: str, student: nn.Module, *, seed: int = 0, **config: object) -> Method:
    """A method for this student, attached to it."""
    kind = find_method(name)
    method = kind(student.spec, kind.Config(**config), seed=seed)
    method.attach(student)
    return method


def batch_for(
    method: Method, *, seed: int = 0, labelled: int = 2, unlabelled: int = 2, objects: int = 2, side: int = SIDE
) -> Batch:
    """A batch with the views that the method's plan asks for."""
    return batch_of(method.views(), method.net_spec.task, seed, labelled, unlabelled, objects, side)


def batch_of(
    plan: ViewPlan, task: str, seed: int, labelled: int, unlabelled: int, objects: int, side: int = SIDE
) -> Batch:
    """Labelled images with that many objects each; unlabelled ones with two."""
    known = _part(plan.labelled, task, seed, labelled, objects, side, with_truth=True)
    if not plan.unlabelled:
        return Batch(known)
    return Batch(known, _part(plan.unlabelled, task, seed + 1000, unlabelled, 2, side, with_truth=False))


def permuted(batch: Batch, order: list[int]) -> Batch:
    """The batch with its unlabelled images in another order."""
    views = {}
    for name, view in batch.unlabelled.views.items():
        valid = None if view.valid is None else view.valid[order]
        views[name] = View(view.image[order], (), view.affine[order], view.keys[order], None, valid)
    return Batch(batch.labelled, Part(views))


def to_double(batch: Batch) -> Batch:
    """The batch with images and boxes in float64."""

    def part(of: Part | None) -> Part | None:
        if of is None:
            return None
        views = {}
        for name, v in of.views.items():
            targets = tuple(Targets(t.boxes.double(), t.labels, t.masks) for t in v.targets)
            views[name] = View(v.image.double(), targets, v.affine, v.keys, v.labels, v.valid)
        return Part(views)

    return Batch(part(batch.labelled), part(batch.unlabelled))


def _part(
    presets: dict[str, ViewPreset], task: str, seed: int, images: int, objects: int, side: int, *, with_truth: bool
) -> Part:
    pictures, boxes, labels = zip(*(_picture(seed + i, objects, side) for i in range(images)), strict=True)
    keys = torch.arange(images) + seed
    views = {}
    for number, (name, preset) in enumerate(presets.items()):
        noise = torch.randn(len(pictures), 3, side, side, generator=torch.Generator().manual_seed(seed + 7 * number))
        flip = preset.own_hflip_p > 0 and number % 2 == 1
        views[name] = _view(torch.stack(pictures) + 0.1 * noise, boxes, labels, keys, task, flip, with_truth)
    return Part(views)


def _picture(seed: int, objects: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Image (3, side, side) with discs on noise, their boxes and labels 1..C."""
    generator = torch.Generator().manual_seed(seed)
    image = 0.3 * torch.randn(3, side, side, generator=generator)
    radius = side * (0.12 + 0.1 * torch.rand(objects, generator=generator))
    x = side * (0.25 + 0.5 * torch.arange(objects) / max(objects - 1, 1)) + 2 * torch.rand(objects, generator=generator)
    y = side * (0.3 + 0.4 * torch.rand(objects, generator=generator))
    boxes = torch.stack([x - radius, y - radius, x + radius, y + radius], dim=1).reshape(-1, 4)
    labels = (torch.arange(objects) + seed) % len(CLASSES) + 1
    for disc, label in zip(_discs(boxes, side), labels, strict=True):
        image[:, disc] += torch.tensor([2.0, 0.5, 1.0])[:, None] * (1 if label == 1 else -1)
    return image, boxes, labels


def _discs(boxes: Tensor, side: int) -> Tensor:
    centre = torch.arange(side) + 0.5
    x, y = (boxes[:, [0, 1]] + boxes[:, [2, 3]]).div(2).unbind(dim=1)
    radius = (boxes[:, 2] - boxes[:, 0]) / 2
    squared = (centre[None, None, :] - x[:, None, None]) ** 2 + (centre[None, :, None] - y[:, None, None]) ** 2
    return squared <= radius[:, None, None] ** 2


def _view(
    image: Tensor,
    boxes: tuple[Tensor, ...],
    labels: tuple[Tensor, ...],
    keys: Tensor,
    task: str,
    flip: bool,
    with_truth: bool,
) -> View:
    images, side = len(image), image.shape[-1]
    affine = torch.eye(2, 3, dtype=torch.float64).repeat(images, 1, 1)
    if flip:
        image = image.flip(3)
        affine[:, 0, 0], affine[:, 0, 2] = -1.0, side
        boxes = tuple(torch.stack([side - b[:, 2], b[:, 1], side - b[:, 0], b[:, 3]], dim=1) for b in boxes)
    if not with_truth:
        return View(image, (), affine, keys)
    masks = [_discs(b, side) for b in boxes]
    if task == "semantic":
        class_map = torch.zeros(images, side, side, dtype=torch.int64)
        for one, discs, of in zip(class_map, masks, labels, strict=True):
            for disc, label in zip(discs, of, strict=True):
                one[disc] = label
            one[:2] = 255
        return View(image, (), affine, keys, class_map)
    with_masks = task == "instance"
    targets = tuple(
        Targets(b, of, discs.to(torch.uint8) if with_masks else None)
        for b, of, discs in zip(boxes, labels, masks, strict=True)
    )
    return View(image, targets, affine, keys)
