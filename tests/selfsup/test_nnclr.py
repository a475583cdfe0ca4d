import math

import pytest
import torch
from shared_views import batch, drawn, method, network
from torch.nn import functional as F

from raykb.selfsup.nnclr import nearest_neighbours, neighbour_contrast


@pytest.mark.parametrize(("count", "size"), [(1, 1), (5, 3), (4, 9)])
def test_neighbours_are_the_nearest_by_distance_of_directions(count, size):
    rows, support = drawn(count, 3), F.normalize(drawn(size, 3, seed=1))
    for row, found in zip(rows, nearest_neighbours(rows, support), strict=True):
        distances = [(row / row.norm() - own).norm().item() for own in support]
        assert torch.equal(found, support[distances.index(min(distances))])


@pytest.mark.parametrize(("count", "temperature"), [(1, 0.1), (4, 0.1), (6, 1.0)])
def test_it_is_the_formula_neighbour_by_neighbour(count, temperature):
    neighbours, predictions = F.normalize(drawn(count, 3)), drawn(count, 3, seed=1)
    losses = []
    for i in range(count):
        shares = [math.exp(neighbours[i] @ (row / row.norm()) / temperature) for row in predictions]
        losses.append(-math.log(shares[i] / sum(shares)))
    loss = neighbour_contrast(neighbours, predictions, temperature)
    assert loss.item() == pytest.approx(sum(losses) / count)


def test_perfect_predictions_of_orthogonal_neighbours():
    rows = torch.eye(4, dtype=torch.float64)
    loss = neighbour_contrast(rows, 3.0 * rows, 0.5)
    assert loss.item() == pytest.approx(math.log(1 + 3 * math.exp(-2)))


def test_predictions_get_gradient_and_what_was_looked_up_none():
    rows, predictions = drawn(3, 4).requires_grad_(), drawn(3, 4, seed=1).requires_grad_()
    neighbours = nearest_neighbours(rows, F.normalize(drawn(5, 4, seed=2)))
    assert not neighbours.requires_grad
    assert torch.autograd.gradcheck(lambda p: neighbour_contrast(neighbours, p, 0.5), predictions)


def test_the_objective_is_the_mean_of_both_directions_and_queues_the_first_view():
    objective, model = method("nnclr"), network()
    seen, support = batch(objective), objective.queue.seen()
    projections = objective.head(model.features(seen.views.flatten(0, 1)))
    predictions = objective.predictor(projections)
    (z_1, z_2), (p_1, p_2) = (
        rows.unflatten(0, (6, 2)).unbind(1) for rows in (projections, predictions)
    )
    first = neighbour_contrast(nearest_neighbours(z_1, support), p_2, 0.2)
    second = neighbour_contrast(nearest_neighbours(z_2, support), p_1, 0.2)
    loss = objective(model, seen, 0)["loss"].item()
    assert loss == pytest.approx((first + second).item() / 2, rel=1e-5)
    torch.testing.assert_close(objective.queue.rows[:6], F.normalize(z_1, dim=1))
    assert torch.equal(objective.queue.rows[6:], support[6:])


def test_heads_have_the_widths_asked_for():
    objective = method("nnclr")
    widths = [m.weight.shape for m in objective.head if isinstance(m, torch.nn.Linear)]
    assert widths == [(5, 6), (5, 5), (4, 5)]
    widths = [m.weight.shape for m in objective.predictor if isinstance(m, torch.nn.Linear)]
    assert widths == [(7, 4), (4, 7)]
    assert objective.queue.rows.shape == (16, 4)
    with pytest.raises(ValueError, match=r"temperature: -1\.0, must be above 0"):
        method("nnclr", temperature=-1.0)
