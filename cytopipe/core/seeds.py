"""Seeds: one number for a run, from which every random stream is derived by name, so that adding a stream moves no
other.

Enters: the run's seed and the name of what is drawn (strings and integers).  Leaves: a 63-bit integer, or a numpy
Generator.
"""

from __future__ import annotations

import hashlib

import numpy as np


def seed_from(*parts: int | str) -> int:
    """A seed in [0, 2^63) that depends on the parts and their order only: same on every machine and Python."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def rng_from(*parts: int | str) -> np.random.Generator:
    """A numpy Generator (PCG64) seeded by `seed_from(*parts)`."""
    return np.random.Generator(np.random.PCG64(seed_from(*parts)))
