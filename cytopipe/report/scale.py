"""Lengths of scale bars."""

from __future__ import annotations

import math


def bar_length_um(max_um: float) -> float:
    """The largest of 1, 2, 5 × 10^k µm that is at most `max_um`. Raises ValueError unless `max_um` is positive."""
    if not max_um > 0:
        raise ValueError(f"bar_length_um: {max_um} µm")
    decade = 10.0 ** math.floor(math.log10(max_um))
    return max(step * decade for step in (1, 2, 5) if step * decade <= max_um * (1 + 1e-9))


def length_text(length_um: float) -> str:
    """'50 µm', '2 mm'."""
    return f"{length_um / 1000:g} mm" if length_um >= 1000 else f"{length_um:g} µm"
