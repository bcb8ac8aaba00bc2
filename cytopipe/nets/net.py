"""A network of any task, for what does not care which."""

from __future__ import annotations

from cytopipe.nets.detnet import DetNet
from cytopipe.nets.segnet import SegNet

Net = DetNet | SegNet
"""Both have `spec`, `extra`, `feature_dim`, `trains_batch_norm` and `frozen_statistics()`."""
