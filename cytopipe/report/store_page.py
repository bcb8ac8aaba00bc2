"""The page of a tile store: what was cut of which slide, which patients are where, and what the tiles look like.

Enters: a finished store.  Leaves: index.html in its folder, whole by itself, the same bytes for the same store: neither
a clock time nor the folder's own name stands in it. Of a store of any size a sample is shown and all is counted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cytopipe.formats.colours import class_colours, hex_of
from cytopipe.report.charts import LINE_COLOURS, stacked_histogram
from cytopipe.report.contact_sheet import contact_sheet
from cytopipe.report.encode import escaped, number, swatch
from cytopipe.report.page import fact_list, figures, section, warning_list, write_page
from cytopipe.tiles.config import Codec
from cytopipe.tiles.split import PARTS
from cytopipe.tiles.store import TileStore
from cytopipe.tiles.writer import PROBLEMS_CSV

PAGE_NAME = "index.html"
MAX_SLIDE_ROWS = 1000  # [D] about 0.5 MB of table, which a browser lays out at once; all rows are in slides.parquet
MAX_CLASS_ROWS = 60
MAX_TOLD_APART = 1_000_000  # [D] rows of objects.parquet: to know one object on two tiles takes about 1 s a million
MAX_STRATA = 30
CODEC_NAMES: dict[Codec, str] = {"jpeg": "JPEG", "png": "PNG", "zarr": "zarr"}
CHART_WIDTH_PX = 400.0  # three stand beside each other

PART_COLOURS = dict(zip(PARTS, LINE_COLOURS, strict=False))

DROPPED = {
    "tiles_glass": "glass",
    "tiles_outside_roi": "outside region",
    "tiles_blurred": "blurred",
    "tiles_unreadable": "unreadable",
}
"""Columns of slides.parquet that count dropped tiles -> the reason, as the table names it."""

Row = Mapping[str, Any]


def write_store_page(store: TileStore) -> Path:
    """Write index.html into the store's folder; returns its path. Raises RunError when the disk fails."""
    slides = store.slides.to_pylist()
    objects = _count_objects(store)
    tiles = {part: store.rows(split=part) for part in PARTS}
    leaks = _leaks(store, slides)
    body = [
        warning_list(leaks),
        figures(_key_figures(store, slides, objects.of)),
        _sheet(store),
        f'<div class="columns even">{_parts(store, slides, tiles, objects.of, leaks)}{_classes(store, objects)}</div>',
        _histograms(store, tiles),
        _slides(store, slides),
        _problems(store, slides),
        section("Store", fact_list(_facts(store))),
    ]
    path = store.folder / PAGE_NAME
    plural = "slide" if len(slides) == 1 else "slides"
    write_page(
        path,
        kind="Tile store",
        title=f"{number(len(store))} tiles of {number(len(slides))} {plural}",
        subtitle=_how_cut(store),
        body=body,
        scripts=["charts.js", "store.js"],
    )
    return path


def _how_cut(store: TileStore) -> str:
    info = store.info
    resolution = "level 0 as it is" if info.mpp is None else f"{info.mpp:g} µm/px"
    quality = f", quality {info.quality}" if info.codec == "jpeg" else ""
    made_by = f"cytopipe {info.made_by.command} {info.made_by.version}"
    return f"{info.tile_px} px at {resolution} · {CODEC_NAMES[info.codec]}{quality} · made by {made_by}"


def _facts(store: TileStore) -> dict[str, object]:
    return store.info.model_dump(mode="json", exclude={"classes"})


def _key_figures(
    store: TileStore, slides: Sequence[Row], objects: Counter[tuple[str, str]]
) -> list[tuple[str, str, str]]:
    failed = sum(row["error"] is not None for row in slides)
    dropped = sum(_total(slides, column) for column in DROPPED)
    whole = len(store) + dropped
    share = f"{number(dropped)} dropped, {dropped / whole:.0%} of the windows" if dropped else "none dropped"
    labelled = len(store.rows(labelled=True))
    classes = len({class_name for class_name, _ in objects})
    return [
        ("slides", number(len(slides)), f"{number(failed)} with errors, see the table" if failed else "none failed"),
        ("patients", number(len({row["patient"] for row in slides})), "by the slide list"),
        ("tiles", number(len(store)), share),
        ("labelled tiles", number(labelled), f"{labelled / max(len(store), 1):.0%} of the tiles"),
        (
            "objects",
            number(sum(objects.values())),
            f"on tiles, of {classes} classes" if classes else "none on the tiles",
        ),
    ]


@dataclass(frozen=True, slots=True)
class _Counts:
    """(class, part) -> objects, and what the number counts."""

    of: Counter[tuple[str, str]]
    note: str


def _count_objects(store: TileStore) -> _Counts:
    counts = store.object_counts()
    parts = store.column("split").combine_chunks().dictionary_encode()
    names = store.object_column("class").combine_chunks().dictionary_encode()
    table = pa.table({"part": np.repeat(parts.indices.to_numpy(), counts), "class": names.indices})
    note = "Objects as tiles show them: one that lies on two tiles counts twice."
    if len(table) <= MAX_TOLD_APART:
        slides = store.column("slide_id").combine_chunks().dictionary_encode()
        table = table.append_column("slide", pa.array(np.repeat(slides.indices.to_numpy(), counts)))
        table = table.append_column("object", store.object_column("object_id"))
        table = table.group_by(table.column_names, use_threads=False).aggregate([])
        note = "Objects that a tile shows, each counted once, however many tiles it meets."
    found = table.group_by(["part", "class"], use_threads=False).aggregate([([], "count_all")]).to_pylist()
    of = {(names.dictionary[f["class"]].as_py(), parts.dictionary[f["part"]].as_py()): f["count_all"] for f in found}
    return _Counts(Counter(of), note)


def _leaks(store: TileStore, slides: Sequence[Row]) -> list[str]:
    """What stands in two parts of the split, in words: patients, by tiles and slides, and slide files."""
    tiles = pa.table({name: store.column(name) for name in ("patient", "split")})
    pairs = tiles.group_by(tiles.column_names, use_threads=False).aggregate([]).to_pylist()
    parts_of_patient, parts_of_file = defaultdict(set), defaultdict(set)
    for row in [*pairs, *slides]:
        parts_of_patient[row["patient"]].add(row["split"])
    names: dict[str, list[str]] = defaultdict(list)
    for row in slides:
        if row["fingerprint"] is not None:
            parts_of_file[row["fingerprint"]].add(row["split"])
            names[row["fingerprint"]].append(row["slide_id"])
    leaks = [
        f"patient {patient} is in {' and '.join(sorted(parts))}"
        for patient, parts in sorted(parts_of_patient.items())
        if len(parts) > 1
    ]
    leaks += [
        f"{' and '.join(names[file])} are one file, in {' and '.join(sorted(parts))}"
        for file, parts in sorted(parts_of_file.items())
        if len(parts) > 1
    ]
    return leaks


def _sheet(store: TileStore) -> str:
    sheet = contact_sheet(store)
    if not sheet.html:
        return section("Tiles", '<p class="empty">No tile was kept.</p>')
    tools = (
        '<div class="filters" role="group" aria-label="Shown over the tiles">'
        '<button type="button" data-toggle="outlines" aria-pressed="true">Annotations</button></div>'
    )
    return section("Tiles", sheet.html, note=sheet.note, tools=tools if sheet.has_objects else "")


def _parts(
    store: TileStore,
    slides: Sequence[Row],
    tiles: Mapping[str, NDArray[np.intp]],
    objects: Counter[tuple[str, str]],
    leaks: Sequence[str],
) -> str:
    """The split: patients, slides, tiles and objects of each part; patients of each stratum, where there are strata."""
    labelled = np.zeros(len(store), bool)
    labelled[store.rows(labelled=True)] = True
    patients = {part: {row["patient"] for row in slides if row["split"] == part} for part in PARTS}
    every = sum(map(len, patients.values())) or 1
    rows = [
        (
            f"{swatch(PART_COLOURS[part])}{part}",
            f"{number(len(patients[part]))} <small>{len(patients[part]) / every:.0%}</small>",
            number(sum(row["split"] == part for row in slides)),
            number(len(tiles[part])),
            number(int(labelled[tiles[part]].sum())),
            number(sum(count for (_, of), count in objects.items() if of == part)),
        )
        for part in PARTS
        if patients[part]
    ]
    table = _table(("part", "patients", "slides", "tiles", "labelled", "objects"), rows)
    checked = "Checked: no patient and no slide file is in two parts."
    if leaks:
        checked = "Something is in two parts, see the warning above."
    return section("Split", table + _strata(slides, [part for part in PARTS if patients[part]]), note=checked)


def _strata(slides: Sequence[Row], parts: Sequence[str]) -> str:
    """Patients of each stratum in each part; '' where no slide names a stratum."""
    if all(row["stratum"] is None for row in slides):
        return ""
    patients: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in slides:
        patients[row["stratum"] or "none"][row["split"]].add(row["patient"])
    largest = sorted(patients, key=lambda name: (-sum(map(len, patients[name].values())), name))[:MAX_STRATA]
    rows = [(escaped(name), *(number(len(patients[name][part])) for part in parts)) for name in largest]
    more = f"The {MAX_STRATA} largest of {len(patients)} strata." if len(patients) > MAX_STRATA else ""
    return _table(("patients by stratum", *parts), rows) + (f'<p class="note">{more}</p>' if more else "")


def _classes(store: TileStore, counts: _Counts) -> str:
    objects, note = counts.of, counts.note
    names = [c.name for c in store.info.classes]
    names += sorted({name for name, _ in objects} - set(names))
    if not names:
        return section("Classes", '<p class="empty">No slide of the store is annotated.</p>')
    colours = {name: hex_of(colour) for name, colour in class_colours(names).items()}
    parts = [part for part in PARTS if any(of == part for _, of in objects)] or ["train"]
    totals = {name: sum(objects[name, part] for part in parts) for name in names}
    shown = sorted(names, key=lambda name: -totals[name])[:MAX_CLASS_ROWS]
    most = max(totals.values()) or 1
    rows = [
        (
            f"{swatch(colours[name])}{escaped(name)}",
            f'<div class="meter"><span style="width:{100 * totals[name] / most:.1f}%;background:{colours[name]}">'
            "</span></div>",
            *(number(objects[name, part]) for part in parts),
            f"<b>{number(totals[name])}</b>",
        )
        for name in shown
    ]
    if len(shown) < len(names):
        note += f" The {len(shown)} most frequent of {len(names)} classes."
    return section("Classes", _table(("class", "", *parts, "all"), rows), note=note)


def _histograms(store: TileStore, tiles: Mapping[str, NDArray[np.intp]]) -> str:
    charts = []
    for column, label, what in (
        ("foreground", "foreground", "fraction of the tile in the slide's foreground"),
        ("glass", "empty glass", "fraction of the tile's pixels that are empty glass"),
        ("sharpness", "sharpness", "variance of the Laplacian; comparable within a slide only"),
        ("score", "score", "why a mined tile was chosen"),
    ):
        values = store.column(column).to_numpy()
        known = np.isfinite(values)
        if not known.any():
            continue
        # a handful of very sharp tiles would press all others into the first bar
        top = 1.0 if column != "sharpness" else max(float(np.quantile(values[known], 0.99)), 1e-6)
        by_part = {part: values[rows][known[rows]] for part, rows in tiles.items() if len(rows)}
        chart = stacked_histogram(
            by_part, PART_COLOURS, span=(0.0, top), label=label, things="tiles", width=CHART_WIDTH_PX
        )
        charts.append(f'<figure><h3>{escaped(label)}</h3><p class="note">{escaped(what)}</p>{chart}</figure>')
    if not charts:
        return ""
    legend = "".join(f"<span>{swatch(PART_COLOURS[part])}{part}</span>" for part, rows in tiles.items() if len(rows))
    return section("Measures of the tiles", f'<div class="plots">{"".join(charts)}</div><p class="key">{legend}</p>')


def _slides(store: TileStore, slides: Sequence[Row]) -> str:
    """A row a slide: what failed first, where not all are shown."""
    shown = list(slides)
    note = ""
    if len(shown) > MAX_SLIDE_ROWS:
        shown = sorted(slides, key=lambda row: row["error"] is None)[:MAX_SLIDE_ROWS]
        note = f"{number(len(shown))} of {number(len(slides))} slides, those with errors first; all: slides.parquet."
    reasons = {c: name for c, name in DROPPED.items() if c == "tiles_glass" or _total(slides, c)}
    optional = [name for name in ("stratum", "diagnosis") if any(row[name] is not None for row in slides)]
    has_errors = any(row["error"] is not None for row in slides)
    pictures = {row["slide_id"]: store.overview_path(row["slide_id"]) for row in shown}
    rows = []
    for row in shown:
        size = "–" if row["width_px"] is None else f"{number(row['width_px'])} × {number(row['height_px'])}"
        rows.append(
            (
                _linked(row["slide_id"], pictures[row["slide_id"]], store.folder),
                _text(row["patient"]),
                escaped(row["split"]),
                *(_text(row[name] or "–") for name in optional),
                size,
                _resolution(row),
                number(row["tiles_kept"]),
                *(number(row[column]) for column in reasons),
                number(row["objects_annotated"]) if row["annotations_sha256"] else "–",
                *([f'<div class="remark failed">{escaped(row["error"] or "")}</div>'] if has_errors else []),
            )
        )
    head = ("slide", "patient", "part", *optional, "size, px", "µm/px", "tiles", *reasons.values(), "objects")
    head = (*head, "error") if has_errors else head
    tools = (
        '<div class="filters"><input type="search" id="slide-filter" placeholder="Find a slide" '
        'aria-label="Find a slide, a patient or a part"></div>'
        if len(shown) > 12
        else ""
    )
    if any(pictures.values()):
        note = f"{note} A slide's name leads to its overview: the thumbnail with kept and dropped tiles.".strip()
    return section("Slides", _table(head, rows, identity="slides"), note=note, tools=tools)


def _linked(slide_id: str, picture: Path | None, folder: Path) -> str:
    if picture is None:
        return escaped(slide_id)
    place = quote(picture.relative_to(folder).as_posix())
    return f'<a href="{escaped(place)}">{escaped(slide_id)}</a>'


def _text(value: str) -> str:
    """What somebody wrote, of whatever length: it wraps."""
    return f'<div class="text">{escaped(value)}</div>'


def _resolution(row: Row) -> str:
    """Level 0's µm/px and what says so."""
    if row["mpp_x"] is None:
        return "–"
    text = number(row["mpp_x"], 4)
    if abs(row["mpp_x"] - row["mpp_y"]) > 0.005 * row["mpp_x"]:
        text += f" × {number(row['mpp_y'], 4)}"
    evidence = f"{row['mpp_source'] or ''}{', a guess' if row['mpp_guessed'] else ''}"
    return f"{text} <small>{escaped(evidence)}</small>"


def _problems(store: TileStore, slides: Sequence[Row]) -> str:
    """What was not as annotators meant it: mended, refused, ignored, on no tile, dropped pieces."""
    said = {
        "objects_mended": "objects of invalid outline, mended",
        "objects_refused": "objects refused",
        "objects_ignored": "objects of ignored classes",
        "objects_unseen": "objects on no tile of the store",
        "pieces_dropped": "pieces at the edge of a tile that show too little of their object",
    }
    rows = [(text, number(count)) for column, text in said.items() if (count := _total(slides, column))]
    if not rows:
        return ""
    more = ""
    if (store.folder / PROBLEMS_CSV).is_file():
        more = f'<p class="note">Each mended or refused object: <a href="{PROBLEMS_CSV}">{PROBLEMS_CSV}</a></p>'
    return section("Annotations not taken as they are", _table(("what", "count"), rows) + more)


def _total(slides: Sequence[Row], column: str) -> int:
    return sum(row.get(column) or 0 for row in slides)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, identity: str = "") -> str:
    """A table; cells are HTML, heads plain text, the first cell of a row names it. One with an identity scrolls."""
    heads = "".join(
        f'<th scope="col"{" class=remark" if name == "error" else ""}>{escaped(name)}</th>' for name in head
    )
    lines = (f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{cell}</td>" for cell in row[1:])}</tr>' for row in rows)
    name, kind = (f' id="{identity}"', "scroll tall") if identity else ("", "scroll")
    body = f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="{kind}"><table{name}>{body}</table></div>'
