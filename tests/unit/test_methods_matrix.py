"""Every method on every task it supports passes the same matrix (METHODS 8), on tiny networks and 64 px images.

A step is taken as the engine takes it, in ten lines (`Run`). Kill and resume of whole runs is tested with the engine.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from cytopipe.methods import METHODS, Method, find_method
from cytopipe.semi import Batch, Clock, EmaTeacher, Weighted
from tests.unit.tiny_batches import batch_for, batch_of, made, permuted, tiny_net

T, MIDDLE = 100, 50  # steps of the run, and one at which every method reads unlabelled images under these settings

SETTINGS: dict[str, dict[str, object]] = {
    "supervised": {},
    "mean-teacher": {"first_step": 0, "ramp_steps": 10, "ramp_every": 1, "proposals_per_image": 15},
    "dual-alignment": {"pseudo_threshold": 0.0, "proposals_per_image": 15},
    "mmt-psm": {
        "burn_in": 20,
        "ramp_steps": 10,
        "rampdown_steps": 10,
        "mask_score": 0.1,
        "proposals_per_image": 15,
    },
    "cdcl": {"burn_in_epochs": 1, "foreground_share": 0.51, "background_share": 0.49},
    "mspa": {},
    "crossmatch": {"burn_in": 20, "delta": 0.3, "proposals_per_image": 40, "ohem_k": 8, "ohem_ramp": 10},
}
BY_TASK: dict[tuple[str, str], dict[str, object]] = {
    ("mean-teacher", "instance"): {"mask_weight": 1.0, "mask_foreground": 0.0},
}
BOX_TERMS = {"rpn_cls", "rpn_reg", "roi_cls", "roi_reg"}
SUPERVISED = {
    "detection": BOX_TERMS,
    "instance": BOX_TERMS | {"mask"},
    "semantic": {"ce"},
}
OWN_SUPERVISED = {"cdcl": {"L_sup"}, "mspa": {"L_S"}}
UNSUPERVISED = {
    "supervised": set(),
    "mean-teacher": {"L_u"},
    "dual-alignment": {"L_pml", "L'_pml", "L_pmb", "L'_pmb"},
    "mmt-psm": {"L_psm", "L_mgd"},
    "cdcl": {"L_contr", "L_cons", "L_ent"},
    "mspa": {"L_LPA", "L_UPA", "L_SPA"},
    "crossmatch": {"L_p", "L_c"},
}
FOCAL = {"crossmatch"}  # its supervised term is its own: focal loss, and both copies of the labelled images
CASES = [(name, task) for name in SETTINGS for task in sorted(find_method(name).tasks)]
every_case = pytest.mark.parametrize(("name", "task"), CASES)


@dataclass
class Run:
    """A method with its networks, on the way to its next step."""

    student: nn.Module
    method: Method
    teacher: EmaTeacher | None
    optimiser: torch.optim.Optimizer

    def losses(self, batch: Batch, t: int = MIDDLE) -> dict[str, Weighted]:
        return self.method.losses(batch, self.student, self.teacher and self.teacher.net, Clock(t, T, 10))

    def take(self, batch: Batch, t: int) -> dict[str, Weighted]:
        """One step, as the engine takes it."""
        rule = self.method.teacher()
        if self.teacher is not None and t == rule.start:
            self.teacher.copy(self.student)
        terms = self.losses(batch, t)
        self.optimiser.zero_grad(set_to_none=True)
        total(terms).backward()
        self.optimiser.step()
        if self.teacher is not None and t >= rule.start:
            self.teacher.follow(self.student)
        self.method.after_step(Clock(t, T, 10))
        return terms

    def modules(self) -> list[nn.Module]:
        return [m for m in (self.student, self.method, self.teacher) if m is not None]


def settings(name: str, task: str) -> dict[str, object]:
    return SETTINGS[name] | BY_TASK.get((name, task), {})


def run_of(name: str, task: str, *, lr: float = 1e-3, **change: object) -> Run:
    """A fresh run; its teacher differs from the student, as in the middle of training."""
    student = tiny_net(task)
    method = made(name, student, **settings(name, task) | change)
    rule = method.teacher()
    teacher = None if rule is None else EmaTeacher(student, rule)
    if teacher is not None:
        generator = torch.Generator().manual_seed(1)
        for p in teacher.net.parameters():
            p.add_(0.2 * p.abs().mean() * torch.randn(p.shape, generator=generator))
    parameters = list(student.parameters())
    own = {id(p) for p in parameters}
    parameters += [p for group in method.groups() for p in group.parameters if id(p) not in own]
    return Run(student, method, teacher, torch.optim.SGD(parameters, lr=lr, momentum=0.9))


def total(terms: dict[str, Weighted]) -> torch.Tensor:
    return sum(term.weight * term.value for term in terms.values())


def numbers(terms: dict[str, Weighted]) -> dict[str, tuple[float, float]]:
    return {name: (term.value.item(), term.weight) for name, term in terms.items()}


def gradients(run: Run, terms: dict[str, Weighted]) -> dict[str, torch.Tensor]:
    """Of the student's own parameters; what a method attached is its own."""
    run.student.zero_grad(set_to_none=True)
    total(terms).backward()
    named = run.student.named_parameters()
    return {n: p.grad for n, p in named if p.grad is not None and not n.startswith("extra.")}


def supervised_names(name: str, task: str) -> set[str]:
    return OWN_SUPERVISED.get(name, SUPERVISED[task])


def unsupervised_names(name: str, task: str) -> set[str]:
    return UNSUPERVISED[name] | ({"L_mask"} if (name, task) == ("mean-teacher", "instance") else set())


def assert_same_gradients(mine: dict[str, torch.Tensor], its: dict[str, torch.Tensor]) -> None:
    assert any(g.abs().sum() > 0 for g in its.values())
    for name in mine.keys() | its.keys():
        zero = torch.zeros_like(mine.get(name, its.get(name)))
        torch.testing.assert_close(mine.get(name, zero), its.get(name, zero), rtol=1e-6, atol=1e-7, msg=name)


def test_the_matrix_knows_every_method():
    assert set(SETTINGS) == set(METHODS)


@every_case
def test_terms_have_their_names_and_weights_and_every_one_of_them_says_something(name, task):
    run = run_of(name, task)
    batch = batch_for(run.method)
    for t in (MIDDLE - 2, MIDDLE - 1):
        run.take(batch, t)

    terms = run.losses(batch)

    mine, its = supervised_names(name, task), unsupervised_names(name, task)
    assert set(terms) == mine | its
    assert all(terms[key].weight == 1.0 for key in mine)
    assert all(terms[key].weight > 0 and terms[key].value.item() != 0 for key in its)
    assert all(term.value.shape == () and term.value.requires_grad for term in terms.values())


@every_case
def test_ten_iterations_stay_finite(name, task):
    run = run_of(name, task)

    for t in range(MIDDLE - 5, MIDDLE + 5):
        terms = run.take(batch_for(run.method, seed=10 * t), t)
        assert all(term.value.isfinite() for term in terms.values()), numbers(terms)

    assert all(torch.as_tensor(value).isfinite() for value in run.method.signals().values())
    for module in run.modules():
        assert all(value.isfinite().all() for value in module.state_dict().values())


@every_case
def test_the_first_steps_of_a_run_are_finite_too(name, task):
    run = run_of(name, task)

    for t in range(2):
        terms = run.take(batch_for(run.method, seed=t), t)

    assert supervised_names(name, task) <= set(terms)
    assert all(term.value.isfinite() for term in terms.values())


@every_case
def test_with_unsup_weight_0_a_step_has_the_gradients_of_its_supervised_term_alone(name, task):
    alone, full = run_of(name, task, unsup_weight=0), run_of(name, task)
    batch = batch_for(full.method)
    mine = alone.losses(batch)
    together = full.losses(batch)

    assert set(mine) == supervised_names(name, task)
    its = gradients(full, {key: together[key] for key in mine})
    assert_same_gradients(gradients(alone, mine), its)


@every_case
def test_that_supervised_term_is_the_one_of_supervised(name, task):
    alone, plain = run_of(name, task, unsup_weight=0), run_of("supervised", task)
    batch = batch_for(alone.method)

    mine, its = alone.losses(batch), plain.losses(batch)

    if name in FOCAL:
        assert total(mine).item() != pytest.approx(total(its).item())
        return
    assert total(mine).item() == pytest.approx(total(its).item(), rel=1e-6)
    assert_same_gradients(gradients(alone, mine), gradients(plain, its))


@every_case
def test_with_unsup_weight_0_no_unlabelled_image_is_needed(name, task):
    run = run_of(name, task, unsup_weight=0)
    batch = batch_for(run.method)

    assert numbers(run.losses(Batch(batch.labelled))) == numbers(run.losses(batch))


@every_case
def test_no_gradient_reaches_teacher_or_banks(name, task):
    run = run_of(name, task)
    batch = batch_for(run.method)
    run.take(batch, MIDDLE - 1)  # fills what banks there are
    if run.teacher is not None:
        run.teacher.requires_grad_(True)
    run.method.zero_grad(set_to_none=True)

    total(run.losses(batch)).backward()

    if run.teacher is not None:
        assert all(p.grad is None for p in run.teacher.parameters())
    assert not any(buffer.requires_grad for buffer in run.method.buffers())
    own = {id(p) for group in run.method.groups() for p in group.parameters}
    assert all(id(p) in own for p in run.method.parameters())


def test_no_gradient_of_an_unlabelled_image_reaches_the_proxies():
    run = run_of("dual-alignment", "detection")
    run.take(batch_for(run.method), MIDDLE - 1)
    terms = run.losses(batch_for(run.method, seed=5))
    run.method.zero_grad(set_to_none=True)

    (terms["L'_pml"].value + terms["L'_pmb"].value).backward(retain_graph=True)
    assert run.method.proxies.grad is None

    terms["L_pml"].value.backward()
    assert run.method.proxies.grad.abs().sum() > 0


@every_case
@pytest.mark.parametrize("objects", [0, 2], ids=["nothing labelled", "two objects"])
def test_a_step_runs_on_one_image_of_each_kind_with_and_without_objects(name, task, objects):
    run = run_of(name, task)
    plan = run.method.views()

    for t in (MIDDLE, MIDDLE + 1):
        terms = run.take(batch_of(plan, task, t, 1, 1, objects), t)

    assert all(term.value.isfinite() for term in terms.values())
    assert all(p.isfinite().all() for module in run.modules() for p in module.state_dict().values())
    assert all(p.grad is not None for p in run.student.extra.parameters())  # attached, also with nothing to compare


NOTHING_SURE = {
    "mean-teacher": {"mask_foreground": 1.0},
    "dual-alignment": {"pseudo_threshold": 1.0},
    "mmt-psm": {"mask_score": 1.0},
    "cdcl": {"cons_threshold": 1.0},
    "crossmatch": {"delta": 1.0},
}


@every_case
def test_a_step_runs_where_the_unlabelled_images_hold_nothing(name, task):
    run = run_of(name, task, **NOTHING_SURE.get(name, {}))
    batch = batch_for(run.method)
    if batch.unlabelled is not None:
        views = {key: replace(view, image=torch.zeros_like(view.image)) for key, view in batch.unlabelled.views.items()}
        batch = Batch(batch.labelled, type(batch.unlabelled)(views))

    for t in (MIDDLE, MIDDLE + 1):
        terms = run.take(batch, t)

    assert all(term.value.isfinite() for term in terms.values())
    assert all(p.isfinite().all() for module in run.modules() for p in module.state_dict().values())


@every_case
def test_terms_are_finite_float32_in_mixed_precision_and_near_those_of_full_precision(name, task):
    run, exact = run_of(name, task), run_of(name, task)
    batch = batch_for(run.method)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = run.losses(batch)
    total(terms).backward()

    expected = exact.losses(batch)
    assert {term.value.dtype for term in terms.values()} == {torch.float32}
    assert all(term.value.isfinite() for term in terms.values())
    assert all(p.grad is None or p.grad.isfinite().all() for p in run.student.parameters())
    if task == "semantic":  # boxes: other proposals, other RoIs
        assert total(terms).item() == pytest.approx(total(expected).item(), rel=0.1)


@every_case
def test_the_order_of_the_unlabelled_images_does_not_matter(name, task):
    first, second = run_of(name, task), run_of(name, task)
    batch = batch_for(first.method, unlabelled=3)
    if batch.unlabelled is None:
        assert not first.method.uses_unlabelled
        return

    before, after = numbers(first.losses(batch)), numbers(second.losses(permuted(batch, [2, 0, 1])))

    assert after.keys() == before.keys()
    for key, (value, weight) in before.items():
        assert after[key] == (pytest.approx(value, rel=2e-5, abs=1e-7), weight), key  # sums in another order, float32
    signals = first.method.signals()
    assert second.method.signals() == pytest.approx(signals, rel=1e-4, abs=1e-6)


@every_case
def test_a_run_that_was_stopped_and_restored_takes_the_same_step(name, task):
    run, restored = run_of(name, task), run_of(name, task)
    for t in (MIDDLE - 2, MIDDLE - 1):
        run.take(batch_for(run.method, seed=t), t)
    saved = copy.deepcopy([part.state_dict() for part in (*run.modules(), run.optimiser)])
    for part, state in zip((*restored.modules(), restored.optimiser), saved, strict=True):
        part.load_state_dict(state)

    batch = batch_for(run.method, seed=MIDDLE)
    mine, its = run.take(batch, MIDDLE), restored.take(batch, MIDDLE)

    assert numbers(mine) == numbers(its)
    for a, b in zip(run.modules(), restored.modules(), strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@every_case
def test_signals_and_pseudo_labels_are_told_of_a_step_that_read_unlabelled_images_and_of_no_other(name, task):
    run, alone = run_of(name, task), run_of(name, task, unsup_weight=0)
    batch = batch_for(run.method, unlabelled=3)

    run.losses(batch)
    alone.losses(batch)

    seen, pseudo = run.method.signals(), run.method.pseudo()
    assert all(isinstance(value, float) for value in seen.values())
    assert bool(seen) == run.method.uses_unlabelled
    if seen:
        assert {"pseudo_labels_per_image", "images_without_pseudo_label_fraction", "max_confidence"} <= set(seen)
        assert {f"pseudo_labels[{item.name}]" for item in run.student.spec.classes} <= set(seen)
    assert pseudo is None or len(pseudo) == 3
    assert alone.method.pseudo() is None


SWITCHES: list[tuple[str, str, dict[str, object], set[str]]] = [
    ("supervised", "detection", {"ema_eval": 0.9, "consume_unlabelled": True}, set()),
    ("supervised", "detection", {"unsup_weight": 3.0}, set()),
    ("supervised", "semantic", {"dice_weight": 0.5}, {"ce", "dice"}),
    ("mean-teacher", "detection", {"proposals_per_image": 5}, {"L_u"}),
    ("mean-teacher", "detection", {"w_max": 0.5}, {"L_u"}),
    ("mean-teacher", "detection", {"unsup_weight": 0.5}, {"L_u"}),
    ("mean-teacher", "detection", {"ramp_steps": 400}, {"L_u"}),
    ("mean-teacher", "detection", {"first_step": 60}, {"L_u"}),
    ("mean-teacher", "detection", {"alpha": 0.5}, set()),
    ("mean-teacher", "instance", {"mask_weight": 0.0}, {"L_mask"}),
    ("mean-teacher", "instance", {"mask_weight": 2.0}, {"L_mask"}),
    ("mean-teacher", "instance", {"mask_foreground": 0.68}, {"L_mask"}),
    ("mean-teacher", "semantic", {"noise_std": 0.0}, {"L_u"}),
    ("mean-teacher", "semantic", {"noise_limit": 0.05}, {"L_u"}),
    ("mean-teacher", "semantic", {"ramp_every": 45, "ramp_steps": 100}, {"L_u"}),
    ("mean-teacher", "semantic", {"dice_weight": 0.5}, {"ce", "dice"}),
    ("dual-alignment", "detection", {"proposal_alignment": False}, {"L_pml", "L'_pml"}),
    ("dual-alignment", "detection", {"prototype_alignment": False}, {"L_pmb", "L'_pmb"}),
    ("dual-alignment", "detection", {"unsup_weight": 0.5}, UNSUPERVISED["dual-alignment"]),
    ("mmt-psm", "instance", {"gamma": 0.0}, {"L_mgd"}),
    ("mmt-psm", "instance", {"gamma": 1.0}, {"L_mgd"}),
    ("mmt-psm", "instance", {"psm_weight": 0.0}, {"L_psm"}),
    ("mmt-psm", "instance", {"sharpen": "printed"}, {"L_psm"}),
    ("mmt-psm", "instance", {"psm_scale": 1 / 3}, {"L_psm"}),
    ("mmt-psm", "instance", {"temperature": 0.9}, {"L_psm"}),
    ("mmt-psm", "instance", {"unsup_weight": 0.5}, UNSUPERVISED["mmt-psm"]),
    ("cdcl", "semantic", {"w_contr": 0.0}, {"L_contr"}),
    ("cdcl", "semantic", {"w_cons": 0.0}, {"L_cons"}),
    ("cdcl", "semantic", {"w_ent": 0.0}, {"L_ent"}),
    ("cdcl", "semantic", {"tau": 0.2}, {"L_contr"}),
    ("cdcl", "semantic", {"sampling": "random"}, {"L_contr"}),
    ("cdcl", "semantic", {"unsup_weight": 0.5}, UNSUPERVISED["cdcl"]),
    ("mspa", "semantic", {"lpa": False}, {"L_LPA"}),
    ("mspa", "semantic", {"upa": False}, {"L_UPA"}),
    ("mspa", "semantic", {"spa": False}, {"L_SPA"}),
    ("mspa", "semantic", {"upa_scale": 2.0}, {"L_UPA"}),
    ("mspa", "semantic", {"unsup_weight": 0.5}, UNSUPERVISED["mspa"]),
    ("crossmatch", "detection", {"lambda_h": 0.0}, {"L_p"}),
    ("crossmatch", "detection", {"lambda_s": 0.0}, {"L_c"}),
    ("crossmatch", "detection", {"multi_scale": False}, {"L_p", "L_c"}),
    ("crossmatch", "detection", {"delta": 0.9}, {"L_p"}),
    ("crossmatch", "detection", {"focal_gamma": 0.0}, {"roi_cls", "L_p"}),
    ("crossmatch", "detection", {"ohem_k": 20}, {"L_c"}),
    ("crossmatch", "detection", {"ohem_k": None}, {"L_c"}),
    ("crossmatch", "detection", {"ohem_ramp": 60}, {"L_c"}),
    ("crossmatch", "detection", {"proposals_per_image": 30}, {"L_c"}),
    ("crossmatch", "detection", {"soft_proposals": "student"}, {"L_c"}),
    ("crossmatch", "detection", {"kl_direction": "student_teacher"}, {"L_c"}),
    ("crossmatch", "detection", {"level_reduction": "sum"}, {"L_c"}),
    ("crossmatch", "detection", {"labelled_strong": False}, BOX_TERMS),
    ("crossmatch", "detection", {"alpha": 0.5}, set()),
    ("crossmatch", "detection", {"unsup_weight": 0.5}, {"L_p", "L_c"}),
]


@pytest.mark.parametrize(("name", "task", "change", "moved"), SWITCHES, ids=[f"{n}-{t}-{c}" for n, t, c, _ in SWITCHES])
def test_each_switch_changes_exactly_the_terms_it_names(name, task, change, moved):
    plain, switched = run_of(name, task), run_of(name, task, **change)
    plan = plain.method.views()
    batches = [batch_of(plan, task, seed, 2, 2, 2) for seed in (0, 40)]
    for run in (plain, switched):  # with a weight of 0 in the optimiser: only banks move
        run.optimiser.param_groups[0]["lr"] = 0.0
        run.losses(batches[0], MIDDLE - 1)
        run.method.after_step(Clock(MIDDLE - 1, T, 10))

    before, after = numbers(plain.losses(batches[1])), numbers(switched.losses(batches[1]))

    assert {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == moved
