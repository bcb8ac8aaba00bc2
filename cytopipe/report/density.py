"""Where the objects of a slide lie: a smooth map of counts as a transparent picture over its thumbnail.

Enters: counts on a grid over the slide.  Leaves: RGBA, from clear through amber to deep red.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.report.encode import U8

# Lightness falls with the count, so that the order survives printing in grey and colour deficiencies.
_STOPS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_COLOURS = np.array([(255, 214, 102), (250, 164, 58), (235, 98, 48), (190, 36, 60), (98, 10, 72)], np.float64)
_ALPHA = np.array([0.0, 0.28, 0.5, 0.66, 0.78])


def density_picture(counts: NDArray[np.float64]) -> U8:
    """RGBA (h, w, 4) uint8 of a grid of counts or weights (h, w), smoothed by a Gaussian of a 60th of the longer side.

    The scale ends at the 99.5th percentile of what is not empty, so that one clump does not blank the rest.
    """
    smooth = cv2.GaussianBlur(counts, (0, 0), max(2.0, max(counts.shape) / 60))
    some = smooth[smooth > smooth.max() * 0.01]
    top = float(np.quantile(some, 0.995)) if some.size and smooth.max() > 0 else 1.0
    level = np.sqrt(np.clip(smooth / top, 0, 1))  # square root: sparse places stay visible beside dense ones
    channels = [np.interp(level, _STOPS, _COLOURS[:, c]) for c in range(3)]
    channels.append(np.interp(level, _STOPS, _ALPHA) * 255)
    return np.stack(channels, axis=2).round().astype(np.uint8)
