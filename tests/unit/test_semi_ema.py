"""The EMA teacher (METHODS 1.4)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cytopipe.semi import EmaRule, EmaTeacher


def small_net(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)).double()


def moved(student: nn.Module, seed: int) -> None:
    """Another state of the same network, running statistics and their counter included."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        for buffer in student.buffers():
            buffer.copy_((torch.rand(buffer.shape, generator=generator, dtype=torch.float64) * 9 + 1).to(buffer.dtype))


def test_alpha_1_leaves_the_parameters_as_they_were():
    student = small_net(0)
    teacher = EmaTeacher(student, EmaRule(1.0, warm=False))
    before = [p.clone() for p in teacher.net.parameters()]

    moved(student, 1)
    teacher.follow(student)

    assert all(torch.equal(a, b) for a, b in zip(before, teacher.net.parameters(), strict=True))


def test_alpha_0_makes_the_teacher_bit_equal_to_the_student():
    student = small_net(0)
    teacher = EmaTeacher(student, EmaRule(0.0, warm=False))

    moved(student, 1)
    teacher.follow(student)

    assert all(torch.equal(v, teacher.net.state_dict()[k]) for k, v in student.state_dict().items())


def test_towards_a_constant_student_the_distance_shrinks_by_alpha_each_update():
    student = small_net(0)
    teacher = EmaTeacher(student, EmaRule(0.9, warm=False))
    start = [p.clone() for p in teacher.net.parameters()]
    moved(student, 1)

    for _ in range(7):
        teacher.follow(student)

    for theta, first, now in zip(student.parameters(), start, teacher.net.parameters(), strict=True):
        torch.testing.assert_close(now, theta + 0.9**7 * (first - theta), rtol=1e-12, atol=1e-12)


def test_a_warm_rule_copies_the_student_first_and_then_averages_up_to_alpha():
    rule = EmaRule(0.9)

    assert [rule.alpha_at(n) for n in (0, 1, 3, 9, 1000)] == pytest.approx([0.0, 0.5, 0.75, 0.9, 0.9])


def test_a_warm_teacher_is_the_mean_of_the_students_it_saw():
    student = small_net(0)
    teacher = EmaTeacher(student, EmaRule(0.999))
    seen = []

    for seed in range(1, 5):
        moved(student, seed)
        seen.append(student[0].weight.detach().clone())
        teacher.follow(student)

    torch.testing.assert_close(teacher.net[0].weight, torch.stack(seen).mean(dim=0), rtol=1e-12, atol=1e-12)


def test_running_statistics_are_copied_or_averaged_and_counters_always_copied():
    for buffers, share in (("copy", 1.0), ("average", 0.25)):
        student = small_net(0)
        teacher = EmaTeacher(student, EmaRule(0.75, warm=False, buffers=buffers))
        before = student[1].running_var.clone()

        moved(student, 1)
        teacher.follow(student)

        expected = before + share * (student[1].running_var - before)
        torch.testing.assert_close(teacher.net[1].running_var, expected, rtol=1e-12, atol=1e-12)
        assert teacher.net[1].num_batches_tracked == student[1].num_batches_tracked


def test_train_does_not_change_what_the_teacher_answers():
    student = small_net(0)
    teacher = EmaTeacher(student, EmaRule(0.9))
    holder = nn.ModuleDict({"teacher": teacher})
    x = torch.randn(5, 3, dtype=torch.float64)
    before = teacher.net(x)

    holder.train()
    teacher.train()

    assert torch.equal(teacher.net(x), before)
    assert not any(module.training for module in teacher.modules())


def test_no_gradient_ever_appears_on_the_teacher():
    student = small_net(0)
    teacher = EmaTeacher(student, EmaRule(0.9))
    x = torch.randn(5, 3, dtype=torch.float64)

    (student(x) - teacher.net(x)).square().mean().backward()
    teacher.follow(student)

    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())


def test_the_state_dict_carries_the_count_of_updates_so_that_a_resumed_teacher_goes_on_exactly():
    student = small_net(0)
    unbroken = EmaTeacher(student, EmaRule(0.999))
    moved(student, 1)
    unbroken.follow(student)

    resumed = EmaTeacher(student, EmaRule(0.999))
    resumed.load_state_dict(unbroken.state_dict())
    moved(student, 2)

    assert unbroken.follow(student) == resumed.follow(student) == 0.5
    assert torch.equal(unbroken.net[0].weight, resumed.net[0].weight)


def test_a_student_that_gained_a_part_is_refused():
    student = small_net(0)
    teacher = EmaTeacher(student, EmaRule(0.9))
    student.add_module("late", nn.Linear(1, 1))

    with pytest.raises(ValueError, match="late"):
        teacher.follow(student)


def test_a_decay_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="alpha"):
        EmaRule(1.1)
