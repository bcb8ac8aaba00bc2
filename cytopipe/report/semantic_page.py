"""The report of one slide that a semantic model looked at: its classes on the thumbnail, and how much there is of each.

Enters: a class map small enough for a page, areas, a thumbnail.  Leaves: one self-contained HTML file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cytopipe.formats.colours import class_colours, hex_of
from cytopipe.report.encode import U8, escaped, fit, jpeg_uri, number, png_uri, swatch
from cytopipe.report.page import fact_list, figures, section, warning_list, write_page
from cytopipe.report.scale import bar_length_um, length_text

THUMBNAIL_PX = 1100
VEIL_ALPHA = 150  # [D] of 255: the class is plain and the slide shows through


@dataclass(frozen=True, slots=True, eq=False)
class ClassMap:
    """A slide's classes, coarse enough for a picture.

    labels           (h, w) uint8: 0 background or not searched, i + 1 is classes[i]
    slide_px_per_px  level-0 px a px of `labels`, along x and y
    """

    classes: tuple[str, ...]
    labels: U8
    slide_px_per_px: tuple[float, float]


def write_semantic_report(
    path: Path,
    *,
    slide_id: str,
    class_map: ClassMap,
    areas_mm2: Mapping[str, float],
    other_mm2: Mapping[str, float],
    thumbnail: U8,
    slide_size: tuple[int, int],
    mpp: tuple[float, float],
    slide_facts: Mapping[str, object],
    run_facts: Mapping[str, object],
    warnings: Sequence[str] = (),
) -> None:
    """Write report.html.

    areas_mm2    of each class
    other_mm2    of what has no class, by what it is: background, not searched
    thumbnail    (h, w, 3) uint8 RGB of the whole slide, any size
    slide_size   level-0 px; mpp its µm/px, along x and y
    """
    width_mm, height_mm = (px * side / 1000 for px, side in zip(slide_size, mpp, strict=True))
    subtitle = " · ".join(
        [
            f"{number(slide_size[0])} × {number(slide_size[1])} px",
            f"{width_mm:.1f} × {height_mm:.1f} mm",
            f"{number(sum(mpp) / 2, 4)} µm/px",
        ]
    )
    body = [
        warning_list(warnings),
        _key_figures(areas_mm2, other_mm2),
        '<div class="columns">',
        _map(class_map, thumbnail, slide_size, slide_size[0] * mpp[0]),
        '<div class="stack">',
        _area_table(areas_mm2, other_mm2),
        "</div></div>",
        '<div class="columns even">',
        section("Run", fact_list(run_facts)),
        section("Slide", fact_list(slide_facts)),
        "</div>",
    ]
    write_page(path, kind="Segmentation report", title=slide_id, subtitle=subtitle, body=body, scripts=["gallery.js"])


def class_picture(class_map: ClassMap, shown: Sequence[int], size: tuple[int, int], slide_size: tuple[int, int]) -> U8:
    """RGBA (h, w, 4) of the labels `shown` over a picture of the whole slide of `size` (w, h): each px shows the label
    at its centre.
    """
    at = []
    for px, extent, scale, labels_px in zip(
        size, slide_size, class_map.slide_px_per_px, reversed(class_map.labels.shape), strict=True
    ):
        centres = (np.arange(px) + 0.5) * extent / px
        at.append(np.minimum(centres / scale, labels_px - 1).astype(np.intp))
    labels = class_map.labels[np.ix_(at[1], at[0])]
    palette = np.zeros((256, 4), dtype=np.uint8)
    for label, colour in enumerate(class_colours(class_map.classes).values(), start=1):
        if label in shown:
            palette[label] = (*colour, VEIL_ALPHA)
    return palette[labels]


def _key_figures(areas_mm2: Mapping[str, float], other_mm2: Mapping[str, float]) -> str:
    searched = sum(areas_mm2.values()) + other_mm2.get("background", 0.0)
    values = [
        (name, f"{number(area)} mm²", f"{number(100 * area / searched)} % of what was searched" if searched else "")
        for name, area in areas_mm2.items()
    ]
    return figures(values)


def _map(class_map: ClassMap, thumbnail: U8, slide_size: tuple[int, int], width_um: float) -> str:
    """The thumbnail with a layer of all classes and one of each, of which one is shown, and a scale bar."""
    small = fit(thumbnail, THUMBNAIL_PX)
    h, w = small.shape[:2]
    layers = [("All classes", range(1, len(class_map.classes) + 1))]
    if len(class_map.classes) > 1:
        layers += [(name, range(k, k + 1)) for k, name in enumerate(class_map.classes, start=1)]
    images, buttons = [], []
    for k, (label, shown) in enumerate(layers):
        uri = png_uri(class_picture(class_map, shown, (w, h), slide_size))
        text = escaped(label)
        images.append(f'<img class="layer" data-layer="{k}" src="{uri}" alt="{text}"{" hidden" * (k > 0)}>')
        buttons.append(
            f'<button type="button" data-layer="{k}" aria-pressed="{"false" if k else "true"}">{text}</button>'
        )
    buttons.append('<button type="button" data-layer="" aria-pressed="false">None</button>')
    length_um = bar_length_um(width_um / 4)
    bar = f'<span class="bar" style="width:{100 * length_um / width_um:.2f}%">{length_text(length_um)}</span>'
    figure = (
        f'<figure class="map" style="max-width:min(100%,calc(74vh * {w / h:.4f}))">'
        f'<img src="{jpeg_uri(small)}" width="{w}" height="{h}" alt="Thumbnail of the slide">'
        f"{''.join(images)}{bar}</figure>"
    )
    tools = f'<div class="filters layers" role="group" aria-label="Classes">{"".join(buttons)}</div>'
    return section("Slide map", figure, note="The class of each place; semantic.zarr has every pixel.", tools=tools)


def _area_table(areas_mm2: Mapping[str, float], other_mm2: Mapping[str, float]) -> str:
    colours = class_colours(areas_mm2)
    most = max(areas_mm2.values(), default=0.0) or 1.0
    total = (sum(areas_mm2.values()) + sum(other_mm2.values())) or 1.0
    rows = []
    for name, area in (*areas_mm2.items(), *other_mm2.items()):
        colour = hex_of(colours[name]) if name in areas_mm2 else ""
        mark = swatch(colour) if colour else ""
        bar = f'<span style="width:{100 * area / most:.1f}%;background:{colour}"></span>' if colour else ""
        rows.append(
            f'<tr><th scope="row">{mark}{escaped(name)}</th><td class="share">{bar}</td>'
            f"<td>{number(area, 4)}</td><td>{number(100 * area / total)}</td></tr>"
        )
    heads = "".join(f'<th scope="col">{head}</th>' for head in ("area, mm²", "% of the slide"))
    table = (
        f'<div class="scroll"><table class="classes"><thead><tr><th scope="col">class</th><td></td>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    return section("Areas", table)
