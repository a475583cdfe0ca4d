"""What each layer of a sequential model costs: measured seconds, and bytes without memory.

Layers are run one after the other on copies, in training mode, each on what the one before
returned, detached from it: the model, its mode, its buffers and the random numbers to come are left
as they are.
"""

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from raykb.gpipe.memory import LayerSizes, SavedTensorMeter
from raykb.parts.skip import SkipKey, carry

Layers: TypeAlias = nn.Sequential | Sequence[tuple[str, nn.Module]]
"""A sequential model, or its layers with their names."""

Sample: TypeAlias = Tensor | tuple[Tensor, ...]
"""What the first layer is given: a tensor, or a tuple of them."""

Materialise: TypeAlias = Callable[[nn.Module, str], nn.Module]
"""Returns a copy with memory of a layer on the meta device, given the layer and its name."""

_Skips: TypeAlias = dict[SkipKey, Tensor | None]


def named(module: Layers) -> list[tuple[str, nn.Module]]:
    """Return the (name, layer) of a sequential model, in order."""
    if isinstance(module, nn.Sequential):
        return list(zip(module._modules, module, strict=True))  # also those that come again
    return list(module)


def profile_times(
    module: Layers,
    sample: Sample,
    *,
    timeout: float = 1.0,
    device: torch.device | str | None = None,
    materialise: Materialise | None = None,
) -> tuple[list[float], list[float]]:
    """Return the seconds of each layer's forward and of its backward pass.

    The model is run again and again until the time is over; a layer's figures are the medians over
    the runs but the first, which warms up. What is back-propagated into a layer's outputs is the
    outputs themselves.

    Args:
        module: sequential model, or its (name, layer).
        sample: what the first layer is given; the costs are those of such a batch.
        timeout: seconds to measure for. Two runs are made in any case.
        device: where to measure; by default where the sample is.
        materialise: for models on the meta device, and those too large for one copy in memory:
            gives each layer memory. One layer at a time is made, measured for its share of the
            time, and dropped.

    Raises:
        ValueError: a parameter has a gradient already, or is on the meta device and
            ``materialise`` is not given.
    """
    layers = named(module)
    _refuse(layers, materialised=materialise is not None)
    first = sample[0] if isinstance(sample, tuple) else sample
    device = torch.device(first.device if device is None else device)
    make = materialise or (lambda layer, name: copy.deepcopy(layer))
    rooms = [[layer] for layer in layers] if materialise else [layers]
    value = _detached(_moved(sample, device))
    skips: _Skips = {}
    forward_s: list[float] = []
    backward_s: list[float] = []
    with _left_as_it_is(device):
        for room in rooms:
            copies = [make(layer, name).to(device).train() for name, layer in room]
            share = timeout * len(room) / len(layers)
            times, value, skips = _measure(copies, value, skips, share, device)
            forward_s += [statistics.median(forward) for forward, _ in times]
            backward_s += [statistics.median(backward) for _, backward in times]
    return forward_s, backward_s


def _measure(
    layers: Sequence[nn.Module], value: Any, skips: _Skips, timeout: float, device: torch.device
) -> tuple[list[tuple[list[float], list[float]]], Any, _Skips]:
    """Return the seconds of each layer's passes, and what the last one returned and left."""
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in layers]
    begin, runs = time.perf_counter(), 0
    while runs < 2 or time.perf_counter() - begin < timeout:
        at, store = value, dict(skips)
        for layer, (forward, backward) in zip(layers, times, strict=True):
            before, start = dict(store), _now(device)
            with carry(store):
                output = layer(at)
            forward_s = _now(device) - start
            stashed = [tensor for key, tensor in store.items() if key not in before]
            ends = [t for t in [*_tensors(output), *_tensors(stashed)] if t.requires_grad]
            gradients = [end.detach() for end in ends]
            start = _now(device)
            if ends:
                torch.autograd.backward(ends, gradients)
            backward_s = _now(device) - start
            if runs:
                forward.append(forward_s)
                backward.append(backward_s)
            # By a clone, whose backward pass is the quickest: it counts as the layer's.
            at = _detached(output, torch.clone)
            store.update(
                {k: _detached(t, torch.clone) for k, t in store.items() if k not in before}
            )
        runs += 1
    return times, at, store


def profile_sizes(
    module: Layers, sample: Sample, *, device: torch.device | str = "meta"
) -> list[LayerSizes]:
    """Return the bytes of each layer, and those of one micro-batch in it.

    Args:
        module: sequential model, or its (name, layer); may be on the meta device.
        sample: one micro-batch for the first layer; only its shape matters on the meta device.
        device: where to run. The meta device needs no memory and gives the sizes of the model's
            types; a real one holds one layer and its activations at a time.

    Raises:
        ValueError: a parameter has a gradient already, or a layer cannot run on ``device``.
    """
    layers, device = named(module), torch.device(device)
    _refuse(layers, materialised=device.type == "meta")
    value = _detached(_moved(sample, device))
    skips: _Skips = {}
    numbers = _Numbers()
    sources: dict[SkipKey, int] = {}  # the layer that left it
    found = []
    with _left_as_it_is(device):
        for index, (name, layer) in enumerate(layers):
            running = _copy(layer, device).train()
            own = [*running.parameters(), *running.buffers()]
            before = dict(skips)
            with SavedTensorMeter(own) as meter, carry(skips):
                try:
                    output = running(value)
                except (NotImplementedError, RuntimeError, ValueError) as error:
                    raise ValueError(
                        f"layer {name!r} cannot run on {device}: {error}; give another device, "
                        "such as cpu for a layer that must see numbers"
                    ) from error
            popped = [
                (sources[key], numbers[tensor], tensor.nbytes)
                for key, tensor in before.items()
                if key not in skips and tensor is not None
            ]
            found.append(
                LayerSizes(
                    name=name,
                    parameters=_bytes(layer.parameters()),
                    buffers=_bytes(layer.buffers()),
                    inputs={numbers[tensor]: tensor.nbytes for tensor in _tensors(value)},
                    popped=popped,
                    saved={
                        numbers[storage]: storage.nbytes()
                        for storage in [*meter.storages(), *_made(_tensors([output, skips]), own)]
                    },
                    frozen=_bytes(p for p in layer.parameters() if not p.requires_grad),
                )
            )
            sources |= {key: index for key in skips if key not in before}
            value = _detached(output)
            skips = {k: t if k in before else _detached(t) for k, t in skips.items()}
            numbers.keep([*_tensors(value), *_tensors(list(skips.values()))])
    return found


def _made(tensors: Sequence[Tensor], own: Sequence[Tensor]) -> list[torch.UntypedStorage]:
    """Return the memories of leaves that ``tensors`` came from since the last entry.

    Autograd keeps leaves for their gradients, whether or not an operation saved them; those that
    the layer owns are left out.
    """
    found: list[torch.UntypedStorage] = []
    seen: set[Any] = set()
    owned = set(map(id, own))
    nodes: list[Any] = [tensor.grad_fn for tensor in tensors]
    while nodes:
        node = nodes.pop()
        if node is None or node in seen or node.name() == "_EntryBackward":
            continue
        seen.add(node)
        nodes += [below for below, _ in node.next_functions]
        if node.name() == "torch::autograd::AccumulateGrad" and id(node.variable) not in owned:
            found.append(node.variable.untyped_storage())
    return found


class _Numbers:
    """Number memories in order of appearance, each as long as it is kept."""

    def __init__(self) -> None:
        self._next = 0
        self._known: dict[int, tuple[int, torch.UntypedStorage]] = {}

    def __getitem__(self, owner: Tensor | torch.UntypedStorage) -> int:
        storage = owner.untyped_storage() if isinstance(owner, Tensor) else owner
        if id(storage) not in self._known:
            # With the storage itself, whose id could otherwise become another's.
            self._known[id(storage)] = self._next, storage
            self._next += 1
        return self._known[id(storage)][0]

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Forget all memories but these tensors'."""
        for tensor in tensors:
            _ = self[tensor]
        ids = {id(tensor.untyped_storage()) for tensor in tensors}
        self._known = {key: entry for key, entry in self._known.items() if key in ids}


def _copy(layer: nn.Module, device: torch.device) -> nn.Module:
    """Return a copy of a layer on ``device``; on the meta device one that never had memory."""
    if device.type != "meta":
        return copy.deepcopy(layer).to(device)
    without: dict[int, Tensor] = {}
    for tensor in [*layer.parameters(), *layer.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, tensor.requires_grad)
        without[id(tensor)] = empty
    return copy.deepcopy(layer, without)  # deepcopy takes what it finds there as copied


def _refuse(layers: Sequence[tuple[str, nn.Module]], *, materialised: bool) -> None:
    problems = []
    for name, layer in layers:
        parameters = list(layer.parameters())
        if any(parameter.grad is not None for parameter in parameters):
            problems.append(
                f"layer {name!r}: some parameter already has gradient; profile before training, "
                "or set it to None (model.zero_grad())"
            )
        if not materialised and any(tensor.is_meta for tensor in [*parameters, *layer.buffers()]):
            problems.append(
                f"layer {name!r}: its tensors are on the meta device, where nothing can be timed; "
                "give materialise, which returns a copy of a layer with memory"
            )
    if problems:
        raise ValueError("\n".join(problems))


@contextlib.contextmanager
def _left_as_it_is(device: torch.device) -> Iterator[None]:
    """Record gradients, whatever the caller does, and put the random generators back."""
    with (
        torch.enable_grad(),
        torch.random.fork_rng([device] if device.type == "cuda" else []),
    ):
        yield


def _now(device: torch.device) -> float:
    """Return the time after all that ``device`` was told to do."""
    torch.get_device_module(device).synchronize(device)
    return time.perf_counter()


class _Entry(torch.autograd.Function):
    """The identity: what it returns is no leaf, so that a layer may change it in place."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient


def _detached(value: Any, entry: Callable[[Tensor], Tensor] = _Entry.apply) -> Any:
    """Return ``value`` with its tensors detached, requiring gradients as before.

    Args:
        value: a tensor, or tuples, lists and dicts of them.
        entry: makes of a leaf what a layer may change in place; by default without a copy.
    """
    if isinstance(value, Tensor):
        return entry(value.detach().requires_grad_()) if value.requires_grad else value
    if isinstance(value, tuple | list):
        parts = [_detached(part, entry) for part in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    if isinstance(value, dict):
        return {key: _detached(part, entry) for key, part in value.items()}
    return value


def _moved(sample: Sample, device: torch.device) -> Sample:
    """Return a copy of ``sample``, which layers may change in place, on ``device``."""
    if isinstance(sample, tuple):
        return tuple(_moved(part, device) for part in sample)  # type: ignore[misc]
    return sample.detach().to(device, copy=True).requires_grad_(sample.requires_grad)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in _tensors(part)]
    return [value] if isinstance(value, Tensor) else []


def _bytes(tensors: Iterator[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)
