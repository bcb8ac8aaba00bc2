"""`--stain normalise`: a slide's colours brought to those of the slides that the model was trained on.

Enters: a slide's view, its foreground.  Leaves: a table of 3 x 256 grey levels, applied to every pixel that the network
is shown. A pixel's new value depends on its old one alone, so that a place looks the same in every window.

    D = log10(glass / grey)              optical density of a channel against the slide's own empty glass
    grey' = glass_ref * 10^(-g D)        g = mean density of stained px in training / the slide's, kept within 1/2 to 2

Empty glass becomes the training slides' glass (white balance), and weak or heavy staining, in each channel by itself,
becomes as strong as theirs. [D] Not Macenko or Vahadane: they unmix two stains of histology, Papanicolaou has five, of
which one smear may show two. Not Reinhard: its spread is that of the cells' mixture, and a slide of superficial cells
would be given the contrast of one full of parabasal ones. A model whose bundle does not say what its slides looked like
gets the white balance alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from cytopipe.core.errors import RunError
from cytopipe.infer.located import U8, Glass
from cytopipe.infer.read_ahead import windows_with_foreground
from cytopipe.infer.windows import plan_windows
from cytopipe.slides import Foreground, MppView, Slide, find_foreground

if TYPE_CHECKING:
    from cytopipe.nets import BundleSpec  # it brings torch, which this file does without

F64 = NDArray[np.float64]

SAMPLE_PX = 256  # [D] side of a sample, px of the view
SAMPLES = 48  # [D] at most, spread evenly: three million px, some hundred cells
STAINED_DENSITY = 0.05  # [D] mean over channels: empty glass varies by 0.02, pale cytoplasm begins at 0.05
LEAST_GAIN, MOST_GAIN = 0.5, 2.0  # [D] beyond this the slide is of another stain, and pulling would invent colours
PLAIN_GLASS: Glass = (242.0, 242.0, 242.0)  # [D] a white-balanced scanner's empty glass, where no reference is known


@dataclass(frozen=True, slots=True)
class Look:
    """How a slide's colours are: grey level of empty glass, and mean optical density of stained px, per channel."""

    glass: Glass
    density: tuple[float, float, float] | None


def recolouring(
    spec: BundleSpec, slide: Slide, view: MppView, foreground: Foreground | None
) -> Callable[[U8], U8] | None:
    """What brings a slide's pixels to the colours that a model knows; None on a dark background, where nothing absorbs.

    foreground  of the slide; None: it is looked for
    """
    if slide.background == "dark":
        return None
    reference = None if spec.stain_glass is None else Look(spec.stain_glass, spec.stain_density)
    table = table_of(look_of(view, foreground or find_foreground(slide)), reference)
    return partial(recoloured, table=table)


def look_of(view: MppView, foreground: Foreground) -> Look:
    """How the slide of a view looks, from samples of its foreground; density None where nothing is stained."""
    windows = plan_windows(view.width, view.height, SAMPLE_PX, 0)
    found = windows_with_foreground(windows, view, foreground)
    total, count = np.zeros(3), 0
    for k in np.unique(np.linspace(0, len(found) - 1, min(SAMPLES, len(found))).astype(int)).tolist():
        x0, y0, x1, y1 = windows.boxes[found[k]].astype(int).tolist()
        try:
            rgb = view.read(x0, y0, x1 - x0, y1 - y0)
        except RunError:
            continue  # the same place is reported when its window is searched
        density = np.log10(np.array(foreground.glass) / np.maximum(rgb.reshape(-1, 3), 1))
        stained = density[density.mean(axis=1) >= STAINED_DENSITY]
        total += stained.sum(axis=0)
        count += len(stained)
    mean = total / max(count, 1)
    return Look(foreground.glass, (float(mean[0]), float(mean[1]), float(mean[2])) if (mean > 0).all() else None)


def gains(slide: Look, reference: Look | None) -> tuple[float, float, float]:
    """The factors g of the channels; 1 where either side has nothing to compare."""
    if reference is None or reference.density is None or slide.density is None:
        return 1.0, 1.0, 1.0
    r, g, b = np.clip(np.divide(reference.density, slide.density), LEAST_GAIN, MOST_GAIN).tolist()
    return r, g, b


def table_of(slide: Look, reference: Look | None) -> U8:
    """(1, 256, 3) uint8: what each grey level of each channel becomes."""
    glass = np.array(PLAIN_GLASS if reference is None else reference.glass)
    density = np.log10(np.array(slide.glass) / np.maximum(np.arange(256.0), 1.0)[:, None])
    levels = glass * 10.0 ** (-np.array(gains(slide, reference)) * density)
    table: U8 = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)[None]
    return table


def recoloured(image: U8, table: U8) -> U8:
    """An image (H, W, 3) by a table of `table_of`."""
    return np.asarray(cv2.LUT(image, table), dtype=np.uint8)
