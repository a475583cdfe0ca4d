"""How many layers each stage gets: the optimal contiguous partition of measured costs.

The three ``balance_by`` functions have the argument order of the paper's library (Kim et al.,
torchgpipe, arXiv 2004.09910)::

    balance = balance_by_time(4, model, sample)
    model = GPipe(model, balance, chunks=8)

Departures: its partitioning (Bárány and Grinberg's, arXiv 1308.2452) is approximate, gives 15
equal layers in 8 parts as 1, 1, 1, 1, 1, 1, 1, 8 and was up to 1.42 times the optimum on random
costs; here it is the optimum. Times are medians without the first pass, not sums with it; sizes are
bytes that autograd keeps, in blocks of CUDA's allocator but counted without memory on the meta
device, not this allocator's growth.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from raykb.gpipe.profile import Layers, Materialise, Sample, named, profile_sizes, profile_times

_BLOCK = 512
"""Bytes; the allocator of CUDA gives every tensor whole blocks."""

_Costs = Callable[[int, np.ndarray, np.ndarray], np.ndarray]


def solve(costs: Sequence[float], stages: int, speeds: Sequence[float] | None = None) -> list[int]:
    """Return how many consecutive layers each stage gets so that the slowest is the fastest.

    Of all partitions into non-empty stages whose largest load is minimal, it is the one whose loads
    are most even (least sum of squares), then the one whose numbers of layers are.

    Args:
        costs: of each layer, in order; seconds, bytes or whatever adds up.
        stages: their number.
        speeds: of the stage's devices, in order: a stage's load is its cost divided by its speed.
            None stands for equal ones.

    Returns:
        Layers of each stage, at least one; they sum to ``len(costs)``.

    Raises:
        ValueError: no stage, fewer layers than stages, a cost that is negative or no number, not
            as many speeds as stages, or one that is not above 0; all that is wrong is named.
    """
    problems = _problems(costs, stages, speeds)
    if problems:
        raise ValueError("\n".join(problems))
    total = np.concatenate([[0.0], np.cumsum(_scaled(costs))])
    rates: list[float] = _scaled([1.0] * stages if speeds is None else speeds).tolist()

    def load(stage: int, cost: np.ndarray, layers: np.ndarray) -> np.ndarray:
        return cost / rates[stage]

    least, _ = _best(load, np.maximum, total, stages)
    bound = least * (1 + 1e-12)  # sums of equal costs differ by their rounding

    def unevenness(stage: int, cost: np.ndarray, layers: np.ndarray) -> np.ndarray:
        loads = cost / rates[stage]
        share = loads / least if least else loads
        few = 1e-9 * (layers / len(costs)) ** 2  # decides between partitions of equal loads
        return np.where(loads <= bound, share**2 + few, np.inf)

    return _best(unevenness, np.add, total, stages)[1]


def _scaled(values: Sequence[float]) -> np.ndarray:
    """Return values that are at most 1, so that no sum overflows, in exactly the same proportions.

    They are divided by a power of two, which rounds nothing.
    """
    array = np.asarray(values, np.float64)
    _, exponent = np.frexp(array.max())
    scaled: np.ndarray = np.ldexp(array, -exponent)
    return scaled


def _best(
    cost_of: _Costs, combine: np.ufunc, total: np.ndarray, stages: int
) -> tuple[float, list[int]]:
    """Return the least combined cost of a partition and its numbers of layers.

    The dynamic programme D[j][i] = min over t < i of combine(D[j-1][t], cost of layers t to i as
    stage j), where D[j][i] is the best that the first i layers can cost as j stages.

    Args:
        cost_of: of (stage, costs of the layers that it may get, numbers of these layers).
        combine: of two stages' costs.
        total: (layers + 1,) costs of the first 0, 1, 2, … layers.
        stages: their number.
    """
    layers = len(total) - 1
    best = np.full(layers + 1, np.inf)
    best[0] = 0.0
    starts = np.zeros((stages, layers + 1), np.int64)
    for stage in range(stages):
        behind = stages - stage - 1  # stages that need a layer, too
        found = np.full(layers + 1, np.inf)
        for end in range(stage + 1 if behind else layers, layers - behind + 1):
            first = np.arange(end - 1, stage - 1, -1)  # of equal choices the shorter last stage
            value = combine(best[first], cost_of(stage, total[end] - total[first], end - first))
            place = value.argmin()
            found[end], starts[stage, end] = value[place], first[place]
        best = found
    counts, end = [], layers
    for stage in reversed(range(stages)):
        counts.append(int(end - starts[stage, end]))
        end = starts[stage, end]
    return float(best[layers]), counts[::-1]


def _problems(costs: Sequence[float], stages: int, speeds: Sequence[float] | None) -> list[str]:
    found = []
    if stages < 1:
        found.append(f"partitions: {stages}, must be at least 1")
    elif len(costs) < stages:
        found.append(
            f"partitions: {stages}, must be at most the {len(costs)} layers there are; take fewer, "
            "or open nested sequentials"
        )
    for index, cost in enumerate(costs):
        if not (math.isfinite(cost) and cost >= 0):
            found.append(f"costs: {cost} of layer {index}, must be a number of at least 0")
    if speeds is not None and len(speeds) != stages:
        found.append(f"speeds: {len(speeds)} given, must be one for each of {stages} stages")
    for stage, speed in enumerate([] if speeds is None else speeds):
        if not (math.isfinite(speed) and speed > 0):
            found.append(f"speeds: {speed} of stage {stage}, must be a number above 0")
    return found


def balance_by_time(
    partitions: int,
    module: Layers,
    sample: Sample,
    *,
    timeout: float = 1.0,
    device: torch.device | str | None = None,
    speeds: Sequence[float] | None = None,
    materialise: Materialise | None = None,
) -> list[int]:
    """Return the balance by measured time of the forward and the backward pass.

    Args:
        partitions: number of stages.
        module: sequential model, or its (name, layer); it is left as it is.
        sample: what the first layer is given, best a micro-batch: one tensor or a tuple.
        timeout: seconds to measure for; every layer is measured at least once.
        device: where to measure; by default where the sample is.
        speeds: of the stages' devices relative to this one; see :func:`solve`.
        materialise: see :func:`raykb.gpipe.profile.profile_times`.

    Raises:
        ValueError: as of :func:`solve`; or a parameter has a gradient already.
    """
    _check(partitions, module)
    forward_s, backward_s = profile_times(
        module, sample, timeout=timeout, device=device, materialise=materialise
    )
    return solve(np.add(forward_s, backward_s).tolist(), partitions, speeds)


def balance_by_size(
    partitions: int,
    module: Layers,
    input: Sample,
    *,
    chunks: int = 1,
    param_scale: float = 2.0,
    device: torch.device | str = "meta",
) -> list[int]:
    """Return the balance by memory: activations of one micro-batch, and parameters.

    Args:
        partitions: number of stages.
        module: sequential model, or its (name, layer); may be on the meta device.
        input: a whole mini-batch for the first layer, one tensor or a tuple; only its shape
            matters.
        chunks: micro-batches that it is cut into; the first one is measured.
        param_scale: how many times its parameters' bytes a layer needs for them, their gradients
            and the optimizer's state: 2 for plain SGD, 3 with momentum, 4 for Adam. (The paper's
            library asks for up to 1 more, since its allocator keeps more than is needed.)
        device: where to run; the meta device needs no memory. Layers that must see numbers need a
            real one.

    Raises:
        ValueError: as of :func:`solve`; or ``chunks`` is below 1, or a parameter has a gradient
            already, or a layer cannot run on ``device``.
    """
    _check(partitions, module)
    if chunks < 1:
        raise ValueError(f"chunks: {chunks}, must be at least 1")
    given = input if isinstance(input, tuple) else (input,)
    first = tuple(
        tensor.detach().to(device).chunk(chunks)[0].requires_grad_(tensor.requires_grad)
        for tensor in given
    )
    sizes = profile_sizes(module, first if isinstance(input, tuple) else first[0], device=device)
    kept: set[int] = set()  # a tensor that two layers keep counts for the first of them
    costs = []
    for size in sizes:
        new = {storage: count for storage, count in size.saved.items() if storage not in kept}
        blocks = sum(math.ceil(count / _BLOCK) * _BLOCK for count in new.values())
        costs.append(blocks + param_scale * size.parameters)
        kept |= new.keys()
    return solve(costs, partitions)


def balance_by_parameters(partitions: int, module: Layers) -> list[int]:
    """Return the balance by numbers of parameters.

    Args:
        partitions: number of stages.
        module: sequential model, or its (name, layer); may be on the meta device.

    Raises:
        ValueError: as of :func:`solve`.
    """
    counts = [sum(p.numel() for p in layer.parameters()) for _, layer in named(module)]
    return solve(counts, partitions)


def _check(partitions: int, module: Layers) -> None:
    """Refuse before measuring what :func:`solve` would refuse after it."""
    problems = _problems([0.0] * len(named(module)), partitions, None)
    if problems:
        raise ValueError("\n".join(problems))
