"""The patch bank of CDCL: which batches it holds, and that a checkpoint holds it (METHODS 5.3)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cytopipe.semi.patch_bank import PatchBank, Patches

DIM, CELLS = 3, 4


def patches(step: int, n: int, cells: int = CELLS) -> Patches:
    """Patches whose every number says in which step they were made."""
    return Patches(
        torch.full((n, cells, DIM), float(step), dtype=torch.float64),
        torch.full((n, cells), step),
        torch.arange(n) % 2,
        torch.full((n,), 100 + step),
        torch.arange(n),
    )


def steps_of(bank: PatchBank) -> list[int]:
    held = bank.read()
    steps = (held.images - 100).tolist()
    assert held.features[:, :1, 0].flatten().tolist() == held.labels[:, :1].flatten().tolist() == steps
    return steps


@given(batches=st.integers(1, 4), sizes=st.lists(st.integers(0, 3), max_size=7))
def test_it_holds_the_patches_of_exactly_the_newest_batches(batches, sizes):
    bank = PatchBank(batches, DIM)

    for step, n in enumerate(sizes):
        bank.push(patches(step, n), step)

    newest = range(max(0, len(sizes) - batches), len(sizes))
    assert steps_of(bank) == [step for step in newest for _ in range(sizes[step])]
    assert len(bank) == len(steps_of(bank))


def test_the_parts_of_an_accumulated_step_are_one_batch():
    bank = PatchBank(2, DIM)

    for step in (0, 1, 1, 2, 2):
        bank.push(patches(step, 1), step)

    assert steps_of(bank) == [1, 1, 2, 2]


def test_it_stores_detached_float32_copies():
    bank, new = PatchBank(2, DIM), patches(0, 2)
    new.features.requires_grad_()

    bank.push(new, 0)
    with torch.no_grad():
        new.features.add_(5)

    held = bank.read().features
    assert held.dtype == torch.float32
    assert not held.requires_grad
    assert held.max() == 0


def test_restored_from_its_state_it_goes_on_where_it_was_whatever_it_held_before():
    bank, other = PatchBank(2, DIM), PatchBank(2, DIM)
    for step, n in ((0, 3), (1, 2), (2, 5)):
        bank.push(patches(step, n), step)
    other.push(patches(9, 1), 9)

    other.load_state_dict(bank.state_dict())
    fresh = PatchBank(2, DIM)
    fresh.load_state_dict(bank.state_dict())
    for each in (bank, other, fresh):
        each.push(patches(3, 1), 3)

    assert steps_of(bank) == steps_of(other) == steps_of(fresh) == [2] * 5 + [3]
    assert torch.equal(bank.steps, fresh.steps)


def test_patches_of_another_size_are_refused():
    bank = PatchBank(2, DIM)
    bank.push(patches(0, 2), 0)

    with pytest.raises(ValueError, match="patches of 9 cells, not of 4"):
        bank.push(patches(1, 1, cells=9), 1)


def test_a_bank_of_no_batch_is_refused():
    with pytest.raises(ValueError, match="0 batches"):
        PatchBank(0, DIM)


def test_joined_and_chosen_patches_keep_their_order():
    both = Patches.joined(patches(0, 2), patches(1, 1))

    assert both.labels[:, 0].tolist() == [0, 0, 1]
    assert both.at(torch.tensor([False, True, True])).images.tolist() == [100, 101]
