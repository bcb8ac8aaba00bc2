"""A film of dried serum between the cells of a bloody smear: broad, pale, with soft borders and a faint grain.

Enters: a window's canvas.  Leaves: the canvas, denser where the film lies. It depends on the place on the slide only.
"""

from __future__ import annotations

import numpy as np

from cytopipe.core.seeds import rng_from
from cytopipe.synth.paint import Canvas
from cytopipe.synth.stain import SERUM
from cytopipe.synth.texture import SIDE_PX, Textures

WAVES_UM = (1900.0, 700.0, 310.0)  # periods of the film's thickness
GRAIN = 0.12  # how far its thickness varies finely


class Serum:
    """The film of one slide; `thickness` 0 is none."""

    def __init__(self, thickness: float, seed: int, mpp: float) -> None:
        self._thickness = np.float32(thickness)
        self._turns = 2 * np.pi * mpp / np.array(WAVES_UM)
        self._phases = rng_from(seed, "serum").uniform(0, 2 * np.pi, (2, len(WAVES_UM)))

    def pour(self, canvas: Canvas, textures: Textures) -> None:
        """Add the film to a canvas, in place."""
        if self._thickness == 0:
            return
        columns, rows = canvas.x0 + np.arange(canvas.width), canvas.y0 + np.arange(canvas.height)
        across = np.sin(np.outer(self._turns, columns) + self._phases[0][:, None]).astype(np.float32)
        down = np.sin(np.outer(self._turns, rows) + self._phases[1][:, None]).astype(np.float32)
        # Two thirds of the slide lie under it: the sum of products is symmetrical about 0.
        film = np.clip(down.T @ across * np.float32(1.5) + np.float32(0.5), 0, 1) * self._thickness
        grain = textures.middle[np.ix_(rows % SIDE_PX, columns % SIDE_PX)]
        film *= 1 + np.float32(GRAIN) * grain
        for plane, strength in zip(canvas.planes, SERUM, strict=True):
            plane += film * np.float32(strength)
