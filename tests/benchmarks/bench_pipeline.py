"""A step of raykb's pipeline beside its rivals: one process, torch's bare pipelining, torchgpipe.

python tests/benchmarks/bench_pipeline.py --model linear --micro-batches 8

Two processes of one thread each, on two cores, run the variants in turn, with a barrier before and
after each step. One process runs the same micro-batches, one after the other. raykb's step is what
a user's is: the batch is handed out by a Feed, and every process gets the loss. The bare library is
told its shapes, and each of its processes has what it needs of the batch. Nothing is recomputed.
torchgpipe (``pip install 'raykb[bench]'``) runs in one process, where the stages on a CPU share one
thread.

Columns: milliseconds of a step, the least and (the median) of the repeats; of the least: samples a
second, speed-up over one process, throughput as a share of the bare library's (in brackets the
median of that share over the turns, which a busy machine moves less); and the runtime efficiency of
raykb's steps, best and (median): the makespan that the schedule would have with the stage times of
the very step and free messages, over the step from barrier to barrier.

What two processes can reach on this machine is in the row "both halves at once": each computes its
own stage on all micro-batches, no messages, no bubble. The bubble leaves m / (m + 1) of it, and
3 m / (3 m + 1) where the backward pass is split (zero_bubble). With zbv each process has two of
four stages, cut by time or each given half in two: 6 m / (6 m + 1).
"""

import argparse
import copy
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from ranks import Variant, both, interleaved, launch, machine
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleLoopedBFS,
    ScheduleZBVZeroBubble,
)
from torch.nn import functional as F

from raykb.gpipe.balance import balance_by_time
from raykb.gpipe.feed import Feed
from raykb.gpipe.grid import Grid, make_grid
from raykb.gpipe.partition import Partition, cut, flatten
from raykb.gpipe.pipeline import Pipeline
from raykb.gpipe.schedule import bubble_utilisation, stages_of
from raykb.gpipe.trace import efficiency
from raykb.models.resnet import small_resnet_sequential
from raykb.report.tables import markdown

try:
    import torchgpipe
except ImportError:
    torchgpipe = None

SCHEDULES = ("gpipe", "1f1b", "zero_bubble", "zbv")
PER_WORKER = {"zbv": 2}  # stages of a process; of the others 1
CLASSES = 10
ONE, HALVES = "one process, the same micro-batches", "both halves at once, no messages"


def linear():
    """Return 16 layers of 512 features with their activations, and a sample's shape."""
    layers = [layer for _ in range(16) for layer in (nn.Linear(512, 512), nn.Tanh())]
    return nn.Sequential(*layers), (512,)


def resnet():
    """Return the small residual network for grey images of 28 pixels, and a sample's shape."""
    return small_resnet_sequential(CLASSES, 1), (1, 28, 28)


MODELS = {"linear": linear, "resnet": resnet}


class Piece(nn.Module):
    """A part of a model for the bare library: skips go along the wire."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x, *skips):
        value, left = self.part(x, dict(zip(self.part.popped, skips, strict=True)))
        return (value, *left.values()) if left else value


@dataclass
class Task:
    """What all variants work on, in this process.

    Attributes:
        balances: layers of each stage, by stages of a process.
    """

    grid: Grid
    layers: list[tuple[str, nn.Module]]
    balances: dict[int, list[int]]
    x: Tensor
    y: Tensor
    micro_batches: int

    @property
    def first(self) -> bool:
        return self.grid.rank == 0

    def whole(self) -> nn.Sequential:
        """Return a copy of the model."""
        return nn.Sequential(*(copy.deepcopy(layer) for _, layer in self.layers))

    def balance(self, schedule: str) -> list[int]:
        """Return the layers of each stage."""
        return self.balances[PER_WORKER.get(schedule, 1)]

    def crossing(self, schedule: str) -> bool:
        """Return whether a skip goes from one stage to another."""
        return any(part.popped for part in map(Partition, cut(self.layers, self.balance(schedule))))

    def pieces(self, schedule: str = "1f1b") -> list[nn.Module]:
        """Return the stages of a copy of the model."""
        layers = [(name, copy.deepcopy(layer)) for name, layer in self.layers]
        parts = [Partition(piece) for piece in cut(layers, self.balance(schedule))]
        if self.crossing(schedule):
            return [Piece(part) for part in parts]
        return [nn.Sequential(*part) for part in parts]

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Return inputs and targets of each micro-batch."""
        return zip(*(t.chunk(self.micro_batches) for t in (self.x, self.y)), strict=True)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return a micro-batch's share of the mean loss."""
        return F.cross_entropy(output, target) / self.micro_batches


def one_process(task: Task, threads: int = 1) -> Variant:
    """Return the loop over the micro-batches, on rank 0."""
    model = task.whole()

    def run():
        if task.first:
            for x, y in task.chunks():
                task.loss(model(x), y).backward()

    return Variant(run, model.zero_grad, threads)


def both_halves(task: Task) -> Variant:
    """Return the loops over the micro-batches of each rank's own half, side by side."""
    halves = task.pieces()
    half, between = halves[task.grid.rank], _between(task, halves)[1]

    def run():
        for x, y in task.chunks():
            if task.first:
                out = half(x)
                torch.autograd.backward(out, between)  # gradients of the right shapes
            else:
                inputs = [tensor.detach().requires_grad_() for tensor in between]
                task.loss(half(*inputs), y).backward()

    return Variant(run, half.zero_grad)


def raykb(task: Task, schedule: str, deferred: bool) -> tuple[Pipeline, Variant]:
    """Return raykb's pipeline and its step."""
    pipeline = Pipeline(
        [(name, copy.deepcopy(layer)) for name, layer in task.layers],
        task.balance(schedule),
        grid=task.grid,
        loss=lambda output, target, step: {"loss": F.cross_entropy(output, target)},
        micro_batches=task.micro_batches,
        schedule=schedule,
        checkpoint="never",
        deferred_batch_norm=deferred,
    )
    feed = Feed(task.grid, pipeline.last_worker)

    def run():
        pipeline.step(feed((task.x, task.y, len(task.x)) if task.first else None), 0)

    return pipeline, Variant(run, pipeline.module.zero_grad)


def bare(task: Task, schedule: str) -> Variant:
    """Return torch's own pipelining of the same pieces by the same schedule."""
    pieces = task.pieces(schedule)
    own = stages_of(task.grid.rank, len(pieces), 2, schedule)
    between, last = _between(task, pieces), len(pieces) - 1
    stages = [
        PipelineStage(
            pieces[index],
            index,
            len(pieces),
            torch.device("cpu"),
            input_args=between[index],
            output_args=between[index + 1][0] if index == last else between[index + 1],
            group=task.grid.row,
        )
        for index in own
    ]
    options = {"n_microbatches": task.micro_batches, "loss_fn": task.loss, "scale_grads": False}
    if schedule == "1f1b":
        steps: Any = Schedule1F1B(*stages, **options)
    else:  # breadth first is the paper's order
        several = {
            "gpipe": ScheduleLoopedBFS,
            "zero_bubble": ScheduleInterleavedZeroBubble,
            "zbv": ScheduleZBVZeroBubble,
        }
        steps = several[schedule](stages, **options)
    given = (task.x,) if 0 in own else ()
    target = {"target": task.y} if last in own else {}
    kept = nn.ModuleList(pieces[index] for index in own)

    def run():
        steps.step(*given, **target, return_outputs=False)

    return Variant(run, kept.zero_grad)


def papers_library(task: Task, threads: int = 1) -> Variant:
    """Return torchgpipe's step, on rank 0."""
    model = torchgpipe.GPipe(
        task.whole(),
        task.balance("gpipe"),
        devices=["cpu", "cpu"],
        chunks=task.micro_batches,
        checkpoint="never",
    )

    def run():
        if task.first:
            F.cross_entropy(model(task.x), task.y).backward()

    return Variant(run, model.zero_grad, threads)


def _between(task, pieces):
    """Return what each piece is given for one micro-batch, and what the last one returns."""
    found = [(next(task.chunks())[0],)]
    for piece in pieces:
        with torch.no_grad():
            out = copy.deepcopy(piece)(*found[-1])
        found.append(tuple(t.requires_grad_() for t in (out if isinstance(out, tuple) else (out,))))
    return found


def measure(rank: int, args: argparse.Namespace) -> Any:
    """Return the balance, seconds by variant, and the runtime efficiencies of raykb's steps."""
    torch.manual_seed(0)
    model, shape = MODELS[args.model]()
    x, y = torch.randn(args.batch, *shape), torch.randint(CLASSES, (args.batch,))
    halves, small = args.balance, x[: args.batch // args.micro_batches]
    quarters = [part for count in halves or () for part in (count - count // 2, count // 2)]
    agreed = [
        {
            1: halves or balance_by_time(2, model, small),
            2: quarters or balance_by_time(4, model, small),
        }
    ]
    dist.broadcast_object_list(agreed)
    task = Task(make_grid(2), flatten(model), agreed[0], x, y, args.micro_batches)
    normed = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    variants = {
        ONE: one_process(task),
        "the same on all threads": one_process(task, args.threads),
        HALVES: both_halves(task),
    }
    pipelines = {}
    for schedule in SCHEDULES:
        name = f"raykb, {schedule}"
        pipelines[name], variants[name] = raykb(task, schedule, normed)
        if normed:
            variants[f"{name}, batch norm not deferred"] = raykb(task, schedule, False)[1]
        if len(task.balance(schedule)) == 2 or not task.crossing(schedule):  # by one wire alone
            variants[f"bare pipelining, {schedule}"] = bare(task, schedule)
    if torchgpipe is not None and not task.crossing("gpipe"):  # its skips need its own decorator
        variants["torchgpipe"] = papers_library(task)
        variants["torchgpipe on all threads"] = papers_library(task, args.threads)
    runtime: dict[str, list[float]] = {name: [] for name in pipelines}

    def after(name, took):
        if name in pipelines:
            spans = pipelines[name].spans()
            runtime[name].append(efficiency(spans, name.split(", ")[1], step_s=took)["runtime"])

    return task.balances, interleaved(variants, args.repeats, after), runtime


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Help)
    parser.add_argument("--model", choices=MODELS, default="linear")
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--batch", type=int, default=4096, help="a multiple of --micro-batches")
    parser.add_argument("--balance", type=int, nargs=2, help="layers of each stage; else by time")
    parser.add_argument("--threads", type=int, default=2, help="of those that may use all")
    parser.add_argument("--repeats", type=int, default=10)
    args = parser.parse_args()
    print(machine("torch", "torchgpipe"), flush=True)
    if torchgpipe is None:
        print("torchgpipe is left out; pip install --no-deps torchgpipe, or 'raykb[bench]'")
    balances, seconds, runtime = launch(measure, 2, args)
    least = {name: min(times) for name, times in seconds.items()}
    rows = []
    for name, times in seconds.items():
        share = ""
        bare_name = name.replace("raykb", "bare pipelining").partition(", batch norm")[0]
        if name.startswith("raykb") and bare_name in seconds:
            rival = seconds[bare_name]
            turns = statistics.median(b / a for a, b in zip(times, rival, strict=True))
            share = f"{min(rival) / least[name]:.3f} ({turns:.3f})"
        factors = runtime.get(name)
        best = f"{max(factors):.2f} ({statistics.median(factors):.2f})" if factors else ""
        speed = [f"{args.batch / least[name]:.0f}", f"{least[ONE] / least[name]:.2f}"]
        rows.append([name, both(times), *speed, share, best])
    m = args.micro_batches
    cuts = ", of zbv ".join(map(str, balances.values()))
    print(f"\n{args.model}, batch {args.batch} in {m} micro-batches, balance {cuts}\n")
    print(markdown(["variant", "ms", "samples/s", "speed-up", "of bare", "runtime"], rows))
    print()
    for schedule in SCHEDULES:
        share = bubble_utilisation(2, m, PER_WORKER.get(schedule, 1), schedule)
        bound = share * least[ONE] / least[HALVES]
        print(f"speed-up bound of {schedule}: {2 * share:.2f}, on this machine {bound:.2f}")
    if "torchgpipe" in least:
        ours = min(least[f"raykb, {schedule}"] for schedule in SCHEDULES)
        alone, free = least["torchgpipe"] / ours, least["torchgpipe on all threads"] / ours
        print(f"raykb over torchgpipe: {alone:.2f}; over torchgpipe on all threads: {free:.2f}")


class _Help(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


if __name__ == "__main__":
    main()
