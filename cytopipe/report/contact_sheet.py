"""A sheet of small pictures of tiles drawn at random, their annotations outlined in the colours of the classes.

Enters: a tile store.  Leaves: HTML with the pictures inside; the same tiles for the same store.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import shapely
from numpy.typing import NDArray

from cytopipe.core.errors import RunError
from cytopipe.core.resources import cores
from cytopipe.core.seeds import rng_from
from cytopipe.formats.colours import class_colours, hex_of
from cytopipe.report.encode import escaped, fit, jpeg_uri, number, swatch
from cytopipe.report.outlines import svg_path
from cytopipe.tiles.split import PARTS
from cytopipe.tiles.store import TileStore

TILES_SHOWN = 24
LEAST_PER_PART = 4
PICTURE_PX = 320  # [D] at most four a row on a wide page; 24 of them are about 0.6 MB
JPEG_QUALITY = 82


@dataclass(frozen=True, slots=True)
class Sheet:
    """The sheet as HTML ('' without any tile), a sentence on how its tiles were drawn, and whether any has objects."""

    html: str
    note: str
    has_objects: bool


def contact_sheet(store: TileStore, *, count: int = TILES_SHOWN) -> Sheet:
    """`count` tiles of the store, of every part of its split; half of them with objects, where there are any."""
    chosen = _drawn(store, count)
    if not len(chosen):
        return Sheet("", "", False)
    parts = store.column("split").take(chosen).to_pylist()
    ids = store.column("tile_id").take(chosen).to_pylist()
    names = [c.name for c in store.info.classes]
    colours = {name: hex_of(colour) for name, colour in class_colours(names).items()}
    seen: set[str] = set()
    with ThreadPoolExecutor(cores()) as pool:
        drawn = list(pool.map(partial(_picture, store), chosen.tolist()))
    pictures = []
    for i, part, tile_id, picture in zip(chosen.tolist(), parts, ids, drawn, strict=True):
        outlines, on_tile, objects = _outlines(store, i, colours)
        seen |= on_tile
        counted = f"{number(objects)} objects" if objects != 1 else "1 object"
        caption = f"{escaped(tile_id)}<br>{escaped(part)}{f' · {counted}' if objects else ''}"
        pictures.append(
            f'<figure class="tile"><div class="crop">{picture}{outlines}</div>'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    key = "".join(f"<span>{swatch(colours[name])}{escaped(name)}</span>" for name in names if name in seen)
    note = f"{number(len(chosen))} of {number(len(store))} tiles, drawn at random from every part of the split"
    if seen and not store.object_counts().all():
        note += ", half of them from the tiles with objects"
    html = f'<div class="sheet">{"".join(pictures)}</div>' + (f'<p class="key">{key}</p>' if key else "")
    return Sheet(html, f"{note}.", bool(seen))


def _drawn(store: TileStore, count: int) -> NDArray[np.intp]:
    """Indices of the tiles shown, by part, then in the order of the store."""
    rows = {part: store.rows(split=part) for part in PARTS}
    rows = {part: mine for part, mine in rows.items() if len(mine)}
    with_objects = store.object_counts() > 0
    taken = np.zeros(len(store), bool)
    chosen = []
    for part, mine in rows.items():
        least = min(LEAST_PER_PART, count // len(rows))
        quota = least + round((count - least * len(rows)) * len(mine) / len(store))
        rng = rng_from(0, "contact sheet", part)
        full = mine[with_objects[mine]]
        first = rng.permutation(full)[: quota // 2]
        taken[first] = True
        rest = rng.permutation(mine[~taken[mine]])[: quota - len(first)]
        chosen.append(np.sort(np.concatenate([first, rest])))
    return np.concatenate(chosen).astype(np.intp) if chosen else np.zeros(0, np.intp)


def _picture(store: TileStore, i: int) -> str:
    try:
        return f'<img src="{jpeg_uri(fit(store.read_image(i), PICTURE_PX), JPEG_QUALITY)}" alt="">'
    except RunError as error:  # one damaged image is seen on the sheet, and takes no page away
        return f'<p class="empty">{escaped(error.what)}</p>'


def _outlines(store: TileStore, i: int, colours: dict[str, str]) -> tuple[str, set[str], int]:
    """The SVG over a tile, the classes in it, and how many objects."""
    objects = store.objects_of(i)
    if not objects:
        return "", set(), 0
    x0, y0, x1, y1 = store.tile_box(i)
    per_px = np.array([x1 - x0, y1 - y0]) / PICTURE_PX
    groups = []
    names = sorted({o.class_name for o in objects})
    for name in names:
        mine = [o.geometry for o in objects if o.class_name == name]
        placed = shapely.transform(np.array(mine, object), lambda points: (points - (x0, y0)) / per_px)
        path = "".join(svg_path(geometry) for geometry in placed)
        groups.append(
            f'<g><path class="rim" d="{path}"/><path stroke="{colours.get(name, "#000")}" d="{path}"/>'
            f"<title>{escaped(name)}</title></g>"
        )
    view = f'<svg viewBox="0 0 {PICTURE_PX} {PICTURE_PX}" preserveAspectRatio="none">{"".join(groups)}</svg>'
    return view, set(names), len(objects)
