"""TIFF files of more than one 8-bit picture, written here: OME and ImageJ stacks, channels, 16 bits, floats."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cytopipe.core.errors import RunError, UserError
from cytopipe.slides import MppView, Showing, open_slide, sharpness
from cytopipe.slides.ome_xml import read_ome

Z, C, H, W = 4, 3, 150, 200


def noise(*shape: int, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    top = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1
    low = np.iinfo(dtype).min if np.dtype(dtype).kind in "iu" else 0
    return (np.random.default_rng(seed).random(shape) * (float(top) - low) + low).astype(dtype)


def write_ome(path: Path, levels: list[np.ndarray], axes: str, **options) -> Path:
    """An OME-TIFF whose lower levels lie in SubIFDs of each plane."""
    metadata = {"axes": axes, "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25, **options.pop("metadata", {})}
    photometric = "rgb" if axes.endswith("S") else "minisblack"
    with tifffile.TiffWriter(path, ome=True, bigtiff=options.pop("bigtiff", False)) as tiff:
        options = {"tile": (64, 64), "photometric": photometric, "compression": "deflate"} | options
        tiff.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **options)
        for level in levels[1:]:
            tiff.write(level, subfiletype=1, metadata=None, **options)
    return path


def grey(samples: np.ndarray) -> np.ndarray:
    return np.repeat(samples[..., None], 3, axis=2)


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("axes", ["ZYX", "ZYXS"])
def test_each_plane_of_an_ome_stack_is_read_at_each_level(tmp_path, axes, bigtiff):
    colours = (3,) if axes == "ZYXS" else ()
    levels = [noise(Z, H >> k, W >> k, *colours, seed=k) for k in range(2)]
    write_ome(tmp_path / "s.ome.tif", levels, axes, bigtiff=bigtiff)

    for z in range(Z):
        with open_slide(tmp_path / "s.ome.tif", showing=Showing(z=z)) as slide:
            assert (slide.reader, slide.vendor, slide.z_count, slide.z) == ("tiff", "ome-tiff", Z, z)
            assert (slide.channels, slide.native_tiles(0), slide.resolution.mpp) == ((), (64, 64), 0.25)
            for index, level in enumerate(levels):
                whole = level[z] if colours else grey(level[z])
                np.testing.assert_array_equal(slide.read(index, 7, 5, 60, 70), whole[5:75, 7:67])


def test_a_pyramid_of_one_plane_with_sub_ifds_is_read_by_its_own_tiles(tmp_path):
    levels = [noise(H >> k, W >> k, 3, seed=k) for k in range(3)]
    write_ome(tmp_path / "s.ome.tif", levels, "YXS", bigtiff=True)

    with open_slide(tmp_path / "s.ome.tif") as slide:
        assert ([level.width for level in slide.levels], slide.z_count, slide.z) == ([200, 100, 50], 1, 0)
        for index, level in enumerate(levels):
            np.testing.assert_array_equal(slide.read(index, 0, 0, level.shape[1], level.shape[0]), level)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.float32])
@pytest.mark.parametrize("planar", [False, True])
def test_channels_are_mapped_to_colours_by_name_and_by_number(tmp_path, dtype, planar):
    channels = noise(C, H, W, dtype=dtype)
    path = tmp_path / "s.ome.tif"
    if planar:  # all in one page, one picture after the other
        tifffile.imwrite(path, channels, photometric="minisblack", planarconfig="separate", tile=(64, 64), ome=False)
        names = ["0", "1", "2"]
    else:
        names = ["DAPI", "FITC", "Cy5"]
        write_ome(path, [channels], "CYX", metadata={"Channel": {"Name": names}})
    low, high = (0.0, 1.0) if dtype == np.float32 else (float(np.iinfo(dtype).min), float(np.iinfo(dtype).max))
    shown = np.floor((channels.astype(np.float64) - low) * 255 / (high - low) + 0.5)

    with open_slide(
        path, showing=Showing(channels=f"{names[2]}@{low}:{high},-,{names[0].lower()}@{low}:{high}")
    ) as slide:
        assert slide.channels == tuple(names)
        read = slide.read(0, 0, 0, W, H).astype(np.float64)
    assert np.abs(read[..., 0] - shown[2]).max() <= (0 if dtype == np.uint8 else 1)  # float32 against float64
    assert np.abs(read[..., 2] - shown[0]).max() <= (0 if dtype == np.uint8 else 1)
    assert (read[..., 1] == 0).all()

    with open_slide(path, showing=Showing(channels=f"1@{low}:{high}")) as slide:
        one = slide.read(0, 30, 20, 80, 90)
    assert (one[..., 0] == one[..., 1]).all()
    assert np.abs(one[..., 0] - shown[1, 20:110, 30:110]).max() <= 1


def test_a_stack_or_several_channels_without_a_choice_are_refused_with_what_there_is(tmp_path):
    write_ome(tmp_path / "zc.ome.tif", [noise(Z, C, H, W)], "ZCYX", metadata={"Channel": {"Name": ["a", "b", "c"]}})
    write_ome(tmp_path / "z.ome.tif", [noise(Z, H, W)], "ZYX")

    for showing, said in (
        (Showing(), r"a stack of 4 planes and 3 channels \(0 a, 1 b, 2 c\); choose a plane by --z 0 to 3 or --z best"),
        (Showing(z=1), r"3 channels \(0 a, 1 b, 2 c\); give --channels"),
        (Showing(channels="b"), "a stack of 4 planes; choose one: --z 0 to 3, or --z best"),
        (Showing(z=4, channels="b"), "plane 4 of a stack of 4; --z 0 to 3"),
        (Showing(z=1, channels="d"), "no channel 'd' among 0 a, 1 b, 2 c"),
        (Showing(z=1, channels="3"), "no channel '3'"),
    ):
        with pytest.raises(UserError, match=said):
            open_slide(tmp_path / "zc.ome.tif", showing=showing)
    with pytest.raises(UserError, match="a stack of 4 planes"):
        open_slide(tmp_path / "z.ome.tif")


def test_a_plane_and_a_channel_are_chosen_together(tmp_path):
    samples = noise(Z, C, H, W)
    write_ome(tmp_path / "s.ome.tif", [samples], "ZCYX")

    with open_slide(tmp_path / "s.ome.tif", showing=Showing(z=2, channels="2,1,0")) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, W, H), samples[2, ::-1].transpose(1, 2, 0))


def test_three_channels_that_the_file_shows_in_red_green_and_blue_are_a_picture(tmp_path):
    samples = noise(C, H, W)
    colours = [-16776961, 16711935, 65535]  # FF0000FF, 00FF00FF, 0000FFFF as signed 32 bits
    write_ome(tmp_path / "s.ome.tif", [samples], "CYX", metadata={"Channel": {"Color": colours}})

    with open_slide(tmp_path / "s.ome.tif") as slide:
        assert slide.channels == ()
        np.testing.assert_array_equal(slide.read(0, 0, 0, W, H), samples.transpose(1, 2, 0))


@pytest.mark.parametrize("photometric", ["rgb", "minisblack", "miniswhite"])
def test_16_bits_are_shown_over_their_whole_range_and_that_is_noted(tmp_path, photometric):
    samples = noise(*((H, W, 3) if photometric == "rgb" else (H, W)), dtype=np.uint16)
    tifffile.imwrite(tmp_path / "s.tif", samples, photometric=photometric, tile=(64, 64), metadata=None)
    wanted = np.floor(samples * (255 / 65535) + 0.5)
    wanted = 255 - wanted if photometric == "miniswhite" else wanted

    with open_slide(tmp_path / "s.tif") as slide:
        assert slide.notes == ("samples from 0 to 65535 are shown as 0 to 255",)
        read = slide.read(0, 0, 0, W, H)
        assert np.abs(read - (wanted if wanted.ndim == 3 else grey(wanted))).max() <= 1


def test_a_range_of_16_bit_samples_is_chosen_and_clipped(tmp_path):
    samples = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    tifffile.imwrite(tmp_path / "s.tif", samples, photometric="minisblack", metadata=None)

    with open_slide(tmp_path / "s.tif", showing=Showing(channels="0@1000:3000")) as slide:
        read = slide.read(0, 0, 0, 64, 64)[..., 0].ravel()
    assert (read[0], read[1000], read[2000], read[3000], read[4095]) == (0, 0, 128, 255, 255)


def test_floats_need_a_range_and_no_number_is_black(tmp_path):
    samples = np.array([[0.0, 0.5, 1.0, np.nan, np.inf, -np.inf]], np.float32)
    tifffile.imwrite(tmp_path / "s.tif", samples, photometric="minisblack", metadata=None)

    with pytest.raises(UserError, match=r"fractional values.*--channels 0@0:1"):
        open_slide(tmp_path / "s.tif")
    with open_slide(tmp_path / "s.tif", showing=Showing(channels="0@0:1")) as slide:
        assert slide.read(0, 0, 0, 6, 1)[0, :, 0].tolist() == [0, 128, 255, 0, 255, 0]


@pytest.mark.parametrize("shape", [(Z, H, W), (C, H, W), (Z, C, H, W), (Z, H, W, 3)])
def test_imagej_stacks_are_read_with_their_planes_channels_ranges_and_unit(tmp_path, shape):
    axes = {(Z, H, W): "ZYX", (C, H, W): "CYX", (Z, C, H, W): "ZCYX", (Z, H, W, 3): "ZYXS"}[shape]
    samples = noise(*shape)
    windows = {"Ranges": (0.0, 255.0, 10.0, 110.0, 0.0, 255.0)} if "C" in axes else {}
    metadata = {"axes": axes, "unit": "micron", **windows}
    tifffile.imwrite(tmp_path / "s.tif", samples, imagej=True, resolution=(4.0, 2.0), metadata=metadata)

    channels = "1" if "C" in axes else None
    with open_slide(tmp_path / "s.tif", showing=Showing(z="best" if "Z" in axes else None, channels=channels)) as slide:
        assert (slide.vendor, slide.z_count, len(slide.channels)) == (
            "imagej",
            Z if "Z" in axes else 1,
            C if "C" in axes else 0,
        )
        assert (slide.resolution.mpp_x, slide.resolution.mpp_y) == (0.25, 0.5)
        for z in range(slide.z_count):
            plane = samples[z] if "Z" in axes else samples
            if "C" in axes:
                wanted = grey(np.clip(np.floor((plane[1].astype(float) - 10) * 2.55 + 0.5), 0, 255))
            else:
                wanted = plane if axes == "ZYXS" else grey(plane)
            assert np.abs(slide.at_z(z).read(0, 0, 0, W, H) - wanted).max() <= ("C" in axes)


def test_an_imagej_stack_whose_planes_follow_a_single_page_is_read(tmp_path):
    samples = noise(Z, H, W, dtype=np.uint16)
    metadata = {"axes": "ZYX"}
    tifffile.imwrite(tmp_path / "s.tif", samples, imagej=True, metadata=metadata, photometric="minisblack")
    with tifffile.TiffFile(tmp_path / "s.tif") as tiff:
        pages = tiff.pages[0].offset, len(tiff.pages), tiff.pages[0].tags
        last = pages[0] + 2 + 12 * len(pages[2])
    data = bytearray((tmp_path / "s.tif").read_bytes())
    order = ">" if data[:2] == b"MM" else "<"
    data[last : last + 4] = np.array(0, f"{order}u4").tobytes()  # no next page, as ImageJ writes above 4 GiB
    (tmp_path / "s.tif").write_bytes(data)
    with tifffile.TiffFile(tmp_path / "s.tif") as tiff:
        assert len(tiff.pages) == 1

    with open_slide(tmp_path / "s.tif", showing=Showing(z=2)) as slide:
        assert slide.z_count == Z
        assert np.abs(slide.read(0, 0, 0, W, H) - grey(samples[2] / 257)).max() <= 1


def test_pages_of_one_size_without_a_word_are_planes(tmp_path):
    samples = noise(Z, H, W)
    tifffile.imwrite(tmp_path / "s.tif", samples, photometric="minisblack", metadata=None, tile=(64, 64))

    with open_slide(tmp_path / "s.tif", showing=Showing(z=3)) as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, W, H), grey(samples[3]))
    with pytest.raises(UserError, match="OpenSlide would show only a part"):
        open_slide(tmp_path / "s.tif", reader="openslide")


@pytest.mark.parametrize("imagej", [False, True])
def test_a_time_series_is_refused_in_a_line(tmp_path, imagej):
    options = {"imagej": True} if imagej else {"ome": True}
    tifffile.imwrite(tmp_path / "s.tif", noise(5, H, W), photometric="minisblack", metadata={"axes": "TYX"}, **options)

    with pytest.raises(UserError, match="a time series of 5 frames; only slides of one moment are read"):
        open_slide(tmp_path / "s.tif", showing=Showing(z=0))


def test_the_best_plane_of_each_window_is_the_sharpest(tmp_path):
    sharp = noise(H, W)
    planes = np.full((3, H, W), 128, np.uint8)
    planes[0, :, :100], planes[2, :, 100:] = sharp[:, :100], sharp[:, 100:]  # left is in focus at 0, right at 2
    write_ome(tmp_path / "s.ome.tif", [planes], "ZYX")

    with open_slide(tmp_path / "s.ome.tif", showing=Showing(z="best")) as slide:
        assert slide.z == "best"
        np.testing.assert_array_equal(slide.read(0, 0, 0, W, H), grey(planes[1]))  # the middle one
        for mpp in (0.25, 0.5, 0.4):
            view = MppView(slide, mpp)
            edge = round(100 * 0.25 / mpp)
            left, z_left = view.read_with_z(0, 0, edge - 8, 40)
            right, z_right = view.read_with_z(edge + 8, 0, edge - 8, 40)
            assert (z_left, z_right) == (0, 2)
            assert min(sharpness(left), sharpness(right)) > 0
            np.testing.assert_array_equal(view.read(0, 0, edge - 8, 40), left)
        flat = MppView(slide.at_z(1), 0.25)
        assert flat.read_with_z(0, 0, 10, 10)[1] == 1
    planes[:] = 7
    write_ome(tmp_path / "equal.ome.tif", [planes], "ZYX")
    with open_slide(tmp_path / "equal.ome.tif", showing=Showing(z="best")) as slide:
        assert MppView(slide, 0.25).read_with_z(3, 3, 20, 20)[1] == 0


def test_a_plane_shares_the_file_of_its_slide_and_closes_nothing(tmp_path):
    samples = noise(Z, H, W)
    write_ome(tmp_path / "s.ome.tif", [samples], "ZYX")

    with open_slide(tmp_path / "s.ome.tif", showing=Showing(z=0)) as slide:
        with slide.at_z(1) as plane:
            np.testing.assert_array_equal(plane.read(0, 0, 0, W, H), grey(samples[1]))
        plane.close()
        np.testing.assert_array_equal(slide.read(0, 0, 0, W, H), grey(samples[0]))
        with pytest.raises(ValueError, match="at_z: plane 4 of 4"):
            slide.at_z(4)


def test_a_slide_of_one_plane_takes_z_0_and_best_and_refuses_others_and_channels(tmp_path):
    tifffile.imwrite(tmp_path / "s.tif", noise(H, W, 3), photometric="rgb", tile=(64, 64), metadata=None)

    for z in (0, "best", None):
        with open_slide(tmp_path / "s.tif", showing=Showing(z=z)) as slide:
            assert (slide.z, slide.z_count) == (0, 1)
            assert MppView(slide, None).read_with_z(0, 0, 5, 5)[1] is None
    for reader in ("tiff", "openslide"):
        with pytest.raises(UserError, match="plane 3 of a slide of one plane; leave --z out"):
            open_slide(tmp_path / "s.tif", reader=reader, showing=Showing(z=3))
        with pytest.raises(UserError, match="without channels to choose; leave --channels out"):
            open_slide(tmp_path / "s.tif", reader=reader, showing=Showing(channels="0"))


@pytest.mark.parametrize("damage", ["zeros", "past the end"])
def test_a_damaged_tile_of_a_plane_is_an_error_with_place_and_plane(tmp_path, damage):
    write_ome(tmp_path / "s.ome.tif", [noise(Z, H, W)], "ZYX")
    with tifffile.TiffFile(tmp_path / "s.ome.tif") as tiff:
        offset, size = tiff.pages[3].dataoffsets[5], tiff.pages[3].databytecounts[5]
    data = bytearray((tmp_path / "s.ome.tif").read_bytes())
    data[offset : offset + size] = bytes(size)
    (tmp_path / "s.ome.tif").write_bytes(data if damage == "zeros" else data[: offset + size // 2])
    if damage == "past the end":
        with pytest.raises(UserError, match="page 0 lies past the end of the file, which has lost its last part"):
            open_slide(tmp_path / "s.ome.tif", showing=Showing(z=3))
        return

    with open_slide(tmp_path / "s.ome.tif", showing=Showing(z=3)) as slide:
        slide.read(0, 0, 0, 64, 64)
        with pytest.raises(RunError, match=r"s\.ome\.tif, level 0, at x 64 y 64, plane 3: tile cannot be decoded"):
            slide.read(0, 0, 0, W, H)


@pytest.mark.parametrize("codec", ["jpeg", "jpeg2000", "lzw", "zstd", "webp", None])
def test_planes_in_each_codec_are_read_and_lossy_ones_are_near(tmp_path, codec):
    y, x = np.mgrid[:H, :W]
    colour = np.stack([x, y, 250 - x], axis=2).astype(np.uint8)
    planes = np.stack([colour, 255 - colour])
    lossless = {"jpeg2000": {"level": 0}, "webp": {"lossless": True}}
    write_ome(tmp_path / "s.ome.tif", [planes], "ZYXS", compression=codec, compressionargs=lossless.get(codec))

    with open_slide(tmp_path / "s.ome.tif", showing=Showing(z=1)) as slide:
        assert np.abs(slide.read(0, 0, 0, W, H).astype(int) - planes[1]).mean() <= (3 if codec == "jpeg" else 0)


def test_threads_that_read_at_once_see_what_one_thread_sees(tmp_path):
    samples = noise(Z, H, W, dtype=np.uint16)
    write_ome(tmp_path / "s.ome.tif", [samples], "ZYX")
    random = np.random.default_rng(0)
    places = [(int(random.integers(Z)), int(random.integers(100)), int(random.integers(60))) for _ in range(80)]

    with open_slide(tmp_path / "s.ome.tif", showing=Showing(z="best")) as slide, ThreadPoolExecutor(4) as pool:
        planes = [slide.at_z(z).read(0, 0, 0, W, H) for z in range(Z)]
        reads = pool.map(lambda at: slide.at_z(at[0]).read(0, at[1], at[2], 80, 70), places)
        for (z, x, y), read in zip(places, reads, strict=True):
            np.testing.assert_array_equal(read, planes[z][y : y + 70, x : x + 80])


def test_planes_of_several_files_are_refused(tmp_path):
    write_ome(tmp_path / "s.ome.tif", [noise(2, H, W)], "ZYX")
    data = (tmp_path / "s.ome.tif").read_bytes()
    tiff_data = re.search(rb"<TiffData[^>]*/>", data)[0]
    element = b'<TiffData><UUID FileName="%c"/></TiffData>'
    new = b"".join(element % name for name in b"ab")
    xml = re.search(rb"<\?xml.*?</OME>", data, re.DOTALL)[0].decode()

    with pytest.raises(UserError, match="its planes lie in 2 files"):
        read_ome(xml.replace(tiff_data.decode(), new.decode()), 1, "s.ome.tif")


@pytest.mark.parametrize(
    "body",
    [
        "<TiffData " * 20_000,
        "<Channel " * 20_000,
        '<Pixels SizeZ="1" ' * 20_000,
        "<Objective " * 20_000 + "<",
        '<Pixels SizeZ="999999999" SizeC="999999999" SizeT="999999999">',
        '<Pixels SizeZ="1" SizeC="1" SizeT="1" DimensionOrder="XYZZZ">',
        '<Pixels SizeZ="-1" SizeC="x" SizeT="1">',
        '<!DOCTYPE a [<!ENTITY b "bbbbbbbb">]><Pixels SizeZ="&b;" SizeC="1" SizeT="1">',
        '<Pixels SizeZ="1" SizeC="1" SizeT="1"><TiffData IFD="99999999999999"/></Pixels>',
    ],
)
def test_hostile_xml_is_a_mistake_found_in_one_pass(body):
    for xml in (body, f'<Pixels SizeZ="1" SizeC="1" SizeT="1">{body}</Pixels>'):
        try:
            image = read_ome(xml, 1, "s.ome.tif")
        except ValueError:
            continue
        assert len(image.ifd_of) <= 1
