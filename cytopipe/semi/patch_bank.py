"""The patch bank of CDCL: the patches of the newest steps, in buffers, so that checkpoints hold them."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from cytopipe.nets.ranks import gather_rows


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """n patches of N cells each.

    features  (n, N, d), a row a cell
    labels    (n, N) int64, the cells' classes
    dominant  (n,) int64, the class whose patch it is
    images    (n,) int64, the key of the patch's image, and
    places    (n,) int64, the patch's place in it: together they say where a patch was cut
    """

    features: Tensor
    labels: Tensor
    dominant: Tensor
    images: Tensor
    places: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, use: Tensor) -> Patches:
        """The patches that `use` (n,) bool names."""
        return Patches(*(getattr(self, field.name)[use] for field in fields(self)))

    @staticmethod
    def joined(*parts: Patches) -> Patches:
        """All patches of the parts, in order."""
        return Patches(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Patches)))


class PatchBank(nn.Module):
    """All patches of the newest `batches` steps, of all ranks together.

    How many that are depends on the images: the buffers grow and shrink, and a loaded state brings its own size.
    """

    NAMES = ("features", "labels", "dominant", "images", "places", "steps")
    features: Tensor
    labels: Tensor
    dominant: Tensor
    images: Tensor
    places: Tensor
    steps: Tensor

    def __init__(self, batches: int, dim: int) -> None:
        super().__init__()
        if batches <= 0:
            raise ValueError(f"PatchBank: {batches} batches")
        self.batches = batches
        self.register_buffer("features", torch.zeros(0, 0, dim))
        self.register_buffer("labels", torch.zeros(0, 0, dtype=torch.int64))
        for name in ("dominant", "images", "places", "steps"):
            self.register_buffer(name, torch.zeros(0, dtype=torch.int64))

    @torch.no_grad()
    def push(self, patches: Patches, step: int) -> None:
        """Take up detached copies of the patches of all ranks, as those of iteration `step`; old steps give way.

        Several pushes of one step (accumulated gradients) are one batch. Reached by all ranks, also without a patch.
        """
        new = {name: gather_rows(getattr(patches, name)) for name in self.NAMES[:-1]}
        new["steps"] = torch.full_like(new["places"], step)
        if len(self) and self.labels.shape[1:] != new["labels"].shape[1:]:
            raise ValueError(f"PatchBank: patches of {new['labels'].shape[1]} cells, not of {self.labels.shape[1]}")
        old = self.steps > step - self.batches if len(self) else None
        for name, rows in new.items():
            mine = getattr(self, name)
            rows = rows.to(mine)
            setattr(self, name, rows.clone() if old is None else torch.cat([mine[old], rows]))

    def read(self) -> Patches:
        """What it holds, oldest first."""
        return Patches(self.features, self.labels, self.dominant, self.images, self.places)

    def __len__(self) -> int:
        return len(self.steps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self.NAMES:
            if prefix + name in state_dict:
                mine = getattr(self, name)
                setattr(self, name, mine.new_empty(state_dict[prefix + name].shape))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
