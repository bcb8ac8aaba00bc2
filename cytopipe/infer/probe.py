"""How long a predictor takes for a window, asked before a long run. Nothing of networks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from cytopipe.infer.located import U8

_SEED = 6


def seconds_per_window(
    look: Callable[[Sequence[U8]], object], tile_px: int, stride_px: int, batch_windows: int, *, warm_up: bool
) -> float:
    """About how long `look` takes for one window of `tile_px`, by the clock, from a look at noise of about a quarter of
    its area.

    warm_up  look once before the clock starts: the first call on a GPU loads its kernels
    """
    side = -(-tile_px // (2 * stride_px)) * stride_px
    noise = np.random.default_rng(_SEED).integers(0, 256, (side, side, 3), dtype=np.uint8)
    images = [noise] * batch_windows
    if warm_up:
        look(images)
    start = time.perf_counter()
    look(images)
    return (time.perf_counter() - start) * (tile_px / side) ** 2 / batch_windows
