"""Outlines drawn into an image, with a legend: the pictures of demo and documentation.

Enters: uint8 RGB (h, w, 3), geometries in px of that image.  Leaves: a new image, or a PNG file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cytopipe.core.files import atomic_path
from cytopipe.formats.colours import Colour, class_colours
from cytopipe.report.encode import U8
from cytopipe.report.outlines import rings_of
from cytopipe.report.scale import bar_length_um, length_text

INK: Colour = (24, 34, 44)

_SUBPIXEL_BITS = 4  # OpenCV draws with fixed-point coordinates: 1/16 px


def draw_objects(image: U8, geometries: Sequence[Any], colours: Sequence[Colour], *, line_px: int = 2) -> U8:
    """A copy of the image with an antialiased outline for each geometry, a thin light rim around it.

    geometries   N shapely Polygon or MultiPolygon, px of the image; what lies outside is cut off
    colours      N colours (r, g, b)
    """
    canvas = image.copy()
    lines = [[_fixed(ring) for ring in rings_of(geometry)] for geometry in geometries]
    for rings in lines:  # all rims first: no rim hides a neighbour's outline
        cv2.polylines(canvas, rings, True, (255, 255, 255), line_px + 2, cv2.LINE_AA, _SUBPIXEL_BITS)
    for rings, colour in zip(lines, colours, strict=True):
        cv2.polylines(canvas, rings, True, colour, line_px, cv2.LINE_AA, _SUBPIXEL_BITS)
    return canvas


def write_picture(
    path: Path,
    image: U8,
    geometries: Sequence[Any],
    class_names: Sequence[str],
    *,
    line_px: int = 2,
    mpp: float | None = None,
) -> None:
    """Write a PNG: the image with outlines in class colours, below it a legend with counts, and a scale bar given mpp.

    geometries, class_names   N each, px of the image; mpp is µm a px of the image.
    """
    counts = {name: class_names.count(name) for name in sorted(set(class_names))}
    colours = class_colours(counts)
    drawn = draw_objects(image, geometries, [colours[name] for name in class_names], line_px=line_px)
    with_strip = add_strip(drawn, [(f"{name}  {count}", colours[name]) for name, count in counts.items()], mpp=mpp)
    with atomic_path(path) as partial:
        Image.fromarray(with_strip).save(partial, format="PNG", optimize=True)


def add_strip(image: U8, legend: Sequence[tuple[str, Colour]], *, mpp: float | None) -> U8:
    """The image with a white strip below: entries of the legend, each with its colour, and a scale bar at the right."""
    w = image.shape[1]
    text_px = int(np.clip(round(w / 60), 12, 28))
    font = ImageFont.load_default(text_px)
    strip = Image.new("RGB", (w, round(text_px * 2.6)), (255, 255, 255))
    pen = ImageDraw.Draw(strip)
    middle = strip.height / 2
    bar_left = float(w - text_px)
    if mpp is not None:
        bar_left = _draw_bar(pen, font, text_px, right=w - text_px, middle=middle, mpp=mpp, max_px=w / 5)
    left = float(text_px)
    for text, colour in legend:
        width = text_px * 1.4 + pen.textlength(text, font=font)
        if left + width > bar_left - text_px:
            break  # a narrow picture shows the first classes only
        box = (left, middle - text_px * 0.4, left + text_px * 0.8, middle + text_px * 0.4)
        pen.rounded_rectangle(box, radius=text_px * 0.2, fill=colour)
        _write(pen, font, text_px, (left + text_px * 1.3, middle), text)
        left += width + text_px * 1.4
    return np.concatenate([image, np.asarray(strip, dtype=np.uint8)])


def _draw_bar(pen: Any, font: Any, text_px: int, *, right: float, middle: float, mpp: float, max_px: float) -> float:
    """Draw a scale bar that ends at `right`; returns where it begins, its text included."""
    length_um = bar_length_um(max_px * mpp)
    left = right - length_um / mpp
    pen.rectangle((left, middle - text_px * 0.12, right, middle + text_px * 0.12), fill=INK)
    text = length_text(length_um)
    start = left - text_px * 0.6 - pen.textlength(_plain(text), font=font)
    _write(pen, font, text_px, (start, middle), text)
    return float(start)


def _write(pen: Any, font: Any, text_px: int, place: tuple[float, float], text: str) -> None:
    """Text from its left middle. Pillow's own font has no µ: it gets a u, and the stem that is missing below it."""
    pen.text(place, _plain(text), font=font, fill=INK, anchor="lm")
    for k in (k for k, letter in enumerate(text) if letter == "µ"):
        left = place[0] + pen.textlength(_plain(text[:k]), font=font) + text_px * 0.07
        top = place[1] + text_px * 0.05
        pen.rectangle((left, top, left + max(1, text_px * 0.07), top + text_px * 0.5), fill=INK)


def _plain(text: str) -> str:
    return text.replace("µ", "u")


def _fixed(ring: Any) -> Any:
    """Points as OpenCV's fixed-point numbers. Our pixel edges lie at integers, its pixel centres do: half a px."""
    return np.round((ring - 0.5) * (1 << _SUBPIXEL_BITS)).astype(np.int32)
