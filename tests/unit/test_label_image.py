"""Label images: outlines along the pixel edges, whatever the file's kind, and what is no label image."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from shapely import Polygon

from cytopipe.core.errors import UserError
from cytopipe.formats import label_image
from cytopipe.formats.mending import outline_of
from cytopipe.formats.pixel_outlines import PixelOutlines
from cytopipe.formats.read import read_annotations
from tests.conftest import shared_data


def rasterised(objects, shape):
    """The label image of annotations whose ids are labels: a pixel belongs to whom its centre lies in."""
    labels = np.zeros(shape, np.int64)
    for label, geometry in objects:
        x0, y0, x1, y1 = (int(v) for v in geometry.bounds)
        y, x = np.mgrid[y0:y1, x0:x1]
        labels[y0:y1, x0:x1][shapely.contains_xy(geometry, x + 0.5, y + 0.5)] = label
    return labels


SOME = np.zeros((40, 50), np.uint16)
SOME[2:20, 3:30] = 1
SOME[5:10, 5:10] = 0  # a hole
SOME[6:8, 6:8] = 2  # an object in it
SOME[30:34, 0:50] = 300
SOME[0, 49] = SOME[39, 0] = 7  # an object of two pieces, at the corners


@given(
    labels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3)),
    band_rows=st.integers(1, 4),
)
def test_outlines_are_valid_as_traced_and_rasterise_to_the_same_pixels(labels, band_rows):
    outlines = PixelOutlines(labels.shape[1])
    for y in range(0, len(labels), band_rows):
        outlines.add(labels[y : y + band_rows])

    traced = outlines.polygons()

    for label, polygons in traced.items():
        assert all(Polygon(rings[0], rings[1:]).is_valid for rings in polygons), label
    objects = [(label, outline_of(polygons)) for label, polygons in traced.items()]
    assert all(not mended for _, (_, mended) in objects)
    assert (rasterised([(label, geometry) for label, (geometry, _) in objects], labels.shape) == labels).all()


def test_an_island_in_the_hole_of_its_own_object_does_not_take_the_hole():
    labels = np.ones((5, 5), np.uint8)
    labels[1:4, 1:4] = 0
    labels[2, 2] = 1
    outlines = PixelOutlines(5)
    outlines.add(labels)

    geometry, mended = outline_of(outlines.polygons()[1])

    assert mended == []
    assert sorted(part.area for part in geometry.geoms) == [1, 16]


def test_outlines_have_no_needless_vertices():
    outlines = PixelOutlines(6)
    outlines.add(np.ones((5, 6), np.uint8))

    [[ring]] = outlines.polygons()[1]

    assert sorted(map(tuple, ring.tolist())) == [(0, 0), (0, 5), (6, 0), (6, 5)]


@pytest.fixture
def saved(tmp_path):
    """Writes labels in one of the kinds of files and returns the path."""

    def save(labels, kind):
        path = tmp_path / f"labels.{'png' if kind.startswith('png') else 'tif'}"
        if kind == "png palette":
            image = Image.new("P", labels.shape[::-1])
            image.putpalette([37 * (k // 3) % 256 for k in range(768)])
            image.putdata(labels.astype(np.uint8).ravel().tolist())
            image.save(path)
        elif kind.startswith("png"):
            Image.fromarray(labels.astype({"8": np.uint8, "16": np.uint16}[kind[4:]])).save(path)
        elif kind == "tif strips":
            tifffile.imwrite(path, labels.astype(np.uint32), rowsperstrip=7, compression="zlib")
        elif kind == "tif tiles":
            tifffile.imwrite(path, labels.astype(np.int32), tile=(16, 32), compression="lzw")
        elif kind == "tif big-endian":
            tifffile.imwrite(path, labels.astype(">u2"), byteorder=">")
        else:
            tifffile.imwrite(path, labels.astype(np.uint8), bigtiff=True)
        return path

    return save


@pytest.mark.parametrize(
    "kind",
    ["png 8", "png 16", "png palette", "tif strips", "tif tiles", "tif big-endian", "tif BigTIFF"],
)
def test_each_kind_of_label_image_gives_its_objects_with_holes_and_pieces(saved, kind):
    labels = np.where(SOME == 300, 200, SOME)

    found = read_annotations(saved(labels, kind), label_class="nucleus")

    assert [a.object_id for a in found.objects] == ["1", "2", "7", "200"]
    assert (rasterised([(int(a.object_id), a.geometry) for a in found.objects], labels.shape) == labels).all()
    assert found.problems == []
    assert (found.size, {a.class_name for a in found.objects}) == ((50, 40), {"nucleus"})


def test_labels_above_255_are_kept_apart(saved):
    found = read_annotations(saved(SOME, "png 16"), label_class="nucleus")

    assert [a.object_id for a in found.objects] == ["1", "2", "7", "300"]


def test_a_label_image_of_a_lower_level_is_scaled_to_the_slide(saved):
    found = read_annotations(saved(SOME, "png 16"), label_class="nucleus", slide_size=(203, 162))

    assert found.objects[3].geometry.bounds == (0, 120, 200, 136)
    with pytest.raises(UserError, match="was made for 50 x 40 px, and the slide has 210 x 90"):
        read_annotations(saved(SOME, "png 16"), label_class="nucleus", slide_size=(210, 90))


def test_a_label_image_names_no_class_and_must_be_told_one(saved):
    with pytest.raises(UserError, match="give --label-class"):
        read_annotations(saved(SOME, "png 16"))


@pytest.mark.parametrize(
    ("pixels", "suffix", "complaint"),
    [
        (np.zeros((8, 8, 3), np.uint8), ".png", "is a colour picture \\(RGB\\)"),
        (np.zeros((8, 8, 3), np.uint8), ".tif", "is no label image \\(uint8 of shape \\(8, 8, 3\\)\\)"),
        (np.zeros((8, 8), np.float32), ".tif", "is no label image \\(float32"),
        (np.full((8, 8), -3, np.int16), ".tif", "holds negative labels"),
        (np.zeros((3, 8, 8), np.uint8), ".tif", "is a TIFF of several pages"),
    ],
)
def test_what_is_no_label_image_is_refused(tmp_path, pixels, suffix, complaint):
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        Image.fromarray(pixels).save(path)
    else:
        tifffile.imwrite(path, pixels, photometric="rgb" if pixels.shape[-1] == 3 else "minisblack")

    with pytest.raises(UserError, match=complaint):
        read_annotations(path, label_class="nucleus")


def test_a_picture_that_changes_at_every_pixel_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(label_image, "MAX_LABELS", 100)
    noise = np.random.default_rng(0).integers(1, 2**16, (1000, 300), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "noise.tif", noise, rowsperstrip=8)

    with pytest.raises(UserError, match="changes from pixel to pixel like a picture"):
        read_annotations(tmp_path / "noise.tif", label_class="nucleus")


@pytest.mark.parametrize("kind", ["png 16", "tif tiles"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_label_image_is_refused(saved, kind, kept):
    noisy = np.random.default_rng(1).integers(0, 3, (200, 200)).astype(np.uint16)
    path = saved(noisy, kind)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])

    with pytest.raises(UserError, match=r"cannot be (decoded|read)"):
        read_annotations(path, label_class="nucleus")


@pytest.mark.parametrize(("name", "count"), [("pap_edf", 876), ("dsb2018_stage1_test", 2520), ("monuseg_test", 5162)])
def test_every_object_of_the_real_label_images_is_read(name, count):
    files = sorted((shared_data(name) / "labels").glob("*.png"))
    some = files[:: max(1, len(files) // 3)]

    total = 0
    for path in files:
        labels = np.asarray(Image.open(path)).astype(np.int64)
        found = read_annotations(path, label_class="nucleus")
        total += len(found.objects)
        assert found.problems == []
        if path in some:
            assert (rasterised([(int(a.object_id), a.geometry) for a in found.objects], labels.shape) == labels).all()

    assert total == count
