import functools
import itertools
import time

import numpy as np
import pytest
import torch
from torch import nn

from raykb.gpipe.balance import (
    balance_by_parameters,
    balance_by_size,
    balance_by_time,
    solve,
)
from raykb.parts.skip import pop, skippable, stash


def partitions(layers, stages):
    """Yield every way to give ``layers`` to non-empty ``stages``."""
    for cuts in itertools.combinations(range(1, layers), stages - 1):
        ends = [0, *cuts, layers]
        yield [b - a for a, b in itertools.pairwise(ends)]


def loads(costs, balance, speeds=None):
    ends = [0, *itertools.accumulate(balance)]
    speeds = speeds or [1.0] * len(balance)
    return [sum(costs[a:b]) / v for (a, b), v in zip(itertools.pairwise(ends), speeds, strict=True)]


# ---------------------------------------------------------------------- the optimal partition


@pytest.mark.parametrize("with_speeds", [False, True])
@pytest.mark.parametrize("whole_numbers", [False, True])
def test_the_slowest_stage_is_the_fastest_of_all_partitions(with_speeds, whole_numbers):
    draw = np.random.default_rng(0)
    for layers, stages in itertools.product(range(1, 10), range(1, 6)):
        if stages > layers:
            continue
        for _ in range(6):
            costs = draw.integers(0, 4, layers) if whole_numbers else draw.lognormal(0, 1.5, layers)
            costs = costs.tolist()
            speeds = draw.uniform(0.01, 2, stages).tolist() if with_speeds else None
            balance = solve(costs, stages, speeds)
            assert sum(balance) == layers
            assert min(balance) >= 1
            all_loads = [loads(costs, other, speeds) for other in partitions(layers, stages)]
            least = min(map(max, all_loads))
            found = loads(costs, balance, speeds)
            assert max(found) == pytest.approx(least, rel=1e-9)
            fair = [row for row in all_loads if max(row) <= least * (1 + 1e-9)]
            evenest = min(sum(load**2 for load in row) for row in fair)
            assert sum(load**2 for load in found) == pytest.approx(evenest, rel=1e-6)


@pytest.mark.parametrize(
    ("costs", "stages", "balance"),
    [
        ([1, 2, 3, 4, 5, 6], 2, [4, 2]),
        ([0, 0], 2, [1, 1]),
        ([1.0] * 15, 8, [2, 2, 2, 2, 2, 2, 2, 1]),
        ([1.0] * 11, 4, [3, 3, 3, 2]),
        ([0.0] * 10, 3, [4, 3, 3]),
        ([10, 1, 1, 1, 1, 1, 1], 3, [1, 3, 3]),
        ([0, 0, 0, 5, 0, 0, 0, 5, 0], 2, [5, 4]),
        ([7.0], 1, [1]),
    ],
)
def test_equal_optima_are_decided_as_a_person_would(costs, stages, balance):
    assert solve(costs, stages) == balance


def test_rounding_does_not_spoil_equal_costs():
    assert max(solve([0.1] * 14, 8)) == 2


def test_the_size_of_the_numbers_does_not_matter():
    for unit in (5e-324, 1e-300, 8e307):
        assert solve([unit] * 7, 3) in ([3, 2, 2], [2, 3, 2], [2, 2, 3])
        assert solve([unit] * 9, 2, [2 * unit, unit]) == [6, 3]


def test_costs_and_speeds_may_be_arrays():
    assert solve(np.ones(9), 2, np.array([2.0, 1.0])) == [6, 3]


def test_faster_devices_get_more_in_the_order_of_the_stages():
    assert solve([1.0] * 9, 2, [2.0, 1.0]) == [6, 3]
    assert solve([1.0] * 9, 2, [1.0, 2.0]) == [3, 6]
    assert solve([5.0, 5.0, 0.1], 2, [1.0, 0.1]) == [2, 1]


def test_two_thousand_layers_are_solved_in_seconds():
    costs = np.random.default_rng(0).lognormal(0, 1, 2133).tolist()
    begin = time.process_time()
    balance = solve(costs, 8)
    assert time.process_time() - begin < 10  # 0.3 s on the machine of README's figures
    assert max(loads(costs, balance)) < 1.02 * sum(costs) / 8


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (([1.0], 0), "partitions: 0, must be at least 1"),
        (([1.0], -1), "partitions: -1, must be at least 1"),
        (([1.0, 2.0], 3), "partitions: 3, must be at most the 2 layers there are"),
        (([1.0, -2.0], 1), "costs: -2.0 of layer 1, must be a number of at least 0"),
        (([float("nan"), 1.0], 1), "costs: nan of layer 0"),
        (([float("inf"), 1.0], 1), "costs: inf of layer 0"),
        (([1.0, 1.0], 2, [1.0]), "speeds: 1 given, must be one for each of 2 stages"),
        (([1.0, 1.0], 2, [1.0, 0.0]), "speeds: 0.0 of stage 1, must be a number above 0"),
    ],
)
def test_what_has_no_partition_is_refused(arguments, problem):
    with pytest.raises(ValueError, match=problem):
        solve(*arguments)


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(ValueError, match="costs") as caught:
        solve([-1.0], 2, [0.0])
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize("balance_by", [balance_by_time, balance_by_size])
@pytest.mark.parametrize("stages", [0, -1, 3])
def test_impossible_partitions_are_refused_before_anything_runs(balance_by, stages):
    ran = []
    model = nn.Sequential(nn.Identity(), nn.Identity())
    model[0].register_forward_hook(lambda *arguments: ran.append(True))
    with pytest.raises(ValueError, match=f"partitions: {stages}"):
        balance_by(stages, model, torch.zeros(1))
    assert not ran


# ---------------------------------------------------------------------- by time


class Sleep(nn.Module):
    """Spends its seconds on the way forward and again on the way back."""

    def __init__(self, spend, seconds):
        super().__init__()
        self.spend = functools.partial(spend, seconds)

    def forward(self, x):
        self.spend()
        result = x.clone()
        result.register_hook(lambda gradient: self.spend())
        return result


@pytest.fixture
def sleeping(spend):
    return nn.Sequential(*(Sleep(spend, seconds) for seconds in (1, 2, 3, 4, 5, 6)))


def test_sleeping_layers_are_balanced_by_their_time(sleeping):
    sample = torch.zeros(1, requires_grad=True)
    assert balance_by_time(2, sleeping, sample, timeout=0) == [4, 2]


def test_slower_devices_get_less_of_the_time(sleeping):
    sample = torch.zeros(1, requires_grad=True)
    assert balance_by_time(2, sleeping, sample, timeout=0, speeds=[1, 4]) == [2, 4]


def test_a_model_on_the_meta_device_is_balanced_by_time_layer_by_layer(spend):
    made = []

    def materialise(layer, name):
        made.append(name)
        return Sleep(spend, {"0": 1, "1": 1, "2": 4}[name])

    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))
    sample = torch.zeros(1, requires_grad=True)
    assert balance_by_time(2, model, sample, timeout=0, device="cpu", materialise=materialise) == [
        2,
        1,
    ]
    assert made == ["0", "1", "2"]


# ---------------------------------------------------------------------- by size


class Expand(nn.Module):
    """Keeps as many tensors of the size of its input as it is told."""

    def __init__(self, times):
        super().__init__()
        self.times = times

    def forward(self, x):
        for _ in range(self.times):
            x = torch.tanh(x)  # keeps what it returns
        return x


def test_activations_are_balanced():
    sample = torch.zeros(1, 100, requires_grad=True)
    layers = [Expand(times) for times in (1, 2, 3, 4, 5, 6)]
    assert balance_by_size(2, nn.Sequential(*layers), sample) == [4, 2]
    assert balance_by_size(2, nn.Sequential(*reversed(layers)), sample) == [2, 4]


def test_parameters_are_balanced():
    class Affine(nn.Module):
        def __init__(self, times):
            super().__init__()
            self.weights = nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(times))

        def forward(self, x):
            return x + sum(self.weights)

    layers = [Affine(times) for times in (1, 2, 3, 4, 5, 6)]
    for balance, order in (([4, 2], layers), ([2, 4], layers[::-1])):
        model = nn.Sequential(*order)
        assert balance_by_size(2, model, torch.zeros(1), param_scale=100) == balance
        assert balance_by_parameters(2, model) == balance


def test_the_scale_of_the_parameters_moves_the_cut():
    model = nn.Sequential(*(Expand(1) for _ in range(8)), nn.Linear(30, 30, bias=False))
    sample = torch.zeros(10, 30, requires_grad=True)
    assert balance_by_size(2, model, sample, param_scale=0) == [4, 5]
    assert balance_by_size(2, model, sample, param_scale=100) == [8, 1]


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_tensors_that_a_layer_makes_are_counted_in_blocks_of_512_bytes(device):
    class Tradeoff(nn.Module):
        def __init__(self, width, times):
            super().__init__()
            self.unused = nn.Linear(width, width)
            self.times = times

        def forward(self, x):
            for _ in range(self.times):
                x = x + torch.rand_like(x, requires_grad=True)  # kept, though no sum saves it
            return x

    model = nn.Sequential(*(Tradeoff(width, 7 - width) for width in (1, 2, 3, 4, 5, 6)))
    for scale, balance in ((0, [2, 4]), (100, [4, 2])):
        sample = torch.rand(1, requires_grad=True)
        assert balance_by_size(2, model, sample, param_scale=scale, device=device) == balance


def test_a_micro_batch_is_measured_as_chunk_cuts_it():
    model = nn.Sequential(*(Expand(1) for _ in range(8)), nn.Linear(30, 30, bias=False))
    sample = torch.zeros(80, 30, requires_grad=True)
    assert balance_by_size(2, model, sample, chunks=1, param_scale=4) == [5, 4]
    assert balance_by_size(2, model, sample, chunks=80, param_scale=4) == [8, 1]
    with pytest.raises(ValueError, match="chunks: 0, must be at least 1"):
        balance_by_size(2, model, sample, chunks=0)


def test_sizes_need_no_memory_and_equal_those_of_real_tensors():
    def build():
        return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 8), Expand(3))

    with torch.device("meta"):
        huge = build()
    sample = torch.zeros(6, 8)
    for chunks in (1, 3):
        balances = [
            balance_by_size(2, build(), sample, chunks=chunks, device="cpu"),
            balance_by_size(2, build(), sample, chunks=chunks),
            balance_by_size(2, huge, sample.to("meta"), chunks=chunks),
        ]
        assert balances[0] == balances[1] == balances[2]


# ---------------------------------------------------------------------- both


class Twice(nn.Module):
    def forward(self, x):
        return x, x.detach() * 2


class Add(nn.Module):
    def forward(self, pair):
        return pair[0] + pair[1]


@skippable(stash=["left"])
class Leave(nn.Module):
    def forward(self, x):
        yield stash("left", x * 2)
        return torch.tanh(x)


@skippable(pop=["left"])
class Take(nn.Module):
    def forward(self, x):
        left = yield pop("left")
        return x + left


def by_time(partitions, model, sample):
    return balance_by_time(partitions, model, sample, timeout=0.01)


@pytest.mark.parametrize("balance_by", [by_time, balance_by_size])
@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(Twice(), Add(), nn.Linear(3, 3)),
        nn.Sequential(Leave(), nn.Linear(3, 3), Take()),
        nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True), nn.Dropout(0.5)),
        nn.Sequential(nn.Conv1d(2, 2, 1), nn.Flatten(), nn.Linear(6, 6)),
    ],
    ids=["tuples", "skips", "in place", "shapes that change"],
)
def test_all_kinds_of_layers_are_balanced(balance_by, model):
    balance = balance_by(2, model, torch.zeros(4, 2, 3))
    assert sum(balance) == 3


@pytest.mark.parametrize("balance_by", [by_time, balance_by_size])
def test_a_tuple_may_be_the_sample(balance_by):
    model = nn.Sequential(Add(), nn.Linear(3, 3))
    assert balance_by(2, model, (torch.zeros(2, 3), torch.ones(2, 3))) == [1, 1]


@pytest.mark.parametrize("balance_by", [by_time, balance_by_size])
def test_a_parameter_with_a_gradient_is_refused(balance_by):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.sum().backward()
    with pytest.raises(ValueError, match="layer '1': some parameter already has gradient"):
        balance_by(1, model, torch.zeros(2, 3))


def test_parameters_are_counted_on_the_meta_device():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(10**5, 10**5), nn.ReLU(), nn.Linear(10**5, 10**5))
    assert balance_by_parameters(2, model) == [2, 1]
    assert balance_by_parameters(2, list(model.named_children())) == [2, 1]
