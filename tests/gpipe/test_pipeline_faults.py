"""What a layer raises reaches the caller as it was raised, with its place."""

import contextlib
import datetime
import multiprocessing
import os
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gloo_pool import PRELOADED
from shared_pipelines import Rig, squares
from torch import nn

from raykb.engine.faults import notes
from raykb.gpipe.checkpointing import is_recomputing
from raykb.gpipe.grid import make_grid


def perish(pipe, function, arguments, rank, size, store):
    """Run a function in a process group, and end at once: peers that wait for it notice."""
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo",
        init_method=Path(store).as_uri(),
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=30),
    )
    pipe.send(function(*arguments))
    os._exit(0)


@pytest.fixture(scope="module")
def perishing():
    """Return what runs a function in processes of its own, which the pool's would not survive."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)  # the process that the pool's are forked from

    def run(function, *arguments, size, folder):
        pipes, processes = [], []
        for rank in range(size):
            here, there = context.Pipe()
            place = (there, function, arguments, rank, size, f"{folder}/store")
            processes.append(context.Process(target=perish, args=place, daemon=True))
            processes[-1].start()
            there.close()
            pipes.append(here)
        found = {}
        while len(found) < size:
            ready = wait([pipe for pipe in pipes if pipe not in found], timeout=60)
            if not ready:
                break
            for pipe in ready:
                with contextlib.suppress(EOFError):
                    found[pipe] = pipe.recv()
                found.setdefault(pipe, "died")
        for process in processes:
            process.kill()
            process.join()
        return [found.get(pipe, "hung") for pipe in pipes]

    return run


class Refusal(Exception):
    """Cannot be made again from its text alone."""

    def __init__(self, code, *, reason):
        super().__init__(f"{reason} ({code})")
        self.code = code


def refuse():
    try:
        raise KeyError("the first")
    except KeyError as error:
        raise Refusal(7, reason="no more") from error


class Scale(nn.Module):
    """Scale all but the first column, which numbers the rows."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x):
        return torch.cat([x[:, :1], x[:, 1:] * self.weight], dim=1)


class RefuseBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        refuse()


class Trap(Scale):
    """Refuse rows 4 and 5, the third micro-batch."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def forward(self, x):
        x = super().forward(x)
        if x.is_meta or x[0, 0] != 4:
            return x
        if self.way == "forward" or (self.way == "recomputation" and is_recomputing()):
            refuse()
        return RefuseBackward.apply(x) if self.way == "backward" else x


def loss_with_a_trap(output, target, step):
    if output[0, 0] == 4:
        refuse()
    return squares(output, target, step)


def caught(stages, at, way, options):
    """Return what a step raised here."""
    layers = [(str(i), Trap(way) if i == at else Scale()) for i in range(stages)]
    loss = loss_with_a_trap if way == "loss" else squares
    own = Rig(layers, make_grid(stages), loss=loss, **options)
    x = torch.arange(8.0).view(-1, 1).expand(-1, 4).contiguous()
    try:
        own.step(x, torch.zeros(8))
    except Refusal as error:
        return type(error).__name__, str(error), error.code, notes(error), repr(error.__cause__)
    except Exception as error:
        return type(error).__name__
    return None


@pytest.mark.parametrize(
    ("stages", "at", "way", "options"),
    [
        (3, 1, "forward", {"schedule": "gpipe"}),
        (3, 0, "backward", {"schedule": "gpipe", "checkpoint": "always"}),
        (3, 0, "backward", {"schedule": "1f1b", "checkpoint": "never"}),
        (2, 1, "backward", {"schedule": "gpipe_fifo"}),
        (2, 0, "recomputation", {"schedule": "1f1b", "checkpoint": "always"}),
        (3, 2, "forward", {"schedule": "1f1b"}),
        (2, 1, "loss", {"schedule": "gpipe"}),
        (2, 1, "loss", {"schedule": "1f1b"}),
        (3, 0, "backward", {"schedule": "zero_bubble", "checkpoint": "never"}),
        (3, 1, "backward", {"schedule": "zero_bubble", "checkpoint": "never"}),
        (1, 0, "forward", {}),
        (1, 0, "recomputation", {"checkpoint": "always"}),
    ],
)
def test_an_exception_arrives_with_its_type_and_its_place(
    perishing, tmp_path, stages, at, way, options
):
    found = perishing(caught, stages, at, way, options, size=stages, folder=tmp_path)
    said = {"recomputation": "backward"}.get(way, way)
    place = [f"stage {at}, micro-batch 2, {said}"]
    assert found[at] == ("Refusal", "no more (7)", 7, place, "KeyError('the first')")
    peers = {other for rank, other in enumerate(found) if rank != at}
    assert peers <= {"RuntimeError", "DistBackendError"}  # that of a lost connection


class Chosen(nn.Module):
    """As many rows as begin with a number above 1: the shape depends on the numbers."""

    def forward(self, x):
        return x[x[:, 0] > 1] if x.is_meta is False and bool(x.any()) else x


def changed_shape():
    layers = [("0", Scale()), ("1", Chosen()), ("2", Scale())]
    own = Rig(layers, make_grid(2), balance=[2, 1], micro_batches=2)
    try:
        own.step(torch.arange(16.0).view(4, 4), torch.zeros(4))
    except Exception as error:
        return type(error).__name__, str(error), notes(error)


def test_a_shape_that_depends_on_numbers_is_refused_before_it_is_sent(perishing, tmp_path):
    kind, text, place = perishing(changed_shape, size=2, folder=tmp_path)[0]
    assert kind == "ValueError"
    assert text.startswith("a tensor (1, 4) of torch.float32 leaves the stage, where (2, 4) of")
    assert "shapes may depend on the shape of the input alone" in text
    assert place == ["stage 0, micro-batch 0, forward"]


def unfit():
    layers = [("0", nn.Linear(4, 6)), ("1", nn.Linear(5, 3))]
    own = Rig(layers, make_grid(2))
    try:
        own.step(torch.zeros(8, 4), torch.zeros(8))
    except RuntimeError as error:
        return str(error), notes(error)


def test_layers_that_do_not_fit_are_named_on_every_rank(gloo):
    for text, (place,) in gloo.run(unfit, size=2):
        assert "shapes cannot be multiplied" in text
        assert place.startswith("stage 1, from layer '1' on, does not accept what it would be")
        assert "(2, 6) torch.float32" in place


def going_on():
    own = Rig([("0", Trap("forward")), ("1", nn.BatchNorm1d(4))], make_grid(1))
    x = torch.arange(8.0).view(-1, 1).expand(-1, 4).contiguous()
    with pytest.raises(Refusal):
        own.step(x, torch.zeros(8))
    clean = Rig([("0", Scale()), ("1", nn.BatchNorm1d(4))], own.grid)
    losses = [one.step(x + 100, torch.zeros(8)) for one in (own, clean)]
    return losses, own.module.state_dict(), clean.module.state_dict()


def test_one_process_goes_on_after_a_failure(gloo):
    ((losses, found, expected),) = gloo.run(going_on, size=1)
    assert losses[0] == losses[1]
    assert all(torch.equal(found[name], value) for name, value in expected.items())
