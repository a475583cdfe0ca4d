"""Stages in processes against the unpartitioned model: values, gradients, statistics, failures."""

import itertools

import pytest
import torch
from grids import covering
from torch import nn

from raykb.engine.seeding import stream_seed
from raykb.gpipe.feed import Feed
from raykb.gpipe.grid import make_grid
from raykb.gpipe.materialise import materialise
from raykb.gpipe.partition import Partition, flatten
from raykb.gpipe.pipeline import Pipeline
from raykb.parts.skip import pop, skippable, stash


@skippable(stash=["early", "nothing"])
class Early(nn.Module):
    def forward(self, x):
        yield stash("early", x * 2)
        yield stash("nothing", None)
        return x


@skippable(stash=["late"])
class Late(nn.Module):
    def forward(self, x):
        yield stash("late", x + 1)
        return x


@skippable(pop=["early", "late", "nothing"])
class Join(nn.Module):
    def forward(self, x):
        late = yield pop("late")
        early = yield pop("early")
        nothing = yield pop("nothing")
        assert nothing is None
        return x + early * late


class Pair(nn.Module):
    """Pass a float and an integer tensor on."""

    def forward(self, x):
        return x, torch.arange(x.shape[1]).expand(len(x), -1)


class Unpair(nn.Module):
    def forward(self, pair):
        x, index = pair
        assert index.dtype == torch.int64
        return x + 0.1 * index


def network(dtype=torch.float32):
    with torch.device("meta"):
        return nn.Sequential(
            nn.Linear(4, 6),
            Early(),
            nn.Sequential(nn.Tanh(), nn.Linear(6, 6)),
            Pair(),
            Unpair(),
            Late(),
            nn.Linear(6, 6),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            Join(),
            nn.Linear(6, 3),
        ).to(dtype)


def loss(output, target, step):
    return {"loss": nn.functional.cross_entropy(output, target), "largest": output.max()}


def data(rows, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 4, generator=generator, dtype=dtype)
    return x, torch.randint(3, (rows,), generator=generator)


def balance_of(layers, parts):
    return [len(part) for part in torch.arange(layers).tensor_split(parts)]


def stepped(stages, per_worker, cases):
    """Run each case in this process; return its loss, its gradients and its predictions."""
    grid = make_grid(stages // per_worker)
    found = []
    for schedule, checkpoint, skip, rows, dtype in cases:
        layers = flatten(network(dtype))
        pipeline = Pipeline(
            layers,
            balance_of(len(layers), stages),
            grid=grid,
            loss=loss,
            micro_batches=4,
            schedule=schedule,
            checkpoint=checkpoint,
            skip=skip,
            seed=5,
        )
        feed = Feed(grid, pipeline.last_worker)
        x, y = data(rows, dtype)
        fed = feed((x, y, rows) if grid.worker == 0 else None)
        terms = pipeline.step(fed, 3)
        gradients = {name: p.grad for name, p in pipeline.module.named_parameters()}
        predicted = pipeline.predict(feed((x, y, rows) if grid.worker == 0 else None))
        found.append(({k: float(v) for k, v in terms.items()}, gradients, predicted))
    return found


def reference(rows, dtype):
    """Return loss, gradients and predictions of one part with one micro-batch after another."""
    part = materialise(Partition(flatten(network(dtype))), 5)
    x, y = data(rows, dtype)
    total = 0.0
    for i, (xs, ys) in enumerate(zip(x.chunk(4), y.chunk(4), strict=True)):
        output, _ = part(xs, {}, lambda name, i=i: stream_seed(5, "draw", 3, 0, i, name))
        share = nn.functional.cross_entropy(output, ys) * len(xs) / rows
        share.backward()
        total += float(share.detach())
    gradients = {name: p.grad for name, p in part.named_parameters()}
    part.eval()
    with torch.no_grad():
        return total, gradients, part(x, {})[0]


SHAPES = [(1, 1), (2, 1), (3, 1), (2, 2), (4, 2)]


def axes(per_worker):
    schedules = ["interleaved"] if per_worker == 2 else ["gpipe", "gpipe_fifo", "1f1b"]
    return schedules, ["never", "always", "except_last"], ["portal", "tuple"], [8, 7, 3, 1]


@pytest.mark.parametrize(("stages", "per_worker"), SHAPES)
def test_gradients_and_predictions_are_those_of_the_unpartitioned_model(gloo, stages, per_worker):
    cases = covering(*axes(per_worker), [torch.float32, torch.float64])
    check_gradients_and_predictions(gloo, stages, per_worker, cases)


def split_axes(per_worker):
    schedules = ["zero_bubble", "zbv"] if per_worker == 2 else ["zero_bubble"]
    return schedules, ["never"], ["portal", "tuple"], [8, 7, 3, 1], [torch.float32, torch.float64]


@pytest.mark.parametrize(("stages", "per_worker"), SHAPES[1:])
def test_so_they_are_where_the_backward_pass_is_split(gloo, stages, per_worker):
    cases = covering(*split_axes(per_worker))
    check_gradients_and_predictions(gloo, stages, per_worker, cases)


@pytest.mark.slow
@pytest.mark.parametrize(("stages", "per_worker"), SHAPES)
def test_so_they_are_in_every_mode_with_every_number_of_rows(gloo, stages, per_worker):
    cases = list(itertools.product(*axes(per_worker), [torch.float64]))
    check_gradients_and_predictions(gloo, stages, per_worker, cases)


def check_gradients_and_predictions(gloo, stages, per_worker, cases):
    by_rank = gloo.run(stepped, stages, per_worker, cases, size=stages // per_worker)
    for number, case in enumerate(cases):
        *_, rows, dtype = case
        tolerance = 1e-6 if dtype == torch.float32 else 1e-12
        total, gradients, predicted = reference(rows, dtype)
        found = {}
        for rank in by_rank:
            terms, own, output = rank[number]
            assert terms["loss"] == pytest.approx(total, abs=tolerance), case
            found |= own
            if output is not None:
                torch.testing.assert_close(output, predicted, atol=tolerance, rtol=tolerance)
        assert found.keys() == gradients.keys()
        for name, gradient in gradients.items():
            error = (found[name] - gradient).abs().max()
            assert error <= tolerance, (case, name, error)
