"""How sharp a window is, and how much of it is empty glass: two numbers of its pixels, nothing of its slide.

Enters: RGB (h, w, 3) uint8.  Leaves: a float. Both are recorded with each tile; whoever drops blurred tiles sets the
limit.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from cytopipe.slides.slide import U8

GLASS_OD = 0.03
"""A pixel is glass when no channel is darker than the glass level by more than this optical density [D]: 7% less
light."""


def sharpness(rgb: U8) -> float:
    """Variance of the Laplacian of the grey picture, in squared grey levels; 0 for a constant one. It falls with blur
    and rises with contrast.

    Comparable between windows of one slide at one mpp only. Source: Pech-Pacheco et al., Diatom autofocusing in
    brightfield microscopy, ICPR 2000 (LAPV); 3 x 3 kernel 0 1 0, 1 -4 1, 0 1 0.
    """
    grey = cv2.cvtColor(np.ascontiguousarray(rgb), cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(grey, cv2.CV_32F).astype(np.float64).var())


def glass_fraction(rgb: U8, glass: Sequence[float]) -> float:
    """The share of pixels that are as bright as glass in all channels; `glass` is the slide's level per channel
    (`Foreground.glass`)."""
    limits = np.array([(level + 1.0) * 10.0**-GLASS_OD - 1.0 for level in glass])
    return float((rgb >= limits).all(axis=2).mean())
