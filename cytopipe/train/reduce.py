"""What the ranks of a run agree on after each step: the mean of their gradients, losses and signals.

[D] Gradients are averaged here, after the backward pass, and not by DistributedDataParallel: a method calls the verbs
of a network one by one, and may leave a part unused on one rank only (no positive RoI, no confident pixel). A parameter
that no rank used keeps no gradient at all, as with one process, so that weight decay and momentum leave it alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cytopipe.nets import Net, ranks


@torch.no_grad()
def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace each gradient by its mean over the ranks; a rank without one counts as zero."""
    world = ranks.world_size()
    if world == 1 or not parameters:
        return
    used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.uint8, device=parameters[0].device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX)
    shared = [p for p, use in zip(parameters, used.tolist(), strict=True) if use]
    for p in shared:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    gradients = [p.grad for p in shared if p.grad is not None]
    flat = torch.cat([g.reshape(-1) for g in gradients])  # one message; reshape: whatever the layout in memory
    dist.all_reduce(flat)
    flat /= world
    for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        g.copy_(part.view(g.shape))


def average(values: Tensor) -> Tensor:
    """The mean of a vector over the ranks, on its device."""
    if ranks.world_size() == 1:
        return values
    total = values.detach().clone()
    dist.all_reduce(total)
    return total / ranks.world_size()


def joined_signals(signals: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Signals of the whole batch from those of each rank's part: counts by class are added, all else is averaged."""
    if ranks.world_size() == 1:
        return dict(signals)
    names = sorted(signals)
    means = average(torch.tensor([signals[name] for name in names], dtype=torch.float64, device=device)).tolist()
    return {name: mean * (ranks.world_size() if is_count(name) else 1) for name, mean in zip(names, means, strict=True)}


def over_parts(signals: list[Mapping[str, float]]) -> dict[str, float]:
    """The same over the parts of a step (gradient accumulation)."""
    if len(signals) == 1:
        return dict(signals[0])
    return {name: sum(part[name] for part in signals) / (1 if is_count(name) else len(signals)) for name in signals[0]}


def is_count(name: str) -> bool:
    """Whether a signal counts things of a class: `labelled[HSIL]`, `pseudo_labels[nucleus]`."""
    return name.endswith("]")


def same_on_all(modules: Iterable[nn.Module]) -> None:
    """Give every rank the state of the first one."""
    if ranks.world_size() == 1:
        return
    for module in modules:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def with_shared_statistics(net: Net) -> Net:
    """The network with batch norms that normalise over the whole batch of all ranks, where torch has such (GPUs)."""
    if ranks.world_size() > 1 and next(net.parameters()).is_cuda:
        shared: Net = nn.SyncBatchNorm.convert_sync_batchnorm(net)
        return shared
    return net


def wait_for_all() -> None:
    """Return when every rank has come here."""
    if ranks.world_size() > 1:
        dist.barrier()
