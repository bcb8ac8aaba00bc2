"""The page of a tile store: it counts right, shows every part, is the same for the same store, and fetches nothing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from shapely import box

from cytopipe.report.contact_sheet import LEAST_PER_PART, PICTURE_PX, TILES_SHOWN, contact_sheet
from cytopipe.report.store_page import MAX_SLIDE_ROWS, write_store_page
from cytopipe.tiles import MadeBy, ObjectRow, SlideRow, StoreInfo, TileRow, TileStore, open_writer
from cytopipe.tiles.images import encode_image
from tests.unit.test_report_pages import Page

TILE_PX = 64
HOSTILE = '<script>alert("1")</script>&\'x'


def picture(slide_id: str, x: int) -> np.ndarray:
    seed = [*slide_id.encode(), x]
    return np.random.default_rng(seed).integers(150, 256, (TILE_PX, TILE_PX, 3), dtype=np.uint8)


def slide(slide_id: str, part: str, **changes: object) -> SlideRow:
    values = {
        "fingerprint": f"file of {slide_id}",
        "annotations_sha256": "aa",
        "width_px": 4000,
        "height_px": 3000,
        "mpp_x": 0.25,
        "mpp_y": 0.25,
        "mpp_source": "vendor field",
        "mpp_guessed": False,
        "classes": ("LSIL", "normal"),
        "objects_annotated": 3,
    }
    return SlideRow(slide_id, f"patient of {slide_id}", part, f"{slide_id}.svs", **{**values, **changes})


def tiles(slide_id: str, count: int, codec: str, **changes: object) -> list[TileRow]:
    values = {"foreground": 0.25, "sharpness": 7.0, "glass": 0.75, "labelled": True, "origin": "grid", **changes}
    return [
        TileRow(
            x, 0, 2.0 * x, 0.0, 2.0 * (x + TILE_PX), 2.0 * TILE_PX, mpp=0.5,
            image=encode_image(picture(slide_id, x), codec, 90), **values,
        )
        for x in range(0, TILE_PX * count, TILE_PX)
    ]  # fmt: skip


def objects() -> list[ObjectRow]:
    """`a` lies on the first two tiles (level-0 px 0 to 128 and 128 to 256), `b` and `c` on one."""
    return [
        ObjectRow("a", 0, 0, "LSIL", box(108, 10, 128, 50), True, False),
        ObjectRow("a", TILE_PX, 0, "LSIL", box(128, 10, 148, 50), True, False),
        ObjectRow("b", 0, 0, "normal", box(32, 64, 64, 96), False, False),
        ObjectRow("c", TILE_PX, 0, "normal", box(160, 64, 200, 96), False, False),
    ]


def store(folder: Path, slides: list[SlideRow], *, codec: str = "png", counts: int | list[int] = 2, **of_tiles: object):
    """A store of these slides, `counts` tiles each; a slide with an error failed."""
    info = StoreInfo(
        tile_px=TILE_PX, mpp=0.5, overlap_px=0, edge="shift", codec=codec, quality=90,
        made_by=MadeBy(command="tile", version="0"),
    )  # fmt: skip
    counts = [counts] * len(slides) if isinstance(counts, int) else counts
    with open_writer(folder, info, {}) as writer:
        for row, count in zip(slides, counts, strict=True):
            if row.error is not None or not count:
                writer.fail_slide(row)
            else:
                mine = objects() if row.annotations_sha256 and count > 1 else []
                writer.add_slide(row, tiles(row.slide_id, count, codec, **of_tiles), mine, {})
        writer.finish()
    return TileStore(folder)


THREE = [slide("S-1", "train"), slide("S-2", "val"), slide("S-3", "test")]


def cells(page: Page, html: str) -> list[list[str]]:
    """The rows of every table, without markup."""
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.S)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[dh].*?</t[dh]>", row, re.S)] for row in rows]


def test_the_page_is_whole_by_itself_and_may_fetch_nothing(tmp_path):
    page = Page(write_store_page(store(tmp_path / "store", THREE)))

    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"]
    assert all(a["src"].startswith("data:") for a in page.all("img"))
    assert not page.all("link")
    assert "http" not in "".join(a.get("href", "") for a in page.all("a"))


def test_the_same_store_in_another_folder_gives_the_same_bytes(tmp_path):
    pages = [write_store_page(store(tmp_path / name, THREE)).read_bytes() for name in ("one", "other")]

    again = write_store_page(TileStore(tmp_path / "one")).read_bytes()

    assert pages[0] == pages[1] == again


def test_an_object_on_two_tiles_is_counted_once_in_its_part(tmp_path):
    path = write_store_page(store(tmp_path / "store", THREE[:2]))

    rows = cells(Page(path), path.read_text())

    assert ["LSIL", "", "1", "1", "2"] in rows
    assert ["normal", "", "2", "2", "4"] in rows
    assert ["train", "1 50%", "1", "2", "2", "3"] in rows


def test_tiles_kept_and_dropped_by_reason_stand_with_each_slide(tmp_path):
    rows = [slide("S-1", "train", tiles_glass=7, tiles_outside_roi=3), slide("S-2", "val", mpp_guessed=True)]
    path = write_store_page(store(tmp_path / "store", rows))

    page = Page(path)

    head, first, second = (row for row in cells(page, path.read_text()) if row[0] in ("slide", "S-1", "S-2"))
    first, second = (dict(zip(head, row, strict=True)) for row in (first, second))
    assert (first["tiles"], first["glass"], first["outside region"], first["objects"]) == ("2", "7", "3", "3")
    assert "blurred" not in head
    assert first["µm/px"] == "0.25 vendor field"
    assert second["µm/px"] == "0.25 vendor field, a guess"
    assert "10 dropped, 71% of the windows" in page.words


def test_each_outline_lies_where_the_object_is_on_its_tile(tmp_path):
    html = contact_sheet(store(tmp_path / "store", THREE[:1])).html

    # b is at 32 to 64, 64 to 96 of a tile of 128 level-0 px: a quarter to a half across, a half to three quarters down
    (path,) = set(re.findall(r'd="(M[^"]*)"', html.split("</figure>")[0].split("<title>LSIL")[1]))
    points = np.array([[float(v) for v in pair.split()] for pair in re.split("[ML]", path.rstrip("Z"))[1:]])
    assert points.min(0).tolist() == [PICTURE_PX / 4, PICTURE_PX / 2]
    assert points.max(0).tolist() == [PICTURE_PX / 2, PICTURE_PX * 3 / 4]


def test_every_part_is_on_the_sheet_however_small_and_the_sheet_is_of_one_size(tmp_path):
    of_parts = [slide("S-1", "train", annotations_sha256=None), slide("S-2", "val"), slide("S-3", "test")]
    sheet = contact_sheet(store(tmp_path / "store", of_parts, counts=[90, 1, 5]))

    assert sheet.html.count("<figure") <= TILES_SHOWN
    shown = re.findall(r"<br>(train|val|test)", sheet.html)
    assert shown.count("val") == 1
    assert shown.count("test") >= LEAST_PER_PART
    assert shown.count("train") > TILES_SHOWN / 2
    assert "half of them from the tiles with objects" in sheet.note


def test_tiles_with_objects_are_half_of_the_sheet_where_they_are_rare(tmp_path):
    sheet = contact_sheet(store(tmp_path / "store", [slide("S-1", "train")], counts=300))

    assert sheet.html.count("objects</figcaption>") == 2  # the only two of 300
    assert sheet.html.count("<figure") == TILES_SHOWN


def test_the_sheet_of_a_zarr_store_is_that_of_a_png_store(tmp_path):
    png, zarr = (contact_sheet(store(tmp_path / codec, THREE, codec=codec)) for codec in ("png", "zarr"))

    assert png == zarr


def test_names_cannot_smuggle_markup_into_the_page(tmp_path):
    hostile = slide("S-1", "train", diagnosis=HOSTILE, stratum=HOSTILE, mpp_source=HOSTILE)
    failed = slide("S-2", "val", error=HOSTILE)
    built = store(tmp_path / "store", [hostile, failed, slide("S<b>", "test")])

    page = Page(write_store_page(built))

    assert "alert(" not in "".join(re.findall(r"<script>.*?</script>", page.html, re.S))
    assert not page.all("b>")
    assert page.words.count(HOSTILE) >= 3


def test_a_patient_and_a_file_in_two_parts_are_a_warning_at_the_top(tmp_path):
    rows = [
        slide("S-1", "train", fingerprint="x"),
        SlideRow("S-2", "patient of S-1", "test", "S-2.svs"),
        slide("S-3", "val", fingerprint="x"),
    ]

    words = Page(write_store_page(store(tmp_path / "store", rows))).words

    assert "patient patient of S-1 is in test and train" in words
    assert "S-1 and S-3 are one file, in train and val" in words
    assert "no patient and no slide file is in two parts" not in words
    sound = Page(write_store_page(store(tmp_path / "sound", THREE))).words
    assert "Checked: no patient and no slide file is in two parts." in sound


def test_a_store_in_which_every_slide_failed_still_has_its_page(tmp_path):
    rows = [SlideRow(f"S-{k}", f"P-{k}", "train", f"S-{k}.svs", error="is no slide") for k in range(2)]

    words = Page(write_store_page(store(tmp_path / "store", rows))).words

    assert "0 tiles of 2 slides" in words
    assert "No tile was kept." in words
    assert words.count("is no slide") == 2


def test_a_mined_store_without_labels_shows_its_scores_and_no_classes(tmp_path):
    rows = [slide("S-1", "train", annotations_sha256=None, classes=(), objects_annotated=0)]
    built = store(tmp_path / "store", rows, origin="mined", labelled=False, score=0.5, model="aa", foreground=None)

    page = Page(write_store_page(built))

    assert "why a mined tile was chosen" in page.words
    assert "No slide of the store is annotated." in page.words
    assert "Histogram: foreground" not in page.html


def test_a_damaged_image_leaves_a_note_on_the_sheet_and_the_page_is_written(tmp_path):
    built = store(tmp_path / "store", THREE)
    next((tmp_path / "store/images").rglob("*.png")).write_bytes(b"no image")

    assert Page(write_store_page(built)).words.count("a tile image is damaged") == 1


def test_of_very_many_slides_those_with_errors_are_shown_first(tmp_path):
    rows = [slide(f"S-{k:05}", "train") for k in range(MAX_SLIDE_ROWS + 4)]
    rows[-1] = slide("S-99999", "train", error="is no slide")

    page = Page(write_store_page(store(tmp_path / "store", rows, counts=0)))

    names = re.findall(r'<th scope="row">(S-\d+)<', page.html)
    assert len(names) == MAX_SLIDE_ROWS
    assert names[0] == "S-99999"
    assert f"{MAX_SLIDE_ROWS:,}".replace(",", "\u2009") + " of" in page.html


def test_what_annotations_lost_is_listed_with_the_way_to_each_object(tmp_path):
    rows = [slide("S-1", "train", objects_mended=2, objects_refused=1, pieces_dropped=4)]
    built = store(tmp_path / "store", rows)
    (tmp_path / "store/problems.csv").write_text("slide_id,object_id,what,done\n")

    page = Page(write_store_page(built))

    listed = cells(page, page.html)
    assert ["objects of invalid outline, mended", "2"] in listed
    assert ["objects refused", "1"] in listed
    assert ["pieces at the edge of a tile that show too little of their object", "4"] in listed
    assert page.all("a", href="problems.csv")


@pytest.mark.parametrize("column", ["foreground", "glass", "sharpness"])
def test_each_measure_has_its_histogram(column, tmp_path):
    page = Page(write_store_page(store(tmp_path / "store", THREE)))

    label = {"glass": "empty glass"}.get(column, column)
    (chart,) = [part for part in page.html.split("<svg") if f'aria-label="Histogram: {label}"' in part]
    counted = sum(int(n) for n in re.findall(r": (\d+) tiles", chart))
    assert counted == 6
