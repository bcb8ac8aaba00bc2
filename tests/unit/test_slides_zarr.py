"""The zarr reader on OME-Zarr images written here: versions, axes, channels, resolution, damage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import zarr

from cytopipe.core.errors import CytopipeError, RunError, UserError
from cytopipe.slides import MppView, Showing, find_foreground, list_slides, open_slide, thumbnail
from cytopipe.tiles.fingerprint import fingerprint_of
from tests.ome_zarr import write_image, write_ome_zarr

H, W = 150, 200
RGB_COLOURS = [{"label": colour, "color": colour} for colour in ("FF0000", "00ff00", "0000FF")]


def noise(*shape: int, dtype=np.uint8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def pyramid(*leading: int, levels: int = 3, dtype=np.uint8) -> list[np.ndarray]:
    return [noise(*leading, H >> k, W >> k, dtype=dtype, seed=k) for k in range(levels)]


def change(image: Path, edit: Callable[[dict], None]) -> None:
    """Edit the metadata of the finest level by hand."""
    file = image / "0" / "zarr.json"
    said = json.loads(file.read_text())
    edit(said)
    file.write_text(json.dumps(said))


@pytest.mark.parametrize(("version", "shard"), [("0.4", None), ("0.5", None), ("0.5", 2)])
@pytest.mark.parametrize("codec", ["default", "none", "gzip"])
def test_every_level_of_both_versions_is_read_exactly(tmp_path, version, shard, codec):
    if version == "0.4" and codec == "gzip":
        pytest.skip("zarr-python writes v2 with numcodecs; blosc stands for it")
    levels = pyramid(3)
    write_ome_zarr(tmp_path / "s.zarr", levels, version=version, shard_chunks=shard, codec=codec)

    with open_slide(tmp_path / "s.zarr") as slide:
        assert (slide.reader, slide.vendor, slide.dimensions, slide.z_count) == ("zarr", "ome-zarr", (W, H), 1)
        assert [(level.width, level.downsample) for level in slide.levels] == [(200, 1), (100, 2), (50, 4)]
        assert (slide.resolution.mpp, slide.resolution.source) == (
            0.25,
            "vendor field OME-Zarr coordinateTransformations",
        )
        assert (slide.native_tiles(0), slide.background, slide.channels, slide.icc) == ((64, 64), "light", (), None)
        for index, level in enumerate(levels):
            wanted = level.transpose(1, 2, 0)
            np.testing.assert_array_equal(slide.read(index, 0, 0, *reversed(wanted.shape[:2])), wanted)
            np.testing.assert_array_equal(slide.read(index, 7, 5, 40, 30), wanted[5:35, 7:47])


@pytest.mark.parametrize("axes", ["yx", "cyx", "zyx", "czyx", "tczyx", "tzcyx", "yxc", "xyc", "zcyx"])
def test_axes_in_any_subset_and_order_are_read(tmp_path, axes):
    size = {"t": 1, "c": 3, "z": 2, "y": H, "x": W}
    samples = noise(*(size[axis] for axis in axes))
    write_ome_zarr(tmp_path / "s.zarr", [samples], axes=axes)

    with open_slide(tmp_path / "s.zarr", showing=Showing(z=1 if "z" in axes else None)) as slide:
        read = slide.read(0, 0, 0, W, H)
    plane = samples[tuple({"t": 0, "z": 1}.get(axis, slice(None)) for axis in axes)]
    left = [axis for axis in axes if axis in "cyx"]
    wanted = plane.transpose([left.index(axis) for axis in "yxc" if axis in left])
    np.testing.assert_array_equal(read, wanted if "c" in axes else np.repeat(wanted[..., None], 3, axis=2))


@pytest.mark.parametrize(
    ("unit", "mpp", "said"),
    [
        ("micrometer", 0.25, 0.25),
        ("nanometer", 250.0, 0.25),
        ("millimeter", 0.00025, 0.25),
        ("", 1.0, None),
        ("parsec", 1.0, None),
        ("micrometer", None, None),
        ("micrometer", 0.0, None),
    ],
)
def test_the_resolution_is_the_scale_in_its_unit_and_nothing_without_one(tmp_path, unit, mpp, said):
    write_ome_zarr(tmp_path / "s.zarr", pyramid(3), unit=unit, mpp=mpp)

    with open_slide(tmp_path / "s.zarr") as slide:
        if said is None:
            assert slide.resolution is None
            with pytest.raises(UserError, match=r"no resolution in the file \(.*\); give --mpp-override"):
                MppView(slide, 0.5)
        else:
            assert (slide.resolution.mpp_x, slide.resolution.mpp_y) == (pytest.approx(said), pytest.approx(said))
    with open_slide(tmp_path / "s.zarr", mpp_override=0.3) as slide:
        assert (slide.resolution.mpp, slide.resolution.source) == (0.3, "override")


def test_the_scale_of_the_whole_image_counts_and_sides_may_differ(tmp_path):
    write_ome_zarr(tmp_path / "s.zarr", pyramid(3), mpp=(0.5, 0.25))
    group = zarr.open_group(tmp_path / "s.zarr", mode="r+")
    ome = group.attrs["ome"]
    ome["multiscales"][0]["coordinateTransformations"] = [{"type": "scale", "scale": [1.0, 2.0, 0.5]}]
    group.attrs["ome"] = ome

    with open_slide(tmp_path / "s.zarr") as slide:
        assert (slide.resolution.mpp_x, slide.resolution.mpp_y) == (0.25, 0.5)


def test_channels_have_the_names_windows_and_numbers_of_the_file(tmp_path):
    channels = [
        {"label": "DAPI", "color": "0000FF", "window": {"start": 100, "end": 4100, "min": 0, "max": 65535}},
        {"label": "FITC", "color": "00FF00", "window": {"start": 0, "end": 65535}},
        {"label": "Cy5", "color": "FF0000"},
    ]
    samples = noise(3, H, W, dtype=np.uint16)
    write_ome_zarr(tmp_path / "s.zarr", [samples], channels=channels)

    with pytest.raises(UserError, match=r"3 channels \(0 DAPI, 1 FITC, 2 Cy5\); give --channels"):
        open_slide(tmp_path / "s.zarr")
    with open_slide(tmp_path / "s.zarr", showing=Showing(channels="Cy5,-,dapi")) as slide:
        assert slide.channels == ("DAPI", "FITC", "Cy5")
        read = slide.read(0, 0, 0, W, H)
    assert np.abs(read[..., 0] - samples[2] / 257).max() <= 0.51
    assert (read[..., 1] == 0).all()
    assert np.abs(read[..., 2] - np.clip((samples[0] - 100.0) * 255 / 4000, 0, 255)).max() <= 0.51


@pytest.mark.parametrize("channels", [(), RGB_COLOURS])
def test_three_8_bit_channels_without_names_or_in_pure_colours_are_rgb_as_stored(tmp_path, channels):
    channels = [{**channel, "window": {"start": 10, "end": 60}} for channel in channels]
    samples = noise(3, H, W)
    write_ome_zarr(tmp_path / "s.zarr", [samples], channels=channels)

    with open_slide(tmp_path / "s.zarr") as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, W, H), samples.transpose(1, 2, 0))


def test_fractional_samples_need_a_range_of_the_file_or_the_user(tmp_path):
    samples = np.random.default_rng(0).random((1, H, W)).astype(np.float32)
    write_ome_zarr(tmp_path / "none.zarr", [samples])
    write_ome_zarr(tmp_path / "own.zarr", [samples], channels=[{"label": "a", "window": {"start": 0.0, "end": 2.0}}])

    with pytest.raises(UserError, match="fractional values"):
        open_slide(tmp_path / "none.zarr")
    for name, showing, factor in (("none", Showing(channels="0@0:1"), 255), ("own", Showing(), 127.5)):
        with open_slide(tmp_path / f"{name}.zarr", showing=showing) as slide:
            assert np.abs(slide.read(0, 0, 0, W, H)[..., 1] - samples[0] * factor).max() <= 0.51


def test_what_is_no_slide_is_refused_in_one_line(tmp_path):
    write_ome_zarr(tmp_path / "time.zarr", [noise(5, H, W)], axes="tyx")
    write_ome_zarr(tmp_path / "stack.zarr", [noise(5, H, W)], axes="zyx")
    write_ome_zarr(tmp_path / "chunk.zarr", [noise(H, W)], axes="yx")
    change(tmp_path / "chunk.zarr", lambda said: said["chunk_grid"]["configuration"].update(chunk_shape=[30_000] * 2))
    write_ome_zarr(tmp_path / "plate.zarr", [noise(H, W)], axes="yx", plate={"wells": []})
    write_ome_zarr(
        tmp_path / "outside.zarr",
        [noise(H, W)],
        axes="yx",
        multiscales=[{"axes": [{"name": "y"}, {"name": "x"}], "datasets": [{"path": "../time.zarr/0"}]}],
    )
    zarr.open_group(tmp_path / "empty.zarr", mode="w").create_group("a")
    zarr.create_array(tmp_path / "bare.zarr", shape=(9, 9), dtype="u1")
    (tmp_path / "broken.zarr").mkdir()
    (tmp_path / "broken.zarr" / "zarr.json").write_text("{")

    for name, said in {
        "time": "a time series of 5 frames",
        "stack": "a stack of 5 planes; choose one: --z 0 to 4",
        "chunk": "chunks of 30000 x 30000 samples are too large",
        "plate": "plate of wells, not a slide",
        "outside": "name no level, or one outside",
        "empty": "without OME-Zarr's multiscales",
        "bare": "a bare zarr array",
        "broken": r"zarr: .*",
    }.items():
        with pytest.raises(UserError, match=said) as refusal:
            open_slide(tmp_path / f"{name}.zarr")
        assert "\n" not in str(refusal.value)
        assert str(tmp_path) not in refusal.value.what


def test_of_a_bioformats2raw_collection_the_first_image_is_read_and_label_and_macro_are_not(tmp_path):
    root = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=3)
    root.attrs["ome"] = {"version": "0.5", "bioformats2raw.layout": 3}
    samples = noise(3, H, W)
    for name, pixels in (("0", samples), ("1", noise(3, 20, 30)), ("2", noise(3, 20, 30))):
        write_image(root.create_group(name), [pixels], "cyx", "0.5", 0.25, "micrometer", 64, None, (), "default", {})

    with open_slide(tmp_path / "s.zarr") as slide:
        assert slide.notes == ("further images of this OME-Zarr are not read",)
        np.testing.assert_array_equal(slide.read(0, 0, 0, W, H), samples.transpose(1, 2, 0))


def test_an_array_that_is_no_smaller_picture_is_no_level(tmp_path):
    write_ome_zarr(tmp_path / "s.zarr", [noise(3, H, W), noise(3, H // 2, W // 2), noise(3, H // 4, W)])

    with open_slide(tmp_path / "s.zarr") as slide:
        assert len(slide.levels) == 2
        assert slide.notes == ("level '2' is no smaller picture of the first one; not used",)


@pytest.mark.parametrize("shard", [None, 2])
@pytest.mark.parametrize("codec", ["default", "none", "gzip"])
@pytest.mark.parametrize("damage", ["zeros", "cut short", "noise"])
def test_a_damaged_chunk_is_an_error_with_its_place_and_others_stay_readable(tmp_path, codec, damage, shard):
    if codec == "none" and damage != "cut short" and shard is None:
        pytest.skip("bytes without a code cannot be told from others")
    samples = noise(3, 256, 256)
    write_ome_zarr(tmp_path / "s.zarr", [samples], codec=codec, shard_chunks=shard)
    chunk = tmp_path / "s.zarr" / "0" / "c" / "0" / "1" / "1"
    data = chunk.read_bytes()
    if damage == "cut short":
        chunk.write_bytes(data[: len(data) // 2])
    else:
        chunk.write_bytes(bytes(len(data)) if damage == "zeros" else np.random.default_rng(1).bytes(len(data)))
    at = 64 * (shard or 1)

    with open_slide(tmp_path / "s.zarr") as slide:
        np.testing.assert_array_equal(slide.read(0, 0, 0, 64, 64), samples[:, :64, :64].transpose(1, 2, 0))
        with pytest.raises(RunError, match=rf"s\.zarr, level 0, at x {at} y {at}: chunk cannot be decoded"):
            slide.read(0, at, at, 30, 30)


def test_a_chunk_that_is_not_stored_is_the_fill_value_as_zarr_has_it(tmp_path):
    samples = noise(3, 256, 256)
    write_ome_zarr(tmp_path / "s.zarr", [samples])
    (tmp_path / "s.zarr" / "0" / "c" / "1" / "0" / "0").unlink()

    with open_slide(tmp_path / "s.zarr") as slide:
        read = slide.read(0, 0, 0, 100, 100)
    assert (read[:64, :64, 1] == 0).all()
    np.testing.assert_array_equal(read[..., 0], samples[0, :100, :100])


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_damaged_metadata_end_in_our_own_errors_or_in_pixels(tmp_path, version):
    write_ome_zarr(tmp_path / "whole.zarr", [noise(3, 80, 90)], version=version)
    random = np.random.default_rng(3)
    for number in range(60):
        shutil.rmtree(tmp_path / "s.zarr", ignore_errors=True)
        shutil.copytree(tmp_path / "whole.zarr", tmp_path / "s.zarr")
        files = [path for path in (tmp_path / "s.zarr").rglob("*") if path.is_file()]
        victims = [path for path in files if path.suffix == ".json" or path.name.startswith(".z")]
        victim = victims[number % len(victims)] if number % 3 else files[random.integers(len(files))]
        data = bytearray(victim.read_bytes())
        for place in random.integers(0, len(data), 3):
            data[place] = random.integers(0, 256) if number % 2 else ord(str(random.integers(0, 10)))
        victim.write_bytes(data[: random.integers(1, len(data))] if number % 5 == 0 else data)
        outcome = _read_or_error(tmp_path / "s.zarr")
        assert isinstance(outcome, np.ndarray) or "\n" not in str(outcome)


def _read_or_error(path: Path) -> np.ndarray | CytopipeError:
    try:
        with open_slide(path, showing=Showing(z="best", channels="*")) as slide:
            return slide.read(0, 0, 0, min(50, slide.dimensions[0]), min(50, slide.dimensions[1]))
    except CytopipeError as error:
        return error


def test_metadata_that_claim_an_absurd_size_are_refused(tmp_path):
    write_ome_zarr(tmp_path / "s.zarr", [noise(3, H, W)])
    change(tmp_path / "s.zarr", lambda said: said.update(shape=[3, 2**31, 2**31]))

    with pytest.raises(UserError, match=r"which no slide has|its 3377699720527872 chunks are stored"):
        open_slide(tmp_path / "s.zarr")


def test_folders_lists_and_globs_take_a_zarr_for_a_slide(tmp_path):
    for name in ("b.zarr", "a.ome.zarr"):
        write_ome_zarr(tmp_path / name, [noise(3, H, W)])
    (tmp_path / "plain").mkdir()
    (tmp_path / "list.csv").write_text("path,patient\nb.zarr,p\n")

    assert [entry.slide_id for entry in list_slides([tmp_path])] == ["a.ome", "b"]
    assert [entry.path.name for entry in list_slides([tmp_path / "b.zarr"])] == ["b.zarr"]
    assert [entry.path.name for entry in list_slides([f"{tmp_path}/*.zarr"])] == ["a.ome.zarr", "b.zarr"]
    assert [entry.patient for entry in list_slides([tmp_path / "list.csv"])] == ["p"]
    with pytest.raises(UserError, match="a folder, not a slide"):
        open_slide(tmp_path / "plain")
    with pytest.raises(UserError, match="tiff: a folder"):
        open_slide(tmp_path / "b.zarr", reader="tiff")
    with pytest.raises(UserError, match="zarr: no folder"):
        open_slide(tmp_path / "list.csv", reader="zarr")


def test_a_zarr_has_a_fingerprint_that_changes_with_its_pixels_and_not_with_its_name(tmp_path):
    samples = noise(3, H, W)
    write_ome_zarr(tmp_path / "a.zarr", [samples])
    shutil.copytree(tmp_path / "a.zarr", tmp_path / "b.zarr")
    assert fingerprint_of(tmp_path / "a.zarr") == fingerprint_of(tmp_path / "b.zarr")

    write_ome_zarr(tmp_path / "b.zarr", [255 - samples])
    assert fingerprint_of(tmp_path / "a.zarr") != fingerprint_of(tmp_path / "b.zarr")


def test_thumbnail_foreground_and_view_work_on_a_zarr(tmp_path):
    levels = [np.full((3, 512 >> k, 512 >> k), 230, np.uint8) for k in range(2)]
    levels[0][:, 200:260, 200:260] = levels[1][:, 100:130, 100:130] = 60
    write_ome_zarr(tmp_path / "s.zarr", levels)

    with open_slide(tmp_path / "s.zarr") as slide:
        assert thumbnail(slide, 128).shape == (128, 128, 3)
        assert find_foreground(slide).fraction(200, 200, 260, 260) == 1
        assert MppView(slide, 0.5).read(100, 100, 30, 30).max() == 60


def test_threads_that_read_at_once_see_what_one_thread_sees(tmp_path):
    samples = noise(3, 400, 500)
    write_ome_zarr(tmp_path / "s.zarr", [samples], shard_chunks=2)
    random = np.random.default_rng(0)
    windows = [(int(random.integers(400)), int(random.integers(300)), 90, 80) for _ in range(60)]

    with open_slide(tmp_path / "s.zarr") as slide, ThreadPoolExecutor(4) as pool:
        for (x, y, w, h), read in zip(windows, pool.map(lambda at: slide.read(0, *at), windows), strict=True):
            np.testing.assert_array_equal(read, samples[:, y : y + h, x : x + w].transpose(1, 2, 0))


def test_zarr_is_loaded_for_who_opens_one_only():
    code = "import sys, cytopipe.slides; sys.exit('zarr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(__file__).parents[2]).returncode == 0
