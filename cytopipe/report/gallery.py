"""The gallery of the most suspicious objects: which ones, how large a piece of the slide each shows, and its HTML.

Enters: objects in level-0 px and a function that cuts an area out of the slide.  Leaves: markup for `gallery.js`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.objects import FLAG_NAMES
from cytopipe.formats.colours import class_colours, hex_of
from cytopipe.formats.results import Results, shapes_of
from cytopipe.report.encode import U8, escaped, fit, jpeg_uri, number, swatch
from cytopipe.report.outlines import svg_path

Box = tuple[int, int, int, int]
Crop = Callable[[Box], U8]
"""crop((x0, y0, x1, y1)): that area of the slide, level-0 px, as uint8 RGB of any size; background past its border."""

CARD_PX = 224  # twice the size on the page: sharp on dense displays, and enough for the large view
CONTEXT = 1.6  # side of the crop, in longer sides of an object at the 75th percentile


def most_suspicious(results: Results, count: int) -> NDArray[np.intp]:
    """Rows of the `count` most suspicious objects, then by score, then in the order of the table.

    What has no suspicion at all is left out: nuclei, where only cells carry it. A cell is shown under the class that it
    was given, also where that is a normal one and its doubts put it here.
    """
    suspicion = results.suspicion
    order = np.lexsort((-results.objects.score, -suspicion))
    return order[suspicion[order] > 0][:count]


def crop_side_px(objects_xyxy: NDArray[np.float64]) -> float:
    """The side of the crops, level-0 px: one for all, so that sizes can be compared; twelve at least."""
    if not len(objects_xyxy):
        return 12.0
    longer = (objects_xyxy[:, 2:] - objects_xyxy[:, :2]).max(axis=1)
    return max(12.0, float(np.quantile(longer, 0.75)) * CONTEXT)


def gallery_html(results: Results, rows: NDArray[np.intp], crop: Crop) -> str:
    """Filter buttons, cards in the order of `rows`, and the large view."""
    objects, names = results.objects, [c.name for c in results.classes]
    colours = {name: hex_of(c) for name, c in class_colours(names).items()}
    side = crop_side_px(objects.xyxy[rows])
    shapes = shapes_of(objects.take(rows))
    cards = []
    for rank, (row, shape) in enumerate(zip(rows, shapes, strict=True), start=1):
        image, path = _picture(crop, objects.xyxy[row], shape, side)
        cards.append(_card(results, int(row), rank, image, path, colours, shape))
    shown = [names[objects.class_index[row]] for row in rows]
    return _filters(shown, names, colours) + f'<ol class="gallery">{"".join(cards)}</ol>' + _DIALOG


def _picture(crop: Crop, xyxy: NDArray[np.float64], shape: Any, side: float) -> tuple[U8, str]:
    """The crop around an object, and its outline as an SVG path in a view box of 0 to 100."""
    side = np.ceil(max(side, float((xyxy[2:] - xyxy[:2]).max()) * 1.15))  # an object larger than most is shown whole
    corner = np.round((xyxy[:2] + xyxy[2:]) / 2 - side / 2)
    image = fit(crop((int(corner[0]), int(corner[1]), int(corner[0] + side), int(corner[1] + side))), CARD_PX)
    in_view = shapely.transform(shape, lambda points: (points - corner) * (100 / side))
    return image, svg_path(in_view, 0.2)


def _card(results: Results, row: int, rank: int, image: U8, path: str, colours: dict[str, str], shape: Any) -> str:
    objects = results.objects
    names = [c.name for c in results.classes]
    name = names[objects.class_index[row]]
    suspicion = float(results.suspicion[row])
    x, y = ((objects.xyxy[row][:2] + objects.xyxy[row][2:]) / 2).round().astype(int)
    scores = sorted(zip(names, objects.class_scores[row].tolist(), strict=True), key=lambda pair: -pair[1])
    shown_scores = "|".join(f"{n}={s:.3f}" for n, s in scores if s >= 0.0005)
    flags = ", ".join(text for bit, text in FLAG_NAMES.items() if objects.flags[row] & bit)
    data = {
        "class": name,
        "colour": colours[name],
        "rank": rank,
        "x": x,
        "y": y,
        "suspicion": f"{suspicion:.2f}",
        "score": f"{objects.score[row]:.2f}",
        "scores": shown_scores,
        "size": _size_text(shape, results.mpp),
        "flags": flags,
        "id": results.object_ids[row],
    }
    attributes = " ".join(f'data-{key}="{escaped(value)}"' for key, value in data.items())
    label = f"{name}, suspicion {suspicion:.2f}, at x {x}, y {y}"
    return (
        f'<li><button type="button" class="cell" {attributes} '
        f'aria-label="{escaped(label)}" tabindex="{0 if rank == 1 else -1}">'
        f'<span class="crop"><img src="{jpeg_uri(image)}" alt="" loading="lazy">'
        f'<svg viewBox="0 0 100 100" aria-hidden="true"><path class="rim" d="{path}"/>'
        f'<path d="{path}" stroke="{colours[name]}"/></svg></span>'
        f'<span class="caption">{swatch(colours[name])}<b>{escaped(name)}</b><span>{suspicion:.2f}</span></span>'
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
    outline = '<button type="button" class="outline" aria-pressed="true">Outlines</button>'
    return (
        f'<div class="filters" role="group" aria-label="Filter by class">{"".join(buttons)}<span></span>{outline}</div>'
    )


_DIALOG = """<dialog class="large" aria-label="One object, enlarged">
<button type="button" class="close" aria-label="Close">×</button>
<div class="picture"></div>
<div class="about"><p class="rank"></p><h3></h3><dl></dl><div class="bars"></div>
<p class="actions"><button type="button" class="copy">Copy x, y</button>
<button type="button" class="previous" aria-label="Previous">←</button>
<button type="button" class="next" autofocus aria-label="Next">→</button></p>
<p class="note">Level-0 pixels of the whole slide. ← → to browse, C to copy, O for outlines, Esc to close.</p></div>
</dialog><p class="toast" role="status" aria-live="polite"></p>"""
