"""What a slide says about people stays in the slide: neither label and macro images nor names reach any output."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
import zarr
from PIL import Image
from typer.testing import CliRunner

from cytopipe.cli.main import app
from tests.ome_zarr import write_image

SECRET = "Zyxwvut-Quimby"
"""A name that nothing else spells."""
LABEL_RGB = (0, 255, 60)
"""The colour of label and macro: no stain, no page of ours has it."""
SIDE = 320
WORDS = {"PatientName": SECRET, "Barcode": SECRET, "User": SECRET, "Filename": SECRET, "ScanScope ID": SECRET}


def cells() -> np.ndarray:
    """Grey glass with some dark discs."""
    y, x = np.mgrid[:SIDE, :SIDE]
    rgb = np.full((SIDE, SIDE, 3), 235, np.uint8)
    for cx, cy in ((80, 90), (200, 120), (150, 240)):
        rgb[(x - cx) ** 2 + (y - cy) ** 2 < 20**2] = (150, 110, 150)
    return rgb


def label() -> np.ndarray:
    return np.broadcast_to(np.array(LABEL_RGB, np.uint8), (120, 200, 3)).copy()


def write_svs(folder: Path) -> Path:
    """As Aperio lays it out: tiled level, thumbnail, label and macro in strips, names in the descriptions."""
    pairs = "|".join(f"{key} = {value}" for key, value in {"AppMag": 40, "MPP": 0.25, **WORDS}.items())
    with tifffile.TiffWriter(folder / "slide.svs") as tiff:
        extra = [(315, 2, None, SECRET, True), (316, 2, None, SECRET, True), (36867, 2, None, SECRET, True)]
        aperio = f"Aperio Image Library v12 {SECRET}\r\n"
        size = f"{SIDE}x{SIDE}"
        options = {"photometric": "rgb", "metadata": None, "software": SECRET}
        tiff.write(cells(), tile=(64, 64), description=f"{aperio}{size} (64x64)|{pairs}", extratags=extra, **options)
        tiff.write(cells()[::4, ::4], description=f"{aperio}{size} -> 80x80|{pairs}", rowsperstrip=80, **options)
        for kind in ("label", "macro"):
            description = f"{aperio}{kind} 200x120|{pairs}"
            tiff.write(label(), description=description, rowsperstrip=120, subfiletype=1, **options)
    return folder / "slide.svs"


def write_ome_tiff(folder: Path) -> Path:
    """Two images, the second a label; names wherever OME-XML has room for them."""
    with tifffile.TiffWriter(folder / "slide.ome.tif", ome=True) as tiff:
        more = {"Name": SECRET, "Description": SECRET, "Channel": {"Name": SECRET}}
        options = {"photometric": "rgb", "tile": (64, 64)}
        size = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
        tiff.write(cells(), metadata={"axes": "YXS", **more, **size}, **options)
        tiff.write(label(), metadata={"axes": "YXS", "Name": f"label {SECRET}"}, **options)
    data = (folder / "slide.ome.tif").read_bytes()
    assert data.count(SECRET.encode()) >= 3
    return folder / "slide.ome.tif"


def write_zarr(folder: Path) -> Path:
    """A collection of two images, the second a label; names among the attributes."""
    root = zarr.open_group(folder / "slide.zarr", mode="w", zarr_format=3)
    root.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    root.attrs["patient"] = SECRET
    for name, pixels in (("0", cells()), ("1", label())):
        group = root.create_group(name)
        planes = [pixels.transpose(2, 0, 1)]
        write_image(group, planes, "cyx", "0.5", 0.25, "micrometer", 64, None, (), "default", {"name": SECRET})
        group.attrs["patient"] = SECRET
    return folder / "slide.zarr"


def write_png(folder: Path) -> Path:
    from PIL.PngImagePlugin import PngInfo

    words = PngInfo()
    for key in ("Author", "Comment"):
        words.add_text(key, SECRET)
    Image.fromarray(cells()).save(folder / "slide.png", pnginfo=words)
    return folder / "slide.png"


WRITERS = {"svs": write_svs, "ome-tiff": write_ome_tiff, "zarr": write_zarr, "png": write_png}


def run(*arguments) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_personal_reaches_what_info_tile_and_infer_write_and_say(tmp_path, kind):
    (tmp_path / "in").mkdir()
    slide = WRITERS[kind](tmp_path / "in")
    readers = ("auto", "openslide") if kind == "svs" else ("auto",)
    mpp = ("--mpp-override", 0.25) if kind == "png" else ()

    said = []
    for reader in readers:
        out = tmp_path / "out" / reader
        how = ("--reader", reader, *mpp)
        said.append(run("info", slide, "--json", *how))
        said.append(run("info", slide, *how))
        said.append(run("tile", slide, "--out", out / "store", "--tile-px", 128, "--mpp", 0.25, *how))
        said.append(run("infer", slide, "--out", out / "results", *how))

    assert SECRET not in "".join(said)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".json", ".parquet", ".jpg", ".html", ".geojson"}
    for path in files:
        assert not tells_the_secret(path), path
        for picture in pictures_in(path):
            assert not shows_the_label(picture), path


def test_the_search_itself_finds_a_name_and_a_label(tmp_path):
    """What is asserted above can fail."""
    (tmp_path / "a.json").write_text(f'{{"user": "{SECRET}"}}')
    (tmp_path / "b.bin").write_bytes(SECRET.encode("utf-16-le"))
    data = io.BytesIO()
    Image.fromarray(np.vstack([cells()[:100, :200], label()])).save(data, "JPEG", quality=80)
    (tmp_path / "c.html").write_text(f'<img src="data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}">')

    assert tells_the_secret(tmp_path / "a.json")
    assert tells_the_secret(tmp_path / "b.bin")
    assert [shows_the_label(picture) for picture in pictures_in(tmp_path / "c.html")] == [True]


def tells_the_secret(path: Path) -> bool:
    data = path.read_bytes().lower()
    texts = [data]
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        texts.append(f"{table.to_pylist()} {table.schema.metadata}".lower().encode())
    words = [SECRET.lower().encode(code) for code in ("utf-8", "utf-16-le", "utf-16-be")]
    return any(word in text for word in words for text in texts)


def pictures_in(path: Path) -> Iterator[np.ndarray]:
    """The image that a file is, or those that a page carries."""
    if path.suffix in (".jpg", ".jpeg", ".png"):
        yield np.asarray(Image.open(path).convert("RGB"))
    elif path.suffix == ".html":
        for match in re.finditer(rb"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)", path.read_bytes()):
            yield np.asarray(Image.open(io.BytesIO(base64.b64decode(match[1]))).convert("RGB"))


def shows_the_label(rgb: np.ndarray) -> bool:
    return bool((np.abs(rgb.astype(int) - LABEL_RGB).max(axis=2) < 40).any())
