"""What the workers of a training say of the checkpoint that they take up."""

import pytest
import torch
from torch import nn

from raykb.engine.loop import Shard, Training, Worker
from raykb.engine.optim import NamedOptimizer
from raykb.runtime.saving import Checkpoints
from raykb.runtime.storage import LocalStorage


def training(shard):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    named = NamedOptimizer(optimizer, model.named_parameters())
    return Training(
        step=lambda batch, number: {},
        update=lambda step: {},
        batches=lambda start: iter(()),
        steps=9,
        parts={"model": model, "optimizer": named},
        shard=shard,
    )


def opened(folder):
    return Checkpoints(LocalStorage(folder), Worker(), lambda step: None)


@pytest.mark.parametrize("shard", [None, Shard()], ids=["whole", "shares"])
def test_what_is_damaged_and_where_it_goes_on_is_noted(tmp_path, shard):
    one = training(shard)
    fresh = opened(tmp_path)
    assert (fresh.restore(one), fresh.notes) == (0, [])
    for step in (3, 6):
        fresh.save(one, one.state(step))
    for step, end in ((6, "goes on after step 3"), (3, "begins anew, for no checkpoint is left")):
        folder = f"step-{step:08d}"
        (tmp_path / folder / "part-00000.pt").write_bytes(b"cut")
        again = opened(tmp_path)
        assert again.restore(one) == step - 3
        damage = f"({folder}/part-00000.pt: is not what was written)"
        aside = f"set aside as {folder}.corrupt"
        assert again.notes == [f"checkpoint {folder} does not verify {damage}; {aside}", end]
