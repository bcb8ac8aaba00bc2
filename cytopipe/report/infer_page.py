"""The report of one slide: where its objects lie, how many of which class, and the ones to look at first.

Enters: the summary of a slide's objects, a thumbnail, a function that cuts crops.  Leaves: one self-contained HTML
file, of at most 15 MB however many objects there are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cytopipe.core.objects import JOINED, TRUNCATED
from cytopipe.formats.colours import class_colours, hex_of
from cytopipe.report.charts import stacked_bars
from cytopipe.report.density import density_picture
from cytopipe.report.encode import U8, escaped, fit, jpeg_uri, number, png_uri, swatch
from cytopipe.report.gallery import Crop, crop_side_px, gallery_html
from cytopipe.report.page import fact_list, figures, section, warning_list, write_page
from cytopipe.report.scale import bar_length_um, length_text
from cytopipe.report.summary import SLIDE_SUSPECTS, SUSPICIOUS_FROM, SlideSummary, Suspects

GALLERY_COUNT = 200  # [D] ten rows on a screen; `gallery.CROP_BYTES` is made for it
GALLERY_AT_LEAST = 100  # so many crops, although nothing on the slide is suspicious: what a calm slide shows
THUMBNAIL_PX = 1100


def write_infer_report(
    path: Path,
    *,
    slide_id: str,
    summary: SlideSummary,
    thumbnail: U8,
    crop: Crop,
    slide_facts: Mapping[str, object],
    run_facts: Mapping[str, object],
    warnings: Sequence[str] = (),
    bounds_offset: tuple[int, int] = (0, 0),
    gallery_count: int = GALLERY_COUNT,
) -> None:
    """Write report.html.

    thumbnail      (h, w, 3) uint8 RGB of the whole slide, any size
    crop           cuts (x0, y0, x1, y1), level-0 px, out of the slide; called once for each object of the gallery
    slide_facts    what is known of the slide, e.g. {"reader": "openslide", "resolution": "0.2500 µm/px, from the file"}
    run_facts      what ran; mappings inside become groups, e.g. {"model": {...}, "windows": {...}}
    bounds_offset  x, y of frame bounds in frame slide, level-0 px: QuPath counts from there
    gallery_count  objects of the gallery; it shows no more than the summary keeps
    """
    suspects = summary.suspects(gallery_count, at_least=min(GALLERY_AT_LEAST, gallery_count))
    size, mpp = summary.size, summary.mpp
    body = [
        warning_list(warnings),
        _key_figures(summary),
        '<div class="columns">',
        _map(summary, suspects, thumbnail),
        '<div class="stack">',
        _class_table(summary),
        _histogram(summary),
        "</div></div>",
        _gallery(summary, suspects, crop, bounds_offset),
        '<div class="columns even">',
        section("Run", fact_list(run_facts)),
        section("Slide", fact_list(slide_facts)),
        "</div>",
    ]
    subtitle = " · ".join([f"{number(size[0])} × {number(size[1])} px", *_extent(size, mpp)])
    write_page(path, kind="Inference report", title=slide_id, subtitle=subtitle, body=body, scripts=["gallery.js"])


def _extent(size: tuple[int, int], mpp: tuple[float, float] | None) -> list[str]:
    if mpp is None:
        return ["no resolution"]
    width_mm, height_mm = size[0] * mpp[0] / 1000, size[1] * mpp[1] / 1000
    return [f"{width_mm:.1f} × {height_mm:.1f} mm", f"{number(sum(mpp) / 2, 4)} µm/px"]


def _key_figures(summary: SlideSummary) -> str:
    total = summary.total
    values = [("objects", number(total), "found on the slide")]
    for kind, plural in (("cell", "cells"), ("nucleus", "nuclei")):
        of_kind = sum(int(n) for n, c in zip(summary.counts, summary.classes, strict=True) if c.kind == kind)
        if 0 < of_kind < total:
            values.append((plural, number(of_kind), "of these"))
    if summary.has_suspicious_classes:
        values.append(("suspicious", number(summary.suspicious), f"suspicion of {SUSPICIOUS_FROM:g} or more"))
        remark = f"mean of the {SLIDE_SUSPECTS} most suspicious"
        values.append(("suspicion of the slide", f"{summary.suspicion:.2f}", remark))
    if summary.mpp is not None:
        area_mm2 = summary.size[0] * summary.mpp[0] * summary.size[1] * summary.mpp[1] / 1e6
        values.append(("objects per mm²", number(total / area_mm2), f"on {number(area_mm2)} mm² of slide"))
    return figures(values)


def _map(summary: SlideSummary, suspects: Suspects, thumbnail: U8) -> str:
    """The thumbnail with density layers, a dot for each object of the gallery, and a scale bar."""
    small = fit(thumbnail, THUMBNAIL_PX)
    h, w = small.shape[:2]
    layers = [("density", "All objects", summary.density)]
    if summary.has_suspicious_classes:
        layers.append(("suspicion", "Suspicion", summary.suspicion_density))
    images, buttons = [], []
    for k, (key, label, grid) in enumerate(layers):
        uri = png_uri(density_picture(grid))
        images.append(f'<img class="layer" data-layer="{key}" src="{uri}" alt="Density: {label}"{" hidden" * (k > 0)}>')
        buttons.append(
            f'<button type="button" data-layer="{key}" aria-pressed="{"false" if k else "true"}">{label}</button>'
        )
    buttons.append('<button type="button" data-layer="" aria-pressed="false">None</button>')
    buttons.append('<button type="button" class="dotted" aria-pressed="true">Dots</button>')
    centres = (suspects.objects.xyxy[:, :2] + suspects.objects.xyxy[:, 2:]) / 2 * (100 / np.array(summary.size))
    dots = "".join(
        f'<a href="#cell-{rank}" data-rank="{rank}" tabindex="-1" style="left:{x:.2f}%;top:{y:.2f}%"></a>'
        for rank, (x, y) in reversed(list(enumerate(centres, start=1)))  # the more suspicious lies above
    )
    bar = _scale_bar(summary.size, summary.mpp)
    tools = f'<div class="filters layers" role="group" aria-label="Density">{"".join(buttons)}</div>'
    note = "Density of the objects; dots are the objects of the gallery below."
    if not summary.total:
        images, tools, note = [], "", ""
    figure = (
        f'<figure class="map" style="max-width:min(100%,calc(74vh * {w / h:.4f}))">'
        f'<img src="{jpeg_uri(small)}" width="{w}" height="{h}" alt="Thumbnail of the slide">'
        f'{"".join(images)}<span class="dots">{dots}</span>{bar}</figure>'
    )
    return section("Slide map", figure, note=note, tools=tools)


def _scale_bar(size: tuple[int, int], mpp: tuple[float, float] | None) -> str:
    if mpp is None:
        return ""
    width_um = size[0] * mpp[0]
    length_um = bar_length_um(width_um / 4)
    return f'<span class="bar" style="width:{100 * length_um / width_um:.2f}%">{length_text(length_um)}</span>'


def _class_table(summary: SlideSummary) -> str:
    names = [c.name for c in summary.classes]
    colours = class_colours(names)
    counts, area, unit, per_unit, sum_unit = summary.counts, summary.area_px, "px²", 1.0, "px²"
    if summary.mpp is not None:
        area, unit, sum_unit = area * (summary.mpp[0] * summary.mpp[1]), "µm²", "µm²"
        if area.size and area.max() >= 1e4:  # a hundredth of a mm²
            per_unit, sum_unit = 1e6, "mm²"
    most = max(int(counts.max()), 1) if len(counts) else 1
    rows = []
    for k, name in enumerate(names):
        values = ("–", "–", "–")
        if counts[k]:
            values = (number(area[k] / counts[k]), number(area[k] / per_unit), f"{summary.mean_score[k]:.2f}")
        colour = hex_of(colours[name])
        rows.append(
            f'<tr><th scope="row">{swatch(colour)}{escaped(name)}</th>'
            f'<td class="share"><span style="width:{100 * counts[k] / most:.1f}%;background:{colour}"></span></td>'
            f"<td>{number(int(counts[k]))}</td>{''.join(f'<td>{value}</td>' for value in values)}</tr>"
        )
    heads = ("count", f"mean area, {unit}", f"area together, {sum_unit}", "mean score")
    table = (
        '<div class="scroll"><table class="classes"><thead><tr><th scope="col">class</th><td></td>'
        f"{''.join(f'<th scope=col>{head}</th>' for head in heads)}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )
    return section("Classes", table + _flag_note(summary))


def _flag_note(summary: SlideSummary) -> str:
    """What the stitcher says of objects that no single window saw whole (DESIGN 6); '' where it had nothing to say."""
    meanings = {JOINED: "joined of pieces that several windows saw", TRUNCATED: "truncated: no window saw them whole"}
    said = [f"{number(summary.flag_counts[bit])} {text}" for bit, text in meanings.items() if summary.flag_counts[bit]]
    return f'<p class="note flags">{"; ".join(said)}.</p>' if said else ""


def _histogram(summary: SlideSummary) -> str:
    names = [c.name for c in summary.classes]
    colours = {name: hex_of(c) for name, c in class_colours(names).items()}
    chart = stacked_bars(dict(zip(names, summary.score_counts, strict=True)), colours)
    return section("Scores", chart or '<p class="empty">No object, no score.</p>')


def _gallery(summary: SlideSummary, suspects: Suspects, crop: Crop, bounds_offset: tuple[int, int]) -> str:
    title = "Most suspicious" if summary.has_suspicious_classes else "Highest scores"
    if not len(suspects):
        why = "No object has any suspicion." if summary.total else "No object was found on this slide."
        return section(title, f'<p class="empty">{why}</p>', anchor="gallery")
    side = crop_side_px(suspects.objects.xyxy)
    extent = f"{number(side)} px" if summary.mpp is None else f"{number(side * sum(summary.mpp) / 2, 2)} µm"
    by = "suspicion" if summary.has_suspicious_classes else "score"
    calm = int((suspects.suspicion <= 0).sum())
    filled = f" The last {number(calm)} have none: they fill up the page." if calm else ""
    note = (
        f"{len(suspects)} of {number(summary.total)} objects, by {by}.{filled} Crops at native resolution, {extent} "
        "wide, larger objects excepted. Click one to enlarge it and copy its place; arrow keys walk, Enter opens, Esc "
        "closes."
    )
    return section(title, gallery_html(summary, suspects, crop, bounds_offset), note=note, anchor="gallery")
