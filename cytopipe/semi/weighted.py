"""A loss term and its weight, born together, so that no term can lose its weight on the way to the sum."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """One term of a method's loss: the engine adds weight · value.

    value   scalar tensor, attached to the graph also where it is 0 for want of data
    weight  the ramped factor of this step; 1 for a supervised term
    """

    value: Tensor
    weight: float
