"""Two processes with half of a batch each learn what one learns from the whole: the banks of cdcl, the vote of mspa.

Anchors, prototypes and votes differ between the halves, so that a mean, a bank or a vote over one's own would show.
"""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from cytopipe.methods.mspa import Maps
from tests.unit import test_methods_cdcl as cdcl
from tests.unit import test_methods_mspa as mspa

WORLD = 2


def cdcl_steps(rank: int | None) -> dict[str, torch.Tensor]:
    """L_contr of three steps, its gradients, and what the banks then hold, in an order that does not matter."""
    method, losses, gradients = cdcl.method_of(patch_cells=2), [], []
    mine = slice(None) if rank is None else slice(rank, rank + 1)
    for step in range(3):
        student, teacher, seen, keys = cdcl.scene(step, 2)
        features = student[0].clone().requires_grad_()
        maps = (features[mine], student[1][mine]), (teacher[0][mine], teacher[1][mine])
        loss = method.contrast_patches(*maps, seen[mine], keys[mine], step)
        loss.backward()
        losses.append(loss.detach())
        gradients.append(features.grad)
    held = method.bank.read().features.flatten(1)
    return {"losses": torch.stack(losses), "gradients": torch.stack(gradients), "bank": held[held[:, 0].argsort()]}


def mspa_step(rank: int | None) -> dict[str, torch.Tensor]:
    """The three losses, and their gradients with respect to all features."""
    labelled, unlabelled, y = mspa.scene(1, 4, 4)
    features = [maps.features.clone().requires_grad_() for maps in (labelled, unlabelled)]
    parts = [maps._replace(features=f) for maps, f in zip((labelled, unlabelled), features, strict=True)]
    if rank is not None:
        mine = slice(2 * rank, 2 * rank + 2)
        parts, y = [Maps(*(values[mine] for values in maps)) for maps in parts], y[mine]
    terms = mspa.method_of().align(*parts, y)
    sum(terms.values()).backward()
    return {
        "losses": torch.stack([v.detach() for v in terms.values()]),
        "gradients": torch.stack([f.grad for f in features]),
    }


STEPS = {"cdcl": cdcl_steps, "mspa": mspa_step}


def as_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    torch.save({name: step(rank) for name, step in STEPS.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(as_rank, (str(folder),), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


@pytest.mark.parametrize("name", sorted(STEPS))
def test_the_mean_of_losses_and_gradients_over_two_halves_is_that_of_the_whole_batch(ranks, name):
    whole = STEPS[name](None)

    for what in ("losses", "gradients"):
        mine = torch.stack([rank[name][what] for rank in ranks])
        torch.testing.assert_close(mine.mean(dim=0), whole[what], rtol=1e-6, atol=1e-9)
        assert not torch.allclose(mine[0], whole[what], rtol=1e-3)  # the halves do differ


def test_the_banks_of_cdcl_are_the_same_on_both_and_those_of_one_process(ranks):
    whole = cdcl_steps(None)["bank"]

    assert len(whole) > 0
    for rank in ranks:
        assert torch.equal(rank["cdcl"]["bank"], whole)
