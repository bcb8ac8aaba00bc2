"""How one slide is stained and photographed: colours as absorption, glass, light. Drawn once per slide.

Enters: the slide's seed.  Leaves: a `Stain`. Absorption is optical density per channel (red, green, blue; natural
logarithm), so that what lies above each other adds up, as in Beer and Lambert's law. The base vectors were read off
Pap-stained cells: a colour (r, g, b) on glass of 240 is -ln(c / 240).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]

# Papanicolaou: haematoxylin in nuclei, eosin Y and orange G in mature cells, light green in the others. [D] chosen
# by eye on real smears.
HAEMATOXYLIN = (1.15, 1.22, 0.72)
EOSIN = (0.06, 0.45, 0.26)
ORANGE = (0.05, 0.30, 0.52)
LIGHT_GREEN = (0.50, 0.22, 0.17)
VIOLET = (0.33, 0.36, 0.16)  # cells that took both dyes
SERUM = (0.20, 0.34, 0.26)
MUCUS = (0.20, 0.17, 0.09)
DIRT = (0.9, 1.0, 1.1)
GREY = (1.0, 1.0, 1.0)  # glass edges
INKS = ((2.0, 1.3, 0.25), (1.6, 1.6, 1.5), (1.7, 0.5, 1.1))  # blue, black, green felt pens


@dataclass(frozen=True, slots=True, eq=False)
class Stain:
    """The look of one slide. Vectors are float32 (3,), optical density per unit of thickness.

    glass         white level of empty glass, 0 to 255 per channel
    light         (4,) float64: depth of the uneven illumination (optical density), and the phases of its three waves
    noise_std     camera noise, grey levels
    vignette      optical density at the middle of a field's border, beyond that of the field's middle
    film          optical density of dried serum where it is thickest, in units of its dye
    empty_grey    the slide shines on a dark ground of this level (fluorescence); None: it absorbs, on light glass
    softness_um   standard deviation of the optics' point spread, µm
    """

    haematoxylin: F32
    eosin: F32
    orange: F32
    light_green: F32
    violet: F32
    mucus: F32
    glass: F32
    light: NDArray[np.float64]
    noise_std: float
    softness_um: float
    vignette: float = 0.0
    film: float = 0.0
    empty_grey: float | None = None


def draw_stain(rng: np.random.Generator) -> Stain:
    """A slide's stain:
    intensity, dye ratio, hue, white balance and illumination vary between slides as between laboratories.
    """
    intensity = rng.uniform(0.82, 1.22)
    cytoplasm = intensity * rng.uniform(0.85, 1.15)

    def varied(vector: tuple[float, float, float], factor: float) -> F32:
        return np.asarray(np.array(vector) * factor * rng.uniform(0.88, 1.12, 3), dtype=np.float32)

    white = rng.uniform(230, 242) + rng.normal(0, 2.5, 3)
    return Stain(
        haematoxylin=varied(HAEMATOXYLIN, intensity),
        eosin=varied(EOSIN, cytoplasm),
        orange=varied(ORANGE, cytoplasm),
        light_green=varied(LIGHT_GREEN, cytoplasm),
        violet=varied(VIOLET, cytoplasm),
        mucus=varied(MUCUS, cytoplasm),
        glass=np.clip(white, 222, 250).astype(np.float32),
        light=np.concatenate([[rng.uniform(0.006, 0.022)], rng.uniform(0, 2 * np.pi, 3)]),
        noise_std=float(rng.uniform(0.8, 1.8)),
        softness_um=float(rng.uniform(0.15, 0.24)),
    )
