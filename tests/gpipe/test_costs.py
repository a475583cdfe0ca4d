"""What is made of the costs of layers: the balance, also of fewer stages than were asked for."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from raykb.gpipe.costs import Costs, measure
from raykb.gpipe.memory import LayerSizes
from raykb.gpipe.schedule import worker_of
from raykb.report import stages
from raykb.runtime.stages import PipelineSettings


def costs(forward_s, parameters=None):
    sizes = [LayerSizes(str(i), p, 0) for i, p in enumerate(parameters or [0] * len(forward_s))]
    return Costs(list(forward_s), [0.0] * len(forward_s), sizes)


def test_a_balance_is_by_time_or_parameters_or_as_it_is_given():
    found = costs([3.0, 1.0, 1.0, 1.0], parameters=[1, 1, 1, 3])
    assert found.balance("time", 2, checkpoint="never") == [1, 3]
    assert found.balance("parameters", 2, checkpoint="never") == [3, 1]
    assert found.balance([2, 2], 2, checkpoint="never") == [2, 2]


@pytest.mark.parametrize(
    ("forward_s", "joined"),
    [([9.0, 1.0, 1.0, 1.0, 1.0], [3, 2]), ([1.0, 1.0, 1.0, 1.0, 9.0], [4, 1])],
)
def test_fewer_stages_are_cut_where_the_given_ones_were(forward_s, joined):
    assert costs(forward_s).balance([3, 1, 1], 2, checkpoint="never") == joined
    assert costs(forward_s).balance([3, 1, 1], 1, checkpoint="never") == [5]


@pytest.mark.parametrize(
    "layout", [{"stages": 1}, {"stages": 2, "stages_per_worker": 2, "schedule": "interleaved"}]
)
def test_a_worker_alone_is_predicted_as_it_runs_in_one_stage(layout):
    settings = PipelineSettings(**({"schedule": "gpipe", "micro_batches": 4} | layout))
    found = costs([1.0, 1.0, 2.0])
    assert settings.alone
    layout = settings.laid_out(found)
    assert (layout["balance"], layout["schedule"]) == ([3], "1f1b")
    (need,) = found.memory(state_tensors=0, **layout)
    assert need.total == 0
    ((first, *_),) = found.spans(**layout)
    assert (first.kind, first.stage) == ("F", 0)
    pair = PipelineSettings(stages=2, schedule="gpipe", balance="parameters")
    assert not pair.alone
    assert pair.laid_out(costs([1.0, 1.0], [1, 1]))["schedule"] == "gpipe"


def test_the_table_of_stages_tells_who_holds_each():
    told = costs([1.0, 2.0, 3.0, 4.0]).stages([1, 1, 1, 1])
    rows = stages(told, [worker_of(stage, 2, "zbv") for stage in range(4)], [8.0, 6.0]).splitlines()
    assert [row.split("|")[2].strip() for row in rows[-4:]] == ["0", "1", "1", "0"]
    assert [row.split("|")[7].strip() for row in rows[-4:]] == ["8.0", "6.0", "6.0", "8.0"]


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Split(nn.Module):
    def forward(self, x):
        return Pair(x, x.exp())


class Join(nn.Module):
    def forward(self, pair):
        return pair.first + pair.second


def test_layers_may_hand_on_named_tuples():
    layers = [("0", nn.Linear(4, 4)), ("1", Split()), ("2", Join())]
    found = measure(layers, torch.zeros(2, 4), seed=0, timeout=0.0)
    assert len(found.forward_s) == len(found.sizes) == 3
