import pytest
import torch
from torch import nn

from raykb.engine.lars import LARS, local_rate
from raykb.engine.optim import lars


def gradients(steps=3):
    numbers = torch.Generator().manual_seed(0)
    return torch.randn(steps, 4, 3, generator=numbers, dtype=torch.float64)


def moved(weights, settings, adapted=True):
    """Return the weights after some steps, by the formula."""
    lr, momentum, decay, trust = settings
    velocity = torch.zeros_like(weights)
    for gradient in gradients():
        length, slope = weights.square().sum().sqrt(), gradient.square().sum().sqrt()
        rate = trust * length / (slope + decay * length) if adapted else 1.0
        velocity = momentum * velocity + rate * (gradient + decay * weights)
        weights = weights - lr * velocity
    return weights


@pytest.mark.parametrize("settings", [(0.3, 0.9, 0.0, 0.001), (2.0, 0.5, 0.1, 0.02)])
@pytest.mark.parametrize("adapted", [True, False])
def test_it_is_the_formula_step_by_step(settings, adapted):
    start = gradients(1)[0] + 1.0
    weights = nn.Parameter(start.clone())
    lr, momentum, weight_decay, trust = settings
    group = {"params": [weights], "adapted": adapted}
    optimizer = LARS([group], lr, momentum, weight_decay, trust)
    for gradient in gradients():
        weights.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(weights.data, moved(start, settings, adapted))


def test_a_step_is_as_long_as_the_weights_allow_whatever_the_gradient():
    for scale in (1e-6, 1.0, 1e6):
        weights = nn.Parameter(torch.full((3, 4), 2.0))
        weights.grad = scale * torch.ones(3, 4)
        LARS([weights], lr=1.0, trust=0.01).step()
        assert (weights - 2.0).norm().item() == pytest.approx(0.01 * 2.0 * 12**0.5, rel=1e-4)


def test_without_length_the_rate_is_1():
    some, none = torch.ones(3), torch.zeros(3)
    assert local_rate(none, some, 0.1, 0.001) == 1.0
    assert local_rate(some, none, 0.0, 0.001) == 1.0
    assert local_rate(some, none, 0.1, 0.001) == 1.0
    assert local_rate(some, some, 0.0, 0.001) == pytest.approx(0.001)


def test_norms_and_biases_move_as_by_sgd():
    model = nn.Linear(3, 2)
    start = model.bias.detach().clone()
    model.weight.grad, model.bias.grad = torch.ones(2, 3), torch.ones(2)
    lars(model, lr=0.5, momentum=0.0, weight_decay=0.1, trust=0.01).step()
    torch.testing.assert_close(model.bias.detach(), start - 0.5)


def test_a_closure_is_called_with_gradient_and_what_has_none_stays():
    model, still = nn.Linear(3, 1), nn.Parameter(torch.ones(2))
    optimizer = LARS([*model.parameters(), still], lr=0.1)

    def closure():
        loss = model(torch.ones(1, 3)).sum()
        loss.backward()
        return loss.item()

    assert isinstance(optimizer.step(closure), float)
    assert torch.equal(still, torch.ones(2))
    assert optimizer.step() is None


def test_settings_below_0_are_refused_together():
    weights = [nn.Parameter(torch.ones(2))]
    with pytest.raises(
        ValueError, match=r"lr: -1\.0, must be in 0\.\.inf; momentum: 2\.0, must be"
    ):
        LARS(weights, lr=-1.0, momentum=2.0)
    with pytest.raises(ValueError, match=r"weight_decay: -0\.1, must.*; trust: -1\.0, must be in"):
        LARS(weights, lr=1.0, weight_decay=-0.1, trust=-1.0)
