"""One positive against many negatives: golden values of METHODS 9, a slow double loop, its laws (METHODS 5.3)."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cytopipe.semi.contrast import contrast

DIM = 4


def units(seed: int, n: int, dim: int = DIM) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, dim, generator=generator, dtype=torch.float64), dim=1)


def slow(q, positive, keys, tau, left_out=()) -> list[float]:
    """Eq. 7, number by number."""
    losses = []
    for i, (query, own) in enumerate(zip(q.tolist(), positive.tolist(), strict=True)):
        sim = [math.exp(sum(a * b for a, b in zip(query, key, strict=True)) / tau) for key in [own, *keys.tolist()]]
        against = sum(s for k, s in enumerate(sim[1:]) if (i, k) not in left_out)
        losses.append(-math.log(sim[0] / (sim[0] + against)))
    return losses


@pytest.mark.parametrize(("negatives", "value"), [([[0.0, 1.0]], 4.53989e-5), ([[1.0, 0.0]], 0.69314718), ([], 0.0)])
def test_the_loss_of_a_query_has_the_golden_values(negatives, value):
    q = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    keys = torch.tensor(negatives, dtype=torch.float64).reshape(-1, 2)

    assert contrast(q, q, keys, 0.1).item() == pytest.approx(value, rel=1e-6)


@given(
    seed=st.integers(0, 10_000),
    queries=st.integers(0, 6),
    keys=st.integers(0, 9),
    tau=st.floats(0.05, 2),
    tile=st.tuples(st.integers(1, 7), st.integers(1, 10)),
)
@settings(deadline=None)
def test_the_loss_equals_a_slow_double_loop_whatever_the_tiles(seed, queries, keys, tau, tile):
    q, positive, negatives = units(seed, queries), units(seed + 1, queries), units(seed + 2, keys)

    loss = contrast(q, positive, negatives, tau, tile=tile)

    assert loss.tolist() == pytest.approx(slow(q, positive, negatives, tau), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("tile", [(2, 3), (512, 2048)])
def test_pairs_that_are_left_out_do_not_meet(tile):
    q, positive, keys = units(0, 5), units(1, 5), units(2, 7)
    left_out = torch.tensor([[0, 6], [3, 2], [3, 3], [4, 0]])

    loss = contrast(q, positive, keys, 0.1, left_out=left_out, tile=tile)

    assert loss.tolist() == pytest.approx(slow(q, positive, keys, 0.1, set(map(tuple, left_out.tolist()))), rel=1e-6)


@pytest.mark.parametrize("left_out", [None, torch.tensor([[0, 1], [2, 4]])])
def test_its_gradient_is_that_of_the_formula(left_out):
    q, positive, keys = units(0, 3).requires_grad_(), units(1, 3), units(2, 5)

    def written_out(x: torch.Tensor) -> torch.Tensor:
        sims = (x @ keys.T / 0.3).exp()
        if left_out is not None:
            sims = sims.masked_fill(F.one_hot(left_out[:, 0] * 5 + left_out[:, 1], 15).sum(0).view(3, 5).bool(), 0.0)
        own = ((x * positive).sum(dim=1) / 0.3).exp()
        return -(own / (own + sims.sum(dim=1))).log()

    (mine,) = torch.autograd.grad(contrast(q, positive, keys, 0.3, left_out=left_out, tile=(2, 2)).square().sum(), q)
    (expected,) = torch.autograd.grad(written_out(q).square().sum(), q)

    torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-12)


def test_no_gradient_reaches_the_positive_or_the_keys():
    q, positive, keys = (units(s, 3).requires_grad_() for s in range(3))

    contrast(q, positive, keys, 0.1).sum().backward()

    assert q.grad.abs().sum() > 0
    assert positive.grad is None
    assert keys.grad is None


def test_one_more_negative_raises_every_loss_and_their_order_does_not_matter():
    q, positive, keys = units(0, 4), units(1, 4), units(2, 8)

    fewer, all_of_them, turned = (contrast(q, positive, k, 0.1) for k in (keys[:-1], keys, keys.flip(0)))

    assert (all_of_them > fewer).all()
    torch.testing.assert_close(turned, all_of_them)


def test_without_a_query_the_loss_is_empty_and_attached():
    q = torch.zeros(0, DIM, requires_grad=True)

    loss = contrast(q, q, torch.randn(3, DIM), 0.1)
    loss.sum().backward()

    assert loss.shape == (0,)
    assert q.grad.shape == (0, DIM)


@pytest.mark.parametrize("cosine", [-1.0, 1.0])
def test_the_smallest_temperature_stays_finite_in_float32(cosine):
    q = torch.tensor([[1.0, 0.0]], requires_grad=True)

    loss = contrast(q, cosine * q, -cosine * q.expand(100_000, 2), 0.025)
    loss.sum().backward()

    # 100,000 negatives at distance 80 in the exponent: log(1 + 1e5 · e^{-+80})
    assert loss.item() == pytest.approx(0.0 if cosine > 0 else 80 + math.log(1e5), rel=1e-6, abs=1e-6)
    assert q.grad.isfinite().all()


def test_a_smaller_temperature_is_refused():
    with pytest.raises(ValueError, match=r"tau 0\.02 is below"):
        contrast(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2), 0.02)


def test_under_autocast_it_is_computed_in_float32():
    q, positive, keys = (units(s, 20).float() for s in range(3))

    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = contrast(q, positive, keys, 0.1)

    assert loss.dtype == torch.float32
    assert torch.equal(loss, contrast(q, positive, keys, 0.1))
