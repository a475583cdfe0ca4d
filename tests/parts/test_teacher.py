import math

import pytest
import torch
from torch import nn

from raykb.parts.teacher import cosine_momentum, follow, teacher_of


def student(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_teacher_begins_as_its_student_and_gets_no_gradient():
    pupil = student()
    teacher = teacher_of(pupil)
    assert type(teacher) is nn.Sequential
    for own, value in zip(teacher.parameters(), pupil.parameters(), strict=True):
        assert torch.equal(own, value)
        assert own is not value
        assert not own.requires_grad
        assert value.requires_grad


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.996, 1.0])
def test_it_follows_by_the_formula_and_leaves_buffers_and_student_alone(momentum):
    teacher, pupil = teacher_of(student(0)), student(1)
    with torch.no_grad():
        pupil[1].running_mean.fill_(5.0)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    target = {name: value.clone() for name, value in pupil.state_dict().items()}
    follow(teacher, pupil, momentum)
    for name, value in teacher.named_parameters():
        wanted = momentum * before[name] + (1.0 - momentum) * target[name]
        torch.testing.assert_close(value, wanted, rtol=1e-6, atol=1e-7)
    for name, value in teacher.named_buffers():
        assert torch.equal(value, before[name]), name
    for name, value in pupil.state_dict().items():
        assert torch.equal(value, target[name]), name


def test_momentum_climbs_by_a_cosine_from_its_start_to_one():
    assert cosine_momentum(0.97, 0, 50) == pytest.approx(0.97)
    assert cosine_momentum(0.97, 25, 50) == pytest.approx(0.985)
    assert cosine_momentum(0.97, 50, 50) == 1.0
    quarter = 1.0 - 0.03 * (math.sqrt(0.5) + 1.0) / 2.0
    assert cosine_momentum(0.97, 25, 100) == pytest.approx(quarter)
    assert cosine_momentum(1.0, 3, 50) == 1.0


def test_a_student_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match="teacher: 6 parameters, where its student has 2, or of"):
        follow(teacher_of(student()), nn.Linear(3, 4), 0.9)
