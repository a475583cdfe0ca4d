import pytest
import torch
from lightly.loss.tico_loss import TiCoLoss
from shared_views import drawn
from torch.nn import functional as F

from raykb.engine.objective import Task
from raykb.models import MODELS
from raykb.selfsup.batch import ViewsBatch
from raykb.selfsup.tico import TiCo, second_moments, tico_loss


def naive(rows, targets, moments, contrast):
    """Return the loss by the formula, image by image."""
    losses = []
    for row, target in zip(rows, targets, strict=True):
        row, target = row / row.norm(), target / target.norm()
        losses.append(1 - row @ target + contrast * row @ moments @ row)
    return sum(losses) / len(losses)


@pytest.mark.parametrize("contrast", [0.0, 8.0])
def test_it_is_the_formula_image_by_image(contrast):
    rows, targets, moments = drawn(5, 4), drawn(5, 4, seed=1), drawn(4, 4, seed=2)
    torch.testing.assert_close(
        tico_loss(rows, targets, moments, contrast), naive(rows, targets, moments, contrast)
    )


def test_it_is_lightlys_over_several_steps():
    theirs, moments = TiCoLoss(beta=0.8, rho=3.0), torch.zeros(4, 4, dtype=torch.float64)
    for seed in range(3):
        rows, targets = drawn(6, 4, seed=seed), drawn(6, 4, seed=9 + seed)
        moments = 0.8 * moments + 0.2 * second_moments(rows)
        mine, other = tico_loss(rows, targets, moments, 3.0), theirs(rows, targets)
        torch.testing.assert_close(mine, other, atol=1e-6, rtol=0)


def test_directions_that_are_evenly_used_pay_least():
    even, same = torch.eye(4), torch.eye(4)[:1].expand(4, -1)
    losses = [tico_loss(rows, rows, second_moments(rows), 1.0) for rows in (even, same)]
    assert losses == [pytest.approx(1 / 4), pytest.approx(1.0)]


def test_targets_and_moments_get_no_gradient_and_the_rows_do():
    rows, targets = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1).requires_grad_()
    tico_loss(rows, targets, second_moments(rows), 2.0).backward()
    assert rows.grad.abs().sum() > 0
    assert targets.grad is None


def test_the_moments_move_by_those_of_both_views():
    network = MODELS["small_convnet"](3, 1, width=4).eval()
    objective = TiCo(Task(network, 10), memory=0.75, projection=4, hidden=6).eval()
    views = torch.randn(5, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    objective(network, ViewsBatch(views, torch.arange(5)), 0)
    rows = objective.head(network.features(views.transpose(0, 1).flatten(0, 1)))
    directions = F.normalize(rows.detach(), dim=1)
    torch.testing.assert_close(objective.moments, 0.25 * directions.T @ directions / 10)
