"""The ring bank and the projector (METHODS 1.9)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cytopipe.semi import Projector, RingBank


def numbered(start: int, count: int) -> torch.Tensor:
    """Rows that say when they were pushed."""
    return torch.arange(start, start + count, dtype=torch.float64)[:, None].repeat(1, 2)


def content(bank: RingBank) -> list[tuple[float, int]]:
    rows, labels = bank.read()
    return sorted(zip(rows[:, 0].tolist(), labels.tolist(), strict=True))


def test_a_new_bank_reads_as_no_row():
    rows, labels = RingBank(4, 2, 3).read()

    assert rows.shape == (0, 2)
    assert labels.shape == (0,)


@given(
    capacity=st.integers(1, 7), pushes=st.lists(st.integers(0, 12), max_size=6), per_class=st.booleans(), data=st.data()
)
def test_the_bank_holds_the_newest_rows_whatever_the_pushes(capacity, pushes, per_class, data):
    bank, history = RingBank(capacity, 2, 3, per_class=per_class), []

    for count in pushes:
        labels = data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
        rows = numbered(len(history), count)
        bank.push(rows, torch.tensor(labels, dtype=torch.int64))
        history += list(zip(rows[:, 0].tolist(), labels, strict=True))

    rings = [[h for h in history if h[1] == c] for c in range(3)] if per_class else [history]
    newest = [row for ring in rings for row in ring[-capacity:]]
    assert content(bank) == sorted(newest)
    assert len(bank) == len(newest)


def test_rows_are_stored_as_detached_float32_copies():
    bank, rows = RingBank(4, 2, 1), numbered(0, 2).requires_grad_()

    bank.push(rows, torch.zeros(2, dtype=torch.int64))
    with torch.no_grad():
        rows.add_(100)

    stored, _ = bank.read()
    assert stored.dtype == torch.float32
    assert not stored.requires_grad
    assert stored.max() == 1


def test_a_bank_restored_from_its_state_goes_on_where_it_was():
    bank = RingBank(3, 2, 1)
    bank.push(numbered(0, 4), torch.zeros(4, dtype=torch.int64))

    restored = RingBank(3, 2, 1)
    restored.load_state_dict(bank.state_dict())
    for each in (bank, restored):
        each.push(numbered(4, 1), torch.zeros(1, dtype=torch.int64))

    assert content(restored) == content(bank) == [(2.0, 0), (3.0, 0), (4.0, 0)]


def test_a_bank_without_room_is_refused():
    with pytest.raises(ValueError, match="capacity"):
        RingBank(0, 2, 1)


def test_the_projector_is_two_layers_with_a_relu_between():
    projector = Projector(3, 4, 2, seed=0).double().requires_grad_(False)
    features = torch.randn(5, 3, dtype=torch.float64)

    embedded = projector(features)

    for row, out in zip(features, embedded, strict=True):
        hidden = [
            max(0.0, float(w @ row + b)) for w, b in zip(projector.first.weight, projector.first.bias, strict=True)
        ]
        slow = [
            sum(float(w) * h for w, h in zip(weights, hidden, strict=True)) + float(b)
            for weights, b in zip(projector.second.weight, projector.second.bias, strict=True)
        ]
        assert out.tolist() == pytest.approx(slow, rel=1e-9)


def test_making_a_projector_leaves_torchs_random_stream_alone_and_depends_on_its_seed():
    torch.manual_seed(7)
    expected = torch.rand(3)

    torch.manual_seed(7)
    first, again, other = (Projector(3, 4, 2, seed=s) for s in (1, 1, 2))

    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.first.weight, again.first.weight)
    assert not torch.equal(first.first.weight, other.first.weight)


def test_a_projector_of_no_feature_gives_no_embedding_and_stays_attached():
    embedded = Projector(3, 4, 2, seed=0)(torch.zeros(0, 3))

    assert embedded.shape == (0, 2)
    assert embedded.requires_grad
