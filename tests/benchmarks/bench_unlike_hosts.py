"""A pipeline over two hosts of which one is slower: cut for hosts that are alike, and by speed.

python tests/benchmarks/bench_unlike_hosts.py --share 0.3

Two network namespaces are the hosts, each with a process of one thread; one has a whole core, the
other a share of one, a quota of the kernel (as root, with groups of version 1). The processes
measure their speeds as in a training, and ``balance: time`` cuts 16 linear layers with tanh for
them. The two pipelines take turns, with a barrier before and after each step.
"""

import argparse
import contextlib
import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import Variant, both, interleaved, machine
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "runtime"))
from bench_pipeline import CLASSES, linear
from shared_hosts import TwoHosts, can_be_slowed

from raykb.engine.memory import keep_freed_memory
from raykb.engine.messages import told
from raykb.gpipe.costs import Costs, measure
from raykb.gpipe.feed import Feed
from raykb.gpipe.grid import make_grid
from raykb.gpipe.partition import flatten
from raykb.gpipe.pipeline import Pipeline
from raykb.gpipe.speed import relative_speeds
from raykb.report.tables import markdown
from raykb.runtime.network import interface_of

PORT = 29500


def rank(args: argparse.Namespace) -> None:
    """Be one of the two processes; the first prints what was measured, as JSON."""
    host = args.hosts[args.rank]
    os.environ["GLOO_SOCKET_IFNAME"] = interface_of(host) or ""
    torch.set_num_threads(1)
    keep_freed_memory()
    sys.stdin.readline()  # until the hosts are as fast as they shall be
    dist.init_process_group(
        "gloo", init_method=f"tcp://{args.hosts[0]}:{PORT}", rank=args.rank, world_size=2
    )
    torch.manual_seed(0)
    grid = make_grid(2)
    model, shape = linear()
    layers = flatten(model)
    x, y = torch.randn(args.batch, *shape), torch.randint(CLASSES, (args.batch,))
    small = x[: args.batch // args.micro_batches]
    state = measure(layers, small, seed=0, device="cpu").state() if grid.rank == 0 else None
    costs = Costs.of_state(told(state))
    speeds = relative_speeds(grid, torch.device("cpu"))
    cuts = {
        name: costs.balance("time", 2, checkpoint="never", speeds=given)
        for name, given in (("for hosts that are alike", None), ("by their speeds", speeds))
    }

    def variant(balance: list[int]) -> Variant:
        pipeline = Pipeline(
            [(name, copy.deepcopy(layer)) for name, layer in layers],
            balance,
            grid=grid,
            loss=lambda output, target, step: {"loss": F.cross_entropy(output, target)},
            micro_batches=args.micro_batches,
            schedule="1f1b",
            checkpoint="never",
        )
        feed = Feed(grid, 1)

        def run() -> None:
            pipeline.step(feed((x, y, len(x)) if grid.rank == 0 else None), 0)

        return Variant(run, pipeline.module.zero_grad)

    seconds = interleaved({name: variant(cut) for name, cut in cuts.items()}, args.repeats)
    if grid.rank == 0:
        print(json.dumps({"speeds": speeds, "cuts": cuts, "seconds": seconds}))
    dist.destroy_process_group()


def measured(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Return what the two processes on two hosts measured."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        hosts = TwoHosts(Path(folder))
        stack.callback(hosts.stop)
        hosts.connect()
        processes = [
            subprocess.Popen(
                hosts.on(side, sys.executable, *sys.argv, "--rank", side, "--hosts", *hosts.hosts),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for side in (0, 1)
        ]
        while not all(hosts.pids(side) for side in (0, 1)):
            if any(process.poll() is not None for process in processes):
                raise SystemExit("a process ended before it began")
        stack.enter_context(hosts.slowed(args.slow, args.share))
        for process in processes:
            process.stdin.write("\n")
            process.stdin.flush()
        output, _ = processes[0].communicate()
        processes[1].communicate()
    return json.loads(output)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--share", type=float, default=0.3, help="of a core; default 0.3")
    parser.add_argument("--slow", type=int, choices=(0, 1), default=1, help="stage; default 1")
    parser.add_argument("--micro-batches", type=int, default=8)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--hosts", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank is not None:
        rank(args)
        return
    if not can_be_slowed():
        raise SystemExit("there are no groups with a share of the cores (cgroup, version 1)")
    print(machine("torch"), flush=True)
    found = measured(args)
    told_speeds = ", ".join(f"{speed:.2f}" for speed in found["speeds"])
    print(f"\nstage {args.slow} has {args.share} of a core; speeds measured: {told_speeds}\n")
    rows = [
        [name, f"{found['cuts'][name]}", both(times), f"{1 / min(times):.2f}"]
        for name, times in found["seconds"].items()
    ]
    print(markdown(["cut", "layers", "ms a step", "steps/s"], rows))
    alike, by_speed = found["seconds"].values()
    turns = sorted(a / b for a, b in zip(alike, by_speed, strict=True))
    print(
        f"\ngain: {min(alike) / min(by_speed):.2f} of the least, of the turns "
        f"{turns[len(turns) // 2]:.2f} ({turns[0]:.2f} to {turns[-1]:.2f})"
    )


if __name__ == "__main__":
    main()
