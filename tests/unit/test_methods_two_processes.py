"""Two processes with half of a batch each learn what one learns from the whole (METHODS 5.1, 5.2; issue of DDP).

RoIs, proposals and mask areas differ between the halves, so that a mean over one's own would show.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cytopipe.semi import Batch, Clock, Part
from cytopipe.train.feed import parts_of
from cytopipe.train.reduce import average_gradients
from tests.unit import test_methods_dual_alignment_step as dual
from tests.unit import test_methods_mmt_psm_step as psm

WORLD = 2
CLOCK = Clock(1100, 8000, 10)


def dual_alignment_steps(rank: int | None):
    """Two steps, the second with a filled bank; losses, gradients and the bank."""
    student = dual.StubNet(sure=True)
    method = dual.made("dual-alignment", student, pseudo_threshold=0.6)
    whole = [dual.batch_of(seed, labelled=4, unlabelled=4, side=8) for seed in (1, 2)]
    for batch in whole:  # one image without a box, one with a single one: the halves differ
        first, *others = batch.labelled.weak.targets
        few = [type(first)(first.boxes[:k], first.labels[:k]) for k in (0, 1)]
        object.__setattr__(batch.labelled.weak, "targets", (*few, *others[1:]))
    for batch in whole:
        mine = batch if rank is None else parts_of(batch, WORLD)[rank]
        terms = method.losses(mine, student, None, CLOCK)
        student.zero_grad(set_to_none=True)
        method.zero_grad(set_to_none=True)
        sum(term.weight * term.value for term in terms.values()).backward()
        average_gradients([*student.parameters(), *method.parameters()])
        method.after_step(CLOCK)
    return terms, [*student.parameters(), *method.parameters()], [*method.bank.read()]


def mmt_psm_step(rank: int | None):
    """One step; losses and gradients."""
    method, student, teacher = psm.pair()
    labelled = psm.view_of(1, 4, labels=(1, 2))
    names = {"weak": 100, "teacher2": 101, "student1": 111}
    views = {name: psm.view_of(seed, 4) for name, seed in names.items()}
    views["student1"] = psm.flipped_where(views["student1"], [True, False, True, True])
    teacher.boxes = [psm.BOXES[0], torch.zeros(0, 4), psm.BOXES[1][:1], psm.BOXES[1]]
    teacher.found = [teacher.found[0], (torch.zeros(2, 4), torch.zeros(2, 28, 28)), *teacher.found]
    batch = Batch(Part(labelled), Part(views))
    if rank is not None:
        mine = slice(2 * rank, 2 * rank + 2)
        batch, teacher.boxes, teacher.found = parts_of(batch, WORLD)[rank], teacher.boxes[mine], teacher.found[mine]
    terms = method.losses(batch, student, teacher, CLOCK)
    sum(term.weight * term.value for term in terms.values()).backward()
    average_gradients(list(student.parameters()))
    return terms, list(student.parameters()), []


STEPS = {"dual-alignment": dual_alignment_steps, "mmt-psm": mmt_psm_step}


def outcome(name: str, rank: int | None) -> dict[str, object]:
    terms, parameters, bank = STEPS[name](rank)
    losses = torch.stack([term.value.detach() for term in terms.values()])
    return {
        "losses": losses,
        "gradients": [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters],
        "bank": bank,
    }


def as_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    torch.save({name: outcome(name, rank) for name in STEPS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(as_rank, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", sorted(STEPS))
def test_the_mean_of_the_losses_and_of_the_gradients_over_two_halves_is_that_of_the_whole_batch(ranks, name):
    whole = outcome(name, None)

    losses = torch.stack([rank[name]["losses"] for rank in ranks])

    torch.testing.assert_close(losses.mean(dim=0), whole["losses"], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(losses[0], losses[1], rtol=1e-3)  # the halves do differ
    for rank in ranks:
        for mine, its in zip(rank[name]["gradients"], whole["gradients"], strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


def test_the_bank_of_prototypes_is_the_same_on_both_and_that_of_one_process(ranks):
    rows, labels = outcome("dual-alignment", None)["bank"]

    for rank in ranks:
        mine, its = rank["dual-alignment"]["bank"]
        torch.testing.assert_close(mine, rows)
        assert torch.equal(its, labels)
    assert torch.equal(ranks[0]["dual-alignment"]["bank"][0], ranks[1]["dual-alignment"]["bank"][0])
    assert len(labels) == 4
