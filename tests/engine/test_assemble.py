"""One training of its parts: what is averaged, evaluated, kept and closed."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from raykb.engine.assemble import assemble, evaluated, evaluating, filled
from raykb.engine.checkpoint import decode, encode
from raykb.engine.loop import Evaluated, Worker, fit
from raykb.engine.objective import CrossEntropy, LabelledBatch, Objective, Task
from raykb.engine.optim import cosine, sgd
from raykb.engine.recipe import Recipe

CPU = torch.device("cpu")


class Numbers:
    """A feed of drawn rows; it counts what is asked, and has more fields than anyone asks for."""

    def __init__(self):
        self.asked, self.closed = [], 0

    def batches(self, start, worker, stop=None):
        for step in range(start, stop):
            self.asked.append(step)
            numbers = torch.Generator().manual_seed(step)
            images = torch.randn(8, 4, generator=numbers)
            share = slice(worker.rank, None, worker.size)
            fields = {"images": images[share], "labels": (torch.arange(8) % 3)[share]}
            yield fields | {"ids": torch.arange(8)[share]}

    def figures(self):
        return {"stream/rows_per_s": 7.0}

    def close(self):
        self.closed += 1


def network():
    torch.manual_seed(0)
    first = nn.Linear(4, 8, bias=False)  # a bias before a norm would not move
    return nn.Sequential(first, nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def top1(network, device):
    assert not network.training
    images = torch.randn(50, 4, generator=torch.Generator().manual_seed(9))
    torch.rand(3)  # as one that draws what it looks at
    with torch.inference_mode():
        share = (network(images).argmax(1) == 0).double().mean().item()
    return Evaluated({"top1": share}, {"rows": 50})


def made(net=None, *, objective=None, feed=..., worker=None, evaluations=None, **recipe):
    net = net or network()
    recipe = Recipe(**{"steps": 6, "batch_size": 8, "log_every": 1} | recipe)
    lengths = recipe.lengths(8)
    return assemble(
        worker or Worker(),
        network=net,
        objective=objective or CrossEntropy(Task(net, lengths.steps, 3)),
        feed=Numbers() if feed is ... else feed,
        optimizer=lambda model: sgd(model, lr=0.1, weight_decay=1e-3),
        schedule=cosine(),
        recipe=recipe,
        lengths=lengths,
        evaluations={"": top1} if evaluations is None else evaluations,
    )


def run(training, start=0, **options):
    torch.manual_seed(1)  # of dropout
    rows = []
    fit(training, start=start, log=lambda step, row: rows.append(row), **options)
    return rows


def equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# ---------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_evaluations_on_the_way_are_logged_and_change_no_bit_of_the_training(decay):
    plain, watched = made(ema_decay=decay), made(ema_decay=decay, evaluate_every=2)
    rows, more = run(plain), run(watched)
    assert [row for row in more if "valid/top1" in row] == [row for row in more if len(row) == 1]
    assert sum("valid/top1" in row for row in more) == 3
    trained = [row for row in more if "train/loss" in row]
    assert [row["train/loss"] for row in trained] == [row["train/loss"] for row in rows]
    for name in plain.parts.keys() - {"optimizer", "scheduler"}:
        equal(plain.parts[name].state_dict(), watched.parts[name].state_dict())
    assert plain.evaluate("test") == watched.evaluate("test")


def test_evaluation_leaves_each_layers_mode_as_it_was():
    net = network()
    training = made(net, evaluations={"": top1, "again": top1})
    net[1].eval()  # as fine-tuning keeps the statistics of a batch norm
    modes = [module.training for module in net.modules()]
    training.evaluate("test")
    assert [module.training for module in net.modules()] == modes
    with pytest.raises(KeyError), evaluating(net):
        raise KeyError
    assert [module.training for module in net.modules()] == modes


def test_figures_have_the_name_of_their_evaluation_and_details_the_place_of_it():
    found = evaluated({"": top1, "knn": top1}, network().eval(), CPU, "test")
    assert found.figures.keys() == {"test/top1", "test/knn/top1"}
    assert found.details == {"rows": 50, "knn": {"rows": 50}}


def test_only_the_first_worker_evaluates():
    assert made(worker=Worker(rank=1)).evaluate("test") == Evaluated({})
    assert made().evaluate("test").figures.keys() == {"test/top1"}


# ---------------------------------------------------------------------- what is asked of the data


def test_an_objective_gets_the_fields_that_it_asks_for_and_no_others():
    objective = CrossEntropy(Task(network(), 1, 3))
    fields = {"ids": torch.arange(2), "labels": torch.ones(2), "images": torch.zeros(2, 4)}
    batch = filled(objective, fields)
    assert isinstance(batch, LabelledBatch)
    assert batch.images is fields["images"]
    assert batch.labels is fields["labels"]


def test_fields_that_the_data_do_not_give_are_refused_by_name():
    objective = CrossEntropy(Task(network(), 1, 3))
    with pytest.raises(
        ValueError,
        match="CrossEntropy learns from images, labels; the data give no labels, but ids, images",
    ):
        filled(objective, {"images": torch.zeros(2, 4), "ids": torch.arange(2)})


def test_the_feed_is_asked_from_the_start_to_the_last_step_tells_its_figures_and_is_closed():
    feed = Numbers()
    rows = run(made(feed=feed), start=2)
    assert feed.asked == [2, 3, 4, 5]
    assert all(row["train/stream/rows_per_s"] == 7.0 for row in rows)
    training = made(feed=(broken := Numbers()))
    training.step = None
    with pytest.raises(TypeError):
        run(training)
    del training
    assert broken.closed == 1


def test_workers_that_cannot_share_a_batch_are_refused():
    with pytest.raises(ValueError, match="batch_size: 8 does not divide by 3 workers"):
        made(worker=Worker(0, 3))


# ---------------------------------------------------------------------- what is trained and kept


class Following(Objective):
    """Has a head, which is trained, and counts the steps that it has followed."""

    class Images(NamedTuple):
        images: Tensor

    sees = Images

    def __init__(self, task):
        super().__init__(task)
        self.head = nn.Linear(3, 1)
        self.register_buffer("followed", torch.zeros(4, 8))

    def forward(self, network, batch, step):
        return {"loss": self.head(network(batch.images)).square().mean()}

    def after_step(self, network, step):
        self.followed.copy_(network[0].weight.detach().T)


def test_network_and_heads_are_trained_and_the_objective_follows_each_step():
    net = network()
    objective = Following(Task(net, 6))
    before = [parameter.clone() for parameter in (net[0].weight, objective.head.weight)]
    training = made(net, objective=objective)
    run(training)
    for old, new in zip(before, (net[0].weight, objective.head.weight), strict=True):
        assert not torch.equal(old, new)
    assert torch.equal(objective.followed, net[0].weight.T)  # after the optimizer, not before
    assert training.parts.keys() == {"model", "objective", "optimizer", "scheduler"}
    assert training.parts["model"] is net


def test_the_average_begins_at_the_initial_weights_and_keeps_the_statistics():
    training = made(ema_decay=0.7)
    trained, model = training.parts["trained"], training.parts["model"]
    average = {name: p.clone() for name, p in trained.named_parameters()}
    update = training.update

    def averaged(step):
        figures = update(step)
        for name, parameter in trained.named_parameters():
            average[name] = 0.7 * average[name] + 0.3 * parameter.detach()
        return figures

    training.update = averaged
    run(training)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, average[name])
        assert not torch.equal(parameter, trained.get_parameter(name))
        assert parameter.grad is None
        assert not parameter.requires_grad
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, trained.get_buffer(name))
    assert type(model) is type(trained)  # and no wrapper of it


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_a_resumed_training_ends_as_the_uninterrupted_one(decay):
    def whole():
        net = network()
        own = Following(Task(net, 6))
        return made(net, objective=own, ema_decay=decay, save_every=2, warmup=1, clip_norm=0.1)

    first, states = whole(), []
    run(first, save=lambda state: states.append(encode(state)))
    second = whole()
    with torch.no_grad():
        second.parts["objective"].head.weight.zero_()
    start, rows = second.restore(decode(states[0])), []
    assert start == 2
    fit(second, start=start, log=lambda step, row: rows.append(step))
    assert rows == [3, 4, 5, 6]
    for name in first.parts.keys() - {"optimizer", "scheduler"}:
        equal(first.parts[name].state_dict(), second.parts[name].state_dict())


def test_warmup_clipping_and_precision_of_the_recipe_reach_the_training():
    rates = [row["train/lr"] for row in run(made(warmup=2))]
    assert rates[:3] == pytest.approx([0.05, 0.1, 0.1 * cosine()(2 / 6)])
    (norms, none) = (run(training) for training in (made(clip_norm=0.01), made()))
    assert all("train/gradient_norm" in row for row in norms)
    assert not any("train/gradient_norm" in row for row in none)
    exact, half = made(), made(precision="bf16")
    assert run(exact)[-1]["train/loss"] != run(half)[-1]["train/loss"]


def test_intervals_of_the_recipe_are_those_of_the_training():
    training = made(steps=40, save_every=5, log_every=3, evaluate_every=7)
    assert (training.save_every, training.log_every, training.evaluate_every) == (5, 3, 7)
    assert training.steps == 40
