"""The tables of torchgpipe's paper, by raykb's Pipeline: one process per device.

On one host, all its GPUs (or two CPU processes with small models, where there is none):

    python tests/benchmarks/bench_gpipe_tables.py

On several hosts, one process per GPU, here 2 x 4 of them:

    torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint HOST:29400 \\
        tests/benchmarks/bench_gpipe_tables.py --tables amoebanet-speed unet-speed

Paper: Kim et al., "torchgpipe", arXiv:2004.09910; its published benchmarks, on 8 Tesla P40 with
PyTorch 1.3, stand in the columns marked "paper". n devices, m micro-batches, fake data.

The paper changes the mini-batch with n and m, so that its speed-ups mix larger batches and
pipelining. Each row is therefore measured with the paper's batch and again with one ``--batch`` for
all rows; only the second speed-up is of pipelining alone. Speed-ups are over the first row that
ran, and over its own first row in the fixed batch. Rows of more devices than there are, are left
out; on one host a row that fails, as for lack of memory, says so and the next one runs.

Memory is the peak of what was allocated, per device (on CPU: the peak resident set of a process,
torch itself included); the paper's is the sum over the devices of what its allocator kept.
"""

import argparse
import os
import resource
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from ranks import machine
from torch import nn
from torch.nn import functional as F

from raykb.engine.memory import keep_freed_memory
from raykb.gpipe.feed import Feed
from raykb.gpipe.grid import make_grid
from raykb.gpipe.partition import flatten
from raykb.gpipe.pipeline import Pipeline
from raykb.models.amoebanet import amoebanet_d
from raykb.models.unet import unet
from raykb.report.tables import markdown

GIB = 2**30


@dataclass(frozen=True)
class Row:
    """One measurement; the paper's figures are ready text."""

    model: tuple[int, int]
    micro_batches: int
    batch: int
    balance: Sequence[int]
    checkpoint: str = "except_last"
    paper: Sequence[str] = ()


@dataclass(frozen=True)
class Table:
    """Rows of one network.

    Attributes:
        build: the network from its two sizes, on the meta device.
        size: side of its square images.
        dense: whether it predicts pixels rather than a class.
        optimizer: made from the parameters.
        speed: whether speed matters, and not memory.
        fixed_batch: by default.
        rows: as published.
    """

    title: str
    build: Callable[[int, int], nn.Sequential]
    size: int
    dense: bool
    optimizer: Callable[[Any], torch.optim.Optimizer]
    speed: bool
    fixed_batch: int
    rows: Sequence[Row]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def rmsprop(parameters):
    return torch.optim.RMSprop(parameters)


def _amoebanet_speed():
    model, even = (18, 256), (2, 2, 2, 3, 3, 4, 4, 4)
    return [
        Row(model, 1, 96, (7, 17), "always", ("26.7", "1.00")),
        Row(model, 4, 256, (9, 15), paper=("41.1", "1.54")),
        Row(model, 32, 1280, (9, 15), paper=("47.4", "1.77")),
        Row(model, 1, 160, (3, 4, 5, 12), "always", ("26.8", "1.00")),
        Row(model, 4, 360, (3, 6, 7, 8), paper=("44.5", "1.67")),
        Row(model, 32, 1152, (3, 6, 7, 8), paper=("72.4", "2.71")),
        Row(model, 1, 196, (2, 2, 2, 2, 2, 3, 4, 7), "always", ("24.9", "0.93")),
        Row(model, 4, 480, even, paper=("70.1", "2.62")),
        Row(model, 32, 1280, even, paper=("132.4", "4.95")),
    ]


def _unet_speed():
    model = (5, 64)
    return [
        Row(model, 1, 40, (241,), "never", ("28.5", "1.00")),
        Row(model, 2, 80, (241,), paper=("24.5", "0.86")),
        Row(model, 32, 512, (104, 137), paper=("35.5", "1.25")),
        Row(model, 16, 512, (30, 66, 84, 61), paper=("67.0", "2.35")),
        Row(model, 40, 640, (16, 27, 31, 44, 22, 57, 27, 17), paper=("88.5", "3.11")),
    ]


def _amoebanet_memory():
    return [
        Row((18, 208), 1, 128, (24,), "never", ("81.5M", "OOM")),
        Row((18, 416), 128, 128, (24,), paper=("319.0M", "4.5")),
        Row((18, 544), 128, 128, (16, 8), paper=("542.7M", "9.5")),
        Row((36, 544), 128, 128, (16, 12, 7, 7), paper=("1.06B", "18.7")),
        Row((72, 512), 128, 128, (23, 16, 11, 6, 6, 5, 5, 6), paper=("1.84B", "31.5")),
    ]


def _unet_memory():
    return [
        Row((6, 72), 1, 32, (285,), "never", ("362.2M", "20.3")),
        Row((11, 128), 32, 32, (505,), paper=("2.21B", "20.5")),
        Row((24, 128), 32, 32, (526, 551), paper=("4.99B", "43.4")),
        Row((24, 160), 32, 32, (472, 54, 36, 515), paper=("7.80B", "79.1")),
        Row((48, 160), 32, 32, (800, 140, 62, 36, 36, 36, 36, 987), paper=("15.82B", "154.1")),
    ]


TABLES = {
    "amoebanet-speed": Table(
        "AmoebaNet-D, speed", amoebanet_d, 224, False, sgd, True, 128, _amoebanet_speed()
    ),
    "unet-speed": Table("U-Net, speed", unet, 192, True, sgd, True, 40, _unet_speed()),
    "amoebanet-memory": Table(
        "AmoebaNet-D, memory", amoebanet_d, 224, False, rmsprop, False, 128, _amoebanet_memory()
    ),
    "unet-memory": Table("U-Net, memory", unet, 192, True, sgd, False, 32, _unet_memory()),
}


def reduced(table: Table) -> Table:
    """Return the table with small networks, images and batches, on two processes at most."""
    batch = 16
    if table.build is amoebanet_d:
        rows = [
            Row((3, 32), 1, batch, (9,), "never"),
            Row((3, 32), 1, batch, (4, 5), "always"),
            Row((3, 32), 4, 2 * batch, (4, 5)),
        ]
        return replace(table, size=64, fixed_batch=batch, rows=rows)
    rows = [
        Row((1, 8), 1, batch, (65,), "never"),
        Row((1, 8), 2, batch, (65,)),
        Row((1, 8), 4, 2 * batch, (33, 32)),
    ]
    return replace(table, size=64, fixed_batch=batch, rows=rows)


class Figures(NamedTuple):
    """What a row was measured to be: seconds of a step, bytes of each device, parameters."""

    step_s: float
    peaks: list[int]
    parameters: int


def measure(table: Table, row: Row, device: torch.device, args: argparse.Namespace) -> Figures:
    """Train some steps; called by every process of the process group."""
    grid = make_grid(len(row.balance), timeout_s=args.timeout_s)
    with torch.device("meta"):
        layers = flatten(table.build(*row.model))
    pipeline = Pipeline(
        layers,
        row.balance,
        grid=grid,
        loss=pixels if table.dense else classes,
        micro_batches=row.micro_batches,
        schedule=args.schedule,
        checkpoint=row.checkpoint,
        skip=args.skip,
        device=device,
        autocast=torch.bfloat16 if args.bf16 else None,
    )
    optimizer = table.optimizer(pipeline.module.parameters())
    feed, batch = Feed(grid, grid.workers - 1, device), None
    if grid.worker == 0:
        x = torch.randn(row.batch, 3, table.size, table.size, device=device)
        shape = (row.batch, 1, table.size, table.size) if table.dense else (row.batch,)
        y = torch.randint(2, shape, device=device)
        batch = (x, y.float() if table.dense else y, row.batch)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for number in range(args.warm_up + args.steps):
        if number == args.warm_up:
            start = now(device)
        optimizer.zero_grad()
        pipeline.step(feed(batch), number)
        optimizer.step()
    took = now(device) - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
    found: list[Any] = [None] * grid.workers
    own = sum(parameter.numel() for parameter in pipeline.module.parameters())
    dist.all_gather_object(found, (peak, own), group=grid.row)
    parameters = sum(count for _, count in found)
    return Figures(took / args.steps, [peak for peak, _ in found], parameters)


def now(device):
    """Return the time at which all processes have come here with all their work done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        dist.barrier(device_ids=[device.index])
    else:
        dist.barrier()
    return time.perf_counter()


def classes(output, target, step):
    return {"loss": F.cross_entropy(output.float(), target)}


def pixels(output, target, step):
    return {"loss": F.binary_cross_entropy_with_logits(output.float(), target)}


class Launched:
    """Rows run by the processes that torchrun started, the first n of them each."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._store, self.rank, self.size = next(dist.rendezvous("env://"))
        self._device, self._args, self._runs = own_device(), args, 0

    def run(self, table: Table, row: Row) -> Figures | str | None:
        """Return the figures on rank 0; None elsewhere."""
        self._runs += 1
        if self.rank >= len(row.balance):
            return None
        store = dist.PrefixStore(f"row {self._runs}", self._store)
        try:
            return in_group(store, self.rank, table, row, self._device, self._args)
        except ValueError as error:  # what a pipeline refuses, all of its processes do
            return " ".join(str(error).split())[:60]
        except torch.OutOfMemoryError:
            if len(row.balance) > 1:
                raise  # the others would wait for this one
            return "out of memory"


class Spawned:
    """Rows run by processes of this host, new ones for each row."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args, self.rank = args, 0
        self.size = torch.cuda.device_count() or 2

    def run(self, table: Table, row: Row) -> Figures | str | None:
        """Return the figures, or why there are none."""
        queue = multiprocessing.get_context("spawn").SimpleQueue()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        size = len(row.balance)
        given = (size, port, queue, table.title, row, self._args)
        try:
            multiprocessing.spawn(_serve, given, nprocs=size)
        except multiprocessing.ProcessRaisedException as error:
            lines = str(error).strip().splitlines()
            return "out of memory" if "OutOfMemory" in str(error) else lines[-1][:60]
        return queue.get()


def _serve(rank, size, port, queue, title, row, args):
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ |= {"LOCAL_RANK": str(rank)}
    store = dist.TCPStore("127.0.0.1", port, size, rank == 0)
    table = {table.title: table for table in tables(args)}[title]
    figures = in_group(store, rank, table, row, own_device(), args)
    if rank == 0:
        queue.put(figures)


def in_group(store, rank, table, row, device, args):
    """Return what ``measure`` finds in a process group of the row's own."""
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=len(row.balance))
    try:
        return measure(table, row, device, args)
    finally:
        dist.destroy_process_group()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def own_device():
    """Return this process's device, made the current one."""
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
        keep_freed_memory()
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def tables(args: argparse.Namespace) -> list[Table]:
    """Return the chosen tables, of the chosen size."""
    chosen = [TABLES[name] for name in args.tables]
    return [reduced(table) for table in chosen] if args.reduced else chosen


def printed(table: Table, runner: Launched | Spawned, args: argparse.Namespace) -> None:
    """Measure the rows of a table, each at the paper's batch and at the fixed one; print it."""
    fixed = args.batch or table.fixed_batch
    rows: list[list[str]] = []
    first: dict[str, float] = {}  # samples a second of the first row that ran
    for row in table.rows:
        todo = {row.batch: "paper's"}
        if table.speed:
            todo[fixed] = "fixed" if fixed != row.batch else "both"
        for batch, kind in todo.items():
            cells = ["", "", f"needs {len(row.balance)} devices"]
            if len(row.balance) <= runner.size:
                figures = runner.run(table, replace(row, batch=batch))
                cells = ["", "", str(figures)]
                if isinstance(figures, Figures):
                    speed = batch / figures.step_s
                    for one in ("paper's", "fixed") if kind == "both" else (kind,):
                        first.setdefault(one, speed)
                    ratio = speed / first["paper's" if kind == "both" else kind]
                    peaks = " ".join(f"{peak / GIB:.2f}" for peak in figures.peaks)
                    cells = [f"{speed:.1f}", f"{ratio:.2f}", peaks]
                    if not table.speed:
                        cells[1] = _short(figures.parameters)
            given = [str(len(row.balance)), str(row.micro_batches), str(batch)]
            balance = ",".join(map(str, row.balance))
            paper = row.paper if batch == row.batch and row.paper else ("", "")
            rows.append([str(row.model), *given, balance, row.checkpoint, *cells, *paper])
    if runner.rank == 0:
        kind, last = ("speed-up", "speed-up") if table.speed else ("parameters", "GiB in all")
        head = ["network", "n", "m", "batch", "balance", "checkpoint", "samples/s", kind]
        head += ["GiB of each", f"paper: {'samples/s' if table.speed else kind}", f"paper: {last}"]
        print(f"\n{table.title}; {table.size} pixels\n")
        print(markdown(head, rows), flush=True)


def _short(parameters):
    millions = parameters / 1e6
    return f"{millions:.1f}M" if millions < 1000 else f"{millions / 1000:.2f}B"


def main() -> None:
    """Measure the tables and print them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--reduced", action=argparse.BooleanOptionalAction)
    parser.add_argument("--batch", type=int, help="the fixed mini-batch; by default the table's")
    parser.add_argument("--schedule", default="gpipe", choices=("gpipe", "gpipe_fifo", "1f1b"))
    parser.add_argument("--skip", default="portal", choices=("portal", "tuple"))
    parser.add_argument("--bf16", action="store_true", help="automatic mixed precision")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--timeout-s", type=float, default=600.0)
    args = parser.parse_args()
    if args.reduced is None:
        args.reduced = not torch.cuda.is_available()
    runner = Launched(args) if "RANK" in os.environ else Spawned(args)
    if runner.rank == 0:
        print(machine("torch"), flush=True)
    for table in tables(args):
        printed(table, runner, args)


if __name__ == "__main__":
    main()
