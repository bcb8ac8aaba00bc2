"""Slide lists: paths, globs, folders and CSV files."""

from __future__ import annotations

from pathlib import Path

import pytest

from cytopipe.core.errors import UserError
from cytopipe.slides import SlideEntry, list_slides


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.svs", "a.TIFF", "notes.txt", "c (387).ndpi", "x[1].png"):
        (tmp_path / name).write_bytes(b"")
    return tmp_path


def names(entries: list[SlideEntry]) -> list[str]:
    return [entry.path.name for entry in entries]


def test_a_folder_gives_its_slides_by_name_and_leaves_other_files(folder):
    assert names(list_slides([folder])) == ["a.TIFF", "b.svs", "c (387).ndpi", "x[1].png"]


def test_paths_come_in_the_order_given_whatever_their_suffix(folder):
    assert names(list_slides([str(folder / "notes.txt"), folder / "b.svs"])) == ["notes.txt", "b.svs"]


def test_brackets_in_the_name_of_a_file_that_exists_are_no_glob(folder):
    (folder / "x1.png").write_bytes(b"")

    assert names(list_slides([folder / "x[1].png"])) == ["x[1].png"]


def test_a_glob_is_expanded_by_name_also_through_folders(folder):
    (folder / "deep").mkdir()
    (folder / "deep" / "d.svs").write_bytes(b"")

    assert names(list_slides([f"{folder}/**/*.svs"])) == ["b.svs", "d.svs"]


def test_a_slide_named_twice_is_listed_once(folder):
    assert names(list_slides([folder / "b.svs", f"{folder}/*.svs", folder / "." / "b.svs"])) == ["b.svs"]


def test_two_slides_with_one_id_are_refused_and_both_are_named(folder):
    (folder / "b.tif").write_bytes(b"")

    with pytest.raises(UserError) as refusal:
        list_slides([folder])

    assert "b.svs" in str(refusal.value)
    assert "b.tif" in str(refusal.value)
    assert "slide_id" in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [("absent.svs", "no such file"), ("*.mrxs", "no file matches"), ("empty", "no slide lies directly in this folder")],
)
def test_what_names_no_slide_is_refused(folder, given, said):
    (folder / "empty").mkdir()

    with pytest.raises(UserError, match=said):
        list_slides([str(folder / given)])


def test_no_input_at_all_is_refused():
    with pytest.raises(UserError, match="no slide is named"):
        list_slides([])


def test_the_instances_of_one_dicom_series_in_a_folder_are_one_slide(tmp_path):
    for name, uid in (("1.dcm", b"1.2.3"), ("2.dcm", b"1.2.3"), ("3.dcm", b"1.2.4")):
        (tmp_path / name).write_bytes(bytes(132) + b"\x20\x00\x0e\x00UI\x06\x00" + uid + b"\x00")

    assert names(list_slides([tmp_path])) == ["1.dcm", "3.dcm"]


def test_a_csv_list_carries_what_its_columns_say_with_paths_from_its_own_folder(folder):
    (folder / "t.geojson").write_text("{}")
    listed = folder / "slides.csv"
    listed.write_text(
        "wsi,slide_id,patient,mpp,split,stratum,diagnosis,annotations\n"
        "b.svs,S 1,p1,0.25,train,site-a,HSIL,t.geojson\n"
        f"{folder / 'a.TIFF'},,,,,,,\n"
    )

    entries = list_slides([listed])

    assert entries == [
        SlideEntry(folder / "b.svs", "S 1", "p1", 0.25, "train", "site-a", "HSIL", folder / "t.geojson"),
        SlideEntry(folder / "a.TIFF", "a"),
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_list_may_come_from_a_spreadsheet(folder, delimiter):
    listed = folder / "slides.csv"
    listed.write_text(f"\ufeffpath{delimiter} patient\r\nb.svs{delimiter}p\r\n", encoding="utf-8", newline="")

    assert list_slides([listed]) == [SlideEntry(folder / "b.svs", "b", "p")]


def test_missing_patients_and_columns_not_used_are_each_said_once(folder):
    listed = folder / "slides.csv"
    listed.write_text("path,patient,scanner\nb.svs,p,x\na.TIFF,,y\n")
    said: list[str] = []

    list_slides([listed], said.append)

    assert said == [
        "slides.csv: columns not used: scanner",
        "slides.csv: 1 of 2 slides name no patient; each of them counts as its own",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,mpp\nb.svs,1\n", "no column path or wsi or slide among name, mpp"),
        ("path\n", "no slide in the list"),
        ("", "no column path or wsi or slide among none"),
        ("path,mpp\nb.svs,0\n", r"line 2: mpp '0'"),
        ("path,mpp\na.TIFF,0.5\nb.svs,fine\n", r"line 3: mpp 'fine'"),
        ("path,mpp\n,0.5\n", "line 2: an empty path"),
        ("path\nabsent.svs\n", r"line 2: .*absent\.svs is no file"),
        ("path,slide_id\nb.svs,../up\n", "cannot name a folder"),
        ("path,slide_id\nb.svs,..\n", "cannot name a folder"),
        ("path,annotations\nb.svs,gone.geojson\n", r"gone\.geojson is no file"),
    ],
)
def test_a_csv_list_with_a_bad_cell_is_refused_with_its_line(folder, text, said):
    (folder / "slides.csv").write_text(text)

    with pytest.raises(UserError, match=said):
        list_slides([folder / "slides.csv"])


def test_a_list_that_is_not_text_is_refused(folder):
    (folder / "slides.csv").write_bytes(b"path\n\xff\xfe\n")

    with pytest.raises(UserError, match="not UTF-8"):
        list_slides([folder / "slides.csv"])
