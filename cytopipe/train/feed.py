"""A batch cut into the parts of a step (gradient accumulation)."""

from __future__ import annotations

from cytopipe.semi import Batch, Part, View


def parts_of(batch: Batch, count: int) -> list[Batch]:
    """The batch in `count` parts of equal size, images in order; what is drawn from an image's key stays as it was.

    Raises ValueError where `count` does not divide the labelled or the unlabelled images.
    """
    if count == 1:
        return [batch]
    labelled = _cut(batch.labelled, count)
    if batch.unlabelled is None:
        return [Batch(part, None) for part in labelled]
    return [Batch(a, b) for a, b in zip(labelled, _cut(batch.unlabelled, count), strict=True)]


def _cut(part: Part, count: int) -> list[Part]:
    images = len(next(iter(part.views.values())).image)
    size, rest = divmod(images, count)
    if rest:
        raise ValueError(f"{images} images in {count} parts")
    return [
        Part({name: _rows(view, start, start + size) for name, view in part.views.items()})
        for start in range(0, images, size)
    ]


def _rows(view: View, start: int, stop: int) -> View:
    return View(
        view.image[start:stop],
        view.targets[start:stop],
        view.affine[start:stop],
        view.keys[start:stop],
        None if view.labels is None else view.labels[start:stop],
        None if view.valid is None else view.valid[start:stop],
    )
