"""The gallery of the most suspicious objects: how large a piece of the slide each shows, and its HTML.

Enters: suspects in level-0 px and a function that cuts an area out of the slide.  Leaves: markup for `gallery.js`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.objects import FLAG_NAMES
from cytopipe.formats.colours import class_colours, hex_of
from cytopipe.formats.results import shapes_of
from cytopipe.report.encode import U8, escaped, fit, jpeg_within, number, swatch
from cytopipe.report.outlines import svg_path
from cytopipe.report.summary import SlideSummary, Suspects

Box = tuple[int, int, int, int]
Crop = Callable[[Box], U8]
"""crop((x0, y0, x1, y1)): that area of the slide, level-0 px, as uint8 RGB, a px each; background past its border."""

CONTEXT = 1.6  # side of the crop, in longer sides of an object at the 75th percentile
MIN_CROP_PX = 12.0
USUAL_CROP_PX = 384.0  # [D] 96 µm at 0.25 µm/px: a superficial squamous cell, the largest of a smear, with a margin
MAX_CROP_PX = 768  # [D] what is larger, a clump, is shown whole and shrunk, and says so
CROP_BYTES = 42_000  # [D] of JPEG: 200 crops and the rest of the page stay below 15 MB, whatever the slide shows


def crop_side_px(objects_xyxy: NDArray[np.float64]) -> float:
    """The side of the crops, level-0 px: one for all, so that sizes can be compared."""
    if not len(objects_xyxy):
        return MIN_CROP_PX
    longer = (objects_xyxy[:, 2:] - objects_xyxy[:, :2]).max(axis=1)
    return float(np.clip(np.quantile(longer, 0.75) * CONTEXT, MIN_CROP_PX, USUAL_CROP_PX))


def gallery_html(summary: SlideSummary, suspects: Suspects, crop: Crop, bounds_offset: tuple[int, int]) -> str:
    """Filters, a card a suspect in their order, and the large view.

    bounds_offset   x, y of frame bounds in frame slide, level-0 px: QuPath counts from there
    """
    objects, names = suspects.objects, [c.name for c in summary.classes]
    colours = {name: hex_of(c) for name, c in class_colours(names).items()}
    side = crop_side_px(objects.xyxy)
    cards = []
    for row, shape in enumerate(shapes_of(objects)):
        data = _facts(summary, suspects, row, shape, bounds_offset)
        picture, data["picture"] = _picture(crop, objects.xyxy[row], shape, side, colours[data["class"]])
        cards.append(_card(data, picture, colours[data["class"]]))
    shown = [names[k] for k in objects.class_index]
    return (
        _filters(shown, names, colours)
        + f'<ol class="gallery" aria-label="Objects, the most suspicious first">{"".join(cards)}</ol>'
        + '<p class="empty none" hidden>No object passes the filters.</p>'
        + _DIALOG
    )


def _picture(crop: Crop, xyxy: NDArray[np.float64], shape: Any, side: float, colour: str) -> tuple[str, str]:
    """The crop around an object with its outline over it, as HTML; and in words how many of the slide's px it shows."""
    side = np.ceil(max(side, float((xyxy[2:] - xyxy[:2]).max()) * 1.15))  # an object larger than most is shown whole
    corner = np.round((xyxy[:2] + xyxy[2:]) / 2 - side / 2)
    image = fit(crop((int(corner[0]), int(corner[1]), int(corner[0] + side), int(corner[1] + side))), MAX_CROP_PX)
    shrunk = max(image.shape[:2]) / side
    uri, shrunk_more = jpeg_within(image, CROP_BYTES)
    scale = shrunk * shrunk_more
    words = f"{side:.0f} px of level 0, " + (f"shrunk to {scale:.0%}" if scale < 1 else "native resolution")
    in_view = shapely.transform(shape, lambda points: (points - corner) * (100 / side))
    path = svg_path(in_view, 0.2)
    html = (
        f'<span class="crop"><img src="{uri}" alt="" loading="lazy">'
        f'<svg viewBox="0 0 100 100" aria-hidden="true"><path class="rim" d="{path}"/>'
        f'<path d="{path}" stroke="{colour}"/></svg></span>'
    )
    return html, words


def _facts(
    summary: SlideSummary, suspects: Suspects, row: int, shape: Any, bounds_offset: tuple[int, int]
) -> dict[str, str]:
    """What the page tells of an object: the data attributes of its card."""
    objects = suspects.objects
    names = [c.name for c in summary.classes]
    x, y = ((objects.xyxy[row][:2] + objects.xyxy[row][2:]) / 2).round().astype(int)
    scores = sorted(zip(names, objects.class_scores[row].tolist(), strict=True), key=lambda pair: -pair[1])
    facts = {
        "class": names[objects.class_index[row]],
        "rank": str(row + 1),
        "x": str(x),
        "y": str(y),
        "suspicion": f"{suspects.suspicion[row]:.2f}",
        "score": f"{objects.score[row]:.2f}",
        "scores": "|".join(f"{n}={s:.3f}" for n, s in scores if s >= 0.0005),
        "size": _size_text(shape, summary.mpp),
        "flags": ", ".join(text for bit, text in FLAG_NAMES.items() if objects.flags[row] & bit),
        "id": suspects.object_ids[row],
    }
    if bounds_offset != (0, 0):
        facts["qupath"] = f"{x - bounds_offset[0]}, {y - bounds_offset[1]}"
    return facts


def _card(data: dict[str, str], picture: str, colour: str) -> str:
    attributes = " ".join(f'data-{key}="{escaped(value)}"' for key, value in {**data, "colour": colour}.items())
    name, suspicion, x, y = (data[key] for key in ("class", "suspicion", "x", "y"))
    label = f"{data['rank']}: {name}, suspicion {suspicion}, score {data['score']}, at x {x}, y {y}"
    return (
        f'<li id="cell-{data["rank"]}"><button type="button" class="cell" {attributes} '
        f'aria-label="{escaped(label)}" tabindex="{0 if data["rank"] == "1" else -1}">{picture}'
        f'<span class="caption">{swatch(colour)}<b>{escaped(name)}</b><span>{suspicion}</span></span>'
        f'<span class="place">{number(int(x))}, {number(int(y))}</span></button></li>'
    )


def _size_text(shape: Any, mpp: tuple[float, float] | None) -> str:
    area_px = float(shape.area)
    if mpp is None:
        return f"{number(area_px)} px²"
    area_um2 = area_px * mpp[0] * mpp[1]
    return f"{number(area_um2)} µm², diameter {number(2 * (area_um2 / np.pi) ** 0.5)} µm"


def _filters(shown: Sequence[str], names: Sequence[str], colours: dict[str, str]) -> str:
    buttons = [f'<button type="button" data-filter="" aria-pressed="true">All <small>{len(shown)}</small></button>']
    buttons += [
        f'<button type="button" data-filter="{escaped(name)}" aria-pressed="false">'
        f"{swatch(colours[name])}{escaped(name)} <small>{shown.count(name)}</small></button>"
        for name in names
        if name in shown
    ]
    return (
        f'<div class="filters" role="group" aria-label="Filter by class">{"".join(buttons)}</div>'
        '<div class="filters second"><label>Score from <output>0.00</output>'
        '<input type="range" class="least" min="0" max="1" step="0.05" value="0"></label>'
        f'<span class="shown" role="status">{len(shown)} shown</span>'
        '<button type="button" class="outline" aria-pressed="true">Outlines</button></div>'
    )


_DIALOG = """<dialog class="large" aria-label="One object, enlarged">
<button type="button" class="close" aria-label="Close">×</button>
<div class="picture"></div>
<div class="about"><p class="rank"></p><h3></h3><dl></dl><div class="bars"></div>
<p class="actions"><button type="button" class="copy">Copy x, y</button>
<button type="button" class="copy-qupath" hidden>Copy for QuPath</button>
<button type="button" class="previous" aria-label="Previous">←</button>
<button type="button" class="next" autofocus aria-label="Next">→</button></p>
<p class="note">← → to browse, C to copy, O for outlines, Esc to close. A click on a picture copies its place.</p></div>
</dialog><p class="toast" role="status" aria-live="polite"></p>"""
