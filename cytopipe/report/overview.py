"""The overview of a tiled slide: which tiles were kept, which were dropped, on its thumbnail.

Enters: a thumbnail and boxes in level-0 px.  Leaves: a JPEG that one glance can judge.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from cytopipe.core.files import atomic_path
from cytopipe.formats.colours import Colour
from cytopipe.report.encode import U8
from cytopipe.report.picture import add_strip

KEPT: Colour = (0, 128, 110)
DROPPED: Colour = (150, 158, 166)

FRAMED_PX = 6  # tiles smaller than this on the picture are tinted only: frames would hide what is in them
MIN_WIDTH_PX = 900  # a thumbnail of a small slide is enlarged: lines and text need room


def write_overview(
    path: Path,
    thumbnail: U8,
    kept: NDArray[np.float64],
    dropped: NDArray[np.float64],
    slide_px_per_px: tuple[float, float],
    mpp: float | None,
    *,
    quality: int = 88,
) -> None:
    """Write a JPEG: kept tiles framed on the plain thumbnail, dropped ones veiled; counts and a scale bar below.

    thumbnail         (h, w, 3) uint8 RGB
    kept, dropped     (N, 4), (M, 4) float64 x0 y0 x1 y1, level-0 px
    slide_px_per_px   level-0 px a px of the thumbnail, along x and y
    mpp               level-0 µm/px, None where unknown: then without a scale bar
    """
    zoom = max(1.0, MIN_WIDTH_PX / thumbnail.shape[1])
    if zoom > 1:
        thumbnail = np.asarray(cv2.resize(thumbnail, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_LINEAR), np.uint8)
    per_px = np.array([*slide_px_per_px, *slide_px_per_px]) / zoom
    canvas = _veiled(thumbnail, np.asarray(dropped, np.float64).reshape(-1, 4) / per_px)
    canvas = _framed(canvas, np.asarray(kept, np.float64).reshape(-1, 4) / per_px)
    legend = [(f"{len(kept):,} tiles kept", KEPT), (f"{len(dropped):,} dropped", DROPPED)]
    picture = add_strip(canvas, legend, mpp=None if mpp is None else mpp * float(per_px[0]))
    with atomic_path(path) as partial:
        Image.fromarray(picture).save(partial, format="JPEG", quality=quality)


def _veiled(image: U8, boxes: NDArray[np.float64]) -> U8:
    """The image, paler where dropped tiles lie."""
    veil = np.zeros(image.shape[:2], np.uint8)
    for x0, y0, x1, y1 in np.round(boxes).astype(int):
        cv2.rectangle(veil, (x0, y0), (x1 - 1, y1 - 1), 255, -1)
    veiled = image.copy()
    pale = cv2.addWeighted(image, 0.45, np.full_like(image, 236), 0.55, 0)
    cv2.copyTo(pale, veil, veiled)
    return veiled


def _framed(image: U8, boxes: NDArray[np.float64]) -> U8:
    """The image with a tint over, and a thin frame around each kept tile that has room for one."""
    canvas, tinted = image.copy(), image.copy()
    for x0, y0, x1, y1 in np.round(boxes).astype(int):
        cv2.rectangle(tinted, (x0, y0), (x1 - 1, y1 - 1), KEPT, -1)
        if min(x1 - x0, y1 - y0) >= FRAMED_PX:
            cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), KEPT, 1)
    return np.asarray(cv2.addWeighted(tinted, 0.10, canvas, 0.90, 0), dtype=np.uint8)
