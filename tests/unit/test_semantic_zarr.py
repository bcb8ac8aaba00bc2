"""The class map as zarr-python reads it: levels, metadata, counts, and a folder that is whole or absent."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from cytopipe.core.errors import DiskError, UserError
from cytopipe.core.files import sweep_partials
from cytopipe.formats.semantic_zarr import (
    MapFrame,
    SemanticWriter,
    mean_of_four,
    most_frequent_of_four,
    read_overview,
)

CLASSES = ("nucleus", "cell")


def frame_of(width, height):
    return MapFrame((width, height), (0.5, 0.51), (2.0, 2.04))


def write(path, labels, probabilities=None, *, step=300, **more):
    height, width = labels.shape
    asked = probabilities is not None
    with SemanticWriter(path, frame_of(width, height), CLASSES, probabilities=asked, **more) as writer:
        for y in range(0, height, step):
            writer.add_rows(labels[y : y + step], None if probabilities is None else probabilities[:, y : y + step])
    return writer


def a_map(height, width, seed=0):
    """Blobs of two classes on background."""
    coarse = np.random.default_rng(seed).integers(0, 3, (-(-height // 37), -(-width // 37))).astype(np.uint8)
    return np.kron(coarse, np.ones((37, 37), np.uint8))[:height, :width]


def reduced(labels):
    """Slow and obvious: each px of the next level from its up to four px, the border's counted twice."""
    height, width = labels.shape
    out = np.zeros(((height + 1) // 2, (width + 1) // 2), np.uint8)
    for y, x in np.ndindex(out.shape):
        four = [int(labels[min(2 * y + dy, height - 1), min(2 * x + dx, width - 1)]) for dy in (0, 1) for dx in (0, 1)]
        out[y, x] = max(four, key=lambda label: (four.count(label), label))
    return out


def test_zarr_reads_what_was_written_whatever_the_rows_came_in(tmp_path):
    labels = a_map(401, 277)
    probabilities = np.random.default_rng(1).integers(0, 256, (2, 401, 277)).astype(np.uint8)

    write(tmp_path / "a.zarr", labels, probabilities, step=90, chunk_px=128)
    write(tmp_path / "b.zarr", labels, probabilities, step=401, chunk_px=128)

    for name in ("a.zarr", "b.zarr"):
        group = zarr.open_group(tmp_path / name, mode="r")
        assert np.array_equal(group["0"][...], labels)
        assert np.array_equal(group["prob/0"][...], probabilities)
        assert [group[k].shape for k in ("0", "1", "2")] == [(401, 277), (201, 139), (101, 70)]
        assert np.array_equal(group["1"][...], reduced(labels))
        assert np.array_equal(group["2"][...], reduced(reduced(labels)))
    files = [sorted(p.relative_to(tmp_path / n) for p in (tmp_path / n).rglob("*")) for n in ("a.zarr", "b.zarr")]
    assert files[0] == files[1]
    assert all(
        (tmp_path / "a.zarr" / f).read_bytes() == (tmp_path / "b.zarr" / f).read_bytes()
        for f in files[0]
        if (tmp_path / "a.zarr" / f).is_file()
    )


def test_the_metadata_place_every_level_in_micrometres_and_in_slide_pixels(tmp_path):
    labels = a_map(600, 700)
    writer = write(tmp_path / "a.zarr", labels)

    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    ome = group.attrs["ome"]
    multiscale = ome["multiscales"][0]

    assert ome["version"] == "0.5"
    assert [(axis["name"], axis["unit"]) for axis in multiscale["axes"]] == [("y", "micrometer"), ("x", "micrometer")]
    scales = [d["coordinateTransformations"][0]["scale"] for d in multiscale["datasets"]]
    assert scales == [[0.51, 0.5], [1.02, 1.0]]
    assert group.attrs["cytopipe"]["slide_px_per_px"] == [2.0, 2.04]
    assert [c["label-value"] for c in ome["image-label"]["colors"]] == [1, 2]
    counts = np.bincount(labels.ravel(), minlength=3)
    for k, said in enumerate(ome["image-label"]["properties"], start=1):
        assert (said["class"], said["area_px"]) == (CLASSES[k - 1], counts[k])
        assert said["area_mm2"] == pytest.approx(counts[k] * 0.5 * 0.51 / 1e6)
    assert np.array_equal(writer.class_px, counts)
    assert group["0"].metadata.dimension_names == ("y", "x")


@given(data=st.data())
def test_reduced_labels_are_the_most_frequent_ones_and_reduced_probabilities_the_means(data):
    height, width = (2 * data.draw(st.integers(1, 6)) for _ in "yx")
    values = np.array(
        data.draw(st.lists(st.sampled_from([0, 1, 2, 254, 255]), min_size=height * width, max_size=height * width))
    )
    values = values.reshape(height, width).astype(np.uint8)

    assert np.array_equal(most_frequent_of_four(values), reduced(values))
    means = values.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    assert np.array_equal(mean_of_four(values), np.floor(means + 0.5))


@settings(max_examples=25, deadline=None)
@given(width=st.integers(1, 40), height=st.integers(1, 60), step=st.integers(1, 23), seed=st.integers(0, 99))
def test_maps_of_any_size_have_levels_down_to_one_chunk(tmp_path_factory, width, height, step, seed):
    path = tmp_path_factory.mktemp("map") / "a.zarr"
    labels = np.random.default_rng(seed).integers(0, 3, (height, width)).astype(np.uint8)

    write(path, labels, step=step, chunk_px=8)

    group = zarr.open_group(path, mode="r")
    expected = labels
    for level in range(len(group.attrs["ome"]["multiscales"][0]["datasets"])):
        assert np.array_equal(group[str(level)][...], expected)
        last, expected = expected, reduced(expected)
    assert max(last.shape) <= 8


def test_chunks_of_background_take_no_space(tmp_path):
    labels = np.zeros((1100, 1100), np.uint8)
    labels[5, 5] = 1

    write(tmp_path / "a.zarr", labels)

    assert [p.name for p in (tmp_path / "a.zarr" / "0").rglob("*") if p.is_file() and p.name != "zarr.json"] == ["0"]


@pytest.mark.parametrize("failure", [RuntimeError("killed"), KeyboardInterrupt()])
def test_nothing_appears_where_writing_ends_early(tmp_path, failure):
    with (  # noqa: PT012 - the writer is the block
        pytest.raises(type(failure)),
        SemanticWriter(tmp_path / "a.zarr", frame_of(50, 60), CLASSES) as writer,
    ):
        writer.add_rows(np.zeros((30, 50), np.uint8))
        raise failure

    assert list(tmp_path.iterdir()) == []


def test_rows_that_are_missing_are_an_error_and_leave_nothing(tmp_path):
    with (
        pytest.raises(ValueError, match="30 of 60 rows"),
        SemanticWriter(tmp_path / "a.zarr", frame_of(50, 60), CLASSES) as writer,
    ):
        writer.add_rows(np.zeros((30, 50), np.uint8))

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_swept_and_an_older_map_is_replaced(tmp_path):
    killed = SemanticWriter(tmp_path / "a.zarr", frame_of(50, 60), CLASSES)
    killed.__enter__()
    write(tmp_path / "a.zarr", np.zeros((600, 600), np.uint8))

    sweep_partials(tmp_path)
    write(tmp_path / "a.zarr", np.ones((20, 30), np.uint8))

    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    assert read_overview(tmp_path / "a.zarr", 100)[0].shape == (20, 30)


def test_a_folder_that_may_not_be_written_is_said_in_one_line(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(DiskError), SemanticWriter(tmp_path / "file" / "a.zarr", frame_of(5, 6), CLASSES):
        pass


def test_the_overview_is_the_finest_level_that_fits(tmp_path):
    labels = a_map(401, 277)
    write(tmp_path / "a.zarr", labels, chunk_px=128)

    half, factor = read_overview(tmp_path / "a.zarr", 201)

    assert np.array_equal(half, reduced(labels))
    assert factor == 2
    coarsest, factor = read_overview(tmp_path / "a.zarr", 10)
    assert (coarsest.shape, factor) == ((101, 70), 4)


def test_a_folder_that_is_no_class_map_is_refused(tmp_path):
    zarr.open_group(tmp_path / "a.zarr", mode="w")

    with pytest.raises(UserError, match="is no class map"):
        read_overview(tmp_path / "a.zarr", 10)
    with pytest.raises(UserError, match="is no class map"):
        read_overview(tmp_path / "absent.zarr", 10)
