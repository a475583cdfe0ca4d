import math

import pytest
import torch

from raykb.engine.objective import Task
from raykb.models import MODELS
from raykb.selfsup.batch import ViewsBatch
from raykb.selfsup.simclr import SimCLR, nt_xent_loss


def rows(*shape, seed=0):
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=numbers, dtype=torch.float64)


def naive(first, second, temperature):
    """Algorithm 1, a pair at a time."""
    views = [view for pair in zip(first, second, strict=True) for view in pair]

    def similarity(i, j):
        return (views[i] @ views[j] / (views[i].norm() * views[j].norm())).item()

    def loss(i, j):
        others = [k for k in range(len(views)) if k != i]
        total = sum(math.exp(similarity(i, k) / temperature) for k in others)
        return -math.log(math.exp(similarity(i, j) / temperature) / total)

    pairs = range(0, len(views), 2)
    return sum(loss(i, i + 1) + loss(i + 1, i) for i in pairs) / len(views)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_it_is_the_algorithm_a_pair_at_a_time(count, temperature):
    first, second = rows(count, 4), rows(count, 4, seed=1)
    loss = nt_xent_loss(first, second, temperature)
    assert loss.item() == pytest.approx(naive(first, second, temperature))


def test_golden_numbers():
    angles = torch.tensor([0.0, 0.7, 1.9, 3.1], dtype=torch.float64)
    others = angles + torch.tensor([0.2, -0.3, 0.1, 0.4])
    first, second = (torch.stack([a.cos(), a.sin()], 1) for a in (angles, others))
    assert nt_xent_loss(first, second, 0.1).item() == pytest.approx(0.370819, abs=1e-6)
    even = torch.eye(4, dtype=torch.float64)  # pairs that are at right angles to each other
    wanted = math.log(1 + 6 * math.exp(-2.0))
    assert nt_xent_loss(even, even, 0.5).item() == pytest.approx(wanted)


def test_length_does_not_count_and_both_views_are_alike():
    first, second = rows(5, 3), rows(5, 3, seed=1)
    loss = nt_xent_loss(first, second, 0.3)
    torch.testing.assert_close(nt_xent_loss(3 * second, 0.5 * first, 0.3), loss)


def test_both_views_get_the_gradient_of_the_formula():
    first, second = rows(3, 4).requires_grad_(), rows(3, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: nt_xent_loss(a, b, 0.5), (first, second))


def test_rows_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match=r"first, second: \(3, 4\) and \(2, 4\), must both be"):
        nt_xent_loss(rows(3, 4), rows(2, 4), 0.5)


def test_the_objective_takes_the_loss_of_the_projections():
    network = MODELS["small_convnet"](3, 1, width=4).eval()
    objective = SimCLR(Task(network, 10), temperature=0.3, projection=5, hidden=7)
    views = torch.randn(4, 2, 1, 12, 12)
    terms = objective(network, ViewsBatch(views, torch.arange(4)), 0)
    first, second = (objective.head(network.features(views[:, view])) for view in (0, 1))
    assert first.shape == (4, 5)
    assert objective.head[0].out_features == 7
    torch.testing.assert_close(terms["loss"], nt_xent_loss(first, second, 0.3))
    assert not terms["feature_std"].requires_grad


def test_settings_that_mean_nothing_are_refused():
    task = Task(MODELS["small_convnet"](3, 1, width=4), 10)
    with pytest.raises(ValueError, match=r"temperature: 0.0, must be above 0"):
        SimCLR(task, temperature=0.0)
    with pytest.raises(ValueError, match=r"Linear has no .* which simclr needs"):
        SimCLR(Task(torch.nn.Linear(2, 2), 10))
