"""What a pipeline itself takes: of stages that sleep, and of one stage beside a plain loop.

python tests/benchmarks/bench_pipeline_overhead.py sleep     # four processes on any machine
python tests/benchmarks/bench_pipeline_overhead.py wrapper   # one process; --device cuda for a GPU

``sleep``: n stages that sleep t_f in a forward and t_b in a backward pass of a micro-batch, so that
they need no cores. Ideal is (m + n - 1)(t_f + t_b) for m micro-batches. That the bubble is what it
should be shows in the line T = a m + b through the least times: b / a should be n - 1.

``wrapper``: a Pipeline of one stage beside a plain loop over the same micro-batches, and what
recomputation costs: ``always`` beside ``never`` (1.33 if a backward pass takes two forward passes).
"""

import argparse
import copy
import time

import torch
from ranks import Variant, both, interleaved, launch, machine
from torch import nn
from torch.nn import functional as F

from raykb.gpipe.feed import Feed
from raykb.gpipe.grid import make_grid
from raykb.gpipe.partition import flatten
from raykb.gpipe.pipeline import Pipeline
from raykb.models.resnet import resnet50_sequential, small_resnet_sequential
from raykb.report.tables import markdown

SCHEDULES = ("gpipe", "gpipe_fifo", "1f1b")


class Nap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, forward_s, backward_s):
        ctx.backward_s = backward_s
        time.sleep(forward_s)
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.backward_s)
        return gradient, None, None


class Sleeper(nn.Module):
    def __init__(self, forward_s, backward_s):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.forward_s, self.backward_s = forward_s, backward_s

    def forward(self, x):
        return Nap.apply(x * self.scale, self.forward_s, self.backward_s)


def asleep(rank, args):
    """Return the seconds of each (schedule, micro-batches)."""
    grid = make_grid(args.stages)
    layers = [(str(i), Sleeper(args.forward_s, args.backward_s)) for i in range(args.stages)]
    feed, variants = Feed(grid, args.stages - 1), {}
    for schedule in SCHEDULES:
        for m in args.micro_batches:
            pipeline = Pipeline(
                layers,
                [1] * args.stages,
                grid=grid,
                loss=lambda output, target, step: {"loss": F.mse_loss(output, target)},
                micro_batches=m,
                schedule=schedule,
                checkpoint="never",
            )
            batch = (torch.ones(m, 4), torch.zeros(m, 4), m) if rank == 0 else None

            def run(pipeline=pipeline, batch=batch):
                pipeline.step(feed(batch), 0)

            variants[schedule, m] = Variant(run, pipeline.module.zero_grad)
    return interleaved(variants, args.repeats)


def sleep(args):
    """Print the table of sleeping stages."""
    n, once = args.stages, args.forward_s + args.backward_s
    seconds = launch(asleep, n, args)
    rows = []
    for schedule in SCHEDULES:
        least = {m: min(seconds[schedule, m]) for m in args.micro_batches}
        a, b = line(list(least), list(least.values()))
        for m in args.micro_batches:
            ideal = (m + n - 1) * once
            cells = [both(seconds[schedule, m]), f"{1e3 * ideal:.0f}", f"{least[m] / ideal:.3f}"]
            rows.append([f"{schedule}, m = {m}", *cells, f"{b / a:.2f}"])
    print(f"{n} stages, t_f {1e3 * args.forward_s:.0f} ms, t_b {1e3 * args.backward_s:.0f} ms\n")
    print(markdown(["", "ms", "ideal", "ratio", f"b / a, of {n - 1}"], rows))


def line(x, y):
    """Return slope and intercept of the least squares line."""
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    products = sum((p - mean_x) * (q - mean_y) for p, q in zip(x, y, strict=True))
    slope = products / sum((p - mean_x) ** 2 for p in x)
    return slope, mean_y - slope * mean_x


MODELS = {
    "linear": lambda: (
        nn.Sequential(*(m for _ in range(16) for m in (nn.Linear(512, 512), nn.Tanh()))),
        (512,),
    ),
    "resnet": lambda: (small_resnet_sequential(10, 1), (1, 28, 28)),
    "resnet50": lambda: (resnet50_sequential(10), (3, 224, 224)),
}


def alone(rank, args):
    """Return the seconds of a plain loop and of pipelines of one stage."""
    device, m = torch.device(args.device), args.micro_batches[0]
    model, shape = MODELS[args.model]()
    x = torch.randn(args.batch, *shape, device=device)
    y = torch.randint(10, (args.batch,), device=device)
    grid = make_grid(1)
    feed, plain = Feed(grid, 0, device), copy.deepcopy(model).to(device)

    def loop():
        for xs, ys in zip(x.chunk(m), y.chunk(m), strict=True):
            (F.cross_entropy(plain(xs), ys) * (len(xs) / len(x))).backward()
        wait()

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    def wrapped(checkpoint, deferred):
        pipeline = Pipeline(
            [(name, copy.deepcopy(layer)) for name, layer in flatten(model)],
            [len(flatten(model))],
            grid=grid,
            loss=lambda output, target, step: {"loss": F.cross_entropy(output, target)},
            micro_batches=m,
            checkpoint=checkpoint,
            device=device,
            deferred_batch_norm=deferred,
        )

        def run():
            pipeline.step(feed((x, y, len(x))), 0)
            wait()

        return Variant(run, pipeline.module.zero_grad)

    variants = {"plain loop": Variant(loop, plain.zero_grad), "never": wrapped("never", False)}
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        variants["never, deferred batch norm"] = wrapped("never", True)
    variants["except_last"] = wrapped("except_last", False)
    variants["always"] = wrapped("always", False)
    return interleaved(variants, args.repeats)


def wrapper(args):
    """Print the table of one stage."""
    seconds = launch(alone, 1, args)
    least = {name: min(times) for name, times in seconds.items()}
    rows = [
        [
            name,
            both(times),
            f"{least[name] / least['plain loop']:.3f}",
            f"{least[name] / least['never']:.3f}",
        ]
        for name, times in seconds.items()
    ]
    print(f"{args.model}, batch {args.batch} in {args.micro_batches[0]}, on {args.device}\n")
    print(markdown(["one process", "ms", "of the loop", "of never"], rows))


def main() -> None:
    """Measure one of the two, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("sleep", "wrapper"))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--micro-batches", type=int, nargs="+", help="4 8 16 by default, or 8")
    parser.add_argument("--stages", type=int, default=4)
    parser.add_argument("--forward-s", type=float, default=0.02)
    parser.add_argument("--backward-s", type=float, default=0.04)
    parser.add_argument("--model", choices=MODELS, default="linear")
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    asleep = args.what == "sleep"
    args.micro_batches = args.micro_batches or ([4, 8, 16] if asleep else [8])
    print(machine("torch"), flush=True)
    (sleep if asleep else wrapper)(args)


if __name__ == "__main__":
    main()
