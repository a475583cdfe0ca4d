"""Shares of a model: saved by any number of ranks, put together by name by any other."""

import json

import pytest
import torch
from torch import nn

from raykb.engine import checkpoint, shards
from raykb.engine.checkpoint import Damaged
from raykb.engine.optim import NamedOptimizer, sgd
from raykb.engine.seeding import rng_state
from raykb.runtime.storage import LocalStorage

LAYERS = ["0", "1", "2", "3", "4"]


class Part(nn.Module):
    """Some layers under their names in the whole model."""

    def __init__(self, names):
        super().__init__()
        for name in names:
            layer = nn.BatchNorm1d(3) if name == "2" else nn.Linear(3, 3)
            nn.init.constant_(layer.weight, float(name))
            self.add_module(name, layer)


def share(names, step=4):
    """The state of a rank that has these layers; the weights' momentum is their number + 100."""
    part = Part(names)
    optimizer = sgd(part, lr=0.0)
    for name, layer in part.named_children():
        layer.weight.grad = torch.full_like(layer.weight, float(name) + 100)
    optimizer.step()
    parts = {
        "model": part.state_dict(),
        "optimizer": NamedOptimizer(optimizer, part.named_parameters()).state_dict(),
        "scheduler": {"last_epoch": step},
    }
    return {"step": step, "rng": rng_state(), "parts": parts}


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(tmp_path / "run")


def save(storage, states, step=4):
    parts = [
        checkpoint.write_part(storage, state, step=step, rank=rank, holds=shards.holds(state))
        for rank, state in enumerate(states)
    ]
    checkpoint.commit(storage, parts, step=step)
    return checkpoint.folder_of(step), parts


SPLITS = [[LAYERS], [LAYERS[:2], LAYERS[2:]], [LAYERS[:1], LAYERS[1:4], LAYERS[4:]]]


@pytest.mark.parametrize("written", SPLITS)
@pytest.mark.parametrize("wanted", SPLITS)
def test_what_any_split_wrote_any_other_split_reads(storage, written, wanted):
    folder, parts = save(storage, [share(names) for names in written])
    for names in wanted:
        part = Part(names)
        state = shards.read_share(storage, folder, parts, part.state_dict().keys())
        reference = share(names)
        assert state.keys() == {"step", "parts"}
        assert state["step"] == 4
        assert state["parts"]["scheduler"] == {"last_epoch": 4}
        assert state["parts"]["model"].keys() == part.state_dict().keys()
        for name, value in state["parts"]["optimizer"]["state"].items():
            assert torch.all(value["momentum_buffer"] == float(name[0]) + 100)
        assert state["parts"]["optimizer"]["state"].keys() == {f"{name}.weight" for name in names}
        assert state["parts"]["optimizer"]["groups"] == reference["parts"]["optimizer"]["groups"]


def test_a_rank_reads_only_the_parts_that_it_needs(storage):
    folder, parts = save(storage, [share(["0", "1"]), share(["2"]), share(["3", "4"])])
    for number in (0, 2):
        (storage.folder / folder / parts[number].name).write_bytes(b"damaged")
    state = shards.read_share(storage, folder, parts, Part(["2"]).state_dict().keys())
    assert torch.all(state["parts"]["model"]["2.weight"] == 2.0)
    with pytest.raises(Damaged, match=r"part-00002\.pt: is not what was written"):
        shards.read_share(storage, folder, parts, Part(["2", "3"]).state_dict().keys())
    with pytest.raises(Damaged, match=r"part-00000\.pt: is not what was written"):
        shards.whole_model(storage, folder)


def test_the_manifest_says_what_each_part_holds(storage):
    folder, _ = save(storage, [share(["0"]), {"step": 4, "rng": rng_state()}])
    record = json.loads(storage.read(f"{folder}/manifest.json"))
    assert [part["holds"] for part in record["parts"]] == [{"0.weight": 36, "0.bias": 12}, {}]
    assert [part.holds for part in checkpoint.manifest(storage, folder)] == [
        {"0.weight": 36, "0.bias": 12},
        {},
    ]


def test_the_random_state_is_that_of_the_own_part(storage):
    first, second = share(["0"]), {"step": 4, "rng": rng_state()}
    torch.rand(3)
    second["rng"] = rng_state()
    folder, parts = save(storage, [first, second])
    states = [shards.read_share(storage, folder, parts, ["0.bias"], own) for own in (0, 1)]
    assert torch.equal(states[0]["rng"]["torch"], first["rng"]["torch"])
    assert torch.equal(states[1]["rng"]["torch"], second["rng"]["torch"])
    assert states[1]["parts"]["model"].keys() == {"0.bias"}


def test_a_rank_without_tensors_gets_what_is_equal_everywhere(storage):
    folder, parts = save(storage, [{"step": 4, "rng": rng_state()}, share(["0"])])
    state = shards.read_share(storage, folder, parts, [])
    assert state["parts"]["scheduler"] == {"last_epoch": 4}
    assert state["parts"]["model"] == {}


def test_names_that_no_part_holds_are_listed():
    with pytest.raises(ValueError, match=r"step 4 does not hold 2\.running_mean, 7\.weight: it is"):
        shards.merge([share(["0", "1"])], ["7.weight", "0.bias", "2.running_mean"])


def test_the_whole_model_is_the_union_in_shares_or_not(storage):
    folder, _ = save(storage, [share(LAYERS[:2]), share(LAYERS[2:]), share([])])
    model = shards.whole_model(storage, folder)
    Part(LAYERS).load_state_dict(model)
    assert model["2.num_batches_tracked"] == 0
    whole = checkpoint.write_part(storage, share(LAYERS, 5), step=5)
    rest = checkpoint.write_part(storage, {"step": 5, "rng": rng_state()}, step=5, rank=1)
    checkpoint.commit(storage, [whole, rest], step=5)
    assert shards.whole_model(storage, checkpoint.folder_of(5)).keys() == model.keys()
    with pytest.raises(FileNotFoundError):
        shards.whole_model(storage, checkpoint.folder_of(6))
