"""Which labelled tiles a fraction of the labels keeps: the first of one seeded order, of tiles or of patients.

Enters: tile ids with their patients, a fraction, a seed.  Leaves: indices of the tiles that stay labelled.
The order is that of salted hashes of the names alone, neither of a list nor of a random stream: 1/32 lies inside 1/16,
that inside 1/8, in every process, on every machine, whatever else is drawn from the seed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import UserError

LabelUnit = Literal["tile", "patient"]
SALT = "cytopipe-labels-1"


def parse_fraction(text: str | float) -> Fraction:
    """'1/8', '0.125' or 0.125 -> an exact fraction in (0, 1]. Raises UserError for anything else."""
    try:
        fraction = Fraction(str(text).strip())
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(f"--label-fraction {text!r} is no fraction", fix="write it as 1/8") from error
    if not 0 < fraction <= 1:
        raise UserError(f"--label-fraction {text} is not in (0, 1]", fix="write it as 1/8")
    return fraction


def choose_labelled(
    tile_ids: Sequence[str], patients: Sequence[str], fraction: Fraction, unit: LabelUnit = "tile", seed: int = 0
) -> NDArray[np.intp]:
    """Indices of the tiles that are kept, ascending: of n tiles, or all tiles of n patients, the fraction rounded half
    up, and at least one.

    tile_ids, patients   of the labelled training tiles, N each
    Of one seed and unit a smaller fraction chooses a subset of what a larger one does.
    """
    names = list(tile_ids if unit == "tile" else patients)
    order = sorted(set(names), key=lambda name: _draw(name, unit, seed))
    count = max(1, math.floor(fraction * len(order) + Fraction(1, 2)))
    kept = set(order[:count])
    return np.flatnonzero([name in kept for name in names])


def _draw(name: str, unit: LabelUnit, seed: int) -> tuple[bytes, str]:
    """The name's place in the order."""
    return hashlib.sha256(f"{SALT}\x1f{unit}\x1f{seed}\x1f{name}".encode()).digest(), name
