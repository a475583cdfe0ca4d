"""Optimizers decay weights alone, schedules follow their closed forms, updates clip and clear."""

import copy
import math

import pytest
import torch
from torch import nn

from raykb.engine.checkpoint import decode, encode
from raykb.engine.layers import parameter_groups
from raykb.engine.optim import (
    OPTIMIZERS,
    SCHEDULES,
    NamedOptimizer,
    adamw,
    constant,
    cosine,
    cosine_7_16,
    multi_step,
    poly,
    scheduled,
    sgd,
    updater,
)


def network():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 2))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_moves_every_parameter(name):
    model = network()
    before = [parameter.clone() for parameter in model.parameters()]
    optimizer = OPTIMIZERS[name](model, lr=0.1, weight_decay=0.1)
    model(torch.randn(4, 1, 3, 3)).square().sum().backward()
    optimizer.step()
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) >= len(moved) - 1  # the bias before a batch norm has no gradient


def steps(model, optimizer, inputs):
    for batch in inputs:
        optimizer.zero_grad()
        model(batch).square().sum().backward()
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_named_state_goes_on_in_a_model_whose_parameters_are_in_another_order(name):
    torch.manual_seed(0)
    inputs = torch.randn(6, 4, 1, 3, 3)
    model = network()
    optimizer = OPTIMIZERS[name](model, lr=0.1, weight_decay=0.1)
    scheduler = scheduled(optimizer, cosine(), steps=6)
    steps(model, optimizer, inputs[:3])
    scheduler.step()
    weights = copy.deepcopy(model.state_dict())
    state = copy.deepcopy(NamedOptimizer(optimizer, model.named_parameters()).state_dict())
    steps(model, optimizer, inputs[3:])

    again = network()
    again.load_state_dict(weights)
    groups = parameter_groups(again, 0.1)
    for group in groups:
        group["params"].reverse()
    other = type(optimizer)(groups, lr=7.0)
    NamedOptimizer(other, again.named_parameters()).load_state_dict(state)
    assert other.param_groups[0]["lr"] == pytest.approx(0.1 * cosine()(1 / 6))
    steps(again, other, inputs[3:])
    for key, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_a_named_state_has_the_names_of_parameters_and_is_safe_to_load():
    model = network()
    optimizer = OPTIMIZERS["adamw"](model, lr=0.1, weight_decay=0.1)
    steps(model, optimizer, torch.randn(2, 4, 1, 3, 3))
    state = decode(encode(NamedOptimizer(optimizer, model.named_parameters()).state_dict()))
    assert state["state"].keys() == dict(model.named_parameters()).keys()
    assert state["state"]["0.weight"].keys() == {"step", "exp_avg", "exp_avg_sq"}
    assert [group["weight_decay"] for group in state["groups"]] == [0.1, 0.0]
    assert all("params" not in group for group in state["groups"])


def test_a_named_state_takes_what_it_has_and_passes_over_the_rest():
    model = network()
    optimizer = sgd(model, lr=0.1)
    steps(model, optimizer, torch.randn(1, 4, 1, 3, 3))
    state = NamedOptimizer(optimizer, model.named_parameters()).state_dict()
    last = nn.Sequential(*model[3:])
    named = [(f"3.{name.partition('.')[2]}", value) for name, value in last.named_parameters()]
    part = NamedOptimizer(sgd(last, lr=0.5), named)
    part.load_state_dict(state)
    assert part.state_dict()["state"].keys() == {"3.weight", "3.bias"}
    momentum = part.optimizer.state[last[0].weight]["momentum_buffer"]
    assert torch.equal(momentum, optimizer.state[model[3].weight]["momentum_buffer"])
    empty = NamedOptimizer(sgd(nn.ReLU(), lr=0.5), [])
    empty.load_state_dict(state)
    assert empty.optimizer.param_groups[0]["lr"] == 0.1


def test_parameters_without_a_name_and_other_groups_are_refused():
    model = network()
    with pytest.raises(ValueError, match=r"none named for 2 of the optimizer's, of shapes"):
        NamedOptimizer(sgd(model, lr=0.1), model[:3].named_parameters())
    state = NamedOptimizer(sgd(model, lr=0.1), model.named_parameters()).state_dict()
    single = NamedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters())
    with pytest.raises(ValueError, match="groups: 2 were saved and there are 1; build the"):
        single.load_state_dict(state)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_begins_at_the_full_rate(name):
    assert SCHEDULES[name]()(0.0) == 1.0


def test_without_momentum_there_is_nothing_of_nesterovs():
    assert not sgd(network(), lr=1.0, momentum=0.0).param_groups[0]["nesterov"]
    assert sgd(network(), lr=1.0).param_groups[0]["nesterov"]


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


def test_weight_decay_climbs_by_a_cosine_where_there_is_any_and_resumes():
    model = network()
    optimizer = adamw(model, lr=2.0, weight_decay=0.04, final_weight_decay=0.4)
    scheduler = scheduled(optimizer, cosine(), steps=4)
    seen = []
    for step in range(4):
        assert optimizer.param_groups[1]["weight_decay"] == 0.0
        seen.append(optimizer.param_groups[0]["weight_decay"])
        optimizer.step()
        scheduler.step()
        if step == 1:
            state = copy.deepcopy((optimizer.state_dict(), scheduler.state_dict()))
    wanted = [0.04 + 0.36 * (1 - math.cos(math.pi * step / 4)) / 2 for step in range(4)]
    assert seen == pytest.approx(wanted)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.4)

    again = adamw(network(), lr=2.0, weight_decay=0.04, final_weight_decay=0.4)
    schedule = scheduled(again, cosine(), steps=4)
    again.load_state_dict(state[0])
    schedule.load_state_dict(state[1])
    assert again.param_groups[0]["weight_decay"] == seen[2]
    again.step()
    schedule.step()
    assert again.param_groups[0]["weight_decay"] == seen[3]


def test_without_a_final_one_weight_decay_stays():
    optimizer = adamw(network(), lr=2.0, weight_decay=0.04)
    scheduler = scheduled(optimizer, cosine(), steps=4)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.04, 0.0]


def test_layers_keep_the_ratio_of_their_rates_under_a_schedule():
    optimizer = adamw(network(), lr=2.0, weight_decay=0.1, layer_decay=0.5)
    scheduler = scheduled(optimizer, cosine(), steps=4)
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 1.0, 2.0, 2.0]
    optimizer.step()
    scheduler.step()
    factor = (1 + math.cos(math.pi / 4)) / 2
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == pytest.approx([factor, factor, 2 * factor, 2 * factor])
    update = updater([], optimizer, scheduler)
    assert update(1)["lr"] == pytest.approx(2 * factor)  # that of the last layer


def test_a_layer_decay_out_of_range_is_refused():
    for decay in (0.0, 1.1):
        with pytest.raises(ValueError, match=f"layer_decay: {decay}, must be above 0 and at most"):
            adamw(network(), lr=1.0, weight_decay=0.1, layer_decay=decay)


def test_the_cosine_of_seven_sixteenths_ends_at_a_fifth():
    factors = [cosine_7_16()(progress) for progress in (0.0, 0.5, 1.0)]
    assert factors == pytest.approx([1.0, 0.7730, 0.19509], abs=1e-5 * 5)


def test_multi_step_multiplies_at_each_milestone():
    assert (
        rates(multi_step(milestones=(0.25, 0.5), factor=0.5), 8)
        == [2, 2, 1, 1, 0.5, 0.5] + [0.5] * 2
    )


def test_poly_has_the_rates_of_nnunet():
    epochs = (1, 250, 500, 750, 999)
    wanted = [0.00999100, 0.00771890, 0.00535887, 0.00287175, 1.9953e-05]
    assert [0.01 * poly()(epoch / 1000) for epoch in epochs] == pytest.approx(wanted, rel=5e-5)
    assert rates(poly(power=1.0), 4) == pytest.approx([2.0, 1.5, 1.0, 0.5])


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
