"""What tests of pipelines share: one that is fed by hand, and the model in one piece."""

import torch
from torch import nn

from raykb.engine.seeding import stream_seed
from raykb.gpipe.feed import Feed
from raykb.gpipe.grid import make_grid
from raykb.gpipe.materialise import materialise
from raykb.gpipe.partition import Partition, flatten
from raykb.gpipe.pipeline import Pipeline
from raykb.gpipe.probe import as_tuple
from raykb.parts.skip import pop, skippable, stash

SEED = 5
SCHEDULES = ("gpipe", "gpipe_fifo", "1f1b")
CHECKPOINTS = ("never", "always", "except_last")


def modes_of(workers, per_worker):
    """Return (schedule, checkpoint) of a pipeline: over one to three workers, every pair of them.

    Each number of workers has each schedule and each checkpoint; which meet goes round with it.
    """
    if per_worker > 1:
        return [("interleaved", checkpoint) for checkpoint in CHECKPOINTS]
    return [
        (schedule, CHECKPOINTS[(number + workers) % len(CHECKPOINTS)])
        for number, schedule in enumerate(SCHEDULES)
    ]


@skippable(stash=["spectrum"])
class LeaveSpectrum(nn.Module):
    """Stash complex numbers."""

    def forward(self, x):
        yield stash("spectrum", torch.fft.rfft(x))
        return x


@skippable(pop=["spectrum"])
class TakeSpectrum(nn.Module):
    def forward(self, x):
        spectrum = yield pop("spectrum")
        return x + torch.fft.irfft(spectrum.square(), n=x.shape[1])


def squares(output, target, step):
    """A loss for any output: the mean squared distance of each tensor from the target."""
    return {
        "loss": sum(
            (part - target.view(-1, *[1] * (part.dim() - 1))).square().mean()
            for part in as_tuple(output)
        )
    }


def even(layers, stages):
    return [len(part) for part in torch.arange(layers).tensor_split(stages)]


def on_meta(build, *arguments, **options):
    """Return the layers of a model without memory."""
    with torch.device("meta"):
        return flatten(build(*arguments, **options))


class Rig:
    """A pipeline of this process; every process gives it the same whole batches."""

    def __init__(self, layers, grid, *, per_worker=1, balance=None, **options):
        self.grid = grid
        stages = grid.workers * per_worker
        options = {"loss": squares, "micro_batches": 4, "seed": SEED} | options
        balance = balance or even(len(layers), stages)
        self.pipeline = Pipeline(layers, balance, grid=grid, **options)
        self.module = self.pipeline.module
        self._feed = Feed(grid, self.pipeline.last_worker)

    def fed(self, x, y):
        own = [self._share(value) for value in (x, y)]
        return self._feed((*own, len(as_tuple(x)[0])) if self.grid.worker == 0 else None)

    def _share(self, value):
        parts = [t.tensor_split(self.grid.replicas)[self.grid.replica] for t in as_tuple(value)]
        return parts[0] if isinstance(value, torch.Tensor) else tuple(parts)

    def step(self, x, y, number=0, **options):
        """Run a step from gradients of zero; return its loss."""
        self.module.zero_grad()
        return float(self.pipeline.step(self.fed(x, y), number, **options)["loss"])

    def predict(self, x, y):
        return self.pipeline.predict(self.fed(x, y))

    def gradients(self):
        return {name: p.grad for name, p in self.module.named_parameters()}


def rig(layers, workers=1, replicas=1, **options):
    return Rig(layers, make_grid(workers, replicas, timeout_s=60), **options)


def whole(layers):
    """Return the model in one piece with the weights that the stages have."""
    return materialise(Partition(layers), SEED)


def reference(part, x, y, *, number=0, micro_batches=4, loss=squares):
    """Run the micro-batches of a step one by one through the whole model; return the mean loss."""
    part.train().zero_grad()
    total, rows = 0.0, len(as_tuple(x)[0])
    cuts = [tensor.chunk(micro_batches) for tensor in as_tuple(x)]
    for i, ys in enumerate(y.chunk(micro_batches)):
        xs = tuple(cut[i] for cut in cuts)

        def seed_of(name, i=i):
            return stream_seed(SEED, "draw", number, 0, i, name)

        output, _ = part(xs[0] if isinstance(x, torch.Tensor) else xs, {}, seed_of)
        share = loss(output, ys, number)["loss"] * (len(ys) / rows)
        share.backward()
        total += float(share.detach())
    return total, {name: p.grad for name, p in part.named_parameters()}


def merged(dictionaries):
    return {name: value for one in dictionaries for name, value in one.items()}


def largest_error(found, expected):
    """Return the largest difference of equal gradients of two models, and whose it is."""
    assert found.keys() == expected.keys()
    errors = {name: float((found[name] - expected[name]).abs().max()) for name in expected}
    return max((error, name) for name, error in errors.items())


def network(*modules):
    return nn.Sequential(*modules)
