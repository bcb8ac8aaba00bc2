"""A semantic network on a slide: tiled equals untiled, what is skipped, what cannot be read, and areas."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from cytopipe.core.errors import RunError, UserError
from cytopipe.infer.segment import Segmenter
from cytopipe.slides import Foreground, MppView
from tests.array_slide import ArraySlide
from tests.semantic import semantic_bundle

# logits are below 10 in size; float32 convolutions of other sizes add in another order
ROUNDING = 1e-5


def picture(width, height, seed=0):
    """Smooth coloured noise, so that the network's answers vary over tens of px."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3)).astype(np.uint8)
    return np.ascontiguousarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width])


def mapped(segmenter, slide, path, **more):
    found = segmenter.segment(slide, MppView(slide, segmenter.bundle.spec.mpp), path, **more)
    return found, zarr.open_group(path, mode="r")


class Spy(Segmenter):
    """Keeps the blended logits that `segment` turns into labels."""

    def blended(self, slide):
        from cytopipe.infer.blending import Blender

        view = MppView(slide, self.bundle.spec.mpp)
        windows = self.plan(view)
        out = np.zeros((3, view.height, view.width), np.float32)
        blender = Blender(windows, self.bundle.spec.receptive_field_px, 3)
        for index, logits in self.logits(view, windows, range(len(windows)), []):
            block = blender.add(index, logits)
            h, w = block.seen.shape
            out[:, block.y0 : block.y0 + h, block.x0 : block.x0 + w] = block.logits
        return out, blender


@pytest.mark.parametrize("size", [(300, 251), (129, 400), (90, 70), (128, 128)])
def test_tiled_equals_untiled(tmp_path, size):
    tiled = Spy(semantic_bundle(tmp_path / "tiled", tile_px=128), device="cpu")
    untiled = Spy(semantic_bundle(tmp_path / "untiled", tile_px=512), device="cpu")
    slide = ArraySlide(picture(*size), mpp=0.5)

    logits, blender = tiled.blended(slide)
    whole, _ = untiled.blended(slide)

    assert tiled.overlap_px == 2 * 26 + 2
    assert blender.radius_px == 26
    assert np.abs(whole).max() < 10
    assert np.abs(logits - whole).max() <= ROUNDING
    assert whole.std() > 0.1


def test_the_map_is_the_class_of_the_largest_logit_and_its_areas_are_counted(tmp_path):
    segmenter = Spy(semantic_bundle(tmp_path / "bundle"), device="cpu")
    slide = ArraySlide(picture(500, 420), mpp=0.25)
    logits, _ = segmenter.blended(slide)

    found, group = mapped(segmenter, slide, tmp_path / "a.zarr", probabilities=True)

    labels = group["0"][...]
    assert np.array_equal(labels, logits.argmax(axis=0))
    assert labels.shape == (210, 250)
    counts = np.bincount(labels.ravel(), minlength=3)
    assert (counts > 0).all()
    assert [area.px for area in (found.background, *found.areas)] == counts.tolist()
    assert found.not_searched.px == 0
    assert found.areas[0].mm2 == pytest.approx(counts[1] * 0.5 * 0.5 / 1e6)
    assert found.frame.slide_px_per_px == (2.0, 2.0)
    expected = np.exp(logits) / np.exp(logits).sum(axis=0)
    assert np.abs(group["prob/0"][...] / 255 - expected[1:]).max() <= 0.5 / 255 + 1e-6
    assert found.seam_difference <= ROUNDING
    assert found.warnings == ()


def test_probabilities_are_written_on_request_only(tmp_path):
    segmenter = Segmenter(semantic_bundle(tmp_path / "bundle"), device="cpu")

    _, group = mapped(segmenter, ArraySlide(picture(100, 100), mpp=0.5), tmp_path / "a.zarr")

    assert "prob" not in group


def test_labels_and_areas_are_the_same_for_another_batch_size(tmp_path):
    bundle = semantic_bundle(tmp_path / "bundle")
    slide = ArraySlide(picture(300, 250), mpp=0.5)

    one, a = mapped(Segmenter(bundle, device="cpu"), slide, tmp_path / "a.zarr")
    three, b = mapped(Segmenter(bundle, device="cpu", batch_windows=3), slide, tmp_path / "b.zarr")

    assert one.areas == three.areas
    assert np.array_equal(a["0"][...], b["0"][...])


def foreground_from(x, width, height):
    """The slide from x on, px of 10 level-0 px."""
    mask = np.zeros((height // 10, width // 10), bool)
    mask[:, x // 10 :] = True
    return Foreground(mask, (10.0, 10.0), "light")


def test_windows_without_foreground_are_not_searched_and_all_foreground_is(tmp_path):
    segmenter = Spy(semantic_bundle(tmp_path / "bundle"), device="cpu")
    slide = ArraySlide(picture(500, 200), mpp=0.5)
    logits, _ = segmenter.blended(slide)

    found, group = mapped(segmenter, slide, tmp_path / "a.zarr", foreground=foreground_from(260, 500, 200))

    labels = group["0"][...]
    assert found.windows_run < found.windows
    assert np.array_equal(labels[:, 260:], logits.argmax(axis=0)[:, 260:])
    assert not labels[:, :100].any()
    assert found.not_searched.px > 100 * 200
    assert found.not_searched.px + found.background.px + sum(a.px for a in found.areas) == 500 * 200


def test_a_slide_without_any_foreground_is_a_map_of_nothing(tmp_path):
    segmenter = Segmenter(semantic_bundle(tmp_path / "bundle"), device="cpu")

    slide, nothing = ArraySlide(picture(300, 200), mpp=0.5), foreground_from(300, 300, 200)

    found, group = mapped(segmenter, slide, tmp_path / "a.zarr", foreground=nothing)

    assert found.windows_run == 0
    assert found.not_searched.px == 300 * 200
    assert not group["0"][...].any()


def test_a_window_that_cannot_be_read_is_said_and_leaves_a_hole_and_nothing_else(tmp_path):
    segmenter = Spy(semantic_bundle(tmp_path / "bundle"), device="cpu")
    pixels = picture(500, 400)
    logits, _ = segmenter.blended(ArraySlide(pixels, mpp=0.5))
    slide = ArraySlide(pixels, mpp=0.5, bad=((0, 200, 200),))

    found, group = mapped(segmenter, slide, tmp_path / "a.zarr")

    labels, expected = group["0"][...], logits.argmax(axis=0)
    assert 1 <= len(found.unreadable) < found.windows
    assert "cannot be decoded" in found.warnings[0]
    assert "level-0 px" in found.warnings[0]
    assert 0 < found.not_searched.px <= len(found.unreadable) * 128 * 128
    assert (labels != expected).sum() <= found.not_searched.px
    assert labels[200, 200] == 0


def test_a_slide_that_cannot_be_read_anywhere_is_an_error_and_leaves_no_map(tmp_path):
    segmenter = Segmenter(semantic_bundle(tmp_path / "bundle"), device="cpu")
    slide = ArraySlide(picture(100, 90), mpp=0.5, bad=((0, 50, 50),))

    with pytest.raises(RunError, match="no window of the slide can be decoded"):
        mapped(segmenter, slide, tmp_path / "a.zarr")

    assert not list(tmp_path.glob("*.zarr*"))
    assert not list(tmp_path.glob(".*.partial"))


def test_a_network_that_looks_farther_than_half_a_window_is_said_with_the_figure(tmp_path):
    segmenter = Segmenter(semantic_bundle(tmp_path / "bundle", tile_px=64), device="cpu")

    found, _ = mapped(segmenter, ArraySlide(picture(300, 250), mpp=0.5), tmp_path / "a.zarr")

    assert segmenter.overlap_px == 32
    assert found.radius_used_px == 15
    assert found.seam_difference > 0
    assert "looks 26 px far and windows keep 15 px clear" in found.warnings[0]


def test_windows_that_the_stride_does_not_divide_are_refused(tmp_path):
    with pytest.raises(UserError, match="tile_px 66 is no multiple of the network's stride, 4 px"):
        Segmenter(semantic_bundle(tmp_path / "bundle", tile_px=66), device="cpu")
