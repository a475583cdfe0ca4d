"""Batch norm over ranks is that of one rank with all rows: values, gradients, statistics."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raykb.parts.batch_norm import BatchNorm


def rows():
    return 3.0 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) + 1.0


def network(affine):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), BatchNorm(4, affine=affine), nn.Tanh(), nn.Linear(4, 2))


def trained(affine, rank=0, size=1):
    """Return values, gradients and buffers after two steps forward and back."""
    plain = network(affine)
    model = plain if size == 1 else DistributedDataParallel(plain)
    own = rows().chunk(size)[rank]
    for _ in range(2):
        values = model(own)
        values.pow(3).mean().backward()
    return values.detach(), [p.grad for p in plain.parameters()], list(plain.buffers())


def shared(affine, size):
    return trained(affine, dist.get_rank(), size)


@pytest.mark.parametrize(("affine", "size"), [(True, 2), (False, 3)])
def test_ranks_normalise_as_one_would(gloo, affine, size):
    values, gradients, buffers = trained(affine)
    parts = gloo.run(shared, affine, size, size=size)
    torch.testing.assert_close(torch.cat([part[0] for part in parts]), values)
    for _, own_gradients, own_buffers in parts:
        for own, wanted in zip(own_gradients, gradients, strict=True):
            torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)
        for own, wanted in zip(own_buffers, buffers, strict=True):
            torch.testing.assert_close(own, wanted)


def test_on_one_rank_it_is_torchs():
    own, theirs = BatchNorm(3), nn.BatchNorm1d(3)
    for mode in (True, False):
        assert torch.equal(own.train(mode)(rows()), theirs.train(mode)(rows()))
