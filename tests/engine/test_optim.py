"""Optimizers decay weights alone, schedules follow their closed forms, updates clip and clear."""

import math

import pytest
import torch
from torch import nn

from raykb.engine.optim import (
    OPTIMIZERS,
    SCHEDULES,
    constant,
    cosine,
    multi_step,
    parameter_groups,
    scheduled,
    sgd,
    updater,
)


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))


def test_norms_and_biases_are_not_decayed():
    model = network()
    model[3].weight.requires_grad_(False)
    decayed, kept = parameter_groups(model, 0.3)
    assert [p.shape for p in decayed["params"]] == [model[0].weight.shape]
    assert len(kept["params"]) == 4
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves_every_parameter(name):
    model = network()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = OPTIMIZERS[name](model, lr=0.1, weight_decay=0.1)
    model(torch.randn(4, 1, 3, 3)).square().sum().backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) >= len(moved) - 1  # the bias before a batch norm has no gradient


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_begins_at_the_full_rate(name):
    assert SCHEDULES[name]()(0.0) == 1.0


def rates(schedule, steps, warmup_steps=0):
    optimizer = sgd(network(), lr=2.0)
    scheduler = scheduled(optimizer, schedule, steps=steps, warmup_steps=warmup_steps)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_cosine_and_its_warmup_follow_the_closed_form():
    wanted = [0.5, 1.0, 1.5, 2.0] + [1 + math.cos(math.pi * step / 10) for step in range(4, 10)]
    assert rates(cosine(), 10, warmup_steps=4) == pytest.approx(wanted)


def test_multi_step_multiplies_at_each_milestone():
    assert (
        rates(multi_step(milestones=(0.25, 0.5), factor=0.5), 8)
        == [2, 2, 1, 1, 0.5, 0.5] + [0.5] * 2
    )


def test_constant_stays():
    assert rates(constant(), 3) == [2.0] * 3


@pytest.mark.parametrize("warmup_steps", [-1, 10, 11])
def test_a_warmup_that_does_not_fit_is_refused(warmup_steps):
    with pytest.raises(ValueError, match=f"warmup_steps: {warmup_steps}, must be at least 0 and"):
        scheduled(sgd(network(), lr=1.0), cosine(), steps=10, warmup_steps=warmup_steps)


def test_an_update_clips_by_the_global_norm_then_clears_and_calls_after_step():
    weight = nn.Parameter(torch.tensor([[3.0, 4.0]]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    called = []
    update = updater(
        [weight],
        optimizer,
        scheduled(optimizer, constant(), steps=5),
        clip_norm=1.0,
        after_step=called.append,
    )
    (weight.square().sum() / 2).backward()  # the gradient is the weight, of norm 5
    figures = update(7)
    assert figures["gradient_norm"] == 5.0
    assert figures["lr"] == 1.0
    assert torch.allclose(weight, torch.tensor([[2.4, 3.2]]), atol=1e-5)
    assert weight.grad is None
    assert called == [7]


def test_a_clip_norm_that_would_stop_learning_is_refused():
    optimizer = sgd(network(), lr=1.0)
    with pytest.raises(ValueError, match=r"clip_norm: 0\.0, must be above 0, or null"):
        updater([], optimizer, scheduled(optimizer, constant(), steps=1), clip_norm=0.0)
