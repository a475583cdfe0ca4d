import copy

import pytest
import torch

from raykb.engine.objective import Task
from raykb.models import MODELS
from raykb.parts.teacher import cosine_momentum
from raykb.selfsup.batch import ViewsBatch
from raykb.selfsup.byol import BYOL, byol_loss


def rows(*shape, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=numbers, dtype=torch.float64)


def made(**options):
    torch.manual_seed(0)
    network = MODELS["small_convnet"](3, 1, width=4)
    objective = BYOL(Task(network, 10), momentum=0.9, projection=5, hidden=7, **options)
    return network, objective


def batch(seed=0):
    numbers = torch.Generator().manual_seed(seed)
    return ViewsBatch(torch.randn(6, 2, 1, 12, 12, generator=numbers), torch.arange(6))


def test_it_is_the_distance_of_directions_row_by_row():
    predictions, targets = rows(5, 4), rows(5, 4, seed=1)
    naive = [
        (p / p.norm() - z / z.norm()).square().sum().item()
        for p, z in zip(predictions, targets, strict=True)
    ]
    assert byol_loss(predictions, targets).item() == pytest.approx(sum(naive) / 5)


@pytest.mark.parametrize(("factor", "wanted"), [(3.0, 0.0), (-0.5, 4.0)])
def test_golden_numbers(factor, wanted):
    predictions = rows(4, 3)
    assert byol_loss(predictions, factor * predictions).item() == pytest.approx(wanted)
    right_angles = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]])
    assert byol_loss(*right_angles).item() == pytest.approx(2.0)


def test_targets_get_no_gradient():
    predictions, targets = rows(3, 4).requires_grad_(), rows(3, 4, seed=1).requires_grad_()
    byol_loss(predictions, targets).backward()
    assert predictions.grad.abs().sum() > 0
    assert targets.grad is None


def test_each_view_predicts_what_the_teacher_says_of_the_other():
    network, objective = made()
    seen = batch()
    terms = objective(network, seen, 0)
    predictor, head, teacher = objective.predictor, objective.head, objective.teacher
    both = seen.views.flatten(0, 1)  # batch norm sees both views
    predictions = predictor(head(network.features(both))).unflatten(0, (6, 2))
    targets = objective.teacher_head(teacher.features(both)).unflatten(0, (6, 2))
    wanted = [byol_loss(predictions[:, view], targets[:, 1 - view]) for view in (0, 1)]
    torch.testing.assert_close(terms["loss"], sum(wanted))


def test_the_teacher_begins_as_the_student_and_follows_by_the_schedule():
    network, objective = made()
    before = copy.deepcopy(objective.teacher)
    with torch.no_grad():
        for parameter in (*network.parameters(), *objective.head.parameters()):
            parameter.add_(1.0)
    head = copy.deepcopy(objective.teacher_head)
    objective.after_step(network, 4)
    momentum = cosine_momentum(0.9, 4, 10)
    assert 0.9 < momentum < 1.0
    for own, old in (
        *zip(objective.teacher.parameters(), before.parameters(), strict=True),
        *zip(objective.teacher_head.parameters(), head.parameters(), strict=True),
    ):
        torch.testing.assert_close(own, old + (1 - momentum))


def test_settings_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match=r"momentum: 1.5, must be in 0..1"):
        BYOL(Task(MODELS["small_convnet"](3, 1, width=4), 10), momentum=1.5)
