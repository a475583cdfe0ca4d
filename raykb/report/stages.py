"""How a model is laid out over the workers of a pipeline."""

from collections.abc import Mapping, Sequence
from typing import Any

from raykb.report.tables import markdown

HEAD = ["stage", "worker", "layers", "parameters", "forward ms", "backward ms", "worker MiB"]


def stages(
    costs: Sequence[Mapping[str, Any]], workers: Sequence[int], worker_mib: Sequence[float]
) -> str:
    """Return a Markdown table with a row for each stage.

    Args:
        costs: of each stage, its ``layers`` by name, ``parameters``, and seconds of a micro-batch,
            ``forward_s`` and ``backward_s``.
        workers: of each stage, who holds it.
        worker_mib: what each worker will need.
    """
    rows = []
    for number, (stage, worker) in enumerate(zip(costs, workers, strict=True)):
        layers = stage["layers"]
        rows.append(
            [
                str(number),
                str(worker),
                f"{len(layers)}: {layers[0]} … {layers[-1]}",
                f"{stage['parameters']:,}",
                f"{1e3 * stage['forward_s']:.2f}",
                f"{1e3 * stage['backward_s']:.2f}",
                f"{worker_mib[worker]:.1f}",
            ]
        )
    return markdown(HEAD, rows)


def reached(metrics: Mapping[str, float], worker_mib: Sequence[float], *, gpus: bool) -> str:
    """Return what a pipeline reached: a line for each figure, then for each worker's memory.

    Args:
        metrics: by full name; ``memory/worker-0/peak_mib`` is the most that worker 0 took.
        worker_mib: what each worker was to need.
        gpus: whether the memory is that of GPUs.
    """
    figures = {name: value for name, value in metrics.items() if not name.startswith("memory/")}
    lines = [f"{name:24} {value:10.4g}" for name, value in sorted(figures.items())]
    what = "of its GPU" if gpus else "more resident memory"
    for rank, need in enumerate(worker_mib):
        peak = metrics.get(f"memory/worker-{rank}/peak_mib", 0.0)
        lines.append(f"worker {rank}: {need:.1f} MiB predicted, {peak:.1f} MiB {what} at most")
    return "\n".join(lines)
