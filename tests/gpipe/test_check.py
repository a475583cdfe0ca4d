"""Everything that is wrong with a pipeline, in one list; and pipelines of the user's own stages."""

import pytest
import torch
from shared_pipelines import LeaveSpectrum, Rig, TakeSpectrum, largest_error, merged, reference
from torch import nn

from raykb.gpipe.check import boundary_problems, pipeline_problems
from raykb.gpipe.grid import make_grid
from raykb.gpipe.partition import Partition, flatten
from raykb.gpipe.pipeline import Pipeline
from raykb.gpipe.probe import Spec
from raykb.parts.skip import pop, skippable, stash

GOOD = {"stages": 2, "micro_batches": 4, "batch_size": 8, "schedule": "1f1b"}


def plain(count=4):
    return [(str(i), nn.Linear(3, 3)) for i in range(count)]


@skippable(stash=["left"])
class Leave(nn.Module):
    def forward(self, x):
        yield stash("left", x)
        return x


@skippable(pop=["right"])
class Take(nn.Module):
    def forward(self, x):
        right = yield pop("right")
        return x + right


@pytest.mark.parametrize("balance", [None, [2, 2], [1, 3]])
@pytest.mark.parametrize("schedule", ["gpipe", "gpipe_fifo", "1f1b"])
def test_a_good_pipeline_has_no_problems(balance, schedule):
    assert pipeline_problems(plain(), **(GOOD | {"schedule": schedule}), balance=balance) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"stages": 5, "micro_batches": 5}, "stages: 5, must not be above the 4 layers"),
        ({"stages": 0}, "stages: 0, must be at least 1"),
        ({"micro_batches": 1}, "micro_batches: 1, the schedule 1f1b needs at least as many"),
        ({"batch_size": 0}, "batch_size: 0, must be at least 1"),
        ({"schedule": "1b1f"}, "schedule: '1b1f', must be one of gpipe, gpipe_fifo, 1f1b"),
        ({"stages_per_worker": 2}, "stages_per_worker: 2, must be 1 with the schedule 1f1b"),
        ({"balance": [2, 1]}, "balance: [2, 1] sums to 3, must sum to the model's 4 layers"),
        ({"balance": [4, 0]}, "balance: [4, 0], all numbers of layers must be positive"),
        ({"balance": [1, 1, 2]}, "balance: [1, 1, 2] has 3 stages, must have 2"),
        ({"balance": [2.0, 2.0]}, "balance: [2.0, 2.0], all numbers of layers must be positive"),
    ],
)
def test_one_mistake_gives_one_problem(changes, problem):
    (found,) = pipeline_problems(plain(), **(GOOD | changes))
    assert found.startswith(problem)


def test_all_mistakes_are_told_at_once():
    tied = nn.Linear(3, 3)
    layers = [("a", tied), ("b", Leave()), ("b", Take()), ("c", tied)]
    options = {"stages": 3, "micro_batches": 2, "batch_size": 0, "schedule": "1f1b"}
    found = pipeline_problems(layers, **options, balance=[2, 2])
    said = (
        "micro_batches: 2",
        "batch_size: 0",
        "layers: name 'b' is given 2 times",
        "'b' declared 'right' as poppable but it was not stashed",
        "no module declared 'left' as poppable but stashed",
        "parameter a.weight = parameter c.weight: shared by stages [0, 1]",
        "parameter a.bias = parameter c.bias: shared by stages [0, 1]",
        "balance: [2, 2] has 2 stages, must have 3",
    )
    assert len(found) == len(said)
    for problem, start in zip(found, said, strict=True):
        assert problem.startswith(start)


def test_layers_that_share_must_be_kept_together_by_a_balance_that_is_given():
    tied = nn.Linear(3, 3, bias=False)
    layers = [("a", tied), ("b", nn.ReLU()), ("c", tied)]
    options = {"micro_batches": 2, "batch_size": 2, "schedule": "gpipe"}
    for balance in (None, [2, 2]):
        shared = pipeline_problems(layers, **options, stages=2, balance=balance)[-1]
        assert shared.startswith(
            "parameter a.weight = parameter c.weight: shared by several layers"
        )
    assert pipeline_problems(layers, **options, stages=1) == []
    assert pipeline_problems([*layers, ("d", nn.ReLU())], **options, stages=2, balance=[3, 1]) == []


def test_no_boundary_is_tried_where_skips_do_not_match():
    with torch.device("meta"):
        layers = [("0", nn.Linear(3, 3)), ("1", Take())]
    assert boundary_problems(layers, [1, 1], [Spec((2, 3), torch.float32)]) == []


class Number(nn.Module):
    def forward(self, x):
        return x.shape[0]


class Picky(nn.Module):
    def forward(self, x):
        raise LookupError("not today")


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Number(), r"stage 0, from layer '0' on.*TypeError: layer '1' returned int; the last"),
        (Picky(), r"stage 0, .*\(2, 3\) torch.float32: LookupError: not today"),
        (nn.Linear(4, 4), "stage 0, .*RuntimeError: .*shapes cannot be multiplied"),
    ],
)
def test_what_a_layer_does_wrong_at_a_boundary_is_told(layer, said):
    with torch.device("meta"):
        layers = [("0", nn.Linear(3, 3)), ("1", layer.to("meta")), ("2", nn.Linear(3, 3))]
    sample = [Spec((2, 3), torch.float32)]
    (found,) = boundary_problems(layers, [2, 1], sample)
    with pytest.raises(ValueError, match=said):
        raise ValueError(found)
    fine = [("0", layers[0][1]), ("2", layers[2][1])]
    assert boundary_problems(fine, [1, 1], sample) == []


class Complex(nn.Module):
    def forward(self, x):
        return torch.fft.rfft(x)


def test_a_type_that_cannot_cross_a_boundary_is_told():
    with torch.device("meta"):
        layers = [("0", Complex()), ("1", nn.Linear(2, 2, dtype=torch.complex64))]
    sample = [Spec((2, 3), torch.float32)]
    (found,) = boundary_problems(layers, [1, 1], sample)
    assert found.startswith("a tensor of torch.complex64 reaches a boundary of stages")
    assert boundary_problems(layers, [2], sample) == []


def test_a_complex_skip_can_go_through_a_portal_alone():
    layers = [("0", LeaveSpectrum()), ("1", nn.Tanh()), ("2", TakeSpectrum())]
    sample = [Spec((2, 4), torch.float32)]
    assert boundary_problems(layers, [1, 1, 1], sample) == []
    (found,) = boundary_problems(layers, [1, 1, 1], sample, skip="tuple")
    assert found.startswith("a tensor of torch.complex64")


@skippable(pop=["left"])
class TakeLeft(nn.Module):
    def forward(self, x):
        left = yield pop("left")
        return left + x


@skippable(stash=["left"])
class LeaveAnother(nn.Module):
    def forward(self, x):
        yield stash("left", x.exp())
        return x


@skippable(pop=["left"])
class Overwrite(nn.Module):
    def forward(self, x):
        left = yield pop("left")
        return left.mul_(2) + x


def test_a_skip_that_is_nothing_else_may_be_changed_by_who_pops_it():
    with torch.device("meta"):
        layers = flatten(nn.Sequential(nn.Linear(3, 3), LeaveAnother(), nn.Tanh(), Overwrite()))
    assert boundary_problems(layers, [2, 1, 1], [Spec((2, 3), torch.float32)]) == []


@pytest.mark.parametrize("balance", [[2, 3], [2, 1, 2]])
def test_a_skip_that_a_later_stage_would_change_in_place_is_told(balance):
    with torch.device("meta"):
        layers = flatten(
            nn.Sequential(
                nn.Linear(3, 3), Leave(), nn.ReLU(inplace=True), nn.Linear(3, 3), TakeLeft()
            )
        )
    sample = [Spec((2, 3), torch.float32)]
    (found,) = boundary_problems(layers, balance, sample)
    assert found.startswith("stage 1 changes skip 'left' in place after an earlier one stashed it")
    assert boundary_problems(layers, [3, 2], sample) == []
    layers[2] = ("2", nn.ReLU())
    assert boundary_problems(layers, balance, sample) == []


def refused(options):
    problems = []
    for changes in options:
        arguments = {
            "layers": plain(),
            "balance": [2, 2],
            "loss": None,
            "micro_batches": 4,
        } | changes
        layers, balance = arguments.pop("layers"), arguments.pop("balance")
        try:
            Pipeline(layers, balance, grid=make_grid(2), **arguments)
        except ValueError as error:
            problems.append(str(error).splitlines())
    return problems


def test_a_pipeline_refuses_what_it_cannot_run(gloo):
    cases = [
        {"checkpoint": "sometimes", "skip": "portals"},
        {"balance": [2, 1, 1]},
        {"balance": [2, 3], "schedule": "1f1b", "micro_batches": 1},
        {"schedule": "none"},
    ]
    for found in gloo.run(refused, cases, size=2):
        assert [len(problems) for problems in found] == [2, 1, 2, 1]
        assert found[0] == [
            "checkpoint: 'sometimes', must be one of always, except_last, never",
            "skip: 'portals', must be one of portal, tuple",
        ]
        assert found[1] == [
            "balance: 3 stages, must be a multiple of the 2 workers of the grid",
        ]


class Half(nn.Module):
    """A stage as a user writes it: no sequential, numbered parameters, real."""

    def __init__(self, inputs, outputs):
        super().__init__()
        torch.manual_seed(inputs + outputs)
        self.mix = nn.Linear(inputs, outputs)
        self.gain = nn.Parameter(torch.ones(outputs))

    def forward(self, x):
        return self.mix(x).tanh() * self.gain


def halves():
    return [(str(i), module) for i, module in enumerate([Half(3, 5), Half(5, 2)])]


def batch():
    return torch.linspace(-1, 1, 21).view(7, 3), torch.linspace(0, 1, 7)


def users_stages():
    own = Rig(halves(), make_grid(2), balance=[1, 1])
    return own.step(*batch()), own.gradients(), list(own.module.state_dict())


def test_stages_may_be_modules_of_the_user(gloo):
    ranks = gloo.run(users_stages, size=2)
    loss, gradients = reference(Partition(halves()), *batch())
    assert [rank[0] for rank in ranks] == [pytest.approx(loss, rel=1e-6)] * 2
    assert largest_error(merged(rank[1] for rank in ranks), gradients)[0] <= 1e-6
    plain_model = nn.Sequential(*(module for _, module in halves()))
    assert [name for rank in ranks for name in rank[2]] == list(plain_model.state_dict())
    assert [name for name, _ in flatten(plain_model)] == ["0", "1"]
