from itertools import permutations

import pytest
import torch
from torch import nn

from raykb.nas.cell import Candidates, Choice
from raykb.nas.genotype import SearchSpace
from raykb.nas.samplers import (
    SAMPLERS,
    ScoreFunction,
    Softmax,
    StraightThroughAll,
    StraightThroughExecuted,
    TwoPath,
    temperature_at,
)

SPACE = SearchSpace(("identity", "avg_pool_3", "conv_3", "conv_3_dilation_2"))
ALPHA = torch.tensor([0.0, 1.0, 2.0, -1.0])
CHANCES = [0.087144, 0.236883, 0.643914, 0.032059]
COSTS = torch.tensor([1.0, 0.2, 0.5, 2.0])  # what each operation loses: G is the same
EXACT = torch.tensor([0.041777, -0.075943, -0.013262, 0.047428])
COUNT = 20_000


def numbers(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(sampler, count=COUNT, seed=0, epoch=0):
    return sampler.draw(ALPHA.expand(count, -1), numbers(seed), epoch)


def at_temperature(tau, kind=StraightThroughAll):
    return kind(SPACE, first_temperature=tau, last_temperature=tau)


def ran(draw):
    """G of the operations that were run, zero for the others."""
    run = torch.cat([draw.drawn, draw.watched], dim=-1)
    return torch.zeros_like(draw.gates).scatter(-1, run, 1.0) * COSTS


def mean_gradient(sampler, draw):
    losses = (draw.gates * COSTS).sum(-1)
    return sampler.gradient(draw, ran(draw), losses).mean(0)


def cosine(a, b):
    return float(torch.cosine_similarity(a, b, dim=0))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "softmax"])
def test_an_operation_is_executed_as_often_as_it_is_likely(name):
    draw = draws(SAMPLERS[name](SPACE))
    assert draw.gates.mean(0).tolist() == pytest.approx(CHANCES, abs=0.012)
    assert torch.equal(draw.gates.argmax(-1, keepdim=True), draw.drawn)
    assert torch.equal(draw.gates.sum(-1), torch.ones(COUNT))
    assert not draw.mixes


@pytest.mark.parametrize(
    ("name", "drawn", "watched"),
    [
        ("softmax", 4, 0),
        ("straight_through_all", 1, 3),
        ("straight_through_executed", 1, 0),
        ("two_path", 1, 1),
        ("score_function", 1, 0),
    ],
)
def test_so_many_operations_are_run_each_once(name, drawn, watched):
    draw = draws(SAMPLERS[name](SPACE), count=50)
    assert draw.drawn.shape == (50, drawn)
    assert draw.watched.shape == (50, watched)
    run = torch.cat([draw.drawn, draw.watched], dim=-1)
    assert all(len(set(row)) == drawn + watched for row in run.tolist())


def test_the_gradient_of_the_mixture_is_the_exact_one():
    sampler = Softmax(SPACE)
    draw = sampler.draw(ALPHA, numbers(), 0)
    assert draw.gates.tolist() == pytest.approx(CHANCES, abs=1e-6)
    gradient = sampler.gradient(draw, COSTS, torch.tensor(0.0))
    assert gradient.tolist() == pytest.approx(EXACT.tolist(), abs=1e-6)


def test_the_gradient_of_the_mixture_is_that_of_autograd():
    alpha = ALPHA.clone().requires_grad_()
    (alpha.softmax(-1) * COSTS).sum().backward()
    assert alpha.grad.tolist() == pytest.approx(EXACT.tolist(), abs=1e-6)


def test_the_score_function_is_without_bias():
    sampler = ScoreFunction(SPACE)
    gradients = [mean_gradient(sampler, draws(sampler, 200, seed)) for seed in range(100)]
    assert torch.stack(gradients).mean(0).tolist() == pytest.approx(EXACT.tolist(), abs=0.007)
    mean = float((torch.tensor(CHANCES) * COSTS).sum())
    assert float(sampler.baseline) == pytest.approx(mean, abs=0.05)


def test_the_first_loss_is_the_first_baseline():
    sampler = ScoreFunction(SPACE)
    draw = sampler.draw(ALPHA, numbers(), 0)
    assert not sampler.gradient(draw, COSTS, torch.tensor(3.0)).any()
    gradient = sampler.gradient(draw, COSTS, torch.tensor(5.0))
    torch.testing.assert_close(gradient, 2.0 * (draw.gates - ALPHA.softmax(-1)))
    assert float(sampler.baseline) == pytest.approx(0.95 * 3 + 0.05 * 5)


def test_straight_through_nears_the_exact_direction_as_it_cools():
    found = []
    for tau in (0.5, 1.0, 5.0):
        sampler = at_temperature(tau)
        found.append(cosine(mean_gradient(sampler, draws(sampler)), EXACT))
    assert found[0] >= 0.99
    assert found[1] >= 0.95
    assert found[2] == pytest.approx(0.88, abs=0.03)
    assert found == sorted(found, reverse=True)


def test_the_straight_through_gradient_is_that_of_autograd():
    sampler = at_temperature(0.7)
    draw = sampler.draw(ALPHA, numbers(1), 0)
    noise = numbers(1)
    uniform = torch.rand(4, generator=noise)
    alpha = ALPHA.clone().requires_grad_()
    soft = ((alpha.log_softmax(-1) - (-uniform.log()).log()) / 0.7).softmax(-1)
    (soft * COSTS).sum().backward()
    torch.testing.assert_close(sampler.gradient(draw, COSTS, torch.tensor(0.0)), alpha.grad)


def test_two_paths_compare_no_more_than_their_pair():
    sampler = TwoPath(SPACE)
    draw = draws(sampler, 1000)
    gradient = sampler.gradient(draw, ran(draw), torch.tensor(0.0))
    assert (gradient != 0).sum(-1).max() <= 2
    torch.testing.assert_close(gradient.sum(-1), torch.zeros(1000), atol=1e-6, rtol=0)
    pair = torch.cat([draw.drawn, draw.watched], dim=-1)
    worse = COSTS[pair].argmax(-1, keepdim=True)
    assert (gradient.gather(-1, pair.gather(-1, worse)) > 0).all()


def test_two_paths_compare_pairs_as_often_as_they_are_drawn():
    sampler = TwoPath(SPACE)
    p = ALPHA.softmax(-1)
    expected = torch.zeros(4)
    for a, b in permutations(range(4), 2):  # a is drawn first
        q = ALPHA[[a, b]].softmax(-1)
        expected[a] += p[a] * p[b] / (1 - p[a]) * q[0] * q[1] * (COSTS[a] - COSTS[b])
        expected[b] += p[a] * p[b] / (1 - p[a]) * q[0] * q[1] * (COSTS[b] - COSTS[a])
    found = mean_gradient(sampler, draws(sampler))
    assert found.tolist() == pytest.approx(expected.tolist(), abs=0.004)
    assert cosine(expected, EXACT) == pytest.approx(0.824, abs=0.01)  # the bias there is


def test_only_the_executed_operation_counts_in_c():
    sampler = at_temperature(1.0, StraightThroughExecuted)
    draw = draws(sampler, 100)
    full = at_temperature(1.0)
    torch.testing.assert_close(
        sampler.gradient(draw, ran(draw), torch.tensor(0.0)),
        full.gradient(draws(full, 100), draw.gates * COSTS, torch.tensor(0.0)),
    )


def test_c_is_refused_where_none_can_be_drawn():
    with pytest.raises(ValueError, match=r"cannot learn with 'none' among the operations: .*Take"):
        SAMPLERS["straight_through_executed"](SearchSpace())


def test_the_temperature_falls_to_its_last_value():
    settings = {"first": 5.0, "decay": 0.97, "last": 0.5}
    assert temperature_at(0, **settings) == 5.0
    assert temperature_at(10, **settings) == pytest.approx(5 * 0.97**10)
    assert temperature_at(76, **settings) == 0.5
    assert draws(StraightThroughAll(SPACE), 1, epoch=10).temperature == pytest.approx(
        3.687, abs=1e-3
    )


@pytest.mark.parametrize("setting", ["first_temperature", "last_temperature", "decay"])
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=rf"{setting}: -1"):
        StraightThroughAll(SPACE, **{setting: -1})


# ---------------------------------------------------------------------------- a planted operation

PLANTED = SearchSpace(("none", "identity", "avg_pool_3"))
FILTER = nn.Sequential(nn.AvgPool3d(3, 1, 1), nn.InstanceNorm3d(1))


def planted(side):
    """An edge, white noise, and what the edge's filter makes of it: to be found."""
    edge = Candidates(PLANTED.operations, 1, stride=1, dims=3)
    edge["avg_pool_3"] = FILTER
    noise = torch.randn(1, 1, *[side] * 3, generator=numbers(7))
    return edge, noise, FILTER(noise)


def search_planted(name, seed, side):
    """Return p after 400 steps of Adam."""
    edge, noise, target = planted(side)
    sampler, generator = SAMPLERS[name](PLANTED), numbers(seed)
    alpha = torch.zeros(3)
    optimizer = torch.optim.Adam([alpha], lr=0.05, betas=(0.5, 0.999))
    for step in range(400):
        draw = sampler.draw(alpha, generator, step // 4)
        gates = draw.gates.clone().requires_grad_()
        run = Choice(draw.drawn.tolist(), draw.watched.tolist(), gates)
        loss = (sum(edge(noise, run)) - target).square().mean()
        (g,) = torch.autograd.grad(loss, gates)
        alpha.grad = sampler.gradient(draw, g, loss.detach())
        optimizer.step()
    return alpha.softmax(-1)


def test_the_losses_of_the_planted_search_are_those_of_the_closed_forms():
    edge, noise, target = planted(24)
    losses = [
        float((sum(edge(noise, Choice([k]))) - target).square().mean()) for k in range(len(edge))
    ]
    assert losses == pytest.approx([1.0, 2 * (1 - 27**-0.5), 0.0], abs=0.05)


@pytest.mark.parametrize("name", ["two_path", "straight_through_all", "score_function"])
def test_a_planted_operation_is_found(name):
    assert search_planted(name, seed=0, side=6)[2] > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_path", "straight_through_all", "score_function"])
def test_a_planted_operation_is_found_by_every_seed(name):
    chances = [float(search_planted(name, seed, side=24)[2]) for seed in range(20)]
    assert min(chances) > 0.9
