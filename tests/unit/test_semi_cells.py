"""Cells of a coarser grid: probabilities, labels, what was seen, patches (METHODS 5.3), against loops over pixels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cytopipe.semi import View
from cytopipe.semi.cells import cells_shown, cells_within, label_of_cells, log_probabilities, patches_of, to_pixels


def drawn(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_the_probability_of_a_cell_is_the_mean_softmax_of_its_pixels(factor):
    logits = drawn(0, 2, 3, 8, 4)

    log_p = log_probabilities(logits, factor)

    assert log_p.shape == (2, 3, 8 // factor, 4 // factor)
    for image in range(2):
        for row in range(8 // factor):
            for column in range(4 // factor):
                mean = [0.0] * 3
                for y in range(row * factor, (row + 1) * factor):
                    for x in range(column * factor, (column + 1) * factor):
                        scores = [math.exp(v) for v in logits[image, :, y, x].tolist()]
                        mean = [m + s / sum(scores) / factor**2 for m, s in zip(mean, scores, strict=True)]
                assert log_p[image, :, row, column].exp().tolist() == pytest.approx(mean, rel=1e-6)


def test_a_probability_that_float32_cannot_hold_has_a_finite_logarithm():
    logits = torch.tensor([0.0, -1000.0])[None, :, None, None].expand(1, 2, 4, 4)

    assert log_probabilities(logits, 4)[0, :, 0, 0].tolist() == pytest.approx([0.0, -1000.0], abs=1e-3)


def test_half_precision_is_left_before_the_logarithm():
    assert log_probabilities(torch.zeros(1, 2, 4, 4, dtype=torch.bfloat16), 2).dtype == torch.float32


@given(factor=st.integers(1, 4), hole=st.tuples(st.integers(0, 7), st.integers(0, 7)))
def test_a_cell_is_seen_only_where_all_its_pixels_are(factor, hole):
    side = 8 // factor * factor
    seen = torch.ones(1, side, side, dtype=torch.bool)
    row, column = (min(place, side - 1) for place in hole)
    seen[0, row, column] = False

    cells = cells_within(seen, factor)

    assert (~cells).nonzero().tolist() == [[0, row // factor, column // factor]]


def test_a_view_without_a_mask_shows_its_image_everywhere():
    image, affine, keys = torch.zeros(2, 3, 8, 16), torch.zeros(2, 2, 3), torch.arange(2)
    valid = torch.ones(2, 8, 16, dtype=torch.bool)
    valid[1, 5, 9] = False

    everywhere, partly = (
        cells_shown(View(image, (), affine, keys), 4),
        cells_shown(View(image, (), affine, keys, valid=valid), 4),
    )

    assert everywhere.shape == (2, 2, 4)
    assert everywhere.all()
    assert (~partly).nonzero().tolist() == [[1, 1, 2]]


def test_the_label_of_a_cell_is_that_of_a_pixel_at_its_centre_and_pixels_get_it_back():
    labels = torch.arange(8 * 12).view(1, 8, 12)

    cells = label_of_cells(labels, 4)

    assert cells.tolist() == [[[26, 30, 34], [74, 78, 82]]]  # rows 2 and 6, columns 2, 6 and 10
    assert torch.equal(label_of_cells(to_pixels(cells, 4), 4), cells)
    assert to_pixels(cells, 4).shape == labels.shape


@given(rows=st.integers(0, 7), columns=st.integers(0, 7), height=st.integers(1, 4), width=st.integers(1, 4))
def test_patches_are_cut_row_by_row_and_the_rest_is_left_out(rows, columns, height, width):
    cells = torch.arange(2 * rows * columns * 3).view(2, rows, columns, 3)

    patches = patches_of(cells, height, width)

    expected = [
        [
            [cells[b, r * height + i, c * width + j].tolist() for i in range(height) for j in range(width)]
            for r in range(rows // height)
            for c in range(columns // width)
        ]
        for b in range(2)
    ]
    assert patches.shape == (2, (rows // height) * (columns // width), height * width, 3)
    assert patches.tolist() == expected
