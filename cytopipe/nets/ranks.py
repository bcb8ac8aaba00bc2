"""What a mean, and a bank, must know of the other processes of a run (torchrun, or `train --gpus N`).

The processes of a run ("ranks") hold parts of one global batch, and the engine averages their gradients. That average
is the gradient of the global mean only if each rank divides by the global count over the ranks:

    sum over rank r / mean_count(n_r),  mean_count = (n_0 + ... + n_{R-1}) / R

With one process, or outside of a run, all of this is the identity. Each function that talks to other ranks must be
reached by all of them, in the same order: never call it under a condition that can differ between ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable


def world_size() -> int:
    """How many processes train together; 1 outside of a distributed run."""
    return dist.get_world_size() if _joined() else 1


def rank() -> int:
    """The place of this process among them, from 0."""
    return dist.get_rank() if _joined() else 0


@torch.no_grad()
def mean_count(n: Tensor | float) -> Tensor:
    """The mean over the ranks of a count, as a float32 scalar on the count's device; without a gradient.

    Clamp it where it divides: `values.sum() / mean_count(len(values)).clamp(min=1)`. A weight sum is a count, too.
    A plain number is put on the device of the run.
    """
    count = torch.as_tensor(n, dtype=torch.float32, device=n.device if isinstance(n, Tensor) else _device())
    if not _joined():
        return count.detach()
    count = count.detach().clone()
    dist.all_reduce(count)
    return count / dist.get_world_size()


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x` (one shape on all ranks) over the ranks, the same on each.

    For what all ranks then compute alike from it, such as a loss of class means: the gradient through the own part is
    taken `world_size()` times, so that the engine's average over the ranks is the gradient of one process.
    """
    if not _joined():
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total + dist.get_world_size() * (x - x.detach())


@torch.no_grad()
def gather_rows(x: Tensor) -> Tensor:
    """The rows of all ranks, in rank order: (n_r, ...) -> (sum of n_r, ...), detached; n_r may differ and be 0.

    What a bank takes up goes through here, so that its content is the same on all ranks, and that of one process.
    """
    x = x.detach()
    if not _joined():
        return x
    counts = [torch.zeros((), dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(len(x), dtype=torch.int64, device=x.device))
    lengths = [int(count) for count in counts]
    padded = x.new_zeros((max(lengths), *x.shape[1:]))  # all_gather wants equal shapes
    padded[: len(x)] = x
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])


def shared_rows(x: Tensor) -> Tensor:
    """`gather_rows` with its gradient: what the losses of all ranks owe to a rank's rows comes back to it.

    For rows that every rank uses in a loss of its own, such as class means of the global batch. The backward pass talks
    to the other ranks, too: all of them must take it.
    """
    if not _joined():
        return x
    shared: Tensor = _SharedRows.apply(x)
    return shared


class _SharedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        lengths = gather_rows(torch.tensor([len(x)], device=x.device))
        ctx.start, ctx.length = int(lengths[: rank()].sum()), len(x)
        return gather_rows(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.start : ctx.start + ctx.length]


def _joined() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _device() -> torch.device:
    """Where collectives of this run live: nccl knows the GPU of its rank only."""
    if _joined() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
