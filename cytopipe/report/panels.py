"""Sample images of a training run: the same image several times, beside each other, with what each of several says.

Enters: images with layers (truth, student, teacher, pseudo-labels), each of outlines or of a class map, px of the
image.  Leaves: HTML. An image is in the page once, whatever the number of its panels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from cytopipe.formats.colours import class_colours, hex_of
from cytopipe.report.encode import U8, escaped, fit, jpeg_uri, png_uri, swatch
from cytopipe.report.outlines import svg_path
from cytopipe.report.page import section

SAMPLE_PX = 480  # [D] three panels in a row of a wide page are narrower than that
FILL_OPACITY = 0.4  # of a class map over the image
IGNORED = 255  # of a class map: no label there
IGNORED_COLOUR = (120, 130, 140)


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """What one party says of an image.

    title       "truth", "student", "teacher", "pseudo-labels"
    geometries  n shapely geometries, px of the image: boxes or outlines; names (n,), scores (n,) in [0, 1] or none
    class_map   (h, w) uint8: 0 background, k is class_names[k - 1], 255 no label; of any size; None for objects
    remark      plain text beside the title, "12 found"
    """

    title: str
    geometries: Sequence[Any] = ()
    names: Sequence[str] = ()
    scores: Sequence[float] | None = None
    class_map: U8 | None = None
    class_names: Sequence[str] = ()
    remark: str = ""

    def __post_init__(self) -> None:
        if len(self.geometries) != len(self.names):
            raise ValueError(f"Layer {self.title}: {len(self.geometries)} geometries, {len(self.names)} names")
        if self.scores is not None and len(self.scores) != len(self.names):
            raise ValueError(f"Layer {self.title}: {len(self.names)} names, {len(self.scores)} scores")

    @property
    def shown_names(self) -> list[str]:
        """The classes that the layer draws."""
        if self.class_map is None:
            return list(self.names)
        labels = np.unique(self.class_map).tolist()
        return [name for k, name in enumerate(self.class_names, start=1) if k in labels]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """An image (h, w, 3) uint8 RGB with its layers, a panel each; caption is plain text."""

    image: U8
    layers: Sequence[Layer] = field(default_factory=tuple)
    caption: str = ""


def sample_section(title: str, samples: Sequence[Sample], *, note: str = "", anchor: str = "") -> str:
    """A section with a row of panels for each sample, and the colours of the classes; '' without samples."""
    if not samples:
        return ""
    names = sorted({name for sample in samples for layer in sample.layers for name in layer.shown_names})
    colours = class_colours(names)
    rows = "".join(_row(sample, colours, f"{anchor}-{k}") for k, sample in enumerate(samples))
    key = "".join(f"<span>{swatch(hex_of(colours[name]))}{escaped(name)}</span>" for name in names)
    tools = (
        '<div class="filters" role="group" aria-label="Drawn over the images">'
        '<button type="button" data-toggle="overlays" aria-pressed="true">Overlays</button></div>'
    )
    content = f'<div class="samples">{rows}</div>' + (f'<p class="key">{key}</p>' if key else "")
    return section(title, content, note=note, tools=tools, anchor=anchor)


def _row(sample: Sample, colours: Mapping[str, tuple[int, int, int]], identity: str) -> str:
    h, w = sample.image.shape[:2]
    uri = jpeg_uri(fit(sample.image, SAMPLE_PX))
    whole = f'width="{w}" height="{h}" preserveAspectRatio="none"'
    panels = []
    for k, layer in enumerate(sample.layers):
        picture = f'<use href="#{identity}"/>' if k else f'<image id="{identity}" href="{uri}" {whole}/>'
        drawn = _outlines(layer, colours) if layer.class_map is None else _map(layer, colours, whole)
        remark = f" <small>{escaped(layer.remark)}</small>" if layer.remark else ""
        label = f"{sample.caption}: {layer.title} {layer.remark}"
        panels.append(
            f'<figure class="panel"><svg viewBox="0 0 {w} {h}" role="img" aria-label="{escaped(label)}">{picture}'
            f'<g class="overlay">{drawn}</g></svg><figcaption>{escaped(layer.title)}{remark}</figcaption></figure>'
        )
    caption = f'<p class="caption">{escaped(sample.caption)}</p>' if sample.caption else ""
    return f'<div class="sample">{caption}<div class="panels">{"".join(panels)}</div></div>'


def _outlines(layer: Layer, colours: Mapping[str, tuple[int, int, int]]) -> str:
    parts = []
    for k, (geometry, name) in enumerate(zip(layer.geometries, layer.names, strict=True)):
        path = svg_path(geometry)
        score = "" if layer.scores is None else f" {layer.scores[k]:.2f}"
        parts.append(
            f'<g><path class="rim" d="{path}"/><path stroke="{hex_of(colours[name])}" d="{path}"/>'
            f"<title>{escaped(name)}{score}</title></g>"
        )
    return "".join(parts)


def _map(layer: Layer, colours: Mapping[str, tuple[int, int, int]], whole: str) -> str:
    picture = map_picture(layer, {name: colours[name] for name in layer.shown_names})
    return f'<image href="{png_uri(picture)}" {whole}/>'


def map_picture(layer: Layer, colours: Mapping[str, tuple[int, int, int]]) -> U8:
    """A class map as a veil of class colours, RGBA (h, w, 4), opaque along its borders; background stays clear.

    Raises ValueError for a layer without a class map.
    """
    if layer.class_map is None:
        raise ValueError(f"Layer {layer.title}: no class map")
    labels = layer.class_map
    scale = SAMPLE_PX / max(labels.shape)
    if scale < 1:
        size = (max(1, round(labels.shape[1] * scale)), max(1, round(labels.shape[0] * scale)))
        labels = np.asarray(cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST), dtype=np.uint8)
    palette = np.zeros((256, 3), np.uint8)
    palette[IGNORED] = IGNORED_COLOUR
    for k, name in enumerate(layer.class_names, start=1):
        palette[k] = colours.get(name, (0, 0, 0))
    edge = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        differs = np.diff(labels.astype(np.int16), axis=axis) != 0
        edge |= np.pad(differs, [(0, 1) if a == axis else (0, 0) for a in (0, 1)])
        edge |= np.pad(differs, [(1, 0) if a == axis else (0, 0) for a in (0, 1)])
    opacity = np.where(edge, 1.0, FILL_OPACITY) * (labels != 0)
    alpha = np.round(255 * opacity).astype(np.uint8)
    return np.concatenate([palette[labels], alpha[..., None]], axis=-1)
