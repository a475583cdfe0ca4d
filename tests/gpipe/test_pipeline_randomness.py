"""Random layers are a function of seed, step, micro-batch and name: of nothing else."""

import pytest
import torch
from shared_pipelines import (
    Rig,
    largest_error,
    merged,
    modes_of,
    on_meta,
    reference,
    whole,
)
from torch import nn

from raykb.gpipe.grid import make_grid


class Noise(nn.Module):
    """Draws by itself, in a way that nobody can know."""

    def forward(self, x):
        return x * torch.rand(x.shape, device=x.device, dtype=x.dtype)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.ModuleDict({"first": nn.Dropout(0.4), "second": Noise()})

    def forward(self, x):
        return self.inner["second"](self.inner["first"](x))


def noisy():
    return nn.Sequential(
        nn.Linear(4, 6),
        nn.Dropout(0.3),
        nn.Sequential(Noise(), nn.RReLU(), nn.Sequential(nn.Linear(6, 6), Nested())),
        nn.AlphaDropout(0.2),
        nn.Linear(6, 2),
    )


def data():
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    return x, torch.linspace(-1, 1, 7, dtype=torch.float64)


def layers_of():
    return [(name, layer.double()) for name, layer in on_meta(noisy)]


def drawn(workers, per_worker):
    grid = make_grid(workers)
    found = []
    for schedule, checkpoint in modes_of(workers, per_worker):
        own = Rig(
            layers_of(), grid, per_worker=per_worker, schedule=schedule, checkpoint=checkpoint
        )
        before = torch.get_rng_state()
        loss = own.step(*data(), 5)
        gradients = {name: g.clone() for name, g in own.gradients().items()}
        own.predict(*data())
        kept = torch.equal(torch.get_rng_state(), before)
        torch.rand(3)  # of no consequence
        again = own.step(*data(), 5)
        same = all(torch.equal(g, gradients[name]) for name, g in own.gradients().items())
        found.append((loss, gradients, kept, again == loss and same, own.step(*data(), 6)))
    return found


@pytest.mark.parametrize(("workers", "per_worker"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_every_pipeline_draws_the_same_numbers(gloo, workers, per_worker):
    by_rank = gloo.run(drawn, workers, per_worker, size=workers)
    part = whole(layers_of())
    loss, gradients = reference(part, *data(), number=5)
    gradients = {name: gradient.clone() for name, gradient in gradients.items()}
    other, _ = reference(part, *data(), number=6)
    assert abs(loss - other) > 1e-3
    for number, case in enumerate(modes_of(workers, per_worker)):
        for rank in by_rank:
            found, _, kept, same, next_step = rank[number]
            assert found == pytest.approx(loss, rel=1e-12), case
            assert next_step == pytest.approx(other, rel=1e-12), case
            assert kept, "the global generator is not where it was"
            assert same, "the same step gave other numbers"
        error, where = largest_error(merged(rank[number][1] for rank in by_rank), gradients)
        assert error <= 1e-12, (case, where)


def run_of_a_seed(seed):
    layers = [(name, layer.float()) for name, layer in on_meta(noisy)]
    own = Rig(layers, make_grid(2), seed=seed)
    optimizer = torch.optim.Adam(own.module.parameters())
    x, y = (tensor.float() for tensor in data())
    losses = []
    for number in range(4):
        losses.append(own.step(x, y, number))
        optimizer.step()
    return losses, own.module.state_dict()


def test_one_seed_is_one_run_bit_for_bit(gloo):
    first, second, other = (gloo.run(run_of_a_seed, seed, size=2) for seed in (1, 1, 2))
    for (losses, state), (others, expected) in zip(first, second, strict=True):
        assert losses == others
        assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert first[0][0] != other[0][0]
