"""The ring bank (METHODS 1.9): the newest labelled rows of earlier steps, in buffers, so that checkpoints hold them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RingBank(nn.Module):
    """The last `capacity` rows pushed, of all classes together, or of each class where `per_class`.

    capacity  rows kept (of each class where per_class)
    dim       length of a row
    classes   labels are 0..classes−1
    """

    rows: Tensor
    labels: Tensor
    pushed: Tensor

    def __init__(self, capacity: int, dim: int, classes: int, *, per_class: bool = False) -> None:
        super().__init__()
        if capacity <= 0:
            raise ValueError(f"RingBank: capacity {capacity}")
        self.capacity, self.classes, self.per_class = capacity, classes, per_class
        rings = classes if per_class else 1
        self.register_buffer("rows", torch.zeros(rings, capacity, dim))
        self.register_buffer("labels", torch.zeros(rings, capacity, dtype=torch.int64))
        # rows ever pushed to each ring: gives both the write pointer and the number of filled rows
        self.register_buffer("pushed", torch.zeros(rings, dtype=torch.int64))

    @torch.no_grad()
    def push(self, rows: Tensor, labels: Tensor) -> None:
        """Store detached float32 copies of rows (n, dim) with labels (n,) int64, oldest first; old rows give way."""
        for ring in range(len(self.pushed)):
            mine = labels == ring if self.per_class else torch.ones_like(labels, dtype=torch.bool)
            new_rows, new_labels = rows[mine][-self.capacity :], labels[mine][-self.capacity :]
            skipped = int(mine.sum()) - len(new_rows)
            at = (self.pushed[ring] + skipped + torch.arange(len(new_rows), device=self.pushed.device)) % self.capacity
            self.rows[ring, at] = new_rows.to(self.rows)
            self.labels[ring, at] = new_labels.to(self.labels)
            self.pushed[ring] += skipped + len(new_rows)

    def read(self) -> tuple[Tensor, Tensor]:
        """The filled rows (n, dim) float32 and their labels (n,) int64, ring by ring, in the order of their places."""
        filled = torch.arange(self.capacity, device=self.pushed.device) < self.pushed[:, None]
        return self.rows[filled], self.labels[filled]

    def __len__(self) -> int:
        return int(self.pushed.clamp(max=self.capacity).sum())
