"""What ranks tell each other arrives as it was sent, and nothing that arrives is unpickled."""

import pickle
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d

import raykb
from raykb.engine.loop import Shard, Training, Worker
from raykb.engine.messages import gathered, told, told_bytes
from raykb.engine.optim import NamedOptimizer
from raykb.gpipe.feed import Feed
from raykb.gpipe.grid import make_grid
from raykb.runtime.saving import Checkpoints
from raykb.runtime.storage import LocalStorage

VALUES = [None, "", "Müller", 3, -1.5e-300, True, [], [1, [2, "a"]], {"a": {"b": [None]}}]
BYTES = [b"", b"\x00", bytes(range(256)) * 999]


def exchanged(values, data):
    """Return what each rank hears of values of its own and of those of the last rank."""
    rank, last = dist.get_rank(), dist.get_world_size() - 1
    return (
        [gathered([rank, value] if rank else value) for value in values],
        [told(value if rank == last else object(), source=last) for value in values],
        [told_bytes(each if rank == last else b"else", source=last) for each in data],
    )


@pytest.mark.parametrize("size", [1, 3])
def test_values_and_bytes_arrive_as_they_were_sent(gloo, size):
    for found in gloo.run(exchanged, VALUES, BYTES, size=size):
        every = [[value, *([rank, value] for rank in range(1, size))] for value in VALUES]
        assert found == (every, VALUES, BYTES)


def of_a_row():
    """Return what the ranks of a group of some hear of each other."""
    rank = dist.get_rank()
    groups = [dist.new_group([0, 2]), dist.new_group([1])]
    own = groups[rank % 2]
    first = rank % 2
    return gathered(rank, group=own), told(f"of {rank}", source=first, group=own)


def test_a_group_speaks_by_itself(gloo):
    assert gloo.run(of_a_row, size=3) == [([0, 2], "of 0"), ([1], "of 1"), ([0, 2], "of 0")]


def refuse(*given, **named):
    raise AssertionError("an object was pickled for others, or what others sent was unpickled")


def without_pickles(folder):
    """Save and restore a training, whole and in shares, and feed a pipeline, on two ranks."""
    before = {n: getattr(distributed_c10d, n) for n in ("_object_to_tensor", "_tensor_to_object")}
    try:
        for name in before:
            setattr(distributed_c10d, name, refuse)
        with pytest.raises(AssertionError, match="an object was pickled"):
            dist.all_gather_object([None, None], 1)  # so that the refusal is known to work
        worker = Worker(rank=dist.get_rank(), size=dist.get_world_size())
        steps = [saved(worker, LocalStorage(Path(folder) / f"{shard}"), shard) for shard in (0, 1)]
        feed = Feed(make_grid(2), 1)
        images = torch.ones(3, 2, dtype=torch.bfloat16)
        batch = (images, (torch.arange(3), torch.zeros(3, 1))) if worker.rank == 0 else None
        fed = feed((*batch, 3) if batch else None)
        assert feed(None) is None  # what was sent has arrived
        aims = None if fed.targets is None else [aim.tolist() for aim in fed.targets]
        return steps, fed.specs[0].dtype, aims
    finally:
        for name, function in before.items():
            setattr(distributed_c10d, name, function)


def saved(worker, folder, shared):
    """Save a training and restore it; return the step that it goes on from."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    training = Training(
        step=lambda batch, number: {},
        update=lambda step: {},
        batches=lambda start: iter(()),
        steps=9,
        parts={"model": model, "optimizer": NamedOptimizer(optimizer, model.named_parameters())},
        shard=Shard() if shared else None,
    )
    checkpoints = Checkpoints(folder, worker, lambda step: None)
    checkpoints.save(training, training.state(4))
    return Checkpoints(folder, worker, lambda step: None).restore(training)


def test_trainings_and_pipelines_unpickle_nothing_that_other_ranks_send(gloo, tmp_path):
    first, last = gloo.run(without_pickles, str(tmp_path), size=2)
    assert first == ([4, 4], torch.bfloat16, None)
    assert last == ([4, 4], torch.bfloat16, [[0, 1, 2], [[0.0]] * 3])


def test_no_code_of_ours_asks_for_a_collective_of_objects():
    asks = re.compile(r"(?:_object|object_list)\(")
    package = Path(raykb.__file__).parent
    found = [path.name for path in package.rglob("*.py") if asks.search(path.read_text())]
    assert found == []
    assert asks.search("dist.all_gather_object(found, own)")
    assert asks.search("dist.broadcast_object_list(news, 0)")


def hears_a_pickle(data):
    """Have rank 0 send a pickle in the place of JSON."""
    if dist.get_rank() == 0:
        told_bytes(data)
        return ""
    with pytest.raises(ValueError, match=r"JSON|utf-8|decode"):
        told(None)
    return "refused"


def test_a_pickle_that_arrives_is_no_value(gloo):
    assert gloo.run(hears_a_pickle, pickle.dumps({"a": 1}), size=2) == ["", "refused"]
