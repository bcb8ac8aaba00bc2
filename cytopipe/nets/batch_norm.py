"""Trained batch norm, as methods meet it (METHODS 1.7): from scratch it learns, and labelled images alone move its
running statistics. Loaded, it is a fixed affine map.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d


class BatchNormed(nn.Module):
    """What every network of ours says of its batch norms; with frozen ones it has none."""

    @property
    def trains_batch_norm(self) -> bool:
        """Whether batch norm has running statistics; then labelled and unlabelled images take separate forwards."""
        return bool(batch_norms(self))

    @contextmanager
    def frozen_statistics(self) -> Iterator[None]:
        """Inside, a forward in train mode normalises by its own batch and leaves the running statistics alone."""
        norms = [norm for norm in batch_norms(self) if norm.track_running_stats]
        for norm in norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in norms:
                norm.track_running_stats = True


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """The trained batch norms of a network, in order; empty where they are frozen."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def freeze(module: nn.Module, under: tuple[str, ...] = ("",)) -> None:
    """Turn the batch norms whose names begin with one of `under` into fixed affine maps with the same statistics."""
    for name, norm in list(module.named_modules()):
        if isinstance(norm, nn.BatchNorm2d) and f"{name}.".startswith(under):
            fixed = FrozenBatchNorm2d(norm.num_features, norm.eps).to(norm.weight.device)
            fixed.load_state_dict({k: v.detach().clone() for k, v in norm.state_dict().items()})
            parent, _, last = name.rpartition(".")
            setattr(module.get_submodule(parent), last, fixed)
