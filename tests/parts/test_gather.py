"""What was gathered over ranks is the whole batch, in values and in gradients under DDP."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from raykb.parts.gather import gather, ranks


def rows(count=6):
    return torch.randn(count, 3, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def coupled(outputs):
    """Return a loss that is no mean over rows."""
    return (outputs @ outputs.T).logsumexp(1).square().sum() / outputs.std()


def trained(size):
    """Return loss and gradients of this rank's share of the rows, under DDP."""
    own = rows()[dist.get_rank() * 6 // size :][: 6 // size]
    model = DistributedDataParallel(network())
    loss = coupled(gather(model(own)))
    loss.backward()
    return loss.item(), [p.grad for p in model.parameters()]


@pytest.mark.parametrize("size", [2, 3])
def test_a_loss_of_what_was_gathered_has_the_gradient_of_one_rank_with_all(gloo, size):
    model = network()
    loss = coupled(model(rows()))
    loss.backward()
    for value, gradients in gloo.run(trained, size, size=size):
        assert value == pytest.approx(loss.item(), rel=1e-6)
        for gradient, parameter in zip(gradients, model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-6)


def weighted():
    """Return a rank's own loss of all rows, and what its row gets of all of them."""
    rank = dist.get_rank()
    own = torch.tensor([[1.0 + rank, 2.0]], requires_grad=True)
    every = gather(own)
    (every * torch.tensor([[1.0], [10.0]]) * (rank + 1)).sum().backward()
    return every.detach(), own.grad


def test_a_row_gets_what_every_rank_wants_of_it(gloo):
    first, second = gloo.run(weighted, size=2)
    assert torch.equal(first[0], torch.tensor([[1.0, 2.0], [2.0, 2.0]]))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], torch.full((1, 2), 3.0))
    assert torch.equal(second[1], torch.full((1, 2), 30.0))


def odd_types():
    strided = torch.arange(4.0).reshape(2, 2).T + 10 * dist.get_rank()
    return gather(strided), gather(torch.tensor([dist.get_rank()])), ranks()


def test_whole_numbers_and_strided_tensors_are_gathered_too(gloo):
    for strided, numbers, count in gloo.run(odd_types, size=2):
        assert strided.tolist() == [[0, 2], [1, 3], [10, 12], [11, 13]]
        assert numbers.tolist() == [0, 1]
        assert count == 2


def test_one_rank_keeps_the_tensor_itself():
    own = rows()
    assert gather(own) is own
    assert ranks() == 1
