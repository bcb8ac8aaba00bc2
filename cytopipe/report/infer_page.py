"""The report of one slide: where its objects lie, how many of which class, and the ones to look at first.

Enters: results in frame slide, a thumbnail, a function that cuts crops.  Leaves: one self-contained HTML file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.formats.colours import class_colours, hex_of
from cytopipe.formats.results import Results, shapes_of
from cytopipe.report.charts import stacked_histogram
from cytopipe.report.density import density_picture
from cytopipe.report.encode import U8, escaped, fit, jpeg_uri, number, png_uri, swatch
from cytopipe.report.gallery import Crop, crop_side_px, gallery_html, most_suspicious
from cytopipe.report.page import fact_list, figures, section, warning_list, write_page
from cytopipe.report.scale import bar_length_um, length_text

GALLERY_COUNT = 80
THUMBNAIL_PX = 1100
SUSPICIOUS_FROM = 0.5  # an object counts as suspicious in the key figures from here on


def write_infer_report(
    path: Path,
    *,
    results: Results,
    thumbnail: U8,
    slide_size: tuple[int, int],
    crop: Crop,
    slide_facts: Mapping[str, object],
    run_facts: Mapping[str, object],
    warnings: Sequence[str] = (),
    gallery_count: int = GALLERY_COUNT,
) -> None:
    """Write report.html.

    thumbnail     (h, w, 3) uint8 RGB of the whole slide, any size
    slide_size    (w, h) level-0 px
    crop          cuts (x0, y0, x1, y1), level-0 px, out of the slide; called once for each object of the gallery
    slide_facts   what is known of the slide, e.g. {"reader": "openslide", "resolution": "0.2500 µm/px, from the file"}
    run_facts     what ran; mappings inside become groups, e.g. {"model": {...}, "seconds per stage": {...}}
    """
    rows = most_suspicious(results, gallery_count)
    subtitle = " · ".join(
        [f"{slide_size[0]:,} × {slide_size[1]:,} px".replace(",", "\u2009"), *_extent(slide_size, results.mpp)]
    )
    body = [
        warning_list(warnings),
        _key_figures(results, slide_size),
        '<div class="columns">',
        _map(results, rows, thumbnail, slide_size),
        '<div class="stack">',
        _class_table(results),
        _histogram(results),
        "</div></div>",
        _gallery(results, rows, crop),
        '<div class="columns even">',
        section("Run", fact_list(run_facts)),
        section("Slide", fact_list(slide_facts)),
        "</div>",
    ]
    write_page(
        path, kind="Inference report", title=results.slide_id, subtitle=subtitle, body=body, scripts=["gallery.js"]
    )


def _extent(slide_size: tuple[int, int], mpp: tuple[float, float] | None) -> list[str]:
    if mpp is None:
        return ["no resolution"]
    width_mm, height_mm = slide_size[0] * mpp[0] / 1000, slide_size[1] * mpp[1] / 1000
    return [f"{width_mm:.1f} × {height_mm:.1f} mm", f"{number(sum(mpp) / 2, 4)} µm/px"]


def _key_figures(results: Results, slide_size: tuple[int, int]) -> str:
    objects = results.objects
    kinds = np.array([c.kind for c in results.classes] or [""])[objects.class_index] if len(objects) else np.array([])
    values = [("objects", number(len(objects)), "found on the slide")]
    for kind, plural in (("cell", "cells"), ("nucleus", "nuclei")):
        if (kinds == kind).any() and not (kinds == kind).all():
            values.append((plural, number(int((kinds == kind).sum())), "of these"))
    if any(c.suspicious for c in results.classes):
        found = int((results.suspicion >= SUSPICIOUS_FROM).sum())
        values.append(("suspicious", number(found), f"suspicion of {SUSPICIOUS_FROM:g} or more"))
    if results.mpp is not None:
        area_mm2 = slide_size[0] * results.mpp[0] * slide_size[1] * results.mpp[1] / 1e6
        values.append(("objects per mm²", number(len(objects) / area_mm2), f"on {number(area_mm2)} mm² of slide"))
    return figures(values)


def _map(results: Results, rows: NDArray[np.intp], thumbnail: U8, slide_size: tuple[int, int]) -> str:
    """The thumbnail with density layers, a dot for each object of the gallery, and a scale bar."""
    small = fit(thumbnail, THUMBNAIL_PX)
    h, w = small.shape[:2]
    per_px = np.array([slide_size[0] / w, slide_size[1] / h])
    centres = (results.objects.xyxy[:, :2] + results.objects.xyxy[:, 2:]) / 2 / per_px
    layers = [("density", "All objects", np.ones(len(centres)))]
    if any(c.suspicious for c in results.classes):
        layers.append(("suspicion", "Suspicion", results.suspicion.astype(np.float64)))
    images, buttons = [], []
    quarter = (max(1, w // 2), max(1, h // 2))  # a smooth picture needs no more pixels
    for k, (key, label, weights) in enumerate(layers):
        picture = density_picture(centres / 2, weights, quarter)
        images.append(f'<img class="layer" data-layer="{key}" src="{png_uri(picture)}" alt=""{" hidden" if k else ""}>')
        buttons.append(
            f'<button type="button" data-layer="{key}" aria-pressed="{"false" if k else "true"}">{label}</button>'
        )
    buttons.append('<button type="button" data-layer="" aria-pressed="false">None</button>')
    dots = "".join(
        f'<a href="#cell-{rank}" data-rank="{rank}" tabindex="-1" '
        f'style="left:{100 * x / w:.2f}%;top:{100 * y / h:.2f}%"></a>'
        for rank, (x, y) in enumerate(centres[rows], start=1)
    )
    bar = _scale_bar(slide_size, results.mpp)
    tools = f'<div class="filters layers" role="group" aria-label="Density">{"".join(buttons)}</div>'
    note = "Density of the objects; dots are the objects of the gallery below."
    if not len(centres):
        images, tools, note = [], "", ""
    figure = (
        f'<figure class="map" style="max-width:min(100%,calc(74vh * {w / h:.4f}))">'
        f'<img src="{jpeg_uri(small)}" width="{w}" height="{h}" alt="Thumbnail of the slide">'
        f'{"".join(images)}<span class="dots">{dots}</span>{bar}</figure>'
    )
    return section("Slide map", figure, note=note, tools=tools)


def _scale_bar(slide_size: tuple[int, int], mpp: tuple[float, float] | None) -> str:
    if mpp is None:
        return ""
    width_um = slide_size[0] * mpp[0]
    length_um = bar_length_um(width_um / 4)
    return f'<span class="bar" style="width:{100 * length_um / width_um:.2f}%">{length_text(length_um)}</span>'


def _class_table(results: Results) -> str:
    objects = results.objects
    names = [c.name for c in results.classes]
    colours = class_colours(names)
    area = np.asarray(shapely.area(shapes_of(objects)), dtype=np.float64)
    unit = "px²"
    if results.mpp is not None:
        area, unit = area * (results.mpp[0] * results.mpp[1]), "µm²"
    counts = np.bincount(objects.class_index, minlength=len(names))
    most = max(int(counts.max()), 1) if len(counts) else 1
    rows = []
    for k, name in enumerate(names):
        mine = objects.class_index == k
        mean_area = number(float(area[mine].mean())) if counts[k] else "–"
        mean_score = f"{objects.score[mine].mean():.2f}" if counts[k] else "–"
        colour = hex_of(colours[name])
        rows.append(
            f'<tr><th scope="row">{swatch(colour)}{escaped(name)}</th>'
            f'<td class="share"><span style="width:{100 * counts[k] / most:.1f}%;background:{colour}"></span></td>'
            f"<td>{number(int(counts[k]))}</td><td>{mean_area}</td><td>{mean_score}</td></tr>"
        )
    table = (
        '<table class="classes"><thead><tr><th scope="col">class</th><th></th><th scope="col">count</th>'
        f'<th scope="col">mean area, {unit}</th><th scope="col">mean score</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>"
    )
    return section("Classes", table)


def _histogram(results: Results) -> str:
    names = [c.name for c in results.classes]
    colours = {name: hex_of(c) for name, c in class_colours(names).items()}
    values = {name: results.objects.score[results.objects.class_index == k] for k, name in enumerate(names)}
    chart = stacked_histogram(values, colours)
    return section("Scores", chart or '<p class="empty">No object, no score.</p>')


def _gallery(results: Results, rows: NDArray[np.intp], crop: Crop) -> str:
    if not len(rows):
        why = "No object was found on this slide." if not len(results.objects) else "No object has any suspicion."
        return section("Most suspicious", f'<p class="empty">{why}</p>')
    side = crop_side_px(results.objects.xyxy[rows])
    extent = f"{number(side)} px" if results.mpp is None else f"{number(side * sum(results.mpp) / 2, 2)} µm"
    by = "suspicion" if any(c.suspicious for c in results.classes) else "score"
    title = "Most suspicious" if by == "suspicion" else "Highest scores"
    shown = f"{len(rows)} of {number(len(results.objects))} objects, by {by}"
    note = f"{shown}. Each picture is {extent} wide, larger objects excepted. Select one to enlarge it."
    return section(title, gallery_html(results, rows, crop), note=note, anchor="gallery")
