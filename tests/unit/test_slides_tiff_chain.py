"""TIFF files whose directories are cut off, absurd or in a circle: refused before anything of them is believed."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cytopipe.core.errors import UserError
from cytopipe.slides import open_slide


@pytest.fixture(params=["<", ">", "big"])
def pyramid(request, tmp_path) -> Path:
    """Two levels; description and tables lie outside the directories."""
    options = {"bigtiff": True} if request.param == "big" else {"byteorder": request.param}
    with tifffile.TiffWriter(tmp_path / "s.tif", **options) as tiff:
        for k in range(2):
            level = np.full((256 >> k, 256 >> k, 3), 200, np.uint8)
            tiff.write(level, tile=(64, 64), photometric="rgb", subfiletype=k, description="x" * 40, metadata=None)
    return tmp_path / "s.tif"


def test_a_whole_file_has_its_levels(pyramid):
    with open_slide(pyramid) as slide:
        assert len(slide.levels) == 2


def test_a_file_that_lost_its_last_page_is_refused_and_not_read_without_it(pyramid):
    with tifffile.TiffFile(pyramid) as tiff:
        last = tiff.pages[1].offset
    pyramid.write_bytes(pyramid.read_bytes()[: last + 1])

    with pytest.raises(UserError, match=r"s\.tif: page 1 lies past the end of the file, which has lost its last part"):
        open_slide(pyramid)


def test_pages_in_a_circle_are_refused(pyramid):
    link, form = _link_of(pyramid, 1)
    data = bytearray(pyramid.read_bytes())
    with tifffile.TiffFile(pyramid) as tiff:
        struct.pack_into(form, data, link, tiff.pages[0].offset)
    pyramid.write_bytes(data)

    with pytest.raises(UserError, match="its pages lead in a circle"):
        open_slide(pyramid)


def test_a_page_of_absurdly_many_fields_is_refused(pyramid):
    with tifffile.TiffFile(pyramid) as tiff:
        second, order, is_big = tiff.pages[1].offset, tiff.byteorder, tiff.is_bigtiff
    data = bytearray(pyramid.read_bytes())
    struct.pack_into(order + ("Q" if is_big else "H"), data, second, 60_000)
    pyramid.write_bytes(data)

    with pytest.raises(UserError, match="page 1 claims 60000 fields"):
        open_slide(pyramid)


def test_a_description_past_the_end_is_not_passed_over(pyramid):
    with tifffile.TiffFile(pyramid) as tiff:
        tag = tiff.pages[0].tags[270]
        place, order, is_big = tag.offset + (12 if tiff.is_bigtiff else 8), tiff.byteorder, tiff.is_bigtiff
    data = bytearray(pyramid.read_bytes())
    struct.pack_into(order + ("Q" if is_big else "I"), data, place, len(data) - 10)
    pyramid.write_bytes(data)

    with pytest.raises(UserError, match="page 0 lies past the end"):
        open_slide(pyramid)


def _link_of(path: Path, page: int) -> tuple[int, str]:
    """Where a page keeps the offset of the next one, and in which format."""
    with tifffile.TiffFile(path) as tiff:
        offset, count, order = tiff.pages[page].offset, len(tiff.pages[page].tags), tiff.byteorder
        return (offset + 8 + 20 * count, order + "Q") if tiff.is_bigtiff else (offset + 2 + 12 * count, order + "I")
